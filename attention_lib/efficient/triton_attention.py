"""Exact attention on a GPU through the book's own Triton kernels. Chapter 16.

The kernels are in ``attention_lib.efficient.triton_kernels``, which is imported when the first call
needs it: Triton is optional, and on a computer without a GPU nothing else of the book misses it.
"""

from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from attention_lib._checks import broadcast, check_query_key_value, flatten_batch, shape
from attention_lib.masks import Mask, causal

WIDTHS = (16, 32, 64, 128)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def attend_triton(
    query: Float[Tensor, "... Tq D"],
    key: Float[Tensor, "... Tk D"],
    value: Float[Tensor, "... Tk D"],
    mask: Mask | None = None,
    *,
    scale: float | None = None,
) -> Float[Tensor, "... Tq D"]:
    r"""Scaled dot-product attention in tiles on a GPU, without ever storing the scores.

    .. math:: O = \mathrm{softmax}\big(Q K^\top / \sqrt{D}\big) V

    The numbers are those of :func:`attention_lib.attend`. Sums are in float32 whatever the inputs
    are; weights are rounded to the inputs' dtype before they meet the values. For the backward pass
    only the output and the log-sum-exp of each row are kept, so memory is linear in the lengths.

    Args:
        query: Queries, (..., Tq, D), float16, bfloat16 or float32, on a CUDA device; D is 16, 32,
            64 or 128. Any lengths.
        key: Keys, (..., Tk, D).
        value: Values, (..., Tk, D), as wide as the keys.
        mask: ``None`` or :func:`attention_lib.masks.causal`, whose empty tiles are skipped. It is
            aligned at the last position where Tq and Tk differ.
        scale: Factor in place of :math:`1/\sqrt{D}`.

    Returns:
        Output, (..., Tq, D); 0 for a query that may attend to nothing.

    Raises:
        ImportError: If Triton is not installed.
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes or devices do not fit, the width or the mask is one for which there is
            no kernel, or the tensors are not on a CUDA device.

    Source:
        Dao (2023), algorithms 1 and 2; Tillet, Kung and Cox (2019) for Triton. Chapter 16.
    """
    check_query_key_value(query, key, value)
    width = query.shape[-1]
    if query.dtype not in DTYPES:
        raise TypeError(f"query must be float16, bfloat16 or float32, got {query.dtype}")
    if width not in WIDTHS:
        raise ValueError(f"query must have a width of 16, 32, 64 or 128, got shape {shape(query)}")
    if value.shape[-1] != width:
        raise ValueError(f"value must be as wide as key, D = {width}, got shape {shape(value)}")
    if mask is not None and mask is not causal():
        got = mask.name if isinstance(mask, Mask) else type(mask).__name__
        raise ValueError(f"mask must be None or causal(), got {got}")
    kernels = _kernels(query)

    batch = broadcast(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    if 0 in (*batch, query.shape[-2], key.shape[-2]):
        return query @ key.mT @ value  # the sum over nothing: 0, and so are its gradients
    flat = [flatten_batch(tensor, batch).contiguous() for tensor in (query, key, value)]
    factor = width**-0.5 if scale is None else float(scale)
    settings = mask is not None, factor, kernels
    output: Tensor = _Triton.apply(*flat, *settings)  # type: ignore[no-untyped-call]
    return output.view(*batch, query.shape[-2], width)


class _Triton(torch.autograd.Function):
    """Launches the kernels; saves what Dao (2023) saves: inputs, output and log-sum-exp."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor,
        is_causal: bool, scale: float, kernels: ModuleType,
    ) -> Tensor:  # fmt: skip
        sequences, queries, width = query.shape
        keys = key.shape[1]
        output = torch.empty_like(query)
        lse = query.new_empty(sequences, queries, dtype=torch.float32)
        options = _tiles("forward", query)
        grid = (sequences * -(-queries // options["BLOCK_Q"]),)  # one program for each tile
        with torch.cuda.device_of(query):  # a kernel starts on the current device
            kernels._forward_kernel[grid](
                query, key, value, output, lse, scale, queries, keys,
                CAUSAL=is_causal, PRECISION=_precision(query), D=width, **options,
            )  # fmt: skip
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.settings = is_causal, scale, kernels
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        is_causal, scale, kernels = ctx.settings
        sequences, queries, width = query.shape
        keys = key.shape[1]
        upstream = upstream.contiguous()
        delta = torch.empty_like(lse)
        gradients = [torch.empty_like(tensor) for tensor in (query, key, value)]
        known = {"CAUSAL": is_causal, "PRECISION": _precision(query), "D": width}
        arguments = query, key, value, upstream, lse, delta

        def grid(options: dict[str, int], side: str, length: int) -> tuple[int]:
            return (sequences * -(-length // options[side]),)

        with torch.cuda.device_of(query):
            options = {"BLOCK_Q": 64, "num_warps": 4}
            kernels._delta_kernel[grid(options, "BLOCK_Q", queries)](
                output, upstream, delta, queries, D=width, **options
            )
            options = _tiles("keys", query)
            kernels._key_kernel[grid(options, "BLOCK_K", keys)](
                *arguments, gradients[1], gradients[2], scale, queries, keys, **known, **options
            )
            options = _tiles("queries", query)
            kernels._query_kernel[grid(options, "BLOCK_Q", queries)](
                *arguments, gradients[0], scale, queries, keys, **known, **options
            )
        return *gradients, None, None, None


def _tiles(kernel: str, query: Tensor) -> dict[str, int]:
    """Sides of the tiles, and how many warps and stages of loading ahead a program gets.

    The owned side is long, so that each loaded tile of the other side serves many rows. In float32
    a tile takes twice the fast memory, and tensor cores are not used: tiles are smaller. The sizes
    fit the fast memory of data-centre GPUs (A100 and later); they were not tuned on one.
    """
    narrow = query.shape[-1] <= 64
    if query.dtype == torch.float32:
        return {"BLOCK_Q": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 1}
    if kernel == "forward":
        return {"BLOCK_Q": 128, "BLOCK_K": 64, "num_warps": 4 if narrow else 8, "num_stages": 3}
    if kernel == "keys":
        return {"BLOCK_Q": 64, "BLOCK_K": 128, "num_warps": 8, "num_stages": 2}
    return {"BLOCK_Q": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 2}


def _precision(query: Tensor) -> str:
    """How products of float32 are made: exactly, not in TF32. It says nothing for the others."""
    return "ieee" if query.dtype == torch.float32 else "tf32"


def _kernels(query: Tensor) -> ModuleType:
    """The module of kernels, if they can run on this tensor."""
    try:
        from attention_lib.efficient import triton_kernels
    except ImportError as error:
        raise ImportError(
            "attend_triton needs Triton, which comes with PyTorch for CUDA on Linux; "
            "attend_tiled and attend do without it"
        ) from error
    if triton_kernels.INTERPRETED and query.dtype == torch.bfloat16:
        raise TypeError(
            "query must be float16 or float32 in Triton's interpreter, which multiplies the bits "
            "of bfloat16 as integers, got torch.bfloat16"
        )
    if not query.is_cuda and not triton_kernels.INTERPRETED:
        raise ValueError(f"query must be on a CUDA device, got {query.device}")
    return triton_kernels
