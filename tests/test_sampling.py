"""Sampling: on paper, against Hugging Face's filters, frequencies, and hostile arguments."""

import re

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from oracle import random, tensors
from torch.testing import assert_close

from attention_lib.sampling import keep_top_k, keep_top_p, sample

V = 7
HALVES = torch.tensor([1 / 8, 1 / 2, 1 / 8, 1 / 4]).log()  # probabilities
FORBIDDEN = float("-inf")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def always(logits):
    """A model whose next token never depends on anything."""
    return lambda tokens, state: (logits.expand(len(tokens), -1), state)


def allowed(logits):
    return (logits > FORBIDDEN).tolist()


# --- filters on paper ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "kept"),
    [(1, [0, 1, 0, 0]), (2, [0, 1, 0, 1]), (3, [1, 1, 0, 1]), (4, [1, 1, 1, 1]), (9, [1, 1, 1, 1])],
)
def test_top_k_keeps_the_k_largest_and_of_equals_the_first(k, kept):
    assert allowed(keep_top_k(HALVES, k)) == list(map(bool, kept))


@pytest.mark.parametrize(
    ("p", "kept"),
    [
        (0.01, [0, 1, 0, 0]),
        (0.49, [0, 1, 0, 0]),
        (0.51, [0, 1, 0, 1]),
        (0.74, [0, 1, 0, 1]),
        (0.76, [1, 1, 0, 1]),
        (0.9, [1, 1, 1, 1]),
        (1.0, [1, 1, 1, 1]),
    ],
)
def test_top_p_keeps_the_fewest_that_reach_p(p, kept):
    assert allowed(keep_top_p(HALVES, p)) == list(map(bool, kept))


def test_filters_leave_what_stays_as_it_was_and_do_not_change_their_input():
    logits, before = HALVES.clone(), HALVES.clone()
    for filtered in (keep_top_k(logits, 2), keep_top_p(logits, 0.7)):
        assert torch.equal(filtered[[1, 3]], logits[[1, 3]])
    assert torch.equal(logits, before)


# --- filters against Hugging Face ----------------------------------------------------------------


@pytest.mark.oracle
@given(seed=st.integers(0, 2**32), k=st.integers(1, V))
def test_top_k_equals_hugging_face(seed, k):
    logits = random(seeded(seed), 3, V, dtype=torch.float32)
    theirs = transformers.TopKLogitsWarper(k)(torch.zeros(3, 1, dtype=torch.int64), logits)
    assert torch.equal(keep_top_k(logits, k), theirs)


@pytest.mark.oracle
@given(seed=st.integers(0, 2**32), p=st.floats(0.01, 0.999))
def test_top_p_equals_hugging_face(seed, p):
    logits = random(seeded(seed), 3, V, dtype=torch.float32)
    theirs = transformers.TopPLogitsWarper(p)(torch.zeros(3, 1, dtype=torch.int64), logits)
    assert torch.equal(keep_top_p(logits, p), theirs)


@given(logits=tensors(V), k=st.integers(1, V))
def test_exactly_k_tokens_stay_even_among_equals(logits, k):
    assert sum(allowed(keep_top_k(logits, k))) == k


@given(logits=tensors(V), p=st.floats(0.01, 1.0))
def test_what_stays_has_at_least_p_and_without_its_last_less(logits, p):
    probability = logits.softmax(dim=-1)
    kept = probability[keep_top_p(logits, p) > FORBIDDEN]
    assert kept.sum() >= p - 1e-12
    assert len(kept) == 1 or kept.sum() - kept.min() < p


# --- drawing -------------------------------------------------------------------------------------


def frequencies(count=4000, **settings):
    """How often each token comes, over as many independent rows."""
    start = torch.zeros(count, dtype=torch.int64)
    (drawn,) = sample(always(HALVES), None, start, 1, generator=seeded(), **settings)
    return drawn.bincount(minlength=4) / count


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1 / 8, 1 / 2, 1 / 8, 1 / 4]),
        ({"temperature": 0.5}, [1 / 22, 16 / 22, 1 / 22, 4 / 22]),
        ({"temperature": 1e9}, [1 / 4] * 4),
        ({"top_k": 2}, [0, 2 / 3, 0, 1 / 3]),
        ({"top_p": 0.6}, [0, 2 / 3, 0, 1 / 3]),
        ({"top_k": 3, "top_p": 0.5}, [0, 1, 0, 0]),  # of 4/7, 2/7, 1/7 the first has enough
        ({"temperature": 0.5, "top_p": 0.7}, [0, 1, 0, 0]),  # the temperature acts first
    ],
    ids=str,
)
def test_tokens_come_as_often_as_they_should(settings, expected):
    assert_close(
        frequencies(**settings), torch.tensor(expected, dtype=torch.float32), atol=0.03, rtol=0
    )


def test_each_token_is_drawn_after_the_one_before():
    following = torch.eye(4).roll(1, dims=1).mul(99).sub(50)  # after t always t + 1
    step = lambda tokens, state: (following[tokens], state + 1)  # noqa: E731
    drawn = list(sample(step, 0, torch.tensor([0, 2]), 3, generator=seeded()))
    assert torch.stack(drawn, dim=1).tolist() == [[1, 2, 3], [3, 0, 1]]


def test_state_is_handed_on():
    seen = []

    def step(tokens, state):
        seen.append(state)
        return HALVES.expand(len(tokens), -1), state + 1

    list(sample(step, 5, torch.tensor([0]), 3, generator=seeded()))
    assert seen == [5, 6, 7]


def test_a_token_is_handed_out_before_the_next_is_computed():
    calls = []

    def step(tokens, state):
        calls.append(tokens)
        return HALVES.expand(len(tokens), -1), state

    tokens = sample(step, None, torch.tensor([0]), 9, generator=seeded())
    next(tokens)
    assert len(calls) == 1


def test_same_seed_same_tokens_and_the_global_state_is_left_alone():
    before = torch.get_rng_state()
    one, other, third = (
        torch.cat(list(sample(always(HALVES), None, torch.tensor([0]), 40, generator=seeded(s))))
        for s in (1, 1, 2)
    )
    assert torch.equal(one, other)
    assert not torch.equal(one, third)
    assert torch.equal(torch.get_rng_state(), before)


# --- hostile arguments ---------------------------------------------------------------------------

START = torch.tensor([0])


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: keep_top_k(HALVES, 0), ValueError, "k must be at least 1, got 0"),
        (lambda: keep_top_k(HALVES, 1.5), TypeError, "k must be an integer, got float"),
        (
            lambda: keep_top_k(torch.tensor([1, 2]), 1),
            TypeError,
            "logits must have a floating-point dtype, got torch.int64",
        ),
        (lambda: keep_top_p(HALVES, 1.5), ValueError, "p must be at most 1, got 1.5"),
        (
            lambda: keep_top_p(HALVES, 0.0),
            ValueError,
            "p must be a finite number above 0, in the range of float32, got 0.0",
        ),
        (lambda: keep_top_p(HALVES, "1"), TypeError, "p must be a number, got str"),
        (
            lambda: next(sample(always(HALVES), None, START, 0, generator=seeded())),
            ValueError,
            "max_length must be at least 1, got 0",
        ),
        (
            lambda: next(
                sample(always(HALVES), None, START, 1, generator=seeded(), temperature=-1.0)
            ),
            ValueError,
            "temperature must be a finite number above 0, in the range of float32, got -1.0",
        ),
    ],
)
def test_a_bad_argument_is_named(call, kind, message):
    with pytest.raises(kind, match=re.escape(message) + "$"):
        call()


@pytest.mark.hostile
def test_forbidden_tokens_are_never_drawn():
    logits = torch.tensor([FORBIDDEN, 0.0, FORBIDDEN])
    drawn = torch.cat(list(sample(always(logits), None, START, 50, generator=seeded(), top_p=0.9)))
    assert drawn.unique().tolist() == [1]
