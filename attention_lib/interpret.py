"""Look inside a model while it runs. Chapters 07 and 21."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from attention_lib.heads import MultiHeadAttention


@contextmanager
def capture_weights(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the attention weights of every :class:`MultiHeadAttention` that runs inside.

    The weights are computed beside the forward pass from the same inputs, so the model itself stays
    on its fast path and its output does not change.

    Args:
        model: A module that holds attention modules, or is one.

    Yields:
        For the name of each attention module, the weights of each of its calls, (..., H, Tq, Tk),
        without gradient; filled while the model runs.

    Example:
        >>> import torch
        >>> attention = MultiHeadAttention(4, 2)
        >>> with capture_weights(attention) as captured:
        ...     output = attention(torch.zeros(1, 3, 4))
        >>> [tuple(weights.shape) for weights in captured[""]]
        [(1, 2, 3, 3)]

    Source:
        Chapter 07.
    """
    captured: dict[str, list[Tensor]] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, MultiHeadAttention):
            captured[name] = []

            def hook(
                attention: nn.Module, args: Any, kwargs: Any, calls: Any = captured[name]
            ) -> None:
                assert isinstance(attention, MultiHeadAttention)
                options = {key: x for key, x in kwargs.items() if key != "value"}
                calls.append(attention.attention_weights(*args[:2], **options).detach())

            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()
