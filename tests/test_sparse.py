"""Block-sparse attention: the layout of a mask, equal numbers, and no work on empty blocks."""

import re
import warnings
from functools import partial

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import BATCH, DTYPES, TK, TQ, D, assert_matches, random
from torch.testing import assert_close

from attention_lib import (
    Mask,
    attend,
    attend_explicit,
    causal,
    document,
    padding,
    prefix,
    sliding_window,
)
from attention_lib.efficient import sparse
from attention_lib.efficient.cost import peak_bytes
from attention_lib.efficient.sparse import attend_block_sparse, block_layout

HEADS, DV = 5, 11
EMPTY, PARTIAL, FULL = 0, 1, 2
NOTHING = Mask(lambda query, key: (query < 0) & (key < 0), "nothing")
EVERYTHING = Mask(lambda query, key: (query == query) & (key == key), "everything")
MASKS = {
    "causal": causal(),
    "window": sliding_window(3, 2),
    "padding": padding(torch.tensor([6, 0])),
    "causal and padding": causal() & padding(torch.tensor([11, 2])),
    "prefix": prefix(torch.tensor([2, 9])),
    "documents": document(torch.arange(29) // 6),
    "keys only": Mask(lambda query, key: key % 2 == 0, "even keys"),
    "queries only": Mask(lambda query, key: query % 3 == 0, "every third query"),
    "stripes": sliding_window(2) & Mask(lambda query, key: key // 5 % 2 == 0, "stripes"),
    "nothing": NOTHING,
    "everything": EVERYTHING,
}
EACH_MASK = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


def _inputs(generator, queries, keys, batch=(BATCH,), dtype=torch.float64):
    shapes = (queries, D), (keys, D), (keys, DV)
    return [random(generator, *batch, *shape, dtype=dtype) for shape in shapes]


def _with_gradients(function, inputs):
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    upstream = torch.arange(output.numel()).reshape(output.shape) % 7 - 3.0
    return output.detach(), *torch.autograd.grad(output, leaves, upstream.to(output.dtype))


def _assert_same(inputs, mask, block, **options):
    ours = _with_gradients(
        lambda q, k, v: attend_block_sparse(q, k, v, mask, block=block, **options), inputs
    )
    theirs = _with_gradients(lambda q, k, v: attend(q, k, v, mask, **options), inputs)
    assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


# --- the layout ----------------------------------------------------------------------------------


def test_layouts_on_paper():
    assert block_layout(causal(), 6, 6, 2).tolist() == [[1, 0, 0], [2, 1, 0], [2, 2, 1]]
    assert block_layout(sliding_window(2), 6, 6, 2).tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert block_layout(EVERYTHING, 2, 3, 2).tolist() == [[2, 2]]
    assert block_layout(NOTHING, 2, 3, 2).tolist() == [[0, 0]]


def test_the_layout_counts_queries_from_the_end():
    assert block_layout(causal(), 2, 6, 2).tolist() == [[2, 2, 1]]
    assert block_layout(causal(), 6, 2, 2).tolist() == [[0], [0], [1]]


def test_one_layout_serves_all_sequences():
    mask = padding(torch.tensor([[4], [1]]))
    assert block_layout(mask, 2, 6, 2).tolist() == [[1, 1, 0]]
    assert block_layout(padding(torch.tensor([4, 3])), 2, 6, 2).tolist() == [[2, 1, 0]]


def test_the_block_is_64_unless_told():
    assert block_layout(causal(), 65, 129).tolist() == [[2, 1, 0], [2, 2, 2]]


@EACH_MASK
@pytest.mark.parametrize(("queries", "keys"), [(13, 29), (29, 29), (10, 20)])
@pytest.mark.parametrize("block", [1, 4, 5, 31])
def test_the_layout_says_what_each_tile_says(mask, queries, keys, block):
    names = {"empty": EMPTY, "partial": PARTIAL, "full": FULL}
    first = keys - queries
    layout = block_layout(mask, queries, keys, block)
    assert layout.dtype == torch.long
    expected = [
        [
            names[
                mask.tile(
                    range(first + top, first + min(top + block, queries)),
                    range(left, min(left + block, keys)),
                )
            ]
            for left in range(0, keys, block)
        ]
        for top in range(0, queries, block)
    ]
    assert layout.tolist() == expected


def test_the_layout_never_writes_the_mask_out():
    largest = 0

    def rule(query, key):
        nonlocal largest
        allowed = key <= query
        largest = max(largest, allowed.numel())
        return allowed

    block_layout(Mask(rule, "spy"), 500, 700, 50)
    assert largest == 50 * 700


@pytest.mark.parametrize(("queries", "keys"), [(0, 5), (5, 0), (0, 0)])
def test_the_layout_of_nothing(queries, keys):
    assert block_layout(causal(), queries, keys, 2).shape == ((queries + 1) // 2, (keys + 1) // 2)


# --- on paper ------------------------------------------------------------------------------------


def test_equal_keys_give_the_mean_of_the_allowed_values():
    value = torch.tensor([[1.0], [2], [3], [4], [5]])
    query = key = torch.zeros(5, 3)
    output = attend_block_sparse(query, key, value, causal(), block=2)
    assert output.flatten().tolist() == [1, 1.5, 2, 2.5, 3]
    mask = Mask(lambda query, key: key // 2 == 1, "keys 2 and 3")
    output = attend_block_sparse(query, key, value, mask, block=2)
    assert output.flatten().tolist() == [3.5] * 5


# --- oracles -------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["causal", "window", "causal and padding", "stripes", "nothing"])
def test_output_and_gradients_match_the_loop(name, dtype, generator):
    mask = MASKS[name]
    table = mask.dense(7, 11).expand(BATCH, 7, 11)
    assert_matches(
        partial(attend_block_sparse, mask=mask, block=3),
        partial(attend_explicit, mask=mask),
        partial(oracle.attend, mask=table),
        _inputs(generator, 7, 11, dtype=dtype),
    )


@pytest.mark.oracle
@EACH_MASK
@pytest.mark.parametrize("block", [4, 5, 64])
def test_every_mask_matches_the_masked_attention(mask, block, generator):
    _assert_same(_inputs(generator, 13, 29), mask, block)
    _assert_same(_inputs(generator, 20, 20), mask, block)


@pytest.mark.oracle
def test_the_default_block_and_a_factor_in_place_of_the_root(generator):
    inputs = _inputs(generator, 200, 200)
    _assert_same(inputs, sliding_window(20), 64, scale=0.3)
    ours = attend_block_sparse(*inputs, sliding_window(20))
    assert torch.equal(ours, attend_block_sparse(*inputs, sliding_window(20), block=64))


@pytest.mark.oracle
def test_leading_dimensions_broadcast_in_tensors_and_mask(generator):
    query = random(generator, BATCH, HEADS, 13, D)
    key, value = random(generator, HEADS, 13, D), random(generator, BATCH, 1, 13, DV)
    _assert_same([query, key, value], causal() & padding(torch.tensor([[11], [4]])), 4)
    _assert_same([query, key, value], padding(torch.tensor([3, 0, 1, 13, 5])), 4)
    _assert_same([query[0, 0], key[0], value[0, 0]], causal(), 4)


@pytest.mark.oracle
def test_flex_attention_agrees(generator):
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    query, key, value = (random(generator, BATCH, HEADS, 37, 16).float() for _ in range(3))
    mask = sliding_window(11)
    blocks = flex.create_block_mask(
        lambda b, h, i, j: (j <= i) & (j >= i - 11), None, None, 37, 37, device="cpu", BLOCK_SIZE=8
    )
    # FlexAttention draws the same picture: 1 where a block is not empty.
    assert blocks.to_dense()[0, 0].tolist() == (block_layout(mask, 37, 37, 8) > 0).int().tolist()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "without torch.compile() it is not fused", and so slow
        theirs = flex.flex_attention(query, key, value, block_mask=blocks)
    assert_close(attend_block_sparse(query, key, value, mask, block=8), theirs)


def test_gradcheck(generator):
    inputs = [x.requires_grad_() for x in _inputs(generator, 7, 11, (1,))]
    mask = MASKS["stripes"]
    assert torch.autograd.gradcheck(lambda *x: attend_block_sparse(*x, mask, block=3), inputs)


# --- properties ----------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(0, 13), st.integers(0, 13), st.integers(1, 6), st.randoms())
def test_any_table_matches(queries, keys, block, randoms):
    density = randoms.choice([0.05, 0.3, 0.9])
    pairs = {
        (i, j): randoms.random() < density
        for i in range(-keys, keys + queries)
        for j in range(keys)
    }

    def rule(query, key):
        table = [[pairs[i, j] for j in key[0].tolist()] for i in query[:, 0].tolist()]
        return torch.tensor(table, dtype=torch.bool).view(len(query), key.shape[1])

    queries = min(queries, 2 * keys) if keys else queries
    inputs = _inputs(torch.Generator().manual_seed(keys), queries, keys)
    _assert_same(inputs, Mask(rule, "table"), block)


def test_what_the_mask_forbids_does_not_reach_the_output(generator):
    query, key, value = _inputs(generator, 20, 20)
    output = attend_block_sparse(query, key, value, causal(), block=4)
    key[:, 9:], value[:, 9:] = 3, -3
    changed = attend_block_sparse(query, key, value, causal(), block=4)
    assert torch.equal(changed[:, :9], output[:, :9])
    assert not torch.equal(changed[:, 9:], output[:, 9:])


def test_inputs_and_layout_are_not_changed(generator):
    inputs = [*_inputs(generator, 20, 20), block_layout(causal(), 20, 20, 8)]
    copies = [tensor.clone() for tensor in inputs]
    attend_block_sparse(*inputs[:3], causal(), block=8, layout=inputs[3])
    assert all(torch.equal(*pair) for pair in zip(inputs, copies, strict=True))


# --- the work ------------------------------------------------------------------------------------


def _work(monkeypatch, inputs, mask, **options):
    """(blocks of queries, keys of each, whether there was a mask) of every call of the kernel."""
    calls = []

    def spy(query, key, value, allowed, **kwargs):
        calls.append((query.shape[1], key.shape[2], allowed is not None))
        return attend(query, key, value, allowed, **kwargs)

    monkeypatch.setattr(sparse, "attend", spy)
    attend_block_sparse(*inputs, mask, **options)
    monkeypatch.undo()
    return calls


def test_only_blocks_that_are_not_empty_are_computed(generator, monkeypatch):
    inputs = _inputs(generator, 20, 20)
    work = partial(_work, monkeypatch, inputs, block=4)
    assert work(mask=NOTHING) == []
    assert work(mask=sliding_window(3)) == [(1, 4, True), (2, 8, True), (2, 8, True)]
    assert work(mask=causal()) == [(1, 4 * count, True) for count in (1, 2, 3, 4, 5)]


def test_full_blocks_need_no_mask(generator, monkeypatch):
    same = Mask(lambda query, key: query // 4 == key // 4, "same block")
    inputs = _inputs(generator, 20, 20)
    assert _work(monkeypatch, inputs, same, block=4) == [(5, 4, False)]
    # The block that sticks out at the end does, for the keys that are not there.
    inputs = _inputs(generator, 18, 18)
    assert _work(monkeypatch, inputs, same, block=4) == [(5, 4, True)]
    front = Mask(lambda query, key: (key < 8) & (query >= 0), "first keys")
    assert _work(monkeypatch, inputs, front, block=4) == [(2, 8, False)] * 2 + [(1, 8, False)]


def test_a_layout_at_hand_is_used_and_not_computed(generator, monkeypatch):
    inputs = _inputs(generator, 20, 20)
    layout = block_layout(causal(), 20, 20, 8)
    expected = attend_block_sparse(*inputs, causal(), block=8)
    monkeypatch.setattr(sparse, "block_layout", None)
    assert torch.equal(attend_block_sparse(*inputs, causal(), block=8, layout=layout), expected)


def test_a_block_that_the_layout_calls_empty_is_skipped(generator):
    inputs = _inputs(generator, 4, 4)
    output = attend_block_sparse(
        *inputs, EVERYTHING, block=2, layout=torch.tensor([[1, 0], [0, 0]])
    )
    query, key, value = (tensor[:, :2] for tensor in inputs)
    assert_close(output[:, :2], attend(query, key, value))
    assert torch.equal(output[:, 2:], torch.zeros(BATCH, 2, DV).double())


def test_memory_grows_with_the_length_not_with_its_square(generator):
    def extra(length):
        inputs = [x.requires_grad_() for x in _inputs(generator, length, length, (1,))]
        return peak_bytes(
            lambda: attend_block_sparse(*inputs, sliding_window(40), block=32).sum().backward()
        )

    assert extra(4096) < 2.1 * extra(2048)


# --- hostile -------------------------------------------------------------------------------------


@pytest.mark.hostile
@pytest.mark.parametrize(("queries", "keys"), [(0, TK), (TQ, 0), (0, 0), (1, 1)])
def test_rows_without_keys_give_zero_and_gradient_zero(queries, keys):
    shapes = (queries, D), (keys, D), (keys, DV)
    inputs = [torch.ones(BATCH, *shape, requires_grad=True) for shape in shapes]
    output = attend_block_sparse(*inputs, NOTHING, block=2)
    output.sum().backward()
    assert torch.equal(output, torch.zeros(BATCH, queries, DV))
    assert all(torch.equal(x.grad, torch.zeros_like(x)) for x in inputs)


@pytest.mark.hostile
def test_an_empty_batch_gives_an_empty_batch():
    inputs = [torch.ones(0, length, width) for length, width in ((9, D), (9, D), (9, DV))]
    assert attend_block_sparse(*inputs, causal(), block=2).shape == (0, 9, DV)


@pytest.mark.hostile
def test_queries_before_the_first_key_get_zero(generator):
    inputs = _inputs(generator, 9, 4)
    output = attend_block_sparse(*inputs, causal(), block=2)
    assert torch.equal(output[:, :5], torch.zeros(BATCH, 5, DV).double())
    _assert_same(inputs, causal(), 2)


@pytest.mark.hostile
def test_half_precision_gradients_of_a_key_in_many_blocks_are_summed_in_float32():
    # One query sends 1 and 32 send 1 / 4,096 each; in float16 the sum would stay at 1.
    query = torch.zeros(33, 2, dtype=torch.float16)
    key, value = query[:1], torch.ones(1, 2, dtype=torch.float16, requires_grad=True)
    output = attend_block_sparse(query, key, value, Mask(lambda q, k: q >= k - 33, "all"), block=1)
    upstream = torch.full_like(output, 1 / 4096)
    upstream[0] = 1
    output.backward(upstream)
    assert value.grad.tolist() == [[1 + 1 / 128] * 2]


@pytest.mark.hostile
def test_half_precision_scores_beyond_its_range_stay_finite():
    query = torch.full((20, 4), 200, dtype=torch.float16)  # the scores are 80,000
    value = torch.linspace(-1, 1, 20, dtype=torch.float16)[:, None].expand(20, 4)
    output = attend_block_sparse(query, query, value, causal(), block=4)
    assert_close(output, attend_block_sparse(0 * query, query, value, causal(), block=4))


@pytest.mark.hostile
def test_a_second_derivative_is_refused(generator):
    inputs = [x.requires_grad_() for x in _inputs(generator, 5, 5)]
    output = attend_block_sparse(*inputs, causal(), block=2)
    (gradient,) = torch.autograd.grad(output.pow(2).sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"block": 0}, ValueError, "block must be at least 1, got 0"),
        ({"block": 2.0}, TypeError, "block must be an integer, got float"),
        ({"mask": torch.ones(TQ, TK) > 0}, TypeError, "mask must be a Mask, got Tensor"),
        ({"mask": None}, TypeError, "mask must be a Mask, got NoneType"),
        (
            {"mask": padding(torch.ones(7, dtype=torch.long))},
            ValueError,
            f"mask must broadcast to (..., Tq, Tk) = ({BATCH}, {TQ}, {TK}), got (7, {TQ}, {TK})",
        ),
        (
            {"layout": torch.ones(2, 2).long()},
            ValueError,
            "layout must be (ceil(Tq / block), ceil(Tk / block)) = (2, 3), got shape (2, 2)",
        ),
        ({"query": [1]}, TypeError, "query must be a torch.Tensor, got list"),
        (
            {"value": torch.ones(TK + 1, DV)},
            ValueError,
            f"value must have one row for each key, Tk = {TK}, got shape ({TK + 1}, {DV})",
        ),
    ],
)
def test_a_bad_argument_is_named(change, kind, message):
    arguments = {
        "query": torch.ones(BATCH, TQ, D),
        "key": torch.ones(BATCH, TK, D),
        "value": torch.ones(BATCH, TK, DV),
        "mask": causal(),
        "block": 2,
    }
    with pytest.raises(kind, match=re.escape(message)):
        attend_block_sparse(**{**arguments, **change})


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((None, 2, 2), TypeError, "mask must be a Mask, got NoneType"),
        ((causal(), -1, 2), ValueError, "query_length must be at least 0, got -1"),
        ((causal(), 2, -3), ValueError, "key_length must be at least 0, got -3"),
        ((causal(), 2, 2, 0), ValueError, "block must be at least 1, got 0"),
    ],
)
def test_a_bad_argument_of_the_layout_is_named(arguments, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        block_layout(*arguments)
