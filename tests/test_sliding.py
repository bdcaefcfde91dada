"""The sliding cache: what it keeps, and that it equals attention under a mask of the whole text."""

import re
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
import twins
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_matches, random
from oracle import attend as loop
from torch.testing import assert_close

from attention_lib import (
    Alibi,
    KVCache,
    MultiHeadAttention,
    Rotary,
    attend,
    attend_explicit,
    causal,
    document,
    padding,
    prefix,
    sliding_window,
)
from attention_lib.efficient.sliding import SlidingCache, window_with_sinks
from attention_lib.models.gpt import GPTConfig, llama

BATCH, HEADS, HEAD_WIDTH, LENGTH = 2, 3, 4, 13
WIDTH = HEADS * HEAD_WIDTH
MASKS = {
    "causal": causal(),
    "none": None,
    "padding": causal() & padding(torch.tensor([9, 13])),
    "documents": causal() & document(torch.tensor([0] * 6 + [1] * 7)),
    "narrow": sliding_window(2),
}
SIZES = [(1, 0), (1, 2), (3, 0), (4, 1), (5, 3), (13, 0), (12, 1), (20, 20)]
SIZE = pytest.mark.parametrize(("window", "sinks"), SIZES)


def _attention(position=None, **named) -> MultiHeadAttention:
    module = MultiHeadAttention(WIDTH, HEADS, position=deepcopy(position), **named)
    return twins.filled(module, torch.Generator().manual_seed(7))


def _numbers(*shape: int, seed: int = 8) -> torch.Tensor:
    return random(torch.Generator().manual_seed(seed), *shape)


def _counted(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys that are their own positions, and values that are 100 more."""
    key = torch.arange(start, stop, dtype=torch.float64)[None, :, None]
    return key, key + 100


@st.composite
def chunks(draw) -> list[int]:
    """Sizes that add up to LENGTH, some of them perhaps 0."""
    cuts = draw(st.lists(st.integers(0, LENGTH), max_size=6))
    edges = [0, *sorted(cuts), LENGTH]
    return [end - start for start, end in pairwise(edges)]


# --- the mask ------------------------------------------------------------------------------------


def test_the_mask_on_paper():
    mask = window_with_sinks(2, 1)
    assert mask.dense(5, 5).int().tolist() == [
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
        [1, 0, 1, 1, 1],
        [1, 0, 0, 1, 1],
    ]
    assert (causal() & mask).dense(2, 5).int().tolist() == [[1, 0, 1, 1, 0], [1, 0, 0, 1, 1]]
    assert mask.name == "window(2)+sinks(1)"


def test_without_sinks_it_is_the_sliding_window():
    ours, theirs = causal() & window_with_sinks(4), sliding_window(3)
    assert torch.equal(ours.dense(9, 9), theirs.dense(9, 9))


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize("make", [window_with_sinks, SlidingCache])
def test_window_and_sinks_are_counts(make):
    for arguments, error, message in (
        ((0, 1), ValueError, "window must be at least 1, got 0"),
        ((2, -1), ValueError, "sinks must be at least 0, got -1"),
        ((2.0, 1), TypeError, "window must be an integer, got float"),
        ((2, 1.0), TypeError, "sinks must be an integer, got float"),
    ):
        with pytest.raises(error, match=f"^{message}$"):
            make(*arguments)
    assert SlidingCache(1).sinks == 0


# --- what is kept --------------------------------------------------------------------------------


def test_on_paper_one_by_one():
    cache = SlidingCache(3, 2)
    returned, kept = [], []
    for position in range(8):
        key, value = cache.append(*_counted(position, position + 1))
        assert torch.equal(value, key + 100)
        assert torch.equal(cache.value, cache.key + 100)
        returned.append(key[0, :, 0].int().tolist())
        kept.append(cache.key[0, :, 0].int().tolist())
        assert len(cache) == position + 1
    assert returned == kept
    assert kept[3:] == [
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4],
        [0, 1, 3, 4, 5],
        [0, 1, 4, 5, 6],
        [0, 1, 5, 6, 7],
    ]


def test_on_paper_in_chunks():
    cache = SlidingCache(3, 1)
    found = []
    for start, stop in ((0, 2), (2, 7), (7, 8), (8, 8), (8, 10)):
        cache.visible(causal(), stop - start)
        key, value = cache.append(*_counted(start, stop))
        assert torch.equal(value, key + 100)
        found.append((key[0, :, 0].int().tolist(), cache.key[0, :, 0].int().tolist()))
    assert found == [
        ([0, 1], [0, 1]),
        ([0, 1, 2, 3, 4, 5, 6], [0, 4, 5, 6]),
        ([0, 5, 6, 7], [0, 5, 6, 7]),
        ([0, 5, 6, 7], [0, 5, 6, 7]),
        ([0, 6, 7, 8, 9], [0, 7, 8, 9]),
    ]


@SIZE
@given(sizes=chunks())
@settings(max_examples=10)
def test_it_holds_sinks_and_window_whatever_the_chunks(window, sinks, sizes):
    cache, position = SlidingCache(window, sinks), 0
    for size in sizes:
        cache.visible(None, size)
        returned, _ = cache.append(*_counted(position, position + size))
        position += size
        assert len(cache) == position
        held = {*range(min(sinks, position)), *range(max(0, position - window), position)}
        assert cache.key[0, :, 0].int().tolist() == sorted(held)
        assert held <= set(returned[0, :, 0].int().tolist())
        assert cache.nbytes == 2 * 8 * len(held)


def test_memory_stays_and_a_long_chunk_is_not_kept_alive():
    cache = SlidingCache(3, 2)
    cache.visible(None, 50)
    cache.append(*_counted(0, 50))
    assert cache.key.untyped_storage().nbytes() == 5 * 8
    assert cache.value.untyped_storage().nbytes() == 5 * 8
    for position in range(50, 60):
        cache.append(*_counted(position, position + 1))
        assert cache.nbytes == 2 * 5 * 8
        assert cache.key.untyped_storage().nbytes() == 5 * 8


def test_copies_are_counted():
    row = 2 * 8  # bytes of one position, key and value
    cache = SlidingCache(3, 1)
    for position in range(3):
        cache.append(*_counted(position, position + 1))
    assert cache.copied == (1 + 2) * row
    for position in range(3, 9):
        cache.append(*_counted(position, position + 1))
    assert cache.copied == (1 + 2 + 6 * 3) * row
    cache.visible(None, 5)
    cache.append(*_counted(9, 14))  # three old ones, then the four that stay
    assert cache.copied == (1 + 2 + 6 * 3 + 3 + 4) * row


def test_extended_stores_nothing():
    cache = SlidingCache(2, 1)
    for position in range(5):
        cache.append(*_counted(position, position + 1))
    key, value = cache.extended(*_counted(5, 6))
    assert key[0, :, 0].tolist() == [0, 4, 5]
    assert torch.equal(value, key + 100)
    assert len(cache) == 5
    assert cache.key[0, :, 0].tolist() == [0, 3, 4]


def test_select_keeps_what_was_seen():
    cache = SlidingCache(2, 1)
    for position in range(5):
        key = torch.tensor([position, 10.0 + position])[:, None, None]
        cache.append(key, -key)
    chosen = cache.select(torch.tensor([1]))
    assert (chosen.window, chosen.sinks, len(chosen)) == (2, 1, 5)
    key, value = chosen.append(torch.tensor([[[7.0]]]), torch.tensor([[[8.0]]]))
    assert key.flatten().tolist() == [10, 14, 7]
    assert value.flatten().tolist() == [-10, -14, 8]
    assert (len(chosen), len(cache)) == (6, 5)
    assert cache.key[0].flatten().tolist() == [0, 3, 4]


@pytest.mark.hostile
def test_truncate_is_refused_once_something_was_dropped():
    cache = SlidingCache(2, 1)
    for position in range(3):
        cache.append(*_counted(position, position + 1))
    cache.truncate(2)
    cache.append(*_counted(2, 3))
    cache.append(*_counted(3, 4))
    message = "length must be 4, because 1 dropped positions would be needed again, got 3"
    with pytest.raises(ValueError, match=f"^{message}$"):
        cache.truncate(3)
    cache.truncate(4)
    assert len(cache) == 4
    assert cache.key[0, :, 0].tolist() == [0, 2, 3]


# --- in attention --------------------------------------------------------------------------------


@SIZE
@pytest.mark.parametrize("mask", MASKS)
@given(sizes=chunks())
@settings(max_examples=8)
def test_chunks_equal_the_whole_text_under_the_mask(mask, window, sinks, sizes):
    module, x = _attention(Rotary(HEAD_WIDTH), kv_heads=1), _numbers(BATCH, LENGTH, WIDTH)
    cache, outputs, given_mask = SlidingCache(window, sinks), [], MASKS[mask]
    for chunk in x.split(sizes, dim=1):
        seen = cache.visible(given_mask, chunk.shape[1])
        outputs.append(module(chunk, mask=seen, cache=cache))
    rule = window_with_sinks(window, sinks)
    if given_mask is None:
        # No query of a chunk sees a later chunk, but it sees the whole of its own.
        ends = torch.tensor(sizes).cumsum(0).repeat_interleave(torch.tensor(sizes))
        inside = torch.arange(LENGTH) < ends[:, None]
        whole = rule.dense(LENGTH, LENGTH) & inside
    else:
        whole = given_mask & rule
    assert_close(torch.cat(outputs, dim=1), module(x, mask=whole))


@SIZE
@given(sizes=chunks())
@settings(max_examples=8)
def test_a_mask_that_is_a_tensor_over_all_positions(window, sinks, sizes):
    module, x = _attention(), _numbers(BATCH, LENGTH, WIDTH)
    tensor = torch.rand(BATCH, LENGTH, LENGTH, generator=torch.Generator().manual_seed(2)) < 0.7
    tensor &= causal().dense(LENGTH, LENGTH)
    cache, outputs, start = SlidingCache(window, sinks), [], 0
    for chunk in x.split(sizes, dim=1):
        end = start + chunk.shape[1]
        seen = cache.visible(tensor[:, start:end, :end], end - start)
        outputs.append(module(chunk, mask=seen, cache=cache))
        start = end
    whole = tensor & window_with_sinks(window, sinks).dense(LENGTH, LENGTH)
    assert_close(torch.cat(outputs, dim=1), module(x, mask=whole))


@pytest.mark.oracle
@SIZE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_token_at_a_time_against_the_loop_with_gradients(window, sinks, dtype):
    shape = (BATCH, HEADS, 7, 5)
    inputs = [_numbers(*shape, seed=seed).to(dtype) for seed in (1, 2, 3)]
    mask = causal() & window_with_sinks(window, sinks)
    dense = mask.dense(7, 7)

    def ours(query, key, value):
        cache, outputs = SlidingCache(window, sinks), []
        for q, k, v in zip(*(x.split(1, dim=-2) for x in (query, key, value)), strict=True):
            outputs.append(attend(q, *cache.append(k, v), causal()))
        return torch.cat(outputs, dim=-2)

    def exact(query, key, value):
        pairs = zip(*(x.flatten(0, 1) for x in (query, key, value)), strict=True)
        found = [loop(q, k, v, mask=dense) for q, k, v in pairs]
        return torch.stack(found).view(shape)

    assert_matches(ours, lambda *x: attend_explicit(*x, mask), exact, inputs)


@SIZE
def test_one_query_at_a_time_needs_no_mask(window, sinks):
    module, x = _attention(Rotary(HEAD_WIDTH)), _numbers(BATCH, LENGTH, WIDTH)
    cache = SlidingCache(window, sinks)
    for index, token in enumerate(x.split(1, dim=1)):
        assert cache.visible(None, 1) is None
        assert cache.visible(causal(), 1) is causal()
        output = module(token, mask=causal(), cache=cache)
        whole = causal() & window_with_sinks(window, sinks)
        assert_close(output, module(x[:, : index + 1], mask=whole)[:, -1:])


def test_a_model_writes_on_as_under_the_mask():
    torch.manual_seed(5)
    model = llama(GPTConfig(tokens=13, length=32, width=12, layers=3, heads=3, kv_heads=1))
    model.double().requires_grad_(False)
    tokens = torch.randint(13, (BATCH, LENGTH))
    caches = [SlidingCache(3, 2) for _ in model.blocks]
    found = [model.states(token, caches=caches) for token in tokens.split(1, dim=1)]
    x, mask = model.embedding(tokens), causal() & window_with_sinks(3, 2)
    for block in model.blocks:
        x = block(x, mask=mask)
    assert_close(torch.cat(found, dim=1), model.norm(x))


def test_positions_go_on_and_rotary_distances_are_those_of_the_text():
    module, x = _attention(Rotary(HEAD_WIDTH)), _numbers(1, 6, WIDTH)
    cache = SlidingCache(2, 1)
    for token in x.split(1, dim=1):
        module(token, mask=causal(), cache=cache)
    key = module.key_proj(x).unflatten(-1, (HEADS, HEAD_WIDTH)).transpose(1, 2)
    turned = module.position.rotate(key, key)[1]
    assert_close(cache.key, turned[:, :, [0, 4, 5]])


def test_the_mask_for_the_kept_is_made_once_only():
    cache = SlidingCache(2, 1)
    cache.visible(causal(), 4)
    cache.append(*_counted(0, 4))
    mask = cache.visible(causal(), 3)
    assert mask is not causal()
    assert cache.visible(mask, 3) is mask
    assert mask.name == "causal & window(2)+sinks(1)"
    # Kept: 0 and 3, then the new 4, 5, 6.
    assert mask.dense(3, 5).int().tolist() == [[1, 1, 1, 0, 0], [1, 0, 1, 1, 0], [1, 0, 0, 1, 1]]
    assert cache.visible(None, 3).name == "window(2)+sinks(1)"
    tensor = cache.visible(causal().dense(3, 7), 3)
    assert torch.equal(tensor, mask.dense(3, 5))
    assert cache.visible(tensor, 3) is tensor


@pytest.mark.parametrize("new", [1, 2, 3])
def test_nothing_is_masked_while_all_fits(new):
    cache, mask = SlidingCache(2, 1), torch.ones(new, new, dtype=torch.bool)
    for given_mask in (None, causal(), padding(torch.tensor([1])), mask):
        assert cache.visible(given_mask, new) is given_mask
    assert cache.visible(causal(), 4) is not causal()


def test_gradients_flow_through_what_is_kept():
    module, x = _attention(Rotary(HEAD_WIDTH)), _numbers(BATCH, 6, WIDTH).requires_grad_()
    cache, outputs = SlidingCache(3, 1), []
    for token in x.split(1, dim=1):
        outputs.append(module(token, mask=causal(), cache=cache))
    leaves = [x, *module.parameters()]
    found = torch.autograd.grad(torch.cat(outputs, dim=1).square().sum(), leaves)
    whole = module(x, mask=causal() & window_with_sinks(3, 1))
    assert_close(found, torch.autograd.grad(whole.square().sum(), leaves))


# --- hostile -------------------------------------------------------------------------------------


@pytest.mark.hostile
@pytest.mark.parametrize("method", ["append", "extended"])
def test_a_chunk_past_the_window_without_its_mask_is_refused(method):
    cache = SlidingCache(2, 1)
    getattr(cache, method)(*_counted(0, 3))  # all fit
    cache = SlidingCache(2, 1)
    cache.append(*_counted(0, 2))
    message = (
        "key must come with the mask of visible(mask, 2), because 2 queries in a cache of 3 "
        "positions do not all see the same, got (1, 2, 1) without it"
    )
    for asked in (None, 3):
        if asked:
            cache.visible(causal(), asked)
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            getattr(cache, method)(*_counted(2, 4))
    assert len(cache) == 2
    cache.visible(causal(), 2)
    getattr(cache, method)(*_counted(2, 4))
    if method == "append":  # one mask serves one chunk
        with pytest.raises(ValueError, match=r"visible\(mask, 2\)"):
            cache.append(*_counted(4, 6))


@pytest.mark.hostile
def test_the_first_chunk_needs_its_mask_too_and_one_query_never_does():
    with pytest.raises(ValueError, match=r"visible\(mask, 2\), because 2 queries in a cache of 1 "):
        SlidingCache(1).append(*_counted(0, 2))
    cache = SlidingCache(1)
    cache.visible(causal(), 3)  # asked for, and then not appended
    assert cache.append(*_counted(0, 1))[0].tolist() == [[[0.0]]]
    cache.visible(causal(), 3)
    assert cache.append(*_counted(1, 2))[0].tolist() == [[[1.0]]]


def test_without_a_batch_dimension_positions_are_those_of_the_text():
    module, x = _attention(), _numbers(9, WIDTH)
    for given_mask in (causal() & padding(torch.tensor(7)), prefix(torch.tensor(4))):
        cache, outputs = SlidingCache(3, 1), []
        for chunk in x.split([4, 3, 2]):
            mask = cache.visible(given_mask, len(chunk))
            outputs.append(module(chunk, mask=mask, cache=cache))
        whole = given_mask & window_with_sinks(3, 1)
        assert_close(torch.cat(outputs), module(x, mask=whole))


@pytest.mark.hostile
def test_masks_stay_on_the_device_of_the_input():
    cache = SlidingCache(2, 1)
    for start in (0, 4):
        mask = torch.ones(4, start + 4, dtype=torch.bool, device="meta")
        assert cache.visible(mask, 4).device.type == "meta"
        key, value = (x.to("meta") for x in _counted(start, start + 4))
        assert cache.append(key, value)[0].device.type == "meta"


@pytest.mark.hostile
def test_a_window_longer_than_the_text_is_the_whole_text():
    module, x = _attention(), _numbers(BATCH, 5, WIDTH)
    sliding, plain = SlidingCache(99, 7), KVCache()
    for chunk in x.split(2, dim=1):
        ours = module(chunk, mask=causal(), cache=sliding)
        assert torch.equal(ours, module(chunk, mask=causal(), cache=plain))
    assert torch.equal(sliding.key, plain.key)


@pytest.mark.hostile
def test_a_row_that_may_attend_to_nothing_is_zero():
    module, x = _attention(bias=False), _numbers(BATCH, 6, WIDTH).requires_grad_()
    cache = SlidingCache(2)
    mask = causal() & padding(torch.tensor([1, 6]))  # later queries of row 0 see no key at all
    output = module(x, mask=cache.visible(mask, 6), cache=cache)
    assert torch.equal(output[0, 2:], torch.zeros(4, WIDTH, dtype=x.dtype))
    output.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.hostile
def test_empty_chunks_change_nothing():
    cache = SlidingCache(1)
    assert cache.append(*_counted(0, 0))[0].shape == (1, 0, 1)
    assert len(cache) == 0
    cache.append(*_counted(0, 1))
    cache.append(*_counted(1, 2))
    cache.append(*_counted(2, 2))
    assert len(cache) == 2
    assert cache.key.tolist() == [[[1.0]]]


@pytest.mark.hostile
def test_scores_beyond_the_largest_float16_give_finite_output():
    module = _attention().half()
    x, cache = (200 * _numbers(1, 5, WIDTH)).half(), SlidingCache(2, 1)
    for token in x.split(1, dim=1):
        assert module(token, mask=causal(), cache=cache).isfinite().all()


@pytest.mark.parametrize("size", [1, 3, 4, 11])
def test_a_model_reads_in_chunks_of_any_size_as_under_the_mask(size):
    config = GPTConfig(tokens=11, length=64, width=WIDTH, layers=2, heads=HEADS, hidden=7)
    model = llama(config).double().eval()
    tokens = torch.arange(LENGTH)[None] % 11
    caches = [SlidingCache(3, sinks=1) for _ in model.blocks]
    parts = [model.states(part, caches=caches) for part in tokens.split(size, dim=1)]
    x, mask = model.embedding(tokens), causal() & window_with_sinks(3, 1)
    for block in model.blocks:
        x = block(x, mask=mask)
    assert_close(torch.cat(parts, dim=1), model.norm(x))


def test_the_weights_of_a_module_are_those_of_the_kept_keys():
    module, x = _attention(), _numbers(BATCH, LENGTH, WIDTH)
    cache = SlidingCache(3, sinks=1)
    module(x[:, :8], mask=causal(), cache=cache)
    found = module.attention_weights(x[:, 8:10], mask=causal(), cache=cache)
    whole = module.attention_weights(x[:, :10], mask=causal() & window_with_sinks(3, 1))
    assert_close(found, whole[..., 8:, [0, 6, 7, 8, 9]])


@pytest.mark.hostile
@pytest.mark.parametrize("method", ["forward", "attention_weights"])
def test_a_bias_is_refused_once_keys_were_dropped(method):
    module, x = _attention(Alibi(HEADS)), _numbers(BATCH, 4, WIDTH)
    cache = SlidingCache(3)
    module(x[:, :3], mask=causal(), cache=cache)  # nothing is dropped yet
    message = "cache must keep all 4 positions where a position adds a bias, .* got 3 keys"
    with pytest.raises(ValueError, match=message):
        getattr(module, method)(x[:, 3:], mask=causal(), cache=cache)
