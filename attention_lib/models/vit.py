"""Images as sequences of patches: the Vision Transformer. Chapter 13.

:class:`ViT` cuts an image into patches, projects each to a token, and sends them through an
encoder. :func:`vit` fills it as published, :func:`dinov2` with the scaled residuals of DINOv2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate

from attention_lib._checks import (
    check_count,
    check_divides,
    check_float,
    check_positive,
    shape,
)
from attention_lib.blocks import EncoderBlock, FeedForward, PreNorm
from attention_lib.heads import MultiHeadAttention
from attention_lib.models._config import StackConfig
from attention_lib.positions import Learned


@dataclass(frozen=True)
class ViTConfig(StackConfig):
    """Sizes of a :class:`ViT`.

    Args:
        image: Height and width of the images, in pixels.
        patch: Height and width of a patch; must divide ``image``.
        channels: Number of colour channels.
        width: D.
        layers: Number of blocks.
        heads: H, a divisor of the width.
        classes: Number of outputs; 0 for none, then the model returns the class token's state.
        hidden: Hidden width of the feed-forward networks; four times the width if None.
        dropout: Share of embeddings, weights and sublayer outputs that training drops.
        eps: What LayerNorm adds to the variance.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is not positive or does not divide, or the dropout outside [0, 1).

    Source:
        Dosovitskiy et al. (2021), table 1. Chapter 13.
    """

    image: int
    patch: int
    channels: int
    width: int
    layers: int
    heads: int
    classes: int = 0
    hidden: int | None = None
    dropout: float = 0.0
    eps: float = 1e-6

    def __post_init__(self) -> None:
        self.check("image", "channels", "layers")
        check_count("classes", self.classes, least=0)
        check_divides("patch", self.patch, "image", self.image)
        check_positive("eps", self.eps)

    @property
    def patches(self) -> int:
        """Number of patches of an image."""
        return (self.image // self.patch) ** 2


def to_patches(images: Float[Tensor, "... C Y X"], patch: int) -> Float[Tensor, "... T P"]:
    r"""Cut images into square patches, row by row, and write each out as a vector.

    .. math:: (C,\; h p,\; w p) \to (h w,\; C p^2)

    Args:
        images: Images, (..., C, Y, X).
        patch: p, height and width of a patch; must divide both sides of the image.

    Returns:
        Patches, (..., T, P) with T = (Y / p) (X / p) and P = C p², channel by channel.

    Raises:
        TypeError: If ``images`` is not a floating-point tensor or ``patch`` not an integer.
        ValueError: If ``patch`` does not divide the sides.

    Source:
        Dosovitskiy et al. (2021), section 3.1. Chapter 13.
    """
    check_float("images", images, rank=3)
    check_divides("patch", patch, "the height of images", images.shape[-2])
    check_divides("patch", patch, "the width of images", images.shape[-1])
    grid = images.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))  # (..., C, h, p, w, p)
    grid = grid.movedim((-4, -2), (-5, -4))  # (..., h, w, C, p, p)
    patches: Tensor = grid.flatten(-5, -4).flatten(-3)
    return patches


def resize_positions(table: Float[Tensor, "N D"], side: int) -> Float[Tensor, "M D"]:
    """Interpolate a learned table of positions to a grid of another size.

    The row of the class token stays; the others are read as a square image with D channels and
    resized by cubic interpolation, as Hugging Face's Dinov2 does.

    Args:
        table: Positions, (1 + s², D), the class token's first, then the patches row by row.
        side: Height and width of the new grid, in patches.

    Returns:
        Positions, (1 + side², D).

    Raises:
        TypeError: If ``table`` is not a floating-point tensor or ``side`` not an integer.
        ValueError: If the patches of ``table`` do not fill a square, or ``side`` is less than 1.

    Source:
        Dosovitskiy et al. (2021), section 3.2, which says "2D interpolation". Chapter 13.
    """
    check_float("table", table, rank=2)
    check_count("side", side, least=1)
    old = math.isqrt(max(len(table) - 1, 0))
    if old < 1 or old**2 != len(table) - 1:
        raise ValueError(f"table must have 1 + s² rows, got shape {shape(table)}")
    image = table[1:].T.unflatten(1, (old, old))[None]  # (1, D, s, s)
    resized = interpolate(image, (side, side), mode="bicubic", align_corners=False)
    return torch.cat([table[:1], resized[0].flatten(1).T])


class ViT(nn.Module):
    r"""An encoder over patches and one class token, whose last state stands for the image.

    .. math:: h_0 = [c,\; x_1 E,\; \dots,\; x_T E] + E_{\mathrm{pos}}, \qquad
              h_l = \mathrm{block}_l(h_{l-1}), \qquad
              \mathrm{output} = \mathrm{norm}(h_L)_0\, W_o

    Args:
        config: Sizes.
        block: Makes a block; called once for each layer.

    Raises:
        ValueError: From ``forward``, if the images have other sizes than the config says.

    Source:
        Dosovitskiy et al. (2021), equations 1 to 4. Chapter 13.
    """

    def __init__(self, config: ViTConfig, block: Callable[[], EncoderBlock]) -> None:
        super().__init__()
        self.config = config
        self.projection = nn.Linear(config.channels * config.patch**2, config.width)
        self.class_token = nn.Parameter(nn.init.normal_(torch.empty(config.width), std=0.02))
        self.positions = Learned(config.patches + 1, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(block() for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.output = nn.Linear(config.width, config.classes) if config.classes else nn.Identity()

    def states(self, images: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B N D"]:
        """Normalised states, (B, 1 + T, D): the class token first, then the patches row by row."""
        expected = (self.config.channels, self.config.image, self.config.image)
        check_float("images", images, rank=4)
        if images.shape[1:] != expected:
            raise ValueError(
                f"images must have shape (B, C, Y, X) = {(len(images), *expected)}, "
                f"got {shape(images)}; resize the images, or make a model for their size with "
                "resize_positions"
            )
        x = self.projection(to_patches(images, self.config.patch))  # (B, T, D)
        first = self.class_token.expand(len(x), 1, -1)  # (B, 1, D)
        x = self.dropout(self.positions(torch.cat([first, x], dim=1)))  # (B, 1 + T, D)
        for block in self.blocks:
            x = block(x)
        normalised: Tensor = self.norm(x)
        return normalised

    def forward(self, images: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B N"]:
        """Logits of the classes, (B, classes), or the class token's state, (B, D)."""
        output: Tensor = self.output(self.states(images)[:, 0])
        return output


class LayerScale(nn.Module):
    r"""A residual whose sublayer is scaled feature by feature.

    .. math:: y = x + \mathrm{dropout}\big(\gamma \odot f(\mathrm{norm}(x))\big)

    Args:
        width: D.
        norm: Makes the norm from the width.
        dropout: Probability with which a feature of the sublayer's output is dropped in training.
        start: First value of each entry of :math:`\gamma`.

    Source:
        Touvron et al. (2021), section 2, equation 4. Chapter 13.
    """

    def __init__(
        self,
        width: int,
        *,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        dropout: float = 0.0,
        start: float = 1e-5,
    ) -> None:
        super().__init__()
        self.residual = PreNorm(width, norm=norm, dropout=dropout)
        self.scale = nn.Parameter(torch.full((width,), start))

    def forward(
        self, x: Float[Tensor, "... D"], sublayer: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "... D"]:
        """Add to ``x`` the scaled output of the sublayer."""
        output: Tensor = self.residual(x, lambda y: self.scale * sublayer(y))
        return output


def vit(config: ViTConfig) -> ViT:
    """Make a :class:`ViT` as published: pre-norm blocks with GELU.

    Args:
        config: Sizes.

    Returns:
        The model, untrained.

    Source:
        Dosovitskiy et al. (2021), section 3.1. Chapter 13.
    """
    return _filled(config, PreNorm)


def dinov2(config: ViTConfig) -> ViT:
    """Make a :class:`ViT` in the layout of DINOv2's: each sublayer's output is scaled.

    Args:
        config: Sizes.

    Returns:
        The model, untrained.

    Source:
        Oquab et al. (2024), appendix B; Touvron et al. (2021) for the scale. Chapter 13.
    """
    return _filled(config, LayerScale)


def _filled(config: ViTConfig, kind: Callable[..., nn.Module]) -> ViT:
    norm = partial(nn.LayerNorm, eps=config.eps)

    def block() -> EncoderBlock:
        return EncoderBlock(
            MultiHeadAttention(config.width, config.heads, dropout=config.dropout),
            FeedForward(config.width, config.hidden_width, activation=gelu),
            partial(kind, config.width, norm=norm, dropout=config.dropout),
        )

    model = ViT(config, block)
    for name, parameter in model.named_parameters():
        if name.endswith(("_proj.weight", "projection.weight")):
            nn.init.xavier_uniform_(parameter)
        elif name.endswith(("_proj.bias", "projection.bias")) or name.startswith("output."):
            nn.init.zeros_(parameter)
    return model
