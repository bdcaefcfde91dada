"""Renew requirements.txt: install the newest versions that pyproject.toml allows, write them down.

torch stays at the version of the present lock unless ``--torch VERSION`` says otherwise: it decides
the numbers, and it is the one package of which the CPU build must exist on every machine we test.
"""

import argparse
import re
import subprocess
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = """\
# The tested lock: exact versions of everything `make book` and `make test` use.
# Written by `make lock`; ranges for users of the package are in pyproject.toml.
"""


def main() -> None:
    """Build a scratch environment, freeze it, write the lock."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", help="version of torch to lock, or 'newest'")
    torch = parser.parse_args().torch or _locked_torch()
    with tempfile.TemporaryDirectory() as scratch:
        venv.create(scratch, with_pip=True)
        pip = [f"{scratch}/bin/python", "-m", "pip", "--disable-pip-version-check"]
        project = f"{ROOT}[chapters,book,test]"
        wanted = "torch" if torch == "newest" else f"torch=={torch}"
        subprocess.run([*pip, "install", "--quiet", wanted, project], check=True)
        frozen = subprocess.run(
            [*pip, "freeze", "--exclude", "attention-lib"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    # "+cpu" names one build; other platforms have the same version under the plain number.
    lines = [re.sub(r"\+[a-z0-9]+$", "", line) for line in frozen.splitlines()]
    (ROOT / "requirements.txt").write_text(HEADER + "\n".join(lines) + "\n-e .\n")
    print(f"requirements.txt: {len(lines)} packages; now run `make test`")


def _locked_torch() -> str:
    return re.search(r"^torch==(\S+)$", (ROOT / "requirements.txt").read_text(), re.M)[1]


if __name__ == "__main__":
    main()
