"""The library as a house: imports point one way, importing has no side effect, docs are whole."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import attention_lib

ROOT = Path(__file__).resolve().parent.parent / "attention_lib"
MODULES = sorted(ROOT.rglob("*.py"))

# A module may import from layers before its own, and within its own package.
LAYERS = [
    "_checks",
    "_joint",
    "scores",
    "softmax",
    "masks",
    "_masking",
    "attention",
    "positions",
    "heads",
    "blocks",
    "interop",
    "interpret",
    "losses",
    "text",
    "data",
    "checkpoints",
    "training",
    "decoding",
    "sampling",
    "efficient",
    "models",
    "exercises",
    "diagrams",
    "component",
    "plots",
    "explorer",
    "live",
]
DRAWING = {"matplotlib", "seaborn"}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _layer(path: Path) -> str:
    """The first part below the package: ``scores`` for scores.py, ``data`` for data/fetch.py."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path: Path) -> list[str]:
    """Dotted names of everything the module imports, inside functions as well."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(path)} line {node.lineno}: imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def _layers_imported(path: Path) -> set[str]:
    inside = [name.split(".") for name in _imports(path) if name.startswith("attention_lib.")]
    return {parts[1] for parts in inside}


def test_every_module_has_its_layer():
    assert {_layer(path) for path in MODULES} == {"__init__", *LAYERS}


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_point_only_backwards_in_reading_order(path):
    layer = _layer(path)
    if layer == "__init__":
        allowed = set(LAYERS[: LAYERS.index("blocks") + 1])
    else:
        allowed = set(LAYERS[: LAYERS.index(layer)])
        if path.parent != ROOT:
            allowed.add(layer)
    assert _layers_imported(path) <= allowed


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_only_plots_imports_drawing_libraries(path):
    drawing = {name for name in _imports(path) if name.split(".")[0] in DRAWING}
    assert bool(drawing) == (_layer(path) == "plots")


# --- importing -----------------------------------------------------------------------------------

STATE = """
import json, random, sys, threading, warnings
import numpy, torch

def state():
    return [
        str(random.getstate()), str(numpy.random.get_state()), torch.get_rng_state().tolist(),
        str(torch.get_default_dtype()), str(torch.get_default_device()), torch.is_grad_enabled(),
        torch.get_num_threads(), threading.active_count(), str(warnings.filters),
        str(numpy.geterr()), sys.getrecursionlimit(), list(sys.path),
    ]

before, known = state(), set(sys.modules)
import attention_lib, attention_lib.data, attention_lib.exercises
roots = {name.split(".")[0] for name in set(sys.modules) - known}
print(json.dumps([before == state(), sorted(roots - set(sys.stdlib_module_names))]))
"""


def test_importing_changes_no_global_state_and_loads_little():
    run = subprocess.run([sys.executable, "-c", STATE], capture_output=True, text=True, check=True)
    unchanged, loaded = json.loads(run.stdout)
    assert run.stderr == ""
    assert unchanged
    # numpy has parts that are loaded when first used. No matplotlib, no scipy, no pandas.
    assert set(loaded) - {"numpy"} == {"attention_lib", "filelock", "jaxtyping"}


# --- docstrings ----------------------------------------------------------------------------------


def _public() -> dict[str, ast.FunctionDef | ast.ClassDef]:
    """Functions, classes and methods without an underscore, but for what only the library uses."""
    found = {}
    for path in MODULES:
        if path.stem in ("__main__", "_checks", "_masking", "report"):
            continue
        tree = ast.parse(path.read_text())
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        classes = [node for node in classes if not node.name.startswith("_")]
        for owner in [tree, *classes]:
            prefix = f"{_name(path)}:" + (f"{owner.name}." if owner in classes else "")
            for node in owner.body:
                kinds = ast.FunctionDef | ast.ClassDef
                if isinstance(node, kinds) and not node.name.startswith("_"):
                    found[prefix + node.name] = node
    return found


PUBLIC = _public()
FUNCTIONS = [name for name, node in PUBLIC.items() if isinstance(node, ast.FunctionDef)]
# A method belongs to its class, which says where the idea is from.
FREE = [name for name in FUNCTIONS if "." not in name.split(":")[1]]


def _raises(function: ast.FunctionDef) -> bool:
    """Whether the body raises, or calls one of the argument checks."""
    nodes = list(ast.walk(function))
    calls = [n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    checks = any(name.lstrip("_").startswith("check_") for name in calls)
    return any(isinstance(node, ast.Raise) for node in nodes) or checks


def test_the_public_functions_are_found():
    assert len(FREE) > 20
    assert "masks.py:Mask.dense" in FUNCTIONS


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_describes_its_arguments_and_errors(name):
    function, text = PUBLIC[name], ast.get_docstring(PUBLIC[name]) or ""
    assert text.split("\n")[0].endswith((".", "?")), "the first line is one sentence"
    owner = name.rpartition(".")[0] if "." in name.split(":")[1] else None
    # A method may leave its arguments and errors to the one sentence and to its class.
    if owner is None or "Args:" in text:
        for argument in [*function.args.args, *function.args.kwonlyargs]:
            assert argument.arg in ("self", "cls") or f"\n    {argument.arg}: " in text, (
                argument.arg
            )
    if not name.startswith("exercises"):  # there the call of a check is the point
        around = ast.get_docstring(PUBLIC[owner]) or "" if owner else ""
        assert "Raises:" in text + around or not _raises(function)


@pytest.mark.parametrize("name", FREE)
def test_every_public_function_names_its_source_and_chapter(name):
    text = ast.get_docstring(PUBLIC[name])
    assert ".. math::" in text or "Source:" in text
    assert "hapter" in text


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_every_module_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_the_package_exports_every_public_name_of_the_core():
    layers = LAYERS[LAYERS.index("scores") : LAYERS.index("blocks") + 1]
    core = {name.split(":")[1] for name in PUBLIC if name.split(".py:")[0] in layers}
    assert {name for name in core if "." not in name} == set(attention_lib.__all__)
