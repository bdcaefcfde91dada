"""Run each notebook by itself and write chapters/status.md: what it holds and what it costs.

    python tools/status.py
    python tools/status.py chapters/11_gpt.ipynb    # one notebook; the other rows stay

CPU time and peak memory are those of the process that runs the notebook, as the system counts them.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from notebook_form import loads, notebooks, tags

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "chapters" / "status.md"
MINUTES, GIGABYTES = 3, 4  # what a chapter may take
TEXT = """\
# Status

What each notebook holds, and what it took when it was last run from beginning to end, on one
thread: seconds of processor time and the peak of its memory. A chapter may take {minutes} minutes
and {gigabytes} GB. *Compared* cells have an output that every test run compares, character by
character. *Claims* are printed lines that a test turns false by planting the mistake that they
guard against; *exercises* check themselves.

`make status` runs every notebook by itself and writes this page; no number on it is typed.
[The parity page](parity.md) sets every component beside its outside reference,
[the benchmarks](benchmarks.md) measure it against its peers, and [the results](results.md) say what
the trained models reach.

{rows}

## Tests

{tests}

## Versions

{versions}
"""
HEAD = """\
| notebook | code cells | compared | claims | exercises | CPU s | peak MB | run on | PyTorch |
|---|--:|--:|--:|--:|--:|--:|---|---|
"""
PACKAGES = ("torch", "numpy", "matplotlib", "jupyter-book", "nbval", "pytest", "hypothesis")


class Counter:
    """A pytest plugin that counts the collected tests by kind."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Look at every test once; one may be of several kinds."""
        for item in items:
            marks = {mark.name for mark in item.iter_markers()}
            given = hasattr(getattr(item, "obj", None), "hypothesis")
            kinds = {
                "all": True,
                "equal to an outside reference": "oracle" in marks,
                "a property, on inputs that Hypothesis draws": given,
                "bad or extreme input": "hostile" in marks,
                "wrong answers given to the checks of exercises": (
                    "test_check_catches" in item.nodeid
                ),
                "built pages in a browser": "pages" in marks,
            }
            for kind, found in kinds.items():
                self.counts[kind] = self.counts.get(kind, 0) + found


def tests() -> str:
    """How many tests of each kind there are."""
    counter = Counter()
    with contextlib.redirect_stdout(io.StringIO()):
        status = pytest.main(["--collect-only", "-q", str(ROOT / "tests")], plugins=[counter])
    if status:
        raise SystemExit("the tests cannot be collected: run `make unit`")
    rows = [f"| {kind} | {count:,} |" for kind, count in counter.counts.items()]
    return "\n".join(["| tests | number |", "|---|--:|", *rows])


def versions() -> str:
    """What the notebooks were run with."""
    found = {"Python": platform.python_version()}
    found |= {name: importlib.metadata.version(name).partition("+")[0] for name in PACKAGES}
    rows = [f"| {name} | {version} |" for name, version in found.items()]
    return "\n".join(["| package | version |", "|---|---|", *rows])


def measure(path: Path) -> tuple[float, float]:
    """CPU seconds and peak memory in MB of a copy of the notebook, run in an empty folder."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = shutil.copy(path, scratch)
        command = [Path(sys.executable).with_name("jupyter-execute"), "--timeout=900", copy]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, cwd=scratch, env=environment)
        # The kernel is a child of this process, which waits for it, so its use is counted in.
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{path.name} failed")
    unit = 1 if platform.system() == "Darwin" else 1024  # bytes there, kilobytes elsewhere
    return used.ru_utime + used.ru_stime, used.ru_maxrss * unit / 1e6


def row(path: Path) -> str:
    """The line of one notebook."""
    cells = loads(path.read_text(encoding="utf-8")).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    claims = sum(cell.source.count("# False if:") for cell in code)
    compared = sum(bool(c.outputs) and "nbval-ignore-output" not in tags(c) for c in code)
    exercises = len(re.findall(r"^:::+\{exercise\}", prose, re.MULTILINE))
    seconds, megabytes = measure(path)
    today, version = datetime.date.today(), importlib.metadata.version("torch").partition("+")[0]
    numbers = f"{len(code)} | {compared} | {claims} | {exercises} | {seconds:.0f} | {megabytes:.0f}"
    return f"| [{path.stem}]({path.name}) | {numbers} | {today} | {version} |"


def rows_of(page: str) -> dict[str, str]:
    """The lines of a page by the name of their notebook."""
    return {m[1]: m[0] for m in re.finditer(r"^\| \[(\w+)\].*$", page, re.MULTILINE)}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, default=notebooks())
    rows = rows_of(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    others = {"tests": tests(), "versions": versions()}
    for path in parser.parse_args().notebooks:
        rows[path.stem] = row(path)
        print(rows[path.stem], flush=True)
        present = [rows[other.stem] for other in notebooks() if other.stem in rows]
        table = HEAD + "\n".join(present)
        text = TEXT.format(minutes=MINUTES, gigabytes=GIGABYTES, rows=table, **others)
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
