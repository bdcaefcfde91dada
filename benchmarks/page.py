"""The page of the book that shows what the benchmarks found; all numbers are in the records."""

import math
import statistics
from pathlib import Path
from typing import Any

from verdicts import targets
from words import Records, Row, case, pairs, ratio, read, read_gpu, seconds, size, table

HEAD = """\
# Benchmarks

How fast is `attention_lib` beside the libraries that people use, and how much memory does it take?
Each row compares our code with others that compute the same numbers; before anything is timed the
outputs are compared. A ratio is our time divided by theirs, so below 1 we are faster. The targets
were set before anything was measured.

`make benchmarks` measures all of it and writes this page; a test keeps the page equal to the
records in `benchmarks/results`.

"""
HOW = """\
## How it is measured

- One process. In each round every competitor runs once, in an order that rotates, and a ratio is
  taken within the round. The tables show the median over the rounds and, in brackets, the
  quartiles. Short calls are repeated within a timing.
- The opponent is the fastest peer of the row. The least of several noisy medians is too small, so
  the opponent is chosen in every second round and measured in the others, and the other way round.
  Who was more than twice as slow as the fastest peer in the first calls was not timed further.
- The peers run at their best settings: `torch.nn` with and without its fast path, Hugging Face with
  `sdpa` (GPT-2, which packs its projections, and CLIP, which does not), x-transformers with
  `flash`. x-transformers has no biases in its projections, the others have.
- Forward passes run in inference mode. Backward passes give the gradients of the input and of all
  parameters.
- Noise: the same code of ours stands in each round a second time. {noise}
- A target is met within the noise if the interval that holds the median of the ratios with 95 %
  confidence (from resampling the rounds) reaches down to it. Every run must meet it. What stands
  behind ± is half such an interval of a geometric mean, made from those of its rows.
- Memory is what PyTorch's allocator hands out at most at one time during the call, inputs not
  counted.

"""


# --- one table a group ---------------------------------------------------------------------------


def rows_of(records: Records, group: str) -> str:
    """One line for each case: our time, the ratio of each run, the opponent."""
    runs = records[group]
    lines = []
    for some in pairs(runs):
        first = some[0]
        name = case(first)
        if group == "decoding":
            name = f"{first['model']}, {first['cache']}"
        elif group == "training":
            name = f"{first['model']}, {first['parameters'] / 1e6:.2f} M"
        ours = seconds(statistics.mean(row["seconds"][row["ours"]]["median"] for row in some))
        others = " / ".join(dict.fromkeys(peer for row in some for peer in row["fastest"]))
        digits = [ratio(row["ratio"]) for row in some]
        if group in ("decoding", "window"):
            digits = [f"{1 / row['ratio']['median']:.3g} times faster" for row in some]
        lines.append([name, ours, *digits, others])
    head = ["case", "ours", *(f"run {number + 1}" for number in range(len(runs))), "against"]
    return table(head, lines)


SECTIONS = {
    "attention": (
        "Multi-head attention",
        "Self-attention with its four projections. A case is batch × length, width/heads; where "
        "nothing else is said it is one forward pass.",
    ),
    "block": ("Encoder block", "Pre-norm, with a network of four times the width and GELU."),
    "attend": (
        "Attention alone",
        "`attend` against the kernel that it calls, `scaled_dot_product_attention`. Rows with "
        "padding or a window are no target: the kernel gets the finished mask there, and `attend` "
        "has to write it out from its rule and to look for rows that allow nothing.",
    ),
    "tiled": ("Tiled attention", "{tiled}"),
    "window": (
        "Sliding window",
        "`attend_window` with 256 keys against PyTorch's kernel on all keys, or on all earlier "
        "ones.",
    ),
    "decoding": (
        "One more token",
        "Two models in the layout of Llama with random weights, one small, one of the sizes of "
        "SmolLM2-135M, with {decoding} tokens before. What is recomputed are all states and the "
        "logits of the last position. A cache with room writes into memory that was set aside, "
        "the other one copies all that it holds.",
    ),
    "training": (
        "Training step",
        "Four layers of width 128, 12 windows of 64 characters: loss, gradients, clipping, AdamW. "
        "The plain GPT has the layers of nanoGPT. Its published settings take AdamW's fused step "
        "on GPUs only; with it, it is the stronger opponent, and that is the target. The best "
        "recipe of chapter 11 is another model with another optimizer (Muon), shown beside it.",
    ),
}


def tiled_text(records: Records) -> str:
    """What the memory is compared with."""
    row = records["tiled"][-1]["rows"][0]
    score, lengths = row["explicit"]["a score"], row["explicit"]["lengths"]
    return (
        f"Eight heads of 64. The explicit path does not fit; it takes {score:.1f} bytes for each "
        f"score of each head in a forward pass (measured between lengths {lengths[0]:,} and "
        f"{lengths[1]:,}), which makes {size(row['explicit']['bytes'])} here. A single float32 "
        f"matrix of scores for each head would be {size(one_matrix(row))}."
    )


def one_matrix(row: Row) -> float:
    """Bytes of one matrix of scores for each head."""
    _, length, _, heads = row["shape"]
    return 4 * heads * length**2


def memory(records: Records) -> str:
    """Memory of tiled attention."""
    lines = [
        [
            case(row), size(row["bytes"]), size(row["bytes of SDPA"]),
            size(row["explicit"]["bytes"]), f"{row['bytes'] / row['explicit']['bytes']:.2%}",
        ]
        for row in records["tiled"][-1]["rows"]
    ]  # fmt: skip
    return table(["memory of", "tiled", "SDPA", "explicit, computed", "part"], lines)


FIGURE = """\
```{figure} ../_static/curves.svg
:alt: Two log-log panels over lengths from 512 to 32,768, time above, memory below. The explicit
  path climbs steepest and ends at 4,096. In the panel of time, tiled and PyTorch's kernel climb
  side by side, window and linear attention far below them and less steeply. In the panel of
  memory these four climb with the same gentle slope, far below the explicit path.
:name: fig-curves
:width: 480px

Time and memory by length, on double logarithmic axes. Exact attention in tiles takes quadratic time
like PyTorch's kernel, and memory that is linear in the length; a window and linear attention are
linear in both.
```

"""


def curves(records: Records) -> str:
    """Time and memory of the last run, by length."""
    rows = records["curves"][-1]["rows"]
    ways, lengths = (list(dict.fromkeys(row[key] for row in rows)) for key in ("way", "length"))
    found = {(row["way"], row["length"]): row for row in rows}
    quadratic = found["explicit", max(n for way, n in found if way == "explicit")]

    def cell(way: str, length: int, what: str) -> str:
        shown = seconds if what == "seconds" else size
        if (way, length) in found:
            return shown(found[way, length][what])
        computed = quadratic[what] * (length / quadratic["length"]) ** 2
        return f"({shown(computed)})"

    text = (
        "## Growing length\n\nOne sequence, eight heads of 64, a forward pass. Numbers in brackets "
        "are computed: the explicit path does not fit there, and its last measured value grows "
        "with the square of the length. A window has 256 keys. Linear attention and the window "
        "compute something else than the other three.\n\n"
    )
    text += FIGURE
    for what in ("seconds", "bytes"):
        lines = [[f"{n:,}", *(cell(way, n, what) for way in ways)] for n in lengths]
        text += table(["time" if what == "seconds" else "memory", *ways], lines)
    return text


# --- what the machine was, and the noise ---------------------------------------------------------


def noise(records: Records) -> str:
    """How far two copies of the same code lie apart."""
    found = [row["noise"] for runs in records.values() for run in runs for row in run["rows"]
             if "noise" in row]  # fmt: skip
    if not found:
        return "Not measured."
    away = sorted(abs(one["median"] - 1) for one in found)
    part = away[math.ceil(0.9 * len(away)) - 1]
    return (
        f"Over all {len(found)} rows that have it, its ratio to itself is off 1.00 by "
        f"{statistics.median(away):.1%} in the median and by at most {part:.1%} in nine rows of "
        f"ten; the worst is off by {away[-1]:.1%}."
    )


def machine(records: Records) -> str:
    """Where and when."""
    lines = []
    for number in range(max(map(len, records.values()))):
        some = [runs[number] for runs in records.values() if number < len(runs)]
        dates, loads = sorted({run["date"] for run in some}), [run["load before"] for run in some]
        lines.append([
            f"run {number + 1}", " and ".join(dates), f"{sum(run['minutes'] for run in some):.0f}",
            f"{min(loads):g} to {max(loads):g}",
        ])  # fmt: skip
    last = next(iter(records.values()))[-1]
    versions = ", ".join(f"{name} {number}" for name, number in last["versions"].items())
    commands = dict.fromkeys(run["command"] for runs in records.values() for run in runs)
    return (
        f"## Machine and runs\n\n{last['machine']}, processors: {last['processors']}, "
        f"threads: {last['threads']}, float32. Python {last['python']}, {versions}. The load is "
        "that of the machine when a group began, what was measured before it included.\n\n"
        + table(["run", "date", "minutes", "load"], lines)
        + "".join(f"- `{command}`\n" for command in commands)
    )


def tried(folder: Path) -> str:
    """What was tried for the rows that missed their target, kept beside the records."""
    path = folder / "tried.md"
    return path.read_text(encoding="utf-8") + "\n" if path.exists() else ""


def kernel_rows(runs: list[dict[str, Any]]) -> str:
    """The rows of the Triton kernels, and where they ran."""
    if not runs:
        return ""
    head = ["case", *(f"run {number + 1}" for number in range(len(runs)))]
    lines = []
    for some in zip(*(run["rows"] for run in runs), strict=True):
        first = some[0]
        name = f"{first['length']:,}, width {first['width']}, {first['what']}"
        cells = [
            f"{row['speed']:.2f} ({row['quartiles'][0]:.2f}–{row['quartiles'][1]:.2f})"
            for row in some
        ]
        lines.append([name, *cells])
    where = runs[-1]["machine"]
    return (
        f"## Triton kernels\n\nCausal, bfloat16, {runs[-1]['rows'][0]['heads']} heads, on one "
        f"{where['device']} with torch {where['torch']} and triton {where['triton']}. The numbers "
        "are the speed as a part of that of PyTorch's FlashAttention kernel: 1 is equally fast, "
        "more is faster.\n\n"
        + table(head, lines)
        + "".join(f"- {run['machine']['date']}: `{run['machine']['command']}`\n" for run in runs)
        + "\n"
    )


def text(folder: Path) -> str:
    """The page."""
    records, gpu = read(folder), read_gpu(folder)
    page = HEAD + "## Targets\n\n" + targets(records, gpu) + tried(folder)
    fill = {}
    if "tiled" in records:
        fill["tiled"] = tiled_text(records)
    if "decoding" in records:
        row = records["decoding"][-1]["rows"][0]
        fill["decoding"] = f"{row['cached']:,}"
    for group, (title, about) in SECTIONS.items():
        if group in records:
            page += f"## {title}\n\n{about.format(**fill)}\n\n{rows_of(records, group)}"
            if group == "tiled":
                page += memory(records)
    if "curves" in records:
        page += curves(records)
    return page + kernel_rows(gpu) + HOW.format(noise=noise(records)) + machine(records)
