"""Stop notebooks in the middle, as readers do, and run them again: python tools/stopped.py [NB...]

A notebook runs until half of the time that the status page gives it; then its kernel is
interrupted, whatever it is doing. In the same kernel it is run once more from the top. No cell may
fail, and no printed claim may have become false: what a half-done cell left behind is in no way.
The two cells that install and import are left to end: PyTorch itself, imported by half, asks for a
new kernel.
"""

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from notebook_form import loads, notebooks, text_of

STATUS = Path(__file__).resolve().parent.parent / "chapters" / "status.md"


def half_time(path: Path) -> float:
    """Half of the notebook's seconds on the status page."""
    row = re.search(rf"^\| \[?`?{path.stem}\b.*$", STATUS.read_text(encoding="utf-8"), re.MULTILINE)
    if row is None:
        raise SystemExit(f"{path.name} has no row on the status page: run `make status`")
    return float(row[0].split("|")[6]) / 2


def run(client: NotebookClient) -> Iterator[NotebookNode]:
    """Run the cells one by one."""
    for index, cell in enumerate(client.nb.cells):
        client.execute_cell(cell, index)
        yield cell


def stop_and_run_again(path: Path) -> bool:
    """Interrupt the notebook at half time, run it again in the same kernel, and report."""
    notebook, started = loads(path.read_text(encoding="utf-8")), time.monotonic()
    done, timer = 0, None
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(path, folder)
        client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": folder}})
        with client.setup_kernel():
            try:
                for cell in run(client):
                    done += 1
                    if timer is None and "import torch" in cell.source:
                        wait = max(half_time(path) - (time.monotonic() - started), 0.1)
                        interrupt = (client.km.provisioner.pid, signal.SIGINT)
                        timer = Timer(wait, os.kill, interrupt)
                        timer.start()
            except CellExecutionError as error:
                if error.ename != "KeyboardInterrupt":
                    raise
            if timer is not None:
                timer.cancel()
            try:
                cells = list(run(client))
            except CellExecutionError as error:
                print(f"{path.name}: stopped in cell {done + 1}; the second run FAILED\n{error}")
                return False
    printed = "\n".join(text_of(output) for cell in cells for output in cell.get("outputs", []))
    false = re.findall(r"^.*: False$", printed, re.MULTILINE)
    claims = len(re.findall(r": True$", printed, re.MULTILINE))
    where = f"stopped in cell {done + 1}" if done < len(cells) else "ended before it was stopped"
    print(f"{path.name}: {where}, run again: {claims} claims true {false or ''}")
    return not false


def main() -> int:
    """Stop the named notebooks, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NB")
    chosen = parser.parse_args().notebooks or notebooks()
    results = [stop_and_run_again(path.resolve()) for path in chosen]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
