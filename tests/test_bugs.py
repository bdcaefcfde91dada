"""Each listing of the page "Find the bug" breaks the property that it should, and no other."""

from copy import deepcopy

import pytest
import torch
from answers_bugs import ANSWERS, LISTINGS, REPAIRED

from attention_lib.exercises.bugs import KINDS, PROPERTIES, check_find, check_repair
from attention_lib.exercises.kinds import CASES, MORE_CASES, REFERENCES

# What fails besides the property that is the answer.
AS_WELL = {8: {"scale_follows_width", "permutation"}, 10: {"padding"}}
EVERY = [(kind, one) for kind, known in PROPERTIES.items() for one in known]


def failing(number, function):
    """Names of the properties that fail for a function in the place of a listing."""
    kind = KINDS[number - 1]
    return {one.__name__ for one in PROPERTIES[kind] if not one(function, kind).passed}


@pytest.mark.parametrize("number", LISTINGS)
def test_a_listing_breaks_exactly_what_it_should(number):
    assert failing(number, LISTINGS[number]) == {ANSWERS[number]} | AS_WELL.get(number, set())


@pytest.mark.parametrize("number", LISTINGS)
def test_a_repaired_listing_breaks_nothing(number):
    assert failing(number, REPAIRED[number]) == set()


@pytest.mark.parametrize("number", LISTINGS)
def test_a_listing_breaks_its_property_in_the_smallest_case(number):
    kind = KINDS[number - 1]
    first = next(iter(CASES[kind]))
    report = check_find(number, LISTINGS[number], ANSWERS[number])
    assert f"{ANSWERS[number]}: Case 1 of " in report.message
    assert f"({first}" in report.message


def test_every_property_is_the_answer_to_one_bug():
    assert len(KINDS) == len(LISTINGS) == 11
    assert {one.__name__ for _, one in EVERY} == set(ANSWERS.values())


@pytest.mark.parametrize(("kind", "one"), EVERY, ids=lambda x: getattr(x, "__name__", x))
def test_every_property_holds_for_the_right_answer_of_its_kind(kind, one):
    report = one(REFERENCES[kind], kind)
    assert report.passed, report
    count = len(CASES[kind])
    if one.__name__ == "causal":  # a case for each position but the first
        count = sum(given[0].shape[-2] - 1 for given in CASES[kind].values())
    assert report.message == f"{one.__name__} holds: {count} cases."


def test_looking_changes_no_case():
    before = deepcopy((CASES, MORE_CASES))
    for number, listing in LISTINGS.items():
        failing(number, listing)
        check_repair(number, listing)
    for old, new in zip(before, (CASES, MORE_CASES), strict=True):
        for kind, cases in old.items():
            for name, given in cases.items():
                for a, b in zip(given, new[kind][name], strict=True):
                    assert torch.equal(a, b) if torch.is_tensor(a) else a == b


# What the reader sees.


def test_a_right_answer_is_shown_with_the_smallest_failing_case():
    assert check_find(2, LISTINGS[2], "inputs_unchanged").message.splitlines() == [
        "Passed: you found it. inputs_unchanged: Case 1 of 2 (two rows of two) fails.",
        "  input     [[0.0, 1.0], [2.0, 0.0]]",
        "  input     [[True, True], [False, True]]",
        "  expected  'no argument has changed'",
        "  got       'argument 1 is now [[0.0, 1.0], [-inf, 0.0]]'",
        "  hint      Got names the first argument that the call has written into.",
    ]


def test_what_fails_as_well_is_named():
    message = check_find(8, LISTINGS[8], "gradient_reaches").message
    assert message.splitlines()[-1] == "What fails as well: scale_follows_width, permutation."
    assert "  expected  'query, key, value'\n  got       'query, value'" in message
    assert "What fails as well: padding." in check_find(10, LISTINGS[10], "permutation").message


@pytest.mark.parametrize("answer", ["scale_follows_width", "permutation", "gradient_reaches"])
def test_every_property_that_fails_is_a_right_answer(answer):
    assert check_find(8, LISTINGS[8], answer).passed


def test_the_property_itself_may_be_given_for_its_name():
    assert check_find(5, LISTINGS[5], PROPERTIES["causal"][0]).passed


def test_an_unknown_property_draws_the_list_of_its_kind():
    for answer in ("shapes", "causal", 3, ["padding"]):
        report = check_find(3, LISTINGS[3], answer)
        assert not report.passed
        assert report.message == (
            f"{answer} is no property of this kind of function. "
            "Known are train_only, permutation, inputs_unchanged."
        )


def test_a_property_that_holds_says_on_how_many_cases():
    message = check_find(9, LISTINGS[9], "causal").message
    assert message == "Not this one: causal holds: 6 cases."


def test_a_repair_says_what_was_asked():
    assert check_repair(1, REPAIRED[1]).message == (
        "Passed: 6 properties hold, and 4 cases equal the library."
    )
    assert check_repair(3, REPAIRED[3]).message == (
        "Passed: 3 properties hold, and 2 cases equal the library."
    )


def test_a_function_that_returns_nothing_is_not_attempted():
    for report in (
        check_repair(4, lambda *given: None),
        check_find(4, lambda *given: None, "padding"),
    ):
        assert report.message == "Not attempted yet: the answer is None."


def test_a_function_that_stops_breaks_no_property():
    report = check_find(1, lambda scores: scores, "rows_sum_to_one")
    assert not report.passed
    assert report.message.startswith("The function fails on two rows of two: it raised TypeError:")


def test_a_function_that_stops_later_is_reported_and_not_raised():
    def small_only(scores, mask):
        if len(scores) > 2:
            raise ValueError("too large")
        return REFERENCES["softmax"](scores, mask)

    report = check_repair(1, small_only)
    assert "your function raised ValueError: too large" in report.message
    for one in PROPERTIES["softmax"]:
        assert "raised ValueError: too large" in one(small_only, "softmax").message


@pytest.mark.parametrize("number", [0, 12, -1, "one", 1.5])
def test_an_unknown_bug_is_refused(number):
    with pytest.raises(ValueError, match=f"number must be from 1 to 11, got {number!r}"):
        check_find(number, LISTINGS[1], "padding")
    with pytest.raises(ValueError, match="number must be from 1 to 11"):
        check_repair(number, LISTINGS[1])


def test_writing_into_a_later_argument_or_a_list_is_seen():
    def writes_value(query, key, value, mask):
        output = REFERENCES["attention"](query, key, value.clone(), mask)
        value.zero_()
        return output

    def sorts_test(train, test):
        test.append("more")
        return REFERENCES["vocabulary"](train, test)

    assert failing(4, writes_value) == {"inputs_unchanged"}
    message = check_find(4, writes_value, "inputs_unchanged").message
    assert "'argument 3 is now [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]'" in message
    assert failing(3, sorts_test) == {"inputs_unchanged"}
    message = check_find(3, sorts_test, "inputs_unchanged").message
    assert "argument 2 is now ['the shore', 'more']" in message


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_a_leak_from_any_argument_of_causal_attention_is_seen(argument):
    def leaks(*given):
        output = REFERENCES["causal"](*given)
        return output + given[argument][..., -1:, :1]

    assert "causal" in failing(5, leaks)


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_an_argument_without_a_gradient_is_seen(argument):
    names = ["query", "key", "value"]

    def detached(*given):
        given = [x.detach() if place == argument else x for place, x in enumerate(given)]
        return REFERENCES["attention"](*given)

    assert failing(8, detached) == {"gradient_reaches"}
    reached = ", ".join(name for name in names if name != names[argument])
    assert f"got       {reached!r}" in check_find(8, detached, "gradient_reaches").message


def test_padding_looks_at_values_and_at_keys():
    for place in (1, 2):

        def reads(*given, place=place):
            return REFERENCES["attention"](*given) + given[place][..., -1:, :1] * 0.01

        assert "padding" in failing(6, reads)
