"""Several linear layers of one input as one product, where their weights lie side by side.

Writing one token multiplies each matrix with one vector, and the time goes into reading matrices
from memory: one large matrix is read faster than three small ones. Layers keep their own weights,
which are views of the same memory, so nothing can come apart.
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
    """What each layer makes of one input; one product where :func:`join` was called.

    Args:
        x: Input, (..., D).
        layers: The layers.

    Returns:
        The output of each layer.

    Source:
        Chapters 07 and 11.
    """
    matrix = None if torch.is_grad_enabled() else _joint_matrix(layers)
    if matrix is None:
        return [layer(x) for layer in layers]
    return list(linear(x, matrix).split([layer.out_features for layer in layers], dim=-1))


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
