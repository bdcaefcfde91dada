"""A few photographs that anybody may use, from the sample images of scikit-image. Chapter 13."""

import tarfile

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from attention_lib._checks import check_count
from attention_lib.data.fetch import asset_path

# Name -> (file, licence and credit, as scikit-image's documentation of its data states them).
PHOTOGRAPHS = {
    "cat": ("chelsea.png", "CC0, photograph by Stefan van der Walt"),
    "coffee": ("coffee.png", "CC0, photograph by Rachel Michetti, courtesy of Pikolo Espresso Bar"),
    "astronaut": ("astronaut.png", "public domain, Eileen Collins, photograph by NASA"),
    "rocket": ("rocket.jpg", "public domain, launch of DSCOVR, photograph by SpaceX"),
}


def photograph(name: str, size: int = 224) -> Float[Tensor, "3 Y X"]:
    """A colour photograph, cut to its central square and resized.

    Args:
        name: A key of ``PHOTOGRAPHS``: ``cat``, ``coffee``, ``astronaut`` or ``rocket``.
        size: Height and width of the result in pixels.

    Returns:
        Red, green and blue from 0 to 1, (3, size, size), float32.

    Raises:
        ValueError: If there is no such photograph, or ``size`` is less than 1.
        TypeError: If ``size`` is not an integer.
        AssetError: If the photographs are not in the cache and cannot be fetched.

    Source:
        The sample data of scikit-image; the credits stand in ``PHOTOGRAPHS``. Chapter 13.
    """
    from PIL import Image  # comes with matplotlib; nothing else of the library needs it

    if name not in PHOTOGRAPHS:
        raise ValueError(f"name must be one of {sorted(PHOTOGRAPHS)}, got {name!r}")
    check_count("size", size, least=1)
    with tarfile.open(asset_path("photographs")) as archive:
        file = archive.extractfile(f"skimage/data/{PHOTOGRAPHS[name][0]}")
        assert file is not None, "the archive was checked by its hash"
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.resize(
        (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )
    return torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1).float() / 255
