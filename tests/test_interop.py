"""The same weights under PyTorch's names, there and back, bit for bit."""

import re
from functools import partial

import pytest
import torch
import twins
from oracle import random
from torch import nn
from torch.nn.functional import relu
from torch.testing import assert_close

from attention_lib import (
    Alibi,
    DecoderBlock,
    EncoderBlock,
    FeedForward,
    GatedFeedForward,
    MultiHeadAttention,
    PostNorm,
    RelativeBias,
)
from attention_lib.interop import load_torch_state, to_torch_state

HEADS, HEAD_WIDTH, HIDDEN, MEMORY, LENGTH = 3, 5, 13, 11, 7
WIDTH = HEADS * HEAD_WIDTH


def _attention(**named) -> MultiHeadAttention:
    return MultiHeadAttention(WIDTH, HEADS, **named)


def _residual() -> partial:
    return partial(PostNorm, WIDTH)


def _encoder() -> EncoderBlock:
    return EncoderBlock(_attention(), FeedForward(WIDTH, HIDDEN), _residual())


def _decoder() -> DecoderBlock:
    return DecoderBlock(_attention(), _attention(), FeedForward(WIDTH, HIDDEN), _residual())


TWINS = {
    "attention": (_attention, lambda: nn.MultiheadAttention(WIDTH, HEADS)),
    "attention without bias": (
        lambda: _attention(bias=False),
        lambda: nn.MultiheadAttention(WIDTH, HEADS, bias=False),
    ),
    "cross-attention": (
        lambda: _attention(memory_width=MEMORY),
        lambda: nn.MultiheadAttention(WIDTH, HEADS, kdim=MEMORY, vdim=MEMORY),
    ),
    "encoder block": (_encoder, lambda: nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN)),
    "decoder block": (_decoder, lambda: nn.TransformerDecoderLayer(WIDTH, HEADS, HIDDEN)),
}
TWIN = pytest.mark.parametrize("name", TWINS)


def _same(first, second) -> bool:
    return sorted(first) == sorted(second) and all(
        torch.equal(x, second[name]) for name, x in first.items()
    )


@TWIN
def test_from_ours_to_torch_and_back(name, generator):
    make, twin = TWINS[name]
    ours, theirs, back = twins.filled(make(), generator), twin().double(), make().double()
    assert theirs.load_state_dict(to_torch_state(ours)).missing_keys == []
    load_torch_state(back, theirs.state_dict())
    assert _same(back.state_dict(), ours.state_dict())


@TWIN
def test_from_torch_to_ours_and_back(name, generator):
    make, twin = TWINS[name]
    theirs, ours = twins.filled(twin(), generator), make().double()
    load_torch_state(ours, theirs.state_dict())
    assert _same(to_torch_state(ours), theirs.state_dict())


@pytest.mark.oracle
@TWIN
def test_the_twin_computes_the_same(name, generator):
    make, twin = TWINS[name]
    theirs, ours = twins.filled(twin(), generator).eval(), make().double()
    load_torch_state(ours, theirs.state_dict())
    x, memory = random(generator, LENGTH, WIDTH), random(generator, LENGTH + 4, MEMORY)
    if name == "encoder block":
        assert_close(ours(x), theirs(x))
    elif name == "decoder block":
        assert_close(ours(x, 2 * x), theirs(x, 2 * x))
    else:
        key = memory if name == "cross-attention" else x
        given = (x, key) if name == "cross-attention" else (x,)
        assert_close(ours(*given), theirs(x, key, key)[0])


def test_loading_copies(generator):
    theirs, ours = nn.MultiheadAttention(WIDTH, HEADS), _attention()
    load_torch_state(ours, theirs.state_dict())
    before = ours.query_proj.weight.clone()
    nn.init.zeros_(theirs.in_proj_weight)
    assert torch.equal(ours.query_proj.weight, before)


# --- refused -------------------------------------------------------------------------------------


def _raises(kind, message):
    return pytest.raises(kind, match=re.escape(message) + "$")


@pytest.mark.hostile
@pytest.mark.parametrize("call", [to_torch_state, lambda module: load_torch_state(module, {})])
def test_what_has_no_twin_is_refused(call):
    rule = "module must be a MultiHeadAttention, an EncoderBlock or a DecoderBlock, got "
    with _raises(TypeError, f"{rule}Linear"):
        call(nn.Linear(2, 2))
    with _raises(TypeError, f"{rule}FeedForward"):
        call(FeedForward(2, 2))
    rule = f"kv_heads must equal heads = {HEADS} for torch.nn.MultiheadAttention, got 1"
    with _raises(ValueError, rule):
        call(_attention(kv_heads=1))
    with _raises(ValueError, rule):
        call(EncoderBlock(_attention(kv_heads=1), FeedForward(WIDTH, HIDDEN), _residual()))


@pytest.mark.hostile
@pytest.mark.parametrize("position", [Alibi(HEADS), RelativeBias(HEADS, 2)], ids=["alibi", "clip"])
def test_attention_with_a_position_has_no_twin(position):
    rule = "position must be None for torch.nn.MultiheadAttention, got "
    with _raises(ValueError, rule + type(position).__name__):
        to_torch_state(_attention(position=position))


@pytest.mark.hostile
def test_a_block_with_a_gate_has_no_twin():
    gated = EncoderBlock(_attention(), GatedFeedForward(WIDTH, HIDDEN), _residual())
    with _raises(ValueError, "module must have no parameters without a place in the twin, got "
                 "['feed_forward.gate_proj.weight']"):  # fmt: skip
        to_torch_state(gated)


@pytest.mark.hostile
def test_other_names_are_refused():
    state = nn.MultiheadAttention(WIDTH, HEADS).state_dict()
    state["extra"] = state.pop("in_proj_bias")
    with _raises(ValueError, "state must hold exactly the names of the twin; "
                 "missing ['in_proj_bias'], not expected ['extra']"):  # fmt: skip
        load_torch_state(_attention(), state)


@pytest.mark.hostile
def test_another_shape_is_refused_and_changes_no_shape():
    ours = _attention()
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_torch_state(ours, nn.MultiheadAttention(2 * WIDTH, HEADS).state_dict())


def test_the_activation_is_not_part_of_a_state():
    assert FeedForward(WIDTH, HIDDEN).activation is relu
    assert set(FeedForward(WIDTH, HIDDEN).state_dict()) == {
        f"{name}_proj.{kind}" for name in ("up", "down") for kind in ("weight", "bias")
    }
