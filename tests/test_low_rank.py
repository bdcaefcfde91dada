"""Low-rank attention: by hand, against a loop with all gradients, and what it cannot do."""

import math

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import BATCH, DTYPES, DV, TK, TQ, D, assert_matches, normal, random
from torch.autograd.functional import jacobian
from torch.nn.functional import adaptive_avg_pool1d, scaled_dot_product_attention
from torch.testing import assert_close

from attention_lib import attend
from attention_lib.efficient.low_rank import (
    LowRankAttention,
    attend_low_rank,
    pooling_projection,
)

R = 3
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def _inputs(generator, dtype=torch.float64, rank=R, keys=TK):
    shapes = (TQ, D), (keys, D), (keys, DV)
    inputs = [random(generator, BATCH, *shape, dtype=dtype) for shape in shapes]
    return [*inputs, *(random(generator, rank, keys, dtype=dtype) for _ in range(2))]


def mixed(projection, x):
    """One mixture after the other, one key at a time."""
    return torch.stack(
        [sum(row[j] * x[..., j, :] for j in range(len(row))) for row in projection], dim=-2
    )


def loop(query, key, value, key_projection, value_projection):
    return oracle.attend(query, mixed(key_projection, key), mixed(value_projection, value))


def reference(query, key, value, key_projection, value_projection):
    return scaled_dot_product_attention(query, key_projection @ key, value_projection @ value)


# --- on paper -----------------------------------------------------------------------------------


def test_two_mixtures_by_hand():
    query, key = torch.tensor([[0, 1.0]]), torch.tensor([[0, 0.0], [0, math.log(9)], [7, 0.0]])
    value = torch.tensor([[1.0], [3.0], [10.0]])
    # Keys: the first; half of the second, whose score is ln 3 once the scale is undone.
    key_projection = torch.tensor([[1, 0, 0], [0, math.sqrt(2) / 2, 0]])
    value_projection = torch.tensor([[0.5, 0.5, 0], [0, 0, 1.0]])
    found = attend_low_rank(query, key, value, key_projection, value_projection)
    assert_close(found, torch.tensor([[2 / 4 + 3 * 10 / 4]]))


@pytest.mark.parametrize(
    ("length", "rank", "runs"),
    [
        (5, 2, [2, 3]),
        (7, 3, [2, 2, 3]),
        (6, 3, [2, 2, 2]),
        (4, 1, [4]),
        (3, 3, [1, 1, 1]),
        (1, 1, [1]),
    ],
)
def test_pooling_by_hand(length, rank, runs):
    found = pooling_projection(length, rank)
    expected = torch.block_diag(*(torch.full((1, n), 1 / n) for n in runs))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@given(st.integers(1, 40), st.data())
def test_pooling_is_a_mean_over_runs_of_nearly_equal_length(length, data):
    rank = data.draw(st.integers(1, length))
    found = pooling_projection(length, rank)
    assert found.shape == (rank, length)
    assert_close(found.sum(dim=-1), torch.ones(rank))
    inside = found > 0
    assert torch.equal(inside.sum(dim=0), torch.ones(length, dtype=torch.long))
    assert torch.equal(inside.int().argmax(dim=0), inside.int().argmax(dim=0).sort().values)
    runs = inside.sum(dim=-1)
    assert runs.max() - runs.min() <= 1


def test_pooling_is_that_of_pytorch_where_the_rank_divides_the_length(generator):
    x = random(generator, D, 12, dtype=torch.float32)
    assert_close(x @ pooling_projection(12, 4).mT, adaptive_avg_pool1d(x, 4))


# --- against the loop and PyTorch ---------------------------------------------------------------


@pytest.mark.oracle
@DTYPE
def test_against_the_loop(generator, dtype):
    assert_matches(attend_low_rank, reference, loop, _inputs(generator, dtype), magnitude=32)


def test_gradcheck(generator):
    inputs = [x.requires_grad_() for x in _inputs(generator, rank=2)]
    assert torch.autograd.gradcheck(attend_low_rank, inputs)


# --- properties ---------------------------------------------------------------------------------


@given(normal(TQ, D), normal(TK, D), normal(TK, DV))
def test_with_the_identity_it_is_exact(query, key, value):
    identity = pooling_projection(TK, TK).double()
    assert_close(attend_low_rank(query, key, value, identity, identity), attend(query, key, value))


@given(normal(TQ, D), normal(TK, D), normal(R, TK), normal(R, TK))
def test_the_weights_have_rank_r_at_most(query, key, key_projection, value_projection):
    identity = torch.eye(TK, dtype=query.dtype)
    weights = attend_low_rank(query, key, identity, key_projection[:2], value_projection[:2])
    assert torch.linalg.matrix_rank(weights) <= 2


def test_it_is_not_causal(generator):
    """The first output depends on the last key and value: there is no order left to mask."""
    query, key, value, *_ = (x[0] if x.ndim > 2 else x for x in _inputs(generator))
    pool = pooling_projection(TK, 2).double()
    for index in (1, 2):
        inputs = [query, key, value]

        def first(x, index=index, inputs=inputs):
            return attend_low_rank(*inputs[:index], x, *inputs[index + 1 :], pool, pool)[0].sum()

        assert (jacobian(first, inputs[index]).abs().sum(dim=-1) > 0).all()


def test_projections_may_differ_for_each_head(generator):
    query, key, value, *_ = _inputs(generator)
    projections = [random(generator, BATCH, R, TK) for _ in range(2)]
    found = attend_low_rank(query, key, value, *projections)
    for b in range(BATCH):
        alone = attend_low_rank(query[b], key[b], value[b], *(p[b] for p in projections))
        assert_close(found[b], alone)


def test_inputs_are_not_changed(generator):
    inputs = _inputs(generator)
    copies = [x.clone() for x in inputs]
    attend_low_rank(*inputs)
    assert all(torch.equal(x, copy) for x, copy in zip(inputs, copies, strict=True))


# --- the module ---------------------------------------------------------------------------------


def test_the_module_is_the_function_with_its_two_projections(generator):
    query, key, value, *_ = _inputs(generator, torch.float32)
    module = LowRankAttention(TK, R)
    assert [(name, tuple(p.shape)) for name, p in module.named_parameters()] == [
        ("key_projection", (R, TK)),
        ("value_projection", (R, TK)),
    ]
    parameters = module.key_projection, module.value_projection
    assert not torch.equal(*parameters)
    output = module(query, key, value)
    assert torch.equal(output, attend_low_rank(query, key, value, *parameters))
    output.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in parameters)


def test_the_module_starts_with_variance_one_over_r():
    module = LowRankAttention(400, 100)
    for projection in module.parameters():
        assert projection.std().item() == pytest.approx(0.1, rel=0.03)
        assert abs(projection.mean().item()) < 0.002


# --- hostile ------------------------------------------------------------------------------------


@pytest.mark.hostile
def test_no_queries_one_key_and_no_mixture(generator):
    query, key, value, e, f = _inputs(generator, keys=1)
    assert attend_low_rank(query[:, :0], key, value, e, f).shape == (BATCH, 0, DV)
    one = torch.ones(1, 1, dtype=query.dtype)
    assert_close(attend_low_rank(query, key, value, one, one), value.expand(BATCH, TQ, DV))
    nothing = attend_low_rank(query, key, value, e[:0], f[:0])
    assert torch.equal(nothing, torch.zeros(BATCH, TQ, DV, dtype=query.dtype))


@pytest.mark.hostile
def test_no_keys_mix_to_zeros(generator):
    query, key, value, e, f = _inputs(generator, keys=0)
    assert torch.equal(
        attend_low_rank(query, key, value, e, f), torch.zeros(BATCH, TQ, DV).double()
    )


# --- messages -----------------------------------------------------------------------------------

Q, K, V, E = torch.zeros(TQ, D), torch.zeros(TK, D), torch.zeros(TK, DV), torch.zeros(R, TK)
WRONG = {
    "another length": (
        lambda: attend_low_rank(Q, K, V, E[:, :4], E),
        ValueError,
        r"key_projection must have one column for each key, 5, got shape \(3, 4\)",
    ),
    "another length of values": (
        lambda: attend_low_rank(Q, K, V, E, E[:, :4]),
        ValueError,
        r"value_projection must have one column for each value, 5, got shape \(3, 4\)",
    ),
    "ranks that differ": (
        lambda: attend_low_rank(Q, K, V, E, E[:2]),
        ValueError,
        r"value must have one row for each key, Tk = 3, got shape \(2, 13\)",
    ),
    "dtype": (
        lambda: attend_low_rank(Q, K, V, E.double(), E),
        TypeError,
        r"key_projection must have the dtype of key \(torch.float32\), got torch.float64",
    ),
    "dtype of the other": (
        lambda: attend_low_rank(Q, K, V, E, E.double()),
        TypeError,
        r"value_projection must have the dtype of value \(torch.float32\), got torch.float64",
    ),
    "key": (
        lambda: attend_low_rank(Q, K.int(), V, E, E),
        TypeError,
        "key must have a floating-point",
    ),
    "key of one dimension": (
        lambda: attend_low_rank(Q, K[0], V, E, E),
        ValueError,
        "key must have at least 2 dimensions",
    ),
    "projection": (
        lambda: attend_low_rank(Q, K, V, E[0], E),
        ValueError,
        r"key_projection must have at least 2 dimensions, got shape \(5,\)",
    ),
    "batches": (
        lambda: attend_low_rank(Q, K.expand(2, TK, D), V, E.expand(3, R, TK), E),
        ValueError,
        r"leading dimensions must broadcast together, got key \(2, 5, 7\), "
        r"key_projection \(3, 3, 5\)",
    ),
    "rank above the length": (
        lambda: pooling_projection(5, 6),
        ValueError,
        "rank must be at most length = 5, got 6",
    ),
    "rank of the module": (
        lambda: LowRankAttention(5, 6),
        ValueError,
        "rank must be at most length = 5",
    ),
    "no rank": (lambda: LowRankAttention(5, 0), ValueError, "rank must be at least 1, got 0"),
    "no length": (lambda: pooling_projection(0, 0), ValueError, "length must be at least 1, got 0"),
    "half a rank": (
        lambda: pooling_projection(5, 2.5),
        TypeError,
        "rank must be an integer, got float",
    ),
    "another length in a call": (
        lambda: LowRankAttention(4, 3)(Q, K, V),
        ValueError,
        r"key_projection must have one column for each key, 5, got shape \(3, 4\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_messages(name, no_shape_hook):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()
