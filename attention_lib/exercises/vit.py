"""Checks for the exercises of chapter 13."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attention_lib.exercises.report import (
    Report,
    as_tensors,
    check_against,
    check_answers,
    counted,
    waves,
)
from attention_lib.models.vit import to_patches


@counted
def check_paper(tokens: Any, projection: Any, positions: Any, ratio: Any) -> Report:
    """Check the counts for ViT-B/16 at 224 pixels.

    Args:
        tokens: Length of the sequence, the class token included.
        projection: Parameters of the projection of patches, with its bias.
        positions: Parameters of the table of positions.
        ratio: How many times as many weights the patches have at 448 pixels, without class token.

    Returns:
        The report.

    Source:
        Chapter 13, exercise "count a published model".
    """
    return check_answers(
        {
            "tokens": (tokens, 197, "224 / 16 patches along each side, and one token more."),
            "projection": (
                projection,
                590592,
                "A patch has 16 x 16 pixels of three colours; do not forget the bias.",
            ),
            "positions": (positions, 151296, "One vector of the width for each token."),
            "ratio": (ratio, 16, "Twice the side, four times the patches, and weights are pairs."),
        }
    )


@counted
def check_patches(function: Callable[..., Tensor]) -> Report:
    """Check a function ``(images, patch) -> patches`` with the patches row by row.

    Args:
        function: Takes (B, C, Y, X) and p, returns (B, T, C p²).

    Returns:
        The report.

    Source:
        Chapter 13, exercise "find the bug".
    """
    grey = torch.arange(16.0).reshape(1, 1, 4, 4)
    inputs = {
        "four patches of one image": (
            (grey, 2),
            "The first patch is the square 0, 1, 4, 5. In which order does reshape read?",
        ),
        "an oblong image": (
            (torch.arange(24.0).reshape(1, 1, 4, 6), 2),
            "The sides may differ: the patches of one row of the grid come first.",
        ),
        "two colours": (
            (torch.arange(32.0).reshape(1, 2, 4, 4), 2),
            "A patch holds all pixels of the first colour, then all of the second.",
        ),
        "two images": ((waves(2, 3, 6, 6), 3), "Each image has patches of its own."),
    }
    return check_against(function, to_patches, inputs)


@counted
def check_image(function: Callable[..., Tensor]) -> Report:
    """Check a function ``(patches, patch, channels, columns) -> images``, the way back.

    Args:
        function: Takes (B, T, C p²), p, C and the number of patches in a row of the grid; returns
            (B, C, Y, X).

    Returns:
        The report.

    Source:
        Chapter 13, exercise "put it together again".
    """
    hints = {
        "one colour": (
            (to_patches(torch.arange(16.0).reshape(1, 1, 4, 4), 2), 2, 1, 2),
            "Name the axes: (B, rows, columns, C, p, p). Where must each p go?",
        ),
        "an oblong image": (
            (to_patches(torch.arange(24.0).reshape(1, 1, 4, 6), 2), 2, 1, 3),
            "There are T / columns rows of patches.",
        ),
        "three colours, two images": (
            (to_patches(waves(2, 3, 6, 9), 3), 3, 3, 3),
            "The channel comes before the pixels in a patch, and before the rows in an image.",
        ),
    }
    return check_against(function, _image, hints)


def _image(patches: Tensor, patch: int, channels: int, columns: int) -> Tensor:
    grid = patches.unflatten(-1, (channels, patch, patch)).unflatten(1, (-1, columns))
    images: Tensor = grid.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
    return images


@counted
def check_bag(function: Callable[[], Any]) -> Report:
    """Check two images that differ and have the same patches in another order.

    Args:
        function: Returns two tensors, (1, 8, 8) each, whose 4 x 4 patches are the same four.

    Returns:
        The report.

    Source:
        Chapter 13, exercise "two images, one bag".
    """
    answer = as_tensors(function(), "first", "second")
    if isinstance(answer, Report):
        return answer
    for name, image in zip(("first", "second"), answer, strict=True):
        if image.shape != (1, 8, 8):
            return Report(False, f"The {name} image must be (1, 8, 8), got {tuple(image.shape)}.")
        if not image.isfinite().all():
            return Report(False, f"The {name} image must hold finite numbers.")
    if torch.equal(*answer):
        return Report(False, "The two images are the same: move at least one patch.")
    bags = [sorted(to_patches(image, 4).tolist()) for image in answer]
    if bags[0] != bags[1]:
        return Report(
            False,
            "The patches differ, so a bag of patches can tell the images apart.\n"
            "  hint      Cut where the model cuts: rows 0-3 and 4-7, columns 0-3 and 4-7.",
        )
    return Report(True, "Passed: two images, one bag of patches.")
