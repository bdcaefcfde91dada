"""Layers whose weights lie side by side: one product, the same numbers, and nothing comes apart."""

from copy import deepcopy

import pytest
import torch
from oracle import random
from torch import Tensor, nn
from torch.nn.utils import parametrize
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


# --- many rows: side by side for one call, with gradients ----------------------------------------

ENOUGH = WIDTH + 1  # rows; no more than the width are not worth a copy of the weights


def _biased(sizes=SIZES, **kind) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(WIDTH, size, **kind).double() for size in sizes]


def _with_gradients(call, x, layers) -> list[torch.Tensor]:
    """Outputs, then the gradients of the input and of every parameter."""
    x = x.clone().requires_grad_()
    outputs = call(x, layers)
    parameters = [p for layer in layers for p in layer.parameters()]
    powers = sum((index + 1) * y.pow(index + 2).sum() for index, y in enumerate(outputs))
    return [*outputs, *torch.autograd.grad(powers, [x, *parameters])]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(("rows", "products"), [(WIDTH, len(SIZES)), (ENOUGH, 1)])
def test_many_rows_go_through_one_product(rows, products, grad, bias, generator, monkeypatch):
    layers, x = _biased(bias=bias), random(generator, rows, WIDTH)
    sizes = _counted(monkeypatch)
    with torch.set_grad_enabled(grad):
        project(x, layers)
    assert sizes == ([sum(SIZES)] if products == 1 else list(SIZES))


@pytest.mark.oracle
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(ENOUGH,), (2, 5), (11, 1, 2)], ids=str)
def test_one_product_gives_the_outputs_and_all_gradients_of_several(shape, bias, generator):
    layers, x = _biased(bias=bias), random(generator, *shape, WIDTH)
    apart = _with_gradients(lambda x, layers: [layer(x) for layer in layers], x, layers)
    found = _with_gradients(project, x, layers)
    for ours, theirs in zip(found, apart, strict=True):
        assert_close(ours, theirs)


class Doubled(nn.Linear):
    """A layer that does something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Double(nn.Module):
    """A parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Special(Tensor):
    """A kind of tensor that may do anything."""


def _own_forward(layer: nn.Linear) -> None:
    forward = layer.forward
    layer.forward = lambda x: 2 * forward(x)


def _unbiased(layer: nn.Linear) -> None:
    layer.bias = None


def _special(layer: nn.Linear) -> None:
    weight = layer.weight.detach().as_subclass(Special)
    del layer.weight
    layer.weight = weight


CHANGES = {
    "subclass": lambda layer: setattr(layer, "__class__", Doubled),
    "parametrisation": lambda layer: parametrize.register_parametrization(
        layer, "weight", Double()
    ),
    "hook": lambda layer: layer.register_forward_hook(lambda module, given, y: 2 * y),
    "hook before": lambda layer: layer.register_forward_pre_hook(lambda module, x: (2 * x[0],)),
    "hook after the gradient": lambda layer: layer.register_full_backward_hook(
        lambda module, x, y: (2 * x[0],)
    ),
    "hook before the gradient": lambda layer: layer.register_full_backward_pre_hook(
        lambda module, y: (2 * y[0],)
    ),
    "forward of its own": _own_forward,
    "no bias": _unbiased,
    "weight of a special kind": _special,
}


@pytest.mark.hostile
@pytest.mark.parametrize("index", range(len(SIZES)))
@pytest.mark.parametrize("name", CHANGES)
def test_a_layer_that_may_do_something_else_is_left_to_itself(name, index, generator, monkeypatch):
    layers, x = _biased(), random(generator, ENOUGH, WIDTH).requires_grad_()
    CHANGES[name](layers[index])
    expected = [layer(x) for layer in layers]
    (gradient,) = torch.autograd.grad(sum(y.sum() for y in expected), x)
    sizes = _counted(monkeypatch)
    found = project(x, layers)
    assert sizes == list(SIZES)
    assert all(map(torch.equal, found, expected))
    assert torch.equal(torch.autograd.grad(sum(y.sum() for y in found), x)[0], gradient)


@pytest.mark.hostile
@pytest.mark.parametrize("change", [lambda layer: layer.float(), lambda layer: layer.to("meta")])
def test_layers_of_another_dtype_or_device_are_asked_and_say_what_is_wrong(change, generator):
    layers = _biased()
    change(layers[1])
    with pytest.raises(RuntimeError) as one_by_one:
        layers[1](random(generator, ENOUGH, WIDTH))
    with pytest.raises(RuntimeError) as together:
        project(random(generator, ENOUGH, WIDTH), layers)
    assert str(together.value) == str(one_by_one.value)


@pytest.mark.hostile
def test_an_empty_batch_is_projected(generator):
    shapes = [y.shape for y in project(random(generator, 0, 5, WIDTH), _biased())]
    assert shapes == [(0, 5, size) for size in SIZES]
