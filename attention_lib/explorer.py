"""The attention explorer: choose layer, head and query, read the weights.

Where scripts are off, a picture of what is shown first stands in its place.
"""

import base64
from collections.abc import Sequence

import torch
from torch import Tensor

from attention_lib.component import Component, address, component
from attention_lib.masks import Mask
from attention_lib.plots import axes_png, image_png, photo_grid, weights_map

UNIT, BLOCKED = 60_000, 65_535  # as in explorer.js


def explore(
    weights: Tensor,
    queries: Sequence[str],
    keys: Sequence[str] | None = None,
    *,
    description: str,
    mask: Mask | Tensor | None = None,
    layers: Sequence[str] | None = None,
    heads: Sequence[str] | None = None,
    kind: str = "head",
    start: tuple[int, int, int] = (0, 0, 0),
    image: Tensor | None = None,
    grid: tuple[int, int] | None = None,
) -> Component:
    r"""Show attention weights so that a reader can walk through layers, heads and queries.

    The page shows each weight to two decimals, and for each head the mean over its rows of the
    entropy

    .. math:: H(w_t) = -\sum_s w_{ts} \ln w_{ts} .

    Args:
        weights: Weights from 0 to 1, (Tq, Tk), (H, Tq, Tk) or (L, H, Tq, Tk).
        queries: Tokens of the rows.
        keys: Tokens of the columns; those of the rows if None, which is self-attention.
        description: What there is to see, one or two sentences.
        mask: Which keys each query may attend to: a mask, or True and False of a shape that fits
            the weights. What is not allowed is hatched.
        layers: Names of the layers; numbers from 0 if None.
        heads: Names of the heads; numbers from 0 if None.
        kind: What the heads are called; their mean is offered only if they are heads.
        start: Layer, head and query at the beginning.
        image: Image from 0 to 1, (Y, X) or (3, Y, X), whose patches are the last keys.
        grid: Rows and columns of the patches.

    Returns:
        The component.

    Raises:
        ValueError: If shapes, names or the place to start do not fit, a weight is not in [0, 1], or
            only one of ``image`` and ``grid`` is given.

    Source:
        Views of heads and of whole models: Vig (2019), A Multiscale Visualization of Attention in
        the Transformer Model, section 3. Chapter 04.
    """
    if not 2 <= weights.ndim <= 4:
        raise ValueError(
            f"weights must have shape (Tq, Tk), (H, Tq, Tk) or (L, H, Tq, Tk), "
            f"got {tuple(weights.shape)}"
        )
    weights = weights.detach().double().cpu()
    weights = weights.reshape((1,) * (4 - weights.ndim) + weights.shape)  # (L, H, Tq, Tk)
    if not ((weights >= 0) & (weights <= 1 + 1e-4)).all():
        raise ValueError("weights must lie between 0 and 1")
    own = keys is None
    keys = queries if keys is None else keys
    count = dict(zip(("layers", "heads", "queries", "keys"), weights.shape, strict=True))
    names = {
        "layers": [str(n) for n in range(count["layers"])] if layers is None else list(layers),
        "heads": [str(n) for n in range(count["heads"])] if heads is None else list(heads),
        "queries": [visible(token) for token in queries],
        "keys": [visible(token) for token in keys],
    }
    for name, texts in names.items():
        if len(texts) != count[name]:
            raise ValueError(f"{name} must be {count[name]} names, got {len(texts)}")
    for name, place in zip(("layers", "heads", "queries"), start, strict=True):
        if not 0 <= place < count[name]:
            raise ValueError(f"start must name one of {count[name]} {name}, got {place}")
    if (image is None) != (grid is None):
        raise ValueError("image and grid must be given together")
    if grid is not None and not 0 < grid[0] * grid[1] <= count["keys"]:
        raise ValueError(f"grid must have at most {count['keys']} patches, got {grid}")
    if image is not None and image.ndim not in (2, 3):
        raise ValueError(f"image must have shape (Y, X) or (3, Y, X), got {tuple(image.shape)}")

    allowed = _allowed(mask, weights.shape)
    numbers = (weights * UNIT).round().to(torch.int32).masked_fill(~allowed, BLOCKED)
    data = {
        **names,
        "shape": list(weights.shape),
        "start": list(start),
        "self": own,
        "weights": base64.b64encode(numbers.numpy().astype("<u2").tobytes()).decode(),
    }
    if kind != "head":
        data["kind"] = kind
    if image is not None:
        data |= {"grid": list(grid or ()), "image": address(image_png(image))}
    layer, head, query = start
    if image is not None and grid is not None:
        over = weights[layer, head, query, -grid[0] * grid[1] :].reshape(1, *grid)
        colours = image.expand(3, *image.shape[-2:])[None]
        still = axes_png(photo_grid(colours, maps=over, columns=1).axes[0])
    else:
        # Some dozens of tokens are legible in the picture, hundreds are not.
        rows, columns = (names[side] if count[side] <= 32 else None for side in ("queries", "keys"))
        still = axes_png(weights_map(weights[layer, head], rows, columns))
    return component("explorer", data, description, still)


def visible(token: str) -> str:
    """Make white space at the ends of a token, and line breaks in it, visible.

    Args:
        token: Any text.

    Returns:
        The text with marks, never empty.

    Source:
        Chapter 11.
    """
    kept = token.strip(" ")
    before = len(token) - len(token.lstrip(" ")) if kept else 0
    after = len(token) - before - len(kept)
    marked = "␣" * before + kept + "␣" * after
    return marked.translate({10: "↵", 9: "⇥", 13: "␍"}) or "(empty)"


def _allowed(mask: Mask | Tensor | None, shape: torch.Size) -> Tensor:
    """True where a query may attend, in the shape of the weights."""
    if mask is None:
        return torch.ones(shape, dtype=torch.bool)
    dense = mask.dense(shape[-2], shape[-1]) if isinstance(mask, Mask) else mask
    if dense.dtype != torch.bool:
        raise ValueError(f"mask must be True where a query may attend, got {dense.dtype}")
    try:
        return dense.cpu().broadcast_to(shape)
    except RuntimeError as error:
        raise ValueError(
            f"mask must fit weights of shape {tuple(shape)}, got {tuple(dense.shape)}"
        ) from error
