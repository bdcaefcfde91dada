"""Layers whose weights lie side by side: one product, the same numbers, and nothing comes apart."""

from copy import deepcopy

import pytest
import torch
from oracle import random
from torch import nn
from torch.testing import assert_close

from attention_lib import EncoderBlock, GatedFeedForward, MultiHeadAttention, PreNorm
from attention_lib._joint import _joint_matrix, join, project

WIDTH, SIZES = 7, (5, 3, 11)


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return [nn.Linear(WIDTH, size, bias=False).double() for size in SIZES]


def _counted(monkeypatch) -> list[int]:
    """The number of outputs of each product that the layers or their joint matrix compute."""
    sizes, linear = [], nn.functional.linear

    def counted(x, weight, bias=None):
        sizes.append(weight.shape[0])
        return linear(x, weight, bias)

    monkeypatch.setattr("attention_lib._joint.linear", counted)
    monkeypatch.setattr(nn.functional, "linear", counted)
    return sizes


def test_joined_layers_give_the_same_numbers_in_one_product(layers, generator, monkeypatch):
    x = random(generator, 2, 3, WIDTH)
    apart = [layer(x) for layer in layers]
    weights = [layer.weight.clone() for layer in layers]
    join(layers)
    for layer, weight in zip(layers, weights, strict=True):
        assert torch.equal(layer.weight, weight)
    sizes = _counted(monkeypatch)
    with torch.no_grad():
        assert_close(project(x, layers), apart)
    assert sizes == [sum(SIZES)]


def test_layers_that_are_apart_are_asked_one_by_one(layers, generator, monkeypatch):
    sizes = _counted(monkeypatch)
    with torch.no_grad():
        project(random(generator, WIDTH), layers)
    assert sizes == list(SIZES)


def test_training_goes_through_the_layers_and_is_seen_by_the_joint_matrix(layers, generator):
    x, twin = random(generator, 4, WIDTH), deepcopy(layers)
    join(layers)
    for some in (layers, twin):
        optimizer = torch.optim.SGD([layer.weight for layer in some], lr=0.1)
        sum(output.square().sum() for output in project(x, some)).backward()
        assert all(layer.weight.grad.abs().max() > 0 for layer in some)
        optimizer.step()
    with torch.no_grad():
        assert_close(project(x, layers), project(x, twin))


@pytest.mark.parametrize(
    "change",
    [
        lambda layers: layers.reverse(),
        lambda layers: layers.pop(0),
        lambda layers: layers.pop(),
        lambda layers: layers.insert(1, layers[0]),
        lambda layers: [layer.half().double() for layer in layers],
        lambda layers: setattr(layers[1], "weight", nn.Parameter(layers[1].weight * 2)),
        lambda layers: setattr(layers[2], "bias", nn.Parameter(torch.ones(SIZES[2]).double())),
    ],
)
def test_other_layers_than_those_that_were_joined_are_not_mixed_up(layers, change, generator):
    x = random(generator, WIDTH)
    join(layers)
    change(layers)
    with torch.no_grad():
        assert _joint_matrix(layers) is None
        assert_close(project(x, layers), [layer(x) for layer in layers])


def test_a_block_with_joined_projections_is_the_same_block(generator, monkeypatch):
    attention = MultiHeadAttention(12, heads=6, kv_heads=2, bias=False)
    network = GatedFeedForward(12, 17)
    block = EncoderBlock(attention, network, lambda: PreNorm(12)).double()
    x, memory = random(generator, 2, 5, 12), random(generator, 2, 3, 12)
    with torch.no_grad():
        expected, crossed = block(x), attention(x, memory)
        join([attention.query_proj, attention.key_proj, attention.value_proj])
        join([network.gate_proj, network.up_proj])
        assert_close(attention(x, memory), crossed)
        sizes = _counted(monkeypatch)
        assert_close(block(x), expected)
    assert sizes == [12 + 4 + 4, 12, 17 + 17, 12]
