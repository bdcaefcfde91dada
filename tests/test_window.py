"""Sliding-window attention: the numbers of the masked kind, for the work of the window only."""

import re
from functools import partial

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import BATCH, DTYPES, TK, TQ, D, assert_matches, random
from torch.testing import assert_close

from attention_lib import attend, attend_explicit, causal, sliding_window
from attention_lib.efficient import window
from attention_lib.efficient.cost import peak_bytes
from attention_lib.efficient.window import attend_window

HEADS, DV = 5, 11


def _inputs(generator, queries, keys, batch=(BATCH,), dtype=torch.float64, value_width=DV):
    shapes = (queries, D), (keys, D), (keys, value_width)
    return [random(generator, *batch, *shape, dtype=dtype) for shape in shapes]


def _assert_same(inputs, before, after=0, **options):
    """Output and gradients are those of the masked attention."""
    mask = sliding_window(before, after)

    def run(function):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        output = function(*leaves)
        upstream = torch.arange(output.numel()).reshape(output.shape) % 7 - 3.0
        return output, *torch.autograd.grad(output, leaves, upstream.to(output.dtype))

    ours = run(lambda q, k, v: attend_window(q, k, v, before, after, **options))
    theirs = run(lambda q, k, v: attend(q, k, v, mask, **options))
    assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


# --- on paper ------------------------------------------------------------------------------------


def test_equal_keys_give_the_mean_of_the_window():
    query, key = torch.zeros(5, 3), torch.zeros(5, 3)
    value = torch.tensor([[1.0], [2], [3], [4], [5]])
    assert attend_window(query, key, value, 2).flatten().tolist() == [1, 1.5, 2, 3, 4]
    assert attend_window(query, key, value, 0, 1).flatten().tolist() == [1.5, 2.5, 3.5, 4.5, 5]
    assert attend_window(query, key, value, 1, 1).flatten().tolist() == [1.5, 2, 3, 4, 4.5]


def test_a_window_of_one_key_copies_the_values(generator):
    query, key, value = _inputs(generator, 200, 200)
    assert_close(attend_window(query, key, value, 0), value)


def test_queries_stand_at_the_last_positions():
    value = torch.arange(7.0)[:, None]
    output = attend_window(torch.zeros(2, D), torch.zeros(7, D), value, 2)
    assert output.flatten().tolist() == [4, 5]  # the means of 3, 4, 5 and of 4, 5, 6


def test_the_band_on_paper():
    assert window._band(3, 1, 1, torch.device("cpu")).int().tolist() == [
        [1, 1, 1, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]


# --- oracles -------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("before", "after"), [(2, 0), (0, 1), (1, 2), (9, 9)])
def test_output_and_gradients_match_the_loop(before, after, dtype, generator, monkeypatch):
    monkeypatch.setattr(window, "SMALLEST_BLOCK", 2)  # so that toy lengths have whole blocks
    mask = sliding_window(before, after)
    inputs = _inputs(generator, 11, 13, dtype=dtype)
    table = mask.dense(11, 13).expand(BATCH, 11, 13)
    assert_matches(
        partial(attend_window, before=before, after=after),
        partial(attend_explicit, mask=mask),
        partial(oracle.attend, mask=table),
        inputs,
    )


@pytest.mark.oracle
@pytest.mark.parametrize(("before", "after"), [(63, 0), (64, 0), (100, 37), (0, 64), (411, 5)])
@pytest.mark.parametrize(
    ("queries", "keys"), [(300, 300), (256, 256), (257, 257), (129, 700), (700, 700)]
)
def test_blocks_and_ends_match_the_masked_attention(queries, keys, before, after, generator):
    _assert_same(_inputs(generator, queries, keys, (2, 1)), before, after)


@pytest.mark.oracle
def test_a_factor_in_place_of_the_root(generator):
    _assert_same(_inputs(generator, 300, 300), 70, 3, scale=0.25)
    _assert_same(_inputs(generator, 5, 5), 70, scale=0.25)
    _assert_same(_inputs(generator, 5, 5), 70, 70, scale=0.25)


@pytest.mark.oracle
def test_leading_dimensions_broadcast(generator):
    query = random(generator, BATCH, HEADS, 200, D)
    key, value = random(generator, HEADS, 200, D), random(generator, BATCH, 1, 200, DV)
    _assert_same([query, key, value], 17, 2)
    assert attend_window(query, key, value, 17).shape == (BATCH, HEADS, 200, DV)


@pytest.mark.oracle
def test_inputs_need_not_be_contiguous(generator):
    heads_last = [random(generator, BATCH, 200, HEADS, D).transpose(1, 2) for _ in range(3)]
    _assert_same(heads_last, 30, 0)


def test_gradcheck(generator, monkeypatch):
    monkeypatch.setattr(window, "SMALLEST_BLOCK", 3)
    inputs = [tensor.requires_grad_() for tensor in _inputs(generator, 11, 13, (1,))]
    assert torch.autograd.gradcheck(lambda *x: attend_window(*x, 2, 1), inputs)


# --- properties ----------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    st.integers(0, 23), st.integers(0, 23), st.integers(0, 25), st.integers(0, 25),
    st.integers(1, 5),
)  # fmt: skip
def test_any_lengths_windows_and_blocks_match(queries, keys, before, after, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window, "SMALLEST_BLOCK", block)
        _assert_same(_inputs(torch.Generator().manual_seed(queries), queries, keys), before, after)


@pytest.mark.parametrize("position", [0, 63, 64, 150, 299])
def test_only_the_window_reaches_the_output(position, generator):
    query, key, value = _inputs(generator, 300, 300)
    inside = slice(max(0, position - 40), position + 8)
    other_key, other_value = torch.zeros_like(key), torch.zeros_like(value)
    other_key[:, inside], other_value[:, inside] = key[:, inside], value[:, inside]
    expected = attend_window(query, key, value, 40, 7)[:, position]
    found = attend_window(query, other_key, other_value, 40, 7)[:, position]
    assert torch.equal(found, expected)


def test_inputs_are_not_changed(generator):
    inputs = _inputs(generator, 200, 200)
    copies = [tensor.clone() for tensor in inputs]
    attend_window(*inputs, 20)
    assert all(torch.equal(*pair) for pair in zip(inputs, copies, strict=True))


# --- the work ------------------------------------------------------------------------------------


def _work(monkeypatch, inputs, before, after=0):
    """Shapes of queries and keys of every call of a kernel, in the order of the calls."""
    calls = []

    def spy(name, original):
        def call(query, key, *others, **options):
            calls.append((name, tuple(query.shape[1:-1]), tuple(key.shape[1:-1])))
            return original(query, key, *others, **options)

        monkeypatch.setattr(window, name, call)

    spy("scaled_dot_product_attention", window.scaled_dot_product_attention)
    spy("attend", window.attend)
    attend_window(*inputs, before, after)
    monkeypatch.undo()
    return calls


def test_each_block_meets_only_its_strip_of_keys(generator, monkeypatch):
    calls = _work(monkeypatch, _inputs(generator, 1000, 1000), 10, 3)
    assert calls == [
        ("attend", (64,), (67,)),  # the first block has nothing before it
        ("attend", (40,), (50,)),  # the last is cut off
        ("scaled_dot_product_attention", (14, 64), (14, 77)),
    ]


def test_long_windows_have_longer_blocks(generator, monkeypatch):
    calls = _work(monkeypatch, _inputs(generator, 1000, 1000), 399)
    assert calls == [
        *(("attend", (100,), (keys,)) for keys in (100, 200, 300, 400)),
        ("scaled_dot_product_attention", (6, 100), (6, 499)),
    ]
    calls = _work(monkeypatch, _inputs(generator, 640, 640), 150, 108)  # 259 // 4 is 64
    assert calls[-1] == ("scaled_dot_product_attention", (5, 64), (5, 322))
    calls = _work(monkeypatch, _inputs(generator, 650, 650), 150, 109)  # 260 // 4 is 65
    assert calls[-1] == ("scaled_dot_product_attention", (5, 65), (5, 324))


def test_blocks_just_at_the_ends_are_whole(generator, monkeypatch):
    calls = _work(monkeypatch, _inputs(generator, 256, 320), 64)  # exactly 64 keys in front
    assert calls == [("scaled_dot_product_attention", (4, 64), (4, 128))]
    calls = _work(monkeypatch, _inputs(generator, 192, 256), 64, 64)  # and 64 behind the second
    assert calls == [
        ("attend", (64,), (128,)),
        ("scaled_dot_product_attention", (2, 64), (2, 192)),
    ]


@pytest.mark.parametrize(("after", "mask"), [(0, causal()), (6, None), (400, None)])
def test_a_window_over_everything_is_plain_attention(after, mask, generator, monkeypatch):
    inputs = _inputs(generator, 7, 9)
    expected = attend(*inputs, mask)
    given = []

    def spy(query, key, value, mask=None, **options):
        given.append(mask)
        return attend(query, key, value, mask, **options)

    monkeypatch.setattr(window, "attend", spy)
    assert torch.equal(attend_window(*inputs, 8, after), expected)
    assert given == [mask]  # not a matrix: the fused path without a mask, or its causal kind


def test_memory_grows_with_the_length_not_with_its_square(generator):
    def extra(length):
        inputs = _inputs(generator, length, length, (1,), torch.float32, D)
        return peak_bytes(lambda: attend_window(*inputs, 63))

    assert extra(8192) < 2.1 * extra(4096)


# --- hostile sizes -------------------------------------------------------------------------------


@pytest.mark.hostile
@pytest.mark.parametrize(("queries", "keys"), [(0, TK), (TQ, 0), (0, 0)])
@pytest.mark.parametrize(("before", "after"), [(2, 0), (2, 1), (0, 0)])
def test_empty_sequences_give_zero_and_gradient_zero(queries, keys, before, after):
    shapes = (queries, D), (keys, D), (keys, DV)
    inputs = [torch.ones(BATCH, *shape, requires_grad=True) for shape in shapes]
    output = attend_window(*inputs, before, after)
    output.sum().backward()
    assert torch.equal(output, torch.zeros(BATCH, queries, DV))
    assert all(torch.equal(x.grad, torch.zeros_like(x)) for x in inputs)


@pytest.mark.hostile
def test_an_empty_batch_gives_an_empty_batch():
    inputs = [torch.ones(0, length, width) for length, width in ((90, D), (90, D), (90, DV))]
    assert attend_window(*inputs, 3).shape == (0, 90, DV)


@pytest.mark.hostile
def test_one_position_attends_to_itself(generator):
    query, key, value = _inputs(generator, 1, 1)
    assert_close(attend_window(query, key, value, 5), value)


@pytest.mark.hostile
def test_queries_before_the_first_key_get_zero(generator):
    inputs = [x.requires_grad_() for x in _inputs(generator, 200, 90)]
    output = attend_window(*inputs, 3)
    output.sum().backward()
    assert torch.equal(output[:, :110], torch.zeros(BATCH, 110, DV).double())
    assert (output[:, 110:] != 0).all()
    assert all(x.grad.isfinite().all() for x in inputs)


@pytest.mark.hostile
def test_half_precision_scores_beyond_its_range_stay_finite():
    query = torch.full((200, 4), 200, dtype=torch.float16)  # the scores are 80,000
    value = torch.linspace(-1, 1, 200, dtype=torch.float16)[:, None].expand(200, 4)
    output = attend_window(query, query, value, 10)
    assert_close(output, attend_window(torch.zeros_like(query), query, value, 10))


@pytest.mark.hostile
def test_shapes_are_known_without_numbers():
    inputs = [torch.ones(BATCH, 200, D, device="meta") for _ in range(3)]
    assert attend_window(*inputs, 20).shape == (BATCH, 200, D)


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"before": -1}, ValueError, "before must be at least 0, got -1"),
        ({"before": 1.0}, TypeError, "before must be an integer, got float"),
        ({"after": -2}, ValueError, "after must be at least 0, got -2"),
        ({"after": None}, TypeError, "after must be an integer, got NoneType"),
        ({"query": [1]}, TypeError, "query must be a torch.Tensor, got list"),
        (
            {"key": torch.ones(TK, D + 1)},
            ValueError,
            f"key must have the width of query, D = {D}, got shape ({TK}, {D + 1})",
        ),
        (
            {"value": torch.ones(TK + 1, DV)},
            ValueError,
            f"value must have one row for each key, Tk = {TK}, got shape ({TK + 1}, {DV})",
        ),
    ],
)
def test_a_bad_argument_is_named(change, kind, message):
    arguments = {
        "query": torch.ones(TQ, D),
        "key": torch.ones(TK, D),
        "value": torch.ones(TK, DV),
        "before": 1,
        "after": 1,
    }
    with pytest.raises(kind, match=re.escape(message)):
        attend_window(**{**arguments, **change})
