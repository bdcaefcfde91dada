"""Diagrams are valid SVG, describe themselves, and the stored ones are what the code draws."""

import xml.etree.ElementTree as ET

import pytest
from figures import FIGURES, FOLDER

from attention_lib.diagrams import (
    Diagram,
    attention_diagram,
    book_map,
    fourth_map,
    multi_head_diagram,
    second_map,
    third_map,
)

DRAWINGS = [attention_diagram, multi_head_diagram, book_map, second_map, third_map, fourth_map]


@pytest.mark.parametrize("draw", DRAWINGS)
def test_drawing_is_well_formed_and_described(draw):
    root = ET.fromstring(draw()._repr_svg_())
    assert root.tag.endswith("svg")
    assert root.find("{*}title").text
    assert root.get("role") == "img"


@pytest.mark.parametrize("draw", DRAWINGS)
def test_boxes_lie_inside_the_card_and_do_not_overlap(draw):
    drawing = draw()
    boxes = list(drawing.places.values())
    for x, y, width, height in boxes:
        assert x - width / 2 >= 0
        assert x + width / 2 <= drawing.width
        assert y - height / 2 >= 0
        assert y + height / 2 <= drawing.height
    for i, (x1, y1, w1, h1) in enumerate(boxes):
        for x2, y2, w2, h2 in boxes[:i]:
            assert abs(x1 - x2) >= (w1 + w2) / 2 or abs(y1 - y2) >= (h1 + h2) / 2


def test_markup_in_a_label_is_shown_and_not_executed():
    drawing = Diagram(480, 100, "<script>alert(1)</script>")
    drawing.box("a", "<b>bold</b>", "a & b", at=(240, 50))
    root = ET.fromstring(drawing._repr_svg_())
    assert [node.text for node in root.findall(".//{*}text")] == ["<b>bold</b>", "a & b"]
    assert not root.findall(".//{*}script")


@pytest.mark.parametrize("name", FIGURES)
def test_stored_figure_is_what_the_code_draws(name):
    assert (FOLDER / name).read_text() == FIGURES[name]()._repr_svg_() + "\n"
