"""Subwords: text comes back, training text alone decides the pieces; batches are padded."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attention_lib.data import english_french
from attention_lib.text import END, PAD, START, UNKNOWN, Subwords, pad

TEXTS = [
    "the boats reach the bank.",
    "the boat reaches the (other) bank",
    "l'eau du fleuve: l'eau, \"l'eau\"",
] * 3


@pytest.fixture(scope="module")
def subwords():
    return Subwords.train(TEXTS, 60)


@pytest.fixture(scope="module")
def french():
    return Subwords.train([french for _, french in english_french().train], 2000)


@pytest.mark.parametrize("text", TEXTS[:3])
def test_decoding_gives_the_text_back(subwords, text):
    assert subwords.decode(subwords.encode(text)) == text


@given(st.text(st.sampled_from("the boachnkl'(),.:\""), max_size=30).map(lambda t: t.split()))
def test_decoding_gives_back_any_text_of_known_characters(words):
    subwords = Subwords.train(TEXTS, 60)
    text = " ".join(words)
    assert subwords.decode(subwords.encode(text)) == text


def test_frequent_words_are_one_piece_and_rare_ones_several(subwords):
    assert subwords.pieces("the bank") == ["▁the", "▁bank"]
    assert len(subwords.pieces("coach")) > 1
    assert "".join(subwords.pieces("coach")) == "▁coach"


def test_marks_do_not_stick_to_words():
    assert Subwords.train(["bank."] * 9, 20).pieces("bank.") == ["▁bank", "."]


def test_the_first_four_numbers_are_special(subwords):
    assert (PAD, START, END, UNKNOWN) == (0, 1, 2, 3)
    assert min(number for text in TEXTS for number in subwords.encode(text)) > UNKNOWN
    assert UNKNOWN in subwords.encode("the bank ☃")
    assert len(subwords) <= 60


def test_decoding_stops_at_the_end_and_skips_special_numbers(subwords):
    bank = subwords.encode("the bank")
    assert subwords.decode([START, *bank, END, *bank, PAD]) == "the bank"
    assert subwords.decode([PAD, END]) == ""


def test_saving_and_loading_gives_the_same_numbers(subwords, tmp_path):
    path = tmp_path / "pieces.json"
    subwords.save(path)
    loaded = Subwords.load(path)
    assert [loaded.encode(text) for text in TEXTS] == [subwords.encode(text) for text in TEXTS]
    assert len(loaded) == len(subwords)


def test_training_twice_gives_the_same_pieces(french, tmp_path):
    again = Subwords.train([french for _, french in english_french().train], 2000)
    french.save(tmp_path / "first.json")
    again.save(tmp_path / "second.json")
    assert (tmp_path / "first.json").read_bytes() == (tmp_path / "second.json").read_bytes()


def test_a_vocabulary_too_small_for_the_characters_is_refused():
    message = r"size must hold 4 special pieces and 4 characters, got 7"
    with pytest.raises(ValueError, match=message):
        Subwords.train(["abc ab"], 7)
    assert len(Subwords.train(["abc ab"], 8)) == 8


def test_the_real_held_out_text_comes_back(french):
    for _, text in english_french().test:
        numbers = french.encode(text)
        if UNKNOWN not in numbers:
            assert french.decode(numbers) == text
    known = [UNKNOWN not in french.encode(text) for _, text in english_french().test]
    assert sum(known) >= 995


# --- batches -------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(1, 99), max_size=6), min_size=1, max_size=5))
def test_padding_keeps_every_row_and_fills_up_with_pad(rows):
    tokens, lengths = pad(rows)
    assert tokens.shape == (len(rows), max(map(len, rows)))
    assert tokens.dtype == lengths.dtype == torch.int64
    assert lengths.tolist() == [len(row) for row in rows]
    for row, padded in zip(rows, tokens.tolist(), strict=True):
        assert padded == row + [PAD] * (tokens.shape[1] - len(row))


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="rows must hold at least one row, got none"):
        pad([])
