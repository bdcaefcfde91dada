"""How a check runs its cases and says what it found. Used by every chapter's exercises."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One call of the learner's function, what it must return, and a hint if it does not.

    Args:
        name: What is special about this case.
        arguments: Positional arguments of the call.
        expected: The right answer: a tensor, a number, a boolean or a string.
        hint: Points to the likely mistake without giving the answer away.

    Source:
        Used by every chapter's exercises.
    """

    name: str
    arguments: tuple[Any, ...]
    expected: Any
    hint: str


@dataclass(frozen=True)
class Report:
    """The result of a check; shows its message when it is the last line of a cell.

    Args:
        passed: Whether every case passed.
        message: What the learner reads.

    Source:
        Used by every chapter's exercises.
    """

    passed: bool
    message: str

    def __repr__(self) -> str:
        return self.message


ROUNDED = 0.006  # an answer this near was rounded to two decimals
NOT_ATTEMPTED = Report(False, "Not attempted yet: the answer is None.")
IN_PLACE = "the answer is right, but your function changed its arguments in place"
Arguments = ParamSpec("Arguments")
_PASSED: dict[str, dict[str, bool]] = {}  # module of a chapter -> check -> whether it has passed


def counted(check: Callable[Arguments, Report]) -> Callable[Arguments, Report]:
    """Make a check that passes say how many of its chapter have passed since Python was started.

    Args:
        check: One of a chapter's checks.

    Returns:
        The same check with one line more in its message.

    Source:
        Used by every chapter's exercises.
    """
    checks, name = _PASSED.setdefault(check.__module__, {}), check.__name__
    checks[name] = False

    @wraps(check)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Report:
        report = check(*args, **kwargs)
        if not report.passed:
            return report
        checks[name] = True
        missing = [other for other, passed in checks.items() if not passed]
        count = f"Progress: {len(checks) - len(missing)} of {len(checks)} checks of this chapter."
        left = f" Still open: {', '.join(missing)}." if missing else ""
        return Report(True, f"{report.message}\n{count}{left}")

    return call


def check_answers(answers: dict[str, tuple[Any, Any, str]], *, tolerance: float = 1e-3) -> Report:
    """Compare single answers, as in an exercise on paper, and report the first that is wrong.

    Args:
        answers: For each question the learner's answer, the right one, and a hint.
        tolerance: Largest difference allowed in an entry.

    Returns:
        The report.

    Source:
        Used by every chapter's exercises.
    """
    if all(answer is None for answer, _, _ in answers.values()):
        return NOT_ATTEMPTED
    for question, (answer, right, hint) in answers.items():
        if answer is None:
            return Report(False, f"{question}: not attempted yet.")
        complaint = _compare(answer, right, tolerance)
        if complaint and not _compare(answer, right, ROUNDED):
            return Report(False, f"{question}: {show(answer)} is near. Give three decimals.")
        if complaint:  # the right answer stays hidden: there is nothing else to find out
            return Report(False, f"{question}: {complaint} is not right.\n  hint      {hint}")
    return Report(True, "Passed." if len(answers) == 1 else f"Passed: all {len(answers)} answers.")


def check_cases(
    function: Callable[..., Any], cases: Sequence[Case], *, tolerance: float = 1e-5
) -> Report:
    """Call a function on each case and report the first that fails.

    Args:
        function: The learner's function.
        cases: Cases in the order in which to try them, the easiest first.
        tolerance: Largest difference allowed in an entry.

    Returns:
        The report.

    Raises:
        TypeError: If ``function`` cannot be called.

    Source:
        Used by every chapter's exercises.
    """
    if not callable(function):
        raise TypeError(f"function must be a function, got {type(function).__name__}")
    for number, case in enumerate(cases, start=1):
        given = deepcopy(
            case.arguments
        )  # the learner may write into them; the case must not change
        try:
            result = function(*given)
        except Exception as error:
            complaint = f"your function raised {type(error).__name__}: {error}"
        else:
            if result is None and number == 1:
                return NOT_ATTEMPTED
            complaint = _compare(result, case.expected, tolerance)
            if not complaint and not _same(given, case.arguments):
                complaint = IN_PLACE
        if complaint:
            expected, hint = show(case.expected), case.hint
            if complaint == expected or complaint.startswith(f"{expected} ("):  # differ further on
                expected, complaint = (show(x, digits=7) for x in (case.expected, result))
            if complaint == IN_PLACE:
                hint = "Write x = x - mean, which makes a new tensor, and not x -= mean."
            inputs = "\n".join(f"  input     {show(argument)}" for argument in case.arguments)
            return Report(
                False,
                f"Case {number} of {len(cases)} ({case.name}) fails.\n{inputs}\n"
                f"  expected  {expected}\n  got       {complaint}\n"
                f"  hint      {hint}",
            )
    return Report(True, f"Passed: all {len(cases)} cases.")


def check_against(
    function: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: dict[str, tuple[tuple[Any, ...], str]],
) -> Report:
    """Compare a function with a reference on several inputs and report the first that differs.

    Args:
        function: The learner's function.
        reference: Gives the right answers.
        inputs: For each case its arguments and a hint, the easiest first.

    Returns:
        The report.

    Raises:
        TypeError: If ``function`` cannot be called.

    Source:
        Used by every chapter's exercises.
    """
    cases = [Case(name, given, reference(*given), hint) for name, (given, hint) in inputs.items()]
    return check_cases(function, cases)


def waves(*shape: int, shift: int = 0) -> Tensor:
    """Numbers without a pattern for a case, the same on every machine.

    Args:
        shape: Shape of the tensor.
        shift: Another number gives other entries.

    Returns:
        Numbers between -1 and 1.

    Source:
        Used by the exercises of chapters 00, 05 and 07.
    """
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(1.0, count + 1) + shift * 100).reshape(shape)


def as_tensors(answer: Any, *names: str) -> tuple[Tensor, ...] | Report:
    """Turn what the learner returned into float64 tensors, or say what is wrong with it.

    Args:
        answer: What the learner's function returned.
        names: What it was asked to return.

    Returns:
        One tensor for each name, or the report.

    Source:
        Used by every chapter's exercises.
    """
    if answer is None:
        return NOT_ATTEMPTED
    # One tensor may come as a nested list, so only several are looked at as a sequence.
    parts = (answer,) if len(names) == 1 else answer
    if not isinstance(parts, tuple | list) or len(parts) != len(names):
        return Report(False, f"Expected {len(names)} tensors: return {', '.join(names)}.")
    try:
        return tuple(torch.as_tensor(part).double() for part in parts)
    except (TypeError, ValueError, RuntimeError):
        return Report(False, f"Expected tensors, got {show(answer)}.")


def _compare(result: Any, expected: Any, tolerance: float) -> str:
    """What is wrong with a result; empty if nothing."""
    if not isinstance(expected, Tensor | int | float) or isinstance(expected, bool):
        return "" if result == expected else show(result)
    if isinstance(result, str | bool) or result is None:
        return f"{show(result)} ({type(result).__name__})"
    try:
        found = torch.as_tensor(result).detach()
    except (TypeError, ValueError, RuntimeError):
        return f"{show(result)}, which is not a tensor"
    wanted = torch.as_tensor(expected)
    if found.shape != wanted.shape:
        return f"shape {tuple(found.shape)} in place of {tuple(wanted.shape)}: {show(found)}"
    close = torch.isclose(found.double(), wanted.double(), rtol=0, atol=tolerance, equal_nan=True)
    if close.all():
        return ""
    share = f" ({close.double().mean():.0%} of the entries are right)" if wanted.ndim else ""
    return show(result) + share


def _same(given: tuple[Any, ...], original: tuple[Any, ...]) -> bool:
    return all(
        torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) if isinstance(b, Tensor) else True
        for a, b in zip(given, original, strict=True)
    )


def show(thing: Any, *, digits: int = 3) -> str:
    """A short text for a message: small tensors in full, rounded; large ones by shape."""
    if isinstance(thing, Tensor) and thing.numel() > 40:
        return f"tensor of shape {tuple(thing.shape)}"
    if isinstance(thing, Tensor):
        rounded = thing.detach()
        if rounded.is_floating_point():
            rounded = rounded.double().round(decimals=digits) + 0.0
        return str(rounded.tolist())
    if isinstance(thing, float):
        return f"{thing:.4g}"
    return getattr(thing, "__name__", None) or repr(thing)
