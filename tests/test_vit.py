"""The Vision Transformer: patches, positions, what it can and cannot tell apart, its config."""

import hashlib
import json
import math

import matplotlib.pyplot as plt
import pytest
import torch
from oracle import random
from torch.nn.functional import conv2d

from attention_lib.blocks import EncoderBlock
from attention_lib.data import digits, jitter, split
from attention_lib.models import digit_classifiers
from attention_lib.models.vit import ViTConfig, dinov2, resize_positions, to_patches, vit
from attention_lib.plots import photo_grid

# Image, patch, channels, heads and head width are different primes where they can be.
TINY = {"image": 15, "patch": 5, "channels": 2, "width": 21, "layers": 2, "heads": 3}


def model(**changes):
    return vit(ViTConfig(**{**TINY, "classes": 11, **changes})).eval()


def loop_patches(images, patch):
    """One pixel at a time, as the definition says."""
    batch, channels, height, width = images.shape
    found = []
    for image in images:
        for top in range(0, height, patch):
            for left in range(0, width, patch):
                found.append(
                    [
                        image[c, top + y, left + x].item()
                        for c in range(channels)
                        for y in range(patch)
                        for x in range(patch)
                    ]
                )
    shape = (batch, height // patch * (width // patch), channels * patch**2)
    return torch.tensor(found, dtype=images.dtype).reshape(shape)


# --- patches -------------------------------------------------------------------------------------


def test_patches_of_a_small_image_are_those_on_paper():
    image = torch.arange(16.0).reshape(1, 4, 4)
    assert to_patches(image, 2).tolist() == [
        [0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15],
    ]  # fmt: skip


@pytest.mark.parametrize(("height", "width"), [(6, 6), (6, 15), (15, 3)])
def test_patches_hold_the_pixels_of_their_square(generator, height, width):
    images = random(generator, 2, 5, height, width)
    assert torch.equal(to_patches(images, 3), loop_patches(images, 3))


def test_a_patch_of_the_whole_image_and_patches_of_one_pixel(generator):
    images = random(generator, 2, 3, 7, 7)
    assert torch.equal(to_patches(images, 7), images.flatten(1)[:, None])
    assert torch.equal(to_patches(images, 1), images.flatten(2).mT)


@pytest.mark.oracle
def test_projection_of_patches_is_a_convolution_with_stride(generator):
    network = model().double()
    images = random(generator, 3, 2, 15, 15)
    kernel = network.projection.weight.unflatten(1, (2, 5, 5))
    expected = conv2d(images, kernel, network.projection.bias, stride=5).flatten(2).mT
    found = network.projection(to_patches(images, 5))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.hostile
def test_patch_must_divide_both_sides(no_shape_hook):
    with pytest.raises(ValueError, match="patch must divide the height of images = 7, got 2"):
        to_patches(torch.zeros(1, 7, 8), 2)
    with pytest.raises(ValueError, match="patch must divide the width of images = 7, got 2"):
        to_patches(torch.zeros(1, 8, 7), 2)
    with pytest.raises(TypeError, match=r"a floating-point dtype, got torch\.uint8"):
        to_patches(torch.zeros(1, 8, 8, dtype=torch.uint8), 2)


# --- positions -----------------------------------------------------------------------------------


def shuffled_squares(images, patch, order):
    """The image whose squares stand in another order."""
    side = images.shape[-1] // patch
    grid = to_patches(images, patch)[:, order].unflatten(-1, (images.shape[1], patch, patch))
    grid = grid.unflatten(1, (side, side)).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(images.shape)


def test_without_positions_the_order_of_patches_does_not_matter(generator):
    images = random(generator, 2, 2, 15, 15)
    order = torch.randperm(9, generator=generator)
    moved = shuffled_squares(images, 5, order)
    network = model().double()
    torch.nn.init.normal_(network.output.weight)
    assert (network(moved) - network(images)).abs().max() > 1e-4
    network.positions.table.data.zero_()
    torch.testing.assert_close(network(moved), network(images), rtol=0, atol=1e-12)


def test_the_state_of_the_class_token_is_what_the_output_reads(generator):
    network = model().double()
    torch.nn.init.normal_(network.output.weight)
    images = random(generator, 2, 2, 15, 15)
    states = network.states(images)
    assert states.shape == (2, 10, 21)
    assert torch.equal(network(images), network.output(states[:, 0]))
    headless = model(classes=0)
    small = images.float()
    assert torch.equal(headless(small), headless.states(small)[:, 0])


def test_resized_positions_keep_the_class_token_and_the_corners_order():
    rows, columns = torch.meshgrid(torch.arange(3.0), torch.arange(3.0), indexing="ij")
    table = torch.cat([torch.full((1, 2), 9.0), torch.stack([rows, columns], -1).flatten(0, 1)])
    assert torch.allclose(resize_positions(table, 3), table, atol=1e-6)
    larger = resize_positions(table, 6)
    assert larger.shape == (37, 2)
    assert torch.equal(larger[0], table[0])
    grid = larger[1:].unflatten(0, (6, 6))
    # The first feature goes down the rows, the second along the columns, and no other way.
    assert torch.allclose(grid[:, :, 0], grid[:, :1, 0].expand(6, 6), atol=1e-5)
    assert torch.allclose(grid[:, :, 1], grid[:1, :, 1].expand(6, 6), atol=1e-5)
    down = grid[:, 0, 0]
    assert (down[1:] > down[:-1] + 0.1).all()
    # Each old place becomes two new ones, a quarter of a step to either side of it.
    assert abs(down[2:4].diff().item() - 0.66) < 0.05
    # The middle of the grid stays the middle, and both halves are treated alike.
    assert torch.allclose(down + down.flip(0), torch.full((6,), 2.0), atol=1e-5)


@pytest.mark.hostile
@pytest.mark.parametrize("rows", [0, 1, 3, 9, 38])
def test_positions_that_fill_no_square_are_refused(no_shape_hook, rows):
    with pytest.raises(ValueError, match=rf"table must have 1 \+ s² rows, got shape \({rows}, 3\)"):
        resize_positions(torch.zeros(rows, 3), 2)


@pytest.mark.hostile
def test_images_of_another_size_get_a_message_with_a_way_out(no_shape_hook):
    network = model()
    with pytest.raises(ValueError, match=r"\(4, 2, 15, 15\), got \(4, 2, 20, 20\).*resize_pos"):
        network(torch.zeros(4, 2, 20, 20))
    with pytest.raises(ValueError, match=r"\(4, 2, 15, 15\), got \(4, 3, 15, 15\)"):
        network(torch.zeros(4, 3, 15, 15))
    with pytest.raises(ValueError, match="images must have at least 4 dimensions"):
        network(torch.zeros(2, 15, 15))


# --- config and layouts --------------------------------------------------------------------------


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 4}, "patch must divide image = 15, got 4"),
        ({"patch": 0}, "patch must be at least 1, got 0"),
        ({"heads": 2}, "heads must divide width = 21, got 2"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"classes": -1}, "classes must be at least 0, got -1"),
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"eps": 0.0}, "eps must be a finite number above 0"),
    ],
)
def test_impossible_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ViTConfig(**{**TINY, **change})


def test_a_config_counts_its_patches_and_fills_the_hidden_width():
    assert (ViTConfig(**TINY).patches, ViTConfig(**TINY).hidden_width) == (9, 84)
    assert ViTConfig(**TINY, hidden=13).hidden_width == 13


def test_parameters_are_as_many_as_the_formula_says():
    width, hidden, layers, classes, pixels, patches = 21, 13, 2, 11, 50, 9
    block = 4 * (width**2 + width) + 2 * width * hidden + hidden + width + 4 * width
    start = (pixels + 1) * width + width + (1 + patches) * width
    end = 2 * width + (width + 1) * classes
    found = sum(p.numel() for p in model(hidden=hidden).parameters())
    assert found == start + layers * block + end


def test_scaled_residuals_of_zero_make_every_block_the_identity(generator):
    network = dinov2(ViTConfig(**TINY)).eval().double()
    x = random(generator, 2, 10, 21)
    block = network.blocks[0]
    assert isinstance(block, EncoderBlock)
    assert not torch.equal(block(x), x)
    for residual in (block.attention_residual, block.feed_forward_residual):
        residual.scale.data.zero_()
    assert torch.equal(block(x), x)


# --- digits --------------------------------------------------------------------------------------


def test_distortion_of_nothing_changes_nothing(generator):
    images = torch.rand(3, 1, 28, 28, generator=generator)
    same = jitter(images, generator, degrees=0, shift=0, zoom=0)
    assert torch.allclose(same, images, atol=1e-5)


def test_distortion_shifts_by_at_most_so_many_pixels_along_each_axis(generator):
    spot = torch.zeros(200, 1, 21, 31)
    spot[..., 10, 15] = 1
    moved = jitter(spot, generator, degrees=0, shift=3, zoom=0)[:, 0]
    for axis, centre in ((-1, 10), (-2, 15)):
        where = (moved.sum(axis) * torch.arange(moved.sum(axis).shape[-1])).sum(-1) - centre
        assert where.abs().max() < 3.001
        assert where.max() > 2
        assert where.min() < -2


def test_distortion_turns_and_resizes_within_its_limits(generator):
    y, x = torch.meshgrid(torch.arange(33.0) - 16, torch.arange(33.0) - 16, indexing="ij")
    disc = ((x - 9) ** 2 + y**2 < 4).float().expand(200, 1, -1, -1)

    def place(**options):
        moved = jitter(disc, generator, **options)[:, 0]
        mass = moved.sum((-2, -1))
        return (moved * x).sum((-2, -1)) / mass, (moved * y).sum((-2, -1)) / mass

    across, down = place(degrees=20, shift=0, zoom=0)
    angle = torch.atan2(down, across).mul(180 / math.pi)
    assert angle.abs().max() < 21
    assert angle.max() > 15
    assert angle.min() < -15
    across, down = place(degrees=0, shift=0, zoom=0.2)
    assert down.abs().max() < 0.05
    assert across.max() < 9 / 0.8 + 0.1
    assert across.min() > 9 / 1.2 - 0.1
    assert across.max() - across.min() > 2


def test_distortion_is_a_function_of_its_generator():
    images = torch.rand(4, 1, 9, 9)
    first, second, other = (
        jitter(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_classifiers_are_of_one_size_and_made_by_their_seed():
    sizes = {}
    for kind in digit_classifiers.KINDS:
        first, again, other = (digit_classifiers.build(kind, seed) for seed in (0, 0, 1))
        sizes[kind] = sum(p.numel() for p in first.parameters())
        x = torch.rand(2, 1, 28, 28)
        assert first(x).shape == (2, 10)
        pairs = zip(first.parameters(), again.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        pairs = zip(first.parameters(), other.parameters(), strict=True)
        assert not all(torch.equal(a, b) for a, b in pairs)
    assert abs(sizes["cnn"] / sizes["vit"] - 1) < 0.1
    assert sizes["fine"] == sizes["vit"]


def test_the_optimizer_holds_every_parameter_once():
    for kind in digit_classifiers.KINDS:
        network = digit_classifiers.build(kind, 0)
        groups = digit_classifiers.optimizer(network).param_groups
        held = [id(p) for group in groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in network.parameters())


@pytest.mark.hostile
def test_there_are_three_kinds_of_classifier_and_two_are_shipped():
    with pytest.raises(ValueError, match=r"one of \['vit', 'fine', 'cnn'\], got 'rnn'"):
        digit_classifiers.build("rnn", 0)
    with pytest.raises(ValueError, match=r"one of \['vit', 'fine'\], got 'cnn'"):
        digit_classifiers.load("cnn")


def held_out():
    """The 1,000 test digits of the fixed split, as images and labels."""
    images, labels = digits()
    rows = split(5000, (3500, 500, 1000), seed=0)[2]
    return images.unflatten(-1, (1, 28, 28))[rows], labels[rows]


@pytest.mark.parametrize(("kind", "least"), [("vit", 97), ("fine", 95)])
def test_the_shipped_classifiers_read_held_out_digits_as_their_logs_say(kind, least):
    path = digit_classifiers.WEIGHTS / f"digits_{kind}.safetensors"
    log = json.loads(path.with_suffix(".json").read_text())["runs"][0]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == log["sha256"]
    images, labels = held_out()
    network = digit_classifiers.load(kind)
    found = digit_classifiers.accuracy(network, images, labels)
    assert found == pytest.approx(log["test accuracy, weights in half precision"], abs=0.11)
    assert found >= least
    assert digit_classifiers.accuracy(network, images.flip(-1, -2), labels) < 60


def test_every_logged_run_of_the_shipped_classifier_keeps_the_budget():
    log = json.loads((digit_classifiers.WEIGHTS / "digits_vit.json").read_text())
    assert [run["seed"] for run in log["runs"]] == [0, 1, 2]
    for run in log["runs"]:
        assert run["CPU minutes on one thread"] < 3
        assert run["test accuracy"] >= 97


# --- figures -------------------------------------------------------------------------------------


def test_a_map_is_drawn_over_each_photograph_and_fills_it():
    images, maps = torch.rand(2, 3, 8, 12), torch.rand(2, 2, 3)
    figure = photo_grid(images, ["a", "b"], maps=maps, columns=3)
    panels = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title() for ax in panels] == ["a", "b"]
    for ax, image, over in zip(panels, images, maps, strict=True):
        assert torch.equal(torch.tensor(ax.images[0].get_array()), image.permute(1, 2, 0))
        assert torch.equal(torch.tensor(ax.images[1].get_array()), over)
        assert tuple(ax.images[1].get_extent()) == (-0.5, 11.5, 7.5, -0.5)
        assert ax.images[1].get_clim()[0] == 0
    shared = photo_grid(images[:1], maps=maps)
    assert sum(len(ax.images) for ax in shared.axes) == 4
    plain = photo_grid(images)
    assert sum(len(ax.images) for ax in plain.axes) == 2
    plt.close("all")


@pytest.mark.hostile
def test_photographs_and_maps_must_fit():
    with pytest.raises(ValueError, match=r"must have shape \(N, 3, Y, X\), got \(2, 1, 8, 8\)"):
        photo_grid(torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match="images must be 1 or as many as maps = 3, got 2"):
        photo_grid(torch.rand(2, 3, 8, 8), maps=torch.rand(3, 2, 2))
