"""Checks for the exercises of chapter 08."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attention_lib.exercises.report import (
    Case,
    Report,
    check_against,
    check_answers,
    check_cases,
    counted,
)
from attention_lib.positions import (
    Rotary,
    half_from_interleaved,
    interleaved_from_half,
    sinusoidal_table,
)


@counted
def check_paper(query: Any, key: Any, score: Any, moved: Any) -> Report:
    """Check two rotations by hand, their score, and the score after both have moved.

    Args:
        query: (1, 0) at position 2, turned by a twelfth of a circle for each position.
        key: (0, 1) at position 3.
        score: Dot product of the two.
        moved: The same score at positions 1002 and 1003.

    Returns:
        The report.

    Source:
        Chapter 08, exercise "turn two vectors".
    """
    return check_answers(
        {
            "query": (
                query,
                torch.tensor([0.5, math.sqrt(3) / 2]),
                "The angle is 60 degrees, and (1, 0) turns to (cosine, sine).",
            ),
            "key": (
                key,
                torch.tensor([-1.0, 0.0]),
                "The angle is 90 degrees, against the clock, and (0, 1) points up.",
            ),
            "score": (score, -0.5, "Multiply entry by entry and add; do not scale."),
            "moved": (moved, -0.5, "What is left of both angles in the score?"),
        }
    )


@counted
def check_rotary(function: Callable[..., Tensor]) -> Report:
    """Check a function ``(x, offset) -> turned x`` in the layout of the paper, with base 10000.

    Args:
        function: Takes (..., T, D) and the position of the first row, returns (..., T, D).

    Returns:
        The report.

    Source:
        Chapter 08, exercise "neighbours as pairs".
    """
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    wide = torch.arange(18).mul(1.7).sin().mul(100).round().div(100).reshape(3, 6)
    inputs = {
        "one pair": ((rows, 0), "Row t turns by t radians: (1, 0) to (cos t, sin t)."),
        "three pairs": (
            (wide, 0),
            "Features 2i and 2i + 1 are a pair; its angle is t times 10000 to the power -2i/D.",
        ),
        "a cache of five": ((wide, 5), "The first row stands at position offset."),
        "two heads": (
            (torch.stack([wide, wide.flip(0)]), 2),
            "Only the last two dimensions are positions and features.",
        ),
    }
    return check_against(function, _interleaved, inputs)


@counted
def check_bias(function: Callable[..., Tensor]) -> Report:
    """Check a function ``(slopes, query_length, key_length) -> bias`` that fits a cache.

    Args:
        function: Takes (H,) and two lengths, returns (H, Tq, Tk); the queries are the last Tq of
            the Tk positions.

    Returns:
        The report.

    Source:
        Chapter 08, exercise "two bugs in a bias".
    """
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])
    inputs = {
        "one head": (
            (slopes[:1], 4, 4),
            "The shape is (H, Tq, Tk); a bias falls from 0 on both sides of the diagonal.",
        ),
        "four heads, four positions": (
            (slopes, 4, 4),
            "A slope belongs to a head. Which dimension does yours go along?",
        ),
        "one new query, five keys": (
            (slopes[:1], 1, 5),
            "The new query is the last of the five, not the first.",
        ),
        "two new queries, two heads": ((slopes[:2], 2, 5), "The queries are the last positions."),
    }
    return check_against(function, _bias, inputs)


@counted
def check_only_distance(function: Callable[..., bool]) -> Report:
    """Check a test that says whether a score depends on positions through their distance only.

    Args:
        function: Takes ``score(query, key, m, n) -> number`` for vectors of width 4, returns a
            boolean.

    Returns:
        The report.

    Source:
        Chapter 08, exercise "a test for distance".
    """
    cases = [
        Case("no positions", (_plain,), True, "A score that never changes passes."),
        Case("waves added", (_added,), False, "Move both positions by the same number."),
        Case(
            "rotary",
            (_rotary,),
            True,
            "Exchanging m and n is another distance; and floats are never exactly equal.",
        ),
        Case("ALiBi", (_alibi,), True, "Exchanging m and n is another distance."),
        Case("angles grow with the square", (_square,), False, "Try distances other than 0."),
        Case("only the key is turned", (_one_side,), False, "Move both by the same number."),
        Case("odd positions differ", (_parity,), False, "Move by odd numbers too."),
        Case("far keys differ", (_far,), False, "Try several distances, not one."),
    ]
    return check_cases(function, cases)


def _interleaved(x: Tensor, offset: int) -> Tensor:
    half = half_from_interleaved(x)
    return interleaved_from_half(Rotary(x.shape[-1]).rotate(half, half, offset)[0])


def _bias(slopes: Tensor, query_length: int, key_length: int) -> Tensor:
    key = torch.arange(key_length)
    query = key[key_length - query_length :]
    return -slopes[:, None, None] * (query[:, None] - key).abs()


def _turned(x: Tensor, position: int) -> Tensor:
    return Rotary(4).rotate(x[None], x[None], position)[0][0]


def _plain(query: Tensor, key: Tensor, m: int, n: int) -> float:
    return float(query @ key)


def _added(query: Tensor, key: Tensor, m: int, n: int) -> float:
    table = sinusoidal_table(max(m, n) + 1, 4).to(query.dtype)
    return float((query + table[m]) @ (key + table[n]))


def _rotary(query: Tensor, key: Tensor, m: int, n: int) -> float:
    return float(_turned(query, m) @ _turned(key, n))


def _alibi(query: Tensor, key: Tensor, m: int, n: int) -> float:
    return float(query @ key) - 0.5 * max(m - n, 0)


def _square(query: Tensor, key: Tensor, m: int, n: int) -> float:
    return float(_turned(query, m * m) @ _turned(key, n * n))


def _one_side(query: Tensor, key: Tensor, m: int, n: int) -> float:
    return float(query @ _turned(key, n))


def _parity(query: Tensor, key: Tensor, m: int, n: int) -> float:
    return float(query @ key) + n % 2


def _far(query: Tensor, key: Tensor, m: int, n: int) -> float:
    return _rotary(query, key, m, n) + (0.1 * m if m - n > 1 else 0.0)


for _score, _name in (
    (_plain, "the plain dot product"),
    (_added, "waves added to both"),
    (_rotary, "rotary"),
    (_alibi, "ALiBi for keys before the query"),
    (_square, "rotary with the square of the position"),
    (_one_side, "rotary for the key alone"),
    (_parity, "one more if the key stands at an odd position"),
    (_far, "rotary with a tenth of the query's position more for keys two or more places back"),
):
    _score.__name__ = _name
