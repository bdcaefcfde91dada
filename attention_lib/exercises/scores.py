"""Checks for the exercises of chapter 02."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attention_lib.exercises.report import Report, as_tensors, check_against, check_answers, counted
from attention_lib.scores import additive, cosine, dot, gaussian, scaled_dot


@counted
def check_paper(standard_deviation: Any, factor: Any) -> Report:
    """Check the two numbers of the exercise on paper.

    Args:
        standard_deviation: Of a dot product of width 25, entries of variance 4 and 9.
        factor: What brings it to one.

    Returns:
        The report.

    Source:
        Chapter 02, exercise "entries with another variance".
    """
    return check_answers(
        {
            "standard deviation": (
                standard_deviation,
                30.0,
                "One product has variance 4 x 9, a sum of 25 of them 25 times that; then the root.",
            ),
            "factor": (
                factor,
                1 / 30,
                "1/sqrt(D) assumes entries of variance one; divide by the standard deviation.",
            ),
        },
        tolerance=1e-4,
    )


@counted
def check_scaled_dot(function: Callable[[Tensor, Tensor], Tensor]) -> Report:
    """Check a function ``(query, key) -> scores`` that scales by the root of the width.

    Args:
        function: Takes (..., Tq, D) and (..., Tk, D), returns (..., Tq, Tk).

    Returns:
        The report.

    Source:
        Chapter 02, exercise "a factor from the wrong axis".
    """
    hints = {
        "as many keys as features": (
            (_grid(2, 2), _grid(2, 2) + 1),
            "Dot products of every query with every key, divided by a square root.",
        ),
        "three keys of width two": (
            (_grid(2, 2), _grid(3, 2)),
            "Which axis does the product sum over? Its length is what grows the variance.",
        ),
        "a batch": ((_grid(2, 2, 5), _grid(2, 3, 5)), "Transpose the last two dimensions only."),
    }
    return check_against(function, scaled_dot, hints)


@counted
def check_additive(function: Callable[..., Tensor]) -> Report:
    """Check a function ``(query, key, query_weight, key_weight, vector) -> scores``.

    Args:
        function: Takes (..., Tq, Dq), (..., Tk, Dk), (Dq, A), (Dk, A), (A,); returns (..., Tq, Tk).

    Returns:
        The report.

    Source:
        Chapter 02, exercise "the additive score without a loop".
    """
    pair = torch.tensor([[0.5, 0.0]]), torch.tensor([[0.0, 0.2]])  # the hidden sum is 0.7
    small = (*pair, torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]]), torch.ones(1))
    wide = (_grid(2, 3), _grid(5, 2) - 1, _grid(3, 7), _grid(2, 7) - 1, _grid(7))
    batch = (_grid(2, 2, 3), _grid(2, 5, 2) - 1, *wide[2:])
    hints = {
        "one pair, hidden width one": (small, "tanh of the sum, then times the vector."),
        "two queries, five keys": (wide, "Make every pair: (Tq, 1, A) plus (1, Tk, A)."),
        "a batch": (batch, "Insert the new dimension counted from the end, not from the front."),
    }
    return check_against(function, additive, hints)


@counted
def check_favourites(function: Callable[[], tuple[Tensor, Tensor] | None]) -> Report:
    """Check that dot product, cosine and Gaussian score prefer keys 0, 1 and 2.

    Args:
        function: Returns a query (1, 2) and keys (3, 2).

    Returns:
        The report.

    Source:
        Chapter 02, exercise "three scores, three favourites".
    """
    answer = as_tensors(function(), "query", "keys")
    if isinstance(answer, Report):
        return answer
    query, keys = answer
    if query.shape != (1, 2) or keys.shape != (3, 2):
        found = f"{tuple(query.shape)} and {tuple(keys.shape)}"
        return Report(False, f"Expected shapes (1, 2) and (3, 2), got {found}.")
    for number, score in enumerate((dot, cosine, gaussian)):
        scores = score(query, keys)[0]
        runner_up = scores[[i for i in range(3) if i != number]].max()
        if not scores[number] > runner_up + 1e-9:
            return Report(
                False,
                f"{score.__name__} must prefer key {number} alone, its scores are "
                f"{[round(s, 3) for s in scores.tolist()]}.\n"
                "  hint      Make one key long, one point exactly along the query, one lie close.",
            )
    return Report(True, "Passed: three scores, three favourites.")


def _grid(*shape: int) -> Tensor:
    """Small numbers without a pattern that a wrong axis could share."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * 7 % 11).float() / 4 - 1).reshape(shape)
