"""Masks: what each rule allows, that rules combine as sets do, PyTorch's other convention."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import BATCH, TK, TQ, D, masks, random
from torch import nn
from torch.testing import assert_close

from attention_lib import Mask, attend, causal, document, padding, prefix, sliding_window
from attention_lib.masks import for_torch_attention

lengths = st.integers(0, 7)
RULES = [
    causal(),
    padding(torch.tensor(3)),
    sliding_window(1, 2),
    sliding_window(3, 1) & causal(),
    prefix(torch.tensor(2)),
    document(torch.tensor([0, 0, 1, 0, 2, 2, 1])),
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
    shape = min(query_length, key_length), key_length  # a document has no positions before 0
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


def test_compact_is_dense_without_the_positions_that_the_rule_does_not_look_at():
    lengths = torch.tensor([4, 2])
    for mask, expected in [
        (causal(), (TQ, TK)),
        (padding(lengths), (BATCH, 1, TK)),
        (causal() & padding(lengths), (BATCH, TQ, TK)),
        (Mask(lambda query, key: query > 2, "late queries"), (TQ, 1)),
    ]:
        found, dense = mask.compact(TQ, TK), mask.dense(TQ, TK)
        assert found.shape == expected
        assert torch.equal(found.expand_as(dense), dense)
    assert causal().compact(TQ, TK, "meta").device.type == "meta"


def test_dense_is_made_on_the_device_that_is_asked_for():
    mask = causal() & Mask(lambda query, key: key > 0, "not the first")
    assert mask.dense(TQ, TK, "meta").device.type == "meta"
    assert mask.dense(TQ, TK).device.type == "cpu"


def test_a_rule_may_ignore_the_queries_or_the_keys():
    by_key = Mask(lambda query, key: key == 1, "one key").dense(2, 3)
    by_query = Mask(lambda query, key: query == 2, "one query").dense(2, 3)
    assert by_key.int().tolist() == [[0, 1, 0], [0, 1, 0]]
    assert by_query.int().tolist() == [[0, 0, 0], [1, 1, 1]]  # queries stand at 1 and 2


# --- windows, prefixes, documents ----------------------------------------------------------------


def test_a_window_on_paper():
    assert sliding_window(1).dense(4, 4).int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]
    assert sliding_window(0, 2).dense(3, 4).int().tolist() == [
        [0, 1, 1, 1],
        [0, 0, 1, 1],
        [0, 0, 0, 1],
    ]


@given(lengths, lengths)
def test_a_window_of_one_key_is_a_diagonal_that_ends_in_the_last_corner(query_length, key_length):
    expected = torch.zeros(query_length, key_length, dtype=torch.bool)
    for back in range(1, min(query_length, key_length) + 1):
        expected[-back, -back] = True
    assert torch.equal(sliding_window(0).dense(query_length, key_length), expected)


@given(lengths, lengths, st.integers(7, 9))
def test_a_window_that_reaches_the_start_is_causal(query_length, key_length, before):
    shape = query_length, key_length
    assert torch.equal(sliding_window(before).dense(*shape), causal().dense(*shape))
    assert sliding_window(before, 7).dense(min(shape), key_length).all()


@given(st.integers(0, 9), st.integers(0, 9))
def test_a_window_is_two_triangles(before, after):
    everything = torch.ones(7, 7, dtype=torch.bool)
    expected = everything.tril(after) & everything.triu(-before)
    assert torch.equal(sliding_window(before, after).dense(7, 7), expected)


def test_a_prefix_on_paper():
    dense = prefix(torch.tensor([2, 0])).dense(3, 3).int()
    assert dense.tolist() == [
        [[1, 1, 0], [1, 1, 0], [1, 1, 1]],
        [[1, 0, 0], [1, 1, 0], [1, 1, 1]],
    ]


@given(lengths, lengths)
def test_no_prefix_is_causal_and_a_whole_prefix_is_open(query_length, key_length):
    shape = query_length, key_length
    assert torch.equal(prefix(torch.tensor(0)).dense(*shape), causal().dense(*shape))
    assert prefix(torch.tensor([key_length, 7])).dense(*shape).all()


def test_a_document_on_paper():
    dense = document(torch.tensor([[0, 0, 1], [3, 4, 3]])).dense(3, 3).int()
    assert dense.tolist() == [
        [[1, 1, 0], [1, 1, 0], [0, 0, 1]],
        [[1, 0, 1], [0, 1, 0], [1, 0, 1]],
    ]
    assert document(torch.tensor([0, 0, 1])).dense(1, 3).tolist() == [[False, False, True]]


@given(lengths, lengths)
def test_one_document_is_open(query_length, key_length):
    one = document(torch.full((7,), 5))
    assert one.dense(min(query_length, key_length), key_length).all()


@given(st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_documents_are_symmetric_and_every_position_is_in_its_own(ids):
    dense = document(torch.tensor(ids)).dense(5, 5)
    assert torch.equal(dense, dense.mT)
    assert dense.diagonal().all()
    assert dense.tolist() == [[a == b for b in ids] for a in ids]


def test_packed_documents_attend_as_they_do_alone():
    generator = torch.Generator().manual_seed(0)
    x = random(generator, 7, D)
    packed = attend(x, x, x, causal() & document(torch.tensor([0, 0, 0, 1, 1, 1, 1])))
    for part in (slice(0, 3), slice(3, 7)):
        assert_close(packed[part], attend(x[part], x[part], x[part], causal()))


@pytest.mark.parametrize("make", [prefix, lambda x: document(x.expand(BATCH, 7))])
def test_rules_do_not_follow_later_edits_of_what_they_were_made_from(make):
    numbers = torch.tensor([[2, 1, 0, 3, 1, 1, 2]]) if make is not prefix else torch.tensor([2, 1])
    copy, mask = numbers.clone(), make(numbers)
    before = mask.dense(3, 7).clone()
    assert torch.equal(numbers, copy)
    numbers.zero_()
    assert torch.equal(mask.dense(3, 7), before)


def test_new_rules_have_names():
    assert sliding_window(3).name == "window(3, 0)"
    assert prefix(torch.tensor([2, 1])).name == "prefix(2,)"
    assert document(torch.zeros(2, 5, dtype=torch.long)).name == "document(2, 5)"


# --- tiles ---------------------------------------------------------------------------------------

edges = st.integers(0, 7)


@given(st.sampled_from(RULES), edges, edges, edges, edges)
def test_a_tile_says_what_the_matrix_says(mask, top, bottom, left, right):
    dense = mask.dense(7, 7)[..., top:bottom, left:right]
    kind = mask.tile(range(top, bottom), range(left, right))
    if dense.numel() == 0:
        assert kind == "empty"
    else:
        assert kind == ("full" if dense.all() else "partial" if dense.any() else "empty")


def test_tiles_of_a_causal_mask_on_paper():
    tiles = [[causal().tile(range(i, i + 2), range(j, j + 2)) for j in (0, 2)] for i in (0, 2)]
    assert tiles == [["partial", "empty"], ["full", "partial"]]


def test_a_tile_of_a_batch_is_full_only_if_it_is_for_every_sequence():
    mask = padding(torch.tensor([1, 3]))
    kinds = [mask.tile(range(2), range(j, j + 1)) for j in (0, 1, 3)]
    assert kinds == ["full", "partial", "empty"]


@pytest.mark.parametrize(
    "mask", [causal(), sliding_window(2, 1), causal() & sliding_window(4, 3)], ids=lambda m: m.name
)
def test_an_interval_says_what_the_rule_says(mask):
    first, last = mask.interval(torch.arange(9))
    key = torch.arange(9)
    inside = (first[:, None] <= key) & (key <= last[:, None])
    assert inside.equal(mask.dense(9, 9))


def test_a_tile_asks_the_interval_and_not_the_rule():
    asked = []

    def rule(query, key):
        asked.append((query, key))
        return key <= query

    mask = Mask(rule, "slow", causal().interval) & sliding_window(2)
    columns = (range(5, 7), range(4, 6), range(7, 9), range(0, 4))
    kinds = [mask.tile(range(6, 8), keys) for keys in columns]
    assert kinds == ["full", "partial", "partial", "empty"]
    assert not asked


def test_with_a_mask_that_has_no_interval_there_is_none():
    odd = Mask(lambda query, key: key % 2 == 1, "odd")
    assert (odd & causal()).interval is None
    assert (causal() & odd).interval is None


def test_an_interval_that_ends_before_it_begins_is_empty():
    nothing = Mask(lambda query, key: key < key, "nothing", lambda query: (query + 1, query))
    assert nothing.tile(range(3), range(9)) == "empty"


def test_a_tile_far_away_costs_nothing():
    kind = sliding_window(8).tile(range(10**9, 10**9 + 2), range(3))
    assert kind == "empty"


# --- PyTorch's module reads masks the other way round --------------------------------------------


def test_the_other_convention_on_paper():
    turned = for_torch_attention(causal(), 2, 2, heads=3)
    assert turned.tolist() == [[False, True], [False, False]]
    turned = for_torch_attention(padding(torch.tensor([1, 2])), 1, 2, heads=2).int()
    assert turned.tolist() == [[[0, 1]], [[0, 1]], [[0, 0]], [[0, 0]]]  # (B * H, Tq, Tk)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "mask",
    [
        causal(),
        sliding_window(1, 1),
        padding(torch.tensor([3, 5])),
        causal() & padding(torch.tensor([2, 4])),
        prefix(torch.tensor([3, 1])),
    ],
    ids=lambda mask: mask.name,
)
def test_torch_attention_reads_the_turned_mask_as_ours(mask, generator):
    heads, width = 3, 4
    module = nn.MultiheadAttention(heads * width, heads, bias=False, batch_first=True).double()
    query = random(generator, BATCH, 4, heads * width)
    memory = random(generator, BATCH, 5, heads * width)
    turned = for_torch_attention(mask, 4, 5, heads)
    _, weights = module(query, memory, memory, attn_mask=turned)
    assert torch.equal(weights > 0, mask.dense(4, 5).expand(BATCH, 4, 5))
