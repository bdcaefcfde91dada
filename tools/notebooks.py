"""Work on the book's notebooks: bring into normal form, check, run, and edit as text.

python tools/notebooks.py normalise [NB...]       rewrite in normal form
python tools/notebooks.py check [NB...]           list every departure; exit 1 if there is one
python tools/notebooks.py execute [NB...]         run top to bottom and store the outputs
python tools/notebooks.py from-text FILE.md NB    take cells from MyST text, keep known outputs
python tools/notebooks.py to-text NB FILE.md      write the cells as MyST text

Without NB: every notebook in chapters/.
"""

import argparse
import itertools
import os
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from notebook_form import (
    FOLDED,
    METADATA,
    departures,
    derived_id,
    dumps,
    loads,
    normalise,
    notebooks,
)

CELL_TIMEOUT = 600


def write(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one, never half."""
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8"
    ) as file:
        file.write(text)
    os.chmod(file.name, path.stat().st_mode if path.exists() else 0o644)
    os.replace(file.name, path)


def normalise_file(path: Path) -> bool:
    """Rewrite one notebook in normal form where it differs."""
    before = path.read_text()
    after = dumps(normalise(loads(before)))
    if before != after:
        write(path, after)
        print(f"{path}: rewritten")
    return True


def check_file(path: Path) -> bool:
    """Print every departure of one notebook; true if there is none."""
    text = path.read_text()
    found = departures(loads(text), text)
    for departure in found:
        print(f"{path}: {departure}")
    return not found


def execute_file(path: Path) -> bool:
    """Run one notebook in a fresh kernel beside it; store the outputs only if all of it ran."""
    notebook = normalise(loads(path.read_text()))
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(path.resolve().parent)}},
    )
    start = time.perf_counter()
    try:
        client.execute()
    except CellExecutionError as error:
        print(f"{path}: failed, left as it was\n{error}")
        return False
    write(path, dumps(normalise(notebook)))
    print(f"{path}: {time.perf_counter() - start:.1f} s")
    return True


def from_text(text: Path, path: Path) -> None:
    """Take a notebook's cells from MyST text.

    A cell whose source is unchanged keeps its id and its outputs; a new cell has no outputs and
    no execution count, so that `check` fails until the notebook is run.
    """
    fresh = jupytext.read(text, fmt="md:myst")
    known: dict[tuple[str, str], list[NotebookNode]] = {}
    for cell in loads(path.read_text()).cells if path.exists() else []:
        known.setdefault((cell.cell_type, cell.source), []).append(cell)
    cells = [cell for cell in fresh.cells if cell.source.strip()]
    kept: list[NotebookNode | None] = []
    for cell in cells:
        cell.source = cell.source.strip("\n")
        same = known.get((cell.cell_type, cell.source))
        kept.append(same.pop(0) if same else None)
    taken = {old.id for old in kept if old is not None}
    for cell, old in zip(cells, kept, strict=True):
        if old is None:
            cell.id = derived_id(cell, taken)
            taken.add(cell.id)
            continue
        cell.id = old.id
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = old.outputs, old.execution_count
    fresh.cells = cells
    write(path, dumps(normalise(fresh)))


def to_text(path: Path, text: Path) -> None:
    """Write a notebook's cells as MyST text."""
    notebook = normalise(loads(path.read_text()))
    notebook.metadata = nbformat.from_dict({"kernelspec": METADATA["kernelspec"]})
    for cell, key in itertools.product(notebook.cells, FOLDED):
        cell.metadata.pop(key, None)
    write(text, jupytext.writes(notebook, fmt="md:myst"))


COMMANDS = {"normalise": normalise_file, "check": check_file, "execute": execute_file}


def main() -> int:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        commands.add_parser(name).add_argument("notebooks", nargs="*", type=Path, metavar="NB")
    for name, arguments in {
        "from-text": ("text", "notebook"),
        "to-text": ("notebook", "text"),
    }.items():
        command = commands.add_parser(name)
        for argument in arguments:
            command.add_argument(argument, type=Path)
    options = parser.parse_args()
    if options.command == "from-text":
        from_text(options.text, options.notebook)
    elif options.command == "to-text":
        to_text(options.notebook, options.text)
    else:
        results = [COMMANDS[options.command](path) for path in options.notebooks or notebooks()]
        return 0 if all(results) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
