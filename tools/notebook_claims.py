"""The rule that every claim names a wrong implementation for which it would be false.

A line of output that ends in ``: True`` is a claim. The cell that prints it holds a comment
``# False if: OLD -> NEW`` for each, in the same order. OLD is replaced by NEW in the nearest cell
at or above that contains it, the notebook runs again from there, and the claim must print False.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from nbformat import NotebookNode
from notebook_form import python_of, tags, text_of

COMMENT = re.compile(r"^\s*# False if: (.+?) -> (.+?)\s*$", re.M)
VERDICT = re.compile(r"^(.*): (True|False)\s*$", re.M)


@dataclass(frozen=True)
class Claim:
    """The line of output number ``line`` of a code cell, and the fault that must turn it False."""

    cell: int
    line: int
    text: str
    old: str
    new: str


def verdicts(text: str) -> list[tuple[str, bool]]:
    """The lines of a text that end in a truth value."""
    return [(found[1], found[2] == "True") for found in VERDICT.finditer(text)]


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The code cells; a claim counts them from 0."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _stored(cell: NotebookNode) -> str:
    return "\n".join(text_of(output) for output in cell.outputs if output.get("name") != "stderr")


def claims(notebook: NotebookNode) -> tuple[list[Claim], list[str]]:
    """The claims of a notebook, and what is wrong with their comments."""
    found, problems = [], []
    for position, cell in enumerate(code_cells(notebook)):
        lines = verdicts(_stored(cell))
        true = [(line, text) for line, (text, holds) in enumerate(lines) if holds]
        faults = COMMENT.findall(cell.source)
        if len(true) != len(faults):
            problems.append(
                f"code cell {position} ({cell.id}) prints {len(true)} claims and has "
                f"{len(faults)} comments '# False if: OLD -> NEW'"
            )
            continue
        for (line, text), (old, new) in zip(true, faults, strict=True):
            found.append(Claim(position, line, text, old, new))
    return found, problems


class Runner:
    """Runs a notebook's code in this process, and parts of it again with a fault planted.

    Functions look their globals up in the one namespace they were defined in. So the namespace is
    never copied to another place: it is emptied and filled again from a shallow snapshot.
    """

    def __init__(self, notebook: NotebookNode, folder: Path):
        self.cells = code_cells(notebook)
        # The first cell installs the library where it is missing; here it is not.
        self.sources = ["", *(COMMENT.sub("", cell.source) for cell in self.cells[1:])]
        self.folder = folder
        self.namespace: dict = {}
        self.snapshots: list[dict] = []
        self.printed: list[str] = []

    def run(self) -> None:
        """Run the whole notebook once and keep what each cell starts from."""
        self.namespace.update(__name__="__main__", display=lambda *things: None)
        with _quiet(self.folder):
            for position, source in enumerate(self.sources):
                self.snapshots.append(dict(self.namespace))
                self.printed.append(self._run_cell(position, source))

    def disproves(self, claim: Claim) -> str:
        """Plant the claim's fault; empty if the claim turns False, otherwise what happened."""
        above = range(claim.cell, -1, -1)
        start = next((i for i in above if claim.old in self.sources[i]), None)
        if start is None:
            return f"no cell at or above contains {claim.old!r}"
        before = verdicts(self.printed[claim.cell])
        if (claim.text, True) not in before[claim.line : claim.line + 1]:
            return "the claim was not printed when the notebook ran here"
        self.namespace.clear()
        self.namespace.update(self.snapshots[start])
        try:
            with _quiet(self.folder):
                sources = list(self.sources)
                sources[start] = sources[start].replace(claim.old, claim.new)
                printed = [self._run_cell(i, sources[i]) for i in range(start, claim.cell + 1)]
        except Exception as error:
            return f"with the fault the code raised {type(error).__name__}: {error}"
        lines = verdicts(printed[-1])
        if len(lines) != len(before):
            return f"with the fault the cell prints other lines: {lines}"
        return "still True with the fault" if lines[claim.line][1] else ""

    def _run_cell(self, position: int, source: str) -> str:
        cell = self.cells[position].copy()
        cell.source = source
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            try:
                exec(compile(python_of(cell), f"<code cell {position}>", "exec"), self.namespace)
            except Exception:
                if "raises-exception" not in tags(cell):
                    raise
        plt.close("all")
        return printed.getvalue()


@contextlib.contextmanager
def _quiet(folder: Path) -> Iterator[None]:
    """No windows, no warnings, in the notebook's folder; everything is put back afterwards."""
    with (
        contextlib.chdir(folder),
        warnings.catch_warnings(),
        matplotlib.rc_context({"backend": "agg"}),
    ):
        warnings.simplefilter("ignore")
        yield


def unproven(notebook: NotebookNode, folder: Path) -> list[str]:
    """Everything that is wrong with the notebook's claims."""
    found, problems = claims(notebook)
    if not found:
        return problems
    runner = Runner(notebook, folder)
    runner.run()
    for claim in found:
        if failure := runner.disproves(claim):
            problems.append(f"{claim.text!r} ({claim.old} -> {claim.new}): {failure}")
    return problems
