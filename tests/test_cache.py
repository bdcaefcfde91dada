"""The cache of keys and values: chunk by chunk gives what the whole sequence gives at once."""

from copy import deepcopy
from itertools import pairwise

import pytest
import torch
import twins
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import random
from torch.testing import assert_close

from attention_lib import (
    Alibi,
    KVCache,
    MultiHeadAttention,
    RelativeBias,
    Rotary,
    causal,
    document,
    padding,
    prefix,
    sliding_window,
)

BATCH, HEADS, HEAD_WIDTH, LENGTH = 2, 3, 4, 11
WIDTH = HEADS * HEAD_WIDTH
POSITIONS = {
    "none": None,
    "rotary": Rotary(HEAD_WIDTH),
    "alibi": Alibi(HEADS),
    "relative": RelativeBias(HEADS, 2),
}
MASKS = {
    "causal": causal(),
    "window": sliding_window(3),
    "padding": causal() & padding(torch.tensor([5, 11])),
    "documents": causal() & document(torch.tensor([0] * 4 + [1] * 7)),
}
POSITION = pytest.mark.parametrize("position", POSITIONS)
MASK = pytest.mark.parametrize("mask", MASKS)


def _attention(position=None, **named) -> MultiHeadAttention:
    module = MultiHeadAttention(
        WIDTH, HEADS, position=deepcopy(POSITIONS[position or "none"]), **named
    )
    return twins.filled(module, torch.Generator().manual_seed(7))


def _input(*shape: int) -> torch.Tensor:
    return random(torch.Generator().manual_seed(8), *shape, WIDTH)


@st.composite
def chunks(draw) -> list[int]:
    """Positive sizes that add up to LENGTH."""
    cuts = draw(st.sets(st.integers(1, LENGTH - 1)))
    edges = [0, *sorted(cuts), LENGTH]
    return [end - start for start, end in pairwise(edges)]


@POSITION
@MASK
@given(sizes=chunks())
@settings(max_examples=15)
def test_chunks_with_a_cache_equal_the_whole_sequence(mask, position, sizes):
    module, x = _attention(position), _input(BATCH, LENGTH)
    cache, outputs, weights = KVCache(), [], []
    for chunk in x.split(sizes, dim=1):
        known = module.attention_weights(chunk, mask=MASKS[mask], cache=cache)
        weights.append(torch.nn.functional.pad(known, (0, LENGTH - known.shape[-1])))
        outputs.append(module(chunk, mask=MASKS[mask], cache=cache))
    assert len(cache) == LENGTH
    assert_close(torch.cat(outputs, dim=1), module(x, mask=MASKS[mask]))
    assert_close(torch.cat(weights, dim=2), module.attention_weights(x, mask=MASKS[mask]))


@POSITION
def test_one_token_at_a_time_with_shared_heads(position):
    module, x = _attention(position, kv_heads=1), _input(BATCH, LENGTH)
    cache = KVCache()
    outputs = [module(token, mask=causal(), cache=cache) for token in x.split(1, dim=1)]
    assert cache.key.shape == cache.value.shape == (BATCH, 1, LENGTH, HEAD_WIDTH)
    assert_close(torch.cat(outputs, dim=1), module(x, mask=causal()))


def test_a_prefix_that_came_in_one_chunk_was_read_in_both_directions():
    module, x, mask = _attention(), _input(BATCH, LENGTH), prefix(torch.tensor([4, 2]))
    cache = KVCache()
    outputs = [module(chunk, mask=mask, cache=cache) for chunk in x.split([4, 7], dim=1)]
    assert_close(torch.cat(outputs, dim=1), module(x, mask=mask))


def test_gradients_flow_through_the_cache():
    module, x = _attention("rotary"), _input(BATCH, LENGTH).requires_grad_()
    cache = KVCache()
    outputs = [module(chunk, mask=causal(), cache=cache) for chunk in x.split(4, dim=1)]
    leaves = [x, *module.parameters()]
    found = torch.autograd.grad(torch.cat(outputs, dim=1).square().sum(), leaves)
    expected = torch.autograd.grad(module(x, mask=causal()).square().sum(), leaves)
    assert_close(found, expected)


def test_a_cache_holds_rotated_keys_and_plain_values():
    module, x, cache = _attention("rotary"), _input(1, 3), KVCache()
    for token in x.split(1, dim=1):
        module(token, cache=cache)
    key = module.key_proj(x).unflatten(-1, (HEADS, HEAD_WIDTH)).transpose(1, 2)
    assert_close(cache.key, module.position.rotate(key, key)[1])
    value = module.value_proj(x).unflatten(-1, (HEADS, HEAD_WIDTH)).transpose(1, 2)
    assert_close(cache.value, value)


def test_looking_at_weights_leaves_the_cache_as_it_is():
    module, cache = _attention(), KVCache()
    module.attention_weights(_input(BATCH, 3), cache=cache)
    assert len(cache) == 0
    module(_input(BATCH, 3), cache=cache)
    key, value = cache.key.clone(), cache.value.clone()
    weights = module.attention_weights(_input(BATCH, 2), cache=cache)
    assert weights.shape == (BATCH, HEADS, 2, 5)
    assert torch.equal(cache.key, key)
    assert torch.equal(cache.value, value)


def test_append_stores_and_extended_does_not():
    cache = KVCache()
    key, value = torch.ones(BATCH, 2, 5), torch.zeros(BATCH, 2, 5)
    assert cache.extended(key, value) == (key, value)
    assert len(cache) == 0
    assert cache.append(key, value) == (key, value)
    longer = cache.extended(key, value)
    assert len(cache) == 2
    assert [x.shape for x in longer] == [(BATCH, 4, 5), (BATCH, 4, 5)]
    returned = cache.append(2 * key, value + 3)
    assert returned == (cache.key, cache.value)
    assert cache.key[0, :, 0].tolist() == [1, 1, 2, 2]
    assert cache.value[0, :, 0].tolist() == [0, 0, 3, 3]


def test_appending_leaves_what_was_read_before_as_it_was():
    cache = KVCache()
    before, _ = cache.append(torch.ones(1, 2, 5), torch.ones(1, 2, 5))
    cache.append(torch.zeros(1, 2, 5), torch.zeros(1, 2, 5))
    assert torch.equal(before, torch.ones(1, 2, 5))


def test_select_takes_rows_in_order_and_leaves_the_cache_as_it_is():
    module, cache = _attention("alibi"), KVCache()
    first, second = _input(3, 5).split([4, 1], dim=1)
    module(first, cache=cache)
    rows = torch.tensor([2, 0, 2, 1])
    chosen = cache.select(rows)
    assert torch.equal(chosen.key, cache.key[rows])
    assert torch.equal(chosen.value, cache.value[rows])
    expected = module(second, cache=cache)[rows]
    assert len(chosen) == 4  # the first cache has grown, this one has not
    assert_close(module(second[rows], cache=chosen), expected)


def test_select_of_an_empty_cache_is_an_empty_cache():
    cache = KVCache()
    chosen = cache.select(torch.tensor([0]))
    assert chosen is not cache
    assert len(chosen) == 0
