"""Checks for the exercises of chapter 16."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attention_lib.attention import attend_explicit
from attention_lib.exercises.report import (
    Case,
    Report,
    as_tensors,
    check_against,
    check_answers,
    check_cases,
    counted,
    waves,
)


@counted
def check_paper(total: Any, output: Any, tiles: Any) -> Report:
    """Check the three answers of the exercise on paper.

    Args:
        total: Sum of exponentials of the merged part.
        output: Output of the merged part.
        tiles: Tiles that a causal mask leaves.

    Returns:
        The report.

    Source:
        Chapter 16, exercise "two parts and a triangle".
    """
    return check_answers(
        {
            "total": (total, 1.5, "Which of the two maxima is larger, and who has to shrink?"),
            "output": (output, 7 / 3, "The same factor shrinks the total and the weighted sum."),
            "tiles": (tiles, 528, "Thirty-two rows of tiles: how many does the first compute?"),
        }
    )


@counted
def check_merge(function: Callable[[Tensor, Tensor, Tensor, Tensor], Any]) -> Report:
    """Check a function ``(output, lse, other_output, other_lse) -> output over both parts``.

    Args:
        function: Takes two outputs (Tq, Dv) and their log-sum-exps (Tq,), returns (Tq, Dv).

    Returns:
        The report.

    Source:
        Chapter 16, exercise "two machines, one answer".
    """
    one, other = torch.tensor([[1.0, 0.0], [2.0, 4.0]]), torch.tensor([[3.0, 2.0], [6.0, 0.0]])
    none = float("-inf")
    cases = [
        Case(
            "equal shares",
            (one, torch.zeros(2), other, torch.zeros(2)),
            torch.tensor([[2.0, 1.0], [4.0, 2.0]]),
            "Both parts have the same sum of exponentials, so they count the same.",
        ),
        Case(
            "shares of 3 and 1",
            (one, torch.tensor([3.0, 1.0]).log(), other, torch.tensor([1.0, 3.0]).log()),
            torch.tensor([[1.5, 0.5], [5.0, 1.0]]),
            "A part counts by its sum of exponentials, e to the power of its log-sum-exp.",
        ),
        Case(
            # Not larger: a log-sum-exp itself is rounded, and the weights with it.
            "large and small log-sum-exps",
            (one, torch.tensor([100.0, -110.0]), other, torch.tensor([100.0, -110.0])),
            torch.tensor([[2.0, 1.0], [4.0, 2.0]]),
            "e to the power of 100 overflows; only the difference matters.",
        ),
        Case(
            "one part much larger than the other",
            (one, torch.tensor([0.0, 200.0]), other, torch.tensor([200.0, 0.0])),
            torch.tensor([[3.0, 2.0], [2.0, 4.0]]),
            "Subtract the larger of the two, whichever part it belongs to.",
        ),
        Case(
            "one part without keys",
            (one, torch.zeros(2), torch.zeros(2, 2), torch.full((2,), none)),
            one,
            "Its sum of exponentials is 0, so it must not count.",
        ),
        Case(
            "no keys in either part",
            (torch.zeros(1, 2), torch.tensor([none]), torch.zeros(1, 2), torch.tensor([none])),
            torch.zeros(1, 2),
            "A query without keys has output 0; -inf minus -inf is not a number.",
        ),
    ]
    return check_cases(function, cases)


@counted
def check_streaming(function: Callable[[Tensor, Tensor, int], Any]) -> Report:
    """Check a function ``(scores, value, size) -> output`` that reads the keys in tiles.

    Args:
        function: Takes (Tq, Tk), (Tk, Dv) and the number of keys in a tile, returns (Tq, Dv).

    Returns:
        The report.

    Source:
        Chapter 16, exercise "finished after every tile".
    """
    value = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0]])
    falling = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0]])
    hints = {
        "one tile": ((falling, value, 5), "With one tile this is softmax."),
        "equal scores": (
            (torch.zeros(1, 4), value[:4], 2),
            "The second tile counts as much as the first, which has been divided already: by what?",
        ),
        "falling scores": (
            (falling, value, 2),
            "Five keys in tiles of two: the last tile has one key, and it counts.",
        ),
        "rising scores": (
            (falling.flip(-1), value, 2),
            "The maximum moves. What was summed under the old one, and who must shrink?",
        ),
        "two rows": (
            (torch.cat([falling - 50, falling.flip(-1) + 60]), value, 1),
            "Each row has its own maximum: reduce over the last dimension and keep it.",
        ),
        "large scores": (
            (falling.flip(-1) * 100, value, 2),
            "Subtract the maximum so far before the exponential.",
        ),
    }
    return check_against(
        function, lambda scores, value, _: torch.softmax(scores, dim=-1) @ value, hints
    )


@counted
def check_key_gradient(function: Callable[..., Any]) -> Report:
    """Check ``(query, key, value, output, lse, grad, lse_grad) -> gradient of the keys``.

    Args:
        function: Takes (Tq, D), (Tk, D), (Tk, Dv), (Tq, Dv), (Tq,), and the gradients of the
            latter two, (Tq, Dv) and (Tq,); returns (Tk, D).

    Returns:
        The report.

    Source:
        Chapter 16, exercise "a gradient through the log-sum-exp".
    """
    query, key, value = waves(3, 4), 2 * waves(5, 4, shift=1), waves(5, 2, shift=2)
    grad, lse_grad = waves(3, 2, shift=3), waves(3, shift=5)
    inputs = {
        "no gradient of the log-sum-exp": (
            (query[:, :1], key[:, :1], value, grad, torch.zeros(3)),
            "Weights are exp(score - lse); a score moves by the gradient relative to the mean.",
        ),
        "width one": (
            (query[:, :1], key[:, :1], value, grad, lse_grad),
            "How far does a log-sum-exp move with one of its scores? Differentiate it.",
        ),
        "width four": (
            (query, key, value, grad, lse_grad),
            "The scores were scaled by 1 / sqrt(D); so is their gradient on the way back.",
        ),
        "the same values for all": (
            (query, key, torch.ones(5, 2), grad, lse_grad),
            "If all values are equal, only the log-sum-exp moves with the weights.",
        ),
        "one key": (
            (query, key[:1], value[:1], grad, lse_grad),
            "The only key has weight one whatever its score is, and its score is the log-sum-exp.",
        ),
    }
    cases = []
    for name, ((q, k, v, *upstream), hint) in inputs.items():
        leaf = k.clone().requires_grad_()
        results = attend_explicit(q, leaf, v), (q @ leaf.mT / q.shape[-1] ** 0.5).logsumexp(dim=-1)
        (expected,) = torch.autograd.grad(results, leaf, upstream)
        output, lse = (result.detach() for result in results)
        cases.append(Case(name, (q, k, v, output, lse, *upstream), expected, hint))
    return check_cases(function, cases)


@counted
def check_flattering(function: Callable[[], Any]) -> Report:
    """Check scores that hide a missing factor, and whose mirror image shows it.

    Args:
        function: Returns scores of shape (T,) with T of at least 4, all different.

    Returns:
        The report.

    Source:
        Chapter 16, exercise "a test that cannot fail".
    """
    answer = as_tensors(function(), "scores")
    if isinstance(answer, Report):
        return answer
    scores = answer[0]
    if scores.ndim != 1 or len(scores) < 4:
        return Report(False, f"Expected a shape (T,) with T >= 4, got {tuple(scores.shape)}.")
    if not scores.isfinite().all() or len(scores.unique()) < len(scores):
        return Report(False, f"All scores must be finite and different, got {scores.tolist()}.")
    hidden, shown = _forgetful_error(scores), _forgetful_error(scores.flip(0))
    if hidden > 1e-6:
        return Report(
            False,
            f"The faulty code is off by {hidden:.3f} on your scores.\n"
            "  hint      The missing factor is 1 as long as the maximum does not move.",
        )
    if shown < 0.1:
        return Report(
            False,
            f"Read from the other end, the faulty code is off by only {shown:.3f}.\n"
            "  hint      There the maximum must move, and by enough to matter.",
        )
    return Report(True, f"Passed: exact on your scores, off by {shown:.2f} on their mirror image.")


def _forgetful_error(scores: Tensor) -> float:
    """How far the output is off if the weighted sum never shrinks; values are 1, 2, 3, ..."""
    values = torch.arange(1, len(scores) + 1, dtype=scores.dtype)
    top, total, weighted = torch.tensor(float("-inf")), torch.tensor(0.0), torch.tensor(0.0)
    for score, value in zip(scores, values, strict=True):
        new = torch.maximum(top, score)
        total = total * torch.exp(top - new) + torch.exp(score - new)
        weighted = weighted + torch.exp(score - new) * value
        top = new
    return float((weighted / total - torch.softmax(scores, dim=0) @ values).abs())
