"""Every check passes a right answer, catches each plausible wrong one, and says something useful.

The solutions in the chapters run through the same checks when the notebooks are executed. Right and
wrong answers stand in ``answers_NN.py``, one file a chapter. Wrong ones have the right shape and
type wherever the mistake allows it.
"""

import importlib
import pkgutil
from pathlib import Path

import pytest
import torch

from attention_lib import exercises
from attention_lib.exercises import Case, Report, check_against, check_answers, check_cases
from attention_lib.exercises.report import counted

ANSWERS = sorted(path.stem for path in Path(__file__).parent.glob("answers_*.py"))
# Name -> (check, right answer, {what is wrong: (wrong answer, a word of the message it must draw)})
CHECKS = {
    name: case
    for answers in ANSWERS
    for name, case in importlib.import_module(answers).CHECKS.items()
}
MISTAKES = [(name, mistake) for name, (_, _, wrong) in CHECKS.items() for mistake in wrong]


def call(check, answer):
    return check(*answer) if isinstance(answer, tuple) else check(answer)


@pytest.mark.parametrize("name", CHECKS)
def test_check_passes_a_right_answer(name):
    check, right, _ = CHECKS[name]
    report = call(check, right)
    assert report.passed, report
    assert repr(report).startswith("Passed")


@pytest.mark.parametrize("name", CHECKS)
def test_check_knows_what_was_not_attempted(name):
    check, right, _ = CHECKS[name]
    nothing = (None,) * len(right) if isinstance(right, tuple) else lambda *arguments: None
    report = call(check, nothing)
    assert not report.passed
    assert "Not attempted" in report.message


@pytest.mark.parametrize(("name", "mistake"), MISTAKES)
def test_check_catches_a_wrong_answer_and_helps(name, mistake):
    check, _, wrong = CHECKS[name]
    answer, word = wrong[mistake]
    report = call(check, answer)
    assert not report.passed
    assert word in report.message, report.message


def test_every_check_of_every_chapter_is_tested():
    names = [module.name for module in pkgutil.iter_modules(exercises.__path__)]
    modules = [importlib.import_module(f"attention_lib.exercises.{name}") for name in names]
    public = {f for m in modules for n, f in vars(m).items() if n.startswith("check_")}
    helpers = {check_against, check_answers, check_cases}
    assert public - helpers == {check for check, _, _ in CHECKS.values()}


def test_a_check_that_passes_says_what_is_open_and_one_that_fails_does_not():
    def check_one(answer: int) -> Report:
        return Report(answer == 1, "Passed." if answer == 1 else "Not one.")

    def check_the_other(answer: int) -> Report:
        return Report(answer == 2, "Passed: it is two.")

    one, other = counted(check_one), counted(check_the_other)
    assert one(3).message == "Not one."
    progress = "Progress: 1 of 2 checks of this chapter. Still open: check_the_other."
    assert one(1) == Report(True, f"Passed.\n{progress}")
    assert one(3).message == "Not one."  # and what has passed stays passed
    assert one(1).message == f"Passed.\n{progress}"
    assert other(2).message == "Passed: it is two.\nProgress: 2 of 2 checks of this chapter."
    assert (one.__name__, one.__module__) == ("check_one", __name__)


def test_report_shows_input_expected_got_and_hint():
    case = Case("doubling", (torch.tensor([1.0, 2.0]),), torch.tensor([2.0, 4.0]), "Times two.")
    message = check_cases(lambda x: x, [case]).message
    assert message.splitlines() == [
        "Case 1 of 1 (doubling) fails.",
        "  input     [1.0, 2.0]",
        "  expected  [2.0, 4.0]",
        "  got       [1.0, 2.0] (0% of the entries are right)",
        "  hint      Times two.",
    ]


def test_report_shows_what_a_function_raised():
    case = Case("any", (1.0,), 1.0, "")
    assert "raised ZeroDivisionError" in check_cases(lambda x: x / 0, [case]).message


@pytest.mark.parametrize("answer", ["text", True, object(), [[1.0], [1.0, 2.0]]])
def test_answers_of_a_strange_type_are_wrong_and_shown(answer):
    report = check_cases(lambda x: answer, [Case("any", (1.0,), 1.0, "")])
    assert not report.passed


@pytest.mark.parametrize("name", ["01 indistinguishable", "03 wicked", "04b ring", "04 previous"])
def test_tensors_may_be_given_as_plain_lists(name):
    check, right, _ = CHECKS[name]
    tensors = right()
    lists = tensors.tolist() if torch.is_tensor(tensors) else [t.tolist() for t in tensors]
    assert check(lambda: lists).passed


@pytest.mark.parametrize("name", ["01 indistinguishable", "03 wicked", "04b ring", "04 previous"])
def test_what_is_no_tensor_is_reported_and_not_raised(name):
    check, _, _ = CHECKS[name]
    report = check(lambda: ("one", "two"))
    assert not report.passed
    assert "Expected tensors" in report.message


def test_a_check_needs_a_function(no_shape_hook):
    with pytest.raises(TypeError, match="function must be a function, got int"):
        check_cases(3, [])
