"""Heads: by hand, against a loop and PyTorch with all gradients, masks of each shape, the cache."""

import oracle_layers
import pytest
import torch
import twins
from hypothesis import given
from hypothesis import strategies as st
from oracle import DTYPES, assert_matches, random
from torch import nn
from torch.testing import assert_close

from attention_lib import (
    Alibi,
    MultiHeadAttention,
    RelativeBias,
    Rotary,
    causal,
    merge_heads,
    padding,
    sliding_window,
    split_heads,
)

# Every dimension is a different prime but the width, their product, and the memory's width.
BATCH, HEADS, HEAD_WIDTH, TQ, TK, MEMORY = 2, 3, 5, 7, 11, 13
WIDTH = HEADS * HEAD_WIDTH

DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
TABLE = torch.rand(BATCH, TQ, TQ, generator=torch.Generator().manual_seed(5)) > 0.4
TABLE[..., 0] = True  # PyTorch's module answers NaN for a row that allows nothing
MASKS = {
    "open": None,
    "causal": causal(),
    "padding": padding(torch.tensor([4, 7])),
    "window": sliding_window(2),
    "causal and padding": causal() & padding(torch.tensor([3, 5])),
    "table": TABLE,
}


def _dense(mask, queries=TQ, keys=TQ):
    if mask is None:
        return None
    dense = mask if isinstance(mask, torch.Tensor) else mask.dense(queries, keys)
    return dense.expand(BATCH, queries, keys)


def _attention(generator, width=WIDTH, heads=HEADS, **named) -> MultiHeadAttention:
    """A module with random parameters in float64."""
    return twins.filled(MultiHeadAttention(width, heads, **named), generator)


# --- split and merge -----------------------------------------------------------------------------


def test_heads_are_neighbouring_features_on_paper():
    x = torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]])  # three positions, width 4
    expected = [[[0, 1], [4, 5], [8, 9]], [[2, 3], [6, 7], [10, 11]]]
    assert split_heads(x, 2).tolist() == expected
    assert torch.equal(merge_heads(torch.tensor(expected).float()), x)


def test_a_view_without_the_transpose_mixes_positions():
    x = torch.arange(12.0).reshape(3, 4)
    viewed = x.view(2, 3, 2)
    assert viewed.shape == split_heads(x, 2).shape
    assert not torch.equal(viewed, split_heads(x, 2))
    assert viewed[0, 1].tolist() == [2, 3]  # features of position 0 pass for position 1


@given(st.integers(0, 2), st.integers(1, 4), st.integers(1, 5), st.integers(0, 6))
def test_merge_undoes_split(leading, heads, head_width, length):
    shape = (*(2, 3)[:leading], length, heads * head_width)
    x = torch.randn(shape)
    split = split_heads(x, heads)
    assert split.shape == (*shape[:-2], heads, length, head_width)
    assert torch.equal(merge_heads(split), x)
    for h in range(heads):
        assert torch.equal(split[..., h, :, :], x[..., h * head_width : (h + 1) * head_width])


# --- against a loop and PyTorch ------------------------------------------------------------------


def _check(module, query, key, value, mask, generator, dtype):
    """Output and the gradients of inputs and parameters, for ``x`` or for query, key and value."""
    parameters = twins.parameters_of(module, generator, dtype)
    names = list(parameters)
    inputs = [query] if key is None else [query, key] if value is None else [query, key, value]
    table = _dense(mask, query.shape[-2], inputs[-1].shape[-2])
    torch_module = nn.MultiheadAttention(
        module.width,
        module.heads,
        bias=module.query_proj.bias is not None,
        kdim=module.memory_width,
        vdim=module.memory_width,
        batch_first=True,
    )
    theirs = twins.as_function(
        torch_module,
        names,
        3,
        translate=twins.attention,
        first=True,
        attn_mask=twins.blocked(table, module.heads),
        need_weights=False,
    )

    def three(tensors):
        given = tensors[: len(inputs)]
        return [*given, *[given[-1]] * (3 - len(given)), *tensors[len(inputs) :]]

    def loop(*tensors):
        tensors = three(tensors)
        own = dict(zip(names, tensors[3:], strict=True))
        return oracle_layers.multi_head(*tensors[:3], own, heads=module.heads, mask=table)

    assert_matches(
        twins.as_function(module, names, len(inputs), mask=mask),
        lambda *tensors: theirs(*three(tensors)),
        loop,
        [*inputs, *parameters.values()],
        one_floor=True,
    )


@pytest.mark.oracle
@DTYPE
@pytest.mark.parametrize("name", MASKS)
def test_self_attention_and_all_gradients_match_loop_and_torch(name, dtype, generator):
    x = random(generator, BATCH, TQ, WIDTH, dtype=dtype)
    module = MultiHeadAttention(WIDTH, HEADS)
    _check(module, x, None, None, MASKS[name], generator, dtype)


@pytest.mark.oracle
@DTYPE
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("memory_width", [None, MEMORY], ids=["same width", "memory width"])
def test_cross_attention_and_all_gradients_match_loop_and_torch(
    memory_width, bias, dtype, generator
):
    module = MultiHeadAttention(WIDTH, HEADS, memory_width=memory_width, bias=bias)
    query = random(generator, BATCH, TQ, WIDTH, dtype=dtype)
    memory = random(generator, BATCH, TK, memory_width or WIDTH, dtype=dtype)
    mask = padding(torch.tensor([4, 9]))
    _check(module, query, memory, None, mask, generator, dtype)


@pytest.mark.oracle
@DTYPE
def test_a_value_may_differ_from_the_key(dtype, generator):
    module = MultiHeadAttention(WIDTH, HEADS, memory_width=MEMORY)
    query = random(generator, BATCH, TQ, WIDTH, dtype=dtype)
    key, value = (random(generator, BATCH, TK, MEMORY, dtype=dtype) for _ in range(2))
    _check(module, query, key, value, None, generator, dtype)


@pytest.mark.oracle
@pytest.mark.parametrize("name", MASKS)
def test_the_weights_are_those_of_torch(name, generator):
    module, x = _attention(generator), random(generator, BATCH, TQ, WIDTH)
    twin = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).double()
    twin.load_state_dict(twins.attention(module.state_dict()))
    blocked = twins.blocked(_dense(MASKS[name]), HEADS)
    _, expected = twin(x, x, x, attn_mask=blocked, average_attn_weights=False)
    assert_close(module.attention_weights(x, mask=MASKS[name]), expected)


def test_a_sequence_without_a_batch_is_taken(generator):
    module, x = _attention(generator), random(generator, TQ, WIDTH)
    assert_close(module(x, mask=causal()), module(x[None], mask=causal())[0])
    weights = module.attention_weights(x, mask=causal())
    assert weights.shape == (HEADS, TQ, TQ)
    assert_close(weights, module.attention_weights(x[None], mask=causal())[0])


# --- shared keys and values, positions -----------------------------------------------------------


def _grouped_and_full(generator, heads, kv_heads):
    """Shared keys and values, and the same module with a copy of them for each head."""
    width = heads * HEAD_WIDTH
    grouped = _attention(generator, width, heads, kv_heads=kv_heads)
    full = MultiHeadAttention(width, heads).double()
    state = grouped.state_dict()
    for name in ("key_proj.weight", "key_proj.bias", "value_proj.weight", "value_proj.bias"):
        parts = state[name].unflatten(0, (kv_heads, HEAD_WIDTH))
        state[name] = parts.repeat_interleave(heads // kv_heads, dim=0).flatten(0, 1)
    full.load_state_dict(state)
    return grouped, full


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
def test_grouped_heads_equal_full_heads_with_copied_projections(kv_heads, generator):
    grouped, full = _grouped_and_full(generator, 6, kv_heads)
    x = random(generator, BATCH, TQ, 6 * HEAD_WIDTH)
    assert_close(grouped(x, mask=causal()), full(x, mask=causal()))
    assert_close(grouped.attention_weights(x), full.attention_weights(x))
    grouped(x).square().sum().backward()
    full(x).square().sum().backward()
    for name in ("key_proj", "value_proj"):
        copies = full.get_submodule(name).weight.grad.unflatten(0, (kv_heads, -1, HEAD_WIDTH))
        assert_close(grouped.get_submodule(name).weight.grad, copies.sum(dim=1).flatten(0, 1))


@pytest.mark.parametrize("mask", [None, causal(), torch.arange(TK) % 3 > 0])
@pytest.mark.parametrize("kv_heads", [1, 2, 3])
def test_one_query_of_grouped_heads_equals_one_of_full_heads(kv_heads, mask, generator):
    grouped, full = _grouped_and_full(generator, 6, kv_heads)
    query, key = (random(generator, BATCH, length, 6 * HEAD_WIDTH) for length in (1, TK))
    assert_close(grouped(query, key, mask=mask), full(query, key, mask=mask))
    assert_close(grouped(query[0], key[0], mask=mask), full(query[0], key[0], mask=mask))


@pytest.mark.oracle
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_grouped_heads_match_the_loop(kv_heads, generator):
    width = 6 * HEAD_WIDTH
    module, x = _attention(generator, width, 6, kv_heads=kv_heads), random(generator, 1, TQ, width)
    expected = oracle_layers.multi_head(
        x, x, x, dict(module.named_parameters()), heads=6, kv_heads=kv_heads
    )
    assert_close(module(x), expected)


def test_the_number_of_parameters_does_not_depend_on_the_heads():
    counts = {
        sum(p.numel() for p in MultiHeadAttention(WIDTH, heads).parameters()) for heads in (1, 3, 5)
    }
    assert counts == {4 * WIDTH**2 + 4 * WIDTH}


EVEN = 4  # rotary positions need an even width of a head
POSITIONED = {
    "rotary": (lambda: Rotary(EVEN), {"turn": oracle_layers.rotary}),
    "alibi": (
        lambda: Alibi(HEADS),
        {"bias": oracle_layers.alibi([2**-4, 2**-8, 2**-2], TQ, TQ)},
    ),
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", POSITIONED)
@pytest.mark.parametrize("mask", [None, causal()], ids=["open", "causal"])
def test_positions_act_inside_attention_as_in_the_loop(mask, name, generator):
    make, named = POSITIONED[name]
    module = _attention(generator, HEADS * EVEN, position=make())
    x = random(generator, BATCH, TQ, HEADS * EVEN).requires_grad_()
    parameters = dict(module.named_parameters())
    expected = oracle_layers.multi_head(
        x, x, x, parameters, heads=HEADS, mask=_dense(mask), **named
    )
    output = module(x, mask=mask)
    assert_close(output, expected)
    leaves = [x, *parameters.values()]
    found = torch.autograd.grad(output.square().sum(), leaves)
    assert_close(found, torch.autograd.grad(expected.square().sum(), leaves))


@pytest.mark.oracle
def test_a_relative_bias_is_learned_inside_attention(generator):
    module = _attention(generator, position=RelativeBias(HEADS, 2))
    x = random(generator, BATCH, TQ, WIDTH)
    parameters = dict(module.named_parameters())
    bias = oracle_layers.relative(module.position.table, TQ, TQ)
    expected = oracle_layers.multi_head(x, x, x, parameters, heads=HEADS, bias=bias)
    assert_close(module(x), expected)
    found, truth = (
        torch.autograd.grad(y.square().sum(), module.position.table)[0]
        for y in (module(x), expected)
    )
    assert_close(found, truth)
    assert (found.abs().amax(dim=0) > 0).all()
