"""Synthetic scenes: exact boxes and masks, held-out digits, and no luck but the generator's."""

import pytest
import torch
from torch.testing import assert_close

from attention_lib.data.scenes import INK, SceneMaker, box_of


def seeded(number=0):
    return torch.Generator().manual_seed(number)


@pytest.fixture(scope="module")
def maker():
    return SceneMaker("train")


@pytest.fixture(scope="module")
def scenes(maker):
    return maker.draw(40, seeded())


def test_the_same_seed_draws_the_same_scenes_and_another_seed_others(maker, scenes):
    again, other = maker.draw(40, seeded()), maker.draw(40, seeded(1))
    assert torch.equal(again.images, scenes.images)
    assert all(map(torch.equal, again.boxes, scenes.boxes))
    assert not torch.equal(other.images, scenes.images)


def test_the_global_random_state_is_neither_read_nor_moved(maker, scenes):
    before = torch.get_rng_state()
    torch.manual_seed(7)
    assert torch.equal(maker.draw(40, seeded()).images, scenes.images)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_digit_image_is_in_two_parts():
    parts = [SceneMaker(part).images.flatten(1) for part in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [4000, 400, 600]
    rows = [{row.numpy().tobytes() for row in part} for part in parts]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]


def test_boxes_are_the_smallest_that_hold_the_ink(scenes):
    for boxes, masks in zip(scenes.boxes, scenes.masks, strict=True):
        for (x, y, w, h), mask in zip((boxes * 64).tolist(), masks, strict=True):
            rows, columns = mask.nonzero().T.tolist()
            assert (x - w / 2, x + w / 2) == (min(columns), max(columns) + 1)
            assert (y - h / 2, y + h / 2) == (min(rows), max(rows) + 1)


def test_every_digit_can_be_seen_where_its_mask_is(scenes):
    for image, masks in zip(scenes.images, scenes.masks, strict=True):
        for mask in masks:
            assert image[0, mask].min() > 0.55 * INK - 1e-6  # the faintest brightness


def test_numbers_and_sizes_of_digits_are_those_asked_for(maker):
    scenes = maker.draw(60, seeded(), least=2, most=4)
    assert {len(labels) for labels in scenes.labels} == {2, 3, 4}
    longer = torch.cat(scenes.boxes)[:, 2:].amax(dim=1) * 64
    assert longer.min() > 11  # thin ends fall below the limit of ink
    assert longer.max() <= 30
    assert scenes.images.min() >= 0
    assert scenes.images.max() <= 1


def test_labels_are_those_of_the_digits_drawn():
    maker = SceneMaker("train", clutter=0)
    maker.images = maker.labels[:, None, None].float().div(20).add(0.5).expand_as(maker.images)
    scenes = maker.draw(20, seeded(), most=1)
    for image, label, mask in zip(scenes.images, scenes.labels, scenes.masks, strict=True):
        # Each digit image is now one grey for its class; brightness scales it by up to 1.
        grey = image[0, mask[0]].max()
        assert grey <= label.item() / 20 + 0.5 + 1e-6
        assert grey > 0.54 * (label.item() / 20 + 0.5)


def test_digits_overlap_little(scenes):
    shares = []
    for masks in scenes.masks:
        covered = masks.sum(dim=0)
        shares.append(((covered > 1).sum() / (covered > 0).sum()).item())
    assert max(shares) < 0.25
    assert sum(shares) / len(shares) < 0.03


def test_clutter_changes_no_box_and_no_label(maker, scenes):
    plain = SceneMaker("train", clutter=0).draw(40, seeded())
    assert all(map(torch.equal, plain.boxes, scenes.boxes))
    assert all(map(torch.equal, plain.labels, scenes.labels))
    assert not torch.equal(plain.images, scenes.images)


def test_a_digit_at_its_own_size_is_copied_pixel_by_pixel(maker):
    middle = torch.full((3, 2), 14.0)
    target = torch.tensor([[14.0, 14.0], [30.0, 20.0], [50.0, 41.0]])
    drawn = maker._render(maker.images[:3], middle, target, torch.ones(3))
    for canvas, image, (x, y) in zip(drawn, maker.images[:3], target.int().tolist(), strict=True):
        assert_close(canvas[y - 14 : y + 14, x - 14 : x + 14], image, rtol=0, atol=1e-4)
        assert_close(canvas.sum(), image.sum(), rtol=1e-4, atol=0)


def test_edges_of_a_mask_by_hand():
    mask = torch.zeros(1, 5, 7, dtype=torch.bool)
    mask[0, 1, 2] = mask[0, 3, 4] = True
    assert box_of(mask).tolist() == [[2.0, 1.0, 5.0, 4.0]]


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: SceneMaker("tset"), "part must be one of .*, got 'tset'"),
        (lambda m: SceneMaker("test", side=31), "side must be at least 32, got 31"),
        (lambda m: SceneMaker("test", clutter=-1), "clutter must be at least 0, got -1"),
        (lambda m: m.draw(0, seeded()), "count must be at least 1, got 0"),
        (lambda m: m.draw(1, seeded(), least=0), "least must be at least 1, got 0"),
        (lambda m: m.draw(1, seeded(), least=3, most=2), "most must be at least least = 3, got 2"),
        (lambda m: box_of(torch.zeros(2, 3, 3, dtype=torch.bool)), "got an empty mask"),
    ],
)
def test_impossible_scenes_are_refused(maker, call, message):
    with pytest.raises(ValueError, match=message):
        call(maker)
