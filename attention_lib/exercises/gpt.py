"""Checks for the exercises of chapter 11."""

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
    waves,
)


@counted
def check_paper(nats: Any, bits_per_character: Any, parameters: Any) -> Report:
    """Check the three answers of the exercise on paper.

    Args:
        nats: Loss in nats a token at perplexity 8.
        bits_per_character: Of the same model, where 100 tokens are 300 characters.
        parameters: Parameters of GPT-2 small.

    Returns:
        The report.

    Source:
        Chapter 11, exercise "three conversions".
    """
    return check_answers(
        {
            "nats a token": (nats, 2.0794, "The perplexity is e to the power of the loss."),
            "bits a character": (
                bits_per_character,
                1.0,
                "Bits of the whole text first; then divide by its characters, not its tokens.",
            ),
            "parameters": (
                parameters,
                124_439_808,
                "Tokens and positions; in each block four matrices and two, all with biases, and "
                "two norms; one norm at the end. The output layer is the table of tokens.",
            ),
        }
    )


@counted
def check_windows(function: Callable[[Tensor, int], Any]) -> Report:
    """Check a function ``(tokens, length) -> windows`` that cuts a text for an evaluation.

    Args:
        function: Takes (N,) and a length T, returns inputs and targets in one tensor, (2, M, T).

    Returns:
        The report.

    Source:
        Chapter 11, exercise "windows for an evaluation".
    """
    inputs: dict[str, tuple[tuple[Any, ...], str]] = {
        "one window": (
            (torch.tensor([5, 6, 7]), 2),
            "The target at each position is the token after it.",
        ),
        "two windows": (
            (torch.tensor([5, 6, 7, 8, 9]), 2),
            "The windows of inputs must not overlap, and none may be left out.",
        ),
        "the last token has no target": (
            (torch.tensor([5, 6, 7, 8]), 2),
            "Four tokens have three targets: that is one whole window of two.",
        ),
        "a rest that fills no window": (
            (torch.arange(12), 5),
            "What does not fill a window is dropped.",
        ),
        "another length": ((torch.arange(20, 41), 4), "T comes as an argument."),
    }
    return check_against(function, _windows, inputs)


def _windows(tokens: Tensor, length: int) -> Tensor:
    count = (len(tokens) - 1) // length
    return torch.stack([tokens[s : s + count * length].view(count, length) for s in (0, 1)])


@counted
def check_nucleus(function: Callable[[Tensor, float], Any]) -> Report:
    """Check a function ``(probabilities, p) -> probabilities`` for top-p sampling.

    Args:
        function: Takes (V,) and the share to keep; returns what is left of the probabilities, zero
            for a forbidden token, with sum 1.

    Returns:
        The report.

    Source:
        Chapter 11, exercise "find the bug".
    """
    half = torch.tensor([0.5, 0.3, 0.15, 0.05])
    inputs: dict[str, tuple[tuple[Any, ...], str]] = {
        "in order": (
            (half, 0.6),
            "0.5 is not enough for 0.6: the token that crosses the border belongs to the nucleus.",
        ),
        "one token is enough": ((half, 0.4), "The most likely token always stays."),
        "not in order": (
            (half[[2, 0, 3, 1]], 0.6),
            "What was sorted has to go back to its place.",
        ),
        "everything": ((half[[1, 3, 0, 2]], 1.0), "With p = 1 nothing is forbidden."),
        "a border that is met": (
            (torch.tensor([0.125, 0.375, 0.5]), 0.875),
            "0.5 + 0.375 = 0.875 is at least 0.875: the third is not needed.",
        ),
    }
    return check_against(function, _nucleus, inputs)


def _nucleus(probabilities: Tensor, p: float) -> Tensor:
    largest, order = probabilities.sort(descending=True, stable=True)
    kept = torch.zeros_like(probabilities)
    kept[order] = largest * (largest.cumsum(0) - largest < p)
    return kept / kept.sum()


# --- models that may or may not look ahead --------------------------------------------------------

# 11 tokens, 6 features; whole numbers, so that every order of summation gives the same.
TABLE = (8 * waves(11, 6)).round().double()


def _sums(seen: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A model whose logits come from sums of embeddings, each as often as it is seen."""

    def model(tokens: Tensor) -> Tensor:
        place = torch.arange(tokens.shape[-1])
        often = seen(place[:, None], place[None]).double()  # (T, T)
        return often @ TABLE[tokens] @ TABLE.T

    return model


def _past(query: Tensor, key: Tensor) -> Tensor:
    return key <= query


def _length_aware(tokens: Tensor) -> Tensor:
    """Causal in its sums, and yet it knows how long the text is."""
    return _sums(_past)(tokens) + tokens.shape[-1]


def _named(name: str, model: Callable[..., Tensor]) -> Callable[..., Tensor]:
    model.__name__ = name
    return model


@counted
def check_causal(function: Callable[[Callable[[Tensor], Tensor]], bool]) -> Report:
    """Check a property test ``(model) -> bool``: may a model's past depend on its future?

    Args:
        function: Takes a model from tokens (T,) out of 0 .. 10 to logits (T, 11); returns whether
            the logits at each position depend on that position and those before it only.

    Returns:
        The report.

    Source:
        Chapter 11, exercise "a test for leaks".
    """
    models = {
        "it sees itself and the past": (
            _sums(_past),
            True,
            "Position t may depend on tokens 0 .. t.",
        ),
        "it sees everything": (
            _sums(lambda query, key: query + key >= 0),
            False,
            "Change a later token and look at the earlier logits.",
        ),
        "it sees one token too many": (
            _sums(lambda query, key: key <= query + 1),
            False,
            "Change the token just after a position.",
        ),
        "it sees the future only": (
            _sums(lambda query, key: key >= query),
            False,
            "Change a later token and look at the earlier logits.",
        ),
        "it leaks near the end only": (
            _sums(lambda query, key: (key <= query) | ((key == 8) & (query == 7))),
            False,
            "Try each position, in a text of at least 9 tokens, not only the last.",
        ),
        "a faint leak": (
            _sums(lambda query, key: _past(query, key) + 2**-20 * (key > query)),
            False,
            "However small: what is forbidden must not change at all.",
        ),
        "it knows the length": (
            _length_aware,
            False,
            "Cut the text: a prefix alone must get the same logits.",
        ),
        "the past in a narrow window": (
            _sums(lambda query, key: (key <= query) & (key >= query - 2)),
            True,
            "Seeing less than the past is no leak.",
        ),
    }
    cases = [
        Case(name, (_named("a model", model),), answer, hint)
        for name, (model, answer, hint) in models.items()
    ]
    return check_cases(function, cases)
