"""The book's look. The only module that imports matplotlib and seaborn; used by every chapter.

Weights are drawn on one sequential scale from 0 to 1, scores on one diverging scale around 0, on
every page. Queries go down the side, keys along the bottom.
"""

import io
from collections.abc import Iterable, Sequence
from typing import Any, cast

import matplotlib.pyplot as plt
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from attention_lib.masks import Mask

WEIGHT_COLOURS = "mako_r"
SCORE_COLOURS = "vlag"
# Okabe and Ito's palette: told apart by readers with any colour vision.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]


def use_style() -> None:
    """Set the book's fonts, colours and sizes for all figures that follow.

    The default figure is 5 inches wide, so that its text is still readable when a phone shrinks it.

    Source:
        Palette by Okabe and Ito (2008). Used by every chapter.
    """
    seaborn.set_theme(
        context="notebook",
        style="ticks",
        palette=PALETTE,
        rc={
            "figure.figsize": (5.0, 3.4),
            "figure.dpi": 100,
            "savefig.dpi": 100,
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "axes.labelsize": 11,
            "axes.titlesize": 11,
            "xtick.labelsize": 10,
            "ytick.labelsize": 10,
            "legend.fontsize": 10,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "image.cmap": WEIGHT_COLOURS,
        },
    )


def weights_map(
    weights: Tensor,
    queries: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    *,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw attention weights as a heat map: a row for each query, a column for each key.

    Args:
        weights: Weights from 0 to 1, (Tq, Tk).
        queries: Labels of the rows.
        keys: Labels of the columns; those of the rows if the map is square.
        title: Title of the panel.
        ax: Where to draw; a new figure if None.

    Returns:
        The axes drawn on.

    Raises:
        ValueError: If ``weights`` is not a matrix or the labels do not fit.

    Source:
        Used by every chapter.
    """
    return _heat_map(weights, queries, keys, title, ax, cmap=WEIGHT_COLOURS, vmin=0, vmax=1)


def scores_map(
    scores: Tensor,
    queries: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    *,
    title: str = "",
    ax: Axes | None = None,
    limit: float | None = None,
) -> Axes:
    """Draw scores as a heat map whose neutral colour is 0.

    Args:
        scores: Scores, (Tq, Tk).
        queries: Labels of the rows.
        keys: Labels of the columns; those of the rows if the map is square.
        title: Title of the panel.
        ax: Where to draw; a new figure if None.
        limit: Score with the darkest colour; the largest absolute score if None.

    Returns:
        The axes drawn on.

    Raises:
        ValueError: If ``scores`` is not a matrix or the labels do not fit.

    Source:
        Used by every chapter.
    """
    if limit is None:
        limit = float(scores.detach().abs().max()) if scores.numel() else 1.0
    return _heat_map(scores, queries, keys, title, ax, cmap=SCORE_COLOURS, vmin=-limit, vmax=limit)


def mask_map(
    mask: Mask | Tensor,
    queries: Sequence[str] | int,
    keys: Sequence[str] | int | None = None,
    *,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a mask: dark where the query may attend to the key, blank where not.

    Args:
        mask: The mask, or a boolean matrix (Tq, Tk).
        queries: Labels of the rows, or their number.
        keys: Labels of the columns, or their number; as ``queries`` if None.
        title: Title of the panel; the mask's name if None.
        ax: Where to draw; a new figure if None.

    Returns:
        The axes drawn on.

    Raises:
        ValueError: If the mask is not one matrix or the labels do not fit.

    Source:
        Chapter 05.
    """
    keys = queries if keys is None else keys
    sizes = [x if isinstance(x, int) else len(x) for x in (queries, keys)]
    if title is None:
        title = mask.name if isinstance(mask, Mask) else ""
    matrix = mask.dense(sizes[0], sizes[1]) if isinstance(mask, Mask) else mask
    if matrix.shape[:-2].numel() == 1:  # a batch of one sequence
        matrix = matrix.reshape(matrix.shape[-2:])
    rows = None if isinstance(queries, int) else queries
    columns = None if isinstance(keys, int) else keys
    ax = _heat_map(
        matrix.float(),
        rows,
        columns,
        title,
        ax,
        cmap=WEIGHT_COLOURS,
        vmin=0,
        vmax=1.4,
        numbers=False,
    )
    ax.collections[0].set_edgecolor("0.8")
    ax.collections[0].set_linewidth(0.5)
    return ax


def image_grid(
    images: Tensor, titles: Sequence[str] = (), *, columns: int = 6, height: int | None = None
) -> Figure:
    """Draw grey-scale images, given as rows of pixels, in a grid.

    Args:
        images: Images from 0 (paper) to 1 (ink), (N, height * width).
        titles: A title for each image.
        columns: Images in one row of the grid.
        height: Height of an image in pixels; square images if None.

    Returns:
        The figure.

    Raises:
        ValueError: If ``images`` is not a matrix.

    Source:
        Chapters 01 to 04.
    """
    if images.ndim != 2:
        raise ValueError(f"images must have shape (N, pixels), got {tuple(images.shape)}")
    height = height or round(images.shape[-1] ** 0.5)
    rows = -(-len(images) // columns)
    ratio = images.shape[-1] / height**2
    size = (5.0, 5.0 / columns / ratio * rows + (0.28 * rows if titles else 0))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image in zip(axes.flat, images.detach().cpu().numpy(), strict=False):
        ax.imshow(image.reshape(height, -1), cmap="gray_r", vmin=0, vmax=1)
    for ax, text in zip(axes.flat, titles, strict=False):
        ax.set_title(text, fontsize=10)
    return figure


def photo_grid(
    images: Tensor, titles: Sequence[str] = (), *, maps: Tensor | None = None, columns: int = 4
) -> Figure:
    """Draw colour images in a grid, each with a map over it if there are any.

    A map is scaled to its image, and to its own largest value: it shows where, not how much.

    Args:
        images: Images from 0 to 1, (N, 3, Y, X); one image for all maps may be given as (1, ...).
        titles: A title for each panel.
        maps: What to draw over the images, (N, h, w), at least 0.
        columns: Panels in one row of the grid.

    Returns:
        The figure.

    Raises:
        ValueError: If the shapes do not fit.

    Source:
        Chapter 13.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have shape (N, 3, Y, X), got {tuple(images.shape)}")
    count = len(images) if maps is None else len(maps)
    if len(images) not in (1, count):
        raise ValueError(f"images must be 1 or as many as maps = {count}, got {len(images)}")
    rows = -(-count // columns)
    size = (5.0, 5.0 / columns * rows + (0.28 * rows if titles else 0))
    # Photographs compress badly: fewer dots keep the page light.
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, dpi=72)
    height, width = images.shape[-2:]
    for ax in axes.flat:
        ax.axis("off")
    for index, ax in zip(range(count), axes.flat, strict=False):
        ax.imshow(images[index % len(images)].permute(1, 2, 0).detach().cpu().clamp(0, 1).numpy())
        if maps is not None:
            area = (-0.5, width - 0.5, height - 0.5, -0.5)
            over = maps[index].detach().cpu().numpy()
            ax.imshow(over, cmap="inferno", alpha=0.65, extent=area, vmin=0)
    for ax, text in zip(axes.flat, titles, strict=False):
        ax.set_title(text, fontsize=10)
    return figure


def boxes_map(
    image: Tensor,
    boxes: Tensor,
    texts: Sequence[str] = (),
    *,
    truth: Tensor | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw boxes on a grey-scale image.

    Args:
        image: From 0 (black) to 1 (white), (Y, X).
        boxes: (centre x, centre y, width, height) in shares of the sides, (N, 4).
        texts: A text above each box, or in it where no room is above.
        truth: Further boxes, drawn dashed, (M, 4).
        title: Title of the panel.
        ax: Where to draw; a new figure if None.

    Returns:
        The axes drawn on, without ticks; places count in pixels.

    Raises:
        ValueError: If ``image`` is not a matrix, a box has not four numbers, or the texts do not
            fit.

    Source:
        Chapter 14.
    """
    if image.ndim != 2:
        raise ValueError(f"image must have shape (Y, X), got {tuple(image.shape)}")
    if texts and len(texts) != len(boxes):
        raise ValueError(f"texts must be one for each of {len(boxes)} boxes, got {len(texts)}")
    if ax is None:
        _, ax = plt.subplots(figsize=(3.0, 3.0))
    height, width = image.shape
    # Square pixels in few greys: smoothed noise would make the file three times as large.
    greys, extent = plt.get_cmap("gray", 24), (0, width, height, 0)
    ax.imshow(image.numpy(), cmap=greys, vmin=0, vmax=1, extent=extent, interpolation="nearest")
    for some, colour, line in ((truth, PALETTE[5], "--"), (boxes, PALETTE[4], "-")):
        for n, box in enumerate([] if some is None else some.tolist()):
            if len(box) != 4:
                raise ValueError(f"boxes must have 4 numbers each, got {len(box)}")
            x, y, w, h = box[0] * width, box[1] * height, box[2] * width, box[3] * height
            corner = x - w / 2, y - h / 2
            ax.add_patch(Rectangle(corner, w, h, fill=False, ec=colour, ls=line, lw=1.2))
            if line == "-" and texts:
                # Inside the box where there is no room above it.
                side = "top" if corner[1] < height / 8 else "bottom"
                ax.text(*corner, texts[n], color=colour, va=side, fontsize=9, clip_on=True)
    ax.set(title=title, xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    return ax


def axes_png(ax: Axes) -> bytes:
    """Draw the figure of some axes into a PNG file and close it.

    Args:
        ax: Any axes.

    Returns:
        The bytes of the file.

    Source:
        Used by :func:`attention_lib.explorer.explore`. Chapter 04.
    """
    figure = cast(Figure, ax.figure)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    plt.close(figure)
    return file.getvalue()


def image_png(image: Tensor) -> bytes:
    """Write an image into a PNG file, pixel by pixel.

    Args:
        image: From 0 to 1, (Y, X) or (3, Y, X).

    Returns:
        The bytes of the file.

    Raises:
        ValueError: If the shape is another one.

    Source:
        Used by :func:`attention_lib.explorer.explore`. Chapter 04.
    """
    if image.ndim != 2 and (image.ndim != 3 or len(image) != 3):
        raise ValueError(f"image must have shape (Y, X) or (3, Y, X), got {tuple(image.shape)}")
    file = io.BytesIO()
    pixels = (image if image.ndim == 2 else image.permute(1, 2, 0)).detach().float().cpu()
    plt.imsave(file, pixels.clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1, format="png")
    return file.getvalue()


def _heat_map(
    matrix: Tensor,
    queries: Sequence[str] | None,
    keys: Sequence[str] | None,
    title: str,
    ax: Axes | None,
    *,
    cmap: str,
    vmin: float,
    vmax: float,
    numbers: bool = True,
) -> Axes:
    if matrix.ndim != 2:
        raise ValueError(f"a map needs a matrix (Tq, Tk), got shape {tuple(matrix.shape)}")
    if keys is None and matrix.shape[0] == matrix.shape[1]:
        keys = queries
    for name, labels, size in zip(("queries", "keys"), (queries, keys), matrix.shape, strict=True):
        if labels is not None and len(labels) != size:
            raise ValueError(f"{name} must have {size} labels, got {len(labels)}")
    if ax is None:
        _, ax = plt.subplots(figsize=(4.4, 3.6))
    small = matrix.numel() <= 64
    seaborn.heatmap(
        matrix.detach().float().cpu().numpy(),
        ax=ax,
        cmap=cmap,
        vmin=vmin,
        vmax=vmax,
        annot=small and numbers,
        fmt=".2f",
        annot_kws={"size": 10},
        square=True,
        linewidths=0.5 if small else 0,
        xticklabels="auto" if keys is None else list(keys),
        yticklabels="auto" if queries is None else list(queries),
        cbar=numbers,
        cbar_kws={"shrink": 0.8},
    )
    for text, colour in zip(ax.texts, cast(Any, ax.collections[0]).get_facecolors(), strict=False):
        text.set_color("black" if _luminance(colour) > 0.18 else "white")
    ax.set(xlabel="key", ylabel="query", title=title)
    ax.tick_params(axis="x", rotation=0 if keys is None or max(map(len, keys)) < 7 else 45)
    ax.tick_params(axis="y", rotation=0)
    return ax


def _luminance(colour: Iterable[float]) -> float:
    """Relative luminance of an sRGB colour, as WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in list(colour)[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
