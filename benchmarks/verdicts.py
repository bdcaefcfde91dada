"""The table of targets: what was aimed at, what each run found, and whether that is enough."""

import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from words import Records, Row, pairs, ratio, seconds, table


class Target(NamedTuple):
    """One line of the table of targets: what each run found, as text, and whether it is enough."""

    what: str
    target: str  # begins with "at most", "at least" or "below"
    found: list[str]
    met: str


def judge(values: list[float], most: float, lows: list[float] | None = None) -> str:
    """Whether all runs stay below a limit, themselves or with the lower end of their interval."""
    if max(values) <= most:
        return "met"
    if lows is not None and max(lows) <= most:
        return "within noise"
    return "**missed**"


def geometric(rows: list[Row]) -> tuple[float, float]:
    """Geometric mean of the ratios, and half the width of its 95 % interval.

    The rows are timed one after another, so their errors are independent; that of a row is taken
    from the 95 % interval of its median, and the errors of the logarithms add up in squares.
    """
    mean = math.exp(statistics.mean(math.log(row["ratio"]["median"]) for row in rows))
    halves = [math.log(row["ratio"]["to"] / row["ratio"]["from"]) / 2 for row in rows]
    return mean, mean * math.hypot(*halves) / len(rows)


def mean_target(what: str, limit: float, runs: list[list[Row]]) -> Target:
    """The line of a geometric mean."""
    means = [geometric(rows) for rows in runs]
    return Target(
        f"{what}: geometric mean of the rows",
        f"at most {limit:.2f}",
        [f"{mean:.2f} ± {half:.2f}" for mean, half in means],
        judge([round(mean, 2) for mean, _ in means], limit, [mean - half for mean, half in means]),
    )


def modules(records: Records, group: str, what: str) -> Iterator[Target]:
    """Mean and worst row of a module against its fastest peers."""
    runs = records[group]
    for backward in sorted({row["backward"] for row in runs[0]["rows"]}):
        chosen = [[row for row in run["rows"] if row["backward"] == backward] for run in runs]
        worst = [max(rows, key=lambda row: row["ratio"]["median"])["ratio"] for rows in chosen]
        direction = "forward + backward" if backward else "forward"
        yield mean_target(f"{what}, {direction}", 1.00, chosen)
        yield Target(
            f"{what}, {direction}: worst row", "at most 1.05", [ratio(one) for one in worst],
            judge([one["median"] for one in worst], 1.05, [one["from"] for one in worst]),
        )  # fmt: skip


def plain(records: Records) -> Iterator[Target]:
    """attend() against the bare kernel."""
    chosen = [[row for row in run["rows"] if row["target"]] for run in records["attend"]]
    worst = [max(rows, key=lambda row: row["ratio"]["median"])["ratio"] for rows in chosen]
    yield mean_target("`attend` against bare SDPA", 1.02, chosen)
    yield Target(
        "`attend` against bare SDPA: worst row", "at most 1.02", [ratio(one) for one in worst],
        judge([one["median"] for one in worst], 1.02, [one["from"] for one in worst]),
    )  # fmt: skip


def tiled(records: Records) -> Iterator[Target]:
    """Memory and time of tiled attention."""
    rows = pairs(records["tiled"])
    length = rows[0][0]["shape"][1]
    for some in rows:
        first = some[0]
        most = (2.0 if first["backward"] else 1.5) if not first["causal"] else 1.7
        if first["backward"]:
            most = 2.0
        name = ("causal, " if first["causal"] else "") + (
            "forward + backward" if first["backward"] else "forward"
        )
        yield Target(
            f"tiled, length {length:,}, {name}: time of SDPA", f"at most {most:.1f}",
            [ratio(row["ratio"]) for row in some],
            judge([r["ratio"]["median"] for r in some], most, [r["ratio"]["from"] for r in some]),
        )  # fmt: skip
        parts = [row["bytes"] / row["explicit"]["bytes"] for row in some]
        yield Target(
            f"tiled, {name}: memory of the explicit path", "at most 5 %",
            [f"{part:.2%}" for part in parts], judge(parts, 0.05),
        )  # fmt: skip


def at_least(
    records: Records, group: str, what: Callable[[Row], str], times: int
) -> Iterator[Target]:
    """Something that must be so many times faster."""
    for some in pairs(records[group]):
        if some[0]["target"]:
            found = [1 / row["ratio"]["median"] for row in some]
            met = min(found) >= times
            texts = [f"{value:.0f}" for value in found]
            yield Target(
                what(some[0]), f"at least {times} times", texts, "met" if met else "**missed**"
            )


def window(row: Row) -> str:
    """What the target of the sliding window is called."""
    return f"sliding window of {row['window']} at length {row['shape'][1]:,}: faster than full SDPA"


def decoding(row: Row) -> str:
    """What the target of decoding is called."""
    return f"one token from a cache of {row['cached']:,}, {row['model']}: faster than recomputing"


def training(records: Records) -> Iterator[Target]:
    """The training step."""
    for some in pairs(records["training"]):
        if some[0]["target"]:
            yield Target(
                "training step of the GPT of chapter 11 against a plain GPT", "at most 0.90",
                [ratio(row["ratio"]) for row in some],
                judge([r["ratio"]["median"] for r in some], 0.9),
            )  # fmt: skip


def importing(records: Records) -> Iterator[Target]:
    """The import."""
    found = [row["seconds"]["median"] for (row,) in (run["rows"] for run in records["importing"])]
    yield Target(
        "importing `attention_lib` on top of torch", "below 0.2 s",
        [seconds(value) for value in found], judge(found, 0.2),
    )  # fmt: skip


TARGETS: tuple[tuple[str, Callable[[Records], Iterator[Target]]], ...] = (
    ("attention", lambda records: modules(records, "attention", "`MultiHeadAttention`")),
    ("block", lambda records: modules(records, "block", "encoder block")),
    ("attend", plain),
    ("tiled", tiled),
    ("window", lambda records: at_least(records, "window", window, 10)),
    ("decoding", lambda records: at_least(records, "decoding", decoding, 100)),
    ("training", training),
    ("importing", importing),
)  # fmt: skip


def kernels(runs: list[dict[str, Any]]) -> Iterator[Target]:
    """The Triton kernels against PyTorch's, the slowest of all rows."""
    for what, least in (("forward", 0.8), ("forward and backward", 0.7)):
        name = f"Triton kernel on a GPU, {what}: speed of PyTorch's, worst row"
        rows = [[row for row in run["rows"] if row["what"] == what] for run in runs]
        found = [min(row["speed"] for row in some) for some in rows]
        met = "not measured" if not found else "met" if min(found) >= least else "**missed**"
        yield Target(name, f"at least {least}", [f"{value:.2f}" for value in found], met)


def short(target: str) -> str:
    """A target in signs, for a narrow column."""
    signs = {"at most": "≤", "at least": "≥", "below": "<"}
    word = next(word for word in signs if target.startswith(word))
    return unbroken(signs[word] + target.removeprefix(word))


def unbroken(words: str) -> str:
    """The same with spaces at which no line is broken."""
    return words.replace(" ", "\N{NO-BREAK SPACE}")


def targets(records: Records, gpu: list[dict[str, Any]]) -> str:
    """The table of targets."""
    found = [line for group, make in TARGETS if group in records for line in make(records)]
    found += kernels(gpu)
    rows = [[line.what, short(line.target), *map(unbroken, line.found), line.met] for line in found]
    runs = max(len(line.found) for line in found)
    rows = [[*row[:-1], *[""] * (runs + 3 - len(row)), row[-1]] for row in rows]
    head = ["what", "target", *(f"run {number + 1}" for number in range(runs)), "verdict"]
    return table(head, rows)
