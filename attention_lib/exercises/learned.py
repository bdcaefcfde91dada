"""Checks for the exercises of chapter 04b."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attention_lib.attention import attend, attention_weights
from attention_lib.exercises.report import (
    Case,
    Report,
    as_tensors,
    check_against,
    check_answers,
    check_cases,
    counted,
)


@counted
def check_paper(two_projections: Any, one_bilinear: Any, scores_per_step: Any) -> Report:
    """Check the three counts of the exercise on paper.

    Args:
        two_projections: Learned numbers of two separate projections.
        one_bilinear: Numbers of a full bilinear matrix.
        scores_per_step: Scores in one training step.

    Returns:
        The report.

    Source:
        Chapter 04b, exercise "how many parameters, how many scores".
    """
    return check_answers(
        {
            "two projections": (two_projections, 25088, "Two matrices, each 392 x 32."),
            "one bilinear matrix": (
                one_bilinear,
                153664,
                "It has a row and a column for each pixel.",
            ),
            "scores in a step": (
                scores_per_step,
                224000,
                "One for each pair of a query and a key.",
            ),
        }
    )


@counted
def check_loss(function: Callable[..., Tensor]) -> Report:
    """Check a function ``(query, key, classes, one_hot, W_Q, W_K) -> loss`` that does not leak.

    Args:
        function: Takes (N, D), (N, D), (N,), (N, C), (D, Dh), (D, Dh), returns a number.

    Returns:
        The report.

    Source:
        Chapter 04b, exercise "a loss that does not leak".
    """
    key = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.2, 1.0], [1.0, 0.3]])
    query = key + torch.tensor([[0.1, -0.1]])
    classes = torch.tensor([0, 0, 1, 1, 0])
    one_hot = nn.functional.one_hot(classes, 2).float()
    eye = torch.eye(2)
    turn = torch.tensor([[1.0, 0.5, 0.2], [-0.5, 1.0, 0.3]])
    hints = {
        "projections that do nothing": (
            (key, key, classes, one_hot, eye, eye),
            "Mask key i for query i, then mean of -ln(share of the true class).",
        ),
        "two projections": (
            (query, key, classes, one_hot, turn, turn.flip(0)),
            "Queries through W_Q, keys through W_K, scores over the root of the projected width.",
        ),
    }
    return check_against(function, _loss, hints)


def _loss(
    query: Tensor, key: Tensor, classes: Tensor, one_hot: Tensor, w_q: Tensor, w_k: Tensor
) -> Tensor:
    others = ~torch.eye(len(key), dtype=torch.bool)
    shares = attention_weights(query @ w_q, key @ w_k, others) @ one_hot
    return -shares.gather(1, classes[:, None]).log().mean()


class _Projected(nn.Module):
    """Attention with three projections, of which any can be left out or multiplied by zero."""

    def __init__(
        self, used: str, zeroed: str = "", *, bias: str = "", old_gradients: bool = False
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.projections = nn.ModuleDict({f"W_{n}": nn.Linear(3, 3, n in bias) for n in "qkv"})
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.used, self.zeroed, self.old_gradients = used, zeroed, old_gradients

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.projections[f"W_{n}"](x) if n in self.used else x for n in "qkv")
        output = attend(q, k, v)
        for n in self.zeroed:
            output = output + 0 * self.projections[f"W_{n}"](x)
        return output

    def __repr__(self) -> str:
        used = ", ".join(f"W_{n}" for n in self.used) or "no projection"
        return f"attention that applies {used}" + (
            f" and multiplies W_{self.zeroed} by zero" if self.zeroed else ""
        )


@counted
def check_dead(function: Callable[..., list[str]]) -> Report:
    """Check a function ``(module, *inputs) -> names of parameters without a gradient``.

    Args:
        function: Takes a module and its inputs, returns a sorted list of names.

    Returns:
        The report.

    Source:
        Chapter 04b, exercise "which parameters are dead?".
    """
    x = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0], [0.5, 0.5, 0.0], [2.0, -1.0, 1.0]])
    cases = [
        Case("all in use", (_Projected("qkv"), x), [], "Nothing is dead here: return []."),
        Case(
            "nothing in use",
            (_Projected("v"), x),
            ["projections.W_k.weight", "projections.W_q.weight"],
            "Look for parameters whose .grad is None after backward().",
        ),
        Case(
            "a gradient of zeros",
            (_Projected("qk", zeroed="v"), x),
            ["projections.W_v.weight"],
            "A gradient can exist and be zero in every entry.",
        ),
    ]
    hint = "A key's bias changes all scores of a query alike: its gradient is rounding error."
    biased = _Projected("qkv", bias="k")
    cases.append(Case("a bias on the keys", (biased, x), ["projections.W_k.bias"], hint))
    stale = _Projected("kv", old_gradients=True)
    hint = "Clear old gradients before backward()."
    cases.append(Case("an old gradient", (stale, x), ["projections.W_q.weight"], hint))

    def with_old_gradients(module: _Projected, *inputs: Tensor) -> Any:
        if module.old_gradients:  # set here, since copying a module drops its gradients
            for parameter in module.parameters():
                parameter.grad = torch.ones_like(parameter)
        return function(module, *inputs)

    return check_cases(with_old_gradients, cases)


@counted
def check_ring(function: Callable[[], Tensor | None]) -> Report:
    """Check that a symmetric matrix gets four of the five in the ring right.

    Args:
        function: Returns a symmetric (5, 5) tensor.

    Returns:
        The report.

    Source:
        Chapter 04b, exercise "four of five".
    """
    answer = as_tensors(function(), "scores")
    if isinstance(answer, Report):
        return answer
    (scores,) = answer
    if scores.shape != (5, 5):
        return Report(False, f"Expected a shape (5, 5), got {tuple(scores.shape)}.")
    if not torch.equal(scores, scores.mT):
        i, j = (scores != scores.mT).nonzero()[0].tolist()
        return Report(
            False,
            f"Not symmetric: entry ({i}, {j}) is {scores[i, j]:g}, entry ({j}, {i}) is "
            f"{scores[j, i]:g}.",
        )
    right = []
    for i in range(5):
        rivals = [scores[i, j] for j in range(5) if j != (i + 1) % 5]
        right.append(bool(scores[i, (i + 1) % 5] > max(rivals)))
    if sum(right) == 4:
        return Report(True, "Passed: four of five, and the proof says no more is possible.")
    return Report(
        False,
        f"Right: {sum(right)} of 5; wrong for {[i for i in range(5) if not right[i]]}.\n"
        "  hint      Read the chain of inequalities in the proof as a recipe.",
    )
