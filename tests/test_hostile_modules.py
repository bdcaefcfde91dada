"""Hostile inputs of masks, positions, heads and blocks that are answered, as documented."""

import math
from copy import deepcopy
from functools import partial

import pytest
import torch
import twins
from oracle import random
from torch.testing import assert_close

import attention_lib as lib
from attention_lib import KVCache, MultiHeadAttention, causal, padding, sliding_window

pytestmark = pytest.mark.hostile

BATCH, HEADS, HEAD_WIDTH, LENGTH = 2, 3, 4, 7
WIDTH = HEADS * HEAD_WIDTH
DEVICES = ["meta", *(["cuda"] if torch.cuda.is_available() else [])]
POSITIONS = [None, lib.Rotary(HEAD_WIDTH), lib.Alibi(HEADS), lib.RelativeBias(HEADS, 2)]
POSITION = pytest.mark.parametrize("position", POSITIONS, ids=lambda p: type(p).__name__)
RULES = [
    causal(),
    sliding_window(2, 1),
    padding(torch.tensor([3, 5])),
    lib.prefix(torch.tensor([2, 0])),
    lib.document(torch.tensor([[0, 0, 1, 1, 1, 2, 2], [0, 0, 0, 0, 0, 0, 0]])),
]
RULE = pytest.mark.parametrize("mask", [None, *RULES], ids=lambda m: m.name if m else "open")


def _attention(position=None, **named) -> MultiHeadAttention:
    module = MultiHeadAttention(WIDTH, HEADS, position=deepcopy(position), **named)
    return twins.filled(module, torch.Generator().manual_seed(3))


def _encoder(attention=None) -> lib.EncoderBlock:
    network = lib.GatedFeedForward(WIDTH, 5)
    residual = partial(lib.PreNorm, WIDTH)
    return lib.EncoderBlock(attention or MultiHeadAttention(WIDTH, HEADS), network, residual)


def _decoder() -> lib.DecoderBlock:
    attention = [MultiHeadAttention(WIDTH, HEADS) for _ in range(2)]
    return lib.DecoderBlock(*attention, lib.FeedForward(WIDTH, 5), partial(lib.PostNorm, WIDTH))


# --- empty and tiny ------------------------------------------------------------------------------


@POSITION
@pytest.mark.parametrize("shape", [(0,), (BATCH, 0), (0, LENGTH), (0, 0)], ids=str)
def test_nothing_in_nothing_out(shape, position):
    module, x = _attention(position), torch.ones(*shape, WIDTH, dtype=torch.float64)
    output = module(x, mask=causal())
    assert output.shape == x.shape
    output.sum().backward()
    weights = module.attention_weights(x, mask=causal())
    assert weights.shape == (*shape[:-1], HEADS, shape[-1], shape[-1])
    assert _encoder().double()(x).shape == x.shape


def test_a_memory_of_nothing_gives_the_output_bias(generator):
    module, x = _attention(), random(generator, BATCH, LENGTH, WIDTH)
    output = module(x, x[:, :0])
    assert torch.equal(output, module.output_proj.bias.expand_as(output))
    assert _decoder().double()(x, x[:, :0]).isfinite().all()


def test_a_query_of_nothing_gives_no_rows(generator):
    x = random(generator, BATCH, LENGTH, WIDTH)
    assert _attention()(x[:, :0], x).shape == (BATCH, 0, WIDTH)


@POSITION
@pytest.mark.parametrize("mask", RULES[:4], ids=lambda m: m.name)
def test_one_token_returns_its_own_value(mask, position, generator):
    module, x = _attention(position), random(generator, BATCH, 1, WIDTH)
    assert_close(module(x, mask=mask), module.output_proj(module.value_proj(x)))
    assert (module.attention_weights(x, mask=mask) == 1).all()


def test_a_chunk_of_nothing_leaves_a_cache_as_it_is(generator):
    module, cache, x = _attention(), KVCache(), random(generator, BATCH, LENGTH, WIDTH)
    module(x[:, :0], mask=causal(), cache=cache)
    assert len(cache) == 0
    module(x, mask=causal(), cache=cache)
    assert module(x[:, :0], mask=causal(), cache=cache).shape == (BATCH, 0, WIDTH)
    assert len(cache) == LENGTH


def test_tables_of_nothing():
    assert lib.sinusoidal_table(0, 4).shape == (0, 4)
    for position in (lib.Alibi(HEADS), lib.RelativeBias(HEADS, 2)):
        assert position.bias(0, 5).shape == (HEADS, 0, 5)
        assert position.bias(5, 0).shape == (HEADS, 5, 0)
    x = torch.ones(0, 4)
    assert lib.Rotary(4).rotate(x, x)[0].shape == (0, 4)
    assert lib.Learned(3, 4)(x, 3).shape == (0, 4)  # no rows after the last


@pytest.mark.parametrize("mask", RULES, ids=lambda m: m.name)
def test_masks_of_nothing(mask):
    for queries, keys in ((0, 0), (0, 3)):
        assert mask.dense(queries, keys).shape[-2:] == (queries, keys)


# --- bad numbers in hidden places ----------------------------------------------------------------


@POSITION
def test_huge_numbers_in_padding_do_not_count(position, generator):
    module, x = _attention(position), random(generator, BATCH, LENGTH, WIDTH)
    mask, changed = padding(torch.tensor([4, 5])), x.clone()
    changed[0, 4:] = 1e30
    output = module(changed, mask=mask)
    assert_close(output[0, :4], module(x, mask=mask)[0, :4])


def test_a_nan_in_padding_reaches_its_own_sequence_only(generator):
    module, x = _attention(), random(generator, BATCH, LENGTH, WIDTH)
    x[0, 6] = math.nan
    output = module(x, mask=padding(torch.tensor([4, 5])))
    assert output[0].isnan().all()
    assert output[1].isfinite().all()


def test_a_nan_reaches_its_own_position_only_in_a_network(generator):
    x = random(generator, BATCH, LENGTH, WIDTH, dtype=torch.float32)
    x[0, 2, 3] = math.nan
    for network in (lib.FeedForward(WIDTH, 5), lib.GatedFeedForward(WIDTH, 5)):
        found = network(x).isnan().all(dim=-1)
        assert found.nonzero().tolist() == [[0, 2]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_large_scores_in_half_precision_stay_finite(dtype, generator):
    module = _attention().to(dtype)
    x = random(generator, BATCH, LENGTH, WIDTH, dtype=dtype, scale=100)
    output = module(x, mask=causal())
    assert output.isfinite().all()
    exact = module.double()(x.double(), mask=causal())
    assert (output.double() - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rotary_is_rounded_only_once(dtype, generator):
    x = random(generator, LENGTH, WIDTH, dtype=dtype)
    rotary = lib.Rotary(WIDTH)
    expected = rotary.rotate(x.float(), x.float(), 5)[0].to(dtype)
    assert torch.equal(rotary.rotate(x, x, 5)[0], expected)


# --- layout, gradients, devices ------------------------------------------------------------------


@POSITION
@RULE
def test_memory_layout_does_not_matter(mask, position, generator):
    module = _attention(position)
    x = random(generator, WIDTH, 2 * LENGTH, BATCH).permute(2, 1, 0)[:, ::2]
    assert not x.is_contiguous()
    assert_close(module(x, mask=mask), module(x.contiguous(), mask=mask))
    expanded = x[:1].expand(BATCH, -1, -1)
    assert_close(module(expanded, mask=mask), module(expanded.contiguous(), mask=mask))


@POSITION
def test_automatic_mixed_precision_is_taken(position, generator):
    module = _attention(position).float()
    x = random(generator, BATCH, LENGTH, WIDTH, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = module(x, mask=causal())
        weights = module.attention_weights(x, mask=causal())
    assert output.dtype == weights.dtype == torch.bfloat16
    assert_close(output.float(), module(x, mask=causal()), atol=0.05, rtol=0.05)


def test_many_batch_dimensions_are_taken(generator):
    module, x = _attention(lib.Alibi(HEADS)), random(generator, 2, 3, 5, WIDTH)
    table = torch.rand(3, 5, 5, generator=generator) > 0.4
    output = module(x, mask=table)
    for a in range(2):
        assert_close(output[a], module(x[a], mask=table))


def test_frozen_parameters_get_no_gradient_and_stop_none(generator):
    module = _attention().requires_grad_(False)
    x = random(generator, BATCH, LENGTH, WIDTH).requires_grad_()
    module(x, mask=causal()).sum().backward()
    assert x.grad.any()
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("device", DEVICES)
@POSITION
def test_modules_stay_on_their_device(position, device):
    x = torch.ones(BATCH, LENGTH, WIDTH, device=device)
    block = _encoder(MultiHeadAttention(WIDTH, HEADS, position=deepcopy(position))).to(device)
    outputs = [block(x, mask=mask) for mask in (None, *RULES)]
    outputs += [_decoder().to(device)(x, x, mask=causal(), memory_mask=RULES[2])]
    outputs += [block.attention.attention_weights(x, mask=mask) for mask in RULES]
    outputs += [lib.Sinusoidal(WIDTH)(x), lib.Learned(LENGTH, WIDTH).to(device)(x)]
    assert {output.device.type for output in outputs} == {device}


def test_every_integer_type_of_documents_and_prefixes_is_taken():
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        numbers = torch.tensor([0, 1, 1], dtype=dtype)
        assert lib.document(numbers).dense(3, 3).sum().item() == 5
        assert lib.prefix(numbers[1]).dense(3, 3).sum().item() == 6


def test_a_prefix_beyond_the_keys_allows_all_of_them():
    assert lib.prefix(torch.tensor([100])).dense(3, 5).all()
