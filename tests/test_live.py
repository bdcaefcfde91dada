"""The small computations with sliders: the numbers in the page are those of the library."""

import math
import re

import pytest
import torch
from accessibility import violations
from playwright.sync_api import Page
from test_explorer import opened
from test_pages import needs_chromium

from attention_lib import entropy, live, sliding_window
from attention_lib.masks import causal
from attention_lib.positions import Rotary
from attention_lib.softmax import softmax

SCORES = [2.0, 1.0, 0.5, -1.0]


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def slide(page: Page, number: int, value: str) -> None:
    """Move a slider to a value with the keyboard, as a reader would."""
    slider = page.get_by_role("slider").nth(number)
    slider.press("Home")
    for _ in range(int(slider.get_attribute("max"))):
        if slider.get_attribute("aria-valuetext") == value:
            return
        slider.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == value


def rows(page: Page) -> list[list[float]]:
    """The numbers beside the bars, one list for each row of bars."""
    texts = [row.locator(".al-value").all_inner_texts() for row in page.locator(".al-rows").all()]
    return [[float(text) for text in row] for row in texts]


def said(page: Page) -> list[float]:
    """All numbers of the sentence below."""
    text = page.locator("output").inner_text().replace(",", "")
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]


@pytest.mark.pages
@needs_chromium
@pytest.mark.parametrize("temperature", [0.05, 1, 20])
def test_temperature(blank_page, temperature):
    page = blank_page
    opened(page, live.temperature(SCORES, "abcd", description="Try it.").html)
    slide(page, 0, f"{temperature:g}")
    weights = softmax(torch.tensor(SCORES, dtype=torch.float64), temperature=temperature)
    assert rows(page) == [pytest.approx(weights.tolist(), abs=6e-4)]
    assert said(page) == pytest.approx([entropy(weights).item(), math.log(4)], abs=6e-4)


@pytest.mark.pages
@needs_chromium
@pytest.mark.parametrize("width", [1, 16, 64])
def test_width(blank_page, width):
    page = blank_page
    query, keys = normal(64), normal(5, 64)
    opened(page, live.width(query, keys, description="Try it.").html)
    slide(page, 0, str(width))
    scores = keys[:, :width] @ query[:width]
    plain, scaled = softmax(scores), softmax(scores, temperature=width**0.5)
    assert rows(page) == [pytest.approx(w.tolist(), abs=6e-4) for w in (plain, scaled)]
    size = scores.square().mean().sqrt().item()
    expected = [size, width**0.5, plain.max().item(), scaled.max().item()]
    assert said(page) == pytest.approx(expected, abs=6e-3)


@pytest.mark.pages
@needs_chromium
@pytest.mark.parametrize(("t", "s"), [(0, 0), (5, 2), (31, 28), (2, 30)])
def test_rotary(blank_page, t, s):
    page = blank_page
    query, key = normal(2, 8)
    opened(page, live.rotary(query, key, description="Try it.").html)
    slide(page, 0, str(t))
    slide(page, 1, str(s))
    turned, _ = Rotary(8).rotate(query[None], key[None], offset=t)
    _, other = Rotary(8).rotate(query[None], key[None], offset=s)
    parts = (turned * other).reshape(2, 4).sum(0)
    assert rows(page) == [pytest.approx(parts.tolist(), abs=6e-4)]
    assert said(page) == pytest.approx([t - s, parts.sum().item()], abs=6e-4)


@pytest.mark.pages
@needs_chromium
@pytest.mark.parametrize(("length", "window"), [(16, 64), (128, 32)])
def test_window(blank_page, length, window):
    page = blank_page
    opened(page, live.window(description="Try it.").html)
    slide(page, 0, str(length))
    slide(page, 1, str(window))
    inside = sliding_window(window - 1).dense(length, length).sum().item()
    before = causal().dense(length, length).sum().item()
    assert said(page) == pytest.approx([inside, before, before / inside], abs=0.06)
    assert rows(page) == [pytest.approx([1, before / length**2, inside / length**2], abs=6e-4)]


@pytest.mark.pages
@needs_chromium
@pytest.mark.parametrize("size", [800, 390])
def test_no_barrier_and_no_overflow(blank_page, size):
    page = blank_page
    page.set_viewport_size({"width": size, "height": 800})
    parts = [
        live.temperature(SCORES, ["<b>one</b>", "two", "three", "four"], description="<i>x</i>"),
        live.rotary(*normal(2, 8), description="y"),
    ]
    opened(page, "".join(part.html for part in parts))
    assert page.locator("main b b, main i").count() == 0
    assert violations(page) == []
    assert page.evaluate("() => document.documentElement.scrollWidth") <= size


@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: live.temperature(SCORES, "abc", description=""), "labels must be 4 names, got 3"),
        (lambda: live.width(normal(4), normal(3, 5), description=""), r"got \(4,\) and \(3, 5\)"),
        (lambda: live.rotary(normal(3), normal(3), description=""), "one even width"),
        (
            lambda: live.rotary(normal(4), normal(2), description=""),
            r"got shapes \(4,\) and \(2,\)",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
