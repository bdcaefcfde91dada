"""Checks for the exercises of chapter 09."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, rms_norm

from attention_lib.attention import attend
from attention_lib.blocks import EncoderBlock, FeedForward, PostNorm, PreNorm
from attention_lib.exercises.report import (
    Case,
    Report,
    as_tensors,
    check_against,
    check_answers,
    check_cases,
    counted,
)
from attention_lib.heads import MultiHeadAttention


@counted
def check_paper(normalised_row: Any, parameters: Any, more_with_16_heads: Any) -> Report:
    """Check the three answers of the exercise on paper.

    Args:
        normalised_row: LayerNorm of [1, 7, 7, 9].
        parameters: Parameters of a block of width 128 with 512 hidden units.
        more_with_16_heads: How many more it has with 16 heads in place of 8.

    Returns:
        The report.

    Source:
        Chapter 09, exercise "one row and one count".
    """
    return check_answers(
        {
            "the normalised row": (
                normalised_row,
                torch.tensor([-5.0, 1.0, 1.0, 3.0]) / 3,
                "Subtract the mean; divide by the root of the variance, with 1/D.",
            ),
            "parameters": (
                parameters,
                198272,
                "Four matrices with biases, two more with theirs, and a gain and a shift "
                "for each of two norms.",
            ),
            "more with 16 heads": (
                more_with_16_heads,
                0,
                "Heads are slices of the width.",
            ),
        }
    )


@counted
def check_block(function: Callable[..., Tensor]) -> Report:
    """Check a function ``(x, W_Q, W_K, W_V, W_O, W_1, W_2) -> output``, a pre-norm encoder block.

    Args:
        function: Takes (..., T, D), (D, Dh) three times, (Dh, D), (D, hidden), (hidden, D);
            returns (..., T, D).

    Returns:
        The report.

    Source:
        Chapter 09, exercise "a pre-norm block as a function".
    """
    # Large enough for epsilon to matter in the last case only.
    x = torch.tensor([[20.0, 0.0, 0.0, 10.0], [0.0, 0.0, 20.0, 0.0], [10.0, 10.0, 0.0, 10.0]])
    generator = torch.Generator().manual_seed(0)
    sizes = ((4, 3), (4, 3), (4, 3), (3, 4), (4, 7), (7, 4))
    matrices = [torch.randn(size, generator=generator) / 2 for size in sizes]
    silent = [torch.zeros(size) for size in sizes]
    inputs = {
        "sublayers that say nothing": (
            (x, *silent),
            "With all matrices zero the block must return x itself: what is added to x, and to "
            "which x?",
        ),
        "attention only": (
            (x, *matrices[:4], *silent[4:]),
            "Attention reads the normalised x (variance with 1/D) and scales by the root of Dh.",
        ),
        "feed-forward only": (
            (x, *silent[:4], *matrices[4:]),
            "The feed-forward network reads the normalised sum; the ReLU stands between W_1 and "
            "W_2.",
        ),
        "both": ((x, *matrices), "The second norm reads the sum with attention, not the first x."),
        "a batch": (
            (torch.stack([x, x.flip(0) * 3]), *matrices),
            "Norm and softmax work on the last dimension, whatever stands before.",
        ),
        "a constant row": (
            (torch.cat([x, torch.full((1, 4), 4.0)]), *matrices),
            "A variance of 0 needs the epsilon under the root.",
        ),
    }
    return check_against(function, _block, inputs)


def _block(
    x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor, w_1: Tensor, w_2: Tensor
) -> Tensor:
    y = layer_norm(x, x.shape[-1:])
    x = x + attend(y @ w_q, y @ w_k, y @ w_v) @ w_o
    return x + (layer_norm(x, x.shape[-1:]) @ w_1).relu() @ w_2


class _NormOnPath(PreNorm):
    """The mistake: the norm stands on the residual path."""

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        x = self.norm(x)
        output: Tensor = x + sublayer(x)
        return output


class _PreWithoutResidual(PreNorm):
    """Nothing is added."""

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        return sublayer(self.norm(x))


class _PostWithoutResidual(PostNorm):
    """Nothing is added, and the result is normalised."""

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        output: Tensor = self.norm(sublayer(x))
        return output


class _Unknown(EncoderBlock):
    """An encoder block that does not say what it is made of."""

    def __init__(self, residual: type[nn.Module]) -> None:
        parts = MultiHeadAttention(6, 2), FeedForward(6, 11)
        super().__init__(*parts, partial(residual, 6))
        generator = torch.Generator().manual_seed(0)
        for module in self.modules():
            if isinstance(module, nn.Linear):  # the norms keep gain 1 and shift 0
                module.weight.data = torch.randn(module.weight.shape, generator=generator)

    def __repr__(self) -> str:
        return "a block, fresh from its initialisation"


@counted
def check_placement(function: Callable[[EncoderBlock, Tensor], str]) -> Report:
    """Check a function ``(block, x) -> "pre", "post" or "neither"``.

    Args:
        function: Takes an encoder block that it may change, and an input (T, D).

    Returns:
        The report.

    Source:
        Chapter 09, exercise "which block is it?".
    """
    x = 3 * torch.randn(5, 6, generator=torch.Generator().manual_seed(1)) + 1
    kinds: dict[str, tuple[type[nn.Module], str, str]] = {
        "pre-norm": (PreNorm, "pre", "With silent sublayers it returns x."),
        "post-norm": (PostNorm, "post", "Its rows leave with mean 0 and variance 1."),
        "norm on the path": (
            _NormOnPath,
            "neither",
            "With silent sublayers it looks like post-norm. Look at it with loud ones.",
        ),
        "pre-norm without a residual": (
            _PreWithoutResidual,
            "neither",
            "With silent sublayers it forgets x.",
        ),
        "post-norm without a residual": (
            _PostWithoutResidual,
            "neither",
            "Its rows leave normalised, but with silent sublayers it forgets x.",
        ),
    }
    cases = [
        Case(name, (_Unknown(residual), x), answer, hint)
        for name, (residual, answer, hint) in kinds.items()
    ]
    return check_cases(function, cases)


@counted
def check_blind(function: Callable[[], Any]) -> Report:
    """Check two rows that LayerNorm maps to the same row and RMSNorm to different ones.

    Args:
        function: Returns two rows of width 4 with entries from -10 to 10.

    Returns:
        The report.

    Source:
        Chapter 09, exercise "what LayerNorm cannot see".
    """
    answer = as_tensors(function(), "a", "b")
    if isinstance(answer, Report):
        return answer
    for name, row in zip("ab", answer, strict=True):
        if row.shape != (4,):
            return Report(False, f"{name} must have shape (4,), got {tuple(row.shape)}.")
        if not row.abs().max() <= 10:
            return Report(False, f"{name} must lie between -10 and 10, got {row.tolist()}.")
        if row.std(correction=0) < 1e-6:
            return Report(
                False, f"{name} is constant: without epsilon, LayerNorm divides 0 by 0 there."
            )
    a, b = answer
    gap = (layer_norm(a, (4,), eps=0) - layer_norm(b, (4,), eps=0)).abs().max().item()
    if gap > 1e-4:
        return Report(
            False,
            f"LayerNorm tells them apart, by {gap:.3g}.\n"
            "  hint      LN(a x + b) = LN(x) for which a and which b?",
        )
    gap = (rms_norm(a, (4,), eps=0) - rms_norm(b, (4,), eps=0)).abs().max().item()
    if gap < 1:
        return Report(
            False,
            f"RMSNorm makes them differ by {gap:.3g} only, and 1 was asked for.\n"
            "  hint      RMSNorm forgets the scale too, but not the shift.",
        )
    return Report(True, f"Passed: the same for LayerNorm, {gap:.2f} apart for RMSNorm.")
