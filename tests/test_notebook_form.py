"""The check of the normal form names each departure, on tiny notebooks; and the tools obey it."""

import copy
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook, new_output
from notebook_form import departures, dumps, first_cell, loads, normalise
from notebooks import execute_file, from_text, to_text
from tiny import FIGURE, code, png, stream


def tiny(*cells: NotebookNode) -> NotebookNode:
    """A notebook in normal form: the first cell and the given ones."""
    notebook = new_notebook(cells=[code(first_cell(), tags=["hide-input"]), *cells])
    in_order = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(in_order, start=1):
        cell.execution_count = count
    return normalise(notebook)


def healthy() -> NotebookNode:
    """A notebook that prints, draws and raises as it may."""
    figure = new_output("display_data", {"image/png": png(100), "text/plain": "<Figure>"})
    return tiny(
        new_markdown_cell("# Title"),
        code("print(1)", stream("1\n")),
        code("x = 1"),
        code("plot(x)", figure, mystnb=FIGURE),
        code("1 / 0", new_output("error", ename="E", evalue="v"), tags=["raises-exception"]),
    )


def test_a_healthy_notebook_has_no_departure():
    assert departures(healthy()) == []


def test_normalising_twice_changes_nothing():
    notebook = healthy()
    assert dumps(normalise(notebook)) == dumps(notebook)


@pytest.mark.parametrize(
    ("source", "shows"),
    [
        ("print(1)", True),
        ("for i in x:\n    print(i)", True),
        ("def f():\n    print(1)\nf()", True),
        ("def f():\n    print(1)\ndef g():\n    f()\nfor i in x:\n    g()", True),
        ("x = 1\nx", True),
        ("x = 1\nx  # the value", True),
        ("x.plot()", True),
        ("x = 1", False),
        ("def f():\n    print(1)", False),
        ("import os", False),
        ("_ = x.plot()", False),
        ("use_style()", False),
    ],
)
def test_a_missing_output_is_seen(source: str, shows: bool):
    found = departures(tiny(code(source)))
    assert [("stored output is missing" in departure) for departure in found] == [True] * shows


def test_every_stripped_output_turns_the_notebook_red():
    notebook = healthy()
    for position, cell in enumerate(notebook.cells):
        if cell.get("outputs"):
            stripped = copy.deepcopy(notebook)
            stripped.cells[position].outputs = []
            assert departures(stripped) == [
                f"cell {position} ({cell.id}): its stored output is missing"
            ]


def with_metadata(**metadata) -> NotebookNode:
    return tiny(code("print(1)", stream("1\n"), **metadata))


def with_output(*outputs: NotebookNode, source: str = "print(1)") -> NotebookNode:
    return tiny(code(source, *outputs))


def changed(**fields) -> NotebookNode:
    """A healthy notebook whose printing cell has other fields."""
    notebook = with_metadata()
    notebook.cells[1].update(nbformat.from_dict(fields))
    return notebook


@pytest.mark.parametrize(
    ("notebook", "departure"),
    [
        (changed(execution_count=7), "execution counts are not 1..2 but [1, 7]"),
        (changed(execution_count=None), "execution counts are not 1..2 but [1, None]"),
        (changed(id="not an id"), "not normalised"),
        (changed(metadata={"execution": {"start": "2026"}}), "not normalised"),
        (changed(outputs=[stream("1"), stream("\n")]), "not normalised"),
        (changed(source="print(1)\n"), "not normalised"),
        (with_metadata(tags=["nbval-skip"]), "nbval-skip is not used"),
        (with_metadata(tags=["nbval-ignore-output"]), 'needs a "reason"'),
        (with_output(stream("careful", "stderr")), "output on stderr: 'careful'"),
        (with_output(new_output("error", ename="E", evalue="v")), "error output E without"),
        (with_output(stream("<function f at 0x7f12ab34cd56>\n")), "an object's address"),
        (with_output(stream(f"in {Path.home()}/book\n")), "an absolute path"),
        (with_output(stream("1\n"), source="open('/usr/x')"), "an absolute path"),
        (with_output(new_output("display_data", {"image/png": png(150)})), "150 dots per inch"),
        (with_output(stream("1\n"), source="print(1); "), "in spite of the last semicolon"),
        (with_output(stream("1\n"), source="print(1);  # one"), "in spite of the last semicolon"),
        (with_output(stream("x" * 500_001)), "bytes, at most 500,000"),
        (new_notebook(), "the first code cell is not the book's"),
    ],
)
def test_each_departure_is_named(notebook: NotebookNode, departure: str):
    assert any(departure in found for found in departures(notebook)), departures(notebook)


def test_the_code_of_solutions_is_folded_and_no_other():
    notebook = tiny(
        code("stub()"),
        new_markdown_cell(":::{solution-start} ex-a\n:::"),
        code("answer()"),
        new_markdown_cell("Then:"),
        code("check()"),
        new_markdown_cell(":::{solution-end}\n:::"),
        code("after()"),
    )
    folded = {cell.source: cell.metadata for cell in notebook.cells if cell.metadata.get("jupyter")}
    assert list(folded) == ["answer()", "check()"]
    hidden = {"source_hidden": True, "outputs_hidden": True}
    assert folded["answer()"] == {"jupyter": hidden, "cellView": "form"}


def test_a_file_that_was_edited_by_hand_is_not_normal():
    notebook = healthy()
    assert departures(notebook, dumps(notebook) + "\n") == ["not normalised: run `make normalise`"]


def test_another_first_cell_is_seen():
    notebook = healthy()
    notebook.cells[0].source += "\n# mine"
    assert departures(notebook) == ["the first code cell is not the book's, tagged hide-input"]


def test_ids_of_new_cells_come_from_their_content():
    def ids(known: str) -> list[str]:
        notebook = new_notebook(cells=[new_markdown_cell(text) for text in "aab"])
        for cell in notebook.cells:
            cell.id = known
        return [cell.id for cell in normalise(notebook).cells]

    assert len(set(ids(""))) == 3
    assert ids("") == ids("")
    assert ids("same")[0] == "same"  # the first of several keeps a good id
    assert ids("same")[1:] != ["same", "same"]


def test_reading_a_file_keeps_its_ids_even_where_they_are_bad():
    notebook = healthy()
    notebook.cells[1].id = notebook.cells[0].id
    assert [cell.id for cell in loads(dumps(notebook)).cells] == [
        cell.id for cell in notebook.cells
    ]
    assert departures(notebook) == ["not normalised: run `make normalise`"]


def test_a_notebook_that_breaks_the_schema_is_seen():
    notebook = healthy()
    notebook.cells[2].execution_count = "one"
    assert any("not a valid notebook" in found for found in departures(notebook))


# The tools.


TEXT = """\
# Title

```{code-cell}
print(6 * 7)
```

```{code-cell}
x = 1
```
"""


def test_from_text_keeps_ids_and_outputs_of_unchanged_cells(tmp_path: Path):
    text, path = tmp_path / "a.md", tmp_path / "a.ipynb"
    text.write_text(TEXT)
    from_text(text, path)
    assert execute_file(path)
    before = loads(path.read_text()).cells
    assert before[1].outputs[0].text == "42\n"
    from_text(text, path)
    assert loads(path.read_text()).cells == before
    text.write_text(TEXT.replace("x = 1", "x = 2"))
    from_text(text, path)
    after = loads(path.read_text()).cells
    assert after[:2] == before[:2]
    assert after[2].execution_count is None
    assert after[2].id != before[2].id


def test_text_and_notebook_can_be_turned_into_each_other(tmp_path: Path):
    path, text = tmp_path / "a.ipynb", tmp_path / "a.md"
    before = dumps(healthy())
    path.write_text(before)
    to_text(path, text)
    from_text(text, path)
    assert path.read_text() == before


def test_a_notebook_that_fails_is_left_as_it_was(tmp_path: Path):
    path = tmp_path / "a.ipynb"
    path.write_text(dumps(tiny(code("1 / 0"))))
    before = path.read_text()
    assert not execute_file(path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]
