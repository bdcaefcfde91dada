"""Tiled exact attention: equal to the explicit formula, and never as large as its matrix."""

import itertools
import math
import re
from functools import partial

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import BATCH, DTYPES, DV, TK, TQ, D, assert_matches, random
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from attention_lib import Mask, attend_explicit, causal, document, padding, sliding_window
from attention_lib.efficient.online import (
    Part,
    finish,
    from_log_sum_exp,
    log_sum_exp,
    merge,
    merge_all,
    summarise,
)
from attention_lib.efficient.tiled import TILE, attend_tiled, attend_tiled_lse

DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
TILES = pytest.mark.parametrize("tile", [(1, 1), (2, 3), (3, 5), (7, 2), TILE], ids=str)

# One mask of each kind for (BATCH, TQ, TK); the last has a row and a column of False.
TABLE = torch.rand(BATCH, TQ, TK, generator=torch.Generator().manual_seed(3)) > 0.4
TABLE[0, 1], TABLE[1, :, 2] = False, False
MASKS = {
    "open": None,
    "causal": causal(),
    "window": sliding_window(1),
    "padding": padding(torch.tensor([4, 0])),
    "both": causal() & padding(torch.tensor([2, 5])),
    "keys": torch.tensor([True, False, True, True, False]),
    "queries": torch.tensor([[True], [False], [True]]),
    "table": TABLE,
}
NAMES = pytest.mark.parametrize("name", MASKS)


def _inputs(generator, dtype=torch.float64, batch=(BATCH,)):
    shapes = (TQ, D), (TK, D), (TK, DV)
    return [random(generator, *batch, *shape, dtype=dtype) for shape in shapes]


def _table(mask) -> torch.Tensor | None:
    dense = mask.dense(TQ, TK) if isinstance(mask, Mask) else mask
    return None if dense is None else dense.expand(BATCH, TQ, TK)


# --- on paper ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [(1, 1), (1, 2), TILE], ids=str)
def test_one_query_and_two_keys_by_hand(tile):
    query, key = torch.tensor([[0, math.sqrt(2)]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    output, lse = attend_tiled_lse(query, key, torch.eye(2), tile=tile)
    assert_close(output, torch.tensor([[1, math.e]]) / (1 + math.e))
    assert_close(lse, torch.tensor([math.log(1 + math.e)]))
    assert torch.equal(attend_tiled(query, key, torch.eye(2), tile=tile), output)


def test_one_query_and_one_key_with_its_gradients_by_hand():
    query, key, value = (torch.full((1, 1), x, requires_grad=True) for x in (2.0, 3.0, 5.0))
    output, lse = attend_tiled_lse(query, key, value)
    assert output.item() == 5
    assert lse.item() == pytest.approx(6)
    (output + 7 * lse).sum().backward()
    assert (query.grad.item(), key.grad.item(), value.grad.item()) == pytest.approx((21, 14, 1))


def test_a_part_on_paper():
    # Scores ln 2 and ln 8, values 1 and 5: the largest is ln 8, the powers are 1/4 and 1.
    part = summarise(torch.tensor([[math.log(2), math.log(8)]]), torch.tensor([[1.0], [5.0]]))
    assert part.top.item() == pytest.approx(math.log(8))
    assert part.total.item() == pytest.approx(1.25)
    assert part.weighted.item() == pytest.approx(5.25)
    assert finish(part).item() == pytest.approx(4.2)  # (2 * 1 + 8 * 5) / 10
    assert log_sum_exp(part).tolist() == pytest.approx([math.log(10)])


def test_each_row_of_each_batch_has_its_own_maximum(generator):
    scores = random(generator, BATCH, TQ, TK) + 1000 * torch.arange(BATCH * TQ).view(BATCH, TQ, 1)
    value = random(generator, BATCH, TK, DV)
    part = summarise(scores, value)
    assert torch.equal(part.top, scores.amax(dim=-1, keepdim=True))
    assert_close(finish(part), scores.softmax(dim=-1) @ value)
    assert_close(log_sum_exp(part), scores.logsumexp(dim=-1))
    below = summarise(-1 - scores, value)  # all scores negative: 0 is no maximum
    assert torch.equal(below.top, (-1 - scores).amax(dim=-1, keepdim=True))


def test_two_parts_on_paper():
    # Relative to the larger maximum, ln 6, the first part shrinks by 2 / 6.
    first = Part(*(torch.tensor([[x]]) for x in (math.log(2), 1.5, 9.0)))
    second = Part(*(torch.tensor([[x]]) for x in (math.log(6), 2.0, 4.0)))
    for part in (merge(first, second), merge(second, first), merge_all(iter([first, second]))):
        assert part.top.item() == pytest.approx(math.log(6))
        assert part.total.item() == pytest.approx(2.5)
        assert part.weighted.item() == pytest.approx(7)


# --- oracles -------------------------------------------------------------------------------------


@pytest.mark.oracle
@DTYPE
@TILES
@NAMES
def test_output_and_gradients_match_the_loop(name, tile, dtype, generator):
    inputs = _inputs(generator, dtype)
    ours = partial(attend_tiled, mask=MASKS[name], tile=tile)
    explicit = partial(attend_explicit, mask=MASKS[name])
    loop = partial(oracle.attend, mask=_table(MASKS[name]))
    # A score's gradient is a difference that can cancel, so the gradients share one floor.
    assert_matches(ours, explicit, loop, inputs, one_floor=True)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["open", "causal", "padding"])
def test_log_sum_exp_and_its_gradients_match_pytorch(name, generator):
    leaves = [tensor.requires_grad_() for tensor in _inputs(generator)]
    query, key, _ = leaves
    _, lse = attend_tiled_lse(*leaves, MASKS[name], tile=(2, 2))
    table = _table(MASKS[name])
    scores = query @ key.mT / math.sqrt(D)
    if table is not None:
        scores = scores.masked_fill(~table, -math.inf)
    expected = scores.logsumexp(dim=-1)
    assert_close(lse, expected)
    upstream = random(generator, BATCH, TQ).masked_fill(expected == -math.inf, 0)
    ours = torch.autograd.grad(lse, (query, key), upstream)
    for found, right in zip(
        ours, torch.autograd.grad(expected, (query, key), upstream), strict=True
    ):
        assert_close(found, right.nan_to_num(0))  # PyTorch has NaN for a row of minus infinity


@NAMES
@pytest.mark.parametrize("tile", [(2, 3), TILE], ids=str)
def test_gradcheck_of_output_and_log_sum_exp(tile, name, generator):
    def both(query, key, value):
        output, lse = attend_tiled_lse(query, key, value, MASKS[name], tile=tile)
        return output, lse.masked_fill(lse == -math.inf, 0)

    assert torch.autograd.gradcheck(both, [x.requires_grad_() for x in _inputs(generator)])


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.25, 2])
def test_the_scale_takes_the_place_of_one_over_root_d(scale, generator):
    inputs = _inputs(generator)
    upstream = random(generator, BATCH, TQ, DV)

    def explicit(query, key, value):
        return torch.softmax(scale * query @ key.mT, dim=-1) @ value

    ours = oracle.with_gradients(partial(attend_tiled, scale=scale, tile=(2, 2)), inputs, upstream)
    for found, right in zip(ours, oracle.with_gradients(explicit, inputs, upstream), strict=True):
        assert_close(found, right)


@pytest.mark.parametrize("mask", [None, causal(), torch.tensor(True), torch.ones(TQ, 1).bool()])
@pytest.mark.parametrize(
    "batches",
    [[(), (), ()], [(), (), (2,)], [(2, 3), (1, 3), (2, 1)], [(3,), (2, 1), ()], [(0,), (), ()]],
    ids=str,
)
def test_leading_dimensions_broadcast(batches, mask, generator):
    widths = (TQ, D), (TK, D), (TK, DV)
    inputs = [random(generator, *b, *w) for b, w in zip(batches, widths, strict=True)]
    upstream = random(generator, *torch.broadcast_shapes(*batches), TQ, DV)
    ours = oracle.with_gradients(partial(attend_tiled, mask=mask, tile=(2, 2)), inputs, upstream)
    theirs = oracle.with_gradients(partial(attend_explicit, mask=mask), inputs, upstream)
    assert ours[0].shape == upstream.shape
    for found, right in zip(ours, theirs, strict=True):
        assert_close(found, right)


def test_a_mask_may_have_more_dimensions_than_the_heads_share(generator):
    inputs = _inputs(generator, batch=(BATCH, 1))
    mask = torch.rand(BATCH, 1, TQ, TK, generator=generator) > 0.5
    assert_close(attend_tiled(*inputs, mask, tile=(2, 2)), attend_explicit(*inputs, mask))
    lengths = padding(torch.tensor([[3], [1]]))
    assert_close(attend_tiled(*inputs, lengths, tile=(2, 2)), attend_explicit(*inputs, lengths))


def test_strided_inputs_and_gradients_need_no_copy_by_the_caller(generator):
    inputs = [random(generator, width, length) for width, length in ((D, TQ), (D, TK), (DV, TK))]
    leaves = [tensor.mT.requires_grad_() for tensor in inputs]
    grads = torch.autograd.grad(attend_tiled(*leaves, tile=(2, 2)).sum(), leaves)  # stride 0
    explicit = torch.autograd.grad(attend_explicit(*leaves).sum(), leaves)
    for found, right in zip(grads, explicit, strict=True):
        assert_close(found, right)


# --- properties ----------------------------------------------------------------------------------

sizes = st.integers(1, 6)
RULES = [
    lambda length: None,
    lambda length: causal(),
    lambda length: sliding_window(2),
    lambda length: sliding_window(1, 2),
    lambda length: padding(torch.tensor(length // 2)),
    lambda length: document(torch.arange(length) // 3),
]


@given(
    queries=st.integers(0, 11),
    keys=st.integers(0, 11),
    tile=st.tuples(sizes, sizes),
    rule=st.sampled_from(RULES),
    seed=st.integers(0, 99),
)
def test_any_length_tile_and_rule_gives_the_explicit_answer(queries, keys, tile, rule, seed):
    generator = torch.Generator().manual_seed(seed)
    queries = min(queries, keys)  # documents have no positions before the first key
    shapes = (queries, D), (keys, D), (keys, DV)
    inputs = [random(generator, 2, *s, scale=3) for s in shapes]
    upstream = random(generator, 2, queries, DV)
    mask = rule(keys)
    ours = oracle.with_gradients(partial(attend_tiled, mask=mask, tile=tile), inputs, upstream)
    theirs = oracle.with_gradients(partial(attend_explicit, mask=mask), inputs, upstream)
    for found, right in zip(ours, theirs, strict=True):
        assert_close(found, right)


@given(mask=oracle.masks(2, 7, 11), tile=st.tuples(sizes, sizes), seed=st.integers(0, 99))
def test_any_table_gives_the_explicit_answer(mask, tile, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = [random(generator, 2, *s) for s in ((7, D), (11, D), (11, DV))]
    upstream = random(generator, 2, 7, DV)
    ours = oracle.with_gradients(partial(attend_tiled, mask=mask, tile=tile), inputs, upstream)
    theirs = oracle.with_gradients(partial(attend_explicit, mask=mask), inputs, upstream)
    for found, right in zip(ours, theirs, strict=True):
        assert_close(found, right)


def _split(scores, value, mask, cuts):
    """The parts of the keys between the cuts."""
    edges = [0, *sorted(cuts), scores.shape[-1]]
    spans = [slice(a, b) for a, b in itertools.pairwise(edges)]
    return [summarise(scores[..., s], value[..., s, :], mask[..., s]) for s in spans]


@given(
    mask=oracle.masks(TQ, 11),
    cuts=st.lists(st.integers(0, 11), min_size=1, max_size=5),
    seed=st.integers(0, 99),
    order=st.randoms(use_true_random=False),
)
def test_parts_merge_in_any_order_and_grouping(mask, cuts, seed, order):
    generator = torch.Generator().manual_seed(seed)
    scores, value = random(generator, TQ, 11, scale=30), random(generator, 11, DV)
    whole = summarise(scores, value, mask)
    parts = _split(scores, value, mask, cuts)
    order.shuffle(parts)
    while len(parts) > 1:  # any two neighbours first
        at = order.randrange(len(parts) - 1)
        parts[at : at + 2] = [merge(parts[at], parts[at + 1])]
    for found, right in zip(parts[0], whole, strict=True):
        assert_close(found, right)
    assert_close(finish(parts[0]), oracle.softmax(scores, mask) @ value)


@given(cut=st.integers(0, TK), name=st.sampled_from(["open", "table"]), seed=st.integers(0, 9))
def test_tiled_results_over_parts_of_the_keys_merge_with_their_gradients(cut, name, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = _inputs(generator)
    table = torch.ones_like(TABLE) if name == "open" else TABLE

    def in_two(query, key, value):
        spans = slice(None, cut), slice(cut, None)
        return finish(
            merge_all(
                from_log_sum_exp(
                    *attend_tiled_lse(query, key[:, s], value[:, s], table[..., s], tile=(2, 2))
                )
                for s in spans
            )
        )

    upstream = random(generator, BATCH, TQ, DV)
    ours = oracle.with_gradients(in_two, inputs, upstream)
    theirs = oracle.with_gradients(partial(attend_explicit, mask=table), inputs, upstream)
    for found, right in zip(ours, theirs, strict=True):
        assert_close(found, right)


def test_the_gradient_of_a_parts_log_sum_exp_is_the_weights(generator):
    scores = random(generator, TQ, TK).requires_grad_()
    value = random(generator, TK, DV)
    mask = TABLE[0]
    lse = log_sum_exp(summarise(scores, value, mask))
    assert_close(lse.exp(), (scores.exp() * mask).sum(dim=-1))
    (grad,) = torch.autograd.grad(lse.masked_fill(lse == -math.inf, 0).sum(), scores)
    assert_close(grad, oracle.softmax(scores, mask))


def test_the_future_cannot_be_seen(generator):
    inputs = [random(generator, 11, width, dtype=torch.float32) for width in (D, D, DV)]
    changed = [x.clone() for x in inputs]
    for tensor in changed[1:]:
        tensor[6:] += 1
    before, after = (attend_tiled(*x, causal(), tile=(4, 4)) for x in (inputs, changed))
    assert torch.equal(before[:6], after[:6])
    assert not torch.equal(before[6:], after[6:])


@pytest.mark.parametrize("mask", [causal(), TABLE], ids=["causal", "table"])
def test_inputs_are_not_changed(mask, generator):
    leaves = [tensor.requires_grad_() for tensor in _inputs(generator)]
    upstream = random(generator, BATCH, TQ, DV)
    before = [tensor.detach().clone() for tensor in (*leaves, upstream, TABLE)]
    torch.autograd.grad(attend_tiled(*leaves, mask, tile=(2, 2)), leaves, upstream)
    for old, new in zip(before, (*leaves, upstream, TABLE), strict=True):
        assert torch.equal(old, new)


def test_a_table_that_was_changed_before_the_backward_pass_is_noticed(generator):
    leaves = [tensor.requires_grad_() for tensor in _inputs(generator)]
    table = TABLE.clone()
    output = attend_tiled(*leaves, table)
    table.fill_(True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_a_second_backward_pass_gives_the_same_gradients(generator):
    leaves = [tensor.requires_grad_() for tensor in _inputs(generator)]
    output = attend_tiled(*leaves, causal(), tile=(2, 2)).sum()
    first = torch.autograd.grad(output, leaves, retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(output, leaves), strict=True):
        assert torch.equal(one, other)


# --- what is computed, and what is kept ----------------------------------------------------------


class _Record(TorchDispatchMode):
    """Counts the operations by name and remembers the largest tensor any of them returned."""

    def __init__(self):
        super().__init__()
        self.calls, self.largest = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.calls[name] = self.calls.get(name, 0) + 1
        if isinstance(result, torch.Tensor) and result.untyped_storage().nbytes():
            # A view, expanded or not, is as large as what it looks at.
            stored = result.untyped_storage().nbytes() // result.element_size()
            self.largest = max(self.largest, stored)
        return result


def _record(mask, *, heads=(3,), length=101, tile=(8, 16), forward_only=False):
    generator = torch.Generator().manual_seed(0)
    leaves = [
        random(generator, *heads, length, width, dtype=torch.float32).requires_grad_()
        for width in (D, D, 11)
    ]
    with _Record() as record:
        output = attend_tiled(*leaves, mask, tile=tile)
        if not forward_only:
            torch.autograd.grad(output.sum(), leaves)
    return record


@pytest.mark.parametrize(
    "mask",
    [
        None,
        causal(),
        sliding_window(5),
        document(torch.arange(101) // 7),
        padding(torch.tensor([90, 101, 3])),
    ],
    ids=lambda mask: getattr(mask, "name", "open"),
)
def test_nothing_made_on_the_way_is_as_large_as_the_matrix(mask):
    # 101 * 101 scores a head; a tile with its mask for three heads has 384, an input 3 * 101 * 11.
    assert _record(mask).largest <= 3 * 101 * 11 < 101 * 101


def test_only_inputs_output_and_one_number_a_query_are_kept_for_the_gradient(generator):
    leaves = [tensor.requires_grad_() for tensor in _inputs(generator)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()), lambda _: None):
        attend_tiled(*leaves, causal())
    sizes = [TQ * D, TK * D, TK * DV, TQ * DV, TQ]
    assert sorted(kept) == sorted(BATCH * size for size in sizes)


def _kinds(mask, length=101, tile=(8, 16)):
    rows = [range(i, min(i + tile[0], length)) for i in range(0, length, tile[0])]
    columns = [range(j, min(j + tile[1], length)) for j in range(0, length, tile[1])]
    return [mask.tile(row, column) for row in rows for column in columns]


@pytest.mark.parametrize("mask", [causal(), sliding_window(5)], ids=lambda mask: mask.name)
def test_empty_tiles_are_skipped_and_full_tiles_are_not_masked(mask):
    kinds = _kinds(mask)
    assert {"full", "partial", "empty"} >= set(kinds) > {"empty"}
    computed = len(kinds) - kinds.count("empty")
    forward, both = _record(mask, forward_only=True), _record(mask)
    # One product of queries and keys forward; backward that one again, and one with the values.
    assert forward.calls["mm"] == 3 * computed
    assert both.calls["mm"] == 3 * 3 * computed
    # Forward one product is added up, for the output; backward one for each of three gradients.
    assert forward.calls["addmm_"] == 3 * computed
    assert both.calls["addmm_"] == 4 * 3 * computed
    assert forward.calls["exp2_"] == 3 * computed
    partial_tiles = kinds.count("partial")
    once = forward.calls.get("masked_fill_", 0)
    assert once == 3 * partial_tiles
    assert both.calls["masked_fill_"] == 2 * once


def test_without_a_mask_nothing_is_masked():
    record = _record(None, forward_only=True)
    assert "masked_fill_" not in record.calls
    assert record.calls["mm"] == 3 * 13 * 7


def test_a_tile_that_one_sequence_alone_blocks_is_skipped_for_that_sequence():
    # Sequences of 16, 32 and 101 keys have 1, 2 and 7 tiles of keys, and 13 tiles of queries.
    record = _record(padding(torch.tensor([16, 32, 101])), forward_only=True)
    assert record.calls["mm"] == 13 * (1 + 2 + 7)


def test_a_table_is_skipped_like_a_rule():
    record = _record(causal().dense(101, 101), forward_only=True)
    assert record.calls["mm"] == 3 * sum(kind != "empty" for kind in _kinds(causal()))


def test_the_default_tile():
    assert TILE == (1024, 512)
    # 1,025 queries and 513 keys: two tiles each way, so four; one less each way: one.
    for function in (attend_tiled, attend_tiled_lse):
        for rows, keys, tiles in ((1025, 513, 4), (1024, 512, 1)):
            with _Record() as record:
                function(torch.ones(rows, 1), torch.ones(keys, 1), torch.ones(keys, 1))
            assert record.calls["mm"] == tiles


# --- hostile sizes and numbers -------------------------------------------------------------------


@pytest.mark.hostile
@pytest.mark.parametrize("mask", [None, causal(), torch.tensor(True)])
def test_no_keys_give_zero_and_gradient_zero(mask):
    leaves = [torch.ones(*s, requires_grad=True) for s in ((2, TQ, D), (2, 0, D), (2, 0, DV))]
    output, lse = attend_tiled_lse(*leaves, mask)
    output.sum().backward()
    assert torch.equal(output, torch.zeros(2, TQ, DV))
    assert torch.equal(lse, torch.full((2, TQ), -math.inf))
    assert torch.equal(leaves[0].grad, torch.zeros(2, TQ, D))
    assert leaves[1].grad.shape == (2, 0, D)


@pytest.mark.hostile
@pytest.mark.parametrize("mask", [None, causal(), torch.tensor(True)])
def test_no_queries_give_no_rows_and_gradient_zero(mask):
    leaves = [torch.ones(*s, requires_grad=True) for s in ((0, D), (TK, D), (TK, DV))]
    output, lse = attend_tiled_lse(*leaves, mask)
    output.sum().backward()
    assert (output.shape, lse.shape) == ((0, DV), (0,))
    assert torch.equal(leaves[1].grad, torch.zeros(TK, D))
    assert torch.equal(leaves[2].grad, torch.zeros(TK, DV))


@pytest.mark.hostile
@pytest.mark.parametrize("tile", [(1, 1), (2, 2), TILE], ids=str)
@pytest.mark.parametrize(
    "mask", [padding(torch.tensor(0)), torch.tensor(False)], ids=["rule", "table"]
)
def test_a_mask_that_allows_nothing_gives_zero_and_gradient_zero(mask, tile, generator):
    leaves = [tensor.requires_grad_() for tensor in _inputs(generator)]
    output, lse = attend_tiled_lse(*leaves, mask, tile=tile)
    assert torch.equal(output, torch.zeros(BATCH, TQ, DV, dtype=torch.float64))
    assert (lse == -math.inf).all()
    for grad in torch.autograd.grad(output.sum(), leaves):
        assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.hostile
@pytest.mark.parametrize("tile", [(1, 1), (2, 2), TILE], ids=str)
def test_more_queries_than_keys_leave_the_first_without_any(tile, generator):
    leaves = [random(generator, n, D).requires_grad_() for n in (TK, TQ, TQ)]
    output, lse = attend_tiled_lse(*leaves, causal(), tile=tile)
    assert torch.equal(output[: TK - TQ], torch.zeros(TK - TQ, D, dtype=torch.float64))
    assert (lse[: TK - TQ] == -math.inf).all()
    assert lse[TK - TQ :].isfinite().all()
    grads = torch.autograd.grad(output.sum() + lse[TK - TQ :].sum(), leaves)
    assert torch.equal(grads[0][: TK - TQ], torch.zeros(TK - TQ, D, dtype=torch.float64))
    assert all(grad.isfinite().all() for grad in grads)
    assert_close(output, attend_explicit(*leaves, causal()))


@pytest.mark.hostile
def test_a_window_longer_than_the_sequence_is_the_causal_mask(generator):
    inputs = [random(generator, TK, D) for _ in range(3)]
    window = attend_tiled(*inputs, sliding_window(100), tile=(2, 2))
    assert torch.equal(window, attend_tiled(*inputs, causal(), tile=(2, 2)))


@pytest.mark.hostile
@pytest.mark.parametrize("scale", [1e4, -1e4])
@pytest.mark.parametrize("tile", [(1, 1), (2, 2), TILE], ids=str)
def test_scores_beyond_the_range_of_exp_do_not_overflow(scale, tile, generator):
    inputs = [tensor.float() for tensor in _inputs(generator)]
    output = attend_tiled(*inputs, scale=scale, tile=tile)
    assert_close(output, torch.softmax(scale * inputs[0] @ inputs[1].mT, dim=-1) @ inputs[2])


@pytest.mark.hostile
def test_scores_beyond_the_range_of_float16_do_not_overflow():
    # 300 * 300 = 90,000 is above 65,504, the largest number of float16.
    query, key = torch.full((1, 1), 300.0).half(), torch.tensor([[300.0], [299.0], [-300.0]]).half()
    value = torch.tensor([[1.0], [2.0], [4.0]]).half()
    assert (query @ key.mT).isinf().any()
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
    output, lse = attend_tiled_lse(*leaves, tile=(1, 1))
    assert (output.dtype, lse.dtype) == (torch.float16, torch.float32)
    assert output.item() == 1
    assert lse.item() == 90_000
    grads = torch.autograd.grad(output.sum(), leaves)
    assert [grad.dtype for grad in grads] == [torch.float16] * 3
    assert [grad.flatten().tolist() for grad in grads] == [[0], [0, 0, 0], [1, 0, 0]]


@pytest.mark.hostile
def test_many_small_weights_are_added_up_in_float32():
    # 4,096 equal weights: a sum in float16 would stop growing at 2,048.
    zeros, ones = torch.zeros(4096, 1).half(), torch.ones(4096, 1).half()
    output, lse = attend_tiled_lse(zeros[:1], zeros, ones)
    assert output.item() == 1
    assert lse.item() == pytest.approx(math.log(4096))


@pytest.mark.hostile
@pytest.mark.parametrize("tile", [(1, 1), (1, 2), TILE], ids=str)
def test_infinite_scores_are_answered_as_by_softmax(tile):
    query, value = torch.tensor([[1.0]]), torch.tensor([[1.0], [2.0], [4.0]])
    minus, plus = torch.tensor([[0.0], [-math.inf], [0.0]]), torch.tensor([[0.0], [math.inf], [0]])
    assert attend_tiled(query, minus, value, tile=tile).item() == 2.5
    assert attend_tiled(query, plus, value, tile=tile).isnan().all()
    assert attend_tiled(query, torch.full((3, 1), -math.inf), value, tile=tile).item() == 0


@pytest.mark.hostile
def test_an_empty_part_is_neutral(generator):
    scores, value = random(generator, TQ, TK), random(generator, TK, DV)
    part, empty = summarise(scores, value), summarise(scores[:, :0], value[:0])
    assert (empty.top == -math.inf).all()
    assert not empty.total.any()
    assert not empty.weighted.any()
    assert torch.equal(finish(empty), torch.zeros(TQ, DV, dtype=torch.float64))
    assert (log_sum_exp(empty) == -math.inf).all()
    for merged in (merge(part, empty), merge(empty, part), merge_all([part])):
        for found, right in zip(merged, part, strict=True):
            assert torch.equal(found, right)
    twice = merge(empty, empty)
    assert (twice.top == -math.inf).all()
    assert torch.equal(finish(twice), torch.zeros(TQ, DV, dtype=torch.float64))


@pytest.mark.hostile
def test_an_empty_part_has_finite_gradients(generator):
    scores, value = random(generator, TQ, TK).requires_grad_(), random(generator, TK, DV)
    part = summarise(scores, value, torch.zeros(TQ, TK, dtype=torch.bool))
    lse = log_sum_exp(part)
    (grad,) = torch.autograd.grad(finish(part).sum() + lse.sum(), scores)
    assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.hostile
def test_a_finished_part_without_keys_stays_empty():
    lse = torch.tensor([[0.5, -math.inf]], dtype=torch.float64)
    part = from_log_sum_exp(torch.zeros(1, 2, DV, dtype=torch.float64), lse)
    assert torch.equal(part.top, lse.unsqueeze(-1))
    assert part.total.tolist() == [[[1], [0]]]
    assert part.total.dtype == torch.float64
    assert torch.equal(log_sum_exp(part), lse)


@pytest.mark.hostile
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_parts_of_half_precision_are_float32(dtype):
    part = summarise(torch.zeros(1, 4096, dtype=dtype), torch.ones(4096, 1, dtype=dtype))
    assert [tensor.dtype for tensor in part] == [torch.float32] * 3
    assert (part.total.item(), part.weighted.item()) == (4096, 4096)
    again = from_log_sum_exp(finish(part).to(dtype), log_sum_exp(part))
    assert [tensor.dtype for tensor in again] == [torch.float32] * 3
    assert (again.total.item(), again.weighted.item()) == (1, 1)


# --- refusals ------------------------------------------------------------------------------------

REFUSED = {
    "rows of value": (
        {"value": torch.ones(TQ, DV)},
        ValueError,
        f"value must have one row for each key, Tk = {TK}, got shape ({TQ}, {DV})",
    ),
    "dtype of value": (
        {"value": torch.ones(TK, DV).double()},
        TypeError,
        "value must have the dtype of query (torch.float32), got torch.float64",
    ),
    "width of key": (
        {"key": torch.ones(TK, D + 1)},
        ValueError,
        f"key must have the width of query, D = {D}, got shape ({TK}, {D + 1})",
    ),
    "an array": (
        {"query": np.ones((TQ, D))},
        TypeError,
        "query must be a torch.Tensor, got ndarray",
    ),
    "a mask of integers": (
        {"mask": torch.ones(TQ, TK, dtype=torch.int64)},
        TypeError,
        "mask must be boolean with True for 'may attend', got torch.int64",
    ),
    "a mask of another shape": (
        {"mask": torch.ones(TK, TQ, dtype=torch.bool)},
        ValueError,
        f"mask must broadcast to (..., Tq, Tk) = ({TQ}, {TK}), got ({TK}, {TQ})",
    ),
    "a rule for a batch": (
        {"mask": padding(torch.tensor([1, 2]))},
        ValueError,
        f"mask must broadcast to (..., Tq, Tk) = ({TQ}, {TK}), got (2, {TQ}, {TK})",
    ),
    "a tile of one number": (
        {"tile": 64},
        TypeError,
        "tile must be a pair (queries, keys), got 64",
    ),
    "a tile of three numbers": (
        {"tile": (1, 2, 3)},
        TypeError,
        "tile must be a pair (queries, keys), got (1, 2, 3)",
    ),
    "no queries in a tile": (
        {"tile": (0, 2)},
        ValueError,
        "tile[0] must be at least 1, got 0",
    ),
    "half a key in a tile": (
        {"tile": (1, 0.5)},
        TypeError,
        "tile[1] must be an integer, got float",
    ),
}


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize("function", [attend_tiled, attend_tiled_lse])
@pytest.mark.parametrize(("changed", "kind", "message"), list(REFUSED.values()), ids=list(REFUSED))
def test_bad_arguments_are_named(changed, kind, message, function):
    arguments = {"query": torch.ones(TQ, D), "key": torch.ones(TK, D), "value": torch.ones(TK, DV)}
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        function(**{**arguments, **changed})


@pytest.mark.hostile
def test_a_second_derivative_is_refused(generator):
    leaves = [tensor.requires_grad_() for tensor in _inputs(generator)]
    message = (
        "attend_tiled has first derivatives only, got create_graph=True; "
        "attend_explicit has second derivatives"
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        torch.autograd.grad(attend_tiled(*leaves).sum(), leaves, create_graph=True)


PARTS = [summarise(torch.zeros(rows, TK), torch.zeros(TK, DV)) for rows in (TQ, TQ + 1)]
REFUSED_PARTS = {
    "rows of value": (
        lambda: summarise(torch.zeros(2, TQ, TK), torch.zeros(2, TQ, DV)),
        ValueError,
        f"value must have one row for each key, Tk = {TK}, got shape (2, {TQ}, {DV})",
    ),
    "integer scores": (
        lambda: summarise(torch.zeros(TQ, TK).long(), torch.zeros(TK, DV)),
        TypeError,
        "scores must have a floating-point dtype, got torch.int64",
    ),
    "a row of scores": (
        lambda: summarise(torch.zeros(TK), torch.zeros(TK, DV)),
        ValueError,
        f"scores must have at least 2 dimensions, got shape ({TK},)",
    ),
    "a row of values": (
        lambda: summarise(torch.zeros(TQ, TK), torch.zeros(TK)),
        ValueError,
        f"value must have at least 2 dimensions, got shape ({TK},)",
    ),
    "two dtypes": (
        lambda: summarise(torch.zeros(TQ, TK), torch.zeros(TK, DV).half()),
        TypeError,
        "value must have the dtype of scores (torch.float32), got torch.float16",
    ),
    "two batches": (
        lambda: summarise(torch.zeros(2, TQ, TK), torch.zeros(3, TK, DV)),
        ValueError,
        "leading dimensions must broadcast together, "
        f"got scores (2, {TQ}, {TK}), value (3, {TK}, {DV})",
    ),
    "a mask of another shape": (
        lambda: summarise(torch.zeros(TQ, TK), torch.zeros(TK, DV), torch.ones(TQ).bool()),
        ValueError,
        f"mask must broadcast to the shape of scores = ({TQ}, {TK}), got ({TQ},)",
    ),
    "parts of other queries": (
        lambda: merge(*PARTS),
        ValueError,
        f"both parts must have the same shapes, got top ({TQ}, 1) and ({TQ + 1}, 1)",
    ),
    "no parts": (
        lambda: merge_all([]),
        ValueError,
        "parts must hold at least one part, got 0",
    ),
    "a number too many": (
        lambda: from_log_sum_exp(torch.zeros(2, TQ, DV), torch.zeros(2, DV)),
        ValueError,
        f"lse must have one number for each query, shape (2, {TQ}), got (2, {DV})",
    ),
    "integer output": (
        lambda: from_log_sum_exp(torch.zeros(TQ, DV).long(), torch.zeros(TQ)),
        TypeError,
        "output must have a floating-point dtype, got torch.int64",
    ),
    "output is a row": (
        lambda: from_log_sum_exp(torch.zeros(DV), torch.tensor(0.0)),
        ValueError,
        f"output must have at least 2 dimensions, got shape ({DV},)",
    ),
    "lse is a number": (
        lambda: from_log_sum_exp(torch.zeros(TQ, DV), torch.tensor(0.0)),
        ValueError,
        "lse must have at least 1 dimension, got shape ()",
    ),
    "integer lse": (
        lambda: from_log_sum_exp(torch.zeros(TQ, DV), torch.zeros(TQ).long()),
        TypeError,
        "lse must have a floating-point dtype, got torch.int64",
    ),
}


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize(
    ("call", "kind", "message"), list(REFUSED_PARTS.values()), ids=list(REFUSED_PARTS)
)
def test_bad_parts_are_named(call, kind, message):
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        call()
