"""What all loaders of published weights check."""

import pytest

from attention_lib.models._published import check_all_used


def test_a_file_with_exactly_the_tensors_of_the_model_is_accepted_in_any_order():
    check_all_used(["a", "b"], {"b": 1, "a": 2})


def test_what_is_named_as_unused_may_be_there_and_need_not_be():
    check_all_used(["a"], ["a", "buffer"], unused=["buffer", "pooler"])


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("found", "message"),
    [
        (["a"], r"1 missing \['b'\], 0 not known \[\]$"),
        (["a", "b", "c"], r"0 missing \[\], 1 not known \['c'\]$"),
        (["A", "buffer"], r"2 missing \['a', 'b'\], 1 not known \['A'\]$"),
        (["a", "b", *"vwxyz"], r"0 missing \[\], 5 not known \['v', 'w', 'x'\]$"),
    ],
)
def test_a_missing_and_a_foreign_tensor_are_counted_and_named(found, message):
    with pytest.raises(ValueError, match=message):
        check_all_used(["a", "b"], found, unused=["buffer"])
