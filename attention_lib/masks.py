"""Masks: which keys may a query attend to? True means "may attend". Chapter 05.

A mask is a rule about positions, not a matrix. It becomes a matrix only when a length is known, and
rules combine with ``&``. Keys stand at positions 0 .. Tk - 1. Queries are the last Tq of those
positions, so that one new query in front of a long cache is allowed to see all of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from attention_lib._checks import check_count, shape


@dataclass(frozen=True)
class Mask:
    """A rule that says which query position may attend to which key position.

    Args:
        rule: Takes query positions (Tq, 1) and key positions (1, Tk) as integer tensors and returns
            a boolean tensor that broadcasts to (..., Tq, Tk).
        name: What the rule is called in error messages and figures.
        interval: Where the keys that a query may attend to stand side by side, a function from
            query positions (Tq,) to the first and the last such key, (Tq,) each; a last key before
            the first means none. It says the same as the rule, and :meth:`tile` is quicker by it.

    Example:
        >>> even = Mask(lambda query, key: key % 2 == 0, "even")
        >>> (even & causal()).dense(3, 3).long()
        tensor([[1, 0, 0],
                [1, 0, 0],
                [1, 0, 1]])

    Source:
        The idea of a composable predicate follows PyTorch's FlexAttention. Chapters 03 and 05.
    """

    rule: Callable[[Tensor, Tensor], Tensor]
    name: str
    interval: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None

    def __and__(self, other: "Mask") -> "Mask":
        """Both rules must allow the pair."""
        if not isinstance(other, Mask):
            return NotImplemented
        first, second = self.rule, other.rule
        return Mask(
            lambda query, key: first(query, key) & second(query, key),
            f"{self.name} & {other.name}",
            _intersection(self.interval, other.interval),
        )

    def dense(
        self, query_length: int, key_length: int, device: torch.device | str | None = None
    ) -> Bool[Tensor, "... Tq Tk"]:
        """Write the rule out as a boolean matrix.

        Args:
            query_length: Tq, at least 0.
            key_length: Tk, at least 0.
            device: Where the matrix is made.

        Returns:
            True where the query may attend, (..., Tq, Tk).

        Raises:
            TypeError: If a length is not an integer.
            ValueError: If a length is negative.
        """
        allowed = self.compact(query_length, key_length, device)
        return allowed.expand(*allowed.shape[:-2], query_length, key_length)

    def compact(
        self, query_length: int, key_length: int, device: torch.device | str | None = None
    ) -> Bool[Tensor, "... _ _"]:
        """Write the rule out like :meth:`dense`, but not along positions that it does not look at.

        Args:
            query_length: As in :meth:`dense`.
            key_length: As in :meth:`dense`.
            device: As in :meth:`dense`.

        Returns:
            True where the query may attend; broadcasts to (..., Tq, Tk).

        Raises:
            TypeError: As :meth:`dense`.
            ValueError: As :meth:`dense`.
        """
        check_count("query_length", query_length, least=0)
        check_count("key_length", key_length, least=0)
        key = torch.arange(key_length, device=device)
        query = torch.arange(query_length, device=device) + (key_length - query_length)
        return self.rule(query[:, None], key[None, :])

    def tile(self, queries: range, keys: range) -> Literal["full", "partial", "empty"]:
        """Say whether the rule allows all, some or none of the pairs of a rectangle.

        Work on an empty tile can be skipped, and a full tile needs no mask.

        Args:
            queries: Positions of the queries, of step 1.
            keys: Positions of the keys, of step 1.

        Returns:
            ``"full"``, ``"partial"`` or ``"empty"``; a tile without pairs is empty.

        Raises:
            ValueError: If a range does not have step 1.

        Source:
            Dao et al. (2022), section 3.3, for skipping empty tiles. Chapter 05.
        """
        for name, positions in (("queries", queries), ("keys", keys)):
            if positions.step != 1:
                raise ValueError(f"{name} must be a range of step 1, got step {positions.step}")
        if not queries or not keys:
            return "empty"
        query = torch.arange(queries.start, queries.stop)
        if self.interval is not None:  # two numbers a query instead of one a pair
            first, last = self.interval(query)
            whole = (first <= keys[0]) & (last >= keys[-1])
            some = (first <= last) & (first <= keys[-1]) & (last >= keys[0])
        else:
            whole = some = self.rule(query[:, None], torch.arange(keys.start, keys.stop)[None, :])
        if whole.all():
            return "full"
        return "partial" if some.any() else "empty"


def _intersection(
    first: Callable[[Tensor], tuple[Tensor, Tensor]] | None,
    second: Callable[[Tensor], tuple[Tensor, Tensor]] | None,
) -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
    """The interval of two masks together; the common part of two intervals is one again."""
    if first is None or second is None:
        return None

    def common(query: Tensor) -> tuple[Tensor, Tensor]:
        (start, end), (other_start, other_end) = first(query), second(query)
        return torch.maximum(start, other_start), torch.minimum(end, other_end)

    return common


# One object, so that attend() can recognise it and use PyTorch's own causal path.
_CAUSAL = Mask(
    lambda query, key: key <= query, "causal", lambda query: (torch.zeros_like(query), query)
)


def causal() -> Mask:
    r"""Allow each position to attend to itself and to what came before.

    .. math:: m_{ij} = [\, j \le i \,]

    where i is the query's position, :math:`T_k - T_q` for the first row of ``dense``.

    Returns:
        The mask; aligned at the last position when Tq and Tk differ.

    Example:
        >>> causal().dense(3, 3).long()
        tensor([[1, 0, 0],
                [1, 1, 0],
                [1, 1, 1]])
        >>> causal().dense(1, 3).tolist()
        [[True, True, True]]

    Source:
        Vaswani et al. (2017), section 3.2.3. Chapters 03 and 05.
    """
    return _CAUSAL


def padding(lengths: Integer[Tensor, "..."]) -> Mask:
    r"""Allow only the first ``lengths`` keys of each sequence; the rest is padding.

    .. math:: m_{bij} = [\, j < \ell_b \,]

    Args:
        lengths: Number of real keys of each sequence, (B,). For scores with a head dimension,
            (B, H, Tq, Tk), pass (B, 1).

    Returns:
        The mask; ``dense`` gives it the shape (B, Tq, Tk).

    Raises:
        TypeError: If ``lengths`` is not an integer tensor.
        ValueError: If a length is negative.

    Example:
        >>> padding(torch.tensor([1, 3])).dense(1, 3).tolist()
        [[[True, False, False]], [[True, True, True]]]

    Source:
        Chapters 03 and 05.
    """
    _check_integers("lengths", lengths)
    ends = lengths.clone()[..., None, None]  # (B, 1, 1); a copy, so later edits do not leak in
    return Mask(lambda query, key: key < ends.to(key.device), f"padding{shape(lengths)}")


def sliding_window(before: int, after: int = 0) -> Mask:
    r"""Allow the keys from ``before`` positions back to ``after`` positions ahead.

    .. math:: m_{ij} = [\, i - \text{before} \le j \le i + \text{after} \,]

    With ``after`` = 0 the window is causal and holds ``before`` + 1 keys.

    Args:
        before: Keys before the query, at least 0.
        after: Keys after the query, at least 0.

    Returns:
        The mask.

    Raises:
        TypeError: If an argument is not an integer.
        ValueError: If an argument is negative.

    Example:
        >>> sliding_window(1).dense(4, 4).long()
        tensor([[1, 0, 0, 0],
                [1, 1, 0, 0],
                [0, 1, 1, 0],
                [0, 0, 1, 1]])

    Source:
        Beltagy, Peters and Cohan (2020), section 3.1. Chapter 05.
    """
    check_count("before", before, least=0)
    check_count("after", after, least=0)
    return Mask(
        lambda query, key: (key >= query - before) & (key <= query + after),
        f"window({before}, {after})",
        lambda query: (query - before, query + after),
    )


def prefix(lengths: Integer[Tensor, "..."]) -> Mask:
    r"""Allow every query the first ``lengths`` keys, and beyond them only its past and itself.

    .. math:: m_{bij} = [\, j < \ell_b \,] \lor [\, j \le i \,]

    A question may be read in both directions while the answer is generated from left to right.

    Args:
        lengths: Length of each sequence's prefix, (B,), or () for one prefix length for all.

    Returns:
        The mask; ``dense`` gives it the shape (B, Tq, Tk).

    Raises:
        TypeError: If ``lengths`` is not an integer tensor.
        ValueError: If a length is negative.

    Example:
        >>> prefix(torch.tensor(2)).dense(4, 4).long()
        tensor([[1, 1, 0, 0],
                [1, 1, 0, 0],
                [1, 1, 1, 0],
                [1, 1, 1, 1]])

    Source:
        Raffel et al. (2020), section 3.2.1, "causal with prefix". Chapter 05.
    """
    _check_integers("lengths", lengths)
    ends = lengths.clone()[..., None, None]  # (B, 1, 1)
    return Mask(
        lambda query, key: (key < ends.to(key.device)) | (key <= query), f"prefix{shape(lengths)}"
    )


def document(ids: Integer[Tensor, "... T"]) -> Mask:
    r"""Allow only pairs of the same document, in a sequence packed from several.

    .. math:: m_{bij} = [\, d_{bi} = d_{bj} \,]

    Args:
        ids: Number of the document to which each position belongs, (B, T) or (T,).

    Returns:
        The mask; ``dense`` gives it the shape (B, Tq, Tk), for lengths of at most T.

    Raises:
        TypeError: If ``ids`` is not an integer tensor.
        ValueError: If an id is negative; from ``dense``, if there are positions without an id.

    Example:
        >>> document(torch.tensor([0, 0, 1])).dense(3, 3).long()
        tensor([[1, 1, 0],
                [1, 1, 0],
                [0, 0, 1]])

    Source:
        Krell et al. (2021), on packing without cross-contamination. Chapter 05.
    """
    _check_integers("ids", ids)
    if ids.ndim == 0:
        raise ValueError(f"ids must have at least 1 dimension, got shape {shape(ids)}")
    owners, length = ids.clone(), ids.shape[-1]

    def same(query: Tensor, key: Tensor) -> Tensor:
        for positions in (query, key):
            if positions.is_meta or not positions.numel():  # there are no numbers to check
                continue
            first, last = int(positions.min()), int(positions.max())
            if first < 0 or last >= length:
                raise ValueError(
                    f"positions must lie in 0 .. {length - 1}, where ids has an entry, "
                    f"got {first} .. {last}"
                )
        here = owners.to(key.device)
        return here[..., query[:, 0]].unsqueeze(-1) == here[..., key[0]].unsqueeze(-2)

    return Mask(same, f"document{shape(ids)}")


def for_torch_attention(
    mask: Mask, query_length: int, key_length: int, heads: int
) -> Bool[Tensor, "..."]:
    """Write a mask out in the convention of ``torch.nn.MultiheadAttention``: True means blocked.

    ``scaled_dot_product_attention`` reads True as "may attend", as this book does, so that
    ``mask.dense`` serves it. ``nn.MultiheadAttention`` and ``nn.Transformer`` read True as "may
    not", and want one matrix, or one for each sequence and head. This is the only place where the
    book turns a mask round.

    Args:
        mask: The mask; its ``dense`` is (Tq, Tk) or (B, Tq, Tk).
        query_length: Tq.
        key_length: Tk.
        heads: H, number of heads of the module.

    Returns:
        True where the query may not attend, (Tq, Tk) or (B * H, Tq, Tk).

    Raises:
        TypeError: If ``heads`` or a length is not an integer.
        ValueError: If one of them is too small, or the mask has more than one leading dimension.

    Example:
        >>> for_torch_attention(causal(), 2, 2, heads=1).tolist()
        [[False, True], [False, False]]

    Source:
        PyTorch documentation of ``torch.nn.MultiheadAttention``, ``attn_mask``. Chapter 05.
    """
    check_count("heads", heads, least=1)
    blocked = ~mask.dense(query_length, key_length)
    if blocked.ndim > 3:
        raise ValueError(
            f"mask must be (Tq, Tk) or (B, Tq, Tk) when written out, got {shape(blocked)}"
        )
    return blocked if blocked.ndim == 2 else blocked.repeat_interleave(heads, dim=0)


def _check_integers(name: str, tensor: Tensor) -> None:
    """Require a tensor of integers of at least 0."""
    if (
        not isinstance(tensor, Tensor)
        or tensor.is_floating_point()
        or tensor.is_complex()
        or tensor.dtype == torch.bool
    ):
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be an integer tensor, got {got}")
    if (tensor < 0).any():
        raise ValueError(f"{name} must be at least 0, got a smallest of {int(tensor.min())}")
