"""Stop notebooks in the middle, as readers do, and run them again: python tools/stopped.py [NB...]

A notebook runs until half of the time that the status page gives it; then its kernel is
interrupted, whatever it is doing. In the same kernel it is run once more from the top. No cell may
fail, and no printed claim may have become false: what a half-done cell left behind is in no way.
"""

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
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
    notebook, stopped, done = loads(path.read_text(encoding="utf-8")), None, 0
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(path, folder)
        client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": folder}})
        with client.setup_kernel():
            timer = Timer(half_time(path), os.kill, (client.km.provisioner.pid, signal.SIGINT))
            timer.start()
            try:
                for _ in run(client):
                    done += 1
            except CellExecutionError as error:
                stopped = error.ename
            timer.cancel()
            if stopped != "KeyboardInterrupt":
                print(f"{path.name}: {stopped or 'ended before half time'}, not stopped")
                return False
            try:
                printed = [text_of(out) for cell in run(client) for out in cell.get("outputs", [])]
            except CellExecutionError as error:
                print(f"{path.name}: stopped in cell {done + 1}; the second run FAILED\n{error}")
                return False
    false = re.findall(r"^.*: False$", "\n".join(printed), re.MULTILINE)
    claims = len(re.findall(r": True$", "\n".join(printed), re.MULTILINE))
    print(f"{path.name}: stopped in cell {done + 1}, run again: {claims} claims true {false or ''}")
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
