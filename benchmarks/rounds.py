"""Timing side by side: rounds in which every competitor runs once, and ratios within a round.

A machine that is slow for a while is slow for all competitors of a round, so a ratio within a round
feels it less than a quotient of two averages. The order rotates, so that nobody always runs first.
"""

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LEAST = 0.02  # seconds of one timing; shorter calls are repeated within it
TRIALS, HOPELESS = 3, 2.0  # who is that much slower in the trial rounds is not timed further
MOST = 200  # rounds, so that a record stays small

Call = Callable[[], object]


@dataclass
class Rounds:
    """Seconds of one call of each competitor, round by round; and who was left out, how slow."""

    seconds: dict[str, list[float]]
    calls: int
    left_out: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.seconds.values())))


def alternate(
    competitors: Mapping[str, Call],
    *,
    seconds: float,
    least: int = 8,
    keep: Sequence[str] = (),
) -> Rounds:
    """Run rounds for that many seconds, and at least ``least`` of them, an even number.

    Args:
        competitors: What to time.
        seconds: How long.
        least: Fewest rounds; an even number.
        keep: Who is timed however slow it is in the trial rounds.

    Returns:
        The seconds of each call.
    """
    trials = {name: _best(call, TRIALS) for name, call in competitors.items()}
    others = {name: trial for name, trial in trials.items() if name not in keep}
    limit = HOPELESS * min(others.values(), default=0)
    left_out = {name: trial for name, trial in others.items() if trial > limit}
    names = [name for name in competitors if name not in left_out]
    calls = max(1, round(LEAST / min(trials.values())))
    taken: dict[str, list[float]] = {name: [] for name in names}
    done, end = 0, time.perf_counter() + seconds
    gc.collect()
    gc.disable()
    try:
        while done < least or done % 2 or (time.perf_counter() < end and done < MOST):
            first = done % len(names)
            for name in names[first:] + names[:first]:
                call = competitors[name]
                start = time.perf_counter()
                for _ in range(calls):
                    call()
                taken[name].append((time.perf_counter() - start) / calls)
            done += 1
    finally:
        gc.enable()
    return Rounds(taken, calls, left_out)


def _best(call: Call, times: int) -> float:
    """The least of some calls, after one that warms up."""
    call()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
        if found[-1] > 1:  # of long calls one is enough
            break
    return min(found)


# --- what the rounds say -------------------------------------------------------------------------


def ratios(
    rounds: Rounds, ours: str, theirs: str, which: Sequence[int] | None = None
) -> list[float]:
    """Our time over theirs, in each round."""
    which = range(len(rounds)) if which is None else which
    a, b = rounds.seconds[ours], rounds.seconds[theirs]
    return [a[index] / b[index] for index in which]


def against_fastest(
    rounds: Rounds, ours: str, peers: Sequence[str]
) -> tuple[list[float], list[str]]:
    """Our time over that of the fastest peer, in each round.

    The least of several noisy medians is too small, and so a ratio against it too large. Therefore
    the peer is chosen in the odd rounds and measured in the even ones, and the other way round.

    Args:
        rounds: An even number of them.
        ours: Who is compared.
        peers: With whom.

    Returns:
        The ratios of all rounds, and whom each half of the rounds has chosen for the other.
    """
    peers = [peer for peer in peers if peer in rounds.seconds]
    halves = [range(0, len(rounds), 2), range(1, len(rounds), 2)]
    found: dict[int, float] = {}
    chosen = []
    for choose, measure in (halves, halves[::-1]):
        medians = {p: statistics.median(rounds.seconds[p][i] for i in choose) for p in peers}
        best = min(medians, key=medians.__getitem__)
        chosen.append(best)
        found |= dict(zip(measure, ratios(rounds, ours, best, measure), strict=True))
    return [found[index] for index in range(len(rounds))], chosen


def spread(numbers: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, and an interval for the median itself."""
    low, middle, high = statistics.quantiles(numbers, n=4, method="inclusive")
    generator = random.Random(0)
    medians = sorted(
        statistics.median(generator.choices(numbers, k=len(numbers))) for _ in range(400)
    )
    return {
        "median": middle, "low": low, "high": high, "from": medians[10], "to": medians[-11]
    }  # fmt: skip


def row(
    case: Mapping[str, Any], rounds: Rounds, ours: str, peers: Sequence[str], again: str | None
) -> dict[str, Any]:
    """What is recorded of one case; ``again`` is our own code once more, which shows the noise."""
    found, chosen = against_fastest(rounds, ours, peers)
    record = {
        **case,
        "ours": ours,
        "seconds": {name: spread(some) for name, some in rounds.seconds.items()},
        "left out": rounds.left_out,
        "rounds": len(rounds),
        "calls a timing": rounds.calls,
        "ratio": spread(found),
        "fastest": chosen,
    }
    if again is not None:
        record["noise"] = spread(ratios(rounds, ours, again))
    return record


def rounded(record: Any, digits: int = 4) -> Any:
    """The same record with numbers of so many significant digits."""
    if isinstance(record, float):
        return float(f"{record:.{digits}g}")
    if isinstance(record, dict):
        return {key: rounded(value, digits) for key, value in record.items()}
    if isinstance(record, list):
        return [rounded(value, digits) for value in record]
    return record
