"""Every number in the prose of a chapter was printed by a cell above it."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebook_form import notebooks
from notebook_prose import prose, unprinted_numbers, words

NOTEBOOKS = {path.stem: path for path in notebooks()}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_number_in_the_prose_was_printed_above(name: str):
    missing = unprinted_numbers(nbformat.read(NOTEBOOKS[name], 4))
    assert [f"{number.token}: ... {number.context} ..." for number in missing] == []


# The check itself, on tiny notebooks.


def unprinted(*parts: str | tuple[str]) -> list[str]:
    """Unprinted tokens of a notebook of markdown cells (text) and code cells (their output)."""
    cells = []
    for part in parts:
        if isinstance(part, str):
            cells.append(new_markdown_cell(part))
        else:
            cells.append(new_code_cell(outputs=[new_output("stream", text=part[0])]))
    return [number.token for number in unprinted_numbers(new_notebook(cells=cells))]


@pytest.mark.parametrize(
    "text",
    [
        "is 0.43 here",
        "is 0.43.",
        "(0.43)",
        "**0.43**",
        "0.43, 17 and -2",
        "4,000 digits",
        "4000 digits",
        "−2 and +17",
        "95.3 %",
        "95.3% and 95.3 percent",
        "1e-6",
    ],
)
def test_a_printed_number_is_accepted(text: str):
    assert unprinted(("0.43 17 -2 4000 95.3 % 1e-6",), text) == []


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("is 0.44 here", "0.44"),
        ("is 0.430 here", "0.430"),
        ("is 43 here", "43"),
        ("is -0.43 here", "-0.43"),
        ("takes 7 steps", "7"),
        ("4,001 digits", "4001"),
        ("10x faster", "10"),
        ("is 0.43 %", "0.43"),
        ("64-dimensional", "64"),
        ("in 1997 steps", "1997"),
        ("- item 7", "7"),
        ("| 7 |", "7"),
        ("## Seven is 7", "7"),
        ("> 7", "7"),
        (":::{exercise} Find 7\n:label: ex-1\n:::", "7"),
        ("``` \n` 7", "7"),
    ],
)
def test_a_number_that_no_cell_printed_is_named(text: str, token: str):
    assert unprinted(("0.43 17",), text) == [token]


@pytest.mark.parametrize(
    "text",
    [
        "$n = 4$ and `n = 5`, $$\nx = 6\n$$",
        "```python\nx = 7\n```",
        "1-NN, 3x3, 28x28, W2, GPT-2, float32, 2-D",
        "equation 8, section 3.1, Chapters 4 and 5, exercise 3, pages 10-12, equations (1) to (3)",
        "{cite:t}`pearson1895` did it in 1901; {numref}`fig-7`",
        "[text](page7.md) <https://example.org/7> https://example.org/8",
        "1. first\n2. second",
        ":::{exercise} Title\n:label: ex-7\n:width: 70%\n:::",
        "<!-- 7 -->",
        "(eq-7)=\n",
        "# 4 · Title",
    ],
)
def test_given_constants_names_and_references_are_exempt(text: str):
    assert unprinted(text) == []


def test_a_number_must_be_printed_before_it_is_told():
    assert unprinted("It is 0.43.", ("0.43",)) == ["0.43"]


def test_a_number_may_come_from_the_section_before_but_not_from_further_up():
    assert unprinted("## A", ("0.43",), "## B\n\nIt is 0.43.") == []
    assert unprinted("## A", ("0.43",), "## B", "### C", "It is 0.43.") == []
    assert unprinted("## A", ("0.43",), "## B", "## C\n\nIt is 0.43.") == ["0.43"]


def test_the_summary_may_quote_every_section():
    sections = ("## A", ("0.43",), "## B", "## C")
    assert unprinted(*sections, "## Summary\n\nIt was 0.43.") == []
    assert unprinted(*sections, "## Summary\n\nIt was 0.44.") == ["0.44"]
    assert unprinted(*sections, "## Summary", "## Further reading\n\n0.43") == ["0.43"]


def test_errors_and_results_count_as_output_but_the_size_of_a_figure_does_not():
    for output, missing in (
        (new_output("execute_result", {"text/plain": "640"}), []),
        (new_output("error", ename="ValueError", evalue="got 640"), []),
        (new_output("display_data", {"text/plain": "<640x480>", "image/png": ""}), ["640"]),
    ):
        notebook = new_notebook(cells=[new_code_cell(outputs=[output]), new_markdown_cell("640")])
        assert [number.token for number in unprinted_numbers(notebook)] == missing


def test_blanking_keeps_positions_and_words_are_counted_without_code():
    text = "One `two` $three$ four.\n\n```\nfive\n```\nSix's seven-eight."
    assert len(prose(text)) == len(text)
    assert words([new_markdown_cell(text)]) == 4
    folded = "<details><summary>Hint 1</summary>\n\nnot counted\n\n</details>"
    assert words([new_markdown_cell(f"{text}\n\n{folded}")]) == 4


def test_what_is_folded_away_must_be_printed_too_but_its_headings_need_not():
    text = "*easy · 15 minutes*\n\n<details><summary>Hint 7</summary>\n\n{}\n\n</details>"
    for inside, missing in (("one", []), ("It is 640.", ["640"])):
        notebook = new_notebook(cells=[new_markdown_cell(text.format(inside))])
        assert [number.token for number in unprinted_numbers(notebook)] == missing
