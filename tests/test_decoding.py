"""Greedy and beam search: on paper, against exhaustive search, and hostile models.

The model of these tests is a table: the logits of the next token depend on the whole prefix, whose
code is the state. So a search that mixes up its rows, or forgets to take the state along, fails.
"""

import itertools
import math
import re
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import random
from torch.testing import assert_close

from attention_lib.decoding import beam, greedy, reorder

END, V, LONGEST, ROWS = 0, 3, 4, 2
seeds = st.integers(0, 2**32)
ALPHAS = [0.0, 0.6, 1.0, 3.0]


def by_prefix(seed, *, scale=2.0):
    """A model as (step, state, start): random logits for each prefix of each row."""
    table = random(torch.Generator().manual_seed(seed), 1009, V, scale=scale)

    def step(tokens, codes):
        codes = codes * V + tokens
        return table[codes % len(table)], codes

    return step, torch.arange(1, ROWS + 1), torch.tensor([1, 2])


def from_probabilities(table):
    """A model whose next token depends on the last token alone; its state is never looked at."""
    logits = torch.tensor(table, dtype=torch.float64).log()
    return lambda tokens, state: (logits[tokens], state)


def every_sequence(length):
    """Those that end once, at their end, and those that were cut off at ``length``."""
    for n in range(1, length + 1):
        for tokens in itertools.product(range(V), repeat=n):
            ended = END in tokens
            if tokens.index(END) == n - 1 if ended else n == length:
                yield tokens


def log_probability(step, state, start, tokens):
    total, token = 0.0, start
    for choice in tokens:
        logits, state = step(token, state)
        total += logits[0].log_softmax(dim=-1)[choice].item()
        token = torch.tensor([choice])
    return total


def exhaustive(model, row, length, alpha):
    """The best of all sequences, with its score."""
    step, state, start = model
    scores = {
        tokens: log_probability(step, state[row : row + 1], start[row : row + 1], tokens)
        / ((5 + len(tokens)) / 6) ** alpha
        for tokens in every_sequence(length)
    }
    return max(scores.items(), key=lambda item: item[1])


# --- on paper ------------------------------------------------------------------------------------

# From the start, 1 is likelier than 2 (0.6 to 0.4); but after 2 the end is certain, after 1 not.
GARDEN_PATH = [[1.0, 0, 0], [0.0, 0.6, 0.4], [1.0, 0, 0]]


def test_greedy_takes_the_likeliest_token_at_each_step():
    step = from_probabilities([[1, 0, 0], [0.2, 0.3, 0.5], [0.6, 0.4, 0]])
    tokens = greedy(step, None, torch.tensor([1, 2, 1]), END, 5)
    assert tokens.tolist() == [[2, END], [END, END], [2, END]]


def test_greedy_is_cut_off_without_an_end():
    step = from_probabilities([[1, 0, 0], [0, 1, 0], [0.9, 0.1, 0]])
    assert greedy(step, None, torch.tensor([1, 2]), END, 3).tolist() == [[1, 1, 1], [END] * 3]


def test_a_beam_of_two_sees_past_a_first_step_that_greedy_falls_for():
    start = torch.tensor([1])
    step = from_probabilities(GARDEN_PATH)
    assert greedy(step, None, start, END, 2).tolist() == [[1, 1]]
    tokens, score = beam(step, None, start, END, 2, width=2, length_penalty=0)
    assert tokens.tolist() == [[2, END]]
    assert_close(score, torch.tensor([0.4]).double().log())


def test_a_score_is_the_log_probability_over_the_length_penalty():
    step = from_probabilities(GARDEN_PATH)
    _, score = beam(step, None, torch.tensor([1]), END, 2, width=2, length_penalty=2)
    assert_close(score.item(), math.log(0.4) / (7 / 6) ** 2)


def test_the_length_penalty_decides_between_short_and_long():
    # The end at once has probability 0.5, a token and then the end 0.5 * 0.9.
    step = from_probabilities([[1, 0, 0], [0.5, 0, 0.5], [0.9, 0.1, 0]])
    start = torch.tensor([1])
    short, score = beam(step, None, start, END, 9, width=3, length_penalty=0)
    assert short.tolist() == [[END]]
    assert_close(score.item(), math.log(0.5))
    long, score = beam(step, None, start, END, 9, width=3, length_penalty=1)
    assert long.tolist() == [[2, END]]
    assert_close(score.item(), math.log(0.45) * 6 / 7)


def test_a_longer_beginning_may_still_overtake_after_something_ended():
    # At the first step the end, 0.5, is the best of all; strong penalties favour 2 2 2 2 2 end.
    step = from_probabilities([[1, 0, 0], [0.5, 0, 0.5], [0.1, 0, 0.9]])
    tokens, score = beam(step, None, torch.tensor([1]), END, 6, width=1, length_penalty=2)
    assert tokens.tolist() == [[2] * 6]
    assert_close(score.item(), math.log(0.5 * 0.9**5) / (11 / 6) ** 2)


# --- exhaustive search ---------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("alpha", ALPHAS)
@given(seed=seeds, length=st.integers(1, LONGEST))
def test_a_beam_that_holds_everything_finds_the_optimum(alpha, seed, length):
    model = by_prefix(seed, scale=0.5)  # with much the same probabilities a narrow beam is lost
    step, state, start = model
    tokens, scores = beam(step, state, start, END, length, width=V**length, length_penalty=alpha)
    for row in range(ROWS):
        best, score = exhaustive(model, row, length, alpha)
        filled = [*best, *[END] * (tokens.shape[1] - len(best))]
        assert tokens[row].tolist() == filled
        assert_close(scores[row].item(), score)


@given(seed=seeds, length=st.integers(1, 7))
def test_a_beam_of_one_without_penalty_is_greedy(seed, length):
    step, state, start = by_prefix(seed)
    tokens, scores = beam(step, state, start, END, length, width=1, length_penalty=0)
    expected = greedy(step, state, start, END, length)
    assert torch.equal(tokens, expected)
    for row, chosen in enumerate(expected.tolist()):
        whole = chosen[: chosen.index(END) + 1] if END in chosen else chosen
        total = log_probability(step, state[row : row + 1], start[row : row + 1], whole)
        assert_close(scores[row].item(), total)


@pytest.mark.parametrize("names", list(itertools.permutations(range(V))))
@given(seed=seeds)
def test_other_numbers_for_the_tokens_change_nothing_else(names, seed):
    # With the end as token 0, rows filled up with zeros would look right.
    step, state, start = by_prefix(seed)
    new = torch.tensor(names)  # the new number of each token
    old = new.argsort()

    def renamed(tokens, state):
        logits, state = step(old[tokens], state)
        return logits[:, old], state

    expected, scores = beam(step, state, start, END, 5, width=3)
    found, found_scores = beam(renamed, state, new[start], names[END], 5, width=3)
    assert torch.equal(found, new[expected])
    assert_close(found_scores, scores)
    assert torch.equal(
        greedy(renamed, state, new[start], names[END], 5), new[greedy(step, state, start, END, 5)]
    )


@given(seed=seeds)
def test_half_precision_logits_are_added_up_in_single(seed):
    step, state, start = by_prefix(seed)

    def rounded(dtype):
        return lambda tokens, state: (step(tokens, state)[0].bfloat16().to(dtype), state)

    tokens, scores = beam(rounded(torch.bfloat16), state, start, END, 5, width=3)
    expected, single = beam(rounded(torch.float32), state, start, END, 5, width=3)
    assert torch.equal(tokens, expected)
    assert torch.equal(scores, single)


def test_the_largest_length_penalty_is_accepted():
    step = from_probabilities(GARDEN_PATH)
    _, score = beam(step, None, torch.tensor([1]), END, 2, width=2, length_penalty=10)
    assert_close(score.item(), math.log(0.4) / (7 / 6) ** 10)


@pytest.mark.parametrize("alpha", ALPHAS)
@given(seed=seeds, width=st.integers(1, 5), length=st.integers(1, 6))
def test_the_score_is_that_of_the_sequence(alpha, seed, width, length):
    step, state, start = by_prefix(seed)
    tokens, scores = beam(step, state, start, END, length, width=width, length_penalty=alpha)
    for row, chosen in enumerate(tokens.tolist()):
        whole = chosen[: chosen.index(END) + 1] if END in chosen else chosen
        total = log_probability(step, state[row : row + 1], start[row : row + 1], whole)
        assert_close(scores[row].item(), total / ((5 + len(whole)) / 6) ** alpha)


@given(seed=seeds, width=st.integers(1, 5), length=st.integers(1, 6))
def test_rows_of_a_batch_do_not_feel_each_other(seed, width, length):
    step, state, start = by_prefix(seed)
    together, scores = beam(step, state, start, END, length, width=width)
    for row in range(ROWS):
        one = slice(row, row + 1)
        alone, score = beam(step, state[one], start[one], END, length, width=width)
        filled = torch.full_like(together[one], END)
        filled[:, : alone.shape[1]] = alone
        assert torch.equal(together[one], filled)
        assert_close(scores[one], score)


# --- ends, dtypes, arguments ---------------------------------------------------------------------


def test_the_search_stops_when_nothing_can_get_better():
    calls = []

    def step(tokens, state):
        calls.append(len(tokens))
        return torch.tensor([[9.0, 0, 0]]).expand(len(tokens), V), state

    for search in (greedy, lambda *a: beam(*a, width=2, length_penalty=0)[0]):
        calls.clear()
        assert search(step, None, torch.tensor([1, 2]), END, 50).tolist() == [[END], [END]]
        assert calls == [2]


def test_when_every_beginning_ends_at_once_the_best_of_them_is_returned():
    # Both beginnings, 1 and 2, can only end at the second step.
    step = from_probabilities([[1, 0, 0], [1, 0, 0], [1, 0, 0]])
    first = torch.tensor([[-math.inf, 0.0, 1.0]], dtype=torch.float64)

    def two_ways(tokens, fresh):
        logits, _ = step(tokens, None)
        return torch.where(fresh[:, None] > 0, first, logits), torch.zeros_like(fresh)

    tokens, score = beam(two_ways, torch.ones(1), torch.tensor([1]), END, 9, width=2)
    assert tokens.tolist() == [[2, END]]
    assert_close(score, first.log_softmax(-1)[0, 2:] / (7 / 6) ** 0.6)


def test_a_beginning_that_cannot_win_any_more_is_stepped_with_the_end_and_not_looked_at():
    # The end at once has probability 0.3, so a sequence that starts with 1, 0.1, is of no use;
    # one that starts with 2 may become better, and in the end does: 0.6 * 0.8 ** 3 = 0.307.
    table = torch.tensor([[math.nan] * V, [0.3, 0.1, 0.6], [0.2, 0.0, 0.8]], dtype=torch.float64)
    fed = []

    def step(tokens, state):
        fed.append(tokens.tolist())
        return table[tokens].log(), state

    tokens, score = beam(step, None, torch.tensor([1]), END, 4, width=2, length_penalty=0)
    assert tokens.tolist() == [[2, 2, 2, 2]]
    assert_close(score.item(), math.log(0.6 * 0.8**3))
    assert fed == [[1], [2, END], [2, END], [2, END]]


def test_a_beginning_that_can_only_end_takes_no_place_from_others():
    # After 1, only the end; after 2, one more token. A width of 5 is more than there ever is.
    step = from_probabilities([[1, 0, 0], [1, 0, 0], [0.1, 0.9, 0]])
    tokens, score = beam(step, None, torch.tensor([2]), END, 9, width=5, length_penalty=0)
    assert tokens.tolist() == [[1, END]]
    assert_close(score, torch.tensor([0.9]).double().log())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scores_are_at_least_float32(dtype):
    logits = torch.tensor([[0.0, 1.0, 2.0]], dtype=dtype)
    _, score = beam(
        lambda tokens, state: (logits.expand(len(tokens), V), state),
        None, torch.tensor([1]), END, 3, width=2,
    )  # fmt: skip
    assert score.dtype == torch.float32


def test_no_graph_is_kept():
    weight = torch.ones(V, requires_grad=True)

    def step(tokens, state):
        return weight.expand(len(tokens), V), weight.sum()[None].expand(len(tokens))

    _, score = beam(step, None, torch.tensor([1]), END, 3, width=2)
    assert not score.requires_grad


def test_the_callers_state_is_left_as_it_was():
    step, state, start = by_prefix(5)
    before = state.clone(), start.clone()
    beam(step, state, start, END, 4, width=3)
    greedy(step, state, start, END, 4)
    assert torch.equal(state, before[0])
    assert torch.equal(start, before[1])


# --- states --------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """A state with names."""

    hidden: torch.Tensor
    cell: torch.Tensor


class Cache:
    """A state that knows how to pick its rows."""

    def __init__(self, numbers):
        self.numbers = numbers

    def select(self, rows):
        """The picked rows."""
        return Cache(self.numbers[rows])


def test_every_form_of_state_is_reordered():
    x = torch.arange(6).view(3, 2)
    rows = torch.tensor([2, 0, 0, 1])
    state = {"a": (x, [x + 1, None]), "pair": Pair(x, x + 2), "cache": Cache(x + 3), "time": 4}
    moved = reorder(state, rows, size=3)
    assert torch.equal(moved["a"][0], x[rows])
    assert torch.equal(moved["a"][1][0], x[rows] + 1)
    assert isinstance(moved["a"][1], list)
    assert moved["a"][1][1] is None
    assert isinstance(moved["pair"], Pair)
    assert torch.equal(moved["pair"].cell, x[rows] + 2)
    assert torch.equal(moved["cache"].numbers, x[rows] + 3)
    assert moved["time"] == 4


@given(seed=seeds)
def test_a_beam_finds_the_same_whatever_the_form_of_the_state(seed):
    step, state, start = by_prefix(seed)

    def nested(tokens, state):
        logits, codes = step(tokens, state["codes"][0])
        assert torch.equal(state["cache"].numbers, state["codes"][0])
        return logits, {"codes": (codes, None), "cache": Cache(codes)}

    plain = beam(step, state, start, END, 5, width=3)
    other = beam(nested, {"codes": (state, None), "cache": Cache(state)}, start, END, 5, width=3)
    assert torch.equal(plain[0], other[0])
    assert torch.equal(plain[1], other[1])


# --- hostile -------------------------------------------------------------------------------------

START = torch.tensor([1, 2])
SEARCHES = {
    "greedy": greedy,
    "beam": lambda *arguments: beam(*arguments, width=2),
}


def _constant(logits):
    return lambda tokens, state: (logits, state)


GOOD = _constant(torch.zeros(2, V))
BAD = {
    "list": ((GOOD, None, [1], END, 3), TypeError, "start must be a torch.Tensor, got list"),
    "floats": ((GOOD, None, START.float(), END, 3), TypeError,
               "start must have dtype torch.int64, got torch.float32"),
    "matrix": ((GOOD, None, START[None], END, 3), ValueError,
               "start must have shape (B,) with B at least 1, got (1, 2)"),
    "no rows": ((GOOD, None, START[:0], END, 3), ValueError,
                "start must have shape (B,) with B at least 1, got (0,)"),
    "end below 0": ((GOOD, None, START, -1, 3), ValueError, "end must be at least 0, got -1"),
    "end no token": ((GOOD, None, START, V, 3), ValueError, f"end must be below V = {V}, got {V}"),
    "end no integer": ((GOOD, None, START, 0.0, 3), TypeError,
                       "end must be an integer, got float"),
    "no length": ((GOOD, None, START, END, 0), ValueError, "max_length must be at least 1, got 0"),
    "list of logits": ((_constant([0.0]), None, START, END, 3), TypeError,
                       "logits must be a torch.Tensor, got list"),
    "integer logits": ((_constant(torch.zeros(2, V).long()), None, START, END, 3), TypeError,
                       "logits must have a floating-point dtype, got torch.int64"),
    "too few rows": ((_constant(torch.zeros(1, V)), None, START, END, 3), ValueError,
                     f"logits must have shape (B, V) = (2, V), got (1, {V})"),
    "with a length": ((_constant(torch.zeros(2, 1, V)), None, START, END, 3), ValueError,
                      f"logits must have shape (B, V) = (2, V), got (2, 1, {V})"),
}  # fmt: skip
for name, value, found in (("NaN", math.nan, "nan"), ("infinity", math.inf, "inf")):
    bad = torch.zeros(2, V)
    bad[1, 2] = value
    BAD[name] = (
        (_constant(bad), None, START, END, 3), ValueError,
        f"logits must have a finite largest value in every row, got {found} in row 1 for token 1",
    )  # fmt: skip
BAD["nothing allowed"] = (
    (_constant(torch.full((2, V), -math.inf)), None, START, END, 3), ValueError,
    "logits must have a finite largest value in every row, got -inf in row 0 for token 1",
)  # fmt: skip


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("name", BAD)
def test_a_bad_argument_or_model_is_named(search, name):
    arguments, kind, message = BAD[name]
    with pytest.raises(kind, match=re.escape(message) + "$"):
        SEARCHES[search](*arguments)


BEAMS = [
    ({"width": 0}, ValueError, "width must be at least 1, got 0"),
    ({"width": 1.0}, TypeError, "width must be an integer, got float"),
    *(({"width": 1, "length_penalty": number}, ValueError,
       f"length_penalty must lie between 0 and 10, got {number}")
      for number in (-0.1, 10.5, math.nan, math.inf)),
    *(({"width": 1, "length_penalty": thing}, TypeError,
       f"length_penalty must be a number, got {type(thing).__name__}")
      for thing in ("1", True, None)),
]  # fmt: skip


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize(("named", "kind", "message"), BEAMS, ids=[m for *_, m in BEAMS])
def test_a_bad_beam_is_named(named, kind, message):
    with pytest.raises(kind, match=re.escape(message) + "$"):
        beam(GOOD, None, START, END, 3, **named)


@pytest.mark.hostile
@pytest.mark.parametrize("bad", [torch.zeros(2, 5, 3), torch.tensor(1.0)], ids=["layers", "number"])
def test_a_state_without_one_row_for_each_hypothesis_is_refused(bad):
    rule = "state must hold tensors with one row for each hypothesis, (5, ...)"
    with pytest.raises(ValueError, match=re.escape(f"{rule}, got shape {tuple(bad.shape)}") + "$"):
        reorder((bad,), torch.tensor([0]), size=5)


@pytest.mark.hostile
def test_a_state_of_an_unknown_kind_is_refused():
    with pytest.raises(TypeError, match=r"^state must be a tensor, .*, got set$"):
        reorder({1, 2}, torch.tensor([0]), size=2)


@pytest.mark.hostile
@pytest.mark.parametrize("search", SEARCHES)
def test_what_a_model_says_after_the_end_is_not_looked_at(search):
    # Row 0 ends at once; from then on its logits are NaN.
    def step(tokens, ended):
        ended = ended | (tokens == END)
        logits = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0], [-9.0, 0.0, 9.0]])[tokens]
        return logits.masked_fill(ended[:, None], math.nan), ended

    start, fresh = torch.tensor([1, 2]), torch.zeros(2, dtype=torch.bool)
    tokens = SEARCHES[search](step, fresh, start, END, 3)
    tokens = tokens if search == "greedy" else tokens[0]
    assert tokens.tolist() == [[END] * 3, [2] * 3]
