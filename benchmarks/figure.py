"""The figure of the benchmarks' page: time and memory by length, from the last run's record."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

UNITS = {"seconds": "time (s)", "bytes": "memory (MB)"}


def fingerprint(rows: list[dict[str, Any]]) -> str:
    """What tells whether a figure was drawn from these rows."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the figure as SVG, the same bytes for the same rows."""
    import matplotlib as mpl

    from attention_lib.plots import MARKERS, plt, use_style

    use_style()
    mpl.rcParams["svg.hashsalt"] = "curves"
    figure, panels = plt.subplots(2, 1, figsize=(5.0, 6.2), sharex=True)
    ways = list(dict.fromkeys(row["way"] for row in rows))
    for panel, (what, label) in zip(panels, UNITS.items(), strict=True):
        for way, marker in zip(ways, MARKERS, strict=False):
            some = [row for row in rows if row["way"] == way]
            values = [row[what] / (1e6 if what == "bytes" else 1) for row in some]
            panel.plot([row["length"] for row in some], values, marker=marker, label=way)
        panel.set(xscale="log", yscale="log", ylabel=label)
    lengths = sorted({row["length"] for row in rows})[::2]
    panels[1].set_xticks(lengths, [f"{length:,}" for length in lengths])
    panels[1].set_xlabel("length n")
    panels[1].minorticks_off()
    panels[0].legend()
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Title": fingerprint(rows)})
    plt.close(figure)
    text = file.getvalue()
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")
