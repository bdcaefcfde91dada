"""Checks for the exercises of chapter 10."""

import math
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
from attention_lib.losses import cross_entropy

Predict = Callable[[Tensor], Tensor]


@counted
def check_paper(encoder_block: Any, decoder_block: Any, millions: Any) -> Report:
    """Check the three answers of the exercise on paper.

    Args:
        encoder_block: Learned numbers of a block of the paper's base encoder.
        decoder_block: Learned numbers of a block of its decoder.
        millions: Learned numbers of the whole model, in millions.

    Returns:
        The report.

    Source:
        Chapter 10, exercise "the base model of the paper".
    """
    return check_answers(
        {
            "a block of the encoder": (
                encoder_block,
                3152384,
                "One attention: four matrices with biases. Two matrices with biases for the "
                "feed-forward network. Two norms, each with a gain and a shift.",
            ),
            "a block of the decoder": (
                decoder_block,
                4204032,
                "What the encoder's block has, and one more attention with its norm.",
            ),
            "the whole, in millions": (
                millions,
                63.1,
                "Six blocks of each kind, and one table of 37,000 rows that serves both languages "
                "and the output.",
            ),
        },
        tolerance=0.06,
    )


@counted
def check_smoothed(function: Callable[..., Tensor]) -> Report:
    """Check a function ``(logits, targets, epsilon, pad) -> mean smoothed cross-entropy``.

    Args:
        function: Takes (N, V), (N,), a number and a token, returns one number.

    Returns:
        The report.

    Source:
        Chapter 10, exercise "label smoothing with padding".
    """
    logits = 2 * waves(4, 5)
    forbidden = logits.clone()
    forbidden[:, 4] = -math.inf
    hints = {
        "no smoothing": (
            (logits, torch.tensor([1, 3, 2, 4]), 0.0, 0),
            "Minus the logarithm of the probability of the target, mean over the positions.",
        ),
        "smoothing": (
            (logits, torch.tensor([1, 3, 2, 4]), 0.2, 0),
            "Spread epsilon over all V tokens, the true one among them: epsilon / V each.",
        ),
        "padding": (
            (logits, torch.tensor([1, 3, 0, 0]), 0.2, 0),
            "Positions whose target is the padding token count neither in the sum nor in the "
            "number that it is divided by.",
        ),
        "a forbidden token": (
            (forbidden, torch.tensor([1, 3, 2, 1]), 0.0, 0),
            "Without smoothing a token of probability 0 must not make NaN out of 0 times "
            "infinity: pick the target's entry instead of multiplying by zeros.",
        ),
        "nothing but padding": (
            (logits, torch.tensor([0, 0, 0, 0]), 0.2, 0),
            "Where no position counts, the loss is 0, not 0 / 0.",
        ),
    }
    return check_against(function, _smoothed, hints)


def _smoothed(logits: Tensor, targets: Tensor, epsilon: float, pad: int) -> Tensor:
    return cross_entropy(logits, targets, ignore_index=pad, label_smoothing=epsilon)


@counted
def check_leaks(function: Callable[..., bool]) -> Report:
    """Check a function ``(predict, target) -> whether a prediction sees what it must predict``.

    Args:
        function: Takes a function from a row of tokens (T,) to logits (T - 1, V), and such a row.

    Returns:
        The report.

    Source:
        Chapter 10, exercise "which of these decoders cheats?".
    """
    table = waves(12, 4)
    target = torch.tensor([1, 7, 3, 9, 5, 2])

    def running_means(tokens: Tensor) -> Tensor:
        counts = torch.arange(1, len(tokens) + 1)[:, None]
        return table[tokens].cumsum(dim=0) / counts

    def shifted(tokens: Tensor) -> Tensor:
        return running_means(tokens[:-1])

    def not_shifted(tokens: Tensor) -> Tensor:
        return running_means(tokens[1:])

    def no_causal_mask(tokens: Tensor) -> Tensor:
        return table[tokens[:-1]] + table[tokens[:-1]].mean(dim=0)

    def only_the_source(tokens: Tensor) -> Tensor:
        return waves(len(tokens) - 1, 4)

    def one_look_ahead(tokens: Tensor) -> Tensor:
        logits = running_means(tokens[:-1])
        logits[1] = logits[1] + table[tokens[2]]  # row 1 predicts tokens[2]
        return logits

    def far_ahead(tokens: Tensor) -> Tensor:
        logits = running_means(tokens[:-1])
        logits[0] = logits[0] + table[tokens[-1]]
        return logits

    hints = {
        shifted: (
            False,
            "Row i predicts token i + 1 and may depend on the tokens 0 .. i: not every change "
            "of a row is a leak.",
        ),
        not_shifted: (True, "Here row i is computed from the token that it must predict."),
        only_the_source: (False, "No row depends on the target at all."),
        no_causal_mask: (True, "Here every row sees all tokens that were fed."),
        one_look_ahead: (True, "One row sees its own answer: try every place, not only the last."),
        far_ahead: (True, "The first row sees the last token, and nothing in between."),
    }
    cases = [
        Case(predict.__name__.replace("_", " "), (predict, target), expected, hint)
        for predict, (expected, hint) in hints.items()
    ]
    return check_cases(function, cases)
