"""What a detector answers, and how good it is: suppression and average precision. Chapter 14."""

import io
import math
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attention_lib.models.detection import Pairs, box_overlap
from attention_lib.models.detr import Predictions
from attention_lib.training import in_mode


@torch.no_grad()
def predict(model: nn.Module, images: Float[Tensor, "B C Y X"]) -> Predictions:
    """The answer of a detector, fifty images at a time, without gradients.

    Args:
        model: A :class:`~attention_lib.models.detr.Detr` or a
            :class:`~attention_lib.models.grid_detector.GridDetector`.
        images: Images, (B, C, Y, X).

    Returns:
        The predictions; of a DETR those of its last decoder block.

    Source:
        Chapter 14.
    """
    with in_mode(model, training=False):
        answers = [model(some) for some in images.split(50)]
    final = [answer if isinstance(answer, Predictions) else answer[-1] for answer in answers]
    return Predictions(*(torch.cat(parts) for parts in zip(*final, strict=True)))


def best_labels(
    predictions: Predictions,
) -> tuple[Float[Tensor, "B N"], Int[Tensor, "B N"]]:
    """The likeliest class of each prediction, "no object" aside, and its probability.

    Args:
        predictions: Of B images.

    Returns:
        Probabilities and classes, (B, N) each.

    Source:
        Carion et al. (2020), section 4, "Technical details". Chapter 14.
    """
    scores, labels = predictions.logits.softmax(dim=-1)[..., :-1].max(dim=-1)
    return scores, labels


def survivors(predictions: Predictions, limit: float = 0.5) -> Bool[Tensor, "B N"]:
    """Which predictions stay when weaker ones of the same class that overlap are thrown away.

    Args:
        predictions: Of B images.
        limit: The largest IoU that two survivors of one class may have.

    Returns:
        True for those that stay, (B, N).

    Source:
        Non-maximum suppression, as in Redmon et al. (2016), section 2.3. Chapter 14.
    """
    scores, labels = best_labels(predictions)
    stay = torch.ones_like(scores, dtype=torch.bool)
    for image, order in enumerate(scores.argsort(dim=-1, descending=True, stable=True)):
        boxes, label = predictions.boxes[image][order], labels[image][order]
        iou, _ = box_overlap(boxes[:, None], boxes)
        rival = (iou > limit) & (label[:, None] == label)
        for n in range(len(order)):
            if bool((rival[n, :n] & stay[image, order[:n]]).any()):
                stay[image, order[n]] = False
    return stay


def average_precision(
    predictions: Predictions,
    labels: Sequence[Int[Tensor, " _"]],
    boxes: Sequence[Float[Tensor, "_ 4"]],
    *,
    side: int,
    keep: Bool[Tensor, "B N"] | None = None,
) -> dict[str, float]:
    """Mean average precision over the classes, as COCO computes it, by ``pycocotools``.

    Args:
        predictions: Of all images.
        labels: Classes of the objects of each image.
        boxes: Their boxes, in shares of the side.
        side: Height and width of the images in pixels.
        keep: Which predictions count; all if None.

    Returns:
        ``mAP50`` (a hit needs an IoU of 0.50), ``mAP75``, and ``mAP`` (mean over the limits 0.50,
        0.55, ..., 0.95).

    Raises:
        ValueError: If no prediction or no object is left.

    Source:
        Lin et al. (2014), and the metrics of the COCO challenge. Chapter 14.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    scores, guesses = best_labels(predictions)
    wanted: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image, (label, box) in enumerate(zip(labels, boxes, strict=True)):
        for c, b in zip(label.tolist(), _pixels(box, side), strict=True):
            about = {"id": len(wanted) + 1, "area": b[2] * b[3], "iscrowd": 0}
            wanted.append({"image_id": image, "category_id": c, "bbox": b, **about})
        rows = zip(
            scores[image].tolist(), guesses[image].tolist(),
            _pixels(predictions.boxes[image], side), strict=True,
        )  # fmt: skip
        for n, (score, c, b) in enumerate(rows):
            if keep is None or bool(keep[image, n]):
                found.append({"image_id": image, "category_id": c, "bbox": b, "score": score})
    if not wanted or not found:
        raise ValueError(f"there must be objects and predictions, got {len(wanted)}, {len(found)}")
    classes = sorted({entry["category_id"] for entry in wanted})
    with redirect_stdout(io.StringIO()):  # it prints its progress
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": image, "height": side, "width": side} for image in range(len(boxes))],
            "categories": [{"id": c, "name": str(c)} for c in classes],
            "annotations": wanted,
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    mean, half, strict = evaluation.stats[:3]
    return {"mAP50": float(half), "mAP75": float(strict), "mAP": float(mean)}


def _pixels(boxes: Float[Tensor, "N 4"], side: int) -> list[list[float]]:
    """(left, top, width, height) in pixels, as COCO wants it."""
    corner = boxes[:, :2] - boxes[:, 2:] / 2
    pixels: list[list[float]] = (torch.cat([corner, boxes[:, 2:]], dim=1).double() * side).tolist()
    return pixels


def field_entropy(
    pairs: Sequence[Pairs], boxes: Sequence[Float[Tensor, "_ 4"]], queries: int, fields: int = 4
) -> float:
    r"""Bits that are missing to name the field of an object when its query is known.

    .. math:: H(\mathrm{field} \mid \mathrm{query})
              = -\sum_{n, f} p(n, f) \log_2 p(f \mid n)

    Args:
        pairs: For each image the queries and the objects that they answer for.
        boxes: Boxes of the objects of each image.
        queries: N.
        fields: The image is cut into so many rows and columns.

    Returns:
        From 0 (each query has a field of its own) to the logarithm of the number of fields.

    Source:
        Shannon (1948), section 6, for conditional entropy. Chapter 14.
    """
    counts = torch.zeros(queries, fields**2, dtype=torch.float64)
    for (rows, columns), box in zip(pairs, boxes, strict=True):
        x, y = (box[columns, :2] * fields).long().clamp(0, fields - 1).T
        ones = torch.ones(len(rows), dtype=torch.float64)
        counts.index_put_((rows, fields * y + x), ones, accumulate=True)
    share = counts / counts.sum()  # p(n, f)
    given = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)  # p(f | n)
    return -torch.xlogy(share, given).sum().item() / math.log(2)
