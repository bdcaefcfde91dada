"""The rows of the parity table for cheap attention; see :mod:`parity_cases`.

Exact methods stand beside PyTorch's fused kernel, the others beside their formula written out in
PyTorch, and both beside a loop in float64.
"""

from collections.abc import Callable
from functools import partial

import oracle
import torch
from oracle import measure, random
from parity_cases import BRAIN, DOUBLE, HALF, SINGLE, Case, Pairs
from torch import Tensor
from torch.nn.functional import elu, scaled_dot_product_attention

from attention_lib import causal, sliding_window
from attention_lib.efficient.latent import attend_absorbed, attend_expanded
from attention_lib.efficient.linear import (
    attend_linear,
    attend_linear_chunked,
    attend_linear_recurrent,
)
from attention_lib.efficient.low_rank import attend_low_rank
from attention_lib.efficient.random_features import attend_random_features
from attention_lib.efficient.sparse import attend_block_sparse
from attention_lib.efficient.tiled import attend_tiled
from attention_lib.efficient.window import attend_window

# Primes; no tile, window or chunk divides the length.
BATCH, LENGTH, WIDTH, VALUE_WIDTH, HEADS = 2, 13, 5, 7, 3
RANK, FEATURES, LATENT, ROTARY = 3, 11, 5, 2
MASKS = {"none": None, "causal": causal(), "window": sliding_window(3, 1)}


def _sequences(generator: torch.Generator, dtype: torch.dtype) -> list[Tensor]:
    widths = (WIDTH, WIDTH, VALUE_WIDTH)
    return [random(generator, BATCH, LENGTH, width, dtype=dtype) for width in widths]


def _exact(function: Callable[..., Tensor]) -> Callable[..., Pairs]:
    """``function(query, key, value, mask)`` beside the fused kernel."""

    def run(dtype: torch.dtype, mask: str, generator: torch.Generator) -> Pairs:
        rule = MASKS[mask]
        dense = None if rule is None else rule.dense(LENGTH, LENGTH)
        table = None if dense is None else dense.expand(BATCH, LENGTH, LENGTH)
        return measure(
            lambda *x: function(*x, rule),
            partial(scaled_dot_product_attention, attn_mask=dense),
            partial(oracle.attend, mask=table),
            _sequences(generator, dtype),
        )

    return run


def _window(query: Tensor, key: Tensor, value: Tensor, mask: object) -> Tensor:
    return attend_window(query, key, value, 3, 1)


def _written_out(
    function: Callable[..., Tensor], formula: Callable[..., Tensor], *shapes: tuple[int, ...]
) -> Callable[..., Pairs]:
    """``function(*inputs)`` beside a formula in PyTorch, which in float64 is exact as well."""

    def run(dtype: torch.dtype, mask: str, generator: torch.Generator) -> Pairs:
        further = [random(generator, *shape, dtype=dtype) for shape in shapes]
        inputs = [*_sequences(generator, dtype), *further]
        return measure(function, formula, formula, inputs, one_floor=True)

    return run


def _linear(query: Tensor, key: Tensor, value: Tensor, *, past_only: bool = False) -> Tensor:
    products = (elu(query) + 1) @ (elu(key) + 1).mT
    products = products.tril() if past_only else products
    return products / products.sum(dim=-1, keepdim=True) @ value


def _low_rank(query: Tensor, key: Tensor, value: Tensor, e: Tensor, f: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, e @ key, f @ value)


def _random_features(query: Tensor, key: Tensor, value: Tensor, directions: Tensor) -> Tensor:
    def features(x: Tensor) -> Tensor:
        x = x * WIDTH**-0.25
        return torch.exp(x @ directions.mT - x.square().sum(dim=-1, keepdim=True) / 2)

    products = features(query) @ features(key).mT
    return products / products.sum(dim=-1, keepdim=True) @ value


def _latent(form: Callable[..., Tensor]) -> Callable[..., Pairs]:
    """A form of latent attention beside keys and values made by matrices, and the kernel."""

    def reference(query: Tensor, memory: Tensor, key_up: Tensor, value_up: Tensor) -> Tensor:
        compressed, rotary = memory.unsqueeze(-3).split([LATENT, ROTARY], dim=-1)
        key = torch.cat(
            [compressed @ key_up.mT, rotary.expand(-1, HEADS, -1, -1)], dim=-1
        )  # (B, H, T, Dh + Dr)
        return scaled_dot_product_attention(query, key, compressed @ value_up.mT, is_causal=True)

    def run(dtype: torch.dtype, mask: str, generator: torch.Generator) -> Pairs:
        shapes = (
            (BATCH, HEADS, LENGTH, WIDTH + ROTARY),
            (BATCH, LENGTH, LATENT + ROTARY),
            (HEADS, WIDTH, LATENT),
            (HEADS, WIDTH, LATENT),
        )
        inputs = [random(generator, *shape, dtype=dtype) for shape in shapes]
        ours = partial(form, mask=MASKS[mask])
        return measure(ours, reference, reference, inputs, one_floor=True)

    return run


def _first(function: Callable[..., tuple[Tensor, object]], **named: int) -> Callable[..., Tensor]:
    """The output of a function that also returns a state."""
    return lambda *x: function(*x, **named)[0]


_SDPA, _LAYERS = "scaled_dot_product_attention", "PyTorch, written out"
_SIZES = ((RANK, LENGTH), (RANK, LENGTH))
_TILED = _exact(partial(attend_tiled, tile=(4, 3)))
_SPARSE = _exact(partial(attend_block_sparse, block=3))
_PAST = partial(_linear, past_only=True)

CASES = [
    *[Case("attend_tiled", _SDPA, SINGLE, mask, _TILED) for mask in ("none", "window", "causal")],
    *[Case("attend_tiled", _SDPA, dtype, "causal", _TILED) for dtype in (HALF, BRAIN, DOUBLE)],
    Case("attend_window", _SDPA, SINGLE, "window", _exact(_window)),
    Case("attend_block_sparse", _SDPA, SINGLE, "causal", _SPARSE),
    Case("attend_block_sparse", _SDPA, SINGLE, "window", _SPARSE),
    Case("attend_expanded, latent", _SDPA, SINGLE, "causal", _latent(attend_expanded)),
    Case("attend_absorbed, latent", _SDPA, SINGLE, "causal", _latent(attend_absorbed)),
    Case("attend_linear", _LAYERS, SINGLE, "none", _written_out(attend_linear, _linear)),
    Case(
        "attend_linear_chunked",
        _LAYERS,
        SINGLE,
        "causal",
        _written_out(_first(attend_linear_chunked, chunk=4), _PAST),
    ),
    Case(
        "attend_linear_recurrent",
        _LAYERS,
        SINGLE,
        "causal",
        _written_out(_first(attend_linear_recurrent), _PAST),
    ),
    Case(
        "attend_low_rank",
        _LAYERS,
        SINGLE,
        "none",
        _written_out(attend_low_rank, _low_rank, *_SIZES),
    ),
    Case(
        "attend_random_features",
        _LAYERS,
        SINGLE,
        "none",
        _written_out(attend_random_features, _random_features, (FEATURES, WIDTH)),
    ),
]
