"""Softmax and entropy: on paper, oracles with gradients, and the properties of chapter 03."""

import math

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import BATCH, DTYPES, TK, TQ, assert_matches, masks, random, tensors
from torch.nn import functional
from torch.testing import assert_close

from attention_lib import entropy, softmax

temperatures = st.floats(0.05, 20)


# --- on paper ------------------------------------------------------------------------------------


def test_one_among_five():
    weights = softmax(torch.tensor([1.0, 0, 0, 0, 0]))
    assert_close(weights, torch.tensor([math.e, 1, 1, 1, 1]) / (math.e + 4))


def test_temperature_divides_the_scores():
    weights = softmax(torch.tensor([math.log(3), 0.0]), temperature=0.5)
    assert_close(weights, torch.tensor([0.9, 0.1]))


def test_masked_weights_are_exactly_zero_and_the_rest_share_one():
    scores = torch.tensor([5.0, 1.0, 1.0])
    assert softmax(scores, torch.tensor([False, True, True])).tolist() == [0, 0.5, 0.5]


def test_entropy_of_one_key_equal_keys_and_a_coin():
    weights = torch.tensor([[1.0, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0]])
    assert_close(entropy(weights), torch.tensor([0, math.log(4), math.log(2)]))


def test_entropy_of_one_key_has_no_minus_sign():
    assert not torch.signbit(entropy(torch.tensor([1.0, 0.0])))


# --- oracles -------------------------------------------------------------------------------------

MASK = torch.rand(TQ, TK, generator=torch.Generator().manual_seed(2)) > 0.4


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("mask", [None, MASK], ids=["open", "masked"])
def test_softmax_and_gradient_match_loop_and_torch(mask, temperature, dtype, generator):
    def reference(scores):
        open_scores = scores if mask is None else scores.masked_fill(~mask, float("-inf"))
        return functional.softmax(open_scores / temperature, dim=-1)

    assert_matches(
        lambda scores: softmax(scores, mask, temperature=temperature),
        reference,
        lambda scores: oracle.softmax(scores, mask, temperature),
        [random(generator, BATCH, TQ, TK, dtype=dtype)],
    )


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_entropy_and_gradient_match_loop_and_torch(dtype, generator):
    weights = random(generator, BATCH, TQ, TK, dtype=dtype).softmax(dim=-1)
    assert_matches(entropy, lambda w: torch.special.entr(w).sum(dim=-1), oracle.entropy, [weights])


@pytest.mark.parametrize("mask", [None, MASK], ids=["open", "masked"])
def test_gradcheck(mask, generator):
    scores = random(generator, TQ, TK).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: softmax(s, mask, temperature=0.7), [scores])
    assert torch.autograd.gradcheck(lambda s: entropy(softmax(s, mask)), [scores])


# --- properties ----------------------------------------------------------------------------------


@given(tensors(TQ, TK), masks(TQ, TK), temperatures)
def test_rows_sum_to_one_or_to_zero(scores, mask, temperature):
    weights = softmax(scores, mask, temperature=temperature)
    assert (weights >= 0).all()
    assert not weights[~mask].any()
    assert_close(weights.sum(dim=-1), mask.any(dim=-1).double())


@given(tensors(TQ, TK), masks(TQ, TK), tensors(TQ, 1, largest=100))
def test_shifting_a_row_of_scores_changes_nothing(scores, mask, shift):
    assert_close(softmax(scores + shift, mask), softmax(scores, mask))


@given(tensors(TQ, TK), temperatures)
def test_temperature_is_a_scale_of_the_scores(scores, temperature):
    assert_close(softmax(scores, temperature=temperature), softmax(scores / temperature))


@given(tensors(TQ, TK), temperatures)
def test_a_lower_temperature_never_raises_the_entropy(scores, temperature):
    cold, warm = (entropy(softmax(scores, temperature=t)) for t in (temperature, 2 * temperature))
    assert (cold <= warm + 1e-12).all()
    assert (warm <= math.log(TK) + 1e-12).all()


@given(tensors(TQ, TK), masks(TQ, TK), st.permutations(range(TK)))
def test_weights_follow_a_permutation_of_the_keys(scores, mask, order):
    assert_close(softmax(scores[:, order], mask[:, order]), softmax(scores, mask)[:, order])


@given(tensors(TQ, TK), masks(TQ, TK))
def test_masked_softmax_is_softmax_of_the_allowed_keys(scores, mask):
    weights = softmax(scores, mask)
    for row, allowed, found in zip(scores, mask, weights, strict=True):
        assert_close(found[allowed], softmax(row[allowed]))


@given(tensors(TQ, TK))
def test_order_of_weights_is_order_of_scores(scores):
    weights = softmax(scores)
    assert (weights.gather(-1, scores.argsort(dim=-1)).diff(dim=-1) >= 0).all()


def test_cold_softmax_picks_the_largest_and_hot_softmax_is_uniform():
    scores = torch.tensor([1.0, 3.0, 2.0])
    assert softmax(scores, temperature=1e-30).tolist() == [0, 1, 0]
    assert_close(softmax(scores, temperature=1e30), torch.full((3,), 1 / 3))


def test_the_jacobian_is_diag_w_minus_w_w(generator):
    scores = random(generator, TK)
    weights = softmax(scores)
    jacobian = torch.autograd.functional.jacobian(softmax, scores)
    assert_close(jacobian, weights.diag() - weights.outer(weights))


# --- masks that leave nothing --------------------------------------------------------------------


def test_a_fully_masked_row_has_weights_and_gradient_zero(generator):
    scores = random(generator, TQ, TK).requires_grad_()
    mask = torch.ones(TQ, TK, dtype=torch.bool)
    mask[1] = False
    weights = softmax(scores, mask)
    (weights * random(generator, TQ, TK)).sum().backward()
    assert weights[1].tolist() == [0] * TK
    assert scores.grad[1].tolist() == [0] * TK
    assert scores.grad[[0, 2]].abs().min() > 0


def test_entropy_at_weight_zero_has_a_finite_gradient():
    scores = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    entropy(softmax(scores, torch.tensor([True, True, False]))).backward()
    assert scores.grad.isfinite().all()
    assert scores.grad[:2].abs().min() > 0


def test_the_mask_broadcasts_over_leading_dimensions(generator):
    scores = random(generator, BATCH, TQ, TK)
    mask = torch.tensor([True, False, True, True, False])
    assert_close(softmax(scores, mask), softmax(scores, mask.expand(BATCH, TQ, TK)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_keep_the_dtype_of_the_scores(dtype):
    scores = torch.zeros(TQ, TK, dtype=dtype)
    assert softmax(scores).dtype == entropy(softmax(scores)).dtype == dtype


def test_half_precision_is_computed_in_float32():
    # exp of the differences would underflow in float16, whose smallest number is 6e-8.
    scores = torch.tensor([0.0] + [-17.0] * 4096, dtype=torch.float16)
    assert softmax(scores)[0].item() == torch.tensor(1 / (1 + 4096 * math.exp(-17))).half().item()
    many = torch.zeros(70_000, dtype=torch.float16)  # their sum is beyond float16
    assert softmax(many)[0].item() == torch.tensor(1 / 70_000).half().item()
