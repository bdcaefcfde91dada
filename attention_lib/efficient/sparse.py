"""Block-sparse attention: a mask is cut into square blocks, and empty blocks cost nothing.

The mask stays a rule; it is written out only for the blocks that are computed. Chapter 18.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from attention_lib._checks import (
    at_least_float32,
    broadcast,
    check_broadcast,
    check_count,
    check_query_key_value,
    flatten_batch,
    shape,
)
from attention_lib.attention import attend
from attention_lib.masks import Mask


def block_layout(
    mask: Mask, query_length: int, key_length: int, block: int = 64
) -> Int[Tensor, "rows columns"]:
    r"""Which blocks of the score matrix does a mask leave empty, open in part, or open in full?

    .. math::
        \ell_{ab} = [\text{a pair of block } (a, b) \text{ is allowed}]
        + [\text{all pairs of block } (a, b) \text{ are allowed}]

    The rule is asked for one row of blocks at a time, so memory is linear in ``key_length``; time
    is not, since every pair is asked for once. Compute it once for a mask that is used often.

    Args:
        mask: The mask. One that differs between sequences gives one layout for all: empty means
            empty in every sequence.
        query_length: Tq; the queries stand at the last Tq positions.
        key_length: Tk.
        block: Side of a block, at least 1; the last row and column of blocks may be cut off.

    Returns:
        0 for empty, 1 for partial, 2 for full, as :meth:`Mask.tile` says;
        (ceil(Tq / block), ceil(Tk / block)).

    Raises:
        TypeError: If ``mask`` is not a :class:`Mask`, or a number is not an integer.
        ValueError: If a length is negative or ``block`` below 1.

    Example:
        >>> from attention_lib.masks import causal
        >>> block_layout(causal(), 4, 4, block=2).tolist()
        [[1, 0], [2, 1]]

    Source:
        Child et al. (2019), section 5, for computing sparse attention in blocks. Chapter 18.
    """
    _check_rule(mask)
    check_count("query_length", query_length, least=0)
    check_count("key_length", key_length, least=0)
    check_count("block", block, least=1)
    query = _positions(query_length, key_length - query_length, block)  # (rows, block)
    key = _positions(key_length, 0, block)  # (columns, block)
    layout = torch.zeros(len(query), len(key), dtype=torch.long)
    for row in range(len(query) if len(key) else 0):
        allowed = _written_out(mask, query[row, :, None], key.view(1, -1))
        pairs = allowed.flatten(0, -2)  # (N * block, columns * block)
        # First over sequences and rows, then over the columns of each block: that order is quick.
        some = pairs.any(dim=0).view(key.shape).any(dim=1)
        every = pairs.all(dim=0).view(key.shape).all(dim=1)
        layout[row] = torch.where(every, 2, some.long())
    return layout


def attend_block_sparse(
    query: Float[Tensor, "... Tq D"],
    key: Float[Tensor, "... Tk D"],
    value: Float[Tensor, "... Tk Dv"],
    mask: Mask,
    *,
    block: int = 64,
    scale: float | None = None,
    layout: Int[Tensor, "rows columns"] | None = None,
) -> Float[Tensor, "... Tq Dv"]:
    r"""Masked attention that computes only the blocks in which the mask allows something.

    .. math:: O_a = \mathrm{softmax}\big(Q_a K_{N(a)}^\top / \sqrt{D}\big) V_{N(a)}, \qquad
        N(a) = \{ b : \ell_{ab} > 0 \}

    with :math:`Q_a` a block of queries and :math:`K_{N(a)}` the keys of all its blocks that are not
    empty. The numbers are those of ``attend(query, key, value, mask)``. Nothing of size Tq x Tk is
    stored: blocks of queries that need equally many blocks of keys are computed together, a
    bounded number at a time, and the backward pass computes them again.

    Args:
        query: Queries, (..., Tq, D); they stand at the last Tq positions.
        key: Keys, (..., Tk, D).
        value: Values, (..., Tk, Dv).
        mask: The mask; written out it must broadcast to (..., Tq, Tk).
        block: Side of a block, at least 1.
        scale: Factor in place of :math:`1/\sqrt{D}`.
        layout: What :func:`block_layout` gives for this mask, these lengths and this block, if it
            is at hand. A block that it calls empty is skipped, whatever the mask says.

    Returns:
        Output, (..., Tq, Dv); 0 for a query that may attend to nothing.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes or devices do not fit, or ``block`` is below 1.

    Example:
        >>> from attention_lib.masks import sliding_window
        >>> query, key, value = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
        >>> output = attend_block_sparse(query, key, value, sliding_window(1), block=2)
        >>> torch.allclose(output, attend(query, key, value, sliding_window(1)), atol=1e-5)
        True

    Source:
        Child et al. (2019), section 4 for sparse attention, section 5 for computing it in blocks
        and again on the way back. Chapter 18.
    """
    check_query_key_value(query, key, value)
    _check_rule(mask)
    check_count("block", block, least=1)
    batch = broadcast(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    queries, keys = query.shape[-2], key.shape[-2]
    if layout is None:
        layout = block_layout(mask, queries, keys, block)
    expected = (-(-queries // block), -(-keys // block))
    if shape(layout) != expected:
        raise ValueError(
            f"layout must be (ceil(Tq / block), ceil(Tk / block)) = {expected}, "
            f"got shape {shape(layout)}"
        )
    if 0 in (*batch, queries, keys):
        return query @ key.mT @ value  # the sum over nothing: 0, and so are its gradients
    last = torch.tensor([[keys - 1]])  # one pair is enough to learn the mask's leading dimensions
    lead = _written_out(mask, last, last).shape[:-2]
    whole = torch.empty((), dtype=torch.bool).expand(*lead, queries, keys)
    check_broadcast("mask", whole, (*batch, queries, keys), "(..., Tq, Tk)")

    plan = _Plan(mask, layout, batch, queries, keys, block, scale)
    blocks = [_blocks(tensor, batch, block) for tensor in (query, key, value)]
    output = _BlockSparse.apply(*blocks, plan)  # type: ignore[no-untyped-call]
    # (N, rows, block, Dv) without the queries that only fill up the last block
    rows: Tensor = output.flatten(1, 2)[:, :queries]
    return rows.reshape(*batch, queries, value.shape[-1])


@dataclass(frozen=True)
class _Plan:
    """Which blocks meet, and how one group of them is computed."""

    mask: Mask
    layout: Tensor
    batch: tuple[int, ...]
    queries: int
    keys: int
    block: int
    scale: float | None

    def groups(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of blocks (R,) that need equally many columns, and those columns (R, C).

        R times C is at most the number of columns there are, so that the gathered keys of a group
        take no more memory than all the keys (or one row of blocks, where that takes all of them).
        """
        needed = self.layout > 0
        counts = needed.sum(dim=1)
        for count in counts[counts > 0].unique().tolist():
            rows = (counts == count).nonzero()[:, 0]
            for part in rows.split(self.layout.shape[1] // count):
                yield part, needed[part].nonzero()[:, 1].view(len(part), count)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor
    ) -> Tensor:
        """Attention of (N, R, block, D) queries to their own (N, R, C, block, D) keys."""
        allowed = self._allowed(rows, columns)
        if allowed is not None:
            allowed = allowed.to(query.device)
        return attend(query, key.flatten(2, 3), value.flatten(2, 3), allowed, scale=self.scale)

    def _allowed(self, rows: Tensor, columns: Tensor) -> Tensor | None:
        """The mask of one group, (N or 1, R, block, C * block), or None if it allows all."""
        whole = columns < self.keys // self.block  # not the block that sticks out at the end
        if (whole & (self.layout[rows[:, None], columns] == 2)).all():
            return None
        step = torch.arange(self.block)
        query = (rows[:, None] * self.block + step).clamp(max=self.queries - 1)  # (R, block)
        query = query + (self.keys - self.queries)
        key = (columns[:, :, None] * self.block + step).flatten(1)  # (R, C * block)
        inside = key < self.keys
        key = key.clamp(max=self.keys - 1)  # a rule is never asked about positions beyond the end
        pairs = zip(query, key, inside, strict=True)
        tables = [_written_out(self.mask, q[:, None], k[None, :]) & ok for q, k, ok in pairs]
        allowed = torch.stack(tables, dim=-3)  # (..., R, block, C * block)
        if allowed.ndim == 3:
            return allowed[None]
        return allowed.expand(*self.batch, *allowed.shape[-3:]).flatten(0, -4)


class _BlockSparse(torch.autograd.Function):
    """Attention group by group; backward repeats each group, so that no gathered key is kept."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: _Plan) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.plan = plan
        output = query.new_zeros(*query.shape[:-1], value.shape[-1])
        for rows, columns in plan.groups():
            gathered = query[:, rows], key[:, columns], value[:, columns]
            output[:, rows] = plan.attend(*gathered, rows, columns)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        # A key is in many groups: its gradient is summed in at least float32.
        totals = [torch.zeros_like(x, dtype=at_least_float32(x.dtype)) for x in saved]
        for rows, columns in ctx.plan.groups():
            places = rows, columns, columns
            leaves = [x[:, at].requires_grad_() for x, at in zip(saved, places, strict=True)]
            with torch.enable_grad():
                output = ctx.plan.attend(*leaves, rows, columns)
            gradients = torch.autograd.grad(output, leaves, upstream[:, rows])
            for total, at, gradient in zip(totals, places, gradients, strict=True):
                flat = gradient.flatten(1, at.ndim).to(total.dtype)  # (N, R or R * C, block, D)
                total.index_add_(1, at.flatten().to(total.device), flat)
        return *(t.to(x.dtype) for t, x in zip(totals, saved, strict=True)), None


def _blocks(tensor: Tensor, batch: tuple[int, ...], block: int) -> Tensor:
    """Cut (..., T, D) into blocks, (N, ceil(T / block), block, D), the last filled up with 0."""
    tensor = flatten_batch(tensor, batch)
    missing = -tensor.shape[1] % block
    if missing:
        tensor = pad(tensor, (0, 0, 0, missing))
    return tensor.view(len(tensor), -1, block, tensor.shape[-1])


def _positions(length: int, first: int, block: int) -> Tensor:
    """Positions first .. first + length - 1 in rows of ``block``; the last is repeated to fill up.

    A repeated position changes neither "all" nor "any", and a rule is never asked about a position
    that does not exist.
    """
    steps = torch.arange(-(-length // block) * block).clamp(max=max(0, length - 1))
    return (first + steps).view(-1, block)


def _written_out(mask: Mask, query: Tensor, key: Tensor) -> Bool[Tensor, "... q k"]:
    """The rule for query positions (q, 1) and key positions (1, k), in its full shape."""
    allowed = mask.rule(query, key)
    return allowed.expand(*allowed.shape[:-2], query.shape[0], key.shape[1])


def _check_rule(mask: Mask) -> None:
    if not isinstance(mask, Mask):
        raise TypeError(f"mask must be a Mask, got {type(mask).__name__}")
