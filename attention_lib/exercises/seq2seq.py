"""Checks for the exercises of chapter 06."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attention_lib.attention import attend_explicit, attention_weights
from attention_lib.exercises.report import (
    Case,
    Report,
    check_against,
    check_answers,
    check_cases,
    counted,
)
from attention_lib.masks import padding
from attention_lib.scores import additive, cosine, scaled_dot

Weights = Callable[[Tensor, Tensor], Tensor]


@counted
def check_paper(additive_score: Any, general_score: Any, penalty: Any) -> Report:
    """Check the three answers of the exercise on paper.

    Args:
        additive_score: Learned numbers of the additive score.
        general_score: Learned numbers of the score with one matrix.
        penalty: The brevity penalty.

    Returns:
        The report.

    Source:
        Chapter 06, exercise "what a score costs, and what brevity costs".
    """
    return check_answers(
        {
            "additive score": (
                additive_score,
                51360,
                "Query and key each have a matrix into the hidden layer; what turns the hidden "
                "layer into one number?",
            ),
            "score with one matrix": (general_score, 25600, "One matrix of 160 x 160."),
            "brevity penalty": (penalty, 0.7788, "exp(1 - r/c), c being the shorter length here."),
        }
    )


@counted
def check_context(function: Callable[..., Tensor]) -> Report:
    """Check a function ``(state, states, W_q, W_k, v, lengths) -> context``.

    Args:
        function: Takes (B, D), (B, Ts, D), (D, A), (D, A), (A,), (B,), returns (B, D).

    Returns:
        The report.

    Source:
        Chapter 06, exercise "the context of a padded batch".
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).mul(8).round() / 8

    parameters = draw(3, 2), draw(3, 2), draw(2)
    states = draw(1, 2, 3)
    hints = {
        "one sentence": (
            (draw(1, 3), states, *parameters, torch.tensor([2])),
            "Scores v . tanh(s W_q + h W_k), softmax over the positions, weighted mean of h.",
        ),
        "two sentences of one length": (
            (draw(2, 3), draw(2, 2, 3), *parameters, torch.tensor([2, 2])),
            "Each sentence has its own scores: keep the batch dimension first.",
        ),
        "a padded sentence": (
            (draw(2, 3), draw(2, 4, 3), *parameters, torch.tensor([4, 1])),
            "Positions at or after the length need the score -inf before the softmax: a score of "
            "0 still gets weight, and weights set to 0 afterwards no longer add up to 1.",
        ),
    }
    return check_against(function, _context, hints)


def _context(
    state: Tensor, states: Tensor, w_q: Tensor, w_k: Tensor, v: Tensor, lengths: Tensor
) -> Tensor:
    score = partial(additive, query_weight=w_q, key_weight=w_k, vector=v)
    output = attend_explicit(state[:, None], states, states, padding(lengths), score=score)
    return output[:, 0]


@counted
def check_precision(function: Callable[..., float]) -> Report:
    """Check a function ``(hypothesis, reference, n) -> clipped n-gram precision``.

    Args:
        function: Takes two strings and a number, returns a number.

    Returns:
        The report.

    Source:
        Chapter 06, exercise "the part of BLEU that counts".
    """
    mat = "the cat is on the mat"
    hints = {
        "single words": (
            ("the cat sat", mat, 1),
            "Count the words of the hypothesis that the reference has too.",
        ),
        "one word again and again": (
            ("the the the the the the the", mat, 1),
            "A word counts at most as often as the reference has it.",
        ),
        "pairs of words": (
            ("the cat on the mat", mat, 2),
            "Count pairs of neighbours, and divide by the number of pairs in the hypothesis.",
        ),
        "shorter than n": (("cat", mat, 2), "Without any pair the precision is 0."),
    }
    return check_against(function, _precision, hints)


def _precision(hypothesis: str, reference: str, n: int) -> float:
    def grams(text: str) -> Counter[tuple[str, ...]]:
        words = text.split()
        return Counter(zip(*(words[i:] for i in range(n)), strict=False))

    found = grams(hypothesis)
    return (found & grams(reference)).total() / max(found.total(), 1)


@counted
def check_reads(function: Callable[..., bool]) -> Report:
    """Check a function ``(weights, query, states) -> whether the weights read the states``.

    Args:
        function: Takes a function ``(query, states) -> weights``, (B, Tq, D) and (B, Ts, D).

    Returns:
        The report.

    Source:
        Chapter 06, exercise "does it read the encoder at all?".
    """
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 3, 4, generator=generator)
    states = torch.randn(2, 5, 4, generator=generator)
    positions = torch.randn(4, 5, generator=generator)

    def attention(query: Tensor, states: Tensor) -> Tensor:
        return attention_weights(query, states, score=scaled_dot)

    def from_the_query_alone(query: Tensor, states: Tensor) -> Tensor:
        return torch.softmax(query @ positions[:, : states.shape[1]], dim=-1)

    def cosine_attention(query: Tensor, states: Tensor) -> Tensor:
        return attention_weights(query, states, score=cosine)

    def hard_attention(query: Tensor, states: Tensor) -> Tensor:
        best = scaled_dot(query, states).argmax(dim=-1)
        return torch.nn.functional.one_hot(best, states.shape[1]).float()

    def from_their_mean(query: Tensor, states: Tensor) -> Tensor:
        return from_the_query_alone(query + states.mean(dim=1, keepdim=True), states)

    def multiplied_by_zero(query: Tensor, states: Tensor) -> Tensor:
        return from_the_query_alone(query, states) + 0 * scaled_dot(query, states)

    hints = {
        attention: (True, "Other states must give other weights. Their sum is always 1."),
        from_the_query_alone: (False, "Give it other states: do the weights change?"),
        cosine_attention: (True, "It reads only directions: change more than the size."),
        hard_attention: (
            True,
            "Its weights jump: a small change may do nothing, nor a shift of all states.",
        ),
        from_their_mean: (True, "It reads only the mean: exchanging states changes nothing."),
        multiplied_by_zero: (False, "The states are in the formula, and do nothing."),
    }
    cases = [
        Case(weights.__name__.replace("_", " "), (weights, query, states), expected, hint)
        for weights, (expected, hint) in hints.items()
    ]
    return check_cases(function, cases)
