"""Checks for the page "Find the bug": name a property that fails, then repair the function."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from attention_lib.exercises.kinds import CASES, MORE_CASES, REFERENCES, Function
from attention_lib.exercises.properties import (
    causal,
    gradient_reaches,
    inputs_unchanged,
    masked_gradients,
    masked_rows,
    padding,
    permutation,
    rows_normalised,
    rows_sum_to_one,
    scale_follows_width,
    train_only,
)
from attention_lib.exercises.report import NOT_ATTEMPTED, Report, check_against

PROPERTIES: dict[str, tuple[Callable[[Function, str], Report], ...]] = {
    "softmax": (
        *(rows_sum_to_one, padding, masked_rows, masked_gradients),
        *(gradient_reaches, inputs_unchanged),
    ),
    "attention": (
        *(rows_sum_to_one, scale_follows_width, padding, permutation),
        *(gradient_reaches, inputs_unchanged),
    ),
    "causal": (causal, rows_sum_to_one, scale_follows_width, gradient_reaches, inputs_unchanged),
    "block": (rows_normalised, causal, gradient_reaches, inputs_unchanged),
    "vocabulary": (train_only, permutation, inputs_unchanged),
}
PROPERTIES["heads"] = PROPERTIES["attention"]

# The kind of the function in each exercise, in the order of the page.
KINDS = (
    *("softmax", "softmax", "vocabulary", "attention", "causal", "attention"),
    *("softmax", "attention", "block", "heads", "softmax"),
)


def check_find(number: Any, function: Any, answer: Any) -> Report:
    """Check that the named property fails for a function, and show the smallest case.

    Any property that fails is a right answer; the others that fail are named in the message.

    Args:
        number: Number of the bug, from 1 to 11.
        function: The function to look at.
        answer: Name of a property.

    Returns:
        The report.

    Source:
        Page "Find the bug", after the chapters.
    """
    if answer is None:
        return NOT_ATTEMPTED
    kind = _kind(number)
    failure = _failure(function, kind)
    if failure is not None:
        return failure
    properties = {one.__name__: one for one in PROPERTIES[kind]}
    name = str(getattr(answer, "__name__", answer))
    if name not in properties:
        known = ", ".join(properties)
        return Report(False, f"{name} is no property of this kind of function. Known are {known}.")
    report = properties[name](function, kind)
    if report.passed:
        return Report(False, f"Not this one: {report.message}")
    others = [other for other, one in properties.items() if other != name]
    also = [other for other in others if not properties[other](function, kind).passed]
    more = f"\nWhat fails as well: {', '.join(also)}." if also else ""
    return Report(True, f"Passed: you found it. {report.message}{more}")


def check_repair(number: Any, function: Any) -> Report:
    """Check that all properties hold for a repaired function, and that it equals the library.

    Args:
        number: Number of the bug, from 1 to 11.
        function: The repaired function.

    Returns:
        The report.

    Source:
        Page "Find the bug", after the chapters.
    """
    if function is None:
        return NOT_ATTEMPTED
    kind = _kind(number)
    failure = _failure(function, kind)
    if failure is not None:
        return failure
    for one in PROPERTIES[kind]:
        report = one(function, kind)
        if not report.passed:
            return report
    cases = CASES[kind] | MORE_CASES.get(kind, {})
    hint = "All properties hold, but the library gives other numbers."
    same = check_against(
        function, REFERENCES[kind], {name: (given, hint) for name, given in cases.items()}
    )
    if not same.passed:
        return same
    held = f"{len(PROPERTIES[kind])} properties hold"
    return Report(True, f"Passed: {held}, and {len(cases)} cases equal the library.")


def _kind(number: Any) -> str:
    if number not in range(1, len(KINDS) + 1):
        raise ValueError(f"number must be from 1 to {len(KINDS)}, got {number!r}")
    return KINDS[number - 1]


def _failure(function: Any, kind: str) -> Report | None:
    """What to say of a function that cannot be looked at: it stops, or it is not written yet."""
    name, given = next(iter(CASES[kind].items()))
    try:
        result = function(*deepcopy(given))
    except Exception as error:
        return Report(
            False, f"The function fails on {name}: it raised {type(error).__name__}: {error}"
        )
    return NOT_ATTEMPTED if result is None else None
