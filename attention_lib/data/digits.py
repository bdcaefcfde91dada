"""Real handwritten digits: 5,000 images of MNIST, 500 of each class. Chapters 01 to 04, 13."""

import gzip
import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from attention_lib._checks import check_float
from attention_lib.data.fetch import asset_path


def digits() -> tuple[Float[Tensor, "N 784"], Int[Tensor, " N"]]:
    """5,000 handwritten digits, 500 of each class, in a fixed shuffled order.

    Returns:
        Images, (5000, 784), float32 from 0 (paper) to 1 (ink), row by row of 28 pixels; and their
        classes 0 to 9, (5000,), int64.

    Raises:
        AssetError: If the file is not in the cache and cannot be fetched.

    Source:
        LeCun, Bottou, Bengio and Haffner (1998). Chapters 01 to 04.
    """
    with gzip.open(asset_path("digits"), "rt") as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.int64))
    # The file is sorted by class; a fixed shuffle keeps any prefix balanced on average.
    table = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))]
    return table[:, :-1].float() / 255, table[:, -1].contiguous()


def split(count: int, sizes: tuple[int, ...], seed: int) -> tuple[Int[Tensor, " ..."], ...]:
    """Disjoint random sets of row numbers, for instance stored, validation and test.

    Args:
        count: Number of rows.
        sizes: Size of each set.
        seed: Seed of the shuffle.

    Returns:
        One tensor of row numbers for each size.

    Raises:
        ValueError: If the sizes add up to more than ``count``.

    Source:
        Chapters 01 to 04.
    """
    if sum(sizes) > count:
        raise ValueError(f"sizes must add up to at most count = {count}, got {sizes}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return tuple(order[: sum(sizes)].split(sizes))


def shrink(images: Float[Tensor, "N 784"]) -> Float[Tensor, "N 196"]:
    """Average each 2 x 2 block of pixels: 28 x 28 images become 14 x 14.

    Args:
        images: Images, (N, 784).

    Returns:
        Images, (N, 196).

    Raises:
        ValueError: If the images are not (N, 784).

    Source:
        Chapter 04.
    """
    if images.ndim != 2 or images.shape[-1] != 784:
        raise ValueError(f"images must have shape (N, 784), got {tuple(images.shape)}")
    return avg_pool2d(images.unflatten(-1, (1, 28, 28)), 2).flatten(1)


def jitter(
    images: Float[Tensor, "N C Y X"],
    generator: torch.Generator,
    *,
    degrees: float = 12.0,
    shift: float = 2.0,
    zoom: float = 0.1,
) -> Float[Tensor, "N C Y X"]:
    r"""Turn, shift and resize each image a little, at random: the same digit, written otherwise.

    Each image is read at the places :math:`A p + t`, where :math:`A` turns by up to ``degrees`` and
    scales by a factor between 1 - ``zoom`` and 1 + ``zoom``, and :math:`t` shifts.

    Args:
        images: Images, (N, C, Y, X).
        generator: Where the random numbers come from.
        degrees: Largest angle.
        shift: Largest shift along each axis, in pixels.
        zoom: Largest relative change of size.

    Returns:
        As many images of the same size, with zeros where nothing was.

    Raises:
        TypeError: If ``images`` is not a floating-point tensor.
        ValueError: If ``images`` does not have four dimensions.

    Source:
        Simard, Steinkraus and Platt (2003), section 2, for affine distortions. Chapter 13.
    """
    check_float("images", images, rank=4)
    if images.ndim != 4:
        raise ValueError(f"images must have shape (N, C, Y, X), got {tuple(images.shape)}")

    def uniform(largest: float) -> Tensor:
        return (2 * torch.rand(len(images), generator=generator) - 1) * largest

    angle, size = uniform(math.radians(degrees)), 1 + uniform(zoom)
    # Places are measured from -1 to 1 across the image.
    x, y = uniform(2 * shift / images.shape[-1]), uniform(2 * shift / images.shape[-2])
    cos, sin = size * angle.cos(), size * angle.sin()
    places = torch.stack([torch.stack([cos, -sin, x], -1), torch.stack([sin, cos, y], -1)], -2)
    grid = affine_grid(places.to(images), list(images.shape), align_corners=False)
    return grid_sample(images, grid, align_corners=False)
