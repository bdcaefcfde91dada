"""The online softmax: attention over some of the keys, and how two such parts become one.

A part of the keys leaves three numbers for each query: the largest score, the sum of exponentials
below it, and the sum of values weighted with them. Two parts merge into the part of their union.
Chapter 16.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from attention_lib._checks import (
    at_least_float32,
    check_batches,
    check_float,
    check_like,
    check_mask,
    shape,
)


class Part(NamedTuple):
    """What attention over some of the keys has to remember.

    Args:
        top: The largest allowed score of each query, (..., Tq, 1); minus infinity if there is none.
        total: Sum of the exponentials of the scores minus ``top``, (..., Tq, 1).
        weighted: Sum of the values times these exponentials, (..., Tq, Dv).

    Example:
        >>> part = Part(torch.tensor([[0.0]]), torch.tensor([[2.0]]), torch.tensor([[6.0]]))
        >>> finish(part).tolist()
        [[3.0]]

    Source:
        Milakov and Gimelshein (2018), section 3, for ``top`` and ``total``. Chapter 16.
    """

    top: Tensor
    total: Tensor
    weighted: Tensor


def summarise(
    scores: Float[Tensor, "... Tq Tk"],
    value: Float[Tensor, "... Tk Dv"],
    mask: Bool[Tensor, "..."] | None = None,
) -> Part:
    r"""Reduce the scores and values of some keys to the three things worth keeping.

    .. math:: m_i = \max_j s_{ij}, \quad \ell_i = \sum_j e^{s_{ij} - m_i}, \quad
        a_i = \sum_j e^{s_{ij} - m_i} v_j

    Args:
        scores: Scores of these keys, (..., Tq, Tk).
        value: Their values, (..., Tk, Dv); finite.
        mask: True where the query may attend; broadcasts to the shape of ``scores``.

    Returns:
        The part, in at least float32. A query that may attend to nothing has minus infinity, 0, 0.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes or devices do not fit.

    Example:
        >>> part = summarise(torch.zeros(1, 2), torch.tensor([[2.0], [4.0]]))
        >>> part.top.tolist(), part.total.tolist(), part.weighted.tolist()
        ([[0.0]], [[2.0]], [[6.0]])

    Source:
        Milakov and Gimelshein (2018), section 3; Dao et al. (2022), section 3.1. Chapter 16.
    """
    check_float("scores", scores, rank=2)
    check_float("value", value, rank=2)
    check_like("value", value, "scores", scores)
    if value.shape[-2] != scores.shape[-1]:
        raise ValueError(
            f"value must have one row for each key, Tk = {scores.shape[-1]}, "
            f"got shape {shape(value)}"
        )
    check_batches(scores=scores, value=value)
    wide = scores.to(at_least_float32(scores.dtype))
    if mask is not None:
        check_mask(mask, shape(scores), "the shape of scores", scores)
        wide = wide.masked_fill(~mask, float("-inf"))
    # A column of minus infinity stands for "no key yet", so that an empty part has a maximum.
    top = pad(wide.detach(), (0, 1), value=float("-inf")).amax(dim=-1, keepdim=True)
    powers = torch.exp(wide - _finite(top))
    return Part(top, powers.sum(dim=-1, keepdim=True), powers @ value.to(wide.dtype))


def merge(first: Part, second: Part) -> Part:
    r"""The part of all keys, from the parts of some keys and of the others.

    .. math:: m = \max(m_1, m_2), \quad \ell = e^{m_1 - m} \ell_1 + e^{m_2 - m} \ell_2, \quad
        a = e^{m_1 - m} a_1 + e^{m_2 - m} a_2

    The operation is associative and commutative up to rounding, so parts may be merged in any
    order and grouping: one after the other, as a tree, or on several machines.

    Args:
        first: A part.
        second: A part of other keys, for the same queries.

    Returns:
        The part of both.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> scores, value = torch.zeros(1, 3), torch.tensor([[2.0], [4.0], [9.0]])
        >>> both = merge(summarise(scores[:, :2], value[:2]), summarise(scores[:, 2:], value[2:]))
        >>> finish(both).tolist()  # the mean of all three values
        [[5.0]]

    Source:
        Milakov and Gimelshein (2018), section 3.1. Chapter 16.
    """
    for name in Part._fields:
        one, other = getattr(first, name), getattr(second, name)
        if one.shape != other.shape:
            raise ValueError(
                f"both parts must have the same shapes, got {name} {shape(one)} and {shape(other)}"
            )
    top = torch.maximum(first.top, second.top)
    safe = _finite(top)
    one, other = torch.exp(first.top - safe), torch.exp(second.top - safe)
    return Part(
        top,
        one * first.total + other * second.total,
        one * first.weighted + other * second.weighted,
    )


def merge_all(parts: Iterable[Part]) -> Part:
    r"""Merge any number of parts, one after the other.

    .. math:: p_1 \oplus p_2 \oplus \dots \oplus p_n

    Args:
        parts: At least one part.

    Returns:
        The part of all keys.

    Raises:
        ValueError: If there is no part, or the shapes do not fit.

    Example:
        >>> scores, value = torch.zeros(1, 3), torch.tensor([[2.0], [4.0], [9.0]])
        >>> parts = [summarise(scores[:, j : j + 1], value[j : j + 1]) for j in range(3)]
        >>> finish(merge_all(parts)).tolist()
        [[5.0]]

    Source:
        Milakov and Gimelshein (2018), section 3.1. Chapter 16.
    """
    parts = list(parts)
    if not parts:
        raise ValueError("parts must hold at least one part, got 0")
    return functools.reduce(merge, parts)


def finish(part: Part) -> Float[Tensor, "... Tq Dv"]:
    r"""The output of attention, once all keys are in the part.

    .. math:: o_i = a_i / \ell_i

    Args:
        part: The part of all keys.

    Returns:
        Output, (..., Tq, Dv); 0 for a query that may attend to nothing.

    Example:
        >>> scores, value = torch.tensor([[1.0, 3.0]]).log(), torch.tensor([[0.0], [4.0]])
        >>> finish(summarise(scores, value)).round(decimals=3).tolist()  # weights 1/4 and 3/4
        [[3.0]]

    Source:
        Dao et al. (2022), section 3.1. Chapter 16.
    """
    return part.weighted / part.total.masked_fill(part.total == 0, 1)


def log_sum_exp(part: Part) -> Float[Tensor, "... Tq"]:
    r"""The logarithm of the sum of exponentials of a part's scores: one number for each query.

    .. math:: L_i = m_i + \ln \ell_i = \ln \sum_j e^{s_{ij}}

    Args:
        part: A part.

    Returns:
        Logarithms, (..., Tq); minus infinity for a query that may attend to nothing.

    Example:
        >>> part = summarise(torch.tensor([[1.0, 3.0]]).log(), torch.zeros(2, 1))
        >>> log_sum_exp(part).exp().round(decimals=3).tolist()
        [4.0]

    Source:
        Dao (2023), section 3.1.1, for keeping it instead of maximum and sum. Chapter 16.
    """
    empty = part.total == 0
    lse = _finite(part.top) + part.total.masked_fill(empty, 1).log()  # no gradient through log(0)
    return lse.masked_fill(empty, float("-inf")).squeeze(-1)


def from_log_sum_exp(output: Float[Tensor, "... Tq Dv"], lse: Float[Tensor, "... Tq"]) -> Part:
    r"""Take a finished output and its log-sum-exp up again as a part that can be merged.

    .. math:: m_i = L_i, \quad \ell_i = 1, \quad a_i = o_i

    Two machines that hold different keys exchange just these two tensors.

    Args:
        output: Output over some keys, (..., Tq, Dv).
        lse: Its log-sum-exp, (..., Tq).

    Returns:
        The part, in at least float32; a query without keys keeps minus infinity, 0, 0.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If the shapes do not fit.

    Example:
        >>> lse = torch.zeros(1)  # the same for both, so their outputs count the same
        >>> parts = [from_log_sum_exp(torch.tensor([[x]]), lse) for x in (2.0, 4.0)]
        >>> finish(merge_all(parts)).tolist()
        [[3.0]]

    Source:
        Dao, Haziza, Massa and Sizov (2023), Flash-Decoding, its final reduction. Chapter 16.
    """
    check_float("output", output, rank=2)
    check_float("lse", lse, rank=1)
    if lse.shape != output.shape[:-1]:
        raise ValueError(
            f"lse must have one number for each query, shape {shape(output)[:-1]}, got {shape(lse)}"
        )
    top = lse.unsqueeze(-1)
    total = torch.where(top == float("-inf"), 0.0, 1.0).to(top.dtype)
    return Part(top, total, output.to(at_least_float32(output.dtype)))


def _finite(top: Tensor) -> Tensor:
    """Minus infinity becomes 0, because minus infinity minus itself is not a number."""
    return top.masked_fill(top == float("-inf"), 0)
