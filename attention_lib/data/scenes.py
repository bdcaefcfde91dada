"""Synthetic scenes of real handwritten digits, with exact boxes and masks. Chapter 14.

A scene is a canvas with shading, noise, short strokes cut from digits (clutter), and some whole
digits of random size, place and brightness. The digits are real, the scenes are not. The digits of
the held-out scenes come from images that no training scene contains.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from attention_lib._checks import check_count
from attention_lib.data.digits import digits, split

SPLITS = {"train": 0, "validation": 1, "test": 2}
SIZES = (4000, 400, 600)  # of the 5,000 digit images
INK = 0.4  # what is darker belongs to the digit
PLACES = 16  # tries to find a place for a digit
_STEPS = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij"))[:, None]


class Scenes(NamedTuple):
    """Images with what is in them; lists have one entry for each image.

    Args:
        images: From 0 to 1, (B, 1, side, side).
        labels: Classes of the digits, (M,) each.
        boxes: The smallest boxes that hold their ink, as (centre x, centre y, width, height) in
            shares of the side, (M, 4) each.
        masks: Their ink, also where another digit covers it, (M, side, side) each.

    Source:
        Chapter 14.
    """

    images: Tensor
    labels: list[Tensor]
    boxes: list[Tensor]
    masks: list[Tensor]


class SceneMaker:
    """Draws scenes from a set of digit images.

    Args:
        part: ``train``, ``validation`` or ``test``: which digit images to use; no image is in two.
        side: Height and width of a scene in pixels, at least 32.
        clutter: Number of strokes that belong to no digit.

    Raises:
        ValueError: If there is no such part, or a number is out of range.
        AssetError: If the digits are not in the cache and cannot be fetched.

    Source:
        Mnih, Heess, Graves and Kavukcuoglu (2014), section 4.1, for clutter cut from digits.
        Chapter 14.
    """

    def __init__(self, part: str, *, side: int = 64, clutter: int = 6) -> None:
        if part not in SPLITS:
            raise ValueError(f"part must be one of {list(SPLITS)}, got {part!r}")
        check_count("side", side, least=32)
        check_count("clutter", clutter, least=0)
        images, labels = digits()
        rows = split(len(labels), SIZES, seed=0)[SPLITS[part]]
        self.side, self.clutter = side, clutter
        self.labels = labels[rows]
        self.images = images[rows].unflatten(-1, (28, 28))  # (N, 28, 28)
        # The ink of a digit lies in a box of its own: its centre and longer side, in pixels.
        edges = box_of(self.images > INK)  # (N, 4)
        self.centres = (edges[:, :2] + edges[:, 2:]) / 2
        self.lengths = edges[:, 2:] - edges[:, :2]  # (N, 2): width, height

    def draw(
        self, count: int, generator: torch.Generator, *, least: int = 1, most: int = 5
    ) -> Scenes:
        """Draw new scenes.

        Args:
            count: Number of scenes.
            generator: Source of all random numbers.
            least: Smallest number of digits in a scene.
            most: Largest number.

        Returns:
            The scenes.

        Raises:
            ValueError: If a count is less than 1, or ``most`` less than ``least``.
        """
        for name, number in (("count", count), ("least", least), ("most", most)):
            check_count(name, number, least=1)
        if most < least:
            raise ValueError(f"most must be at least least = {least}, got {most}")
        numbers = torch.randint(least, most + 1, (count,), generator=generator)
        owner = torch.arange(count).repeat_interleave(numbers)  # (M,), the scene of each digit
        rows = torch.randint(len(self.labels), (len(owner),), generator=generator)
        lengths = 14 + 14 * torch.rand(len(owner), generator=generator)  # longer side in pixels
        scale = lengths / self.lengths[rows].amax(dim=1)  # (M,)
        centres = self._places(numbers, self.lengths[rows] * scale[:, None], generator)
        ink = self._render(self.images[rows], self.centres[rows], centres, scale)
        brightness = 0.55 + 0.45 * torch.rand(len(owner), 1, 1, generator=generator)

        canvas = self._background(count, generator)
        _paint(canvas, owner, ink * brightness)
        masks = ink > INK
        edges = box_of(masks) / self.side
        boxes = torch.cat([(edges[:, :2] + edges[:, 2:]) / 2, edges[:, 2:] - edges[:, :2]], dim=1)
        sizes = numbers.tolist()
        return Scenes(
            canvas[:, None],
            list(self.labels[rows].split(sizes)),
            list(boxes.split(sizes)),
            list(masks.split(sizes)),
        )

    def _background(self, count: int, generator: torch.Generator) -> Float[Tensor, "B side side"]:
        """Shading, noise and clutter."""
        side = self.side
        ramp = torch.linspace(-1, 1, side)
        slope = 0.1 * (2 * torch.rand(2, count, 1, 1, generator=generator) - 1)
        canvas = 0.2 * torch.rand(count, 1, 1, generator=generator)
        canvas = canvas + slope[0] * ramp + slope[1] * ramp[:, None]
        canvas = canvas + 0.04 * torch.randn(count, side, side, generator=generator)
        number = count * self.clutter
        rows = torch.randint(len(self.labels), (number,), generator=generator)
        window = torch.randint(6, 15, (2, number), generator=generator)
        pieces = self.images.unfold(1, 8, 1).unfold(2, 8, 1)[rows, window[0], window[1]]
        brightness = 0.3 + 0.6 * torch.rand(number, 1, 1, generator=generator)
        # Where each of the 8 x 8 pixels of a piece goes in the row of all pixels of all canvases.
        y, x = torch.randint(side - 7, (2, number, 1, 1), generator=generator) + _STEPS
        owner = torch.arange(count).repeat_interleave(self.clutter)[:, None, None]
        places = (owner * side + y) * side + x  # (number, 8, 8)
        flat = canvas.flatten()
        flat.scatter_reduce_(0, places.flatten(), (pieces * brightness).flatten(), "amax")
        painted: Tensor = flat.unflatten(0, (count, side, side))
        return painted.clamp(0, 1)

    def _places(
        self, numbers: Int[Tensor, " B"], lengths: Float[Tensor, "M 2"], generator: torch.Generator
    ) -> Float[Tensor, "M 2"]:
        """A centre for each digit: the first of some random ones that keeps clear of the others."""
        room = self.side - lengths[:, None] - 2  # one pixel of margin
        tries = (
            1
            + lengths[:, None] / 2
            + room * torch.rand(len(lengths), PLACES, 2, generator=generator)
        )  # (M, PLACES, 2)
        centres = torch.empty(len(lengths), 2)
        start = 0
        for number in numbers.tolist():
            for i in range(start, start + number):
                # Overlap of two boxes along x and y, as shares of the smaller one.
                reach = (lengths[i] + lengths[start:i]) / 2  # (earlier, 2)
                shared = reach - (tries[i, :, None] - centres[start:i]).abs()
                shares = shared.clamp(min=0).prod(-1) / torch.minimum(
                    lengths[i].prod(), lengths[start:i].prod(-1)
                )
                worst = shares.sum(-1) - 0.15  # (PLACES,): a little overlap is welcome
                centres[i] = tries[i, worst.clamp(min=0).argmin()]
            start += number
        return centres

    def _render(
        self,
        images: Float[Tensor, "M 28 28"],
        source: Float[Tensor, "M 2"],
        target: Float[Tensor, "M 2"],
        scale: Float[Tensor, " M"],
    ) -> Float[Tensor, "M side side"]:
        """Put the pixel ``source`` of each image on the pixel ``target`` of an empty canvas."""
        side = self.side
        # From places on the canvas, in -1..1, back to places in the image, in -1..1.
        matrix = torch.zeros(len(images), 2, 3)
        matrix[:, [0, 1], [0, 1]] = (side / 28 / scale)[:, None]
        matrix[:, :, 2] = (2 * source - 28) / 28 - (2 * target - side) / 28 / scale[:, None]
        grid = affine_grid(matrix, [len(images), 1, side, side], align_corners=False)
        return grid_sample(images[:, None], grid, align_corners=False)[:, 0]


def _paint(
    canvas: Float[Tensor, "B Y X"], owner: Int[Tensor, " M"], pictures: Float[Tensor, "M Y X"]
) -> None:
    """Put each picture on its canvas: of what lies on one pixel, the brightest is seen."""
    canvas.scatter_reduce_(0, owner[:, None, None].expand_as(pictures), pictures, "amax")


def box_of(masks: Bool[Tensor, "M Y X"]) -> Float[Tensor, "M 4"]:
    """The edges of the smallest box that holds each mask: left, top, right, bottom, in pixels.

    Args:
        masks: Masks with at least one pixel each, (M, Y, X).

    Returns:
        Edges, (M, 4); the right edge of pixel 0 is 1.

    Raises:
        ValueError: If a mask is empty.

    Source:
        Chapter 14.
    """
    if not bool(masks.flatten(1).any(dim=1).all()):
        raise ValueError("masks must have at least one pixel each, got an empty mask")
    columns, rows = masks.any(dim=1).float(), masks.any(dim=2).float()
    left, top = columns.argmax(dim=1), rows.argmax(dim=1)
    right = masks.shape[2] - columns.flip(1).argmax(dim=1)
    bottom = masks.shape[1] - rows.flip(1).argmax(dim=1)
    return torch.stack([left, top, right, bottom], dim=1).float()
