"""Checks for the exercises of chapter 05."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attention_lib.attention import attend_explicit
from attention_lib.exercises.report import Report, check_against, check_answers, counted, waves
from attention_lib.masks import Mask, causal


@counted
def check_paper(weights: Any, causal_pairs: Any, window_pairs: Any) -> Report:
    """Check the answers of the exercise on paper.

    Args:
        weights: Four numbers.
        causal_pairs: An integer.
        window_pairs: An integer.

    Returns:
        The report.

    Source:
        Chapter 05, exercise "a row and two counts".
    """
    return check_answers(
        {
            "weights": (
                weights,
                torch.tensor([1, 2, 3, 0]) / 6,
                "The third query may see three keys; their exponentials are 1, 2 and 3.",
            ),
            "causal pairs": (causal_pairs, 55, "Query i has i keys: add 1 to 10."),
            "window pairs": (
                window_pairs,
                27,
                "The window holds the query itself and two keys before; the first queries have "
                "fewer.",
            ),
        }
    )


@counted
def check_block_causal(function: Callable[[Tensor, Tensor, int], Tensor]) -> Report:
    """Check a rule ``(query, key, size) -> allowed``.

    Args:
        function: Takes positions (Tq, 1) and (1, Tk) and the size of a block.

    Returns:
        The report.

    Source:
        Chapter 05, exercise "a block-causal rule".
    """
    six, nine = torch.arange(6), torch.arange(9)
    hints = {
        "blocks of 1 are causal": (
            (six[:, None], six[None], 1),
            "Every position is a block of its own: allow key <= query.",
        ),
        "blocks of 3": (
            (nine[:, None], nine[None], 3),
            "Compare the numbers of the blocks, position // size, not the positions.",
        ),
        "the last two queries only": (
            (nine[-2:, None], nine[None], 4),
            "Use the positions that are passed in, not 0 .. T - 1.",
        ),
    }
    return check_against(function, lambda q, k, size: k // size <= q // size, hints)


@counted
def check_causal_attention(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Report:
    """Check a function ``(query, key, value) -> output`` that must be causal.

    Args:
        function: Takes (T, D), (T, D), (T, Dv), returns (T, Dv).

    Returns:
        The report.

    Source:
        Chapter 05, exercise "a decoder that reads the future".
    """
    values = torch.arange(1.0, 5)[:, None]
    zeros = torch.zeros(4, 2)
    hints = {
        "equal scores, so each output is the mean of what it may see": (
            (zeros, zeros, values),
            "Row 0 is the mean of what the first query sees. Which of the four values may it see?",
        ),
        "different scores": (
            (waves(5, 3), waves(5, 3) - 0.5, waves(5, 2)),
            "Scale by the root of the width, and mask before the softmax.",
        ),
        "a batch": (
            (waves(2, 5, 3), waves(2, 5, 3), waves(2, 5, 2)),
            "The mask belongs to the last two dimensions of the scores.",
        ),
    }
    return check_against(function, lambda q, k, v: attend_explicit(q, k, v, causal()), hints)


@counted
def check_sees_future(function: Callable[[Callable[[Tensor], Tensor], Tensor], Any]) -> Report:
    """Check a detector ``(function, x) -> bool``.

    Args:
        function: Takes a function of (T, D) and such an x; True if a row depends on a later one.

    Returns:
        The report.

    Source:
        Chapter 05, exercise "a detector of leaks".
    """
    x = waves(6, 3)
    far = Mask(lambda query, key: key <= query + 1, "one too far")
    cases: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
        "full attention": (lambda y: attend_explicit(y, y, y), "Every row sees every other."),
        "causal attention": (
            lambda y: attend_explicit(y, y, y, causal()),
            "Nothing leaks here: a row may depend on itself and on rows before it.",
        ),
        "a running mean": (lambda y: y.cumsum(dim=0), "A sum over the past is no leak."),
        "one place too far": (
            lambda y: attend_explicit(y, y, y, far),
            "Row i sees row i + 1: compare all rows before the change, for every place of it.",
        ),
        "a leak from the second row to the first": (
            lambda y: torch.cat([y[:1] + y[1:2], y[1:]]),
            "Only the first row leaks, and only from its neighbour: try every place.",
        ),
        "a leak from the last row to the one before": (
            lambda y: torch.cat([y[:-2], y[-2:-1] + y[-1:], y[-1:]]),
            "Only the last row but one leaks: compare all rows before the change.",
        ),
        "a normalisation over the rows": (
            lambda y: y - y.mean(dim=0),
            "The mean over all rows holds the future.",
        ),
        "a shift to the right": (lambda y: y.roll(1, dims=0), "The first row comes from the last."),
        "a shift that drops the last row": (
            lambda y: torch.cat([torch.zeros_like(y[:1]), y[:-1]]),
            "Reading the row before is no leak.",
        ),
    }
    expected = {"full attention", "one place too far", "a normalisation over the rows"}
    expected |= {"a leak from the second row to the first", "a shift to the right"}
    expected |= {"a leak from the last row to the one before"}
    names = {id(leaky): name for name, (leaky, _) in cases.items()}
    return check_against(
        lambda leaky, y: function(leaky, y),
        lambda leaky, y: names[id(leaky)] in expected,
        {name: ((leaky, x), hint) for name, (leaky, hint) in cases.items()},
    )
