"""Masks: what each rule allows, and that rules combine as sets do."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import BATCH, TK, TQ, masks
from torch.testing import assert_close

from attention_lib import Mask, causal, padding

lengths = st.integers(0, 7)
RULES = [
    causal(),
    padding(torch.tensor(3)),
    Mask(lambda query, key: query - key < 2, "window"),
    Mask(lambda query, key: key % 2 == 0, "even keys"),
]


def test_causal_on_paper():
    assert causal().dense(3, 3).int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_causal_is_aligned_at_the_last_position():
    assert causal().dense(1, 4).tolist() == [[True] * 4]
    assert causal().dense(2, 4).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert causal().dense(3, 2).int().tolist() == [[0, 0], [1, 0], [1, 1]]


@given(lengths, lengths)
def test_causal_is_a_lower_triangle_moved_by_the_difference(query_length, key_length):
    everything = torch.ones(query_length, key_length, dtype=torch.bool)
    expected = everything.tril(key_length - query_length)
    assert_close(causal().dense(query_length, key_length), expected)


def test_causal_is_one_object():
    assert causal() is causal()


def test_padding_on_paper():
    dense = padding(torch.tensor([2, 0])).dense(2, 3).int()
    assert dense.tolist() == [[[1, 1, 0], [1, 1, 0]], [[0, 0, 0], [0, 0, 0]]]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=3))
def test_padding_allows_as_many_keys_as_the_length_says(sizes):
    dense = padding(torch.tensor(sizes)).dense(TQ, TK)
    assert dense.shape == (len(sizes), TQ, TK)
    assert dense.sum(dim=-1).tolist() == [[min(size, TK)] * TQ for size in sizes]
    assert (dense.int().diff(dim=-1) <= 0).all()  # the allowed keys come first


def test_padding_takes_a_head_dimension():
    assert padding(torch.tensor([[2], [1]])).dense(TQ, TK).shape == (BATCH, 1, TQ, TK)


def test_padding_does_not_follow_later_edits_of_the_lengths():
    sizes = torch.tensor([2, 1])
    mask = padding(sizes)
    sizes.fill_(0)
    assert mask.dense(1, 3).sum().item() == 3


@given(st.sampled_from(RULES), st.sampled_from(RULES), lengths, lengths)
def test_and_is_the_intersection(first, second, query_length, key_length):
    shape = query_length, key_length
    expected = first.dense(*shape) & second.dense(*shape)
    assert_close((first & second).dense(*shape), expected)
    assert_close((second & first).dense(*shape), expected)
    assert_close((first & first).dense(*shape), first.dense(*shape))


def _from_table(table: torch.Tensor) -> Mask:
    return Mask(lambda query, key: table[query - (TK - TQ), key], "table")


@given(st.tuples(masks(TQ, TK), masks(TQ, TK), masks(TQ, TK)))
def test_and_is_associative(tables):
    first, second, third = map(_from_table, tables)
    expected = tables[0] & tables[1] & tables[2]
    assert_close(((first & second) & third).dense(TQ, TK), expected)
    assert_close((first & (second & third)).dense(TQ, TK), expected)


def test_and_joins_batched_and_unbatched_rules():
    dense = (causal() & padding(torch.tensor([1, 3]))).dense(3, 3).int()
    assert dense.tolist() == [
        [[1, 0, 0], [1, 0, 0], [1, 0, 0]],
        [[1, 0, 0], [1, 1, 0], [1, 1, 1]],
    ]


def test_names_join():
    assert causal().name == "causal"
    assert padding(torch.tensor([3, 1])).name == "padding(2,)"
    assert (causal() & padding(torch.tensor([3, 1]))).name == "causal & padding(2,)"


def test_and_with_something_else_is_a_type_error():
    with pytest.raises(TypeError, match="unsupported operand"):
        causal() & torch.ones(2, 2, dtype=torch.bool).tolist()


def test_a_mask_cannot_be_changed():
    with pytest.raises(AttributeError, match="name"):
        causal().name = "other"


def test_dense_is_made_on_the_device_that_is_asked_for():
    mask = causal() & Mask(lambda query, key: key > 0, "not the first")
    assert mask.dense(TQ, TK, "meta").device.type == "meta"
    assert mask.dense(TQ, TK).device.type == "cpu"


def test_a_rule_may_ignore_the_queries_or_the_keys():
    by_key = Mask(lambda query, key: key == 1, "one key").dense(2, 3)
    by_query = Mask(lambda query, key: query == 2, "one query").dense(2, 3)
    assert by_key.int().tolist() == [[0, 1, 0], [0, 1, 0]]
    assert by_query.int().tolist() == [[0, 0, 0], [1, 1, 1]]  # queries stand at 1 and 2
