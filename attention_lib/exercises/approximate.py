"""Checks for the exercises of chapter 18."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attention_lib.attention import attend
from attention_lib.efficient.linear import attend_linear
from attention_lib.exercises.report import (
    Report,
    as_tensors,
    check_against,
    check_answers,
    counted,
    waves,
)


@counted
def check_paper(length: Any, cache: Any, variance: Any, reach: Any) -> Report:
    """Check the four answers of the exercise on paper.

    Args:
        length: Where random features and exact attention take equally many operations.
        cache: The first length at which a cache is larger than the state.
        variance: The variance of the estimate over the square of what is estimated.
        reach: How far back a stack of windows sees.

    Returns:
        The report.

    Source:
        Chapter 18, exercise "four numbers before you choose".
    """
    return check_answers(
        {
            "length": (
                length,
                512,
                "Set 4 n n D equal to 8 n F D and solve for n; F is 256.",
            ),
            "cache": (
                cache,
                33,
                "The state holds F Dv + F numbers, a cache 2 n D; the first whole n above.",
            ),
            "variance": (
                variance,
                0.8375,
                "|q + k| squared is 4: (e to the power of that, minus 1) over the number of "
                "features.",
            ),
            "reach": (
                reach,
                1536,
                "Each layer carries what it sees one window further: layers times before.",
            ),
        }
    )


@counted
def check_state(function: Callable[[Tensor, Tensor, Tensor], Any]) -> Report:
    """Check a function ``(q, k, v) -> output`` that runs causal linear attention as a recurrence.

    Args:
        function: Takes features of queries and keys, (T, F), and values, (T, Dv); returns (T, Dv).

    Returns:
        The report.

    Source:
        Chapter 18, exercise "a decoder with a state".
    """
    inputs: dict[str, tuple[tuple[Any, ...], str]] = {
        "one position": (
            (torch.tensor([[2.0]]), torch.tensor([[3.0]]), torch.tensor([[5.0]])),
            "A mean of one value is that value: divide by q times the sum of the features.",
        ),
        "two positions": (
            (torch.ones(2, 1), torch.tensor([[1.0], [3.0]]), torch.tensor([[8.0], [4.0]])),
            "From the keys up to t, and from t itself: the second is (1 * 8 + 3 * 4) / (1 + 3).",
        ),
        "a later key is not seen": (
            (torch.ones(3, 1), torch.tensor([[1.0], [1.0], [9.0]]), waves(3, 1)),
            "Changing the last key must not change the first two outputs.",
        ),
        "several features and a wide value": (
            (waves(5, 3).exp(), waves(5, 3, shift=1).exp(), waves(5, 2, shift=2)),
            "The sum of features times value has shape (F, Dv): add an outer product a position.",
        ),
    }
    return check_against(function, _state, inputs)


def _state(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    products = (q @ k.mT).tril()
    return products @ v / products.sum(dim=-1, keepdim=True)


@counted
def check_chunks(function: Callable[[Tensor, Tensor, Tensor, int], Any]) -> Report:
    """Check a function ``(q, k, v, chunk) -> output`` for the chunked form.

    Args:
        function: Takes features of queries and keys, (T, F), values, (T, Dv), and the length of a
            chunk; returns (T, Dv).

    Returns:
        The report.

    Source:
        Chapter 18, exercise "find the bug".
    """
    q, k, v = waves(6, 3).exp(), waves(6, 3, shift=1).exp(), waves(6, 2, shift=2)
    inputs: dict[str, tuple[tuple[Any, ...], str]] = {
        "one chunk": (
            (q, k, v, 6),
            "Before the first chunk the state is empty. With one chunk only the table inside "
            "counts, and there a query sees the keys up to its own.",
        ),
        "two chunks": (
            (q, k, v, 3),
            "A chunk starts from the sums over all chunks before it, and over those only.",
        ),
        "chunks of one": ((q, k, v, 1), "That is the recurrence."),
        "the last chunk is shorter": ((q, k, v, 4), "The length need not be a multiple."),
    }

    def right(q: Tensor, k: Tensor, v: Tensor, chunk: int) -> Tensor:
        return _state(q, k, v)

    return check_against(function, right, inputs)


@counted
def check_twins(function: Callable[[], Any]) -> Report:
    """Check two memories that linear attention cannot tell apart and softmax attention can.

    Args:
        function: Returns key and value of the first memory and key and value of the second, each
            (n, 1), with entries from -4 to 4.

    Returns:
        The report.

    Source:
        Chapter 18, exercise "two memories, one answer".
    """
    parts = as_tensors(function(), "key_1", "value_1", "key_2", "value_2")
    if isinstance(parts, Report):
        return parts
    names = ("key_1", "value_1", "key_2", "value_2")
    for name, part in zip(names, parts, strict=True):
        if part.ndim != 2 or part.shape[1] != 1 or len(part) != len(parts[0]) or not len(part):
            return Report(
                False,
                f"{name} fails.\n  got       shape {tuple(part.shape)}\n"
                "  hint      Four tensors of the same shape (n, 1), n at least 1.",
            )
        if not (part.abs() <= 4).all():
            return Report(
                False,
                f"{name} fails.\n  got       a largest entry of {part.abs().max():.3g}\n"
                "  hint      Entries from -4 to 4, no NaN.",
            )
    query = torch.tensor([[-2.0], [0.0], [2.0]], dtype=torch.float64)
    outputs = [attend_linear(query, parts[at], parts[at + 1])[0, 0].item() for at in (0, 2)]
    if abs(outputs[0] - outputs[1]) > 1e-6:
        return Report(
            False,
            "Linear attention tells them apart: the check fails.\n"
            f"  got       linear attention {outputs[0]:.4g} and {outputs[1]:.4g}\n"
            "  hint      From 0 on the feature is key + 1. Keep the sum of feature times value "
            "over the sum of features.",
        )
    exact = [attend(query, parts[at], parts[at + 1])[2, 0].item() for at in (0, 2)]
    if abs(exact[0] - exact[1]) < 0.5:
        return Report(
            False,
            "Softmax attention can hardly tell them apart: the check fails.\n"
            f"  got       {exact[0]:.4g} and {exact[1]:.4g} for the query 2, must differ by 0.5\n"
            "  hint      Softmax looks for the largest key: move the keys apart in one memory.",
        )
    return Report(True, f"Passed: one answer, and softmax reads {exact[0]:.3g} and {exact[1]:.3g}.")
