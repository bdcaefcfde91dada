"""Set the book's public address everywhere: python tools/retarget.py owner/name

The one setting is `[project.urls] Repository` in pyproject.toml. From there the old address is
known, and it is replaced in every file of the repository that holds it.
"""

import argparse
import re
import tomllib
from pathlib import Path

from tree import ROOT, texts

# GitHub's own rules: an owner has no two hyphens in a row and none at an end.
OWNER = r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*"
NAME = r"[A-Za-z0-9._-]+"
# What stands before owner/name in an address of the code, of Colab, of Binder, of raw files.
BEFORE = r"(github\.com[/:]|/github/|/gh/|githubusercontent\.com/)"
AFTER = r"(?![A-Za-z0-9_-])"


def address(root: Path = ROOT) -> tuple[str, str]:
    """Owner and name of the public repository."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    found = re.fullmatch(rf"https://github\.com/({OWNER})/({NAME})", project["urls"]["Repository"])
    if not found:
        raise SystemExit("pyproject.toml: Repository must be https://github.com/owner/name")
    return found[1], found[2]


def retarget(owner: str, name: str, root: Path = ROOT) -> list[Path]:
    """Replace the old address by the new one; returns the files that changed."""
    old_owner, old_name = map(re.escape, address(root))
    changed = []
    for path, text in texts(root).items():
        new = re.sub(rf"{BEFORE}{old_owner}/{old_name}{AFTER}", rf"\g<1>{owner}/{name}", text)
        pages = rf"https://{old_owner}\.github\.io/{old_name}{AFTER}"
        new = re.sub(pages, f"https://{owner}.github.io/{name}", new)
        if new != text:
            path.write_bytes(new.encode())
            changed.append(path)
    return changed


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", help="owner/name on GitHub")
    wanted = parser.parse_args().repository
    found = re.fullmatch(rf"({OWNER})/({NAME})", wanted)
    if not found or found[2].endswith(".git") or found[2] in {".", ".."}:
        parser.error(f"repository must be owner/name, got {wanted!r}")
    changed = retarget(found[1], found[2])
    for path in changed:
        print(path.relative_to(ROOT))
    print(f"{len(changed)} files changed; the address is https://github.com/{wanted}")


if __name__ == "__main__":
    main()
