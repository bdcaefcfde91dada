"""Real handwritten digits: 5,000 images of MNIST, 500 of each class. Chapters 01 to 04."""

import gzip

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool2d

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
