"""Hostile inputs that are answered: what the docstrings promise for each of them."""

import math

import pytest
import torch
from oracle import DK, DV, HIDDEN, TK, TQ, D, random
from torch.testing import assert_close

import attention_lib as lib
from attention_lib import (
    attend,
    attend_explicit,
    attention_weights,
    causal,
    entropy,
    padding,
    softmax,
)

pytestmark = pytest.mark.hostile

PLAIN = [lib.dot, lib.scaled_dot, lib.cosine, lib.pearson, lib.spearman, lib.gaussian]
PLAIN_SCORES = pytest.mark.parametrize("score", PLAIN, ids=lambda f: f.__name__)
PATHS = pytest.mark.parametrize("path", [attend_explicit, attend], ids=["explicit", "fused"])
LIMITS = torch.finfo(torch.float32)
DEVICES = ["meta", *(["cuda"] if torch.cuda.is_available() else [])]


def _inputs(generator, dtype=torch.float64):
    return [random(generator, *s, dtype=dtype) for s in ((TQ, D), (TK, D), (TK, DV))]


# --- empty and tiny ------------------------------------------------------------------------------


@PLAIN_SCORES
@pytest.mark.parametrize(("queries", "keys"), [(0, TK), (TQ, 0), (0, 0)])
def test_an_empty_sequence_has_an_empty_score_matrix(score, queries, keys):
    assert score(torch.ones(queries, D), torch.ones(keys, D)).shape == (queries, keys)


def test_learned_scores_take_an_empty_sequence():
    query, key = torch.ones(TQ, D), torch.ones(0, DK)
    assert lib.bilinear(query, key, torch.ones(D, DK)).shape == (TQ, 0)
    parameters = torch.ones(D, HIDDEN), torch.ones(DK, HIDDEN), torch.ones(HIDDEN)
    assert lib.additive(query, key, *parameters).shape == (TQ, 0)


def test_softmax_and_entropy_of_nothing():
    weights = softmax(torch.ones(TQ, 0))
    assert weights.shape == (TQ, 0)
    assert entropy(weights).tolist() == [0] * TQ
    assert softmax(torch.ones(0, TK)).shape == (0, TK)
    assert entropy(torch.ones(0, TK)).shape == (0,)


def test_softmax_of_nothing_is_not_the_input_itself():
    scores = torch.ones(TQ, 0)
    assert softmax(scores) is not scores


@PATHS
@pytest.mark.parametrize("mask", [None, causal()], ids=["open", "causal"])
def test_no_keys_give_zero_and_gradient_zero(path, mask):
    inputs = [torch.ones(*s, requires_grad=True) for s in ((2, TQ, D), (2, 0, D), (2, 0, DV))]
    output = path(*inputs, mask)
    output.sum().backward()
    assert torch.equal(output, torch.zeros(2, TQ, DV))
    assert torch.equal(inputs[0].grad, torch.zeros(2, TQ, D))


@PATHS
@pytest.mark.parametrize("mask", [None, causal()], ids=["open", "causal"])
def test_no_queries_give_no_rows(path, mask):
    assert path(torch.ones(0, D), torch.ones(TK, D), torch.ones(TK, DV), mask).shape == (0, DV)


@PATHS
def test_an_empty_batch_gives_an_empty_batch(path):
    inputs = [torch.ones(*s) for s in ((0, TQ, D), (0, TK, D), (0, TK, DV))]
    assert path(*inputs, causal()).shape == (0, TQ, DV)


@PATHS
def test_one_key_gets_all_the_weight(path, generator):
    query, key, value = random(generator, TQ, D), random(generator, 1, D), random(generator, 1, DV)
    assert_close(path(query, key, value), value.expand(TQ, DV))


def test_at_width_one_correlations_are_zero_and_the_cosine_is_a_sign():
    query, key = torch.tensor([[2.0], [-3.0]]), torch.tensor([[5.0]])
    assert lib.pearson(query, key).tolist() == [[0], [0]]
    assert lib.spearman(query, key).tolist() == [[0], [0]]
    assert lib.cosine(query, key).tolist() == [[1], [-1]]


# --- constant rows and zero norm -----------------------------------------------------------------


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e30, 1e-40])
@pytest.mark.parametrize("score", [lib.pearson, lib.spearman], ids=lambda f: f.__name__)
def test_a_constant_row_correlates_at_zero_with_everything(score, constant, generator):
    query, key = random(generator, TQ, D), random(generator, TK, D)
    query[1] = constant
    scores = score(query, key)
    assert scores[1].tolist() == [0] * TK
    assert_close(scores[[0, 2]], score(query[[0, 2]], key))


@pytest.mark.parametrize("score", [lib.cosine, lib.pearson], ids=lambda f: f.__name__)
def test_a_zero_vector_scores_zero_and_has_a_finite_gradient(score, generator):
    query, key = random(generator, TQ, D), random(generator, TK, D).requires_grad_()
    query[1] = 0
    query.requires_grad_()
    scores = score(query, key)
    scores.sum().backward()
    assert scores[1].tolist() == [0] * TK
    assert query.grad.isfinite().all()
    assert key.grad.isfinite().all()


# --- NaN, infinity, huge and small numbers -------------------------------------------------------


@PLAIN_SCORES
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["query", "key"])
def test_a_bad_vector_stays_in_its_own_row_or_column(score, bad, side, generator):
    query, key = random(generator, TQ, D).float(), random(generator, TK, D).float()
    clean = score(query, key)
    if side == "query":
        query[1, 2] = bad
        others = score(query, key)[[0, 2]], clean[[0, 2]]
    else:
        key[1, 2] = bad
        others = score(query, key)[:, [0, 2, 3, 4]], clean[:, [0, 2, 3, 4]]
    assert_close(*others)


@PLAIN_SCORES
def test_a_nan_makes_its_row_and_column_nan(score, generator):
    query, key = random(generator, 2, TQ, D), random(generator, 2, TK, D)
    query[0, 1, 2] = key[1, 3, 4] = math.nan
    expected = torch.zeros(2, TQ, TK, dtype=torch.bool)
    expected[0, 1] = expected[1, :, 3] = True
    assert torch.equal(score(query, key).isnan(), expected)


def test_an_infinity_is_nan_for_cosine_and_pearson_and_the_largest_entry_for_spearman():
    query, key = torch.tensor([[1.0, 2.0, math.inf]]), torch.tensor([[1.0, 2.0, 3.0]])
    assert lib.cosine(query, key).isnan().all()
    assert lib.pearson(query, key).isnan().all()
    assert lib.spearman(query, key).item() == pytest.approx(1)


@pytest.mark.parametrize("factor", [1e-42, 1e-30, 1e30, 3e38])
def test_cosine_neither_overflows_nor_underflows(factor):
    query, key = torch.tensor([[factor, 0.0], [factor, factor]]), torch.tensor([[1.0, 0.0]])
    assert_close(lib.cosine(query, key), torch.tensor([[1.0], [math.sqrt(0.5)]]))


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_pearson_neither_overflows_nor_underflows(factor):
    query = factor * torch.tensor([[1.0, 2.0, 3.0]])
    assert_close(lib.pearson(query, torch.tensor([[3.0, 2.0, 1.0]])), torch.tensor([[-1.0]]))


def test_pearson_is_nan_where_the_sum_of_a_row_overflows():
    query = torch.tensor([[1e38, 2e38, 3e38]])
    assert lib.pearson(query, torch.tensor([[1.0, 2.0, 3.0]])).isnan().all()


def test_scaled_dot_does_not_overflow_before_it_is_scaled():
    x = torch.full((1, 4096), 5.0, dtype=torch.float16)
    assert lib.dot(x, x).item() == math.inf  # 102,400 is beyond float16
    assert lib.scaled_dot(x, x).item() == 1600


def test_half_precision_distances_use_float32_inside():
    query, key = torch.full((1, 8), 300.0).half(), torch.full((2, 8), 299.0).half()
    key[1] = -300
    assert lib.gaussian(query, key).tolist() == [[-4.0, -math.inf]]


def test_distances_whose_squares_overflow_are_not_finite():
    assert not lib.gaussian(torch.full((1, 3), 1e30), torch.ones(1, 3)).isfinite().any()


def test_correlations_of_the_largest_half_precision_numbers_do_not_overflow():
    x = torch.tensor([[6e4, 5e4, 1e4]], dtype=torch.float16)
    assert lib.pearson(x, x).item() == lib.cosine(x, x).item() == lib.spearman(x, x).item() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("score", [lib.cosine, lib.pearson, lib.gaussian], ids=lambda f: f.__name__)
def test_half_precision_loses_digits_only_in_the_last_step(score, dtype, generator):
    query, key = random(generator, TQ, D, dtype=dtype), random(generator, TK, D, dtype=dtype)
    assert torch.equal(score(query, key), score(query.float(), key.float()).to(dtype))
    scores = random(generator, 101, TK, dtype=dtype)
    assert torch.equal(softmax(scores), softmax(scores.float()).to(dtype))
    assert torch.equal(entropy(scores.exp()), entropy(scores.exp().float()).to(dtype))


@pytest.mark.parametrize(
    ("scores", "dtype"),
    [
        ([1e38, 0.0, -1e38], torch.float32),
        ([3e38, -3e38, -3e38], torch.float32),
        ([6e4, -6e4, 5e4], torch.float16),
        ([1e300, 0.0, -1e300], torch.float64),
        ([0.0, -math.inf, -1e30], torch.float32),
    ],
)
@pytest.mark.parametrize("temperature", [0.02, 1.0])
def test_huge_scores_do_not_overflow(scores, dtype, temperature):
    assert softmax(torch.tensor(scores, dtype=dtype), temperature=temperature).tolist() == [1, 0, 0]


@pytest.mark.parametrize("temperature", [LIMITS.tiny, LIMITS.max])
def test_extreme_temperatures_give_finite_weights(temperature):
    scores, mask = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([True, True, False])
    weights = softmax(scores, mask, temperature=temperature)
    assert weights.tolist() == ([1, 0, 0] if temperature < 1 else [0.5, 0.5, 0])


def test_nan_and_plus_infinity_spoil_their_own_row_only():
    scores = torch.tensor([[1.0, math.nan], [1.0, math.inf], [0.0, 0.0]])
    weights = softmax(scores)
    assert weights.isnan().tolist() == [[True, True], [True, True], [False, False]]


def test_minus_infinity_has_weight_zero_and_a_row_of_it_is_zero():
    scores = torch.tensor([[0.0, -math.inf], [-math.inf, -math.inf]], requires_grad=True)
    weights = softmax(scores)
    weights.square().sum().backward()
    assert weights.tolist() == [[1, 0], [0, 0]]
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_masked_score_does_not_count_whatever_it_is(bad):
    scores = torch.tensor([0.0, bad, 0.0], requires_grad=True)
    weights = softmax(scores, torch.tensor([True, False, True]))
    weights.square().sum().backward()
    assert weights.tolist() == [0.5, 0, 0.5]
    assert scores.grad.tolist() == [0, 0, 0]


def test_a_nan_weight_makes_its_own_entropy_nan():
    weights = torch.tensor([[math.nan, 0.5], [0.5, 0.5]])
    assert entropy(weights).isnan().tolist() == [True, False]


def test_a_masked_key_may_be_nan_where_only_weights_are_wanted(generator):
    query, key, _ = _inputs(generator)
    mask = torch.tensor([True, True, True, False, True])
    clean = attention_weights(query, key, mask)
    key[3] = math.nan
    assert torch.equal(attention_weights(query, key, mask), clean)


@PATHS
def test_a_masked_value_must_be_finite(path, generator):
    query, key, value = _inputs(generator)
    value[3] = math.nan
    assert path(query, key, value, torch.tensor([True, True, True, False, True])).isnan().all()


# --- layout, gradients, devices ------------------------------------------------------------------


@PLAIN_SCORES
def test_memory_layout_does_not_matter(score, generator):
    query, key = random(generator, D, TQ).mT, random(generator, 2 * TK, 2 * D)[::2, ::2]
    expanded = random(generator, 1, D).expand(TQ, D)  # stride 0
    assert not any(x.is_contiguous() for x in (query, key, expanded))
    assert_close(score(query, key), score(query.contiguous(), key.contiguous()))
    assert_close(score(expanded, key), score(expanded.contiguous(), key.contiguous()))


@PATHS
def test_memory_layout_does_not_matter_for_attention(path, generator):
    query = random(generator, D, TQ).mT
    key, value = random(generator, 1, D).expand(TK, D), random(generator, TK, 2 * DV)[:, ::2]
    expected = path(query.contiguous(), key.contiguous(), value.contiguous())
    assert_close(path(query, key, value), expected)


@PLAIN_SCORES
def test_no_score_changes_its_arguments(score, generator):
    query, key = random(generator, TQ, D), random(generator, TK, D)
    query[1] = 0
    copies = query.clone(), key.clone()
    score(query, key)
    assert torch.equal(query, copies[0])
    assert torch.equal(key, copies[1])


def test_softmax_and_entropy_do_not_change_their_arguments(generator):
    scores, mask = random(generator, TQ, TK), torch.tensor([True, False, True, True, False])
    copies = scores.clone(), mask.clone()
    softmax(scores, mask, temperature=0.5)
    assert torch.equal(scores, copies[0])
    assert torch.equal(mask, copies[1])
    weights = softmax(scores)
    copy = weights.clone()
    entropy(weights)
    assert torch.equal(weights, copy)


@PATHS
def test_a_gradient_may_be_wanted_of_one_argument_only(path, generator):
    inputs = _inputs(generator)
    for wanted in range(3):
        given = [x.clone().requires_grad_(i == wanted) for i, x in enumerate(inputs)]
        path(*given).sum().backward()
        assert [x.grad is not None for x in given] == [i == wanted for i in range(3)]


@pytest.mark.parametrize("device", DEVICES)
def test_results_stay_on_the_device_of_the_inputs(device, generator):
    query, key, value = (x.to(device) for x in _inputs(generator, torch.float32))
    mask = causal() & padding(torch.tensor(3))  # lengths on the CPU are fine
    outputs = [score(query, key) for score in PLAIN]
    outputs += [attend(query, key, value, mask), attend_explicit(query, key, value, mask)]
    outputs += [softmax(query, query > 0), attention_weights(query, key, mask)]
    assert {x.device.type for x in outputs} == {device}


def test_a_length_beyond_the_keys_allows_all_of_them():
    assert padding(torch.tensor([100])).dense(TQ, TK).all()


def test_every_integer_type_of_lengths_is_taken():
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        assert padding(torch.tensor([2], dtype=dtype)).dense(1, 3).tolist() == [
            [[True, True, False]]
        ]
