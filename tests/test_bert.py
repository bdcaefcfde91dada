"""The encoder-only model: what it sees, what it is asked, and the small one that fills gaps.

Its output and gradients are compared with Hugging Face's in test_parity.py.
"""

import hashlib
import json
import math
from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
import train_bert
import train_sentiment
from torch.nn.functional import cross_entropy, gelu, layer_norm

from attention_lib.data import first_of_each, movie_reviews, plays
from attention_lib.models import gap_filler
from attention_lib.models.bert import (
    Bert,
    BertConfig,
    MaskedLM,
    TextClassifier,
    hide_tokens,
    mean_state,
)
from attention_lib.models.gap_filler import GapFiller, play_speeches, simplify
from attention_lib.text import END, Subwords

TOKENS, LENGTH, LAYERS, HIDDEN = 29, 11, 2, 13
CONFIG = BertConfig(TOKENS, LENGTH, 15, LAYERS, 3, HIDDEN)


def _tokens(generator, batch=2, length=7):
    return torch.randint(TOKENS, (batch, length), generator=generator)


def _loud(model):
    """Weights large enough that every path through the model can be seen."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 or name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    return model.double().eval()


# --- the encoder ---


def test_every_position_sees_every_other():
    bert, tokens = _loud(Bert(CONFIG)), torch.arange(5)[None]
    states = bert(tokens)
    for position in range(5):
        other = tokens.clone()
        other[0, position] = 20
        moved = (bert(other) - states).abs().amax(dim=-1)  # (1, T)
        assert (moved > 1e-3).all(), f"not all positions see position {position}"


def test_padding_changes_no_state_of_the_real_tokens(generator):
    bert = _loud(Bert(CONFIG))
    tokens, lengths = _tokens(generator), torch.tensor([4, 7])
    states = bert(tokens, lengths)
    other = tokens.clone()
    other[0, 4:] = (other[0, 4:] + 1) % TOKENS
    assert torch.equal(bert(other, lengths)[0, :4], states[0, :4])
    alone = bert(tokens[:1, :4])
    torch.testing.assert_close(states[0, :4], alone[0], rtol=0, atol=1e-12)


def test_without_lengths_every_token_is_real(generator):
    bert = _loud(Bert(CONFIG))
    tokens = _tokens(generator)
    torch.testing.assert_close(bert(tokens), bert(tokens, torch.tensor([7, 7])))


def test_segments_are_added_and_the_first_is_taken_by_default(generator):
    bert = _loud(Bert(CONFIG))
    tokens = _tokens(generator)
    first, second = torch.zeros_like(tokens), torch.ones_like(tokens)
    assert torch.equal(bert(tokens), bert(tokens, segments=first))
    assert not torch.allclose(bert(tokens), bert(tokens, segments=second), atol=1e-3)
    bert.segments.weight.data.zero_()
    assert torch.equal(bert(tokens), bert(tokens, segments=second))


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokens": 0}, ValueError, "tokens must be at least 1, got 0"),
        ({"length": 2.0}, TypeError, "length must be an integer, got float"),
        ({"layers": 0}, ValueError, "layers must be at least 1, got 0"),
        ({"heads": 4}, ValueError, "heads must divide width = 15, got 4"),
        ({"hidden": 0}, ValueError, "hidden must be at least 1, got 0"),
        ({"segments": 0}, ValueError, "segments must be at least 1, got 0"),
        ({"dropout": 1.0}, ValueError, "dropout must be at least 0 and below 1, got 1.0"),
        ({"eps": 0.0}, ValueError, "eps must be a finite number above 0"),
    ],
)
def test_an_impossible_config_says_why(change, error, message):
    with pytest.raises(error, match=message):
        replace(CONFIG, **change)


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
def test_a_text_longer_than_the_table_of_positions_is_refused():
    with pytest.raises(ValueError, match="length 12 = 12"):
        Bert(CONFIG)(torch.zeros(1, LENGTH + 1, dtype=torch.int64))


def test_hidden_width_is_four_times_the_width_by_default():
    assert replace(CONFIG, hidden=None).hidden_width == 60
    assert CONFIG.hidden_width == HIDDEN


# --- the heads ---


def test_the_language_head_is_its_formula_and_shares_the_table(generator):
    model = _loud(MaskedLM(Bert(CONFIG)))
    tokens = _tokens(generator)
    states = model.bert(tokens)
    x = gelu(states @ model.transform.weight.T + model.transform.bias)
    x = layer_norm(x, (15,), model.norm.weight, model.norm.bias, CONFIG.eps)
    expected = x @ model.bert.embedding.weight.T + model.bias
    torch.testing.assert_close(model(tokens), expected)
    chosen = torch.rand(tokens.shape, generator=generator) < 0.5
    torch.testing.assert_close(model.head(states[chosen]), expected[chosen])


def test_the_mean_is_over_real_tokens_only(generator):
    states = torch.randn(2, 5, 3, generator=generator)
    lengths = torch.tensor([2, 5])
    expected = torch.stack([states[0, :2].mean(dim=0), states[1].mean(dim=0)])
    torch.testing.assert_close(mean_state(states, lengths), expected)
    states[0, 2:] = float("nan")  # what stands in padding does not matter, whatever it is
    torch.testing.assert_close(mean_state(states, lengths), expected)


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize("lengths", [[0, 5], [2, 6]])
def test_a_mean_of_no_token_or_too_many_is_refused(lengths):
    with pytest.raises(ValueError, match=r"lengths must lie in 1 .. T = 5, got"):
        mean_state(torch.zeros(2, 5, 3), torch.tensor(lengths))


def test_a_new_classifier_prefers_no_class_and_reads_the_mean(generator):
    classifier = TextClassifier(_loud(Bert(CONFIG)), classes=3).double().eval()
    tokens, lengths = _tokens(generator), torch.tensor([4, 7])
    assert torch.equal(classifier(tokens, lengths), torch.zeros(2, 3, dtype=torch.float64))
    classifier.output.weight.data.normal_(generator=generator)
    expected = classifier.output(mean_state(classifier.bert(tokens, lengths), lengths))
    torch.testing.assert_close(classifier(tokens, lengths), expected)


@pytest.mark.hostile
def test_a_classifier_needs_two_classes(no_shape_hook):
    with pytest.raises(ValueError, match="classes must be at least 2, got 1"):
        TextClassifier(Bert(CONFIG), classes=1)


# --- hiding ---


def test_hidden_shares_are_fifteen_and_eighty_ten_ten(generator):
    tokens = torch.randint(3, 1000, (400, 500), generator=generator)
    shown, chosen = hide_tokens(
        tokens, tokens >= 3, mask_token=2, vocabulary=1000, generator=generator
    )
    count = int(chosen.sum())
    masked, same = (int(part[chosen].sum()) for part in (shown == 2, shown == tokens))

    def near(number, share, of):  # within five standard deviations
        return abs(number - share * of) < 5 * math.sqrt(share * (1 - share) * of)

    assert near(count, 0.15, tokens.numel())
    assert near(masked, 0.8 + 0.1 / 1000, count)
    assert near(same, 0.1 + 0.1 / 1000, count)
    random = shown[chosen & (shown != 2) & (shown != tokens)]
    assert random.min() < 10
    assert random.max() > 990
    assert torch.equal(shown[~chosen], tokens[~chosen])


def test_only_candidates_are_chosen_and_nothing_is_written_into_the_text(generator):
    tokens = torch.arange(200)
    before, candidates = tokens.clone(), tokens % 2 == 0
    shown, chosen = hide_tokens(
        tokens, candidates, mask_token=3, vocabulary=200, generator=generator, share=0.9
    )
    assert torch.equal(tokens, before)
    assert not chosen[~candidates].any()
    assert torch.equal(shown[~candidates], tokens[~candidates])
    assert chosen[candidates].sum() > 80
    nothing = hide_tokens(
        tokens, candidates, mask_token=3, vocabulary=200, generator=generator, share=0.0
    )
    assert not nothing[1].any()


def test_hiding_repeats_with_its_generator():
    tokens = torch.arange(100)
    runs = [
        hide_tokens(
            tokens, tokens >= 0, mask_token=0, vocabulary=100,
            generator=torch.Generator().manual_seed(5),
        )
        for _ in range(2)
    ]  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mask_token": 9}, ValueError, "mask_token must be below vocabulary = 9, got 9"),
        ({"mask_token": -1}, ValueError, "mask_token must be at least 0, got -1"),
        ({"vocabulary": 0}, ValueError, "vocabulary must be at least 1, got 0"),
        ({"share": 1.0}, ValueError, "share must be at least 0 and below 1, got 1.0"),
        ({"candidates": torch.ones(3).bool()}, ValueError, r"shape of tokens \(4,\), got \(3,\)"),
    ],
)
def test_impossible_hiding_says_why(change, error, message, generator):
    options = {"candidates": torch.ones(4).bool(), "mask_token": 2, "vocabulary": 9}
    with pytest.raises(error, match=message):
        hide_tokens(torch.arange(4), generator=generator, **(options | change))


# --- the plays and the model trained on them ---


def test_no_play_is_in_two_splits_and_none_is_lost():
    splits = {split: play_speeches(split) for split in ("training", "validation", "test")}
    assert sum(map(len, splits.values())) == sum(text.count("\n\n") for text in plays().values())
    assert any("I have almost forgot the taste of fears" in s for s in splits["test"])
    assert any("We are such stuff" in s for s in splits["validation"])
    assert any("To be, or not to be" in s for s in splits["training"])
    assert not any("To be, or not to be" in s for s in splits["test"] + splits["validation"])
    with pytest.raises(ValueError, match="split must be one of"):
        play_speeches("train")


@pytest.fixture
def filler():
    words = Subwords.train(["the cat sat, and the dog sat."] * 3, 60)
    config = BertConfig(len(words) + 1, 16, 12, 1, 2)
    return GapFiller(gap_filler.build(config, seed=0), words)


def test_a_gap_is_filled_where_it_stands(filler):
    cat = filler.words.encode("cat")[0]
    with torch.no_grad():
        filler.model.bias[cat] = 50.0
    found = filler.fill("The ___, and the dog.", count=3)
    assert len(found) == 3
    assert found[0][0] == filler.words.decode([cat])
    assert found[0][1] > 0.99
    seen = []
    filler.model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    filler.fill("The ___, and the dog.")
    expected = filler.words.encode("the cat, and the dog.")
    place = len(filler.words.encode("the"))
    assert seen[0][0, place] == filler.mask_token
    assert seen[0][0, :place].tolist() == expected[:place]
    after = seen[0][0, place + 1 :].tolist()
    assert after == [*filler.words.encode("the, and the dog.")[1:], END]


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize("text", ["no gap", "two ___ gaps ___"])
def test_a_text_needs_one_gap(filler, text):
    with pytest.raises(ValueError, match="text must have one gap '___', got"):
        filler.fill(text)


def test_a_saved_model_loads_with_the_same_numbers_but_for_half_precision(filler, tmp_path):
    filler.save(tmp_path)
    loaded = gap_filler.load(tmp_path)
    assert len(loaded.words) == len(filler.words)
    for name, x in filler.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], x.half().float()), name
    assert not loaded.model.training


def test_building_leaves_the_global_randomness_alone_and_follows_its_seed():
    state = torch.get_rng_state()
    first, again, other = (gap_filler.build(CONFIG, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.bert.embedding.weight, again.bert.embedding.weight)
    assert not torch.equal(first.bert.embedding.weight, other.bert.embedding.weight)


@pytest.fixture(scope="module")
def log():
    return json.loads((gap_filler.WEIGHTS / "bert_plays.json").read_text(encoding="utf-8"))


def test_shipped_weights_are_those_of_their_log(log):
    path = gap_filler.WEIGHTS / "bert_plays.safetensors"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == log["sha256"]
    assert path.stat().st_size < 2_500_000
    shipped = gap_filler.load()
    assert sum(p.numel() for p in shipped.model.parameters()) == log["parameters"]


def test_the_shipped_model_has_the_loss_of_its_log_on_unseen_plays(log):
    shipped = gap_filler.load()
    stream = shipped.stream(play_speeches("test"))
    windows = train_bert.windows(stream)
    batch = train_bert.hide(windows, shipped, torch.Generator().manual_seed(0))
    found = train_bert.measure(shipped, batch)
    assert found["loss"] == pytest.approx(log["test, weights in half precision"]["loss"], abs=0.002)
    assert found["loss"] < log["test, frequency alone"]["loss"] - 1


def test_the_loss_of_the_tool_counts_chosen_tokens_only(filler, generator):
    tokens = torch.randint(4, 20, (3, 16), generator=generator)
    true, shown, chosen = train_bert.hide(tokens, filler, generator)
    expected = cross_entropy(filler.model(shown)[chosen], true[chosen])
    torch.testing.assert_close(train_bert.loss(filler.model, (true, shown, chosen)), expected)


def test_text_is_read_in_small_letters_and_single_spaces():
    assert simplify("To be,\nor  NOT") == "to be, or not"


# --- the reviews ---


@pytest.mark.parametrize(("kind", "count"), [("short", 8530), ("long", 25000)])
def test_reviews_are_balanced_and_sorted_by_verdict(kind, count):
    labels = [label for _, label in movie_reviews(kind)]
    assert (len(labels), sum(labels)) == (count, count // 2)
    assert sum(a != b for a, b in pairwise(labels)) == 1


def test_reviews_of_another_kind_do_not_exist(no_shape_hook):
    with pytest.raises(ValueError, match=r"kind must be one of \['long', 'short'\], got 'tiny'"):
        movie_reviews("tiny")


def test_equal_texts_are_kept_once_whatever_their_marks_and_spaces():
    texts = ["A fine film.", "a fine  film", "A fine, fine film.", "", "!", "A FINE FILM!"]
    assert first_of_each(texts) == [0, 2, 3]


def test_no_review_is_learned_and_tested_and_all_seeds_are_tested_alike():
    (training, test), (other, same) = (train_sentiment.reviews(seed) for seed in (0, 1))
    assert len(test) == train_sentiment.TEST
    assert test == same
    assert training != other
    assert sorted(training) == sorted(other)
    texts = [text for text, _ in training + test]
    assert len(first_of_each(texts)) == len(texts) == 8528
    assert 0.45 < sum(label for _, label in test) / len(test) < 0.55


def test_the_log_holds_every_size_and_seed_once():
    log = json.loads((gap_filler.WEIGHTS / "minilm_sentiment.json").read_text(encoding="utf-8"))
    found = [(row["size"], row["seed"]) for row in log["rows"]]
    assert sorted(found) == sorted(product(train_sentiment.SIZES, train_sentiment.SEEDS))
    assert log["rate"] == train_sentiment.RATE
    assert log["test reviews"] == train_sentiment.TEST
    for way in ("word counts", "naive Bayes"):
        assert log[f"{way} in all"]["size"] == 8528 - train_sentiment.TEST
        assert all(50 < row[way]["percent"] < row["fine-tuned"]["percent"] for row in log["rows"])
    assert tuple(log["penalties"]) == train_sentiment.PENALTIES
