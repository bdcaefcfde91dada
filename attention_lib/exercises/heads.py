"""Checks for the exercises of chapter 07."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attention_lib.attention import attend_explicit
from attention_lib.exercises.report import Report, check_against, check_answers, counted, waves
from attention_lib.heads import merge_heads, split_heads

MultiHead = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor]


@counted
def check_paper(head_width: Any, parameters: Any, grouped_parameters: Any) -> Report:
    """Check the counts of the exercise on paper.

    Args:
        head_width: An integer.
        parameters: An integer.
        grouped_parameters: An integer.

    Returns:
        The report.

    Source:
        Chapter 07, exercise "count".
    """
    return check_answers(
        {
            "head width": (head_width, 64, "The heads share the width among them."),
            "parameters": (
                parameters,
                4 * 768**2 + 4 * 768,
                "Query, key, value and output: four matrices of D x D and four biases of D.",
            ),
            "grouped parameters": (
                grouped_parameters,
                2 * 768**2 + 2 * 768 * 192,
                "Queries and output keep D x D; keys and values have three heads of 64 features.",
            ),
        }
    )


@counted
def check_multi_head(function: MultiHead) -> Report:
    """Check a function ``(x, W_Q, W_K, W_V, W_O, heads) -> output``.

    Args:
        function: Takes (B, T, D), four matrices (D, D) and the number of heads; gives (B, T, D).

    Returns:
        The report.

    Source:
        Chapter 07, exercises "multi-head attention from nothing" and "shapes fit, numbers do not".
    """
    eye, x = torch.eye(4), waves(1, 3, 4)
    four = tuple(waves(6, 6, shift=shift) for shift in range(4))
    hints = {
        "one head, projections that do nothing": (
            (x, eye, eye, eye, eye, 1),
            "Softmax over the keys of the scaled dot products, then the mean of the values.",
        ),
        "two heads, projections that do nothing": (
            (x, eye, eye, eye, eye, 2),
            "Each head sees its own half of the features, scales by the root of that half's "
            "width, and fills its own half of the output, position by position. Did positions "
            "stay apart when you split and when you joined?",
        ),
        "three heads, four projections, a batch of two": (
            (waves(2, 5, 6), *four, 3),
            "Project first, then split; the last product is with W_O.",
        ),
    }
    return check_against(function, _multi_head, hints)


@counted
def check_share(function: Callable[[Tensor, int], Tensor]) -> Report:
    """Check a function ``(key, heads) -> shared``.

    Args:
        function: Takes (B, Hkv, T, Dh) and H, returns (B, H, T, Dh).

    Returns:
        The report.

    Source:
        Chapter 07, exercise "share keys among heads".
    """
    two = torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1)
    hints = {
        "nothing to share": ((two, 2), "Each query head has its own key head here."),
        "four query heads on two key heads": (
            (two, 4),
            "Neighbouring query heads share: the order is 1, 1, 2, 2.",
        ),
        "six on two, a batch": (
            (waves(3, 2, 5, 7), 6),
            "The heads are the second dimension; the others stay.",
        ),
    }
    return check_against(
        function, lambda key, h: key.repeat_interleave(h // key.shape[1], 1), hints
    )


def _multi_head(x: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, heads: int) -> Tensor:
    query, key, value = (split_heads(x @ weight, heads) for weight in (q, k, v))
    return merge_heads(attend_explicit(query, key, value)) @ o
