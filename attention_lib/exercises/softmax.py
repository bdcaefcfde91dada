"""Checks for the exercises of chapter 03."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attention_lib.exercises.report import (
    Case,
    Report,
    as_tensors,
    check_against,
    check_answers,
    check_cases,
    counted,
)
from attention_lib.softmax import softmax


@counted
def check_paper(weights: Any, derivative: Any) -> Report:
    """Check the answers of the exercise on paper.

    Args:
        weights: Softmax of [ln 2, ln 3, ln 5].
        derivative: Derivative of the first weight with respect to the second score.

    Returns:
        The report.

    Source:
        Chapter 03, exercise "a softmax and a derivative".
    """
    return check_answers(
        {
            "weights": (
                weights,
                torch.tensor([0.2, 0.3, 0.5]),
                "exp(ln a) = a; divide by the sum.",
            ),
            "derivative": (derivative, -0.06, "For i other than j the Jacobian has -w_i w_j."),
        }
    )


@counted
def check_softmax(function: Callable[[Tensor], Tensor]) -> Report:
    """Check a function ``scores -> weights`` that normalises the last dimension.

    Args:
        function: Takes (..., Tk), returns (..., Tk).

    Returns:
        The report.

    Source:
        Chapter 03, exercise "columns that sum to one".
    """
    hints = {
        "one row": (torch.tensor([[1.0, 0.0, 0.0]]), "Exponentials over their sum."),
        "three rows of three": (
            torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 3.0], [1.0, 1.0, 1.0]]),
            "Which sums does each entry get divided by? Print their shape.",
        ),
        "two rows of three": (
            torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 3.0]]),
            "The sums need the shape (2, 1) to line up with the rows.",
        ),
        "huge scores": (
            torch.tensor([[1000.0, 999.0, 998.0]]),
            "exp(1000) overflows; shifting a row changes nothing.",
        ),
        "rows far apart": (
            torch.tensor([[1000.0, 999.0], [-1000.0, -1001.0]]),
            "Each row needs its own shift.",
        ),
    }
    inputs = {name: ((given,), hint) for name, (given, hint) in hints.items()}
    return check_against(function, softmax, inputs)


@counted
def check_masked_softmax(function: Callable[[Tensor, Tensor], Tensor]) -> Report:
    """Check a function ``(scores, mask) -> weights``, True meaning "may attend".

    Args:
        function: Takes (..., Tk) and a boolean (..., Tk), returns (..., Tk).

    Returns:
        The report.

    Source:
        Chapter 03, exercise "a masked softmax that survives everything".
    """
    two = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]])
    some = torch.tensor([[True, True, False], [True, False, True]])
    none = torch.tensor([[True, True, True], [False, False, False]])
    batch = torch.tensor([[[2.0, 0.0, 1.0]], [[1.0, 3.0, 0.0]]])
    hints = {
        "nothing masked": ((two, torch.ones_like(some)), "Softmax over the last dimension."),
        "some keys masked": (
            (two, some),
            "True means 'may attend'; the allowed weights must still sum to one.",
        ),
        "a fully masked row": ((two, none), "No key may be seen there: give weight 0 to each."),
        "huge scores": ((two * 1000, some), "Shift by the largest allowed score of the row."),
        "a huge score behind the mask": (
            (torch.tensor([[1000.0, 0.0, 1.0]]), torch.tensor([[False, True, True]])),
            "Mask before you take the maximum: the largest score here is forbidden.",
        ),
        "scores below every stand-in for minus infinity": (
            (torch.tensor([[0.0, -2e9, -2e9]]), torch.tensor([[False, True, True]])),
            "Two allowed keys with equal scores share the weight, however small the scores are.",
        ),
        "a batch": (
            (batch, torch.ones_like(batch, dtype=torch.bool)),
            "Count dimensions from the end.",
        ),
    }
    return check_against(function, softmax, hints)


@counted
def check_backward(function: Callable[[Tensor, Tensor], Tensor]) -> Report:
    """Check a function ``(weights, grad) -> gradient of the scores``.

    Args:
        function: Takes (..., Tk) and (..., Tk), returns (..., Tk).

    Returns:
        The report.

    Source:
        Chapter 03, exercise "the backward pass".
    """
    scores = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.5, 3.0]])
    hints = {
        "one row": (
            scores[:1],
            torch.tensor([[1.0, 0.0, 0.0]]),
            "Each weight depends on every score: what do the entries -w_i w_j add?",
        ),
        "the same gradient for all": (
            scores[:1],
            torch.ones(1, 3),
            "Moving all weights together is impossible, so this gradient must vanish.",
        ),
        "two rows": (
            scores,
            torch.tensor([[1.0, -1.0, 2.0], [0.0, 4.0, 1.0]]),
            "Each row has its own weighted mean: sum over the last dimension, keep it.",
        ),
    }
    cases = []
    for name, (given, grad, hint) in hints.items():
        leaf = given.clone().requires_grad_()
        weights = softmax(leaf)
        (expected,) = torch.autograd.grad(weights, leaf, grad)
        cases.append(Case(name, (weights.detach(), grad), expected, hint))
    return check_cases(function, cases)


@counted
def check_wicked(function: Callable[[], Tensor | None]) -> Report:
    """Check that masking key 0 with -1e9 leaves it with more than half of the weight.

    Args:
        function: Returns scores of shape (T,) with T of at least 3.

    Returns:
        The report.

    Source:
        Chapter 03, exercise "equal to the eye, different to a mask".
    """
    answer = as_tensors(function(), "scores")
    if isinstance(answer, Report):
        return answer
    scores = answer[0].float()
    if scores.ndim != 1 or len(scores) < 3:
        return Report(False, f"Expected a shape (T,) with T >= 3, got {tuple(scores.shape)}.")
    if not scores.isfinite().all():
        return Report(False, f"All scores must be finite, got {scores.tolist()}.")
    masked = torch.cat([torch.tensor([-1e9]), scores[1:]])
    weight = softmax(masked)[0].item()
    if weight > 0.5:
        return Report(True, f"Passed: the forbidden key has weight {weight:.2f}.")
    return Report(
        False,
        f"Masked with -1e9, key 0 has weight {weight:.2f}, not more than half.\n"
        "  hint      Key 0's own score is replaced by -1e9, so only the others can help it.",
    )
