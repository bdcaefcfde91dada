"""Run each notebook by itself and write chapters/status.md: what it holds and what it costs.

    python tools/status.py
    python tools/status.py chapters/11_gpt.ipynb    # one notebook; the other rows stay

CPU time and peak memory are those of the process that runs the notebook, as the system counts them.
"""

import argparse
import datetime
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from notebook_form import loads, notebooks

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "chapters" / "status.md"
MINUTES, GIGABYTES = 3, 4  # what a chapter may take
TEXT = """\
# Status

What each notebook holds, and what it took when it was last run from beginning to end, on one
thread: seconds of processor time and the peak of its memory. A chapter may take {minutes} minutes
and {gigabytes} GB. *Claims* are printed lines that a test turns false by planting the mistake that
they guard against; *exercises* check themselves.

`make status` runs every notebook by itself and writes this page.

| notebook | code cells | claims | exercises | CPU s | peak MB | run on | PyTorch |
|---|--:|--:|--:|--:|--:|---|---|
"""


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
    exercises = len(re.findall(r"^:::+\{exercise\}", prose, re.MULTILINE))
    seconds, megabytes = measure(path)
    today, version = datetime.date.today(), importlib.metadata.version("torch").partition("+")[0]
    numbers = f"{len(code)} | {claims} | {exercises} | {seconds:.0f} | {megabytes:.0f}"
    return f"| [{path.stem}]({path.name}) | {numbers} | {today} | {version} |"


def rows_of(page: str) -> dict[str, str]:
    """The lines of a page by the name of their notebook."""
    return {m[1]: m[0] for m in re.finditer(r"^\| \[(\w+)\].*$", page, re.MULTILINE)}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, default=notebooks())
    rows = rows_of(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    for path in parser.parse_args().notebooks:
        rows[path.stem] = row(path)
        print(rows[path.stem], flush=True)
        present = [rows[other.stem] for other in notebooks() if other.stem in rows]
        head = TEXT.format(minutes=MINUTES, gigabytes=GIGABYTES)
        PAGE.write_text(head + "\n".join(present) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
