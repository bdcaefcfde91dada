"""Boxes, matching and loss: by hand, against loops, pycocotools, SciPy and Hugging Face."""

from itertools import permutations

import matplotlib
import numpy as np
import oracle
import pytest
import torch
from pycocotools import mask as coco
from torch.testing import assert_close
from transformers.loss import loss_for_object_detection as theirs

from attention_lib.models.detection import (
    Weights,
    box_overlap,
    corners,
    detection_loss,
    match,
    match_all,
    matching_cost,
)
from attention_lib.models.detr import Predictions
from attention_lib.models.segmentation import mask_loss
from attention_lib.plots import boxes_map

matplotlib.use("Agg")

import matplotlib.pyplot as plt

IMAGES, QUERIES, CLASSES = 3, 11, 5  # each a prime of its own
OBJECTS = (2, 0, 7)


def boxes(generator, *shape):
    numbers = torch.rand(*shape, 4, generator=generator, dtype=torch.float64)
    return torch.cat([0.2 + 0.6 * numbers[..., :2], 0.05 + 0.35 * numbers[..., 2:]], dim=-1)


@pytest.fixture
def batch(generator):
    """Predictions and objects of three images, one of which is empty."""
    logits = oracle.random(generator, IMAGES, QUERIES, CLASSES + 1)
    predictions = Predictions(
        logits.requires_grad_(), boxes(generator, IMAGES, QUERIES).requires_grad_()
    )
    labels = [torch.randint(CLASSES, (n,), generator=generator) for n in OBJECTS]
    return predictions, labels, [boxes(generator, n) for n in OBJECTS]


# --- boxes ---------------------------------------------------------------------------------------


def test_overlap_by_hand():
    one = torch.tensor([0.2, 0.2, 0.4, 0.4])  # corners (0, 0) and (0.4, 0.4)
    others = torch.tensor([
        [0.2, 0.2, 0.4, 0.4],  # the same
        [0.4, 0.2, 0.4, 0.4],  # half of it: 0.08 shared, 0.24 together
        [0.8, 0.2, 0.4, 0.4],  # apart: a hull of 1.0 x 0.4
        [0.2, 0.2, 0.2, 0.2],  # inside
    ])  # fmt: skip
    iou, giou = box_overlap(one, others)
    assert_close(iou, torch.tensor([1.0, 1 / 3, 0.0, 1 / 4]))
    assert_close(giou, torch.tensor([1.0, 1 / 3, -0.2, 1 / 4]))
    assert_close(corners(others[1]), torch.tensor([0.2, 0.0, 0.6, 0.4]))


@pytest.mark.oracle
def test_iou_is_that_of_pycocotools(generator):
    ours, others = boxes(generator, 13), boxes(generator, 17)

    def coco_form(b):
        return torch.cat([b[:, :2] - b[:, 2:] / 2, b[:, 2:]], dim=1).numpy()

    expected = coco.iou(coco_form(ours), coco_form(others), [0] * 17)
    iou, _ = box_overlap(ours[:, None], others)
    np.testing.assert_allclose(iou, expected, atol=1e-12)
    assert (expected > 0).sum() > 50


@pytest.mark.oracle
def test_giou_and_its_gradient_are_those_of_hugging_face(generator):
    a, b = boxes(generator, 13).requires_grad_(), boxes(generator, 17)
    _, giou = box_overlap(a[:, None], b)
    expected = theirs.generalized_box_iou(corners(a), corners(b))
    assert_close(giou, expected, rtol=0, atol=1e-12)
    ours = torch.autograd.grad(giou.square().sum(), a)[0]
    assert_close(ours, torch.autograd.grad(expected.square().sum(), a)[0])


def test_ranges_and_symmetry(generator):
    a, b = boxes(generator, 19)[:, None], boxes(generator, 23)
    (iou, giou), (back, gback) = box_overlap(a, b), box_overlap(b, a)
    assert (iou >= 0).all()
    assert (iou <= 1).all()
    assert (giou > -1).all()
    assert (giou <= iou + 1e-12).all()
    assert torch.equal(iou, back)
    assert torch.equal(giou, gback)


def test_overlap_ignores_place_and_scale(generator):
    a, b = boxes(generator, 7), boxes(generator, 7)
    shift = torch.tensor([0.3, -0.2, 0.0, 0.0], dtype=torch.float64)
    for scaled in (lambda x: 3 * x, lambda x: x + shift):
        for before, after in zip(box_overlap(a, b), box_overlap(scaled(a), scaled(b)), strict=True):
            assert_close(before, after)


def test_giou_falls_with_distance_where_iou_has_no_gradient():
    places = torch.tensor([0.35, 0.5, 0.7, 0.9])
    moved = torch.tensor([0.1, 0.5, 0.2, 0.2]).repeat(4, 1)
    moved[:, 0] = places
    moved.requires_grad_()
    iou, giou = box_overlap(moved, torch.tensor([0.1, 0.5, 0.2, 0.2]))
    assert not iou.any()
    assert (giou.diff() < 0).all()
    assert not torch.autograd.grad(iou.sum(), moved, retain_graph=True)[0].any()
    assert (torch.autograd.grad(giou.sum(), moved)[0][:, 0] < 0).all()


def test_boxes_without_area_overlap_by_nothing_and_have_finite_gradients():
    point = torch.tensor([0.5, 0.5, 0.0, 0.0], requires_grad=True)
    iou, giou = box_overlap(point, point.detach())
    (iou + giou).backward()
    assert iou.item() == 0
    assert point.grad.isfinite().all()


# --- matching ------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize(("predictions", "objects"), [(5, 3), (3, 3), (5, 1), (7, 5)])
def test_matching_is_the_best_of_all_assignments(generator, predictions, objects):
    for _ in range(10):
        cost = oracle.random(generator, predictions, objects)
        rows, columns = match(cost)
        best = min(
            sum(cost[n, m].item() for m, n in enumerate(chosen))
            for chosen in permutations(range(predictions), objects)
        )
        assert cost[rows, columns].sum().item() == pytest.approx(best, abs=1e-12)
        assert sorted(columns.tolist()) == list(range(objects))
        assert len(set(rows.tolist())) == objects


def test_the_best_assignment_beats_the_greedy_one():
    cost = torch.tensor([[1.0, 2.0], [2.0, 9.0], [8.0, 8.0]])
    rows, columns = match(cost)  # greedy takes 1 first, and must then take 8
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [1, 0])


def test_cost_by_hand():
    logits = torch.tensor([[0.0, 0.0, 0.0]])  # a third each
    box = torch.tensor([[0.2, 0.2, 0.4, 0.4]])
    true = torch.tensor([[0.4, 0.2, 0.4, 0.4]])
    cost = matching_cost(logits, box, torch.tensor([1]), true)
    assert_close(cost, torch.tensor([[-1 / 3 + 5 * 0.2 - 2 / 3]]))
    cost = matching_cost(logits, box, torch.tensor([1]), true, Weights(7.0, 11.0, 13.0))
    assert_close(cost, torch.tensor([[-7 / 3 + 11 * 0.2 - 13 / 3]]))


def test_the_cost_of_a_batch_is_that_of_each_image(batch):
    (logits, guesses), labels, true = batch
    together = matching_cost(logits, guesses, labels[2], true[2])
    for image in range(IMAGES):
        alone = matching_cost(logits[image], guesses[image], labels[2], true[2])
        assert_close(together[image], alone)


def test_each_image_is_matched_by_itself(batch):
    predictions, labels, true = batch
    pairs = match_all(predictions, labels, true)
    for image, (rows, columns) in enumerate(pairs):
        cost = matching_cost(
            predictions.logits[image], predictions.boxes[image], labels[image], true[image]
        )
        alone = match(cost)
        assert torch.equal(rows, alone[0])
        assert torch.equal(columns, alone[1])


# --- loss ----------------------------------------------------------------------------------------


@pytest.mark.oracle
def test_loss_and_gradients_are_those_of_hugging_face(batch):
    predictions, labels, true = batch
    matcher = theirs.HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    criterion = theirs.ImageLoss(matcher, CLASSES, eos_coef=0.1, losses=["labels", "boxes"])
    expected = criterion.double()(
        {"logits": predictions.logits, "pred_boxes": predictions.boxes},
        [{"class_labels": c, "boxes": b} for c, b in zip(labels, true, strict=True)],
    )
    ours = detection_loss(predictions, labels, true)
    assert_close(ours["label"], expected["loss_ce"])
    assert_close(ours["distance"], 5 * expected["loss_bbox"])
    assert_close(ours["overlap"], 2 * expected["loss_giou"])
    total = expected["loss_ce"] + 5 * expected["loss_bbox"] + 2 * expected["loss_giou"]
    for a, b in zip(
        torch.autograd.grad(sum(ours.values()), predictions),
        torch.autograd.grad(total, predictions),
        strict=True,
    ):
        assert_close(a, b)


def test_the_loss_does_not_know_the_order_of_objects_nor_of_queries(batch, generator):
    predictions, labels, true = batch
    before = detection_loss(predictions, labels, true)
    turned = [(c.flip(0), b.flip(0)) for c, b in zip(labels, true, strict=True)]
    order = torch.randperm(QUERIES, generator=generator)
    shuffled = Predictions(predictions.logits[:, order], predictions.boxes[:, order])
    for after in (
        detection_loss(predictions, *zip(*turned, strict=True)),
        detection_loss(shuffled, labels, true),
    ):
        for name in before:
            assert_close(after[name], before[name])


def test_perfect_predictions_cost_nothing(batch):
    _, labels, true = batch
    logits = torch.full((IMAGES, QUERIES, CLASSES + 1), -1e4, dtype=torch.float64)
    guesses = torch.full((IMAGES, QUERIES, 4), 0.5, dtype=torch.float64)
    logits[..., -1] = 1e4
    for image, (label, box) in enumerate(zip(labels, true, strict=True)):
        rows = torch.arange(QUERIES).flip(0)[: len(label)]
        logits[image, rows, -1], logits[image, rows, label] = -1e4, 1e4
        guesses[image, rows] = box
    loss = detection_loss(Predictions(logits, guesses), labels, true)
    assert sum(loss.values()).item() == pytest.approx(0, abs=1e-9)


def test_given_pairs_are_scored_as_they_are(batch):
    predictions, labels, true = batch
    fixed = [(torch.arange(n), torch.arange(n)) for n in OBJECTS]
    loss = detection_loss(predictions, labels, true, pairs=fixed)
    distance = sum(
        (predictions.boxes[i, :n] - true[i]).abs().sum().item() for i, n in enumerate(OBJECTS)
    )
    assert loss["distance"].item() == pytest.approx(5 * distance / sum(OBJECTS))
    best = detection_loss(predictions, labels, true)
    assert sum(best.values()) < sum(loss.values())


def test_only_matched_boxes_get_a_gradient_and_every_class_does(batch):
    predictions, labels, true = batch
    pairs = match_all(predictions, labels, true)
    loss = sum(detection_loss(predictions, labels, true).values())
    of_logits, of_boxes = torch.autograd.grad(loss, predictions)
    for image, (rows, _) in enumerate(pairs):
        moved = of_boxes[image].abs().sum(dim=-1) > 0
        assert moved.nonzero()[:, 0].tolist() == rows.tolist()
    assert (of_logits.abs().sum(dim=-1) > 0).all()


def test_images_without_objects_have_a_loss_of_class_alone(batch):
    predictions, labels, true = batch
    loss = detection_loss(Predictions(*(x[1:2] for x in predictions)), labels[1:2], true[1:2])
    assert loss["distance"] == loss["overlap"] == 0
    surprise = -predictions.logits[1].log_softmax(dim=-1)[:, -1].mean()
    assert_close(loss["label"], surprise)


def test_mask_loss_by_hand():
    logits = torch.tensor([[[50.0, -50.0], [50.0, -50.0]]])
    mask = torch.tensor([[[True, True], [False, False]]])
    loss = mask_loss(logits, mask)  # one of two found, one of two wrong
    assert loss["dice"].item() == pytest.approx(1 - (2 * 1 + 1) / (2 + 2 + 1))
    assert loss["surprise"].item() == pytest.approx((50 + 50) / 4)
    assert sum(mask_loss(torch.where(mask, 50.0, -50.0), mask).values()).item() < 1e-6


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
def test_what_cannot_be_matched_is_refused(batch):
    predictions, labels, true = batch
    with pytest.raises(ValueError, match=r"at least as many predictions as objects.*\(2, 3\)"):
        match(torch.zeros(2, 3))
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="cost must be finite"):
            match(torch.tensor([[number], [0.0]]))
    with pytest.raises(ValueError, match="each of 3 images, got 2 and 3"):
        detection_loss(predictions, labels[:2], true)
    for label in (-1, CLASSES):
        with pytest.raises(ValueError, match=rf"labels must lie in 0\.\.4, got {label}"):
            match_all(predictions, [torch.tensor([label]), *labels[1:]], [true[0][:1], *true[1:]])
    with pytest.raises(ValueError, match=r"4 numbers each, got shape \(3, 5\)"):
        corners(torch.zeros(3, 5))
    with pytest.raises(TypeError, match="boxes must have a floating-point dtype"):
        corners(torch.zeros(3, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"shape of logits, \(1, 2, 2\), got \(1, 3, 2\)"):
        mask_loss(torch.zeros(1, 2, 2), torch.zeros(1, 3, 2, dtype=torch.bool))


def test_boxes_are_drawn_where_they_lie():
    image = torch.rand(32, 64, generator=torch.Generator().manual_seed(0))
    ours = torch.tensor([[0.5, 0.5, 0.25, 0.5], [0.25, 0.75, 0.5, 0.25]])
    ax = boxes_map(image, ours, ["a", "b"], truth=ours[:1] + 0.01)
    drawn = [(*p.get_xy(), p.get_width(), p.get_height()) for p in ax.patches]
    assert len(drawn) == 3
    np.testing.assert_allclose(drawn[1], (24, 8, 16, 16))
    np.testing.assert_allclose(drawn[2], (0, 20, 32, 8))
    assert [p.get_linestyle() for p in ax.patches] == ["--", "-", "-"]
    assert [(t.get_text(), *t.get_position()) for t in ax.texts] == [("a", 24, 8), ("b", 0, 20)]
    np.testing.assert_allclose(ax.images[0].get_array(), image)
    assert [t.get_va() for t in ax.texts] == ["bottom", "bottom"]
    high = boxes_map(image, torch.tensor([[0.5, 0.25, 0.25, 0.4]]), ["inside"])
    assert high.texts[0].get_va() == "top"
    with pytest.raises(ValueError, match="one for each of 2 boxes, got 1"):
        boxes_map(image, ours, ["a"])
    with pytest.raises(ValueError, match="4 numbers each, got 3"):
        boxes_map(image, ours[:, :3])
    with pytest.raises(ValueError, match=r"shape \(Y, X\), got \(1, 32, 64\)"):
        boxes_map(image[None], ours)
    plt.close("all")
