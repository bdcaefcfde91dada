"""The library beside its peers: one process, rounds in which everybody runs once, ratios.

    python benchmarks/run.py                                  # everything, on a machine at rest
    python benchmarks/run.py --groups attention block --seconds 20
    python benchmarks/run.py --page                           # writes chapters/benchmarks.md

Each group goes to benchmarks/results/GROUP.json, where its last two runs stand. Needs the extra
``benchmarks`` of the package.
"""

import argparse
import datetime
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from figure import draw
from page import text
from words import GROUPS, machine, read

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "chapters" / "benchmarks.md"
FIGURE = ROOT / "_static" / "curves.svg"
KEPT = 2  # runs of a group
PACKAGES = ("torch", "transformers", "x-transformers", "numpy")


def main() -> None:
    """Measure and record, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--seconds", type=float, default=10.0, help="for each case, at least")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="short sequences, to try it out")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", action="store_true", help="write the page and measure nothing")
    arguments = parser.parse_args()
    if arguments.page:
        PAGE.write_text(text(arguments.results), encoding="utf-8")
        draw(read(arguments.results)["curves"][-1]["rows"], FIGURE)
        print(f"written to {PAGE.relative_to(ROOT)}")
        return
    for group in arguments.groups:
        measure(group, arguments)


def measure(group: str, arguments: argparse.Namespace) -> None:
    """Measure one group, print its rows, and put the run into its record."""
    import torch
    from groups import BY_NAME, Settings
    from rounds import rounded

    torch.set_num_threads(arguments.threads)
    settings = Settings(arguments.seconds, arguments.small)
    load, began = os.getloadavg()[0], datetime.datetime.now(datetime.UTC)
    rows = []
    for row in BY_NAME[group](settings):
        rows.append(rounded(row))
        print(group, shown(rows[-1]), flush=True)
    run = {
        "date": str(began.date()),
        "minutes": round((datetime.datetime.now(datetime.UTC) - began).total_seconds() / 60, 1),
        "command": f"python benchmarks/run.py --groups {group} --seconds {arguments.seconds:g} "
        f"--threads {arguments.threads}" + (" --small" if arguments.small else ""),
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "load before": round(load, 2),
        "machine": machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "rows": rows,
    }
    path = arguments.results / f"{group}.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    runs = [*earlier, run][-KEPT:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


def shown(row: dict[str, Any]) -> str:
    """A row as it is printed while the program runs."""
    case = {
        name: value
        for name, value in row.items()
        if not isinstance(value, dict)
        and name not in ("rounds", "calls a timing", "fastest", "ours")
    }
    named = ", ".join(f"{name} {value}" for name, value in case.items())
    if "ratio" not in row:
        return f"{named}: {row['seconds']}"
    ratio = row["ratio"]
    noise = f", noise {row['noise']['median']:.3f}" if "noise" in row else ""
    return (
        f"{named}: {ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f}) "
        f"of {' / '.join(dict.fromkeys(row['fastest']))}{noise}, {row['rounds']} rounds"
    )


if __name__ == "__main__":
    main()
