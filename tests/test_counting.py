"""The counting model: on paper, against the loop of chapter 11, as a draft, hostile sizes."""

import re
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from attention_lib.decoding import greedy
from attention_lib.efficient.readers import WindowReader
from attention_lib.models.counting import CountingModel
from attention_lib.sampling import sample

TEXT = torch.tensor([0, 1, 0, 1, 2])  # a b a b c


def oracle(text, tokens, context, doubt, before):
    """Probabilities after `before`, with strings and counters as in chapter 11."""
    text, before = tuple(text), tuple(before)
    chance = [1 / tokens] * tokens
    for n in range(context + 1):
        if n > len(before):
            break
        last = before[len(before) - n :]
        following = Counter(text[i + n] for i in range(len(text) - n) if text[i : i + n] == last)
        d, total = doubt * len(following), sum(following.values())
        if following:
            chance = [(following[y] + d * p) / (total + d) for y, p in enumerate(chance)]
    return chance


def test_on_paper():
    model = CountingModel(TEXT, tokens=4, context=1)
    # No context: counts 2, 2, 1 of 5, three kinds of doubt over 1/4 each.
    none = [(2 + 0.75) / 8, (2 + 0.75) / 8, (1 + 0.75) / 8, 0.75 / 8]
    # After 1: once 0 and once 2, two kinds of doubt.
    after = [(1 + 2 * none[0]) / 4, 2 * none[1] / 4, (1 + 2 * none[2]) / 4, 2 * none[3] / 4]
    assert_close(model(torch.tensor([1])).exp(), torch.tensor([after], dtype=torch.float64))
    # Nothing ever followed 2: the table without context stays.
    assert_close(model(torch.tensor([2])).exp(), torch.tensor([none], dtype=torch.float64))


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=17),
    st.lists(st.integers(0, 4), min_size=1, max_size=7),
    st.integers(0, 4),
    st.sampled_from([0.5, 1.0, 16.0]),
)
def test_equals_the_loop(text, before, context, doubt):
    model = CountingModel(torch.tensor(text), tokens=5, context=context, doubt=doubt)
    found = model(torch.tensor(before)).exp()
    exact = [oracle(text, 5, context, doubt, before[: end + 1]) for end in range(len(before))]
    assert_close(found, torch.tensor(exact, dtype=torch.float64))
    assert_close(found.sum(dim=1), torch.ones(len(before), dtype=torch.float64))


def test_doubt_is_one_kind_one_doubt_unless_told_otherwise():
    one = CountingModel(TEXT, tokens=4, context=2)
    same = CountingModel(TEXT, tokens=4, context=2, doubt=1.0)
    assert torch.equal(one(TEXT), same(TEXT))


def test_only_the_last_places_if_asked():
    model = CountingModel(TEXT, tokens=3, context=3)
    whole = model(TEXT)
    assert whole.shape == (5, 3)
    assert whole.dtype == torch.float64
    for last in range(1, 6):
        assert torch.equal(model(TEXT, last=last), whole[-last:])
        assert torch.equal(model(TEXT, last), whole[-last:])


def test_a_longer_context_than_the_text_and_a_text_of_one_token():
    assert torch.equal(
        CountingModel(TEXT, tokens=3, context=9)(TEXT),
        CountingModel(TEXT, tokens=3, context=4)(TEXT),
    )
    alone = CountingModel(torch.tensor([1]), tokens=2, context=2)
    assert_close(alone(torch.tensor([0, 1])).exp()[1], torch.tensor([0.25, 0.75]).double())


def test_as_a_step_it_samples_and_chooses():
    model = CountingModel(torch.tensor([0, 1, 2] * 9), tokens=3, context=2, doubt=1e-3)
    written = greedy(model.step, None, torch.tensor([0, 2]), end=2, max_length=5)
    assert written.tolist() == [[1, 2, 2], [0, 1, 2]]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack(
        list(sample(model.step, None, torch.tensor([0, 2]), 6, generator=generator)), dim=1
    )
    assert drawn.tolist() == [[1, 2, 0, 1, 2, 0], [0, 1, 2, 0, 1, 2]]


def test_a_step_remembers_its_context_and_no_more():
    model = CountingModel(TEXT, tokens=3, context=2)
    state = None
    for place, token in enumerate(TEXT):
        logits, state = model.step(token[None], state)
        assert_close(logits[0], model(TEXT[: place + 1])[-1])
    assert state.tolist() == [[1, 2]]
    _, state = CountingModel(TEXT, tokens=3, context=0).step(torch.tensor([1]), None)
    assert state.tolist() == [[1]]


def test_as_a_draft_it_reads_and_goes_back():
    model = CountingModel(TEXT, tokens=3, context=2)
    reader = WindowReader(model, 2)
    assert_close(reader.read(TEXT), model(TEXT))
    reader.forget(3)
    assert_close(reader.read(TEXT[3:4]), model(TEXT[:4])[-1:])


def test_it_does_not_change_the_text_it_counts():
    text = TEXT.clone()
    CountingModel(text, tokens=3, context=2)
    assert torch.equal(text, TEXT)


def test_large_vocabularies_and_long_contexts_do_not_overflow():
    """49,152 tokens to the power of 6 is far above what an integer holds."""
    big = 49_152
    text = torch.randint(big - 3, big, (200,), generator=torch.Generator().manual_seed(0))
    wide = CountingModel(text, tokens=big, context=6)
    narrow = CountingModel(text - (big - 3), tokens=3, context=6)
    asked = text[50:60]
    wide_best = wide(asked)[:, -3:].argmax(dim=1)
    assert torch.equal(wide_best, narrow(asked - (big - 3)).argmax(dim=1))


ONE = torch.tensor([0])


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: CountingModel(ONE, tokens=0, context=1),
            ValueError,
            "tokens must be at least 1, got 0",
        ),
        (
            lambda: CountingModel(ONE, tokens=1, context=-1),
            ValueError,
            "context must be at least 0, got -1",
        ),
        (
            lambda: CountingModel(ONE, tokens=1, context=1, doubt=0.0),
            ValueError,
            "doubt must be a finite number above 0, in the range of float32, got 0.0",
        ),
        (
            lambda: CountingModel(ONE / 2, tokens=1, context=1),
            TypeError,
            "text must be a tensor of integers, got torch.float32",
        ),
        (
            lambda: CountingModel([0], tokens=1, context=1),
            TypeError,
            "text must be a tensor of integers, got list",
        ),
        (
            lambda: CountingModel(ONE[:0], tokens=1, context=1),
            ValueError,
            "text must have shape (T,) with T at least 1, got (0,)",
        ),
        (
            lambda: CountingModel(ONE[None], tokens=1, context=1),
            ValueError,
            "text must have shape (T,) with T at least 1, got (1, 1)",
        ),
        (
            lambda: CountingModel(torch.tensor([0, 5, 3]), tokens=3, context=1),
            ValueError,
            "text must hold tokens from 0 to V - 1 = 2, got 3",
        ),
        (
            lambda: CountingModel(torch.tensor([0, -2]), tokens=3, context=1),
            ValueError,
            "text must hold tokens from 0 to V - 1 = 2, got -2",
        ),
        (
            lambda: CountingModel(ONE, tokens=3, context=1)(torch.tensor([3])),
            ValueError,
            "text must hold tokens from 0 to V - 1 = 2, got 3",
        ),
        (
            lambda: CountingModel(ONE, tokens=3, context=1)(ONE, last=0),
            ValueError,
            "last must be at least 1, got 0",
        ),
        (
            lambda: CountingModel(ONE, tokens=3, context=1)(ONE, last=2),
            ValueError,
            "last must be at most T = 1, got 2",
        ),
    ],
)
def test_a_bad_argument_is_named(call, kind, message):
    with pytest.raises(kind, match=re.escape(message) + "$"):
        call()


def test_probabilities_are_never_zero():
    found = CountingModel(TEXT, tokens=7, context=2)(TEXT)
    assert found.isfinite().all()
    assert found.max() < 0
