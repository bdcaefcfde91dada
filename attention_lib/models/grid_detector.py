"""A convolutional detector with hand-made rules, beside which DETR stands. Chapter 14.

:class:`GridDetector` detects as YOLO did: every cell of a grid answers for what is centred there,
and what was found twice is thrown away afterwards.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attention_lib._checks import check_count
from attention_lib.models.detection import Pairs
from attention_lib.models.detr import Backbone, Predictions


class GridDetector(nn.Module):
    """A convolutional detector: each cell predicts the object whose centre lies in it.

    Args:
        classes: Number of classes, without "no object".
        backbone: Turns images into feature maps, the coarsest last; has ``channels``.
        hidden: Channels of the two convolutions on top.

    Raises:
        ValueError: If a size is not positive.

    Source:
        Redmon et al. (2016), section 2, for cells that answer for their objects. Chapter 14.
    """

    def __init__(self, classes: int, backbone: Backbone, hidden: int = 128) -> None:
        super().__init__()
        check_count("classes", classes, least=1)
        check_count("hidden", hidden, least=1)
        self.backbone = backbone
        self.head = nn.Sequential(
            nn.GroupNorm(1, backbone.channels[-1]),
            nn.ReLU(),
            nn.Conv2d(backbone.channels[-1], hidden, 3, padding=1),
            nn.GroupNorm(1, hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.GroupNorm(1, hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, classes + 5, 1),
        )

    def forward(self, images: Float[Tensor, "B C Y X"]) -> Predictions:
        """A prediction for each cell, row by row, its centre at most one cell off the middle."""
        found = self.head(self.backbone(images)[-1])  # (B, classes + 5, h, w)
        height, width = found.shape[-2:]
        found = found.flatten(2).mT  # (B, T, classes + 5)
        column, row = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
        cells = torch.stack([column, row], dim=-1).flatten(0, 1).to(found)  # (T, 2)
        sides = torch.tensor([width, height]).to(found)
        centre = (cells + 0.5 + found[..., -4:-2].tanh()) / sides
        return Predictions(found[..., :-4], torch.cat([centre, found[..., -2:].sigmoid()], dim=-1))


def cells_of(boxes: Sequence[Float[Tensor, "_ 4"]], height: int, width: int) -> list[Pairs]:
    """The cell of a grid in which each object has its centre: pairs for ``detection_loss``.

    Args:
        boxes: Boxes of the objects of each image.
        height: Rows of the grid.
        width: Columns.

    Returns:
        For each image the cells, row by row, and their objects; of several objects in one cell
        only the first.

    Source:
        Redmon et al. (2016), section 2. Chapter 14.
    """
    pairs = []
    for box in boxes:
        column = (box[:, 0] * width).long().clamp(0, width - 1)
        row = (box[:, 1] * height).long().clamp(0, height - 1)
        first = {cell: m for m, cell in reversed(list(enumerate((row * width + column).tolist())))}
        keys = torch.tensor(list(first), dtype=torch.int64)
        pairs.append((keys, torch.tensor(list(first.values()), dtype=torch.int64)))
    return pairs
