"""Pack the book for readers without a network: python tools/archive.py

Writes into _build/:
attention-html.zip       the built pages; unpack and open attention/index.html, no server needed
attention-notebooks.zip  the notebooks and the library; after one `make data` they run offline
"""

import zipfile
from pathlib import Path

from tree import ROOT, files

BUILD = ROOT / "_build"
# What a reader of the notebooks needs: the Makefile makes the environment and fetches the data.
PARTS = ("Makefile", "README.md", "LICENSE", "LICENSE-text", "pyproject.toml", "requirements.txt")
FOLDERS = ("attention_lib", "chapters")


def pack(name: str, content: dict[str, Path]) -> Path:
    """A zip in which every file lies in one folder; the same files give the same bytes."""
    path = BUILD / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for inside, file in sorted(content.items()):
            entry = zipfile.ZipInfo(f"attention/{inside}")
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, file.read_bytes())
    print(f"{path.relative_to(ROOT)}: {len(content)} files, {path.stat().st_size:,} bytes")
    return path


def html_files() -> dict[str, Path]:
    """The built pages, without what only a server of sources would use."""
    site = BUILD / "html"
    if not (site / "index.html").is_file():
        raise SystemExit("the book is not built: run `make book`")
    return {str(path.relative_to(site)): path for path in site.rglob("*") if path.is_file()}


def notebook_files() -> dict[str, Path]:
    """The notebooks, the library, and what installs them."""
    inside = {path.relative_to(ROOT): path for path in files()}
    return {
        str(name): path
        for name, path in inside.items()
        if name.parts[0] in FOLDERS or str(name) in PARTS
    }


if __name__ == "__main__":
    pack("attention-html.zip", html_files())
    pack("attention-notebooks.zip", notebook_files())
