"""The files of the repository as they stand, and copies of them to try things on."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def git(*arguments: str, cwd: Path) -> str:
    """What a git command prints."""
    done = subprocess.run(["git", *arguments], cwd=cwd, check=True, capture_output=True, text=True)
    return done.stdout


def files(root: Path = ROOT) -> list[Path]:
    """Every file that is tracked, or new and not ignored."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=root)
    paths = sorted({root / name for name in listed.split("\0") if name})
    return [path for path in paths if path.is_file()]


def texts(root: Path = ROOT) -> dict[Path, str]:
    """The files that hold text, and their text."""
    found = {}
    for path in files(root):
        try:
            found[path] = path.read_bytes().decode()
        except UnicodeDecodeError:
            continue
    return found


def copy(destination: Path, root: Path = ROOT) -> Path:
    """Copy the files to a new repository with one commit."""
    destination.mkdir(parents=True, exist_ok=True)
    for path in files(root):
        target = destination / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    git("init", "--quiet", cwd=destination)
    git("add", "--all", cwd=destination)
    author = ("-c", "user.name=book", "-c", "user.email=book@example.org")
    git(*author, "commit", "--quiet", "--message", "The tree as it stands", cwd=destination)
    return destination
