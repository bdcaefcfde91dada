"""What the log of every training says about the run and about the weights that it made."""

import hashlib
import platform
from pathlib import Path

import torch


def machine() -> dict[str, str]:
    """What the numbers of a run depend on, besides its command."""
    return {"torch": torch.__version__, "processor": platform.machine()}


def checksum(path: Path) -> str:
    """SHA-256 of a file of weights."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
