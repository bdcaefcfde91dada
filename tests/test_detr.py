"""DETR and its neighbours: sets stay sets, parts fit, COCO's score, and the shipped weights."""

import hashlib
import json
import math
from dataclasses import asdict

import pytest
import torch
from torch.testing import assert_close
from train_detector import measure

from attention_lib.data.scenes import SceneMaker
from attention_lib.models.detection import box_overlap, detection_loss, match_all
from attention_lib.models.detection_score import (
    average_precision,
    best_labels,
    field_entropy,
    predict,
    survivors,
)
from attention_lib.models.detector import WEIGHTS, build, load, save
from attention_lib.models.detr import (
    Backbone,
    Detr,
    DetrConfig,
    Predictions,
    grid_positions,
)
from attention_lib.models.grid_detector import GridDetector, cells_of
from attention_lib.models.segmentation import MaskHead, mask_logits, mask_overlaps

NAMES = ("detr", "grid", "masks")
CONFIG = DetrConfig(
    classes=7, queries=5, width=12, encoder_layers=2, decoder_layers=3, heads=3, hidden=17
)


@pytest.fixture
def model():
    return Detr(CONFIG, Backbone([2, 3, 11])).double().eval()


@pytest.fixture
def images(generator):
    return torch.rand(3, 2, 20, 28, generator=generator, dtype=torch.float64)


# --- the model -----------------------------------------------------------------------------------


def test_every_decoder_block_predicts_a_class_and_a_box_for_each_query(model, images):
    answers = model(images)
    assert len(answers) == CONFIG.decoder_layers
    for answer in answers:
        assert answer.logits.shape == (3, 5, 7 + 1)
        assert answer.boxes.shape == (3, 5, 4)
        assert ((answer.boxes > 0) & (answer.boxes < 1)).all()


def test_queries_are_a_set_their_order_orders_the_answers(model, images):
    before = model(images)[-1]
    order = torch.tensor([3, 0, 4, 1, 2])
    model.queries.data = model.queries.data[order]
    after = model(images)[-1]
    assert_close(after.boxes, before.boxes[:, order])
    assert_close(after.logits, before.logits[:, order])


def test_equal_queries_give_equal_answers(model, images):
    model.queries.data[1] = model.queries.data[4]
    boxes = model(images)[-1].boxes
    assert_close(boxes[:, 1], boxes[:, 4])
    assert (boxes[:, 0] - boxes[:, 4]).abs().max() > 1e-6


def test_an_image_is_detected_alone_as_in_a_batch(model, images):
    together, alone = model(images)[-1], model(images[1:2])[-1]
    assert_close(alone.boxes[0], together.boxes[1])


def test_cells_without_positions_would_be_a_set(model, generator):
    memory = torch.randn(1, 35, 12, generator=generator, dtype=torch.float64)
    position = grid_positions(5, 7, 12).double()
    order = torch.randperm(35, generator=generator)

    def boxes(memory, position):
        return model.predict(model.decode(memory, position)[-1]).boxes

    assert_close(boxes(memory[:, order], position[order]), boxes(memory, position))
    assert (boxes(memory[:, order], position) - boxes(memory, position)).abs().max() > 1e-6


def test_grid_positions_name_row_and_column():
    table = grid_positions(5, 7, 12).unflatten(0, (5, 7))
    assert torch.equal(table[2, :, :6], table[2, :1, :6].expand(7, 6))  # one row, one half
    assert torch.equal(table[:, 3, 6:], table[:1, 3, 6:].expand(5, 6))
    assert len(table.flatten(0, 1).unique(dim=0)) == 35
    assert table[1, 0, 0].item() == pytest.approx(0.841471)  # sin 1


def test_every_weight_gets_a_gradient(model, images):
    labels = [torch.tensor([1, 5]), torch.tensor([6]), torch.tensor([0, 1, 2])]
    boxes = [torch.full((len(c), 4), 0.3, dtype=torch.float64) for c in labels]
    blocks = model(images)
    sum(sum(detection_loss(p, labels, boxes).values()) for p in blocks).backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    # The first block's states start at zero, so its self-attention weighs equal values.
    assert all(
        (n.startswith("decoder.0.attention.") and ("query" in n or "key" in n))
        or n.endswith("key_proj.bias")
        or n == "decoder.0.attention.value_proj.weight"
        for n in still
    ), still


def test_masks_have_the_sides_of_the_finest_stage(model, images, generator):
    memory, position, features = model.encode(images)
    states = model.decode(memory, position)[-1]
    head = MaskHead(12, 3, (2, 3, 11), hidden=4).double()
    assert head(states, memory, [images, *features]).shape == (3, 5, 20, 28)
    coarse = MaskHead(12, 3, (3, 11), hidden=4).double()
    assert coarse(states, memory, features).shape == (3, 5, 10, 14)
    # Each query's mask depends on its own state alone.
    logits = head(states, memory, [images, *features])
    alone = head(states[:, 2:3], memory, [images, *features])
    assert_close(alone[:, 0], logits[:, 2])


def test_the_grid_answers_within_a_cell_of_its_own(images):
    model = GridDetector(7, Backbone([2, 3, 11]), hidden=13).double()
    answer = model(images)  # 5 rows of 7 cells
    assert answer.logits.shape == (3, 35, 8)
    x = answer.boxes[:, :, 0].unflatten(1, (5, 7)) * 7 - torch.arange(7)
    y = answer.boxes[:, :, 1].unflatten(1, (5, 7)) * 5 - torch.arange(5)[:, None]
    for place in (x, y):
        assert place.min() > -0.5
        assert place.max() < 1.5


def test_cells_by_hand():
    boxes = torch.tensor([[0.30, 0.90, 0.1, 0.1], [0.99, 0.01, 0.1, 0.1], [0.31, 0.85, 0.1, 0.1]])
    [(cells, objects), (none, nothing)] = cells_of([boxes, boxes[:0]], 4, 5)
    found = dict(zip(cells.tolist(), objects.tolist(), strict=True))
    assert found == {3 * 5 + 1: 0, 0 * 5 + 4: 1}  # the third shares the cell of the first
    assert len(none) == len(nothing) == 0


# --- the score -----------------------------------------------------------------------------------


def perfect(labels, boxes, queries=4):
    """Sure predictions of exactly these objects, and unsure ones beside them."""
    logits = torch.zeros(len(labels), queries, 11)
    logits[..., -1] = 20
    guesses = torch.full((len(labels), queries, 4), 0.5)
    for image, (label, box) in enumerate(zip(labels, boxes, strict=True)):
        n = torch.arange(len(label))
        logits[image, n, label], logits[image, n, -1] = 20.0, 0.0
        guesses[image, : len(box)] = box
    return Predictions(logits, guesses)


LABELS = [torch.tensor([3, 7]), torch.tensor([7])]
BOXES = [
    torch.tensor([[0.25, 0.25, 0.25, 0.5], [0.75, 0.5, 0.25, 0.25]]),
    torch.tensor([[0.5, 0.5, 0.5, 0.25]]),
]


def score(predictions, keep=None):
    return average_precision(predictions, LABELS, BOXES, side=64, keep=keep)


def test_perfect_predictions_have_a_precision_of_one():
    assert score(perfect(LABELS, BOXES)) == pytest.approx({"mAP50": 1, "mAP75": 1, "mAP": 1})


def test_each_iou_limit_counts():
    near = perfect(LABELS, BOXES)
    near.boxes[..., 2] *= 0.72  # IoU 0.72: right for limits 0.50 to 0.70, five of ten
    found = score(near)
    assert found == pytest.approx({"mAP50": 1, "mAP75": 0, "mAP": 0.5})


def test_a_wrong_class_scores_nothing():
    assert score(perfect([c + 1 for c in LABELS], BOXES))["mAP50"] < 0.01


def test_a_sure_duplicate_costs_precision_and_suppression_mends_it():
    doubled = perfect(LABELS, BOXES)
    doubled.logits[0, 2], doubled.boxes[0, 2] = doubled.logits[0, 1], BOXES[0][1] + 0.005
    doubled.logits[0, 1, 7] = 6.0
    doubled.logits[0, 2, 7] = 7.0
    doubled.logits[1, 0, 7] = 5.0  # the least sure: the duplicate stands before it
    assert score(doubled)["mAP50"] < 0.95
    keep = survivors(doubled)
    assert keep[0].tolist()[:3] == [True, False, True]  # the surer of the two stays
    assert score(doubled, keep)["mAP50"] == pytest.approx(1)


def test_suppression_leaves_other_classes_and_other_places():
    twice = perfect([torch.tensor([3, 7, 7])], [BOXES[0][[0, 0, 1]]], queries=3)
    assert survivors(twice)[0].all()


def test_the_likeliest_class_is_never_nothing():
    scores, labels = best_labels(perfect(LABELS, BOXES))
    assert labels[0, :2].tolist() == [3, 7]
    assert (labels < 10).all()
    assert (scores[0, 2:] < 0.01).all()


def test_a_query_with_a_field_of_its_own_leaves_nothing_to_ask():
    corner, middle = [0.1, 0.1, 0.1, 0.1], [0.9, 0.9, 0.1, 0.1]
    boxes = [torch.tensor([corner, middle]), torch.tensor([middle, corner])]
    settled = [(torch.tensor([2, 5]), torch.tensor([0, 1]))]
    settled += [(torch.tensor([2, 5]), torch.tensor([1, 0]))]
    assert field_entropy(settled, boxes, queries=7) == 0
    by_number = [settled[0], settled[0]]  # query 2 answers for the first, wherever it lies
    assert field_entropy(by_number, boxes, queries=7) == pytest.approx(1)


def test_missing_bits_by_hand():
    box = torch.tensor([[x, y, 0.1, 0.1] for x in (0.2, 0.7, 1.0) for y in (0.2, 0.7)])
    pairs = [(torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1, 2, 3, 4, 5]))]
    # Fields of query 0: three different ones; of query 1: bottom right twice, top right once.
    of_one = -(2 / 3) * math.log2(2 / 3) - (1 / 3) * math.log2(1 / 3)
    found = field_entropy(pairs, [box], queries=2, fields=2)
    assert found == pytest.approx((math.log2(3) + of_one) / 2)


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
def test_impossible_sizes_are_refused():
    sizes = asdict(CONFIG)
    for name, size, message in [
        ("queries", 0, "queries must be at least 1, got 0"),
        ("heads", 5, "heads must divide width = 12, got 5"),
        ("hidden", 0, "hidden must be at least 1, got 0"),
        ("dropout", 1.0, "dropout must be at least 0 and below 1, got 1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            DetrConfig(**{**sizes, name: size})
    with pytest.raises(ValueError, match=r"width must be a multiple of 4.*got 6"):
        DetrConfig(**{**sizes, "width": 6})
    with pytest.raises(TypeError, match="queries must be an integer, got float"):
        DetrConfig(**{**sizes, "queries": 5.0})
    with pytest.raises(ValueError, match="features must be a multiple of 4, got 6"):
        grid_positions(2, 2, 6)
    with pytest.raises(ValueError, match="channels must be at least 1, got 0"):
        Backbone([1, 0])
    with pytest.raises(ValueError, match="hidden must be at least 1, got 0"):
        GridDetector(7, Backbone([1, 2]), hidden=0)
    with pytest.raises(ValueError, match="name must be 'detr', 'grid' or 'masks', got 'yolo'"):
        build("yolo", seed=0)
    with pytest.raises(ValueError, match="objects and predictions, got 3, 0"):
        score(perfect(LABELS, BOXES), torch.zeros(2, 4, dtype=torch.bool))


# --- what is shipped -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_weights_survive_saving_in_half_precision(name, tmp_path):
    model = build(name, seed=3)
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    save(name, model, tmp_path)
    loaded = load(name, tmp_path)
    assert not loaded.training
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor)


def test_the_seed_alone_decides_the_first_weights():
    torch.manual_seed(1)
    first = build("detr", seed=0)
    torch.manual_seed(2)
    again, other = build("detr", seed=0), build("detr", seed=1)
    assert torch.equal(first.queries, again.queries)
    assert not torch.equal(first.queries, other.queries)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_are_those_of_their_log(name):
    log = json.loads((WEIGHTS / f"detector_{name}.json").read_text())
    weights = (WEIGHTS / f"detector_{name}.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == log["sha256"]
    assert sum(p.numel() for p in load(name).parameters()) == log["parameters"]


@pytest.mark.parametrize("name", ["detr", "grid"])
def test_shipped_detectors_find_held_out_digits(name):
    scenes = SceneMaker("test").draw(60, torch.Generator().manual_seed(5))
    assert measure(name, load(name), scenes, WEIGHTS)["mAP50"] > 0.85


def test_shipped_masks_fit_held_out_digits():
    scenes = SceneMaker("test").draw(20, torch.Generator().manual_seed(5))
    detector, head = load("detr"), load("masks")
    overlaps = mask_overlaps(detector, head, scenes)
    assert len(overlaps) == sum(map(len, scenes.labels))
    assert overlaps.mean() > 0.6
    pairs = match_all(predict(detector, scenes.images), scenes.labels, scenes.boxes)
    logits = mask_logits(detector, head, scenes.images, pairs)
    first = (logits[0] > 0) & scenes.masks[0][pairs[0][1]]
    union = (logits[0] > 0) | scenes.masks[0][pairs[0][1]]
    assert_close(first.sum((1, 2)) / union.sum((1, 2)), overlaps[: len(logits[0])])
    iou, _ = box_overlap(predict(detector, scenes.images[:1]).boxes[0][:, None], scenes.boxes[0])
    assert iou.amax(dim=0).min() > 0.3
