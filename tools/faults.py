"""Plant faults one at a time in a copy of the repository and show that a check turns red for each.

Every check is first run on the untouched copy and must be green there: otherwise its red would say
nothing. Run by `make faults`; exit status 1 if a fault is not caught.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode
from notebook_form import dumps, loads
from notebook_prose import prose, tokens
from tree import copy

CHAPTER = "chapters/01_correlation.ipynb"
ANSI = re.compile(r"\x1b\[[0-9;]*m")
PYTEST = [sys.executable, "-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider"]
BUILD = [sys.executable, "tools/build.py"]


@dataclass(frozen=True)
class Fault:
    """A fault in one file, the commands of which the last must turn red, and what it then says."""

    name: str
    path: str
    plant: Callable[[str], str]
    commands: tuple[tuple[str, ...], ...]
    says: str


def swap(old: str, new: str) -> Callable[[str], str]:
    """Replace the first occurrence of some text that must be there."""

    def plant(text: str) -> str:
        if old not in text:
            raise SystemExit(f"cannot plant the fault: {old!r} is not there any more")
        return text.replace(old, new, 1)

    return plant


def in_notebook(change: Callable[[NotebookNode], bool]) -> Callable[[str], str]:
    """Change the first cell for which `change` does something."""

    def plant(text: str) -> str:
        notebook = loads(text)
        if not any(change(cell) for cell in notebook.cells):
            raise SystemExit(f"cannot plant the fault: nothing for {change.__name__} to change")
        return dumps(notebook)

    return plant


def strip_output(cell: NotebookNode) -> bool:
    """Delete what a cell printed."""
    printed = any(output.output_type == "stream" for output in cell.get("outputs", []))
    if printed:
        cell.outputs = []
    return printed


def edit_output(cell: NotebookNode) -> bool:
    """Change the last digit that a cell printed."""
    for output in cell.get("outputs", []):
        if found := re.search(r"\d(?=\D*\Z)", output.get("text", "")):
            output.text = _other_digit(output.text, found.start())
            return True
    return False


def edit_number(cell: NotebookNode) -> bool:
    """Change the last digit of the first decimal number in the prose."""
    if cell.cell_type != "markdown":
        return False
    for token, _, position in tokens(prose(cell.source)):
        if "." in token:
            cell.source = _other_digit(cell.source, position + len(token) - 1)
            return True
    return False


def drop_alt(cell: NotebookNode) -> bool:
    """Delete the alternative text of a figure."""
    return cell.metadata.get("mystnb", {}).pop("image", None) is not None


def misspell_citation(cell: NotebookNode) -> bool:
    """Cite something that is not in the bibliography."""
    before = cell.source
    cell.source = re.sub(r"(\{cite:[pt]\}`\w+)", r"\1x", before, count=1)
    return cell.source != before


def break_link(cell: NotebookNode) -> bool:
    """Link to a page that does not exist."""
    is_prose = cell.cell_type == "markdown" and not cell.source.startswith((":", "#"))
    if is_prose:
        cell.source += "\n\nMore in [the next chapter](02_no_such_page.ipynb)."
    return is_prose


def soften_claim(cell: NotebookNode) -> bool:
    """Make a tolerance so wide that a wrong implementation passes."""
    before = cell.source
    cell.source = re.sub(r"< 1e-(\d+)\)", r"< 1e+\1)", before)
    return cell.cell_type == "code" and cell.source != before


def _other_digit(text: str, position: int) -> str:
    digit = str((int(text[position]) + 1) % 10)
    return text[:position] + digit + text[position + 1 :]


def pytest_on(*arguments: str) -> tuple[tuple[str, ...], ...]:
    """The one command of a check by pytest."""
    return ((*PYTEST, *arguments),)


def notebooks_test(only: str) -> tuple[tuple[str, ...], ...]:
    """The tests of the notebooks' form whose names have some words."""
    return pytest_on("tests/test_notebooks.py", "-k", only)


FAULTS = [
    Fault(
        "a stored output is stripped",
        CHAPTER,
        in_notebook(strip_output),
        notebooks_test("normal_form and 01_correlation"),
        "output is missing",
    ),
    Fault(
        "a number in the prose is changed",
        CHAPTER,
        in_notebook(edit_number),
        pytest_on("tests/test_prose.py", "-k", "01_correlation"),
        r"\.\d+: \.\.\.",
    ),
    Fault(
        "the softmax sums over the wrong axis",
        "attention_lib/softmax.py",
        swap("exponentials.sum(dim=-1,", "exponentials.sum(dim=0,"),
        pytest_on("-x", "tests/test_softmax.py"),
        r"^E .*(assert|Error)",
    ),
    Fault(
        "a citation leads nowhere",
        CHAPTER,
        in_notebook(misspell_citation),
        notebooks_test("citations_and_bibliography_agree"),
        r"'\w+\d{4}x'",
    ),
    Fault(
        "a link leads nowhere",
        CHAPTER,
        in_notebook(break_link),
        notebooks_test("every_link"),
        "02_no_such_page",
    ),
    Fault(
        "a figure has no alternative text",
        CHAPTER,
        in_notebook(drop_alt),
        notebooks_test("parts and 01_correlation"),
        "alternative",
    ),
    Fault(
        "a page loads a script from a CDN",
        "chapters/bibliography.md",
        lambda text: text + '\n<script src="https://cdn.example.org/script.js"></script>\n',
        (tuple(BUILD), (*PYTEST, "tests/test_pages.py", "-m", "pages", "-k", "bibliography")),
        r"cdn\.example\.org",
    ),
    Fault(
        "a stored output is edited",
        CHAPTER,
        in_notebook(edit_output),
        pytest_on("--nbval", CHAPTER),
        "mismatch 'stdout'",
    ),
    Fault(
        "a claim holds for the wrong implementation too",
        CHAPTER,
        in_notebook(soften_claim),
        pytest_on("tests/test_claims.py", "-k", "01_correlation"),
        "still True with the fault",
    ),
]


def run(commands: tuple[tuple[str, ...], ...], root: Path) -> tuple[bool, str]:
    """Run commands until one fails: whether all passed, and what the last one printed."""
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    for command in commands:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        printed = ANSI.sub("", done.stdout + done.stderr)
        if done.returncode:
            return False, printed
    return "passed" in printed, printed  # a run that skipped everything has shown nothing


def shown(commands: tuple[tuple[str, ...], ...]) -> str:
    """The commands as a person would type them."""
    words = [
        ["pytest", *command[len(PYTEST) :]] if "pytest" in command else ["python", *command[1:]]
        for command in commands
    ]
    return " && ".join(map(shlex.join, words))


def main() -> int:
    """Plant every fault."""
    start, missed, green = time.perf_counter(), 0, {}
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        root = copy(Path(scratch, "copy"))
        for fault in FAULTS:
            if fault.commands not in green:
                green[fault.commands] = run(fault.commands, root)
            path = root / fault.path
            text = path.read_text()
            path.write_text(fault.plant(text))
            passed, printed = run(fault.commands, root)
            path.write_text(text)
            line = next((s for s in printed.splitlines() if re.search(fault.says, s)), "")
            verdict = "NOT CAUGHT"
            if not green[fault.commands][0]:
                verdict = "NOT CAUGHT: the check is red without the fault"
                line = green[fault.commands][1].strip().splitlines()[-1]
            elif not passed and line:
                verdict = "caught"
            missed += verdict != "caught"
            print(f"fault:   {fault.name} ({fault.path})\ncommand: {shown(fault.commands)}")
            print(f"says:    {line.strip()[:300]}\n{verdict}\n", flush=True)
    print(f"{len(FAULTS) - missed} of {len(FAULTS)} caught in {time.perf_counter() - start:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
