"""Every notebook is in normal form and has its parts, and its links and citations lead somewhere.

That these checks can fail is shown by test_notebook_form.py and test_notebook_parts.py.
"""

import nbformat
import pytest
from notebook_form import CHAPTERS, departures, loads, notebooks
from notebook_parts import (
    Page,
    bibliography,
    broken_links,
    citations,
    labels,
    problems,
)

NOTEBOOKS = {path.stem: path for path in notebooks()}


def book() -> list[Page]:
    """Every page of the book."""
    pages = [Page(path.name, path.read_text()) for path in sorted(CHAPTERS.glob("*.md"))]
    for path in NOTEBOOKS.values():
        pages.append(Page.of_notebook(path.name, nbformat.read(path, 4)))
    return pages


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_in_normal_form(name: str):
    text = NOTEBOOKS[name].read_text()
    assert departures(loads(text), text) == []


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_chapter_has_its_parts(name: str):
    assert problems(Page.of_notebook(name, nbformat.read(NOTEBOOKS[name], 4))) == []


def test_every_link_and_reference_leads_somewhere():
    pages = book()
    assert [(page.name, link) for page in pages for link in broken_links(page, pages)] == []


def test_citations_and_bibliography_agree():
    cited = {key for page in book() for key in citations(page)}
    assert cited == bibliography()


def test_names_are_unique_in_the_book():
    names = [name for page in book() for name in labels(page)]
    assert sorted(names) == sorted(set(names))
