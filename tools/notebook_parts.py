"""The parts that a chapter must have, and the names and links in it that must lead somewhere."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from nbformat import NotebookNode
from notebook_form import CHAPTERS, text_of
from notebook_prose import NOT_PROSE, headings, words
from pybtex.database import parse_file

MAX_CELL_LINES = 30
CODE_CELLS = range(12, 48)
WORDS = range(1_500, 4_501)
MIN_EXERCISES = 4
SECTIONS = ["Exercises", "Questions", "Summary", "Further reading"]
MIN_HINTS = 2
QUESTIONS = 5
MIN_READINGS = 2

ROLE_OR_CODE = re.compile(r"(\{[\w:-]+\}`[^`]*`)|(`+)(?!`).+?(?<!`)\2(?!`)")
CITATION = re.compile(r"\{cite(?::\w+)?\}`([^`]+)`")
EXERCISE = re.compile(
    r"^:{3,}\{(?P<kind>exercise|solution-start|solution-end)\} *(?P<argument>[^\n]*)"
    r"(?P<options>(?:\n:[\w-]+:[^\n]*)*)",
    re.M,
)
EXERCISE_BLOCK = re.compile(r"^(:{3,})\{exercise\}.*?^\1$", re.M | re.S)
LEVEL = re.compile(r"^\*(?:easy|medium|hard) · [1-9]\d* minutes\*$", re.M)
HINT = re.compile(r"^<details><summary>Hint \w</summary>\n\n.+?\n\n</details>$", re.M | re.S)
ANSWER = re.compile(
    r"^\*\*Q\d\.\*\* .+?\n\n<details><summary>Answer</summary>\n\n.+?\n\n</details>$", re.M | re.S
)
LABEL_OPTION = re.compile(r"^:(?:label|name): *(\S+)", re.M)
TARGET = re.compile(r"^\(([\w:-]+)\)=$|\$\$ *\(([\w:-]+)\) *$", re.M)
REFERENCE = re.compile(r"\{(?:ref|numref|eq)\}`(?:[^`<]*<)?([^`>]+?)>?`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
BOX = re.compile(r"^:{3,}\{admonition\} In this chapter", re.M)
TABLE_WITH_CHINESE = re.compile(r"^\|.*[\u4e00-\u9fff].*\|\s*$", re.M)


@dataclass(frozen=True)
class Page:
    """A page of the book: its file name, its markdown, and its cells (none for a .md file)."""

    name: str
    markdown: str
    cells: tuple[NotebookNode, ...] = ()

    @classmethod
    def of_notebook(cls, name: str, notebook: NotebookNode) -> "Page":
        """The page of a notebook; captions of figures count as its text."""
        texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
        texts += [figure.get("caption", "") for figure in map(figure_of, notebook.cells)]
        return cls(name, "\n\n".join(texts), tuple(notebook.cells))

    @property
    def text(self) -> str:
        """The markdown without code."""
        return ROLE_OR_CODE.sub(r"\1", NOT_PROSE[0].sub("", self.markdown))


def figure_of(cell: NotebookNode) -> dict:
    """The figure that a cell's metadata describe; empty if there is none."""
    return cell.metadata.get("mystnb", {}).get("figure", {})


def citations(page: Page) -> list[str]:
    """The keys that a page cites."""
    return [key.strip() for keys in CITATION.findall(page.text) for key in keys.split(",")]


def labels(page: Page) -> list[str]:
    """Everything on a page that a reference can name."""
    found = LABEL_OPTION.findall(page.markdown)
    found += [name or equation for name, equation in TARGET.findall(page.markdown)]
    return found + [figure["name"] for figure in map(figure_of, page.cells) if figure.get("name")]


def bibliography() -> set[str]:
    """The keys of the bibliography."""
    return set(parse_file(CHAPTERS / "references.bib").entries)


def broken_links(page: Page, pages: list[Page], folder: Path = CHAPTERS) -> Iterator[str]:
    """Links and references of a page that lead nowhere."""
    known = {label for other in pages for label in labels(other)}
    for label in REFERENCE.findall(page.text):
        if label not in known:
            yield f"no label {label!r}"
    for target in LINK.findall(page.text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        if path and not (folder / path).is_file():
            yield f"no file {path!r}"
        if anchor and anchor not in known:
            yield f"no label {anchor!r}"


def _heading_problems(cells: tuple[NotebookNode, ...]) -> Iterator[str]:
    markdown = [cell for cell in cells if cell.cell_type == "markdown"]
    levels = [(level, title) for cell in markdown for level, title, _ in headings(cell.source)]
    if [level for level, _ in levels].count(1) != 1 or levels[0][0] != 1:
        yield "the page must begin with its one heading of level 1"
    for (before, _), (level, title) in pairwise(levels):
        if level > before + 1:
            yield f"the heading {title!r} skips a level"


def section(page: Page, title: str) -> str:
    """The text below a level-2 heading, up to the next one."""
    parts = re.split(r"^## +", page.markdown, flags=re.M)
    return next((part for part in parts if part.split("\n")[0].strip() == title), "")


def help_problems(page: Page) -> Iterator[str]:
    """Exercises without level, time or hints."""
    for exercise in EXERCISE_BLOCK.finditer(page.markdown):
        label = (LABEL_OPTION.findall(exercise[0]) or ["an exercise"])[0]
        if len(LEVEL.findall(exercise[0])) != 1:
            yield f"{label} needs one line such as '*easy · 5 minutes*'"
        if (count := len(HINT.findall(exercise[0]))) < MIN_HINTS:
            yield f"{label} has {count} hints, at least {MIN_HINTS} are needed"


def exercise_problems(cells: tuple[NotebookNode, ...]) -> Iterator[str]:
    """What is wrong with the exercises: each has a label, a place for the answer, a solution.

    Between an exercise and its solution stands a code cell for the learner, except where the
    solution calls no check (an open question); a stub that calls a check says so when it is empty,
    or shows the failing case of a function that is to be repaired.
    """
    exercises: list[str] = []
    stubs: dict[str, list[NotebookNode]] = {}
    solutions: dict[str, list[NotebookNode]] = {}
    reading: list[NotebookNode] | None = None
    for cell in cells:
        if cell.cell_type == "code":
            if reading is not None:
                reading.append(cell)
            continue
        for found in EXERCISE.finditer(cell.source):
            if found["kind"] == "exercise":
                exercises.append((LABEL_OPTION.findall(found["options"]) or [""])[0])
                reading = stubs.setdefault(exercises[-1], [])
            elif found["kind"] == "solution-start":
                reading = solutions.setdefault(found["argument"], [])
            else:
                reading = None
    if len(exercises) < MIN_EXERCISES:
        yield f"{len(exercises)} exercises, at least {MIN_EXERCISES} are needed"
    if "" in exercises or len(set(exercises)) != len(exercises):
        yield f"every exercise needs a label of its own, got {exercises}"
    for label in set(solutions) - set(exercises):
        yield f"a solution for no exercise: {label!r}"
    if reading is not None:
        yield "a solution is not closed by solution-end"
    for label in exercises:
        if label not in solutions:
            yield f"{label} has no solution"
            continue
        shown = "".join(text_of(output) for cell in stubs[label] for output in cell.outputs)
        answers = [text_of(output) for cell in solutions[label] for output in cell.outputs]
        checked = any("check_" in cell.source for cell in solutions[label])
        if checked and not any("check_" in cell.source for cell in stubs[label]):
            yield f"{label} has no cell in which the learner calls the check"
        if checked and not re.search(r"not attempted|fails\.", shown, re.I):
            yield f"the stub of {label} must show 'not attempted' or a failing case, got {shown!r}"
        if checked and not any(answer.startswith("Passed") for answer in answers):
            yield f"the solution of {label} does not pass its check"


def figure_problems(cells: tuple[NotebookNode, ...]) -> Iterator[str]:
    """Figures without alternative text, caption or name."""
    for cell in cells:
        outputs = cell.get("outputs", [])
        if not any("image/png" in output.get("data", {}) for output in outputs):
            continue
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "").strip()
        figure = figure_of(cell)
        if not alt or not figure.get("caption", "").strip():
            yield f"cell {cell.id}: a figure needs an alternative text and a caption"
        elif alt == figure["caption"].strip():
            yield f"cell {cell.id}: alt says what is shown, the caption what was found"
        if not str(figure.get("name", "")).startswith("fig-"):
            yield f"cell {cell.id}: a figure needs a name that begins with fig-"


def cell_problems(cells: tuple[NotebookNode, ...]) -> Iterator[str]:
    """Too few or too many code cells, and cells longer than a screen."""
    code = [cell for cell in cells if cell.cell_type == "code"]
    if len(code) not in CODE_CELLS:
        yield f"{len(code)} code cells, must be {CODE_CELLS[0]}-{CODE_CELLS[-1]}"
    for cell in code:
        if (lines := len(cell.source.splitlines())) > MAX_CELL_LINES:
            yield f"cell {cell.id} has {lines} lines, at most {MAX_CELL_LINES} are allowed"


def chapter_problems(page: Page) -> Iterator[str]:
    """Every required part that a chapter lacks."""
    titles = re.findall(r"^## +(.*?) *$", page.markdown, flags=re.M)
    if [title for title in titles if title in SECTIONS] != SECTIONS:
        yield f"the sections {SECTIONS} must stand in this order, got {titles}"
    if not BOX.search(re.split(r"^## ", page.markdown, flags=re.M)[0]):
        yield "no box 'In this chapter' before the first section"
    if (count := len(ANSWER.findall(section(page, "Questions")))) != QUESTIONS:
        yield f"{count} questions with an answer, must be {QUESTIONS}"
    if not TABLE_WITH_CHINESE.search(section(page, "Summary")):
        yield "no table of terms with Chinese in the summary"
    if len(CITATION.findall(section(page, "Further reading"))) < MIN_READINGS:
        yield f"fewer than {MIN_READINGS} citations under 'Further reading'"
    count = words(cell for cell in page.cells if not cell.source.startswith("## Questions"))
    if count not in WORDS:
        yield f"{count} words of prose, must be {WORDS[0]}-{WORDS[-1]}"


def problems(page: Page) -> list[str]:
    """Everything that a notebook lacks; one whose name begins with a number is a chapter."""
    found = [*_heading_problems(page.cells), *cell_problems(page.cells)]
    found += figure_problems(page.cells)
    is_chapter = page.name[0].isdigit()
    if is_chapter or EXERCISE.search(page.markdown):
        found += [*exercise_problems(page.cells), *help_problems(page)]
    return found + (list(chapter_problems(page)) if is_chapter else [])
