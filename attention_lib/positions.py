"""Positions: what tells attention the order of its inputs. Chapter 08.

They enter in three places: a vector added to each embedding (:class:`Sinusoidal`,
:class:`Learned`), a rotation of queries and keys (:class:`Rotary`), a number added to each score
(:class:`Alibi`, :class:`RelativeBias`). ``offset`` is the position of the first query, which is not
0 when earlier keys are kept in a cache.
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attention_lib._checks import at_least_float32, check_count, check_float, check_positive, shape


def sinusoidal_table(
    length: int, width: int, *, base: float = 10000.0, offset: int = 0
) -> Float[Tensor, "T D"]:
    r"""Sines and cosines of each position at frequencies that fall from 1 towards 1 / base.

    .. math:: P_{t,2i} = \sin(t\,\omega_i), \quad P_{t,2i+1} = \cos(t\,\omega_i), \quad
              \omega_i = \text{base}^{-2i/D}

    Args:
        length: T, number of positions.
        width: D, an even number.
        base: Sets the lowest frequency.
        offset: First position.

    Returns:
        Table in float32, (T, D).

    Raises:
        TypeError: If ``length``, ``width`` or ``offset`` is not an integer, ``base`` not a number.
        ValueError: If ``width`` is odd or an argument is too small.

    Example:
        >>> sinusoidal_table(2, 2).round(decimals=3)
        tensor([[0.0000, 1.0000],
                [0.8410, 0.5400]])

    Source:
        Vaswani et al. (2017), section 3.5. Chapter 08.
    """
    check_count("length", length, least=0)
    angles = _angles(length, width, base, offset, None)  # (T, D / 2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2).float()


class Sinusoidal(nn.Module):
    """Add :func:`sinusoidal_table` to the embeddings.

    Args:
        width: D, an even number.
        base: Sets the lowest frequency.

    Raises:
        TypeError: If ``width`` is not an integer.
        ValueError: If ``width`` is odd or less than 2, or ``base`` is not above 0.

    Example:
        >>> x = torch.ones(3, 4)
        >>> torch.equal(Sinusoidal(4)(x), x + sinusoidal_table(3, 4))
        True

    Source:
        Vaswani et al. (2017), section 3.5. Chapter 08.
    """

    def __init__(self, width: int, *, base: float = 10000.0) -> None:
        super().__init__()
        _check_even("width", width)
        check_positive("base", base)
        self.width, self.base = width, base

    def forward(self, x: Float[Tensor, "... T D"], offset: int = 0) -> Float[Tensor, "... T D"]:
        """Add the rows ``offset`` .. ``offset + T - 1`` of the table to ``x``."""
        _check_width("x", x, self.width)
        table = sinusoidal_table(x.shape[-2], self.width, base=self.base, offset=offset)
        return x + table.to(x.device, x.dtype)


class Learned(nn.Module):
    """Add a learned vector to the embedding at each position.

    Args:
        length: Largest number of positions; there is no vector beyond it.
        width: D.

    Raises:
        TypeError: If an argument is not an integer.
        ValueError: If an argument is less than 1; from ``forward``, if a position has no vector.

    Example:
        >>> positions, x = Learned(length=10, width=4), torch.ones(3, 4)
        >>> torch.equal(positions(x, offset=2), x + positions.table[2:5])
        True

    Source:
        Gehring et al. (2017), section 3.1; Devlin et al. (2019), section 3. Chapter 08.
    """

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        check_count("length", length, least=1)
        check_count("width", width, least=1)
        self.table = nn.Parameter(torch.empty(length, width))
        nn.init.normal_(self.table, std=0.02)

    def forward(self, x: Float[Tensor, "... T D"], offset: int = 0) -> Float[Tensor, "... T D"]:
        """Add the rows ``offset`` .. ``offset + T - 1`` of the table to ``x``."""
        _check_width("x", x, self.table.shape[-1])
        check_count("offset", offset, least=0)
        end = offset + x.shape[-2]
        if end > len(self.table):
            raise ValueError(
                f"x must end at position {len(self.table)} at the latest, where the table of "
                f"learned positions ends, got offset {offset} + length {x.shape[-2]} = {end}"
            )
        return x + self.table[offset:end]


class Position(nn.Module):
    """What a position inside attention may do; this one does nothing.

    Subclasses override :meth:`rotate`, which changes queries and keys before they meet, or
    :meth:`bias`, which adds to the scores. Chapter 08.

    Example:
        >>> query, key = Position().rotate(torch.ones(1, 2), torch.zeros(1, 2))
        >>> query.tolist(), key.tolist()
        ([[1.0, 1.0]], [[0.0, 0.0]])

    Source:
        Chapter 08.
    """

    def rotate(
        self, query: Float[Tensor, "... Tq Dh"], key: Float[Tensor, "... Tk Dh"], offset: int = 0
    ) -> tuple[Float[Tensor, "... Tq Dh"], Float[Tensor, "... Tk Dh"]]:
        """Return queries and keys that know their positions; both start at ``offset``."""
        return query, key

    def bias(
        self, query_length: int, key_length: int, offset: int = 0
    ) -> Float[Tensor, "H Tq Tk"] | None:
        """Return what is added to the scores; queries start at ``offset``, keys at 0."""
        return None


class Rotary(Position):
    r"""Turn each pair of features of query and key by an angle proportional to the position.

    .. math:: (x_i, x_{i+D_h/2}) \mapsto R(t\,\omega_i)\,(x_i, x_{i+D_h/2}), \quad
              \omega_i = \text{base}^{-2i/D_h}

    The score of query and key then depends on their distance only. A pair is made of features i and
    i + Dh/2 (the "half" layout, of GPT-NeoX and of Hugging Face's Llama). The paper and Meta's own
    Llama code pair features 2i and 2i + 1 (the "interleaved" layout):
    :func:`half_from_interleaved` converts.

    Args:
        head_width: Dh, an even number.
        base: Sets the lowest frequency.

    Raises:
        TypeError: If ``head_width`` is not an integer.
        ValueError: If ``head_width`` is odd or less than 2, or ``base`` is not above 0.

    Example:
        >>> x = torch.tensor([[1.0, 0.0]] * 3)
        >>> query, key = Rotary(2).rotate(x, x)
        >>> (query[:1] @ key.mT).round(decimals=3)  # the cosines of the distances 0, 1 and 2
        tensor([[ 1.0000,  0.5400, -0.4160]])

    Source:
        Su et al. (2021), section 3.2, equations 14 and 15. Chapter 08.
    """

    def __init__(self, head_width: int, *, base: float = 10000.0) -> None:
        super().__init__()
        _check_even("head_width", head_width)
        check_positive("base", base)
        self.head_width, self.base = head_width, base

    def rotate(
        self, query: Float[Tensor, "... Tq Dh"], key: Float[Tensor, "... Tk Dh"], offset: int = 0
    ) -> tuple[Float[Tensor, "... Tq Dh"], Float[Tensor, "... Tk Dh"]]:
        """Turn queries and keys, both starting at position ``offset``."""
        return self._turn("query", query, offset), self._turn("key", key, offset)

    def _turn(self, name: str, x: Tensor, offset: int) -> Tensor:
        _check_width(name, x, self.head_width)
        wide = at_least_float32(x.dtype)
        length = x.shape[-2]
        cosine, sine = _waves(length, self.head_width, self.base, offset, x.device, wide)
        x_wide = x.to(wide)
        partner = x_wide.roll(self.head_width // 2, dims=-1)  # the other feature of each pair
        return torch.addcmul(x_wide * cosine, partner, sine).to(x.dtype)


def half_from_interleaved(x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
    """Reorder features from pairs (0, 1), (2, 3), ... to pairs (0, D/2), (1, D/2 + 1), ...

    Apply it to the output features of the query and key projections (to the rows of
    ``nn.Linear.weight``, head by head) of a model that was trained with the other layout.

    Args:
        x: Features, (..., D) with D even.

    Returns:
        The same features in the order of :class:`Rotary`, (..., D).

    Raises:
        TypeError: If ``x`` is not a floating-point tensor.
        ValueError: If D is odd.

    Example:
        >>> half_from_interleaved(torch.arange(6.0)).tolist()
        [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]

    Source:
        Su et al. (2021), equation 15, for the interleaved layout. Chapter 08.
    """
    check_float("x", x, rank=1)
    _check_even("the width of x", x.shape[-1])
    pairs: Tensor = x.unflatten(-1, (-1, 2))  # (..., D / 2, 2)
    return pairs.mT.flatten(-2)


def interleaved_from_half(x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
    """Undo :func:`half_from_interleaved`.

    Args:
        x: Features, (..., D) with D even.

    Returns:
        The same features in pairs of neighbours, (..., D).

    Raises:
        TypeError: If ``x`` is not a floating-point tensor.
        ValueError: If D is odd.

    Example:
        >>> interleaved_from_half(half_from_interleaved(torch.arange(6.0))).tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]

    Source:
        Su et al. (2021), equation 15. Chapter 08.
    """
    check_float("x", x, rank=1)
    _check_even("the width of x", x.shape[-1])
    halves: Tensor = x.unflatten(-1, (2, -1))  # (..., 2, D / 2)
    return halves.mT.flatten(-2)


def alibi_slopes(heads: int) -> Float[Tensor, " H"]:
    r"""One slope a head, falling geometrically: 1/2, 1/4, ..., 1/256 for eight heads.

    .. math:: m_h = 2^{-8h/H}, \quad h = 1 \dots H \quad \text{(H a power of two)}

    Otherwise the slopes of the next smaller power of two come first, then every second slope of the
    next larger one, as in the authors' code.

    Args:
        heads: H, at least 1.

    Returns:
        Slopes in float32, (H,).

    Raises:
        TypeError: If ``heads`` is not an integer.
        ValueError: If ``heads`` is less than 1.

    Example:
        >>> alibi_slopes(4).tolist()
        [0.25, 0.0625, 0.015625, 0.00390625]

    Source:
        Press, Smith and Lewis (2022), section 3. Chapter 08.
    """
    check_count("heads", heads, least=1)
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    between = [2 ** (-4 * h / power) for h in range(1, 2 * power + 1, 2)]
    return torch.tensor(slopes + between[: heads - power])


class Alibi(Position):
    r"""Subtract from each score its distance times a slope of the head.

    .. math:: b_{hij} = -m_h\,|i - j|

    The slopes are fixed. The paper defines the bias for keys before the query; the absolute value
    extends it to both sides.

    Args:
        heads: H, at least 1.

    Raises:
        TypeError: If ``heads`` is not an integer.
        ValueError: If ``heads`` is less than 1.

    Example:
        >>> Alibi(8).bias(1, 3, offset=3)[0].tolist()  # the first head, of slope 1/2
        [[-1.5, -1.0, -0.5]]

    Source:
        Press, Smith and Lewis (2022), section 3. Chapter 08.
    """

    slopes: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes", alibi_slopes(heads), persistent=False)

    def bias(
        self, query_length: int, key_length: int, offset: int = 0
    ) -> Float[Tensor, "H Tq Tk"] | None:
        """Return minus slope times distance, (H, Tq, Tk)."""
        steps = _distances(query_length, key_length, offset, self.slopes.device)
        return -self.slopes[:, None, None] * steps.abs()


class RelativeBias(Position):
    r"""Add to each score a learned number of the head and the distance, cut off at ``reach``.

    .. math:: b_{hij} = B_{h,\,\mathrm{clip}(j - i,\,-r,\,r)}

    T5 groups far distances in logarithmic buckets; here everything beyond ``reach`` shares one
    number a side, as in Shaw et al.

    Args:
        heads: H, at least 1.
        reach: r, at least 1.

    Raises:
        TypeError: If an argument is not an integer.
        ValueError: If an argument is less than 1.

    Example:
        >>> relative = RelativeBias(heads=1, reach=1)
        >>> relative.table.data[:] = torch.tensor([[-1.0, 0.0, 1.0]])
        >>> relative.bias(3, 3).tolist()
        [[[0.0, 1.0, 1.0], [-1.0, 0.0, 1.0], [-1.0, -1.0, 0.0]]]

    Source:
        Raffel et al. (2020), section 2.1, for the scalar a head; Shaw, Uszkoreit and Vaswani
        (2018), section 3.2, for the clipping. Chapter 08.
    """

    def __init__(self, heads: int, reach: int) -> None:
        super().__init__()
        check_count("heads", heads, least=1)
        check_count("reach", reach, least=1)
        self.reach = reach
        self.table = nn.Parameter(torch.zeros(heads, 2 * reach + 1))

    def bias(
        self, query_length: int, key_length: int, offset: int = 0
    ) -> Float[Tensor, "H Tq Tk"] | None:
        """Return the table's entry for each distance, (H, Tq, Tk)."""
        steps = _distances(query_length, key_length, offset, self.table.device)
        return self.table[:, steps.clamp(-self.reach, self.reach) + self.reach]


def _angles(
    length: int, width: int, base: float, offset: int, device: torch.device | None
) -> Float[Tensor, "T half"]:
    """Position times frequency in float64; at position 100,000 float32 is off by 0.005 radians."""
    _check_even("width", width)
    check_positive("base", base)
    check_count("offset", offset, least=0)
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)
    positions = torch.arange(offset, offset + length, dtype=torch.float64, device=device)
    return torch.outer(positions, frequencies)


@lru_cache(maxsize=32)
def _waves(
    length: int, width: int, base: float, offset: int, device: torch.device, dtype: torch.dtype
) -> tuple[Float[Tensor, "T Dh"], Float[Tensor, "T Dh"]]:
    """Factors of a feature and of its partner; all layers ask for the same, so they are kept.

    Features i and i + Dh/2 become x cos - y sin and y cos + x sin, so the sine is negative in the
    first half. The angle is exact; only its waves are rounded to the working precision.
    """
    with torch.inference_mode(False):  # what is kept may take part in training later
        angles = _angles(length, width, base, offset, device)
        cosine, sine = angles.cos().to(dtype), angles.sin().to(dtype)
        return torch.cat([cosine, cosine], dim=-1), torch.cat([-sine, sine], dim=-1)


def _distances(
    query_length: int, key_length: int, offset: int, device: torch.device
) -> Int[Tensor, "Tq Tk"]:
    """Key position minus query position."""
    check_count("query_length", query_length, least=0)
    check_count("key_length", key_length, least=0)
    check_count("offset", offset, least=0)
    query = torch.arange(offset, offset + query_length, device=device)
    return torch.arange(key_length, device=device) - query[:, None]


def _check_even(name: str, number: int) -> None:
    check_count(name, number, least=2)
    if number % 2:
        raise ValueError(f"{name} must be even, got {number}")


def _check_width(name: str, x: Tensor, width: int) -> None:
    check_float(name, x, rank=2)
    if x.shape[-1] != width:
        raise ValueError(f"{name} must have width {width}, got shape {shape(x)}")
