"""Speculative decoding: exact by enumeration, by frequencies, greedy, going back, hostile sizes."""

import itertools
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2
from torch.testing import assert_close

from attention_lib.decoding import greedy
from attention_lib.efficient.caches import StaticCache
from attention_lib.efficient.readers import CachedReader, Reader, WindowReader
from attention_lib.efficient.sliding import SlidingCache
from attention_lib.efficient.speculative import (
    acceptance,
    draw,
    expected_speedup,
    expected_tokens,
    likeliest,
    plain,
    residual,
    speculate,
    verify,
)
from attention_lib.models.gpt import GPTConfig, llama

V = 3
# Rows of probabilities in eighths and quarters, so that a grid of uniform numbers is exact. A row
# for each last token; the target and the draft differ, and the draft never guesses some tokens.
TARGET = torch.tensor([[1, 3, 4], [5, 2, 1], [2, 0, 6]], dtype=torch.float64) / 8
DRAFT = torch.tensor([[2, 1, 1], [1, 2, 1], [2, 2, 0]], dtype=torch.float64) / 4


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def table(rows):
    """A reader that knows the last token only."""
    return WindowReader(lambda text, last: rows.log()[text[-last:]], 1)


def distributions(*size):
    """A hypothesis strategy: rows of sum 1, in which zeros are common."""
    count = math.prod(size)
    numbers = st.lists(st.integers(0, 4), min_size=count, max_size=count)

    def normalised(entries):
        rows = torch.tensor(entries, dtype=torch.float64).view(size)
        rows[..., 0] += rows.sum(dim=-1) == 0
        return rows / rows.sum(dim=-1, keepdim=True)

    return numbers.map(normalised)


# --- the mathematics on paper --------------------------------------------------------------------


def test_acceptance_and_residual_on_paper():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.75, 0.0])
    assert acceptance(p, q).item() == 0.5
    assert residual(p, q).tolist() == [0.5, 0.0, 0.5]
    assert acceptance(torch.stack([p, q]), torch.stack([q, q])).tolist() == [0.5, 1.0]


@given(distributions(7), distributions(7))
def test_what_is_accepted_and_what_replaces_the_rest_add_up_to_the_target(p, q):
    beta = acceptance(p, q)
    assert_close(beta, 1 - (p - q).abs().sum() / 2)
    assert_close(torch.minimum(p, q) + (1 - beta) * residual(p, q), p)
    assert_close(residual(p, q).sum(), torch.tensor(1.0, dtype=torch.float64))


def test_nothing_is_left_of_equal_distributions_and_the_target_stands_in():
    p = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    q = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    assert residual(p, q).tolist() == [[0.25, 0.75], [0.0, 1.0]]


def test_rules_make_distributions_in_float32_at_least():
    logits = torch.tensor([[0.0, math.log(3)], [1.0, 1.0]])
    assert_close(plain(logits), torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    assert likeliest(logits).tolist() == [[0, 1], [1, 0]]
    for rule in (plain, likeliest):
        assert rule(logits.half()).dtype == torch.float32
        assert rule(logits.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("rate", "ahead", "tokens"),
    [(0.0, 3, 1.0), (1.0, 3, 4.0), (0.5, 0, 1.0), (0.5, 1, 1.5), (0.5, 3, 1.875), (1.0, 0, 1.0)],
)
def test_expected_tokens_on_paper(rate, ahead, tokens):
    assert expected_tokens(rate, ahead) == tokens


@given(st.floats(0, 0.99), st.integers(0, 9))
def test_expected_tokens_is_the_closed_form(rate, ahead):
    assert expected_tokens(rate, ahead) == pytest.approx((1 - rate ** (ahead + 1)) / (1 - rate))


def test_expected_speedup_on_paper():
    assert expected_speedup(0.5, 3, 0.0) == 1.875
    assert expected_speedup(0.5, 3, 0.125) == pytest.approx(1.875 / 1.375)
    assert expected_speedup(0.0, 1, 1.0) == 0.5


# --- one draw, one round -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uniform", "token"),
    [(0.0, 1), (0.249, 1), (0.25, 2), (0.749, 2), (0.75, 4), (1 - 2**-53, 4)],
)
def test_draw_passes_the_running_sum(uniform, token):
    probability = torch.tensor([0.0, 0.25, 0.5, 0.0, 0.25, 0.0])
    assert draw(probability, torch.tensor(uniform, dtype=torch.float64)).item() == token


@given(distributions(5).map(lambda p: p * 1.7), st.floats(0, 1, exclude_max=True))
def test_draw_never_takes_what_has_no_probability_and_needs_no_sum_of_one(p, uniform):
    token = draw(p, torch.tensor(uniform, dtype=torch.float64))
    assert p[token] > 0
    before, after = p[:token].sum() / p.sum(), p[: token + 1].sum() / p.sum()
    assert before <= uniform + 1e-12
    assert uniform <= after + 1e-12


def test_a_product_that_rounds_up_to_the_sum_takes_the_last_possible_token():
    probability = torch.tensor([0.1, 1.0 + 2**-23, 0.0])
    assert draw(probability, torch.tensor(1.0, dtype=torch.float64)).item() == 1


@pytest.mark.parametrize(
    ("uniform", "tokens"),
    [
        # p / q is 1/2 for token 0, then 8/12 for token 1 after it, then a free token after 1.
        ([0.499, 0.666, 0.0], [0, 1, 0]),
        ([0.499, 0.666, 0.624], [0, 1, 0]),
        ([0.499, 0.666, 0.626], [0, 1, 1]),
        ([0.499, 0.667, 0.0], [0, 2]),
        ([0.5, 0.0, 0.0], [1]),
        ([0.501, 0.0, 0.249], [1]),
        ([0.501, 0.0, 0.251], [2]),
    ],
)
def test_a_round_on_paper(uniform, tokens):
    draft = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]], dtype=torch.float64)
    target = torch.tensor(
        [[0.25, 0.3125, 0.4375], [0.125, 0.5, 0.375], [0.625, 0.25, 0.125]], dtype=torch.float64
    )
    found = verify(torch.tensor([0, 1]), draft, target, torch.tensor(uniform, dtype=torch.float64))
    assert found.dtype == torch.int64
    assert found.tolist() == tokens


def test_accepted_by_equality_only_below():
    """u < p / q, not u <= p / q: a token of probability 0 is never accepted."""
    draft = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    target = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    zeros = torch.zeros(2, dtype=torch.float64)
    assert verify(torch.tensor([0]), draft, target, zeros).tolist() == [1]


def test_without_proposals_the_target_draws_alone():
    target = torch.tensor([[0.25, 0.75]])
    for uniform, token in ((0.24, 0), (0.26, 1)):
        found = verify(
            torch.empty(0, dtype=torch.int64), target[:0], target, torch.tensor([uniform])
        )
        assert found.tolist() == [token]


# --- the theorem, by enumeration -----------------------------------------------------------------


def grid(size):
    """The middles of `size` equal parts of [0, 1): exact where all borders lie between them."""
    return ((torch.arange(size, dtype=torch.float64) + 0.5) / size).tolist()


def joint(start, length):
    """The probabilities of all texts of a length, by the target alone."""
    chance = {(): 1.0}
    for _ in range(length):
        chance = {
            (*text, token): p * TARGET[text[-1] if text else start, token].item()
            for text, p in chance.items()
            for token in range(V)
        }
    return chance


@pytest.mark.parametrize(("start", "ahead"), [(0, 1), (1, 1), (2, 1), (0, 2)])
def test_all_paths_of_a_round_together_give_the_target_distribution(start, ahead):
    """Every proposal, every decision, every replacement; then the target goes on alone."""
    found = dict.fromkeys(itertools.product(range(V), repeat=ahead + 1), 0.0)
    decisions = [grid(8)] * ahead + [grid(24)]
    weight = 1 / math.prod(map(len, decisions))
    for proposed in itertools.product(range(V), repeat=ahead):
        before = [start, *proposed]
        q = DRAFT[before[:-1]]
        chance = math.prod(q[i, token].item() for i, token in enumerate(proposed))
        if not chance:
            continue
        for uniform in itertools.product(*decisions):
            new = verify(
                torch.tensor(proposed),
                q,
                TARGET[before],
                torch.tensor(uniform, dtype=torch.float64),
            ).tolist()
            for rest, p in joint(new[-1], ahead + 1 - len(new)).items():
                found[(*new, *rest)] += chance * weight * p
    exact = joint(start, ahead + 1)
    assert max(abs(found[text] - exact[text]) for text in exact) < 1e-12


def frequencies(rows, runs, length, ahead):
    counts = torch.zeros(V**length)
    generator, calls = seeded(1), 0
    for _ in range(runs):
        written = []
        rounds = speculate(
            table(TARGET), table(rows), torch.tensor([0]), length, generator=generator, ahead=ahead
        )
        for new in rounds:
            written += new.tolist()
            calls += 1
        assert len(written) == length
        counts[sum(token * V**place for place, token in enumerate(reversed(written)))] += 1
    return counts, calls / runs


def chi_squared(counts, exact):
    expected = exact * counts.sum()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    return ((counts - expected)[possible] ** 2 / expected[possible]).sum().item(), possible.sum()


def test_frequencies_of_whole_texts_are_those_of_the_target_alone():
    counts, calls = frequencies(DRAFT, 2000, 3, ahead=2)
    exact = torch.tensor(list(joint(0, 3).values()))
    distance, possible = chi_squared(counts, exact)
    assert distance < chi2.ppf(0.999, int(possible) - 1)
    assert 1 < calls < 3  # it did save calls
    # The test can tell: texts of the draft would be far off.
    start, last = DRAFT[0], DRAFT
    drafted = torch.einsum("a,ab,bc->abc", start, last, last).flatten()
    assert ((drafted - exact)[exact > 0] ** 2 / exact[exact > 0]).sum() * 2000 > 10 * distance


def test_a_draft_that_is_always_wrong_costs_calls_and_nothing_else():
    target = torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # 0 1 0 1 ...
    wrong = target.flip(0)
    rounds = list(
        speculate(table(target), table(wrong), torch.tensor([0]), 5, generator=seeded(), ahead=3)
    )
    assert [new.tolist() for new in rounds] == [[1], [0], [1], [0], [1]]


def test_a_draft_that_is_the_target_is_never_rejected():
    rounds = list(
        speculate(table(TARGET), table(TARGET), torch.tensor([1]), 11, generator=seeded(), ahead=3)
    )
    assert [len(new) for new in rounds] == [4, 4, 3]


# --- with real models and caches -----------------------------------------------------------------

CONFIG = GPTConfig(tokens=13, length=64, width=22, layers=2, heads=11, kv_heads=1, hidden=17)


def model(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = llama(CONFIG).double()
        for parameter in made.parameters():  # far from uniform
            torch.nn.init.normal_(parameter, std=0.6)
    return made.eval()


def plain_greedy(target, text, length):
    caches = target.empty_caches()
    with torch.no_grad():
        if len(text) > 1:
            target.states(text[None, :-1], caches=caches)
        return greedy(target.step, caches, text[-1:], end=12, max_length=length)[0].tolist()


@pytest.mark.parametrize("ahead", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", [3, 4])
def test_greedy_speculation_writes_what_greedy_writes(ahead, seed):
    target, other = model(0), model(seed)
    for draft in (other, target):
        text = torch.tensor([5, 3, 7])
        one = CachedReader(target, target.empty_caches())
        two = CachedReader(draft, [StaticCache(40) for _ in draft.blocks])
        rounds = list(
            speculate(one, two, text, 17, generator=seeded(), ahead=ahead, rule=likeliest)
        )
        written = torch.cat(rounds).tolist()
        assert len(written) == 17
        right = plain_greedy(target, text, 17)
        assert written[: len(right)] == right
        if draft is target:
            assert [len(new) for new in rounds[:-1]] == [ahead + 1] * (len(rounds) - 1)


def test_after_each_round_the_caches_hold_what_was_kept_and_nothing_else():
    target, draft = model(0), model(1)
    text = torch.tensor([5, 3, 7, 2])
    one = CachedReader(target, target.empty_caches())
    two = CachedReader(draft, draft.empty_caches())
    written, lengths = text.tolist(), set()
    for new in speculate(one, two, text, 30, generator=seeded(), ahead=3):
        written += new.tolist()
        lengths.add(len(new))
        assert len(one) == len(written) - 1
        assert len(two) in (len(written) - 1, len(written) - 2)
        for reader in (one, two):
            fresh = reader.model.empty_caches()
            with torch.no_grad():
                reader.model(torch.tensor([written[: len(reader)]]), caches=fresh)
            for mine, right in zip(reader.caches, fresh, strict=True):
                assert_close(mine.key, right.key)
                assert_close(mine.value, right.value)
    assert len(lengths) > 1  # some rounds went back, some did not go back as far


def test_readers_may_have_read_a_beginning_and_the_target_is_called_once_a_round():
    target = model(0)
    text = torch.tensor([5, 3, 7, 2, 9])
    calls = []

    def counted(tokens, caches):
        calls.append(tokens.shape[-1])
        return target(tokens, caches=caches)

    one, two = CachedReader(counted, target.empty_caches()), WindowReader(uneven, 2)
    one.read(text[:3])
    two.read(text[:2])
    rounds = list(speculate(one, two, text, 9, generator=seeded(), ahead=2))
    assert calls[0] == 3
    assert calls[1] == 2 + 2  # what was not read, and the proposals
    assert len(calls) == len(rounds) + 1
    assert all(call <= 3 for call in calls[2:])


def uneven(text, last):
    return (text[-last:, None] * torch.arange(13.0)).sin()


def test_the_rule_is_used_for_both_models():
    """With forbidden tokens in the rule, none is ever written."""

    def odd(logits):
        return plain(logits.masked_fill(torch.arange(V) == 1, -math.inf))

    written = torch.cat(
        list(
            speculate(
                table(TARGET), table(DRAFT), torch.tensor([0]), 60, generator=seeded(), rule=odd
            )
        )
    )
    assert set(written.tolist()) == {0, 2}


def test_four_ahead_unless_told_otherwise():
    rounds = list(speculate(table(TARGET), table(TARGET), torch.tensor([0]), 9, generator=seeded()))
    assert [len(new) for new in rounds] == [5, 4]


def test_no_gradients_and_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    target = model(0)
    reader = CachedReader(target, target.empty_caches())
    rounds = speculate(reader, WindowReader(uneven, 1), torch.tensor([3]), 4, generator=seeded())
    next(rounds)
    assert torch.is_grad_enabled()
    assert not reader.caches[0].key.requires_grad
    assert torch.equal(torch.get_rng_state(), before)


def test_same_seed_same_text():
    texts = [
        torch.cat(
            list(speculate(table(TARGET), table(DRAFT), torch.tensor([0]), 30, generator=seeded(s)))
        ).tolist()
        for s in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


# --- readers -------------------------------------------------------------------------------------


def test_both_readers_are_readers_and_go_back():
    target = model(0)
    cached = CachedReader(target, target.empty_caches())
    window = WindowReader(lambda text, last: target(text[None])[0, -last:], 64)
    text = torch.tensor([5, 3, 7, 2, 9, 11, 4])
    with torch.no_grad():
        whole = target(text[None])[0]
        for reader in (cached, window):
            assert isinstance(reader, Reader)
            assert len(reader) == 0
            assert_close(reader.read(text[:4]), whole[:4])
            assert len(reader) == 4
            reader.read(torch.tensor([1, 1, 1]))
            reader.forget(4)
            assert len(reader) == 4
            assert_close(reader.read(text[4:]), whole[4:])
            reader.forget(7)
            reader.forget(0)
            assert len(reader) == 0


def test_a_window_shows_the_model_no_more_than_its_context():
    seen = []

    def spy(text, last):
        seen.append((text.tolist(), last))
        return torch.zeros(last, V)

    reader = WindowReader(spy, 3)
    reader.read(torch.tensor([1, 2]))
    reader.read(torch.tensor([0]))
    reader.read(torch.tensor([1, 1]))
    assert seen == [([1, 2], 2), ([1, 2, 0], 1), ([2, 0, 1, 1], 2)]


# --- hostile sizes and arguments -----------------------------------------------------------------


@pytest.mark.hostile
def test_one_token_to_write_and_a_vocabulary_of_one():
    alone = torch.ones(1, 1)
    rounds = list(speculate(table(alone), table(alone), torch.tensor([0]), 1, generator=seeded()))
    assert [new.tolist() for new in rounds] == [[0]]


@pytest.mark.hostile
def test_half_precision_logits_that_overflow_a_naive_softmax():
    rows = torch.tensor([[0.0, 60000.0], [60000.0, 0.0]], dtype=torch.float16)
    reader = lambda: WindowReader(lambda text, last: rows[text[-last:]], 1)  # noqa: E731
    rounds = speculate(reader(), reader(), torch.tensor([0]), 6, generator=seeded())
    assert torch.cat(list(rounds)).tolist() == [1, 0, 1, 0, 1, 0]


@pytest.mark.hostile
def test_a_sliding_cache_that_dropped_something_cannot_go_back():
    target = model(0)
    reader = CachedReader(target, [SlidingCache(4) for _ in target.blocks])
    with torch.no_grad():
        for token in (5, 3, 7, 2, 9, 11, 4):
            reader.read(torch.tensor([token]))
    with pytest.raises(ValueError, match="length must be"):
        reader.forget(5)


@pytest.mark.hostile
def test_an_unnormalised_row_within_rounding_is_taken():
    p = torch.tensor([[0.5, 0.496]])  # as half precision may leave it
    assert acceptance(p, p).item() == pytest.approx(0.996)


ROW = torch.tensor([[0.25, 0.75]])
ZERO = torch.tensor([0])
HALF = torch.tensor([0.5, 0.5])


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: plain(ZERO),
            TypeError,
            "logits must have a floating-point dtype, got torch.int64",
        ),
        (
            lambda: likeliest(ZERO),
            TypeError,
            "logits must have a floating-point dtype, got torch.int64",
        ),
        (
            lambda: acceptance(ROW, torch.tensor([0.25, 0.75])),
            ValueError,
            "draft must have the shape of target (1, 2), got (2,)",
        ),
        (
            lambda: acceptance(2 * ROW, ROW),
            ValueError,
            "target must hold probabilities, rows of sum 1 without negative numbers, "
            "got a sum of 2 and a smallest entry of 0.5",
        ),
        (
            lambda: acceptance(ROW, torch.tensor([[-0.5, 1.5]])),
            ValueError,
            "draft must hold probabilities, rows of sum 1 without negative numbers, "
            "got a sum of 1 and a smallest entry of -0.5",
        ),
        (
            lambda: acceptance(ROW * math.nan, ROW),
            ValueError,
            "target must hold probabilities, rows of sum 1 without negative numbers, "
            "got a sum of nan and a smallest entry of nan",
        ),
        (
            lambda: acceptance(torch.cat([ROW, 1.1 * ROW, 0.5 * ROW]), ROW),
            ValueError,
            "target must hold probabilities, rows of sum 1 without negative numbers, "
            "got a sum of 0.5 and a smallest entry of 0.125",
        ),
        (
            lambda: residual(ROW, 1.02 * ROW),
            ValueError,
            "draft must hold probabilities, rows of sum 1 without negative numbers, "
            "got a sum of 1.02 and a smallest entry of 0.255",
        ),
        (
            lambda: verify(ZERO, ROW, ROW, HALF),
            ValueError,
            "target must have shape (K + 1, V) = (2, V), got (1, 2)",
        ),
        (
            lambda: verify(ZERO, ROW, ROW[0], HALF),
            ValueError,
            "target must have shape (K + 1, V) = (2, V), got (2,)",
        ),
        (
            lambda: verify(ZERO, torch.eye(3)[:1], ROW.expand(2, 2), HALF),
            ValueError,
            "draft must have shape (K, V) = (1, 2), got (1, 3)",
        ),
        (
            lambda: verify(ZERO, ROW, ROW.expand(2, 2), HALF[:1]),
            ValueError,
            "uniform must have shape (K + 1,) = (2,), got (1,)",
        ),
        (
            lambda: verify(
                torch.tensor([1, 0]),
                torch.tensor([[0.5, 0.5], [0.0, 1.0]]),
                ROW.expand(3, 2),
                torch.zeros(3),
            ),
            ValueError,
            "draft must give a probability above 0 to each token that it proposed, "
            "got 0.0 for token 0 at place 1",
        ),
        (lambda: expected_tokens(1.5, 1), ValueError, "rate must be between 0 and 1, got 1.5"),
        (lambda: expected_tokens(-0.1, 1), ValueError, "rate must be between 0 and 1, got -0.1"),
        (lambda: expected_tokens(0.5, -1), ValueError, "ahead must be at least 0, got -1"),
        (lambda: expected_speedup(0.5, 1, -1.0), ValueError, "cost must be at least 0, got -1.0"),
        (
            lambda: expected_speedup(0.5, 1, math.nan),
            ValueError,
            "cost must be at least 0, got nan",
        ),
        (
            lambda: next(
                speculate(table(TARGET), table(DRAFT), ZERO, 0, generator=seeded(), ahead=1)
            ),
            ValueError,
            "max_length must be at least 1, got 0",
        ),
        (
            lambda: next(
                speculate(table(TARGET), table(DRAFT), ZERO, 1, generator=seeded(), ahead=0)
            ),
            ValueError,
            "ahead must be at least 1, got 0",
        ),
        (
            lambda: next(speculate(table(TARGET), read(1), ZERO, 1, generator=seeded())),
            ValueError,
            "draft must have read less than the 1 tokens of text, got 1",
        ),
        (
            lambda: next(
                speculate(read(2), read(1), torch.cat([ZERO, ZERO]), 1, generator=seeded())
            ),
            ValueError,
            "target must have read less than the 2 tokens of text, got 2",
        ),
        (lambda: WindowReader(uneven, 0), ValueError, "context must be at least 1, got 0"),
        (lambda: read(2).forget(3), ValueError, "length must be at most 2 tokens read, got 3"),
        (lambda: read(2).forget(-1), ValueError, "length must be at least 0, got -1"),
        (
            lambda: table(TARGET).read(ZERO[:0]),
            ValueError,
            "tokens must hold at least one token, got none",
        ),
    ],
)
def test_a_bad_argument_is_named(call, kind, message):
    with pytest.raises(kind, match=re.escape(message) + "$"):
        call()


def read(count):
    reader = table(TARGET)
    reader.read(torch.zeros(count, dtype=torch.int64))
    return reader
