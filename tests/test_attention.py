"""Attention: by hand, against PyTorch with all gradients, and the properties of chapter 04."""

import math
from functools import partial

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import BATCH, DK, DTYPES, DV, HIDDEN, TK, TQ, D, assert_matches, masks, normal, random
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

import attention_lib as lib
from attention_lib import (
    attend,
    attend_explicit,
    attention_weights,
    causal,
    padding,
    sliding_window,
)
from attention_lib.attention import _certainly_none

PATHS = pytest.mark.parametrize("path", [attend_explicit, attend], ids=["explicit", "fused"])
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)

# One mask of each kind for (BATCH, TQ, TK); the last has a row that allows nothing.
TABLE = torch.rand(BATCH, TQ, TK, generator=torch.Generator().manual_seed(3)) > 0.4
TABLE[0, 1] = False
MASKS = {
    "open": None,
    "causal": causal(),
    "padding": padding(torch.tensor([4, 0])),
    "both": causal() & padding(torch.tensor([2, 5])),
    "keys": torch.tensor([True, False, True, True, False]),
    "queries": torch.tensor([[True], [False], [True]]),
    "table": TABLE,
}


def _inputs(generator, dtype=torch.float64, batch=(BATCH,)):
    shapes = (TQ, D), (TK, D), (TK, DV)
    return [random(generator, *batch, *shape, dtype=dtype) for shape in shapes]


# --- on paper ------------------------------------------------------------------------------------


@PATHS
def test_one_query_and_two_keys_by_hand(path):
    query, key = torch.tensor([[0, math.sqrt(2)]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    value = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    expected = torch.tensor([[1, math.e]]) / (1 + math.e)
    assert_close(attention_weights(query, key), expected)
    assert_close(path(query, key, value), expected)


@PATHS
def test_a_bias_is_added_to_the_scores(path):
    query, key, value = torch.zeros(1, 3), torch.zeros(2, 3), torch.tensor([[0.0], [1.0]])
    bias = torch.tensor([[0.0, math.log(3)]])
    assert path(query, key, value, bias=bias).item() == pytest.approx(0.75)


def test_temperature_divides_scores_and_bias_together():
    query, key, value = torch.zeros(1, 3), torch.zeros(2, 3), torch.tensor([[0.0], [1.0]])
    bias = torch.tensor([[0.0, math.log(3)]])
    assert attend_explicit(query, key, value, bias=bias, temperature=0.5).item() == pytest.approx(
        0.9
    )


# --- oracles -------------------------------------------------------------------------------------


def _table(mask) -> torch.Tensor | None:
    dense = mask.dense(TQ, TK) if isinstance(mask, lib.Mask) else mask
    return None if dense is None else dense.expand(BATCH, TQ, TK)


def _sdpa(query, key, value, bias=None, *, mask=None):
    """PyTorch's attention; rows that allow nothing are set to 0, on which its builds differ."""
    if mask is not None:
        zeros = query.new_zeros(mask.shape) if bias is None else bias
        bias = zeros.masked_fill(~(mask | ~mask.any(dim=-1, keepdim=True)), float("-inf"))
    output = scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return output if mask is None else output.masked_fill(~mask.any(dim=-1, keepdim=True), 0)


@pytest.mark.oracle
@DTYPE
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
@PATHS
def test_attention_and_gradients_match_loop_and_sdpa(path, biased, name, dtype, generator):
    inputs = _inputs(generator, dtype)
    if biased:
        inputs.append(random(generator, BATCH, TQ, TK, dtype=dtype))
    table = _table(MASKS[name])

    def ours(query, key, value, bias=None):
        return path(query, key, value, MASKS[name], bias=bias)

    assert_matches(ours, partial(_sdpa, mask=table), partial(oracle.attend, mask=table), inputs)


@pytest.mark.oracle
@DTYPE
@pytest.mark.parametrize("score", [lib.dot, lib.cosine, lib.pearson, lib.gaussian])
def test_explicit_attention_takes_any_score(score, dtype, generator):
    inputs = _inputs(generator, dtype)
    loop = partial(oracle.attend, score=getattr(oracle, score.__name__))

    def plain(query, key, value):
        return torch.softmax(score(query, key), dim=-1) @ value

    assert_matches(partial(attend_explicit, score=score), plain, loop, inputs)


@pytest.mark.oracle
@DTYPE
def test_a_learned_score_is_a_partial_function(dtype, generator):
    query, _, value = _inputs(generator, dtype)
    key = random(generator, BATCH, TK, DK, dtype=dtype)
    shapes = (D, HIDDEN), (DK, HIDDEN), (HIDDEN,)
    # The usual initial size, so that the scores stay near 1.
    parameters = [random(generator, *s, dtype=dtype, scale=s[0] ** -0.5) for s in shapes]

    def with_score(attention, additive):
        def call(query, key, value, wq, wk, v):
            return attention(query, key, value, score=lambda q, k: additive(q, k, wq, wk, v))

        return call

    def plain(query, key, value, *, score):
        return torch.softmax(score(query, key), dim=-1) @ value

    assert_matches(
        with_score(attend_explicit, lib.additive),
        with_score(plain, lib.additive),
        with_score(oracle.attend, oracle.additive),
        [query, key, value, *parameters],
    )


@pytest.mark.oracle
@DTYPE
@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
def test_square_causal_attention_and_gradients_match(biased, dtype, generator):
    inputs = [random(generator, BATCH, TK, width, dtype=dtype) for width in (D, D, DV)]
    if biased:
        inputs.append(random(generator, TK, TK, dtype=dtype))
    table = torch.ones(TK, TK, dtype=torch.bool).tril().expand(BATCH, TK, TK)

    def ours(query, key, value, bias=None):
        return attend(query, key, value, causal(), bias=bias)

    assert_matches(ours, partial(_sdpa, mask=table), partial(oracle.attend, mask=table), inputs)


@pytest.mark.oracle
@DTYPE
@pytest.mark.parametrize("name", MASKS)
def test_a_truly_fused_kernel_and_its_gradients_match(name, dtype, generator):
    # The CPU has a fused kernel only where values are as wide as keys. Elsewhere PyTorch falls back
    # to the explicit formula without a word; here the kernel is forced.
    inputs = [random(generator, BATCH, length, D, dtype=dtype) for length in (TQ, TK, TK)]
    table = _table(MASKS[name])

    def ours(query, key, value):
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return attend(query, key, value, MASKS[name])

    def theirs(*tensors):  # the kernel itself, which takes four dimensions only
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            heads = (tensor.unsqueeze(1) for tensor in tensors)
            return _sdpa(*heads, mask=None if table is None else table.unsqueeze(1)).squeeze(1)

    assert_matches(ours, theirs, partial(oracle.attend, mask=table), inputs)


@pytest.mark.parametrize("name", MASKS)
@PATHS
def test_gradcheck(path, name, generator):
    inputs = [tensor.requires_grad_() for tensor in _inputs(generator)]
    assert torch.autograd.gradcheck(lambda *qkv: path(*qkv, MASKS[name]), inputs)


# --- explicit and fused --------------------------------------------------------------------------


@given(normal(BATCH, TQ, D), normal(BATCH, TK, D), normal(BATCH, TK, DV), masks(BATCH, TQ, TK))
def test_explicit_equals_fused(query, key, value, mask):
    assert_close(attend(query, key, value, mask), attend_explicit(query, key, value, mask))


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.25, 2.0])
def test_the_scale_is_the_scale_of_the_score(scale, generator):
    inputs = _inputs(generator)
    score = partial(lib.scaled_dot, scale=scale)
    assert_close(attend(*inputs, scale=scale), attend_explicit(*inputs, score=score))


@pytest.mark.parametrize("mask", [None, causal(), torch.tensor(True), torch.ones(TQ, 1).bool()])
@pytest.mark.parametrize(
    "batches",
    [
        [(), (), ()],
        [(), (), (2,)],
        [(2,), (2,), (2,)],
        [(2, 3), (1, 3), (2, 1)],
        [(3,), (2, 1), ()],
        [(0,), (), ()],
    ],
    ids=str,
)
def test_leading_dimensions_broadcast_on_both_paths(batches, mask, generator):
    widths = (TQ, D), (TK, D), (TK, DV)
    inputs = [random(generator, *b, *w) for b, w in zip(batches, widths, strict=True)]
    output = attend(*inputs, mask)
    assert output.shape == (*torch.broadcast_shapes(*batches), TQ, DV)
    assert_close(output, attend_explicit(*inputs, mask))


@pytest.mark.parametrize("shape", [(), (TK,), (TQ, 1), (TQ, TK), (BATCH, 1, TK)], ids=str)
@PATHS
def test_a_bias_broadcasts_with_and_without_a_mask(path, shape, generator):
    inputs, bias = _inputs(generator), random(generator, *shape)
    full = bias.expand(BATCH, TQ, TK)
    assert_close(path(*inputs, bias=bias), path(*inputs, bias=full))
    assert_close(path(*inputs, TABLE, bias=bias), path(*inputs, TABLE, bias=full))


# --- what the kernel is given --------------------------------------------------------------------


@pytest.fixture
def kernel_calls(monkeypatch) -> list:
    """The arguments of every call of the fused kernel."""
    calls = []

    def spy(query, key, value, **named):
        calls.append(((query, key, value), named))
        return scaled_dot_product_attention(query, key, value, **named)

    monkeypatch.setattr("attention_lib.attention.scaled_dot_product_attention", spy)
    return calls


def test_the_kernel_gets_four_dimensions(kernel_calls, generator):
    for batch in [(), (2,), (2, 3), (1, 2, 3)]:
        attend(*_inputs(generator, batch=batch), causal())
    found = [tensors[0].shape[:-2] for tensors, _ in kernel_calls]
    assert found == [(1, 1), (1, 2), (2, 3), (1, 6)]
    for tensors, named in kernel_calls:
        assert {tensor.ndim for tensor in (*tensors, named["attn_mask"])} == {4}


def test_the_kernel_never_gets_a_row_that_allows_nothing(kernel_calls, generator):
    # Its builds differ on such rows: some answer NaN.
    attend(*_inputs(generator), TABLE)
    attend(*_inputs(generator), TABLE, bias=random(generator, BATCH, TQ, TK))
    table, bias = (named["attn_mask"] for _, named in kernel_calls)
    assert torch.equal(table.any(dim=-1), torch.ones(1, BATCH, TQ, dtype=torch.bool))
    assert torch.equal(bias.isfinite(), table)


@pytest.mark.parametrize(
    ("batch", "mask", "expected"),
    [
        ((2, 3), sliding_window(1), (1, 1, TQ, TK)),
        ((2, 3), padding(torch.tensor([[4], [3]])), (2, 1, 1, TK)),
        ((2, 3), torch.ones(3, 1, 1).bool(), (1, 3, 1, 1)),
        ((2,), sliding_window(1), (1, 1, TQ, TK)),
        ((2,), padding(torch.tensor([4, 3])), (1, 2, 1, TK)),
        ((2,), torch.ones(1, 1, TK).bool(), (1, 1, 1, TK)),
        ((), torch.ones(TK).bool(), (1, 1, 1, TK)),
        ((2, 3, 2), sliding_window(1), (1, 1, TQ, TK)),
        ((2, 3, 2), torch.ones(3, 1, 1, TK).bool(), (1, 12, 1, TK)),
    ],
)
@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
def test_what_is_the_same_for_many_is_written_out_once(
    biased, batch, mask, expected, kernel_calls, generator
):
    bias = torch.zeros(()).double() if biased else None
    inputs = _inputs(generator, batch=batch)
    output = attend(*inputs, mask, bias=bias)
    assert kernel_calls[0][1]["attn_mask"].shape == expected
    assert_close(output, attend_explicit(*inputs, mask, bias=bias))


def test_rows_are_opened_only_where_some_row_allows_nothing(generator, monkeypatch):
    cleared = []
    monkeypatch.setattr(Tensor, "masked_fill", lambda *given: cleared.append(given) or given[0])
    inputs = _inputs(generator)
    attend(*inputs, TABLE.logical_not() | True)
    assert not cleared
    attend(*inputs, TABLE)
    assert [given[1].shape for given in cleared] == [(BATCH, TQ, 1)]


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.filterwarnings("ignore")  # of the tracer, and of vmap on the kernel's speed
def test_no_answer_on_one_mask_is_taken_for_the_next_where_calls_are_recorded(generator):
    query, key, value = _inputs(generator)
    whole, broken = torch.ones_like(TABLE), TABLE
    expected = attend(query, key, value, broken)
    traced = torch.jit.trace(lambda mask: attend(query, key, value, mask), (whole,))
    assert_close(traced(broken), expected)
    assert "masked_fill" in str(traced.graph)
    compiled = torch.compile(
        lambda mask: attend(query, key, value, mask), backend="eager", fullgraph=True
    )
    compiled(whole)
    assert_close(compiled(broken), expected)
    many = torch.vmap(lambda mask: attend(query, key, value, mask))(torch.stack([whole, broken]))
    assert_close(many[1], expected)


def test_whether_rows_are_blocked_is_asked_only_where_there_is_one_cheap_answer():
    assert _certainly_none(torch.tensor([False, False]))
    assert not _certainly_none(torch.tensor([False, True]))
    assert not _certainly_none(torch.empty(2, dtype=torch.bool, device="meta"))
    found = []
    torch.vmap(lambda one: found.append(_certainly_none(one)) or one)(torch.zeros(2, 3).bool())
    assert found == [False]


def test_square_causal_attention_writes_no_mask_out(kernel_calls, generator):
    x = random(generator, TK, D)
    attend(x, x, x, causal())
    attend(x, x, x)
    found = [(named["attn_mask"], named["is_causal"]) for _, named in kernel_calls]
    assert found == [(None, True), (None, False)]


# --- properties ----------------------------------------------------------------------------------


@given(normal(BATCH, TQ, D), normal(BATCH, TK, D), masks(BATCH, TQ, TK))
def test_weights_sum_to_one_or_to_zero(query, key, mask):
    weights = attention_weights(query, key, mask)
    assert_close(weights.sum(dim=-1), mask.any(dim=-1).double())


@PATHS
@given(x=normal(TK, D), value=normal(TK, DV), order=st.permutations(range(TK)))
def test_self_attention_follows_a_permutation_of_the_positions(path, x, value, order):
    assert_close(path(x[order], x[order], value[order]), path(x, x, value)[order])


@PATHS
@given(
    query=normal(TQ, D), key=normal(TK, D), value=normal(TK, DV), order=st.permutations(range(TK))
)
def test_the_order_of_keys_with_their_values_does_not_matter(path, query, key, value, order):
    assert_close(path(query, key[order], value[order]), path(query, key, value))


@PATHS
@given(pair=normal(2, TK, D), position=st.integers(1, TK - 1))
def test_changing_the_future_leaves_the_past_bit_equal(path, pair, position):
    x, other = pair
    changed = torch.cat([x[:position], other[position:]])
    before, after = path(x, x, x, causal()), path(changed, changed, changed, causal())
    assert torch.equal(before[:position], after[:position])
    assert not torch.equal(before[position:], after[position:])


@PATHS
def test_the_causal_jacobian_is_lower_triangular(path, generator):
    x = random(generator, TK, D)
    blocks = jacobian(lambda x: path(x, x, x, causal()), x).abs().amax(dim=(1, 3))  # (TK, TK)
    assert torch.equal(blocks > 0, torch.ones(TK, TK, dtype=torch.bool).tril())


@PATHS
@given(query=normal(BATCH, TQ, D), key=normal(BATCH, TK, D), value=normal(BATCH, TK, DV))
@settings(max_examples=30)
def test_padded_equals_unpadded(path, query, key, value):
    sizes = torch.tensor([2, 4])
    padded = path(query, key, value, padding(sizes))
    for b, size in enumerate(sizes):
        assert_close(padded[b], path(query[b], key[b, :size], value[b, :size]))


@PATHS
@given(query=normal(TQ, D), key=normal(TK, D), value=normal(TK, DV), mask=masks(TQ, TK))
def test_outputs_lie_between_the_smallest_and_the_largest_allowed_value(
    path, query, key, value, mask
):
    output = path(query, key, value, mask)
    for row, allowed in zip(output, mask, strict=True):
        if allowed.any():
            assert (row <= value[allowed].amax(dim=0) + 1e-12).all()
            assert (row >= value[allowed].amin(dim=0) - 1e-12).all()


@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
@PATHS
def test_a_row_that_allows_nothing_gives_zero_and_gradient_zero(path, biased, generator):
    inputs = [tensor.requires_grad_() for tensor in _inputs(generator)]
    bias = random(generator, BATCH, TQ, TK).requires_grad_() if biased else None
    output = path(*inputs, TABLE, bias=bias)
    output.sum().backward()
    assert output[0, 1].tolist() == [0] * DV
    assert all(tensor.grad.isfinite().all() for tensor in inputs)
    assert inputs[0].grad[0, 1].tolist() == [0] * D
    assert inputs[0].grad[0, 2].abs().min() > 0
    if biased:
        assert bias.grad[0, 1].tolist() == [0] * TK


@PATHS
def test_when_nothing_is_allowed_at_all_every_gradient_is_zero(path, generator):
    inputs = [tensor.requires_grad_() for tensor in _inputs(generator)]
    path(*inputs, torch.tensor(False)).sum().backward()
    assert not any(tensor.grad.any() for tensor in inputs)


@PATHS
def test_no_argument_is_changed(path, generator):
    inputs = [*_inputs(generator), TABLE, random(generator, BATCH, TQ, TK)]
    copies = [tensor.clone() for tensor in inputs]
    path(*inputs[:4], bias=inputs[4])
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, copies, strict=True))


@DTYPE
@PATHS
def test_the_output_keeps_the_dtype(path, dtype, generator):
    assert path(*_inputs(generator, dtype), TABLE).dtype == dtype


# --- dropout -------------------------------------------------------------------------------------


@PATHS
def test_a_dropped_weight_is_zero_and_a_kept_one_grows(path, generator):
    query, key, _ = _inputs(generator)
    eye = torch.eye(TK).double().expand(BATCH, TK, TK)  # the output is the weights
    weights = attention_weights(query, key, TABLE)
    outputs = torch.stack([path(query, key, eye, TABLE, dropout=0.25) for _ in range(400)])
    kept = outputs != 0
    assert_close(outputs[kept], (weights / 0.75).expand_as(outputs)[kept])
    share = kept[:, weights > 0].double().mean().item()
    assert share == pytest.approx(0.75, abs=0.02)


@PATHS
def test_dropout_of_zero_changes_nothing_and_draws_nothing(path, generator):
    inputs, state = _inputs(generator), torch.get_rng_state()
    assert torch.equal(path(*inputs, dropout=0.0), path(*inputs))
    assert torch.equal(torch.get_rng_state(), state)


# --- one query in front of a cache ---------------------------------------------------------------


def test_one_causal_query_sees_every_key_and_needs_no_mask(kernel_calls, generator):
    query, key, value = _inputs(generator)
    last = query[:, -1:]
    assert_close(attend(last, key, value, causal()), attend(query, key, value, causal())[:, -1:])
    assert kernel_calls[0][1]["attn_mask"] is None
    assert not kernel_calls[0][1]["is_causal"]
