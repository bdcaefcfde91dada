"""Masks: which keys may a query attend to? True means "may attend". Chapters 03 and 05.

A mask is a rule about positions, not a matrix. It becomes a matrix only when a length is known, and
rules combine with ``&``. Keys stand at positions 0 .. Tk - 1. Queries are the last Tq of those
positions, so that one new query in front of a long cache is allowed to see all of it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from attention_lib._checks import shape


@dataclass(frozen=True)
class Mask:
    """A rule that says which query position may attend to which key position.

    Args:
        rule: Takes query positions (Tq, 1) and key positions (1, Tk) as integer tensors and returns
            a boolean tensor that broadcasts to (..., Tq, Tk).
        name: What the rule is called in error messages and figures.

    Source:
        The idea of a composable predicate follows PyTorch's FlexAttention. Chapters 03 and 05.
    """

    rule: Callable[[Tensor, Tensor], Tensor]
    name: str

    def __and__(self, other: "Mask") -> "Mask":
        """Both rules must allow the pair."""
        if not isinstance(other, Mask):
            return NotImplemented
        first, second = self.rule, other.rule
        return Mask(
            lambda query, key: first(query, key) & second(query, key), f"{self.name} & {other.name}"
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
            ValueError: If a length is negative.
        """
        for name, length in (("query_length", query_length), ("key_length", key_length)):
            if length < 0:
                raise ValueError(f"{name} must be at least 0, got {length}")
        key = torch.arange(key_length, device=device)
        query = torch.arange(query_length, device=device) + (key_length - query_length)
        allowed = self.rule(query[:, None], key[None, :])
        return allowed.expand(*allowed.shape[:-2], query_length, key_length)


# One object, so that attend() can recognise it and use PyTorch's own causal path.
_CAUSAL = Mask(lambda query, key: key <= query, "causal")


def causal() -> Mask:
    r"""Allow each position to attend to itself and to what came before.

    .. math:: m_{ij} = [\, j \le i + (T_k - T_q) \,]

    Returns:
        The mask; aligned at the last position when Tq and Tk differ.

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

    Source:
        Chapters 03 and 05.
    """
    if (
        not isinstance(lengths, Tensor)
        or lengths.is_floating_point()
        or lengths.dtype == torch.bool
    ):
        got = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(f"lengths must be an integer tensor, got {got}")
    if (lengths < 0).any():
        raise ValueError(f"lengths must be at least 0, got a smallest of {int(lengths.min())}")
    ends = lengths.clone()[..., None, None]  # (B, 1, 1); a copy, so later edits do not leak in
    return Mask(lambda query, key: key < ends.to(key.device), f"padding{shape(lengths)}")
