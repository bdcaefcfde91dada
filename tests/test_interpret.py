"""Looking inside: what is captured are the weights, and the model does not notice."""

from functools import partial

import pytest
import torch
import twins
from oracle import random
from torch import nn
from torch.testing import assert_close

from attention_lib import (
    DecoderBlock,
    EncoderBlock,
    FeedForward,
    KVCache,
    MultiHeadAttention,
    PreNorm,
    Rotary,
    causal,
    padding,
)
from attention_lib.interpret import capture_weights

BATCH, HEADS, HEAD_WIDTH, LENGTH, MEMORY_LENGTH = 2, 3, 4, 7, 11
WIDTH = HEADS * HEAD_WIDTH


def _attention(generator, **named) -> MultiHeadAttention:
    return twins.filled(MultiHeadAttention(WIDTH, HEADS, **named), generator)


def _input(generator, length=LENGTH) -> torch.Tensor:
    return random(generator, BATCH, length, WIDTH)


def test_one_module_is_captured_with_mask_and_position(generator):
    module, x = _attention(generator, position=Rotary(HEAD_WIDTH)), _input(generator)
    with capture_weights(module) as found:
        module(x, mask=causal())
    assert list(found) == [""]
    assert len(found[""]) == 1
    assert torch.equal(found[""][0], module.attention_weights(x, mask=causal()))
    assert found[""][0].shape == (BATCH, HEADS, LENGTH, LENGTH)


@pytest.mark.parametrize("by_name", [False, True], ids=["in order", "by name"])
def test_query_key_and_value_are_told_apart(by_name, generator):
    module, query = _attention(generator), _input(generator)
    key, value = (_input(generator, MEMORY_LENGTH) for _ in range(2))
    with capture_weights(module) as found:
        module(query, key=key, value=value) if by_name else module(query, key, value)
    assert torch.equal(found[""][0], module.attention_weights(query, key))


def test_every_call_of_every_module_is_captured_in_order(generator):
    blocks = nn.ModuleList(
        DecoderBlock(
            MultiHeadAttention(WIDTH, HEADS),
            MultiHeadAttention(WIDTH, HEADS),
            FeedForward(WIDTH, 13),
            partial(PreNorm, WIDTH),
        )
        for _ in range(2)
    )
    twins.filled(blocks, generator)
    x, memory = _input(generator), _input(generator, MEMORY_LENGTH)
    hidden = padding(torch.tensor([4, 9]))
    with capture_weights(blocks) as found:
        first = blocks[0](x, memory, mask=causal(), memory_mask=hidden)
        blocks[0](2 * x, memory)
        blocks[1](first, memory)
    names = ["0.attention", "0.cross_attention", "1.attention", "1.cross_attention"]
    assert list(found) == names
    assert [len(found[name]) for name in names] == [2, 2, 1, 1]
    normed = blocks[0].attention_residual.norm(x)
    expected = blocks[0].attention.attention_weights(normed, mask=causal())
    assert_close(found["0.attention"][0], expected)
    assert found["0.cross_attention"][0].shape == (BATCH, HEADS, LENGTH, MEMORY_LENGTH)
    assert found["0.cross_attention"][0][0, ..., 4:].count_nonzero() == 0
    assert not torch.equal(found["0.attention"][0], found["0.attention"][1])


def test_the_output_does_not_change_and_no_gradient_is_kept(generator):
    module, x = _attention(generator), _input(generator)
    expected = module(x)
    with capture_weights(module) as found:
        output = module(x)
    assert torch.equal(output, expected)
    assert not found[""][0].requires_grad
    assert output.requires_grad


def test_a_cache_is_read_and_not_extended_twice(generator):
    block = EncoderBlock(
        _attention(generator), FeedForward(WIDTH, 13), partial(PreNorm, WIDTH)
    ).double()
    x, cache = _input(generator), KVCache()
    with capture_weights(block) as found:
        for part in x.split([4, 3], dim=1):
            block(part, mask=causal(), cache=cache)
    assert len(cache) == LENGTH
    with capture_weights(block) as whole:
        block(x, mask=causal())
    first, second = found["attention"]
    assert_close(second, whole["attention"][0][:, :, 4:])
    assert_close(first, whole["attention"][0][:, :, :4, :4])


def test_weights_are_those_before_dropout(generator):
    module, x = _attention(generator, dropout=0.5), _input(generator)
    with capture_weights(module) as found:
        module.train()(x)
    assert_close(found[""][0].sum(dim=-1), torch.ones(BATCH, HEADS, LENGTH).double())


@pytest.mark.parametrize("fails", [False, True], ids=["", "after an error"])
def test_nothing_is_captured_afterwards(fails, generator):
    module, x = _attention(generator), _input(generator)
    if fails:
        with pytest.raises(ZeroDivisionError), capture_weights(module) as found:
            1 / 0  # noqa: B018
    else:
        with capture_weights(module) as found:
            pass
    module(x)
    assert found == {"": []}
    assert not module._forward_pre_hooks


def test_a_model_without_attention_has_no_weights():
    with capture_weights(nn.Linear(2, 2)) as found:
        pass
    assert found == {}
