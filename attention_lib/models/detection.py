"""Sets of predictions against sets of objects: boxes, matching and loss. Chapter 14.

Boxes are (centre x, centre y, width, height) as shares of the image's sides. Which prediction
answers for which object is a pair of row numbers; :func:`match_all` chooses the pairs, and
:func:`detection_loss` scores any pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attention_lib._checks import check_float, shape
from attention_lib.models.detr import Predictions

Pairs = tuple[Int[Tensor, " _"], Int[Tensor, " _"]]

# --- boxes ---------------------------------------------------------------------------------------


def corners(boxes: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N 4"]:
    """Boxes as (left, top, right, bottom).

    Args:
        boxes: (centre x, centre y, width, height), (..., 4).

    Returns:
        The corners, (..., 4).

    Raises:
        TypeError: If ``boxes`` is not a floating-point tensor.
        ValueError: If its last dimension is not 4.

    Source:
        Chapter 14.
    """
    check_float("boxes", boxes, rank=1)
    if boxes.shape[-1] != 4:
        raise ValueError(f"boxes must have 4 numbers each, got shape {shape(boxes)}")
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def box_overlap(
    boxes: Float[Tensor, "... 4"], others: Float[Tensor, "... 4"]
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    r"""Intersection over union of boxes, and its generalisation to boxes that do not meet.

    .. math:: \mathrm{IoU} = \frac{|A \cap B|}{|A \cup B|}, \qquad
              \mathrm{GIoU} = \mathrm{IoU} - \frac{|C| - |A \cup B|}{|C|}

    where C is the smallest box that holds both. GIoU lies between -1 and 1, and falls with the
    distance where IoU is 0 and has no gradient.

    Args:
        boxes: (centre x, centre y, width, height), (..., 4).
        others: The same; the leading dimensions broadcast.

    Returns:
        IoU and GIoU, (...).

    Raises:
        TypeError: If a tensor does not hold floating-point numbers.
        ValueError: If a last dimension is not 4.

    Source:
        Rezatofighi et al. (2019), algorithm 2. Chapter 14.
    """
    a, b = corners(boxes), corners(others)
    inner = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    outer = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    shared = inner.clamp(min=0).prod(dim=-1)
    hull = outer.prod(dim=-1)
    union = boxes[..., 2:].prod(dim=-1) + others[..., 2:].prod(dim=-1) - shared
    tiny = torch.finfo(union.dtype).tiny  # two boxes of size 0 overlap by 0
    iou = shared / union.clamp(min=tiny)
    return iou, iou - (hull - union) / hull.clamp(min=tiny)


# --- matching and loss ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """How much each term counts, in the matching and in the loss.

    Args:
        label: The class.
        distance: The sum of absolute differences of the four numbers of a box.
        overlap: One minus GIoU.
        nothing: Weight of "no object" in the mean over predictions; there are many of them.

    Source:
        Carion et al. (2020), appendix A.4, and section 3.1 for ``nothing``. Chapter 14.
    """

    label: float = 1.0
    distance: float = 5.0
    overlap: float = 2.0
    nothing: float = 0.1


def matching_cost(
    logits: Float[Tensor, "*B N C"],
    boxes: Float[Tensor, "*B N 4"],
    labels: Int[Tensor, " M"],
    true_boxes: Float[Tensor, "M 4"],
    weights: Weights | None = None,
) -> Float[Tensor, "*B N M"]:
    r"""What it costs to give prediction n to object m.

    .. math:: \mathrm{cost}_{nm} = -\lambda_1\, p_n(\mathrm{label}_m)
              + \lambda_2\, \lVert b_n - b_m \rVert_1 - \lambda_3\, \mathrm{GIoU}(b_n, b_m)

    Args:
        logits: Of one image, (N, classes + 1), or of several.
        boxes: Predicted boxes, (N, 4).
        labels: Classes of the objects, (M,).
        true_boxes: Boxes of the objects, (M, 4).
        weights: How much each term counts; those of the paper if None.

    Returns:
        Costs, (N, M).

    Source:
        Carion et al. (2020), equation 1 and section 3.1. Chapter 14.
    """
    weights = weights or Weights()
    probability = logits.softmax(dim=-1)[..., labels]  # (..., N, M)
    distance = (boxes[..., None, :] - true_boxes).abs().sum(dim=-1)  # (..., N, M)
    _, overlap = box_overlap(boxes[..., None, :], true_boxes)
    return weights.distance * distance - weights.label * probability - weights.overlap * overlap


def match(cost: Float[Tensor, "N M"]) -> Pairs:
    r"""Give each object its own prediction so that the total cost is smallest.

    .. math:: \min_\sigma \sum_m \mathrm{cost}_{\sigma(m),\, m} \quad \text{over one-to-one } \sigma

    Args:
        cost: From :func:`matching_cost`, (N, M) with at least as many predictions as objects.

    Returns:
        The predictions and their objects, (M,) each, in the order of the predictions.

    Raises:
        ValueError: If there are fewer predictions than objects, or a cost is not finite.

    Source:
        Kuhn (1955), for the problem; Carion et al. (2020), equation 1. Chapter 14.
    """
    if cost.ndim != 2 or cost.shape[0] < cost.shape[1]:
        raise ValueError(
            f"cost must have at least as many predictions as objects, got shape {shape(cost)}"
        )
    if not bool(cost.isfinite().all()):
        raise ValueError("cost must be finite, got a NaN or an infinity")
    prediction, target = linear_sum_assignment(cost.detach().cpu().numpy())
    return torch.as_tensor(prediction), torch.as_tensor(target)


@torch.no_grad()
def match_all(
    predictions: Predictions,
    labels: Sequence[Int[Tensor, " _"]],
    boxes: Sequence[Float[Tensor, "_ 4"]],
    weights: Weights | None = None,
) -> list[Pairs]:
    """Match each image of a batch by itself, without gradients.

    Args:
        predictions: Of B images, from one decoder block.
        labels: Classes of the objects of each image.
        boxes: Their boxes.
        weights: How much each term counts; those of the paper if None.

    Returns:
        What :func:`match` returns, for each image.

    Raises:
        ValueError: If the three do not speak of the same number of images, a class is out of
            range, or what :func:`match` refuses.

    Source:
        Carion et al. (2020), section 3.1. Chapter 14.
    """
    _check_images(predictions, labels, boxes)
    # One table for the whole batch, of which each image needs only its own columns.
    cost = matching_cost(*predictions, torch.cat(list(labels)), torch.cat(list(boxes)), weights)
    columns = cost.split([len(label) for label in labels], dim=-1)
    return [match(columns[image][image]) for image in range(len(labels))]


def detection_loss(
    predictions: Predictions,
    labels: Sequence[Int[Tensor, " _"]],
    boxes: Sequence[Float[Tensor, "_ 4"]],
    weights: Weights | None = None,
    pairs: Sequence[Pairs] | None = None,
) -> dict[str, Float[Tensor, ""]]:
    r"""The loss of a batch, term by term; the training loss is their sum.

    The class term is the weighted mean surprise over all predictions, those without an object
    having to say so; the box terms are sums over pairs, divided by the number of objects in the
    batch.

    Args:
        predictions: Of B images, from one decoder block.
        labels: Classes of the objects of each image.
        boxes: Their boxes.
        weights: How much each term counts; those of the paper if None.
        pairs: For each image the predictions and the objects that they answer for; those of
            :func:`match_all` if None.

    Returns:
        The terms ``label``, ``distance`` and ``overlap``, weighted.

    Raises:
        ValueError: If the three do not speak of the same number of images, a class is out of
            range, or what :func:`match` refuses.

    Source:
        Carion et al. (2020), equation 2 and appendix A.2. Chapter 14.
    """
    weights = weights or Weights()
    _check_images(predictions, labels, boxes)
    pairs = match_all(predictions, labels, boxes, weights) if pairs is None else pairs
    logits = predictions.logits
    image = torch.arange(len(pairs)).repeat_interleave(torch.tensor([len(n) for n, _ in pairs]))
    row = torch.cat([n for n, _ in pairs])  # (objects,)
    true = torch.cat([box[m] for box, (_, m) in zip(boxes, pairs, strict=True)])  # (objects, 4)
    nothing = logits.shape[-1] - 1
    wanted = torch.full(logits.shape[:2], nothing, device=logits.device)  # (B, N)
    wanted[image, row] = torch.cat([c[m] for c, (_, m) in zip(labels, pairs, strict=True)])
    surprise = -logits.log_softmax(dim=-1).gather(-1, wanted[..., None])[..., 0]
    counts = torch.where(wanted == nothing, weights.nothing, 1.0)  # (B, N)
    found = predictions.boxes[image, row]
    count = max(len(true), 1)
    _, overlap = box_overlap(found, true)
    return {
        "label": weights.label * (counts * surprise).sum() / counts.sum(),
        "distance": weights.distance * (found - true).abs().sum() / count,
        "overlap": weights.overlap * (1 - overlap).sum() / count,
    }


def _check_images(
    predictions: Predictions, labels: Sequence[Tensor], boxes: Sequence[Tensor]
) -> None:
    images, _, classes = predictions.logits.shape
    if not images == len(labels) == len(boxes):
        raise ValueError(
            f"labels and boxes must be given for each of {images} images, "
            f"got {len(labels)} and {len(boxes)}"
        )
    for label in labels:
        if bool(((label < 0) | (label >= classes - 1)).any()):
            raise ValueError(
                f"labels must lie in 0..{classes - 2}, got {int(label.min())}..{int(label.max())}"
            )
