"""Positions: on paper, against loops, and what each scheme promises in chapter 08."""

import math

import oracle_layers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import BATCH, DTYPES, TK, TQ, assert_matches, error, normal, random
from torch import nn
from torch.testing import assert_close

from attention_lib import Alibi, Learned, RelativeBias, Rotary, Sinusoidal, sinusoidal_table
from attention_lib.positions import (
    Position,
    alibi_slopes,
    half_from_interleaved,
    interleaved_from_half,
)

WIDTH, HEADS = 14, 3  # rotary and sinusoidal positions need an even width
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
offsets = st.integers(0, 1000)


# --- sinusoidal ----------------------------------------------------------------------------------


def test_sines_and_cosines_on_paper():
    table = sinusoidal_table(2, 4, base=100.0)  # frequencies 1 and 1/10
    expected = [
        [0, 1, 0, 1],
        [math.sin(1), math.cos(1), math.sin(0.1), math.cos(0.1)],
    ]
    assert_close(table, torch.tensor(expected))


@pytest.mark.oracle
@pytest.mark.parametrize("offset", [0, 3, 100_000])
@pytest.mark.parametrize("base", [10000.0, 500.0])
def test_the_table_matches_the_loop_to_the_last_digits_of_float32(base, offset):
    table = sinusoidal_table(TK, WIDTH, base=base, offset=offset)
    assert table.dtype == torch.float32
    exact = oracle_layers.sinusoidal(TK, WIDTH, base, offset)
    assert error(table, exact) <= torch.finfo(torch.float32).eps


@given(length=st.integers(0, 7), offset=offsets)
def test_an_offset_is_a_slice_of_the_longer_table(length, offset):
    whole = sinusoidal_table(offset + length, WIDTH)
    assert torch.equal(sinusoidal_table(length, WIDTH, offset=offset), whole[offset:])


@given(st.integers(0, 1000), st.integers(0, 50))
def test_sinusoidal_positions_meet_in_a_product_of_their_distance(first, distance):
    table = oracle_layers.sinusoidal(1, WIDTH, offset=first)
    there = sinusoidal_table(1, WIDTH, offset=first + distance).double()
    expected = sum(math.cos(distance / 10000 ** (2 * i / WIDTH)) for i in range(WIDTH // 2))
    assert (table @ there.mT).item() == pytest.approx(expected, abs=1e-5)


@DTYPE
def test_sinusoidal_adds_the_table(dtype, generator):
    x = random(generator, BATCH, TK, WIDTH, dtype=dtype)
    output = Sinusoidal(WIDTH, base=300.0)(x, offset=3)
    assert output.dtype == dtype
    assert_close(output, x + sinusoidal_table(TK, WIDTH, base=300.0, offset=3).to(dtype))
    assert torch.equal(Sinusoidal(WIDTH)(x), x + sinusoidal_table(TK, WIDTH).to(dtype))


# --- learned -------------------------------------------------------------------------------------


def test_learned_adds_its_rows_and_learns_only_those(generator):
    module, x = Learned(7, WIDTH), random(generator, BATCH, 3, WIDTH, dtype=torch.float32)
    assert_close(module(x), x + module.table[:3])
    output = module(x, offset=4)  # up to the last position
    assert_close(output, x + module.table[4:7])
    output.sum().backward()
    assert module.table.grad[:, 0].tolist() == [0, 0, 0, 0, BATCH, BATCH, BATCH]


def test_learned_vectors_start_small_and_different():
    table = Learned(1009, 101).table
    assert table.std().item() == pytest.approx(0.02, rel=0.02)
    assert table.mean().item() == pytest.approx(0, abs=0.001)


# --- rotary --------------------------------------------------------------------------------------


def test_a_quarter_turn_on_paper():
    x = torch.tensor([[1.0, 5, 0, 7], [1, 5, 0, 7]], dtype=torch.float64)
    # Pairs (0, 2) and (1, 3); at position 1 the first turns by 1, the second by 1/10.
    query, key = Rotary(4, base=100.0).rotate(x, x)
    expected = [
        math.cos(1),
        5 * math.cos(0.1) - 7 * math.sin(0.1),
        math.sin(1),
        5 * math.sin(0.1) + 7 * math.cos(0.1),
    ]
    assert query[0].tolist() == [1, 5, 0, 7]
    assert query[1].tolist() == pytest.approx(expected)
    assert torch.equal(key, query)


def _plain_rotary(x, offset=0, base=10000.0):
    """As most models write it, in the working precision."""
    half = x.shape[-1] // 2
    frequencies = base ** (-torch.arange(half).double() / half)
    angles = torch.arange(offset, offset + x.shape[-2])[:, None] * frequencies
    cosine, sine = (f(angles).repeat(1, 2).to(x.dtype) for f in (torch.cos, torch.sin))
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cosine + turned * sine


@pytest.mark.oracle
@DTYPE
@pytest.mark.parametrize("offset", [0, 5])
@pytest.mark.parametrize("side", [0, 1], ids=["query", "key"])
def test_rotary_and_its_gradient_match_rotation_matrices(side, offset, dtype, generator):
    x = random(generator, BATCH, TK, WIDTH, dtype=dtype)
    other = random(generator, BATCH, TQ, WIDTH, dtype=dtype)
    rotary = Rotary(WIDTH, base=500.0)

    def ours(x):
        pair = (other, x) if side else (x, other)
        return rotary.rotate(*pair, offset)[side]

    assert_matches(
        ours,
        lambda x: _plain_rotary(x, offset, 500.0),
        lambda x: oracle_layers.rotary(x, offset, 500.0),
        [x],
    )


@given(query=normal(TQ, WIDTH), key=normal(TK, WIDTH), offset=offsets)
def test_rotated_scores_depend_on_the_distance_only(query, key, offset):
    rotary = Rotary(WIDTH)
    here, there = rotary.rotate(query, key), rotary.rotate(query, key, offset)
    assert_close(here[0] @ here[1].mT, there[0] @ there[1].mT)


@given(query=normal(1, WIDTH), key=normal(1, WIDTH), positions=st.tuples(offsets, offsets))
def test_the_score_of_two_positions_is_the_score_of_their_distance(query, key, positions):
    rotary, (i, j) = Rotary(WIDTH), positions
    score = rotary.rotate(query, key, i)[0] @ rotary.rotate(query, key, j)[1].mT
    low = min(i, j)
    moved = rotary.rotate(query, key, i - low)[0] @ rotary.rotate(query, key, j - low)[1].mT
    assert_close(score, moved)


@given(x=normal(TK, WIDTH), start=st.integers(0, TK))
def test_an_offset_is_a_slice_of_the_rotated_sequence(x, start):
    rotary = Rotary(WIDTH)
    whole = rotary.rotate(x, x)[0]
    part = rotary.rotate(x[start:], x[start:], start)
    assert_close(part[0], whole[start:])
    assert_close(part[1], whole[start:])


@given(normal(TK, WIDTH))
def test_a_rotation_keeps_every_norm(x):
    turned, _ = Rotary(WIDTH).rotate(x, x, 17)
    assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert not torch.allclose(turned, x)


def test_rotation_far_from_the_start_is_as_exact_as_at_the_start(generator):
    x = random(generator, 1, WIDTH)
    exact = oracle_layers.rotary(x, 1_000_000)
    found, _ = Rotary(WIDTH).rotate(x.float(), x.float(), 1_000_000)
    assert error(found, exact) < 1e-6


# --- the two layouts -----------------------------------------------------------------------------


def test_layouts_on_paper():
    x = torch.tensor([0.0, 1, 2, 3, 4, 5])
    assert half_from_interleaved(x).tolist() == [0, 2, 4, 1, 3, 5]
    assert interleaved_from_half(x).tolist() == [0, 3, 1, 4, 2, 5]


@given(normal(TK, WIDTH))
def test_each_layout_undoes_the_other(x):
    assert torch.equal(interleaved_from_half(half_from_interleaved(x)), x)
    assert torch.equal(half_from_interleaved(interleaved_from_half(x)), x)


@pytest.mark.oracle
def test_the_interleaved_rotation_is_a_product_of_complex_numbers(generator):
    x = random(generator, BATCH, TK, WIDTH)
    frequencies = 10000.0 ** (-torch.arange(0, WIDTH, 2).double() / WIDTH)
    angles = torch.outer(torch.arange(3, 3 + TK).double(), frequencies)
    product = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.exp(1j * angles)
    half = half_from_interleaved(x)
    turned = interleaved_from_half(Rotary(WIDTH).rotate(half, half, 3)[0])
    assert_close(turned, torch.view_as_real(product).flatten(-2))


def test_converted_projections_score_as_the_interleaved_model_does(generator):
    x, weights = random(generator, TK, 5), [random(generator, WIDTH, 5) for _ in range(2)]
    angles = torch.outer(
        torch.arange(TK).double(), 10000.0 ** (-torch.arange(0, WIDTH, 2).double() / WIDTH)
    )

    def interleaved(weight):
        pairs = torch.view_as_complex((x @ weight.mT).unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * torch.exp(1j * angles)).flatten(-2)

    expected = interleaved(weights[0]) @ interleaved(weights[1]).mT
    rows = [half_from_interleaved(weight.mT).mT for weight in weights]
    query, key = Rotary(WIDTH).rotate(*(x @ weight.mT for weight in rows))
    assert_close(query @ key.mT, expected)


# --- biases --------------------------------------------------------------------------------------


def test_alibi_slopes_on_paper():
    assert alibi_slopes(1).tolist() == [2**-8]
    assert alibi_slopes(2).tolist() == [2**-4, 2**-8]
    assert alibi_slopes(8).tolist() == [2**-h for h in range(1, 9)]
    twelve = [2**-h for h in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    assert alibi_slopes(12).tolist() == pytest.approx(twelve)


def _published_slopes(heads: int) -> list[float]:
    """The rule as the authors publish it, by recursion."""
    if math.log2(heads).is_integer():
        start = 2 ** -(2 ** -(math.log2(heads) - 3))
        return [start * start**h for h in range(heads)]
    nearest = 2 ** math.floor(math.log2(heads))
    return _published_slopes(nearest) + _published_slopes(2 * nearest)[::2][: heads - nearest]


@pytest.mark.oracle
@pytest.mark.parametrize("heads", range(1, 41))
def test_alibi_slopes_follow_the_published_rule(heads):
    assert alibi_slopes(heads).tolist() == pytest.approx(_published_slopes(heads))


def test_alibi_on_paper():
    bias = Alibi(2).bias(2, 3)
    assert bias[0].tolist() == [[0, -1 / 16, -2 / 16], [-1 / 16, 0, -1 / 16]]
    assert bias[1].tolist() == [[0, -1 / 256, -2 / 256], [-1 / 256, 0, -1 / 256]]


def test_alibi_has_nothing_to_learn_and_nothing_to_store():
    module = Alibi(HEADS)
    assert not list(module.parameters())
    assert not module.state_dict()
    assert module.double().slopes.dtype == torch.float64


@pytest.mark.oracle
@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 7))
def test_biases_match_their_loops(queries, keys, offset):
    slopes = [2**-4, 2**-8, 2**-2]  # of three heads: those of two, then the first of four
    exact = oracle_layers.alibi(slopes, queries, keys, offset)
    assert_close(Alibi(HEADS).bias(queries, keys, offset).double(), exact)
    if queries and keys:
        module = RelativeBias(HEADS, 2)
        table = torch.arange(15.0).reshape(HEADS, 5)
        module.load_state_dict({"table": table})
        expected = oracle_layers.relative(table, queries, keys, offset)
        assert torch.equal(module.bias(queries, keys, offset), expected)


@pytest.mark.parametrize("position", [Alibi(HEADS), RelativeBias(HEADS, 2)], ids=["alibi", "clip"])
@given(offset=st.integers(0, 5), queries=st.integers(0, 5))
def test_the_bias_of_later_queries_is_a_slice(position, offset, queries):
    nn.init.normal_(next(position.parameters(), torch.empty(0)))
    whole = position.bias(10, 7)
    expected = whole[:, offset : offset + queries]
    assert torch.equal(position.bias(queries, 7, offset), expected)


def test_relative_bias_on_paper():
    module = RelativeBias(1, 1)
    assert module.table.tolist() == [[0, 0, 0]]  # at first it does nothing
    module.load_state_dict({"table": torch.tensor([[5.0, 6, 7]])})
    assert module.bias(3, 3).tolist() == [[[6, 7, 7], [5, 6, 7], [5, 5, 6]]]


def test_the_gradient_of_a_relative_bias_counts_the_pairs():
    module = RelativeBias(2, 1)
    module.bias(3, 4).sum().backward()
    # Before the query: 0 + 1 + 2 pairs; at it: 3; after it: 3 + 2 + 1.
    assert module.table.grad.tolist() == [[3, 3, 6]] * 2


def test_the_plain_position_does_nothing(generator):
    query, key = random(generator, TQ, WIDTH), random(generator, TK, WIDTH)
    assert Position().rotate(query, key, 3) == (query, key)
    assert Position().bias(TQ, TK, 3) is None
    rotated = Alibi(HEADS).rotate(query, key, 3)
    assert rotated == (query, key)
    assert Rotary(WIDTH).bias(TQ, TK, 3) is None


def test_no_position_changes_its_arguments(generator):
    x = random(generator, TK, WIDTH)
    copy = x.clone()
    Rotary(WIDTH).rotate(x, x)
    Sinusoidal(WIDTH)(x)
    Learned(TK, WIDTH).double()(x)
    assert torch.equal(x, copy)
