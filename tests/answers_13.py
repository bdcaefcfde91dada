"""Right and wrong answers for the exercises of chapter 13, as in ``test_exercises.CHECKS``."""

import torch

from attention_lib.exercises import vit
from attention_lib.models.vit import to_patches


def by_reshape(images, patch):
    batch, channels, height, width = images.shape
    count = (height // patch) * (width // patch)
    return images.reshape(batch, count, channels * patch**2)


def column_by_column(images, patch):
    return to_patches(images.transpose(-1, -2), patch)


def turned_inside(images, patch):
    patches = to_patches(images, patch)
    pixels = patches.unflatten(-1, (images.shape[1], patch, patch))
    return pixels.transpose(-1, -2).flatten(-3)


def colours_last(images, patch):
    pixels = to_patches(images, patch).unflatten(-1, (images.shape[1], -1))
    return pixels.transpose(-1, -2).flatten(-2)


def square_only(images, patch):
    batch, channels, height, _ = images.shape
    side = height // patch
    grid = images[..., : side * patch].reshape(batch, channels, side, patch, side, patch)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, side * side, -1)


def image(patches, patch, channels, columns, order=(0, 3, 1, 4, 2, 5)):
    grid = patches.reshape(len(patches), -1, columns, channels, patch, patch)
    grid = grid.permute(order)
    rows = patches.shape[1] // columns
    return grid.reshape(len(patches), channels, rows * patch, columns * patch)


def image_by_reshape(patches, patch, channels, columns):
    rows = patches.shape[1] // columns
    return patches.reshape(len(patches), channels, rows * patch, columns * patch)


def image_square(patches, patch, channels, columns):
    side = round(patches.shape[1] ** 0.5)
    return image(patches[:, : side * side], patch, channels, side)


def image_colours(patches, patch, channels, columns):
    rows = patches.shape[1] // columns
    grid = patches.reshape(len(patches), rows, columns, patch, patch, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), channels, rows * patch, -1)


FIRST = torch.arange(64.0).reshape(1, 8, 8)


def pair(second, first=FIRST):
    return lambda: (first, second)


CHECKS = {
    "13 paper": (
        vit.check_paper,
        (197, 590592, 151296, 16),
        {
            "no class token": ((196, 590592, 151296, 16), "one token more"),
            "one colour": ((197, 197376, 151296, 16), "three colours"),
            "no bias": ((197, 589824, 151296, 16), "bias"),
            "positions of patches only": ((197, 590592, 150528, 16), "each token"),
            "as the patches": ((197, 590592, 151296, 4), "pairs"),
        },
    ),
    "13 patches": (
        vit.check_patches,
        to_patches,
        {
            "reshape alone": (by_reshape, "reshape read"),
            "column by column": (column_by_column, "reshape read"),
            "pixels turned": (turned_inside, "reshape read"),
            "colours last": (colours_last, "first colour"),
            "square images only": (square_only, "sides may differ"),
        },
    ),
    "13 image": (
        vit.check_image,
        image,
        {
            "reshape alone": (image_by_reshape, "Name the axes"),
            "axes of the patch exchanged": (
                lambda *a: image(*a, order=(0, 3, 1, 5, 2, 4)),
                "Name the axes",
            ),
            "square grids only": (image_square, "T / columns"),
            "colours last": (image_colours, "channel comes before"),
        },
    ),
    "13 bag": (
        vit.check_bag,
        pair(FIRST.roll(4, dims=-1)),
        {
            "the same image": (pair(FIRST), "the same"),
            "shifted by a pixel": (pair(FIRST.roll(1, dims=-1)), "Cut where"),
            "turned by a quarter": (pair(FIRST.rot90(dims=(1, 2))), "Cut where"),
            "too small": (pair(FIRST[:, :4]), "(1, 8, 8)"),
            "not a number": (pair(FIRST * float("nan")), "finite"),
            "one image": (lambda: FIRST, "2 tensors"),
        },
    ),
}
