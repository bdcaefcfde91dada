"""The check of a chapter's parts names what is missing or leads nowhere, on tiny pages."""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell, new_notebook, new_output
from notebook_parts import (
    Page,
    broken_links,
    citations,
    exercise_problems,
    figure_of,
    figure_problems,
    help_problems,
    problems,
)
from tiny import FIGURE, code, png, stream

EXERCISE = ":::{exercise} Title\n:label: ex-a\n\nText.\n:::"
START = ":::{solution-start} ex-a\n:class: dropdown\n:::"
END = ":::{solution-end}\n:::"
STUB = ("def f(): return None\ncheck_f(f)", "Not attempted yet.")
QUESTION = "**Q1.** Why?\n\n<details><summary>Answer</summary>\n\nSo.\n\n</details>"
SOLUTION = ("def f(): return 1\ncheck_f(f)", "Passed: all 3 cases.")


def exercise(text: str, stub: tuple[str, str], start: str, solution: tuple[str, str], end: str):
    """The four cells of an exercise."""
    return (
        new_markdown_cell(text),
        code(stub[0], stream(stub[1])),
        new_markdown_cell(start),
        code(solution[0], stream(solution[1])),
        new_markdown_cell(end),
    )


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        ((EXERCISE, STUB, START, SOLUTION, END), None),
        ((EXERCISE.replace(":label: ex-a\n", ""), STUB, START, SOLUTION, END), "label of its own"),
        ((EXERCISE, ("x = 1", ""), START, SOLUTION, END), "no cell in which the learner calls"),
        ((EXERCISE, (STUB[0], ""), START, SOLUTION, END), "must show 'not attempted'"),
        ((EXERCISE, STUB, START, (SOLUTION[0], "Case 1 of 3 fails."), END), "does not pass"),
        ((EXERCISE, STUB, START.replace("ex-a", "ex-b"), SOLUTION, END), "ex-a has no solution"),
        ((EXERCISE, STUB, START, SOLUTION, "Text."), "not closed by solution-end"),
    ],
)
def test_a_broken_exercise_is_seen(cells: tuple, problem: str | None):
    found = [entry for entry in exercise_problems(exercise(*cells)) if "exercises, at" not in entry]
    assert (found == []) if problem is None else any(problem in entry for entry in found), found


@pytest.mark.parametrize(
    ("part", "value", "problem"),
    [
        ("image", {}, "needs an alternative text"),
        ("image", {"alt": " "}, "needs an alternative text"),
        ("image", {"alt": "It rises."}, "alt says what is shown"),
        ("figure", {"name": "fig-a"}, "and a caption"),
        ("figure", {"caption": "It rises."}, "a name that begins with fig-"),
    ],
)
def test_a_figure_without_words_is_seen(part: str, value: dict, problem: str):
    cell = code("plot()", new_output("display_data", {"image/png": png(100)}), mystnb=FIGURE)
    assert list(figure_problems((cell,))) == []
    assert figure_of(cell)["name"] == "fig-line"
    cell.metadata.mystnb = nbformat.from_dict({**FIGURE, part: value})
    assert any(problem in found for found in figure_problems((cell,)))


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("[next](b.md) {ref}`there` {numref}`Figure <fig-line>` [up](#there)", []),
        ("[out](https://example.org/b.md) `[code](no.md)`", []),
        ("[next](c.md)", ["no file 'c.md'"]),
        ("[next](b.md#nowhere)", ["no label 'nowhere'"]),
        ("{ref}`nowhere`", ["no label 'nowhere'"]),
        ("{numref}`Figure <fig-none>`", ["no label 'fig-none'"]),
    ],
)
def test_a_broken_link_is_seen(text: str, broken: list[str], tmp_path: Path):
    (tmp_path / "b.md").touch()
    figure = code("plot()", mystnb=FIGURE)
    pages = [Page("a.md", text, (figure,)), Page("b.md", "(there)=\n# There")]
    assert list(broken_links(pages[0], pages, tmp_path)) == broken


def test_citations_are_read_from_text_and_captions_but_not_from_code():
    caption = {"figure": {"caption": "From {cite:p}`c`.", "name": "fig-a"}}
    cells = [new_markdown_cell("{cite:t}`a, b` ``{cite:p}`no` ``"), code("plot()", mystnb=caption)]
    assert citations(Page.of_notebook("a", new_notebook(cells=cells))) == ["a", "b", "c"]


def chapter(**replaced: str) -> Page:
    """The markdown of a chapter that lacks nothing but words, code and exercises."""
    parts = {
        "title": "# Title",
        "box": ":::{admonition} In this chapter\nx\n:::",
        "body": "## One\n### Two",
        "exercises": "## Exercises",
        "questions": "## Questions\n\n" + "\n\n".join(QUESTION for _ in range(5)),
        "summary": "## Summary\n| key | 键 |",
        "reading": "## Further reading\n{cite:t}`a` {cite:t}`b`",
    } | replaced
    cells = [new_markdown_cell(text) for text in parts.values()]
    return Page.of_notebook("07_a", new_notebook(cells=cells))


@pytest.mark.parametrize(
    ("part", "text", "problem"),
    [
        ("title", "Title", "one heading of level 1"),
        ("box", "", "no box 'In this chapter'"),
        ("body", "## One\n#### Two", "'Two' skips a level"),
        ("body", "# One", "one heading of level 1"),
        ("exercises", "", "must stand in this order"),
        ("questions", "", "must stand in this order"),
        ("questions", f"## Questions\n\n{QUESTION}", "1 questions with an answer, must be 5"),
        ("summary", "## Summary", "no table of terms"),
        ("reading", "## Further reading\n{cite:t}`a`", "fewer than 2 citations"),
    ],
)
def test_a_missing_part_is_seen(part: str, text: str, problem: str):
    present = problems(chapter())
    missing = [entry for entry in problems(chapter(**{part: text})) if entry not in present]
    assert any(problem in entry for entry in missing), missing


def test_a_chapter_too_short_and_a_cell_too_long_are_seen():
    cells = [new_markdown_cell("# Title"), code("x = 1\n" * 31)]
    found = problems(Page.of_notebook("07_a", new_notebook(cells=cells)))
    for problem in ("1 words of prose", "1 code cells", "31 lines", "0 exercises"):
        assert any(problem in entry for entry in found), (problem, found)


def test_a_notebook_without_a_number_needs_no_parts_of_a_chapter():
    cells = [new_markdown_cell("# Clinic"), *(code("x = 1") for _ in range(12))]
    assert problems(Page.of_notebook("clinic", new_notebook(cells=cells))) == []
    cells[0] = new_markdown_cell(f"# Bugs\n\n{EXERCISE}")
    assert any(
        "4 are needed" in p for p in problems(Page.of_notebook("b", new_notebook(cells=cells)))
    )


LEVEL = "*easy · 5 minutes*"
HINTS = "\n\n".join(f"<details><summary>Hint {n}</summary>\n\nx\n\n</details>" for n in (1, 2))


@pytest.mark.parametrize(
    ("level", "hints", "problem"),
    [
        (LEVEL, HINTS, None),
        ("*hard · 60 minutes*", HINTS + "\n\n" + HINTS, None),
        ("easy, 5 minutes", HINTS, "ex-a needs one line such as"),
        ("*easy · 0 minutes*", HINTS, "ex-a needs one line such as"),
        (LEVEL, HINTS.replace("Hint 2", "More"), "ex-a has 1 hints"),
        (LEVEL, "", "ex-a has 0 hints"),
    ],
)
def test_an_exercise_without_help_is_seen(level: str, hints: str, problem: str | None):
    text = EXERCISE.replace("Text.", f"{level}\n\nText.\n\n{hints}\n")
    found = list(help_problems(Page("a", text)))
    assert (found == []) if problem is None else (len(found) == 1 and problem in found[0]), found
