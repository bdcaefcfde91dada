"""Run each notebook alone, as on Colab: python tools/standalone.py [NB...]

For each notebook an empty folder and an empty home; an environment that holds what Colab ships and
this book uses (torch, numpy, matplotlib, seaborn and a kernel, in the versions of the lock) and not
the library. The first cell installs the library from a local stand-in for the public address: a
repository with the files as they stand here. The environment is made once; the library is
uninstalled between the notebooks, what came with it stays.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from datetime import datetime
from pathlib import Path

from notebook_form import loads, notebooks
from tree import ROOT, copy

SHIPPED = ("torch", "numpy", "matplotlib", "seaborn", "ipykernel", "nbclient", "nbformat")


def make_environment(folder: Path) -> Path:
    """A fresh virtual environment with what Colab ships; returns its folder of programs."""
    venv.create(folder, with_pip=True)
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    wanted = [line for line in lines if line.partition("==")[0] in SHIPPED]
    programs = folder / "bin"
    pip = [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # The pip that comes with Python 3.11 takes no file:// address after "name @".
    subprocess.run([*pip, "--upgrade", "pip"], check=True)
    subprocess.run([*pip, *wanted], check=True)
    return programs


def seconds(path: Path) -> list[float]:
    """How long each code cell of an executed notebook took."""
    found = []
    for cell in loads(path.read_text()).cells:
        if cell.cell_type == "code":
            times = cell.metadata.execution
            start, end = times["iopub.status.busy"], times["iopub.status.idle"]
            difference = datetime.fromisoformat(end) - datetime.fromisoformat(start)
            found.append(difference.total_seconds())
    return found


def run_alone(notebook: Path, programs: Path, source: str) -> bool:
    """Run a copy of the notebook in an empty folder; report how long its cells took."""
    with tempfile.TemporaryDirectory(prefix="alone-") as scratch:
        folder, home = Path(scratch, "folder"), Path(scratch, "home")
        folder.mkdir()
        home.mkdir()
        alone = shutil.copy(notebook, folder)
        # Nothing of this repository, of this user or of the calling environment leads inside.
        leave_out = ("PYTHON", "VIRTUAL_ENV", "JUPYTER", "ATTENTION_LIB", "XDG_", "MPL")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(leave_out)}
        environment |= {
            "HOME": str(home),
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "ATTENTION_LIB_SOURCE": source,
        }
        inside = {"cwd": folder, "env": environment, "capture_output": True, "text": True}
        look = [programs / "python", "-c", "import attention_lib"]
        if subprocess.run(look, **inside).returncode == 0:
            raise SystemExit("the library is already installed; this would show nothing")
        run = [programs / "jupyter-execute", "--inplace", "--timeout=900", alone]
        done = subprocess.run(run, **inside)
        if done.returncode:
            print(f"{notebook.name}: FAILED\n{done.stderr[-3000:]}")
        else:
            first, *rest = seconds(Path(alone))
            print(f"{notebook.name}: first cell {first:.1f} s, all others {sum(rest):.1f} s")
        pip = [programs / "python", "-m", "pip", "--disable-pip-version-check", "uninstall"]
        subprocess.run([*pip, "--yes", "--quiet", "attention-lib"], check=True, **inside)
    return done.returncode == 0


def main() -> int:
    """Run the named notebooks, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NB")
    chosen = parser.parse_args().notebooks or notebooks()
    with tempfile.TemporaryDirectory(prefix="standalone-") as scratch:
        address = Path(scratch, "public")
        source = f"git+{copy(address).as_uri()}"
        print(f"{len(chosen)} notebooks, one environment; making it ...", flush=True)
        programs = make_environment(Path(scratch, "environment"))
        results = [run_alone(path, programs, source) for path in chosen]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
