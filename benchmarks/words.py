"""Records of the benchmarks, and their numbers as text."""

import json
import platform
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Run = dict[str, Any]
Records = dict[str, list[Run]]  # the runs of each group, the older one first

GROUPS = (
    "attention", "block", "attend", "tiled", "window", "decoding", "training", "importing",
    "curves",
)  # fmt: skip


def read(folder: Path) -> Records:
    """The records of all groups."""
    found = {}
    for group in GROUPS:
        path = folder / f"{group}.json"
        if path.exists():
            found[group] = json.loads(path.read_text(encoding="utf-8"))
    return found


def read_gpu(folder: Path) -> list[dict[str, Any]]:
    """The records of benchmarks/triton_attention.py, the older one first."""
    return [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("triton*.json"))
    ]


def machine() -> str:
    """Architecture, and what the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()}, {platform.processor()}"
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"{platform.machine()}, {next(names, 'unknown')}"


def ratio(found: dict[str, float]) -> str:
    """A median with its quartiles."""
    return f"{found['median']:.2f} ({found['low']:.2f}–{found['high']:.2f})"


def seconds(value: float) -> str:
    """A time that is easy to read."""
    if value < 1e-3:
        return f"{value * 1e6:.0f} µs"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def size(count: float) -> str:
    """Bytes that are easy to read."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n\n"


def case(row: Row) -> str:
    """The case of a row, in few characters."""
    parts = []
    if "shape" in row:
        batch, length, width, heads = row["shape"]
        parts.append(f"{batch} × {length}, {width}/{heads}")
    if row.get("causal"):
        parts.append("causal")
    if row.get("mask", "none") != "none":
        parts.append(row["mask"])
    if row.get("backward"):
        parts.append("+ backward")
    return ", ".join(parts)


def pairs(runs: list[Run]) -> list[list[Row]]:
    """The same row of all runs, side by side."""
    return [list(rows) for rows in zip(*(run["rows"] for run in runs), strict=True)]
