"""Masks of the objects that a DETR has found: the head, its loss, its score. Chapter 14."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate
from torch.nn.utils.rnn import pad_sequence

from attention_lib._checks import check_count, shape
from attention_lib.data.scenes import Scenes
from attention_lib.heads import MultiHeadAttention
from attention_lib.models.detection import Pairs, match_all
from attention_lib.models.detection_score import predict
from attention_lib.models.detr import Detr


class MaskHead(nn.Module):
    """From each query's attention over the image to a mask of its object.

    The weights of H heads are H small pictures of where a query looks. Convolutions refine them, at
    each finer stage together with the features of that stage. The finest may be the image itself.

    Args:
        width: D of the queries and of the memory.
        heads: H.
        channels: Channels of the stages, the finest first.
        hidden: Channels inside the head.

    Source:
        Carion et al. (2020), section 4.4, figure 8. Chapter 14.
    """

    def __init__(self, width: int, heads: int, channels: Sequence[int], hidden: int = 16) -> None:
        super().__init__()
        check_count("hidden", hidden, least=1)
        self.attention = MultiHeadAttention(width, heads)
        self.start = nn.Conv2d(heads, hidden, 3, padding=1)
        self.lateral = nn.ModuleList(nn.Conv2d(number, hidden, 1) for number in channels)
        self.refine = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(1, hidden), nn.ReLU(), nn.Conv2d(hidden, hidden, 3, padding=1)
            )
            for _ in channels
        )
        self.output = nn.Conv2d(hidden, 1, 1)

    def forward(
        self, states: Float[Tensor, "B N D"], memory: Float[Tensor, "B T D"], features: list[Tensor]
    ) -> Float[Tensor, "B N Y X"]:
        """Logits of each query's mask, with the sides of the finest stage.

        Args:
            states: Of the queries, (B, N, D).
            memory: From :meth:`~attention_lib.models.detr.Detr.encode`.
            features: From the same, as many as ``channels``; the image may stand first.

        Returns:
            Logits, (B, N, Y, X), positive inside.
        """
        batch, queries = states.shape[:2]
        height, width = features[-1].shape[-2:]
        weights = self.attention.attention_weights(states, memory)  # (B, H, N, T)
        maps = weights.movedim(2, 1).unflatten(-1, (height, width))  # (B, N, H, h, w)
        # A mean weight of 1 / T becomes 1, so that the size of the image does not matter.
        x = self.start(maps.flatten(0, 1) * (height * width))  # (B N, hidden, h, w)
        for lateral, refine, stage in zip(
            reversed(self.lateral), reversed(self.refine), reversed(features), strict=True
        ):
            x = interpolate(x, size=stage.shape[-2:], mode="nearest")
            x = x + lateral(stage).repeat_interleave(queries, dim=0)
            x = x + refine(x)
        logits: Tensor = self.output(x)[:, 0].unflatten(0, (batch, queries))
        return logits


def mask_loss(
    logits: Float[Tensor, "M Y X"], masks: Bool[Tensor, "M Y X"]
) -> dict[str, Float[Tensor, ""]]:
    r"""The loss of masks, each against that of its object.

    .. math:: \mathrm{dice} = 1 - \frac{2 \sum_i p_i t_i + 1}{\sum_i p_i + \sum_i t_i + 1},
              \qquad p = \sigma(\mathrm{logits})

    The surprise counts pixels, of which most lie outside; dice counts shares of the mask, so a
    small mask weighs as much as a large one.

    Args:
        logits: Positive inside, (M, Y, X).
        masks: True inside, (M, Y, X).

    Returns:
        The terms ``surprise`` (mean over pixels) and ``dice`` (mean over masks).

    Raises:
        ValueError: If the shapes differ.

    Source:
        Milletari et al. (2016), section 3, with plain sums below, and Carion et al. (2020),
        appendix A.2. Chapter 14.
    """
    if logits.shape != masks.shape:
        raise ValueError(
            f"masks must have the shape of logits, {shape(logits)}, got {shape(masks)}"
        )
    target = masks.to(logits.dtype)
    inside = logits.sigmoid()
    shared = (inside * target).sum(dim=(1, 2))
    total = inside.sum(dim=(1, 2)) + target.sum(dim=(1, 2))
    return {
        "surprise": binary_cross_entropy_with_logits(logits, target),
        "dice": (1 - (2 * shared + 1) / (total + 1)).mean(),
    }


def mask_logits(
    detector: Detr, head: MaskHead, images: Float[Tensor, "B C Y X"], pairs: Sequence[Pairs]
) -> list[Float[Tensor, "_ Y X"]]:
    """Masks of the chosen queries of each image; the detector gets no gradient.

    Args:
        detector: Finds the objects.
        head: Finds their pixels, from the image and the backbone's features.
        images: Images, (B, C, Y, X).
        pairs: For each image the queries to draw, and anything beside them.

    Returns:
        Logits for each image, positive inside, (M, Y, X).

    Source:
        Carion et al. (2020), section 4.4. Chapter 14.
    """
    with torch.no_grad():
        memory, position, features = detector.encode(images)
        states = detector.decode(memory, position)[-1]
    chosen = pad_sequence(
        [own[rows] for own, (rows, _) in zip(states, pairs, strict=True)], batch_first=True
    )
    logits = head(chosen, memory, [images, *features])
    return [own[: len(rows)] for own, (rows, _) in zip(logits, pairs, strict=True)]


@torch.no_grad()
def mask_overlaps(detector: Detr, head: MaskHead, scenes: Scenes) -> Float[Tensor, " M"]:
    """IoU of the mask of each object with that of the prediction matched to it.

    Args:
        detector: Finds the objects.
        head: Finds their pixels.
        scenes: Scenes with their masks.

    Returns:
        One number for each object of all scenes.

    Source:
        Chapter 14.
    """
    overlaps = []
    pairs = match_all(predict(detector, scenes.images), scenes.labels, scenes.boxes)
    for first in range(0, len(pairs), 50):
        some = slice(first, first + 50)
        logits = mask_logits(detector, head, scenes.images[some], pairs[some])
        for found, masks, (_, objects) in zip(logits, scenes.masks[some], pairs[some], strict=True):
            ours, true = found > 0, masks[objects]
            shared, union = (ours & true).sum(dim=(1, 2)), (ours | true).sum(dim=(1, 2))
            overlaps.append(shared / union)  # a mask is never empty
    return torch.cat(overlaps)
