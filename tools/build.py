"""Build the HTML book from the stored outputs, with every warning an error.

Nothing is executed and nothing is fetched. If nothing changed since the last good build there is
nothing to do. If anything changed all pages are made anew: a page that Sphinx keeps from an earlier
build would repeat none of its warnings and would not see an edit in the library.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
PAGE = BUILD / "html" / "index.html"
STAMP = BUILD / ".built-from"
SOURCES = (
    "_config.yml",
    "_static",
    "_toc.yml",
    "attention_lib",
    "chapters",
    "requirements.txt",
    "tools/book_extension",
    "tools/build.py",
)


def main() -> int:
    """Build if needed, and say where to open the result."""
    key = fingerprint()
    if not (PAGE.is_file() and STAMP.is_file() and STAMP.read_text() == key):
        shutil.rmtree(BUILD, ignore_errors=True)
        if build():
            print("\nThe book was not built: each warning above is an error.", file=sys.stderr)
            return 1
        STAMP.write_text(key)
    print(f"\nThe book is built. Open {PAGE.as_uri()} or run `make serve`.")
    return 0


def build() -> int:
    """Run Jupyter Book and return its exit status."""
    command = [str(Path(sys.executable).parent / "jupyter-book"), "build", str(ROOT)]
    command += ["--warningiserror", "--nitpick", "--keep-going", "--quiet"]
    # The reference documents the library that stands beside it, whatever else is installed.
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode


def fingerprint() -> str:
    """A hash of everything that the pages are made from."""
    digest = hashlib.sha256()
    for name in SOURCES:
        top = ROOT / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and path.parent.name not in ("__pycache__", ".ipynb_checkpoints"):
                digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    raise SystemExit(main())
