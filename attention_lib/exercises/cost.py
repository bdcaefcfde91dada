"""Checks for the exercises of chapter 15."""

from collections.abc import Callable, Sequence
from typing import Any

from attention_lib.exercises.report import (
    Case,
    Report,
    check_against,
    check_answers,
    check_cases,
    counted,
)


@counted
def check_paper(operations: Any, crossing: Any, rate: Any) -> Report:
    """Check the three answers of the exercise on paper.

    Args:
        operations: Of attention over 1000 positions, one head of width 64.
        crossing: Length at which attention costs as much as the rest of a block of Llama's shape.
        rate: Tokens a second at best.

    Returns:
        The report.

    Source:
        Chapter 15, exercise "three bills".
    """
    return check_answers(
        {
            "operations": (
                operations,
                256_000_000,
                "Two products, each with a multiply-add, which is two operations, for every query, "
                "key and entry of a head.",
            ),
            "crossing": (
                crossing,
                24_704,
                "Set 4 T T D equal to 8 T D D + 6 T D F: three matrices, two operations each.",
            ),
            "tokens a second": (
                rate,
                50 / 14,
                "Each token reads every weight once; a weight has two bytes here.",
            ),
        },
        tolerance=5e-3,
    )


@counted
def check_seconds(function: Callable[[list[tuple[float, float]], float, float], Any]) -> Report:
    """Check a function ``(kernels, peak, bandwidth) -> seconds``.

    Args:
        function: Takes a list of (operations, bytes), one for each kernel, and the two speeds;
            returns the least time of all kernels, one after the other.

    Returns:
        The report.

    Source:
        Chapter 15, exercise "the least time".
    """
    inputs: dict[str, tuple[tuple[Any, ...], str]] = {
        "the processor sets the time": (
            ([(600.0, 10.0)], 100.0, 20.0),
            "600 operations at 100 a second take 6 s; meanwhile 10 bytes cross in half a second.",
        ),
        "the memory sets the time": (
            ([(100.0, 80.0)], 100.0, 20.0),
            "80 bytes at 20 a second take 4 s; computing goes on meanwhile.",
        ),
        "one of each": (
            ([(600.0, 10.0), (100.0, 80.0)], 100.0, 20.0),
            "Each kernel waits for its own slower side, and they run one after the other.",
        ),
        "nothing to do": (([], 100.0, 20.0), "No kernels take no time."),
        "a copy computes nothing": (
            ([(0.0, 60.0), (50.0, 5.0)], 50.0, 30.0),
            "A kernel without operations still moves its bytes.",
        ),
    }
    return check_against(function, _seconds, inputs)


def _seconds(kernels: Sequence[tuple[float, float]], peak: float, bandwidth: float) -> float:
    return float(sum(max(work / peak, moved / bandwidth) for work, moved in kernels))


@counted
def check_exponent(function: Callable[[Sequence[float], Sequence[float]], Any]) -> Report:
    """Check a function ``(sizes, costs) -> exponent`` that fits a power.

    Args:
        function: Takes sizes and costs, returns the slope in log and log.

    Returns:
        The report.

    Source:
        Chapter 15, exercise "find the bug".
    """
    sizes = [2.0, 4.0, 8.0, 16.0]
    cases = [
        Case(
            "a square",
            (sizes, [n**2 for n in sizes]),
            2.0,
            "The cost of 2 is 4, that of 4 is 16.",
        ),
        Case(
            "a square with a factor",
            (sizes, [5 * n**2 for n in sizes]),
            2.0,
            "A constant factor shifts the line up; it must not change the slope.",
        ),
        Case(
            "linear, with a small factor",
            (sizes, [0.001 * n for n in sizes]),
            1.0,
            "A constant factor shifts the line down; it must not change the slope.",
        ),
        Case(
            "a root",
            ([1.0, 4.0, 9.0], [3.0, 6.0, 9.0]),
            0.5,
            "The exponent need not be whole.",
        ),
        Case(
            "a noisy middle",
            ([1.0, 2.0, 16.0], [1.0, 8.0, 16.0]),
            11 / 13,
            "Least squares: all the points count, each by its distance from the mean.",
        ),
    ]
    return check_cases(function, cases)


# --- meters that may or may not measure the peak --------------------------------------------------


def _peak(events: Sequence[int]) -> int:
    held = peak = 0
    for change in events:
        held += change
        peak = max(peak, held)
    return peak


def _total(events: Sequence[int]) -> int:
    return sum(max(change, 0) for change in events)


def _end(events: Sequence[int]) -> int:
    return max(sum(events), 0)


def _largest(events: Sequence[int]) -> int:
    return max([0, *events])


def _sampled(events: Sequence[int]) -> int:
    """Looks after every second event only, as a clock that ticks too seldom does."""
    return max([0, *(sum(events[:end]) for end in range(0, len(events) + 1, 2))])


def _sampled_later(events: Sequence[int]) -> int:
    """Looks after every second event too, one event later."""
    return max([0, *(sum(events[:end]) for end in range(1, len(events) + 1, 2))])


def _first_rise(events: Sequence[int]) -> int:
    """Stops at the first block that is freed."""
    held = 0
    for change in events:
        if change < 0:
            break
        held += change
    return held


@counted
def check_meters(function: Callable[[Callable[[list[int]], int]], Any]) -> Report:
    """Check a property test ``(meter) -> bool``: does a meter report the peak of memory?

    Args:
        function: Takes a meter; a meter takes a list of events, bytes allocated (above 0) or freed
            (below 0) in order of time, and returns a number. The test returns whether that is the
            most bytes held at one time.

    Returns:
        The report.

    Source:
        Chapter 15, exercise "a test for meters".
    """
    meters: dict[str, tuple[Callable[[Sequence[int]], int], bool, str]] = {
        "the peak": (_peak, True, "The running sum, and the largest value that it takes."),
        "everything ever allocated": (_total, False, "What is freed can be used again."),
        "what is held at the end": (_end, False, "Let the peak lie before the end."),
        "the largest block": (_largest, False, "Two blocks can be held at the same time."),
        "every second event": (_sampled, False, "Let the peak last for one event only."),
        "up to the first free": (
            _first_rise,
            False,
            "Let the peak come after something was freed.",
        ),
        "every second event, from the first": (
            _sampled_later,
            False,
            "Let a peak of one event lie at an even place too.",
        ),
    }
    return check_cases(
        function,
        [
            Case(name, (_named(meter),), answer, hint)
            for name, (meter, answer, hint) in meters.items()
        ],
    )


def _named(meter: Callable[[Sequence[int]], int]) -> Callable[[list[int]], int]:
    """A meter whose name gives nothing away."""

    def a_meter(events: list[int]) -> int:
        return meter(tuple(events))

    return a_meter
