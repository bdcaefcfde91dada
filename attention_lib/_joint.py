"""Several linear layers of one input as one product, where that is faster.

Writing one token multiplies each matrix with one vector, and the time goes into reading matrices
from memory: one large matrix is read faster than three small ones. :func:`join` puts the weights
side by side. Layers keep their own weights, which are views of the same memory, so nothing can come
apart.

With many rows the time goes into the products. One large product is quicker than three small ones,
above all in the backward pass, which otherwise adds up three gradients of the input. To copy the
weights side by side each time is then cheap, and gradients flow back through the copy.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear


def join(layers: Sequence[nn.Linear]) -> None:
    """Move the weights into one piece of memory, column by column; shapes and values stay.

    Args:
        layers: Layers of inputs of one width D.

    Source:
        Measured by ``benchmarks/generation.py``. Chapter 11.
    """
    rows = torch.cat([layer.weight.detach() for layer in layers])  # (outputs of all, D)
    columns = rows.T.contiguous().T
    sizes = [layer.out_features for layer in layers]
    for layer, part in zip(layers, columns.split(sizes), strict=True):
        layer.weight.data = part


def project(x: Float[Tensor, "... D"], layers: Sequence[nn.Linear]) -> list[Float[Tensor, "... _"]]:
    """What each layer makes of one input, in one product where that is faster.

    Args:
        x: Input, (..., D).
        layers: The layers.

    Returns:
        The output of each layer.

    Source:
        Measured by ``benchmarks/run.py``. Chapters 07 and 11.
    """
    matrix = None if torch.is_grad_enabled() else _joint_matrix(layers)
    bias = None
    if matrix is None:
        if x.numel() <= x.shape[-1] ** 2 or not _alike(layers):  # no more rows than the width
            return [layer(x) for layer in layers]
        matrix = torch.cat([layer.weight for layer in layers])  # (outputs of all, D)
        if layers[0].bias is not None:
            bias = torch.cat([layer.bias for layer in layers])
    return list(linear(x, matrix, bias).split([layer.out_features for layer in layers], dim=-1))


def _alike(layers: Sequence[nn.Linear]) -> bool:
    """Whether the layers are nothing but products with weights of one kind.

    A subclass, a parametrisation (which makes one), a hook, a ``forward`` of its own or a weight of
    a special kind may do something else, and is left to itself.
    """
    first = layers[0]
    return all(
        type(layer) is nn.Linear
        and type(layer.weight) in (nn.Parameter, Tensor)
        and layer.weight.dtype == first.weight.dtype
        and (layer.bias is None) == (first.bias is None)
        and "forward" not in vars(layer)
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and not (layer._backward_hooks or layer._backward_pre_hooks)
        for layer in layers
    )


def _joint_matrix(layers: Sequence[nn.Linear]) -> Tensor | None:
    """The matrix that the weights are parts of, if :func:`join` has put them there."""
    first = layers[0].weight
    total = sum(layer.out_features for layer in layers)
    place = first.data_ptr()
    for layer in layers:
        weight = layer.weight
        # Rows between one another's columns: the same memory, whichever object holds it.
        if weight.data_ptr() != place or weight.stride() != (1, total) or layer.bias is not None:
            return None
        place += layer.out_features * weight.element_size()
    if weight.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
        return None
    return first.as_strided((total, first.shape[1]), (1, total))
