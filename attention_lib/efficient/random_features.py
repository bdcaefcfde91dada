"""Random features: softmax weights estimated by products of random features. Chapter 18.

The mean of ``exp(w q - |q|^2 / 2) exp(w k - |k|^2 / 2)`` over normal directions ``w`` is exactly
``exp(q k)``. With finitely many directions it is an estimate; its error grows with the size of
``q + k``, exponentially.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from attention_lib._checks import (
    at_least_float32,
    check_count,
    check_float,
    check_query_key_value,
    shape,
)
from attention_lib.efficient.linear import attend_linear


def gaussian_directions(
    features: int, width: int, generator: torch.Generator
) -> Float[Tensor, "F D"]:
    r"""Draw independent normal directions.

    .. math:: w_r \sim N(0, I_D)

    Args:
        features: F, number of directions, at least 1.
        width: D, width of queries and keys, at least 1.
        generator: Source of the random numbers; the directions lie on its device.

    Returns:
        Directions, (F, D), in float32.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is below 1.

    Example:
        >>> tuple(gaussian_directions(3, 2, torch.Generator().manual_seed(0)).shape)
        (3, 2)

    Source:
        Choromanski et al. (2021), lemma 1. Chapter 18.
    """
    check_count("features", features, least=1)
    check_count("width", width, least=1)
    return torch.randn(features, width, generator=generator, device=generator.device)


def orthogonal_directions(
    features: int, width: int, generator: torch.Generator
) -> Float[Tensor, "F D"]:
    r"""Draw normal directions that are at right angles to each other, D at a time.

    .. math:: w_r \sim N(0, I_D), \qquad w_r \cdot w_s = 0 \ \text{for}\ r \ne s
              \ \text{in one block of}\ D

    Each direction by itself is distributed as in :func:`gaussian_directions`, so estimates stay
    unbiased; together they cover the space more evenly, and the estimates vary less.

    Args:
        features: F, number of directions, at least 1.
        width: D, width of queries and keys, at least 1.
        generator: Source of the random numbers; the directions lie on its device.

    Returns:
        Directions, (F, D), in float32.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is below 1.

    Example:
        >>> first, second = orthogonal_directions(2, 2, torch.Generator().manual_seed(0))
        >>> bool((first @ second).abs() < 1e-5)
        True

    Source:
        Yu et al. (2016), section 3; Choromanski et al. (2021), section 2. Chapter 18.
    """
    lengths = gaussian_directions(features, width, generator).square().sum(dim=-1, keepdim=True)
    blocks = []
    for _ in range(0, features, width):
        q, r = torch.linalg.qr(gaussian_directions(width, width, generator))
        # Without the signs of the diagonal the columns would not be uniform on the sphere.
        blocks.append((q * r.diagonal().sign()).mT)
    return torch.cat(blocks)[:features] * lengths.sqrt()


def positive_features(
    x: Float[Tensor, "... T D"], directions: Float[Tensor, "F D"]
) -> Float[Tensor, "... T F"]:
    r"""Positive features whose products estimate exp(q k) without bias.

    .. math:: \phi_r(x) = \exp\big(w_r \cdot x - |x|^2 / 2\big) / \sqrt{F}, \qquad
              \mathbb{E}\,\phi(q) \cdot \phi(k) = e^{q \cdot k}

    The variance of the estimate is
    :math:`e^{2 q \cdot k} \big(e^{|q + k|^2} - 1\big) / F` for independent directions.

    Args:
        x: Queries or keys, (..., T, D). For the scores :math:`q \cdot k / \sqrt{D}` divide both by
            :math:`D^{1/4}` before.
        directions: Directions, (F, D), the same for queries and keys.

    Returns:
        Features above 0, (..., T, F), computed in at least float32 and cast back.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If the widths differ or there is no direction.

    Example:
        >>> directions = gaussian_directions(4, 2, torch.Generator().manual_seed(0))
        >>> features = positive_features(torch.zeros(1, 2), directions)
        >>> features.tolist(), (features @ features.mT).tolist()  # exp(0), whatever the directions
        ([[0.5, 0.5, 0.5, 0.5]], [[1.0]])

    Source:
        Choromanski et al. (2021), lemma 1 for the mean, lemma 2 for the variance. Chapter 18.
    """
    return (_exponents(x, directions).exp() / math.sqrt(len(directions))).to(x.dtype)


def trigonometric_features(
    x: Float[Tensor, "... T D"], directions: Float[Tensor, "F D"]
) -> Float[Tensor, "... T F2"]:
    r"""Features of both signs with the same mean of products: sines and cosines.

    .. math:: \phi(x) = \frac{e^{|x|^2 / 2}}{\sqrt{F}} \big(\cos w_1 x, \dots, \cos w_F x,\;
              \sin w_1 x, \dots, \sin w_F x\big)

    Unbiased too, but where exp(q k) is small the estimate is often negative, and attention divides
    by sums of such estimates.

    Args:
        x: Queries or keys, (..., T, D).
        directions: Directions, (F, D), the same for queries and keys.

    Returns:
        Features, (..., T, 2 F), computed in at least float32 and cast back.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If the widths differ or there is no direction.

    Example:
        >>> directions = gaussian_directions(4, 2, torch.Generator().manual_seed(0))
        >>> features = trigonometric_features(torch.tensor([[1.0, 0.0]]), directions)
        >>> (features @ features.mT).round(decimals=3)  # exp(1): exact where query and key agree
        tensor([[2.7180]])

    Source:
        Rahimi and Recht (2007), section 3; Choromanski et al. (2021), section 2. Chapter 18.
    """
    _check_directions(x, directions)
    wide = x.to(at_least_float32(x.dtype))
    angles = wide @ directions.to(wide.dtype).mT  # (..., T, F)
    size = (wide.square().sum(dim=-1, keepdim=True) / 2).exp() / math.sqrt(len(directions))
    return (torch.cat([angles.cos(), angles.sin()], dim=-1) * size).to(x.dtype)


def attend_random_features(
    query: Float[Tensor, "... Tq D"],
    key: Float[Tensor, "... Tk D"],
    value: Float[Tensor, "... Tk Dv"],
    directions: Float[Tensor, "F D"],
    *,
    attend: Callable[..., Tensor] = attend_linear,
    key_offset: float | None = None,
) -> Float[Tensor, "... Tq Dv"]:
    r"""Estimate scaled dot-product attention with positive random features, in linear time.

    .. math:: o_i = \frac{\sum_j \hat e_{ij} v_j}{\sum_j \hat e_{ij}}, \qquad
              \hat e_{ij} = \phi(q_i D^{-1/4}) \cdot \phi(k_j D^{-1/4})

    The estimates of the exponentials are unbiased, their ratio is not. Before exp, the largest
    exponent of each query, and the largest of all keys, is subtracted: factors that cancel in the
    ratio. Where all that is left of a denominator is 0, the output is 0. Computed in at least
    float32 and cast back.

    The largest exponent is that of the keys of this call. So a state from one call does not fit the
    next, and a later key that is much larger than all others can push the features of earlier keys
    to 0, even in a causal form. A fixed ``key_offset`` avoids both.

    Args:
        query: Queries, (..., Tq, D).
        key: Keys, (..., Tk, D).
        value: Values, (..., Tk, Dv).
        directions: Directions, (F, D).
        attend: The form of linear attention, called as ``attend(features of the queries, features
            of the keys, value, feature_map=...)`` with a map that changes nothing. A causal form
            goes here.
        key_offset: Subtracted from the exponents of the keys in place of their largest; the same in
            all calls that share a state. Exponents far above it overflow.

    Returns:
        Output, (..., Tq, Dv).

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes or devices do not fit.

    Example:
        >>> directions = gaussian_directions(4, 2, torch.Generator().manual_seed(0))
        >>> query, key, value = torch.ones(1, 2), torch.zeros(2, 2), torch.tensor([[2.0], [4.0]])
        >>> output = attend_random_features(query, key, value, directions)
        >>> output.round(decimals=3).tolist()  # equal keys get equal weights
        [[3.0]]

    Source:
        Choromanski et al. (2021), section 2. Chapter 18.
    """
    check_query_key_value(query, key, value)
    wide = at_least_float32(query.dtype)
    scale = query.shape[-1] ** -0.25
    # A factor for each query, and one for all keys, cancels between numerator and denominator.
    q = _exponents(query.to(wide) * scale, directions)  # (..., Tq, F)
    k = _exponents(key.to(wide) * scale, directions)  # (..., Tk, F)
    q = (q - q.detach().amax(dim=-1, keepdim=True)).exp()
    if key_offset is not None:
        k = k - key_offset
    elif k.shape[-2]:
        k = k - k.detach().amax(dim=(-2, -1), keepdim=True)
    output = attend(q, k.exp(), value.to(wide), feature_map=_unchanged)
    return output.to(query.dtype)


def _unchanged(features: Tensor) -> Tensor:
    return features


def _exponents(x: Tensor, directions: Tensor) -> Tensor:
    """w x - |x|^2 / 2 in at least float32, (..., T, F)."""
    _check_directions(x, directions)
    wide = x.to(at_least_float32(x.dtype))
    return wide @ directions.to(wide.dtype).mT - wide.square().sum(dim=-1, keepdim=True) / 2


def _check_directions(x: Tensor, directions: Tensor) -> None:
    check_float("x", x, rank=2)
    check_float("directions", directions, rank=2)
    if directions.ndim != 2 or directions.shape[-1] != x.shape[-1] or not len(directions):
        raise ValueError(
            f"directions must have shape (F, D) with F at least 1 and D = {x.shape[-1]}, "
            f"got {shape(directions)}"
        )
