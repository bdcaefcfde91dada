"""Heads: masks of every shape, the properties of chapter 07, dropout."""

from copy import deepcopy

import pytest
import torch
import twins
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import random
from torch import nn
from torch.autograd.functional import jacobian
from torch.testing import assert_close

from attention_lib import (
    Alibi,
    MultiHeadAttention,
    RelativeBias,
    Rotary,
    Sinusoidal,
    causal,
    merge_heads,
    padding,
    split_heads,
)

# Every dimension is a different prime but the width, their product; rotary positions need an even
# width of a head.
BATCH, HEADS, HEAD_WIDTH, TQ, TK = 2, 3, 5, 7, 11
WIDTH, EVEN = HEADS * HEAD_WIDTH, 4
POSITIONS = [None, Rotary(EVEN), Alibi(HEADS), RelativeBias(HEADS, 2)]
POSITION = pytest.mark.parametrize("position", POSITIONS, ids=lambda p: type(p).__name__)


def _attention(generator, width=WIDTH, heads=HEADS, **named) -> MultiHeadAttention:
    """A module with random parameters in float64."""
    # A copy, because filling changes the module and its position.
    return twins.filled(deepcopy(MultiHeadAttention(width, heads, **named)), generator)


# --- masks of every shape ------------------------------------------------------------------------


def test_a_mask_of_one_matrix_for_each_sequence_is_not_one_for_each_head(generator):
    batch = HEADS  # the sizes that hide the mistake
    module, x = _attention(generator), random(generator, batch, TQ, WIDTH)
    table = torch.rand(batch, TQ, TQ, generator=generator) > 0.4
    output, weights = module(x, mask=table), module.attention_weights(x, mask=table)
    assert torch.equal(weights > 0, table[:, None].expand(batch, HEADS, TQ, TQ))
    for b in range(batch):
        assert_close(output[b], module(x[b], mask=table[b]))


def test_a_mask_with_a_head_dimension_is_one_for_each_head(generator):
    module, x = _attention(generator), random(generator, BATCH, TQ, WIDTH)
    table = torch.rand(BATCH, HEADS, TQ, TQ, generator=generator) > 0.4
    assert torch.equal(module.attention_weights(x, mask=table) > 0, table)
    one_for_all = torch.rand(1, HEADS, TQ, TQ, generator=generator) > 0.4
    weights = module.attention_weights(x, mask=one_for_all)
    assert torch.equal(weights > 0, one_for_all.expand(BATCH, -1, -1, -1))


@pytest.mark.parametrize("shape", [(), (TQ,), (TQ, 1), (TQ, TQ), (BATCH, 1, TQ), (1, TQ, 1)])
def test_a_mask_broadcasts_over_what_it_leaves_out(shape, generator):
    module, x = _attention(generator), random(generator, BATCH, TQ, WIDTH)
    table = torch.rand(shape, generator=generator) > 0.4
    assert_close(module(x, mask=table), module(x, mask=table.expand(BATCH, TQ, TQ)))


@pytest.mark.parametrize("lengths", [[4, 7], [[4], [7]]], ids=["(B,)", "(B, 1)"])
def test_a_rule_may_have_one_matrix_for_each_sequence_with_or_without_heads(lengths, generator):
    module, x = _attention(generator), random(generator, BATCH, TQ, WIDTH)
    table = (padding(torch.tensor([4, 7])) & causal()).dense(TQ, TQ)
    expected = module(x, mask=table)
    assert_close(module(x, mask=padding(torch.tensor(lengths)) & causal()), expected)


def test_a_rule_for_a_sequence_without_a_batch_may_differ_between_heads(generator):
    module, x = _attention(generator), random(generator, TQ, WIDTH)
    weights = module.attention_weights(x, mask=padding(torch.tensor([1, 4, 6])))
    assert (weights > 0).sum(dim=-1)[:, 0].tolist() == [1, 4, 6]


def test_a_batch_of_memories_for_one_query_is_a_batch(generator):
    batch = HEADS
    module, query = _attention(generator), random(generator, TQ, WIDTH)
    memory = random(generator, batch, TK, WIDTH)
    table = torch.rand(batch, TQ, TK, generator=generator) > 0.4
    output = module(query, memory, mask=table)
    for b in range(batch):
        assert_close(output[b], module(query, memory[b], mask=table[b]))


def test_a_row_that_allows_nothing_gives_the_output_bias_and_a_finite_gradient(generator):
    module = _attention(generator)
    x = random(generator, BATCH, TQ, WIDTH).requires_grad_()
    table = torch.ones(BATCH, TQ, TQ, dtype=torch.bool)
    table[0, 1] = False
    output = module(x, mask=table)
    output.square().sum().backward()
    assert torch.equal(output[0, 1], module.output_proj.bias)
    assert module.attention_weights(x, mask=table)[0, :, 1].count_nonzero() == 0
    gradients = [x.grad, *(p.grad for p in module.parameters())]
    assert all(g.isfinite().all() for g in gradients)
    assert all(g.any() for g in gradients)


# --- weights ---


@POSITION
@pytest.mark.parametrize("kv_heads", [1, HEADS])
def test_the_weights_are_those_that_forward_uses(kv_heads, position, generator):
    width = HEADS * EVEN
    module = _attention(generator, width, kv_heads=kv_heads, position=position)
    x = random(generator, BATCH, TQ, width)
    weights = module.attention_weights(x, mask=causal())  # (B, H, T, T)
    value = split_heads(module.value_proj(x), kv_heads)  # one of them serves all heads, or one each
    assert_close(module.output_proj(merge_heads(weights @ value)), module(x, mask=causal()))


# --- properties ----------------------------------------------------------------------------------


@given(order=st.permutations(range(TQ)))
@settings(max_examples=20)
def test_without_positions_attention_follows_a_permutation(order):
    generator = torch.Generator().manual_seed(1)
    module, x = _attention(generator), random(generator, BATCH, TQ, WIDTH)
    assert_close(module(x[:, order]), module(x)[:, order])


@pytest.mark.parametrize("position", POSITIONS[1:], ids=lambda p: type(p).__name__)
def test_with_positions_the_order_matters(position, generator):
    module = _attention(generator, HEADS * EVEN, position=position)
    x = random(generator, BATCH, TQ, HEADS * EVEN)
    order = [1, 0, *range(2, TQ)]
    assert (module(x[:, order]) - module(x)[:, order]).abs().max() > 0.01


def test_with_positions_added_to_the_input_the_order_matters(generator):
    module, add = _attention(generator, 12), Sinusoidal(12)
    x, order = random(generator, BATCH, TQ, 12), [1, 0, *range(2, TQ)]
    assert (module(add(x[:, order])) - module(add(x))[:, order]).abs().max() > 0.01


@POSITION
@pytest.mark.parametrize("position_changed", range(1, TQ))
def test_changing_the_future_leaves_the_past_bit_equal(position_changed, position, generator):
    module = _attention(generator, HEADS * EVEN, position=position)
    x, other = random(generator, 2, BATCH, TQ, HEADS * EVEN)
    changed = torch.cat([x[:, :position_changed], other[:, position_changed:]], dim=1)
    before, after = module(x, mask=causal()), module(changed, mask=causal())
    assert torch.equal(before[:, :position_changed], after[:, :position_changed])
    assert not torch.equal(before[:, position_changed:], after[:, position_changed:])


@POSITION
def test_the_causal_jacobian_is_lower_triangular(position, generator):
    module = _attention(generator, HEADS * EVEN, position=position)
    x = random(generator, TQ, HEADS * EVEN)
    found = jacobian(lambda x: module(x, mask=causal()), x).abs().amax(dim=(1, 3))
    assert torch.equal(found > 0, torch.ones(TQ, TQ, dtype=torch.bool).tril())


@POSITION
def test_padded_equals_unpadded(position, generator):
    module = _attention(generator, HEADS * EVEN, position=position)
    x, sizes = random(generator, BATCH, TQ, HEADS * EVEN), [4, 6]
    padded = module(x, mask=padding(torch.tensor(sizes)))
    for b, size in enumerate(sizes):
        assert_close(padded[b, :size], module(x[b, :size]))


def test_gradcheck(generator):
    module = _attention(generator, 6, 3, kv_heads=1, position=Rotary(2))
    x = random(generator, 2, 3, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module(x, mask=causal()), x)


def test_no_argument_is_changed(generator):
    module, query = _attention(generator), random(generator, BATCH, TQ, WIDTH)
    memory, table = random(generator, BATCH, TK, WIDTH), torch.ones(BATCH, TQ, TK).bool()
    copies = query.clone(), memory.clone(), table.clone()
    module(query, memory, mask=table)
    assert all(map(torch.equal, (query, memory, table), copies))


# --- dropout -------------------------------------------------------------------------------------


def _transparent(dropout: float) -> MultiHeadAttention:
    """One head that, given the identity matrix, returns its weights."""
    module = MultiHeadAttention(TQ, 1, bias=False, dropout=dropout)
    nn.init.eye_(module.value_proj.weight)
    nn.init.eye_(module.output_proj.weight)
    return module


def test_in_training_each_weight_is_dropped_or_grows():
    module, x = _transparent(0.25), torch.eye(TQ)
    weights = module.attention_weights(x)
    outputs = torch.stack([module(x) for _ in range(200)])
    kept = outputs > 0
    assert_close(outputs[kept], (weights / 0.75).expand_as(outputs)[kept])
    assert (outputs[~kept] == 0).all()
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.02)


def test_outside_training_nothing_is_dropped():
    module, x = _transparent(0.25).eval(), torch.eye(TQ)
    assert_close(module(x), module.attention_weights(x)[0])
    assert torch.equal(module(x), module(x))


def test_without_dropout_training_changes_nothing(generator):
    module, x = _attention(generator), random(generator, BATCH, TQ, WIDTH)
    assert torch.equal(module(x), module.eval()(x))
