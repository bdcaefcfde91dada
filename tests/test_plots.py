"""Figures show what they are given: labels, limits and data. (nbval does not compare pictures.)"""

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from attention_lib.masks import causal, padding
from attention_lib.plots import image_grid, mask_map, scores_map, use_style, weights_map


@pytest.fixture(autouse=True)
def closed_figures():
    with matplotlib.rc_context():
        yield
    plt.close("all")


def drawn(ax):
    return ax.collections[0].get_array().reshape(-1)


def test_weights_are_drawn_on_a_scale_from_0_to_1():
    weights = torch.tensor([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]])
    ax = weights_map(weights, ["a", "b", "c"], ["x", "y"])
    np.testing.assert_allclose(drawn(ax), weights.reshape(-1))
    assert ax.collections[0].get_clim() == (0, 1)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b", "c"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["x", "y"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("key", "query")


def test_first_query_is_drawn_at_the_top():
    ax = weights_map(torch.eye(3), ["a", "b", "c"])
    bottom, top = ax.get_ylim()
    assert bottom > top


def test_scores_are_drawn_on_a_scale_around_0():
    ax = scores_map(torch.tensor([[3.0, -5.0]]))
    assert ax.collections[0].get_clim() == (-5, 5)
    ax = scores_map(torch.tensor([[3.0, -5.0]]), limit=1)
    assert ax.collections[0].get_clim() == (-1, 1)


def test_a_square_map_labels_its_keys_like_its_queries():
    ax = scores_map(torch.eye(2), ["a", "b"])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b"]


def test_numbers_can_be_read_on_every_colour():
    ax = scores_map(torch.linspace(-1, 1, 9).reshape(3, 3), limit=1)
    for text, colour in zip(ax.texts, ax.collections[0].get_facecolors(), strict=True):
        assert contrast(matplotlib.colors.to_rgb(text.get_color()), colour[:3]) >= 4.5


def contrast(first, second):
    """WCAG 2 contrast ratio of two sRGB colours."""
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_images_are_drawn_in_order_with_titles():
    images = torch.rand(5, 784, generator=torch.Generator().manual_seed(0))
    figure = image_grid(images, list("abcde"), columns=3)
    axes = [ax for ax in figure.axes if ax.images]
    assert len(axes) == 5
    np.testing.assert_allclose(axes[4].images[0].get_array(), images[4].reshape(28, 28))
    assert axes[4].get_title() == "e"


def test_images_need_not_be_square():
    figure = image_grid(torch.zeros(2, 14 * 28), columns=2, height=14)
    assert figure.axes[0].images[0].get_array().shape == (14, 28)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3, 4),), r"\(Tq, Tk\), got shape \(2, 3, 4\)"),
        ((torch.zeros(2, 3), ["a"]), "queries must have 2 labels, got 1"),
        ((torch.zeros(2, 3), ["a", "b"], ["x"]), "keys must have 3 labels, got 1"),
    ],
)
def test_bad_maps_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        weights_map(*arguments)


def test_bad_images_are_refused():
    with pytest.raises(ValueError, match=r"\(N, pixels\), got \(28, 28, 1\)"):
        image_grid(torch.zeros(28, 28, 1))


def test_style_makes_figures_that_fit_a_phone():
    use_style()
    assert plt.rcParams["figure.figsize"] == [5.0, 3.4]
    assert plt.rcParams["savefig.dpi"] == 100


def test_a_mask_is_drawn_dark_where_it_allows():
    ax = mask_map(causal(), ["a", "b", "c"])
    np.testing.assert_array_equal(drawn(ax), np.tril(np.ones((3, 3))).reshape(-1))
    assert ax.get_title() == "causal"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b", "c"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b", "c"]
    assert not ax.texts  # no numbers
    allowed, blocked = ax.collections[0].get_facecolors()[[3, 1]]
    assert luminance(allowed[:3]) < 0.3 < 0.8 < luminance(blocked[:3])


def test_a_mask_is_drawn_for_a_number_of_queries_and_keys():
    ax = mask_map(causal(), 2, 5, title="two new queries")
    np.testing.assert_array_equal(drawn(ax).reshape(2, 5), np.tri(2, 5, 3))
    assert ax.get_title() == "two new queries"


def test_a_matrix_is_drawn_as_a_mask_without_a_name():
    matrix = torch.tensor([[True, False, True]])
    ax = mask_map(matrix[None], ["q"], ["a", "b", "c"])
    np.testing.assert_array_equal(drawn(ax), [1, 0, 1])
    assert ax.get_title() == ""
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((padding(torch.tensor([1, 2])), 3), r"\(Tq, Tk\), got shape \(2, 3, 3\)"),
        ((torch.ones(2, 3).bool(), ["a"], 3), "queries must have 2 labels, got 1"),
        ((torch.ones(2, 3).bool(), 2, ["a"]), "keys must have 3 labels, got 1"),
    ],
)
def test_masks_that_are_not_one_matrix_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        mask_map(*arguments)
