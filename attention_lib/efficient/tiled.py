"""Exact attention tile by tile: the matrix of weights is never stored, not even for gradients.

The forward pass runs over tiles of scores and keeps, for each query, a maximum, a sum and an
output. The backward pass computes each tile of weights again from one number a query, the
log-sum-exp. Memory grows with the length, not with its square. Chapter 16.

Powers of two take the place of powers of e, because they are cheaper: the factor 1 / ln 2 goes into
the scale. Everything that is written per tile is written into buffers made once.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attention_lib._checks import (
    at_least_float32,
    broadcast,
    check_count,
    check_mask,
    check_query_key_value,
)
from attention_lib.masks import Mask

LOG2_E = math.log2(math.e)
TILE = (1024, 512)  # queries, keys; tuned on two CPU cores, see benchmarks


def attend_tiled(
    query: Float[Tensor, "... Tq D"],
    key: Float[Tensor, "... Tk D"],
    value: Float[Tensor, "... Tk Dv"],
    mask: Mask | Bool[Tensor, "..."] | None = None,
    *,
    scale: float | None = None,
    tile: tuple[int, int] = TILE,
) -> Float[Tensor, "... Tq Dv"]:
    r"""Scaled dot-product attention in memory that grows with the length, not with its square.

    .. math:: O = \mathrm{softmax}\big(Q K^\top / \sqrt{D}\big) V

    The numbers are those of :func:`~attention_lib.attention.attend` up to rounding, gradients
    included; second derivatives are refused. Tiles that a mask empties are not computed;
    :meth:`~attention_lib.masks.Mask.tile` says which. Heads are taken in turn: this is for long
    sequences on a CPU, not for many short ones. Keys and values must be finite, masked ones too.

    Args:
        query: Queries, (..., Tq, D).
        key: Keys, (..., Tk, D).
        value: Values, (..., Tk, Dv).
        mask: A :class:`~attention_lib.masks.Mask`, which is only ever written out for one tile, or
            a boolean tensor that broadcasts to (..., Tq, Tk); True means "may attend".
        scale: Factor in place of :math:`1/\sqrt{D}`.
        tile: Queries and keys of one tile, each at least 1.

    Returns:
        Output, (..., Tq, Dv), computed in at least float32; 0 for a query that may attend to
        nothing.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes, devices or the tile do not fit.
        RuntimeError: From the backward pass, under ``create_graph=True``.

    Example:
        >>> from attention_lib.attention import attend
        >>> query, key, value = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
        >>> output = attend_tiled(query, key, value, tile=(2, 2))
        >>> torch.allclose(output, attend(query, key, value), atol=1e-5)
        True

    Source:
        Dao (2023), algorithms 1 and 2; Rabe and Staats (2021), section 2. Chapter 16.
    """
    return attend_tiled_lse(query, key, value, mask, scale=scale, tile=tile)[0]


def attend_tiled_lse(
    query: Float[Tensor, "... Tq D"],
    key: Float[Tensor, "... Tk D"],
    value: Float[Tensor, "... Tk Dv"],
    mask: Mask | Bool[Tensor, "..."] | None = None,
    *,
    scale: float | None = None,
    tile: tuple[int, int] = TILE,
) -> tuple[Float[Tensor, "... Tq Dv"], Float[Tensor, "... Tq"]]:
    r"""Tiled attention that also returns each query's log-sum-exp, by which parts can be merged.

    .. math:: L_i = \ln \sum_j \exp(q_i \cdot k_j / \sqrt{D})

    Both results can be differentiated.

    Args:
        query: As in :func:`attend_tiled`.
        key: As in :func:`attend_tiled`.
        value: As in :func:`attend_tiled`.
        mask: As in :func:`attend_tiled`.
        scale: As in :func:`attend_tiled`.
        tile: As in :func:`attend_tiled`.

    Returns:
        Output, (..., Tq, Dv), and log-sum-exp, (..., Tq), in at least float32; 0 and minus
        infinity for a query that may attend to nothing.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes, devices or the tile do not fit.

    Example:
        >>> query, key, value = torch.zeros(1, 2), torch.zeros(4, 2), torch.ones(4, 2)
        >>> output, lse = attend_tiled_lse(query, key, value)
        >>> lse.exp().round(decimals=3).tolist()  # four scores of 0
        [4.0]

    Source:
        Dao (2023), algorithm 1, which returns both. Chapter 16.
    """
    check_query_key_value(query, key, value)
    if not isinstance(tile, tuple) or len(tile) != 2:
        raise TypeError(f"tile must be a pair (queries, keys), got {tile!r}")
    for side, size in enumerate(tile):
        check_count(f"tile[{side}]", size, least=1)
    batch = broadcast(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    full = (*batch, query.shape[-2], key.shape[-2])
    if mask is not None:
        check_mask(_whole(mask, full, query), full, "(..., Tq, Tk)", query)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    # Casting and broadcasting outside leaves their gradients to PyTorch.
    dtype = at_least_float32(query.dtype)
    wide = [tensor.to(dtype).expand(*batch, *tensor.shape[-2:]) for tensor in (query, key, value)]
    output, lse = _Tiled.apply(*wide, mask, factor, tile)  # type: ignore[no-untyped-call]
    return output.to(query.dtype), lse


class _Tiled(torch.autograd.Function):
    """Tiled attention for inputs of equal leading dimensions, of at least float32."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Mask | Tensor | None,
        scale: float,
        tile: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        batch = query.shape[:-2]
        output = value.new_zeros(*query.shape[:-1], value.shape[-1])
        lse = query.new_empty(query.shape[:-1])
        scratch = query.new_empty(_size(query, key, tile))
        # A finite start: minus infinity (a blocked score) minus it is minus infinity, not NaN.
        lowest = torch.finfo(query.dtype).min
        for rows, columns in _tiles(mask, query, key, tile):
            for head in itertools.product(*map(range, batch)):
                q = query[head][rows] * (scale * LOG2_E)  # (tq, D)
                running = output[head][rows]  # (tq, Dv), a view: the output is built in place
                top = q.new_full((len(q), 1), lowest)
                total = q.new_zeros(len(q), 1)
                for at, blocked in _for_head(columns, head):
                    scores = _scores(q, key[head][at], blocked, scratch)  # (tq, tk)
                    before, top = top, torch.maximum(top, scores.amax(dim=1, keepdim=True))
                    shrink = torch.exp2(before - top)
                    powers = scores.sub_(top).exp2_()
                    total = total.mul_(shrink).add_(powers.sum(dim=1, keepdim=True))
                    running.mul_(shrink).addmm_(powers, value[head][at])
                running.div_(total.masked_fill(total == 0, 1))
                lse[head][rows] = (top + total.log2()).squeeze(1)
        dense = mask if isinstance(mask, Tensor) else None
        ctx.save_for_backward(query, key, value, output, lse, dense)
        ctx.mask, ctx.scale, ctx.tile = mask, scale, tile
        return output, lse / LOG2_E

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # under create_graph: a second derivative would lack terms
            raise RuntimeError(
                "attend_tiled has first derivatives only, got create_graph=True; "
                "attend_explicit has second derivatives"
            )
        query, key, value, output, lse, dense = ctx.saved_tensors
        grad_query, grad_key, grad_value = (x.new_zeros(x.shape) for x in (query, key, value))
        weights_buffer, slopes_buffer = query.new_empty(2, _size(query, key, ctx.tile))
        lse = lse.masked_fill(lse == float("-inf"), 0)  # for minus infinity minus 0: weight 0
        mask = ctx.mask if dense is None else dense
        for rows, columns in _tiles(mask, query, key, ctx.tile):
            for head in itertools.product(*map(range, query.shape[:-2])):
                q = query[head][rows] * (ctx.scale * LOG2_E)  # (tq, D)
                grad = grad_output[head][rows].contiguous()  # (tq, Dv)
                # How a weight's gradient changes its score: relative to the row's mean of it.
                mean = (grad * output[head][rows]).sum(dim=1) - grad_lse[head][rows]
                for at, blocked in _for_head(columns, head):
                    k, v = key[head][at], value[head][at]
                    scores = _scores(q, k, blocked, weights_buffer)  # (tq, tk)
                    weights = scores.sub_(lse[head][rows].unsqueeze(1)).exp2_()
                    grad_value[head][at].addmm_(weights.mT, grad)
                    slopes = slopes_buffer[: weights.numel()].view_as(weights)
                    torch.mm(grad, v.mT, out=slopes)
                    slopes.sub_(mean.unsqueeze(1)).mul_(weights)
                    grad_query[head][rows].addmm_(slopes, k)
                    grad_key[head][at].addmm_(slopes.mT, q)
        # The queries above carried scale / ln 2, so the keys' gradient has 1 / ln 2 too much.
        return grad_query.mul_(ctx.scale), grad_key.div_(LOG2_E), grad_value, None, None, None


def _whole(mask: Mask | Tensor, full: tuple[int, ...], query: Tensor) -> Tensor:
    """A tensor with the shape that the mask would have if it were written out, but no contents."""
    if not isinstance(mask, Mask):
        return mask
    some = min(1, *full[-2:])  # one pair, if there is one, shows the leading dimensions
    leading = mask.dense(some, some, query.device).shape[:-2]
    return torch.tensor(True, device=query.device).expand(*leading, *full[-2:])


def _scores(query: Tensor, key: Tensor, blocked: Tensor | None, buffer: Tensor) -> Tensor:
    """One tile of scores, written into the buffer."""
    scores = buffer[: len(query) * len(key)].view(len(query), len(key))
    torch.mm(query, key.mT, out=scores)
    return scores if blocked is None else scores.masked_fill_(blocked, float("-inf"))


def _size(query: Tensor, key: Tensor, tile: tuple[int, int]) -> int:
    """Numbers in the largest tile."""
    return min(tile[0], query.shape[-2]) * min(tile[1], key.shape[-2])


# What one tile of queries has to look at: where the keys lie, and what is blocked among them.
Columns = list[tuple[slice, Tensor | None]]


def _tiles(
    mask: Mask | Tensor | None, query: Tensor, key: Tensor, tile: tuple[int, int]
) -> Iterator[tuple[slice, Columns]]:
    """For each tile of queries, the tiles of keys that are not empty for all heads."""
    full = (*query.shape[:-1], key.shape[-2])
    dense = mask.expand(*mask.shape[:-2], *full[-2:]) if isinstance(mask, Tensor) else None
    for row in range(0, full[-2], tile[0]):
        rows = slice(row, min(row + tile[0], full[-2]))
        columns: Columns = []
        for column in range(0, full[-1], tile[1]):
            at = slice(column, min(column + tile[1], full[-1]))
            if isinstance(mask, Mask):
                kind, blocked = _from_rule(mask, rows, at, full[-1] - full[-2], query.device)
            elif dense is not None:
                kind, blocked = "partial", ~dense[..., rows, at]
            else:
                kind, blocked = "full", None
            if blocked is not None:
                blocked = blocked.expand(*full[:-2], rows.stop - row, at.stop - column)
            if kind != "empty":
                columns.append((at, blocked))
        yield rows, columns


def _from_rule(
    mask: Mask, rows: slice, at: slice, offset: int, device: torch.device
) -> tuple[str, Tensor | None]:
    """What the rule says about a tile, written out only where it allows some pairs and not all."""
    # The queries stand at the last positions, ``offset`` further on than their rows.
    queries, keys = range(rows.start + offset, rows.stop + offset), range(at.start, at.stop)
    kind = mask.tile(queries, keys)
    if kind != "partial":
        return kind, None
    query_positions = torch.arange(queries.start, queries.stop, device=device)
    key_positions = torch.arange(keys.start, keys.stop, device=device)
    return kind, ~mask.rule(query_positions[:, None], key_positions[None, :])


def _for_head(columns: Columns, head: tuple[int, ...]) -> Iterator[tuple[slice, Tensor | None]]:
    """The tiles of one head, without those that block all of it."""
    for at, blocked in columns:
        if blocked is None:
            yield at, None
        elif not blocked[head].all():
            yield at, blocked[head]
