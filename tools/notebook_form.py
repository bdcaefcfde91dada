"""The normal form of a notebook: what `normalise` mends and what `departures` reports."""

import ast
import base64
import copy
import hashlib
import io
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = ROOT / "chapters"
MAX_BYTES = 500_000
MAX_DPI = 100
# Calls that may end a cell without showing anything.
SILENT_CALLS = {"use_style"}
KEPT_CELL_METADATA = ("mystnb", "reason", "tags")
# How JupyterLab and VS Code, and Colab, are told to fold the cells of a solution.
FOLDED = {"jupyter": {"source_hidden": True, "outputs_hidden": True}, "cellView": "form"}
SOLUTION = re.compile(r"^:{3,}\{solution-(start|end)\}", re.M)
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
FIRST_CELL = """\
# Runs anywhere: installs the book's library where it is missing (on Colab, say).
import importlib.util
import os

if importlib.util.find_spec("attention_lib") is None:
    source = os.environ.get("ATTENTION_LIB_SOURCE", "git+ADDRESS")
    %pip install --quiet "attention-lib[chapters] @ {source}\""""

CELL_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
ADDRESS_IN_MEMORY = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")
ABSOLUTE_PATH = re.compile(
    r"(?<![\w./:~-])/(?:home|root|work|tmp|Users|usr|opt|var|private|mnt|srv|content)/\w"
    r"|\bfile://|\b[A-Z]:\\\w"
)


def repository() -> str:
    """The book's public address, from its one setting."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["urls"]["Repository"]


def first_cell() -> str:
    """The source that the first code cell of every notebook has."""
    return FIRST_CELL.replace("ADDRESS", repository())


def notebooks() -> list[Path]:
    """Every notebook of the book in reading order."""
    return sorted(CHAPTERS.glob("*.ipynb"))


def tags(cell: NotebookNode) -> list[str]:
    """A cell's tags."""
    return cell.metadata.get("tags", [])


def text_of(output: NotebookNode) -> str:
    """The text that a reader sees in one output."""
    if output.output_type == "stream":
        return output.text
    return output.get("data", {}).get("text/plain", "")


def loads(text: str) -> NotebookNode:
    """The notebook that stands in a file, as it is: nbformat.read puts random ids for bad ones."""
    return nbformat.v4.reads(text)


def dumps(notebook: NotebookNode) -> str:
    """The notebook as the text of its file."""
    return nbformat.v4.writes(notebook).rstrip("\n") + "\n"


def derived_id(cell: NotebookNode, taken: set[str]) -> str:
    """An id made from the cell's content, so that it is the same wherever it is computed."""
    digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
    candidates = [digest, *(f"{digest}-{n}" for n in range(2, len(taken) + 3))]
    return next(candidate for candidate in candidates if candidate not in taken)


def _merged(outputs: list[NotebookNode]) -> list[NotebookNode]:
    merged: list[NotebookNode] = []
    for output in outputs:
        last = merged[-1] if merged else None
        is_stream = output.output_type == "stream"
        if is_stream and last is not None and last.get("name") == output.name:
            last.text += output.text
        else:
            merged.append(output)
    return merged


def normalise(notebook: NotebookNode) -> NotebookNode:
    """A copy in normal form, as far as that needs no run: counts and outputs are not invented."""
    result = copy.deepcopy(notebook)
    result.nbformat, result.nbformat_minor = 4, 5
    result.metadata = nbformat.from_dict(METADATA)
    result.cells = [cell for cell in result.cells if cell.source.strip()]
    taken: set[str] = set()
    in_solution = False
    for cell in result.cells:
        cell.source = cell.source.strip("\n")
        cell.metadata = nbformat.from_dict(
            {key: cell.metadata[key] for key in KEPT_CELL_METADATA if cell.metadata.get(key)}
        )
        if cell.cell_type == "markdown" and (fences := SOLUTION.findall(cell.source)):
            in_solution = fences[-1] == "start"
        if cell.cell_type == "code" and in_solution:
            cell.metadata.update(copy.deepcopy(FOLDED))
        cell.pop("attachments", None)
        if not CELL_ID.fullmatch(cell.get("id", "")) or cell.id in taken:
            cell.id = derived_id(cell, taken)
        taken.add(cell.id)
        if cell.cell_type == "code":
            cell.outputs = _merged(cell.outputs)
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = cell.execution_count
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = output.data["image/png"].strip()
    return result


def python_of(cell: NotebookNode) -> str:
    """A code cell as plain Python, with magics turned into calls."""
    return TransformerManager().transform_cell(cell.source)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes that run when the cell runs: bodies of functions and classes are left out."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _statements(child)


def _called(nodes: Iterator[ast.AST]) -> set[str]:
    names = set()
    for node in nodes:
        if isinstance(node, ast.Call):
            names.add(ast.unparse(node.func).rsplit(".", 1)[-1])
    return names


def _ends_in_semicolon(cell: NotebookNode) -> bool:
    code = [line for line in cell.source.splitlines() if line.split("#")[0].strip()]
    return bool(code) and code[-1].split("#")[0].rstrip().endswith(";")


def silent_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Code cells that must show something and have no stored output.

    A cell shows something if it calls `print` or `display`, or a function of the notebook that
    does, or if its last line is a bare expression. (Where a last call returns None and prints
    nothing, assign it: `_ = call()`.) nbval compares nothing for a cell without stored outputs,
    so this rule is what turns a stripped notebook red.
    """
    silent, printers = [], {"print", "display"}
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        tree = ast.parse(python_of(cell))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and _called(ast.walk(node)) & printers:
                printers.add(node.name)
        shows = bool(_called(_statements(tree)) & printers)
        if tree.body and isinstance(tree.body[-1], ast.Expr):
            shows |= not _called(ast.walk(tree.body[-1])) & SILENT_CALLS
        shows |= "mystnb" in cell.metadata
        if shows and not cell.outputs:
            silent.append(cell)
    return silent


def _cell_departures(cell: NotebookNode) -> Iterator[str]:
    if ABSOLUTE_PATH.search(cell.source):
        yield "an absolute path stands in the source"
    if cell.cell_type != "code":
        return
    if _ends_in_semicolon(cell):
        yield "nbval shows the value in spite of the last semicolon: write `_ = ...`"
    if "nbval-skip" in tags(cell):
        yield "the tag nbval-skip is not used"
    if "nbval-ignore-output" in tags(cell) and not cell.metadata.get("reason"):
        yield 'nbval-ignore-output needs a "reason" in the cell\'s metadata'
    for output in cell.outputs:
        if output.output_type == "error" and "raises-exception" not in tags(cell):
            yield f"error output {output.ename} without the tag raises-exception"
        if output.get("name") == "stderr":
            yield f"output on stderr: {output.text.strip()[:80]!r}"
        data = output.get("data", {})
        shown = text_of(output) + data.get("text/html", "") + "\n".join(output.get("traceback", []))
        for rule, pattern in (
            ("an absolute path", ABSOLUTE_PATH),
            ("an object's address", ADDRESS_IN_MEMORY),
        ):
            if found := pattern.search(shown):
                yield f"{rule} stands in the output: {shown[found.start() :][:40]!r}"
        if "image/png" in data:
            image = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
            dpi = image.info.get("dpi", (float("inf"),))[0]
            if round(dpi) > MAX_DPI:
                yield f"a figure has {dpi:.0f} dots per inch, at most {MAX_DPI} are allowed"


def departures(notebook: NotebookNode, text: str | None = None) -> list[str]:
    """Every way in which the notebook (and the text of its file) leaves the normal form."""
    found = []
    normal = normalise(notebook)
    expected = dumps(normal)
    if (dumps(notebook) if text is None else text) != expected:
        found.append("not normalised: run `make normalise`")
    if len(expected.encode()) > MAX_BYTES:
        found.append(f"{len(expected.encode()):,} bytes, at most {MAX_BYTES:,} are allowed")
    try:
        nbformat.validate(normal)
    except nbformat.ValidationError as error:
        found.append(f"not a valid notebook: {error.message}")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        found.append(f"execution counts are not 1..{len(code)} but {counts}: run `make execute`")
    if not code or code[0].source != first_cell() or "hide-input" not in tags(code[0]):
        found.append("the first code cell is not the book's, tagged hide-input")
    for position, cell in enumerate(notebook.cells):
        found += [f"cell {position} ({cell.id}): {rule}" for rule in _cell_departures(cell)]
    for cell in silent_cells(notebook):
        found.append(f"cell {notebook.cells.index(cell)} ({cell.id}): its stored output is missing")
    return found
