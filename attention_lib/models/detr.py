"""Detection as set prediction: the model DETR. Chapter 14.

:class:`Detr` turns an image into a fixed number of predictions, each a class and a box.
:mod:`attention_lib.models.detection` pairs them with the objects of the image and scores them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attention_lib._checks import check_count
from attention_lib.blocks import DecoderBlock, EncoderBlock, FeedForward, PostNorm
from attention_lib.heads import MultiHeadAttention
from attention_lib.models._config import StackConfig
from attention_lib.positions import sinusoidal_table


@dataclass(frozen=True)
class DetrConfig(StackConfig):
    """Sizes of a :class:`Detr`.

    Args:
        classes: Number of classes, without "no object".
        queries: N, the number of predictions for an image; more than any image has objects.
        width: D, a multiple of 4.
        encoder_layers: Number of encoder blocks.
        decoder_layers: Number of decoder blocks.
        heads: H, a divisor of the width.
        hidden: Hidden width of the feed-forward networks; four times the width if None.
        dropout: Share of weights and sublayer outputs that training drops.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is not positive, the width no multiple of 4 or not divided by the
            heads, or the dropout outside [0, 1).

    Source:
        Carion et al. (2020), section 4. Chapter 14.
    """

    classes: int
    queries: int
    width: int
    encoder_layers: int
    decoder_layers: int
    heads: int
    hidden: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self.check("classes", "queries", "encoder_layers", "decoder_layers")
        if self.width % 4:
            raise ValueError(
                f"width must be a multiple of 4, sines and cosines of rows and columns, "
                f"got {self.width}"
            )


class Predictions(NamedTuple):
    """What the model says about each image.

    Args:
        logits: Scores of the classes, the last of "no object", (B, N, classes + 1).
        boxes: Boxes, (B, N, 4).

    Source:
        Carion et al. (2020), section 3.2, "Prediction feed-forward networks". Chapter 14.
    """

    logits: Tensor
    boxes: Tensor


def grid_positions(height: int, width: int, features: int) -> Float[Tensor, "T D"]:
    r"""Sines and cosines of the row and of the column of each cell, side by side.

    .. math:: P_{(y, x)} = [\,\mathrm{table}(y),\; \mathrm{table}(x)\,]

    Args:
        height: Number of rows.
        width: Number of columns.
        features: D, a multiple of 4.

    Returns:
        Table in float32, (T, D) with T = height * width, row by row.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If ``features`` is not a multiple of 4.

    Source:
        Carion et al. (2020), appendix A.4. Chapter 14.
    """
    check_count("features", features, least=4)
    if features % 4:
        raise ValueError(f"features must be a multiple of 4, got {features}")
    rows = sinusoidal_table(height, features // 2)[:, None].expand(-1, width, -1)
    columns = sinusoidal_table(width, features // 2)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


class GridEncoderBlock(EncoderBlock):
    r"""An :class:`~attention_lib.EncoderBlock` that adds positions where attention compares.

    .. math:: \mathrm{attention}(x + p,\; x + p,\; x)

    Queries and keys know where they are; the values, and so the states, do not carry it along.

    Source:
        Carion et al. (2020), appendix A.3, figure 10. Chapter 14.
    """

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "B T D"], position: Float[Tensor, "T D"]
    ) -> Float[Tensor, "B T D"]:
        """Apply both sublayers."""

        def attention(y: Tensor) -> Tensor:
            output: Tensor = self.attention(y + position, y + position, y)
            return output

        x = self.attention_residual(x, attention)
        x = self.feed_forward_residual(x, self.feed_forward)
        return x


class GridDecoderBlock(DecoderBlock):
    r"""A :class:`~attention_lib.DecoderBlock` without a mask, whose queries have learned positions.

    .. math:: \mathrm{attention}(x + q,\; x + q,\; x), \qquad
              \mathrm{cross}(x + q,\; m + p,\; m)

    Source:
        Carion et al. (2020), appendix A.3, figure 10. Chapter 14.
    """

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "B N D"],
        memory: Float[Tensor, "B T D"],
        queries: Float[Tensor, "N D"],
        position: Float[Tensor, "T D"],
    ) -> Float[Tensor, "B N D"]:
        """Apply the three sublayers."""

        def attention(y: Tensor) -> Tensor:
            output: Tensor = self.attention(y + queries, y + queries, y)
            return output

        def cross(y: Tensor) -> Tensor:
            output: Tensor = self.cross_attention(y + queries, memory + position, memory)
            return output

        x = self.attention_residual(x, attention)
        x = self.cross_residual(x, cross)
        x = self.feed_forward_residual(x, self.feed_forward)
        return x


class Backbone(nn.Module):
    """A small convolutional network: each stage halves the sides and returns its features.

    Args:
        channels: Channels of the image, then of each stage.

    Source:
        He et al. (2016), figure 2, for the residuals. Chapter 14.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        for number in channels:
            check_count("channels", number, least=1)
        self.channels = tuple(channels[1:])
        self.halve = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise(channels)
        )
        self.refine = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(1, number),
                nn.ReLU(),
                nn.Conv2d(number, number, 3, padding=1),
                nn.GroupNorm(1, number),
                nn.ReLU(),
                nn.Conv2d(number, number, 3, padding=1),
            )
            for number in self.channels
        )

    def forward(self, images: Float[Tensor, "B C Y X"]) -> list[Tensor]:
        """Features of every stage, the finest first."""
        features = []
        x = images
        for halve, refine in zip(self.halve, self.refine, strict=True):
            x = halve(x)
            x = x + refine(x)
            features.append(x)
        return features


class Detr(nn.Module):
    """Features of an image to a set of predictions.

    Args:
        config: Sizes.
        backbone: Turns images into a list of feature maps, the coarsest last; has ``channels``.

    Source:
        Carion et al. (2020), section 3.2, figure 2. Chapter 14.
    """

    def __init__(self, config: DetrConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        width = config.width
        attention = partial(MultiHeadAttention, width, config.heads, dropout=config.dropout)
        feed_forward = partial(FeedForward, width, config.hidden_width, dropout=config.dropout)
        residual = partial(PostNorm, width, dropout=config.dropout)
        self.backbone = backbone
        self.projection = nn.Conv2d(backbone.channels[-1], width, 1)
        self.queries = nn.Parameter(nn.init.normal_(torch.empty(config.queries, width)))
        self.encoder = nn.ModuleList(
            GridEncoderBlock(attention(), feed_forward(), residual)
            for _ in range(config.encoder_layers)
        )
        self.decoder = nn.ModuleList(
            GridDecoderBlock(attention(), attention(), feed_forward(), residual)
            for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.class_head = nn.Linear(width, config.classes + 1)
        self.box_head = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, 4),
        )  # fmt: skip
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2 and name.startswith(("encoder", "decoder")):
                nn.init.xavier_uniform_(parameter)

    def encode(
        self, images: Float[Tensor, "B C Y X"]
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "T D"], list[Tensor]]:
        """Memory, the positions of its cells, and the backbone's features."""
        features = self.backbone(images)
        grid = self.projection(features[-1])  # (B, D, h, w)
        position = grid_positions(grid.shape[-2], grid.shape[-1], self.config.width).to(grid)
        memory = grid.flatten(2).mT  # (B, T, D)
        for block in self.encoder:
            memory = block(memory, position)
        return memory, position, features

    def decode(
        self, memory: Float[Tensor, "B T D"], position: Float[Tensor, "T D"]
    ) -> list[Tensor]:
        """Normalised states of the queries after each decoder block, (B, N, D) each."""
        x = torch.zeros_like(self.queries).expand(len(memory), -1, -1)  # (B, N, D)
        states = []
        for block in self.decoder:
            x = block(x, memory, self.queries, position)
            states.append(self.norm(x))
        return states

    def predict(self, states: Float[Tensor, "B N D"]) -> Predictions:
        """Classes and boxes from states of the queries."""
        return Predictions(self.class_head(states), self.box_head(states).sigmoid())

    def forward(self, images: Float[Tensor, "B C Y X"]) -> list[Predictions]:
        """Predictions after each decoder block; the last one is the answer."""
        memory, position, _ = self.encode(images)
        return [self.predict(states) for states in self.decode(memory, position)]
