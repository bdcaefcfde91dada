"""Checks for the exercises of chapter 00."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from attention_lib.exercises.report import Report, check_against, check_answers, counted, waves


@counted
def check_paper(deviation: Any, loss_of_uniform: Any) -> Report:
    """Check the two numbers of the exercise on paper.

    Args:
        deviation: A number.
        loss_of_uniform: A number.

    Returns:
        The report.

    Source:
        Chapter 00, exercise "sizes".
    """
    return check_answers(
        {
            "deviation": (
                deviation,
                16.0,
                "Variances multiply in a product and add in a sum; the deviation is the root.",
            ),
            "loss": (loss_of_uniform, math.log(50), "Every answer has probability 1/50."),
        }
    )


@counted
def check_standardise(function: Callable[[Tensor], Tensor]) -> Report:
    """Check a function that gives each row mean 0 and variance 1.

    Args:
        function: Takes and returns (..., D).

    Returns:
        The report.

    Source:
        Chapter 00, exercise "standardise rows".
    """
    hints = {
        "one row": ((torch.tensor([[1.0, 2.0, 3.0]]),), "Divide by D in the variance, not D - 1."),
        "a square matrix": (
            (torch.tensor([[1.0, 2, 6], [40, 50, 90], [0, 0, 9]]),),
            "The mean of row i belongs to row i: keep the dimension.",
        ),
        "a batch": ((waves(2, 3, 5),), "Use the last axis."),
    }
    return check_against(function, _standardised, hints)


@counted
def check_loss(function: Callable[[Tensor, Tensor], Tensor]) -> Report:
    """Check a function ``(logits, truth) -> loss``.

    Args:
        function: Takes (B, n) and (B,), returns one number.

    Returns:
        The report.

    Source:
        Chapter 00, exercise "a loss with a floor".
    """
    hints = {
        "equal logits": (
            (torch.zeros(1, 4), torch.tensor([2])),
            "Four equal answers: the loss is ln 4.",
        ),
        "certain and right": (
            (torch.tensor([[50.0, 0, 0, 0]]), torch.tensor([0])),
            "A certain and right answer has a loss of 0. How often is the softmax applied?",
        ),
        "certain and wrong": (
            (torch.tensor([[300.0, 0]]), torch.tensor([1])),
            "The loss is the difference of the logits: take the logarithm of the softmax in one "
            "step, without the probability in between.",
        ),
        "a batch": (
            (waves(3, 4), torch.tensor([3, 0, 1])),
            "The mean over the rows, each with its own truth.",
        ),
    }
    return check_against(function, cross_entropy, hints)


def _standardised(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / centred.square().mean(dim=-1, keepdim=True).sqrt()
