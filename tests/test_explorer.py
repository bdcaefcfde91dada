"""The attention explorer: its data, its errors, and what a reader sees and does in a browser."""

import base64
import json
import re

import pytest
import torch
from accessibility import violations
from playwright.sync_api import Page
from test_pages import needs_chromium

from attention_lib import causal, entropy
from attention_lib.explorer import BLOCKED, UNIT, explore, visible
from attention_lib.softmax import softmax

TOKENS = ["the", " cat", " sat", "\n"]
IMAGE = torch.ones(2, 2)
HOSTILE = [
    "<script>window.broken = 1</script>",
    "</script><img src=x onerror='window.broken = 2'>",
    "\"><svg onload='window.broken = 3'>",
    "<!--",
]


def weights_of(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return softmax(torch.randn(*shape, generator=generator, dtype=torch.float64))


def data_of(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.S)[1])


def test_data_hold_the_weights_to_one_part_in_120_000():
    weights = weights_of(2, 3, 4, 4)
    data = data_of(explore(weights, TOKENS, description="Heads.").html)
    found = torch.frombuffer(bytearray(base64.b64decode(data["weights"])), dtype=torch.uint16)
    found = found.double().reshape(data["shape"]) / UNIT
    assert data["shape"] == [2, 3, 4, 4]
    assert (found - weights).abs().max() <= 0.5 / UNIT


def test_masked_entries_are_marked_and_only_they():
    weights = torch.full((1, 4, 4), 0.25)
    data = data_of(explore(weights, TOKENS, mask=causal(), description="Causal.").html)
    found = torch.frombuffer(bytearray(base64.b64decode(data["weights"])), dtype=torch.uint16)
    blocked = (found.int() == BLOCKED).reshape(4, 4)
    assert torch.equal(blocked, ~causal().dense(4, 4))


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("cat", "cat"), (" cat", "␣cat"), ("a b ", "a b␣"), ("  ", "␣␣"), ("\n", "↵"),
        ("", "(empty)"),
        ("x\ty", "x⇥y"),
    ],
)  # fmt: skip
def test_white_space_is_visible(token, shown):
    assert visible(token) == shown


def test_names_come_from_the_shape_where_they_are_not_given():
    data = data_of(explore(weights_of(2, 3, 4, 4), TOKENS, description="Heads.").html)
    assert (data["layers"], data["heads"]) == (["0", "1"], ["0", "1", "2"])
    assert data["keys"] == data["queries"] == ["the", "␣cat", "␣sat", "↵"]


@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": torch.ones(4)}, r"weights must have shape .* got \(4,\)"),
        ({"weights": 2 * torch.eye(4)}, "weights must lie between 0 and 1"),
        ({"weights": torch.full((4, 4), torch.nan)}, "weights must lie between 0 and 1"),
        ({"queries": ["a"]}, "queries must be 4 names, got 1"),
        ({"keys": ["a"]}, "keys must be 4 names, got 1"),
        ({"heads": ["a", "b"]}, "heads must be 1 names, got 2"),
        ({"layers": ["a", "b"]}, "layers must be 1 names, got 2"),
        ({"start": (0, 1, 0)}, "start must name one of 1 heads, got 1"),
        ({"start": (0, 0, -1)}, "start must name one of 4 queries, got -1"),
        ({"image": IMAGE}, "image and grid must be given together"),
        ({"image": IMAGE, "grid": (3, 2)}, r"grid must have at most 4 patches, got \(3, 2\)"),
        ({"mask": IMAGE > 0}, r"mask must fit weights of shape \(1, 1, 4, 4\)"),
        ({"mask": torch.ones(4, 4)}, "mask must be True where a query .*, got torch.float32"),
    ],
)  # fmt: skip
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        explore(**{"weights": torch.eye(4), "queries": TOKENS, "description": "x"} | arguments)


# --- in a browser --------------------------------------------------------------------------------


def opened(page: Page, html: str, head: str = "") -> Page:
    page.mouse.move(799, 699)  # away from what is to be drawn, so that nothing is pointed at
    head = f"<head><title>x</title>{head}</head>"
    body = f"<body><main><h1>x</h1>{html}</main></body>"
    page.set_content(f"<!doctype html><html lang=en>{head}{body}</html>")
    return page


def numbers(page: Page) -> list[float | None]:
    texts = page.locator(".ae-keys .ae-number").all_inner_texts()
    return [None if text == "–" else float(text) for text in texts]


@pytest.mark.pages
@needs_chromium
class TestBrowser:
    def test_all_weights_and_entropies_are_those_of_the_library(self, blank_page):
        page = blank_page
        weights = weights_of(2, 3, 4, 4)
        opened(page, explore(weights, TOKENS, description="Heads.").html)
        groups = page.get_by_role("radiogroup")
        for layer in range(2):
            groups.nth(0).get_by_role("radio").nth(layer).click()
            for head in range(3):
                groups.nth(1).get_by_role("radio").nth(head).click()
                shown = groups.nth(1).locator(".ae-number").nth(head).inner_text()
                expected = entropy(weights[layer, head]).mean().item()
                assert float(shown) == pytest.approx(expected, abs=0.0051)
                for query in range(4):
                    groups.nth(2).get_by_role("radio").nth(query).hover()
                    row = weights[layer, head, query].tolist()
                    assert numbers(page) == pytest.approx(row, abs=0.0051)

    def test_the_mean_of_the_heads(self, blank_page):
        page = blank_page
        weights = weights_of(3, 4, 4)
        opened(page, explore(weights, TOKENS, description="Heads.", start=(0, 0, 2)).html)
        page.get_by_role("radio", name="mean").click()
        assert numbers(page) == pytest.approx(weights.mean(0)[2].tolist(), abs=0.0051)

    def test_masked_keys_say_so(self, blank_page):
        page = blank_page
        weights = softmax(torch.zeros(4, 4), causal().dense(4, 4))
        html = explore(weights, TOKENS, mask=causal(), description="x", start=(0, 0, 1)).html
        opened(page, html)
        assert numbers(page) == [0.5, 0.5, None, None]
        assert "2 masked" in page.get_by_role("status").inner_text()

    def test_the_keyboard_reaches_everything(self, blank_page):
        page = blank_page
        weights = weights_of(2, 2, 4, 4)
        opened(page, explore(weights, TOKENS, description="x").html)
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowRight")  # layer 1
        page.keyboard.press("Tab")
        page.keyboard.press("End")  # the mean
        page.keyboard.press("ArrowLeft")  # head 1
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")  # query 2
        assert numbers(page) == pytest.approx(weights[1, 1, 2].tolist(), abs=0.0051)
        said = page.get_by_role("status").inner_text()
        assert said.startswith("layer 1, head 1, query ␣sat: ")

    def test_markup_in_tokens_is_shown_and_never_run(self, blank_page):
        page = blank_page
        opened(page, explore(weights_of(4, 4), HOSTILE, description=HOSTILE[1]).html)
        assert page.evaluate("() => window.broken") is None
        assert page.locator(".ae-keys span:first-child").all_inner_texts() == HOSTILE
        assert (
            page.locator(".attention-explorer svg, .attention-explorer .ae-body img").count() == 0
        )

    def test_patches_lie_on_their_image(self, blank_page):
        page = blank_page
        weights = weights_of(2, 5, 5)
        names = ["[CLS]", *(f"row {r}, column {c}" for r in range(2) for c in range(2))]
        image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
        opened(page, explore(weights, names, image=image, grid=(2, 2), description="x").html)
        page.get_by_role("radio", name="row 1, column 0").click()
        best = max(range(5), key=lambda key: weights[0, 3, key])
        said = page.get_by_role("status").inner_text()
        assert f"query row 1, column 0: {names[best]} {weights[0, 3, best]:.2f}" in said
        assert numbers(page) == pytest.approx([weights[0, 3, 0].item()], abs=0.0051)

    @pytest.mark.parametrize("theme", ["light", "dark"])
    @pytest.mark.parametrize("width", [800, 390])
    def test_no_barrier_and_no_overflow(self, blank_page, theme, width):
        page = blank_page
        colours = "<style>body{background:#fff;color:#222}</style>"
        if theme == "dark":
            colours = "<style>body{background:#12171a;color:#d6dde0}</style>"
        page.set_viewport_size({"width": width, "height": 800})
        weights = weights_of(2, 12, 12, 12)
        html = explore(
            weights, [f"token{n}" for n in range(12)], mask=causal(), description="x"
        ).html
        opened(page, html, colours)
        assert violations(page) == []
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
