"""Every claim in a chapter turns False under the wrong implementation that it names."""

from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook, new_output
from notebook_claims import claims, unproven
from notebook_form import first_cell, notebooks

NOTEBOOKS = {path.stem: path for path in notebooks()}


@pytest.mark.timeout(1800)  # it runs most of a chapter, some cells many times
@pytest.mark.usefixtures("no_shape_hook")  # a reader's kernel has no shape checks either
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_claim_turns_false_under_the_fault_it_names(name: str):
    path = NOTEBOOKS[name]
    notebook = nbformat.read(path, 4)
    assert claims(notebook)[0], "a chapter without a claim shows nothing"
    assert unproven(notebook, path.parent) == []


# The check itself, on tiny notebooks.

DEFINE = "def double(x):\n    return 2 * x", ""
CLAIM = 'print("right:", double(3) == 6)\n# False if: 2 * x -> 3 * x', "right: True"


def notebook(*cells: tuple[str, str]) -> NotebookNode:
    """A notebook of code cells, each with what it printed."""
    made = [new_code_cell(first_cell())]
    for source, printed in cells:
        made.append(new_code_cell(source, outputs=[new_output("stream", text=printed)]))
    return new_notebook(cells=made)


def test_a_claim_that_turns_false_is_proven(tmp_path: Path):
    assert unproven(notebook(DEFINE, CLAIM), tmp_path) == []


def test_the_same_code_above_may_be_broken_for_several_claims(tmp_path: Path):
    source = CLAIM[0] + '\nprint("small:", double(3) < 7)\n# False if: 2 * x -> 4 * x'
    assert unproven(notebook(DEFINE, (source, "right: True\nsmall: True\n")), tmp_path) == []


def test_a_fault_reaches_functions_through_functions_of_other_cells(tmp_path: Path):
    outer = "def outer(x):\n    return double(x)", ""
    claim = 'print("right:", outer(3) == 6)\n# False if: 2 * x -> 3 * x', "right: True"
    # `double` stands below `outer`, so the re-run does not define `outer` again.
    assert unproven(notebook(outer, DEFINE, claim), tmp_path) == []


def test_a_fault_of_one_claim_is_gone_for_the_next(tmp_path: Path):
    later = 'print("still:", double(3) == 6)\n# False if: double(3) -> double(4)', "still: True"
    assert unproven(notebook(DEFINE, CLAIM, later), tmp_path) == []


def test_what_later_cells_defined_is_unknown_in_the_second_run(tmp_path: Path):
    get = 'globals().get("later", 1)'
    claim = f'print("right:", {get} == 1)\n# False if: {get} -> globals().get("later", 2)'
    assert unproven(notebook((claim, "right: True"), ("later = 1", "")), tmp_path) == []


def test_a_fault_that_raises_in_a_cell_tagged_for_it_is_no_failure(tmp_path: Path):
    made = notebook(DEFINE, ("1 / 0", ""), CLAIM)
    made.cells[2].metadata.tags = ["raises-exception"]
    assert unproven(made, tmp_path) == []


@pytest.mark.parametrize(
    ("source", "printed", "problem"),
    [
        (CLAIM[0].replace("== 6", "> 0"), "right: True", "still True with the fault"),
        (CLAIM[0].replace("2 * x ->", "5 * x ->"), "right: True", "no cell at or above contains"),
        (CLAIM[0].replace("3 * x", "1 / 0"), "right: True", "raised ZeroDivisionError"),
        (CLAIM[0].replace("== 6", "== 7"), "right: True", "was not printed when"),
        (CLAIM[0].split("\n")[0], "right: True", "prints 1 claims and has 0 comments"),
        (CLAIM[0], "right: 1", "prints 0 claims and has 1 comments"),
        (
            'for i in range(double(1)):\n    print("a:", True)\n# False if: 2 * x -> x'
            "\n# False if: 2 * x -> x",
            "a: True\na: True",
            "prints other lines",
        ),
    ],
)
def test_an_unproven_claim_is_named(source: str, printed: str, problem: str, tmp_path: Path):
    found = unproven(notebook(DEFINE, (source, printed)), tmp_path)
    assert found
    assert all(problem in entry for entry in found), found


def test_the_comment_itself_is_not_what_is_replaced(tmp_path: Path):
    claim = 'print("right:", 1 == 1)\n# False if: only here -> nowhere', "right: True"
    found = unproven(notebook(claim), tmp_path)
    assert ["no cell at or above contains 'only here'" in entry for entry in found] == [True]


def test_claims_run_in_the_folder_of_the_notebook(tmp_path: Path):
    (tmp_path / "here").touch()
    claim = 'import os\nprint("here:", os.path.exists("here"))\n# False if: "here")) -> "no"))'
    assert unproven(notebook((claim, "here: True")), tmp_path) == []
