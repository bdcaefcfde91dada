"""Low-rank attention: n keys and values mixed into r before anybody looks at them. Chapter 18.

The mixing runs along the length. Where each of the r new keys holds something of every position,
no mask makes it causal; means over runs could be shown to the queries after a run, which this file
does not do. A learned projection fits one length only.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attention_lib._checks import check_batches, check_count, check_float, check_like, shape
from attention_lib.attention import attend


def attend_low_rank(
    query: Float[Tensor, "... Tq D"],
    key: Float[Tensor, "... Tk D"],
    value: Float[Tensor, "... Tk Dv"],
    key_projection: Float[Tensor, "... R Tk"],
    value_projection: Float[Tensor, "... R Tk"],
) -> Float[Tensor, "... Tq Dv"]:
    r"""Attention to R mixtures of the keys and values, in time linear in both lengths.

    .. math:: O = \mathrm{softmax}\big(Q \, (E_K K)^\top / \sqrt{D}\big) \, E_V V

    There is no mask: a mixture may hold every position, and changing the last key can change the
    first output.

    Args:
        query: Queries, (..., Tq, D).
        key: Keys, (..., Tk, D).
        value: Values, (..., Tk, Dv).
        key_projection: E_K, how much of each key goes into each mixture, (..., R, Tk).
        value_projection: E_V, the same for the values, (..., R, Tk).

    Returns:
        Output, (..., Tq, Dv).

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes or devices do not fit.

    Example:
        >>> query, key, value = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
        >>> output = attend_low_rank(query, key, value, torch.eye(5), torch.eye(5))
        >>> torch.allclose(output, attend(query, key, value), atol=1e-5)
        True

    Source:
        Wang et al. (2020), section 4, equation 7. Chapter 18.
    """
    mixed = []
    pairs = (("key", key, key_projection), ("value", value, value_projection))
    for name, x, projection in pairs:
        check_float(name, x, rank=2)
        check_float(f"{name}_projection", projection, rank=2)
        check_like(f"{name}_projection", projection, name, x)
        if projection.shape[-1] != x.shape[-2]:
            raise ValueError(
                f"{name}_projection must have one column for each {name}, {x.shape[-2]}, "
                f"got shape {shape(projection)}"
            )
        check_batches(**{name: x, f"{name}_projection": projection})
        mixed.append(projection @ x)  # (..., R, D)
    return attend(query, *mixed)


def pooling_projection(length: int, rank: int) -> Float[Tensor, "R T"]:
    r"""A projection without parameters: the mean over each of R runs of neighbours.

    .. math:: E_{rj} = 1 / |I_r| \ \text{for}\ j \in I_r, \qquad
              I_r = \{\lfloor r T / R \rfloor, \dots, \lfloor (r + 1) T / R \rfloor - 1\}

    With R = T it is the identity, and low-rank attention is exact.

    Args:
        length: T, number of positions, at least 1.
        rank: R, number of runs, from 1 to ``length``; their lengths differ by at most 1.

    Returns:
        The projection, (R, T), in float32.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If ``rank`` is not in 1 .. ``length``.

    Example:
        >>> pooling_projection(4, 2).tolist()
        [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]

    Source:
        Wang et al. (2020), section 4, where pooling is named as one of the projections. Chapter 18.
    """
    _check_rank(length, rank)
    borders = torch.arange(rank + 1) * length // rank  # (R + 1,)
    place = torch.arange(length)
    inside = (place >= borders[:-1, None]) & (place < borders[1:, None])  # (R, T)
    return inside / inside.sum(dim=-1, keepdim=True)


class LowRankAttention(nn.Module):
    r"""Low-rank attention that owns its two projections, learned for one length.

    .. math:: O = \mathrm{softmax}\big(Q \, (E_K K)^\top / \sqrt{D}\big) \, E_V V

    They are shared by all sequences and heads, and start with independent normal entries of
    variance 1 / R, as in the theorem of the source.

    Args:
        length: T, the one number of keys that fits, at least 1.
        rank: R, number of mixtures, from 1 to ``length``.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If ``rank`` is not in 1 .. ``length``; from a call, if there are not ``length``
            keys and values.

    Example:
        >>> attention, x = LowRankAttention(length=6, rank=2), torch.zeros(1, 6, 4)
        >>> tuple(attention.key_projection.shape), tuple(attention(x, x, x).shape)
        ((2, 6), (1, 6, 4))

    Source:
        Wang et al. (2020), sections 3 and 4. Chapter 18.
    """

    def __init__(self, length: int, rank: int) -> None:
        super().__init__()
        _check_rank(length, rank)
        self.key_projection = nn.Parameter(torch.randn(rank, length) * rank**-0.5)
        self.value_projection = nn.Parameter(torch.randn(rank, length) * rank**-0.5)

    def forward(
        self,
        query: Float[Tensor, "... Tq D"],
        key: Float[Tensor, "... Tk D"],
        value: Float[Tensor, "... Tk Dv"],
    ) -> Float[Tensor, "... Tq Dv"]:
        """Attend from ``query`` to the mixtures of ``key`` and ``value``.

        Args:
            query: Queries, (..., Tq, D).
            key: Keys, (..., Tk, D) with Tk = ``length``.
            value: Values, (..., Tk, Dv).

        Returns:
            Output, (..., Tq, Dv).
        """
        return attend_low_rank(query, key, value, self.key_projection, self.value_projection)


def _check_rank(length: int, rank: int) -> None:
    check_count("length", length, least=1)
    check_count("rank", rank, least=1)
    if rank > length:
        raise ValueError(f"rank must be at most length = {length}, got {rank}")
