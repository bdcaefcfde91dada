"""Checks for the exercises of chapter 01."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attention_lib.exercises.report import Report, as_tensors, check_against, check_answers, counted
from attention_lib.scores import pearson
from attention_lib.softmax import softmax


@counted
def check_paper(correlation: Any, temperature: Any) -> Report:
    """Check the two numbers of the exercise on paper.

    Args:
        correlation: Correlation of *boats* and *reach*.
        temperature: Largest temperature that lets one of 101 keys take nine tenths of the weight.

    Returns:
        The report.

    Source:
        Chapter 01, exercise "a correlation and a bound".
    """
    return check_answers(
        {
            "correlation of boats and reach": (
                correlation,
                -1.5 / math.sqrt(33 / 4),
                "Centre each vector with its own mean (3/4 and 1/2); check each sign.",
            ),
            "largest temperature": (
                temperature,
                2 / math.log(900),
                "One key scores 1, a hundred keys score -1: what is their ratio at temperature τ?",
            ),
        }
    )


@counted
def check_pearson(function: Callable[[Tensor, Tensor], Tensor]) -> Report:
    """Check a function ``(query, key) -> correlations``.

    Args:
        function: Takes (Tq, D) and (Tk, D), returns (Tq, Tk).

    Returns:
        The report.

    Source:
        Chapter 01, exercise "correlation of all rows with all rows".
    """
    two = torch.tensor([[1.0, 2.0, 4.0], [3.0, 1.0, 0.0]])
    three = torch.tensor([[2.0, 4.0, 8.0], [5.0, 4.0, 3.0], [0.0, 3.0, 1.0]])
    far = torch.tensor([[101.0, 102.0, 104.0]])
    flat = torch.tensor([[5.0, 5.0, 5.0], [1.0, 2.0, 4.0]])
    hints = {
        "two rows against themselves": (
            (two, two),
            "Centre each row with its own mean, then divide by both lengths.",
        ),
        "two queries, three keys": (
            (two, three),
            "Query i belongs in row i: (Tq, D) times the transpose of (Tk, D).",
        ),
        "a large shift": ((far, two), "Subtract the mean of each row, not of the whole matrix."),
        "a constant row": ((flat, two), "A constant row has length 0: give 0 there, not nan."),
    }
    return check_against(function, pearson, hints)


@counted
def check_attention(function: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> Report:
    """Check a function ``(query, key, value, temperature) -> output``.

    Args:
        function: Takes (Tq, D), (Tk, D), (Tk, Dv) and a number, returns (Tq, Dv).

    Returns:
        The report.

    Source:
        Chapter 01, exercise "the answer depends on who else asks".
    """
    query = torch.tensor([[1.0, 2.0, 4.0], [3.0, 1.0, 0.0]])
    key = torch.tensor([[2.0, 4.0, 8.0], [5.0, 4.0, 3.0], [0.0, 3.0, 1.0]])
    value = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    hints = {
        "all values are one": (
            (query, key, torch.ones(3, 1), 1.0),
            "A weighted mean of ones is one: is each query's softmax taken over the keys?",
        ),
        "two queries, three keys": (
            (query, key, value, 1.0),
            "Each query has its own weights, and they sum to one over the keys.",
        ),
        "temperature 0.1": (
            (query, key, value, 0.1),
            "Divide the scores by the temperature before the softmax.",
        ),
    }
    return check_against(function, _correlation_attention, hints)


@counted
def check_indistinguishable(function: Callable[[], Tensor]) -> Report:
    """Check that three different rows are all the same to correlation attention.

    Args:
        function: Returns a (3, D) tensor with D of at least 4.

    Returns:
        The report.

    Source:
        Chapter 01, exercise "different rows, one answer".
    """
    answer = as_tensors(function(), "rows")
    if isinstance(answer, Report):
        return answer
    (rows,) = answer
    if rows.ndim != 2 or rows.shape[0] != 3 or rows.shape[1] < 4:
        return Report(False, f"Expected a shape (3, D) with D >= 4, got {tuple(rows.shape)}.")
    for i, j in ((0, 1), (0, 2), (1, 2)):
        difference = rows[i] - rows[j]
        if torch.allclose(difference, difference[:1].expand_as(difference)):
            return Report(
                False,
                f"Rows {i} and {j} are equal up to a constant shift: their difference is "
                f"{difference.tolist()}.\n  hint      What else does a correlation ignore?",
            )
    for temperature in (0.01, 1.0):
        output = softmax(pearson(rows, rows), temperature=temperature) @ rows
        if not torch.allclose(output, output[:1].expand_as(output)):
            return Report(
                False,
                f"At temperature {temperature} the outputs differ; the correlations are\n"
                f"{pearson(rows, rows).numpy().round(3)}\n  hint      All of them must be equal.",
            )
    return Report(True, "Passed: three different rows, one answer.")


def _correlation_attention(query: Tensor, key: Tensor, value: Tensor, temperature: float) -> Tensor:
    return softmax(pearson(query, key), temperature=temperature) @ value
