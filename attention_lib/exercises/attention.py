"""Checks for the exercises of chapter 04."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attention_lib.attention import attend_explicit, attention_weights
from attention_lib.exercises.report import Report, as_tensors, check_against, check_answers, counted

HINT = "Give each position a direction of its own, and make the vectors long."


@counted
def check_paper(output: Any) -> Report:
    """Check the output of the exercise on paper.

    Args:
        output: Two numbers.

    Returns:
        The report.

    Source:
        Chapter 04, exercise "one output".
    """
    right = torch.tensor([1.0, math.e]) / (1 + math.e)
    return check_answers(
        {
            "output": (
                output,
                right,
                "The scaled scores are 0 and 1; the first value belongs to the first key.",
            )
        }
    )


@counted
def check_self_attention(function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Report:
    """Check a function ``(x, W_Q, W_K, W_V) -> output``.

    Args:
        function: Takes (..., T, D), (D, Dh), (D, Dh), (D, Dv), returns (..., T, Dv).

    Returns:
        The report.

    Source:
        Chapter 04, exercise "self-attention with projections".
    """
    x = _waves(3, 2)
    eye = torch.eye(2)
    hints = {
        "projections that do nothing": (
            (x, eye, eye, eye),
            "Scores of x with x over the root of the width, softmax over the keys, mean of x.",
        ),
        "a value projection": ((x, eye, eye, _waves(2, 5)), "The mean is taken of x @ W_V."),
        "who asks is the row": (
            (x, eye, torch.tensor([[0.0, 0.0], [2.0, 0.0]]), eye),
            "Queries come from W_Q and are the rows of the scores, keys come from W_K.",
        ),
        "three different projections": (
            (x, _waves(2, 7), _waves(2, 7) - 0.5, _waves(2, 3)),
            "Divide by the root of the width that the product sums over: that of the query.",
        ),
        "a batch": (
            (_waves(2, 3, 2), _waves(2, 7), _waves(2, 7) - 0.5, _waves(2, 3)),
            "Transpose the last two dimensions only.",
        ),
    }
    return check_against(function, _projected, hints)


@counted
def check_cross_attention(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Report:
    """Check a function ``(query, key, value) -> output``.

    Args:
        function: Takes (..., Tq, D), (..., Tk, D), (..., Tk, Dv), returns (..., Tq, Dv).

    Returns:
        The report.

    Source:
        Chapter 04, exercise "it averages, but what?".
    """
    query, key = _waves(2, 3), _waves(4, 3) - 0.5
    hints = {
        "all values are [1, 2, 3]": (
            (query, key, torch.tensor([1.0, 2.0, 3.0]).expand(4, 3)),
            "A mean of equal values is that value. Is the mean taken of the values?",
        ),
        "values as wide as keys": (
            (query, key, _waves(4, 3) + 1),
            "The weights of each query must sum to one over the keys.",
        ),
        "wider values": ((query, key, _waves(4, 5)), "The output is as wide as the values."),
        "a batch": (
            (_waves(3, 2, 3), _waves(3, 4, 3) - 0.5, _waves(3, 4, 5)),
            "Count dimensions from the end: the keys are the last one of the scores.",
        ),
    }
    return check_against(function, attend_explicit, hints)


@counted
def check_previous(function: Callable[[], tuple[Tensor, Tensor] | None]) -> Report:
    """Check that each of five queries after the first attends to the position before it.

    Args:
        function: Returns query and key, (5, D) each.

    Returns:
        The report.

    Source:
        Chapter 04, exercise "look one to the left".
    """
    answer = as_tensors(function(), "query", "key")
    if isinstance(answer, Report):
        return answer
    query, key = answer
    if query.ndim != 2 or query.shape != key.shape or query.shape[0] != 5:
        found = f"{tuple(query.shape)} and {tuple(key.shape)}"
        return Report(False, f"Expected two tensors of shape (5, D), got {found}.")
    weights = attention_weights(query, key)
    for position in range(1, 5):
        found_weight = weights[position, position - 1].item()
        if found_weight <= 0.9:
            row = [round(w, 2) for w in weights[position].tolist()]
            right = weights[position].argmax() == position + 1
            hint = "It looks one to the right: which way did you roll?" if right else HINT
            return Report(
                False,
                f"Query {position} gives position {position - 1} the weight {found_weight:.2f}, "
                f"not more than 0.9; its weights are {row}.\n"
                f"  hint      {hint}",
            )
    return Report(True, "Passed: each query looks one to the left.")


def _projected(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor) -> Tensor:
    return attend_explicit(x @ w_q, x @ w_k, x @ w_v)


def _waves(*shape: int) -> Tensor:
    """Smooth numbers between -1 and 1 without a pattern that a wrong axis could share."""
    count = torch.Size(shape).numel()
    return (torch.arange(count) * 1.7).sin().mul(100).round().div(100).reshape(shape)
