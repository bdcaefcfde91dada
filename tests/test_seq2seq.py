"""Sequence to sequence: parts against PyTorch and loops, padding, and the shipped weights."""

import hashlib
import json
from collections import Counter
from dataclasses import replace

import oracle
import pytest
import torch
from torch.testing import assert_close

from attention_lib.data import english_french
from attention_lib.decoding import greedy
from attention_lib.models.seq2seq import (
    Additive,
    Attention,
    Encoder,
    LastStates,
    Multiplicative,
    Seq2SeqConfig,
)
from attention_lib.models.translation import CONTEXTS, WEIGHTS, Translator, build, load
from attention_lib.text import END, START, Subwords, pad

# Vocabularies 23 and 29, embedding 7, width 2 x 5.
CONFIG = Seq2SeqConfig(source_tokens=23, target_tokens=29, embedding=7, width=10)
SOURCE = [[4, 9, 22, 5, 2], [7, 2], [8, 8, 21, 2]]
TARGET = [[1, 6, 28, 4], [1, 27, 5, 9], [1, 8, 9, 10]]
NAMES = list(CONTEXTS)
WITH_ATTENTION = ["additive", "multiplicative"]


def model(context, **changes):
    return build(context, replace(CONFIG, **changes), seed=3).double().eval()


def memory(model):
    return model.encode(*pad(SOURCE))


def queries(generator):
    return oracle.random(generator, len(SOURCE), 4, CONFIG.width)


# --- the encoder ---------------------------------------------------------------------------------


@pytest.mark.oracle
def test_encoder_equals_a_gru_on_each_sentence_alone():
    encoder = Encoder(CONFIG).double().eval()
    states = encoder(*pad(SOURCE))
    for row, sentence in enumerate(SOURCE):
        expected, ends = encoder.gru(encoder.embedding(torch.tensor([sentence])))
        assert_close(states["states"][row, : len(sentence)], expected[0])
        assert_close(states["last"][row], torch.cat([ends[0, 0], ends[1, 0]]))
        assert not states["states"][row, len(sentence) :].any()
        assert states["mask"][row, 0].tolist() == [j < len(sentence) for j in range(5)]


def test_last_holds_the_end_of_one_direction_and_the_start_of_the_other():
    encoder = Encoder(CONFIG).double().eval()
    states = encoder(*pad([[4, 9, 22, 5, 2]]))
    assert_close(states["last"][0, :5], states["states"][0, -1, :5])  # forward: after the last
    assert_close(states["last"][0, 5:], states["states"][0, 0, 5:])  # backward: at the first


# --- the contexts --------------------------------------------------------------------------------


def test_last_states_answer_every_query_alike(generator):
    states = memory(model("none"))
    context = LastStates()(queries(generator), states)
    assert context.shape == (3, 4, 10)
    for step in range(4):
        assert_close(context[:, step], states["last"])


@pytest.mark.oracle
@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_context_is_the_weighted_mean_of_a_loop(name, generator):
    translator = model(name)
    states, context = memory(translator), translator.context
    query = queries(generator)
    if name == "additive":
        parameters = context.query_weight, context.key_weight, context.vector
        score = oracle.pairwise(lambda q, k: oracle._additive(q, k, *parameters))
    else:
        score = oracle.pairwise(lambda q, k: oracle._bilinear(q, k, context.weight))
    keys, mask = states["states"], states["mask"].expand(3, 4, 5)
    expected = oracle.attend(query, keys, keys, mask=mask, score=score)
    assert_close(context(query, states), expected)
    assert_close(context.weights(query, states), oracle.softmax(score(query, keys), mask))


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_weights_sum_to_one_and_are_zero_on_padding(name, generator):
    translator = model(name)
    weights = translator.context.weights(queries(generator), memory(translator))
    assert_close(weights.sum(dim=-1), torch.ones(3, 4, dtype=torch.float64))
    for row, sentence in enumerate(SOURCE):
        assert not weights[row, :, len(sentence) :].any()


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_weights_depend_on_the_encoder_states_and_on_the_query(name, generator):
    """Weights that ignored one of the two were published once and stayed for years."""
    context, query = model(name).context, queries(generator)
    states = memory(model(name))
    before = context.weights(query, states)
    moved = {**states, "states": states["states"].flip(-1)}
    assert (context.weights(query, moved) - before).abs().max() > 1e-3
    assert (context.weights(-query, states) - before).abs().max() > 1e-3


def test_a_score_must_be_defined():
    with pytest.raises(NotImplementedError):
        Attention().score(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2))


# --- the whole model -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_padded_batch_equals_single_sentences(name):
    translator, target = model(name), torch.tensor(TARGET)
    logits = translator(*pad(SOURCE), target)
    assert logits.shape == (3, 4, 29)
    for row, sentence in enumerate(SOURCE):
        assert_close(logits[row], translator(*pad([sentence]), target[[row]])[0])


@pytest.mark.parametrize("name", NAMES)
def test_padding_may_hold_any_token(name):
    translator, target = model(name), torch.tensor(TARGET)
    source, lengths = pad(SOURCE)
    filled = torch.where(torch.arange(5) < lengths[:, None], source, 17)
    assert torch.equal(translator(source, lengths, target), translator(filled, lengths, target))


@pytest.mark.parametrize("name", NAMES)
def test_step_by_step_equals_all_at_once(name):
    translator, target = model(name), torch.tensor(TARGET)
    logits, state = translator(*pad(SOURCE), target), translator.encode(*pad(SOURCE))
    for step in range(target.shape[1]):
        one, state = translator.step(target[:, step], state)
        assert_close(one, logits[:, step])
        assert state["decoder"].shape == (3, 10)  # the state does not grow


@pytest.mark.parametrize("name", NAMES)
def test_the_formula_of_the_decoder_written_out(name):
    translator = model(name)
    state = memory(translator)
    tokens = torch.tensor([6, 28, 4])
    logits, _ = translator.step(tokens, state)
    cell = torch.nn.GRUCell(7, 10).double()
    cell.load_state_dict(
        {key.removesuffix("_l0"): value for key, value in translator.gru.state_dict().items()}
    )
    first = torch.tanh(translator.start(state["last"]))
    hidden = cell(translator.embedding(tokens), first)
    context = translator.context(hidden[:, None], state)[:, 0]
    combined = torch.tanh(translator.combine(torch.cat([context, hidden], dim=-1)))
    assert_close(logits, combined @ translator.embedding.weight.T + translator.bias)


@pytest.mark.parametrize("name", NAMES)
def test_no_step_sees_the_tokens_that_follow(name):
    translator, target = model(name), torch.tensor(TARGET)
    logits = translator(*pad(SOURCE), target)
    changed = target.clone()
    changed[:, 2:] = 11
    again = translator(*pad(SOURCE), changed)
    assert torch.equal(again[:, :2], logits[:, :2])
    assert not torch.equal(again[:, 2:], logits[:, 2:])


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_gradient(name):
    translator, target = model(name), torch.tensor(TARGET)
    translator(*pad(SOURCE), target).square().sum().backward()
    sizes = {key: p.grad.abs().max().item() for key, p in translator.named_parameters()}
    assert min(sizes.values()) > 1e-9, sizes


def test_the_three_models_have_parameters_within_ten_percent():
    config = Seq2SeqConfig(2000, 2000, 128, 192)
    counts = [sum(p.numel() for p in build(name, config, seed=0).parameters()) for name in CONTEXTS]
    assert max(counts) < 1.1 * min(counts)
    assert len(set(counts)) == 3


@pytest.mark.parametrize("name", NAMES)
def test_dropout_acts_in_training_only(name):
    translator, target = model(name, dropout=0.5), torch.tensor(TARGET)
    first = translator(*pad(SOURCE), target)
    assert torch.equal(first, translator(*pad(SOURCE), target))
    translator.train()
    assert not torch.equal(translator(*pad(SOURCE), target), translator(*pad(SOURCE), target))


@pytest.mark.parametrize("name", NAMES)
def test_dropout_acts_on_embeddings_states_and_the_combination(name):
    translator, seen = model(name, dropout=0.5), []
    for part in (translator.encoder.dropout, translator.dropout):
        part.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    translator(*pad(SOURCE), torch.tensor(TARGET))
    encoder = [(3, 5, 7), (3, 5, 10), (3, 10)]  # embeddings, states, last states
    assert seen == [*encoder, (3, 4, 7), (3, 4, 10), (3, 4, 7)]


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_attention_weights_are_those_of_each_step(name):
    translator, target = model(name), torch.tensor(TARGET)
    weights, state = translator.attention_weights(*pad(SOURCE), target), memory(translator)
    assert weights.shape == (3, 4, 5)
    for step in range(4):
        _, state = translator.step(target[:, step], state)
        assert_close(
            weights[:, step], translator.context.weights(state["decoder"][:, None], state)[:, 0]
        )


def test_a_model_without_attention_has_no_weights_to_show():
    message = "context must be Attention to have weights, got LastStates"
    with pytest.raises(TypeError, match=message):
        model("none").attention_weights(*pad(SOURCE), torch.tensor(TARGET))


def test_building_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    first, second = build("additive", CONFIG, 1), build("additive", CONFIG, 1)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.gru.weight_hh_l0, second.gru.weight_hh_l0)
    assert not torch.equal(first.start.weight, build("additive", CONFIG, 2).start.weight)


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 9}, "width must be even, half for each direction, got 9"),
        ({"embedding": 0}, "embedding must be at least 1, got 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
    ],
)
def test_bad_sizes_are_refused(changes, message, no_shape_hook):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


@pytest.mark.hostile
def test_an_unknown_name_is_refused():
    names = "'none', 'additive', 'multiplicative', 'transformer'"
    message = rf"name must be one of \[{names}\], got 'dot'"
    with pytest.raises(ValueError, match=message):
        build("dot", CONFIG, seed=0)
    with pytest.raises(ValueError, match=message):
        load("dot")


# --- translators ---------------------------------------------------------------------------------


@pytest.fixture
def small():
    texts = ["the boats reach the bank", "a boat", "les bateaux"]
    pieces = Subwords.train(texts * 2, 50)
    config = Seq2SeqConfig(len(pieces), len(pieces), 7, 10, dropout=0.5)
    network = build("additive", config, 0)
    return Translator("additive", config, network, pieces, pieces)


def test_translating_a_batch_equals_one_sentence_at_a_time_and_greedy(small):
    sentences = ["the boats reach", "a boat", "bank"]
    found = small.translate(sentences, max_length=5)
    assert found == [small.translate([text], max_length=5)[0] for text in sentences]
    small.model.eval()
    state = small.model.encode(*pad([[*small.source.encode("a boat"), END]]))
    rows = greedy(small.model.step, state, torch.tensor([START]), END, 5)
    assert found[1] == small.target.decode(rows[0].tolist())


def test_length_penalty_reaches_the_beam(small):
    """With an end as likely as any piece, only a reward for length makes translations long."""
    small.model.bias.data[END] += 2
    sentences = ["the boats reach", "a boat", "bank"]
    short, long = (
        small.translate(sentences, width=4, length_penalty=penalty, max_length=7)
        for penalty in (0.0, 10.0)
    )
    assert short != long
    assert sum(map(len, short)) < sum(map(len, long))


def test_an_example_is_what_the_model_takes(small):
    inputs, rows, columns = small.example("a boat", "les bateaux")
    source, lengths, target = inputs
    assert source.tolist() == [[*small.source.encode("a boat"), END]]
    assert lengths.tolist() == [len(columns)]
    assert target.tolist() == [[START, *small.target.encode("les bateaux")]]
    assert small.model(*inputs).shape[:2] == (1, len(rows))


def test_translating_keeps_the_mode_of_the_model(small):
    for mode in (True, False):
        small.model.train(mode)
        small.translate(["a boat"])
        assert small.model.training is mode


def test_alignment_has_a_row_for_each_target_piece_and_the_end(small):
    weights, rows, columns = small.alignment("a boat", "les bateaux")
    assert weights.shape == (len(rows), len(columns))
    assert rows == [*small.target.pieces("les bateaux"), "<end>"]
    assert columns == [*small.source.pieces("a boat"), "<end>"]
    assert_close(weights.sum(dim=-1), torch.ones(len(rows)))
    small.model.eval()
    state = small.model.encode(*pad([[*small.source.encode("a boat"), END]]))
    for row, token in enumerate([START, *small.target.encode("les bateaux")]):
        _, state = small.model.step(torch.tensor([token]), state)
        query = state["decoder"][:, None]
        assert_close(weights[row], small.model.context.weights(query, state)[0, 0])


def test_saving_and_loading_gives_the_same_translator_in_half_precision(small, tmp_path):
    for parameter in small.model.parameters():
        parameter.data = parameter.data.half().float()
    small.save(tmp_path)
    loaded = load("additive", tmp_path)
    assert (loaded.name, loaded.config) == (small.name, small.config)
    for key, value in small.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], value)
    assert loaded.translate(["the bank"], width=2) == small.translate(["the bank"], width=2)
    assert not loaded.model.training


# --- the shipped weights -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_are_those_of_the_log(name):
    log = json.loads((WEIGHTS / f"seq2seq_{name}.json").read_text(encoding="utf-8"))
    content = (WEIGHTS / f"seq2seq_{name}.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == log["sha256"]
    network = load(name).model
    assert sum(p.numel() for p in network.parameters()) == log["parameters"]


def test_shipped_vocabularies_come_from_the_training_split_alone(tmp_path):
    data, translator = english_french(), load("none")
    for side, shipped in enumerate((translator.source, translator.target)):
        Subwords.train([pair[side] for pair in data.train], len(shipped)).save(tmp_path / "a")
        shipped.save(tmp_path / "b")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        every = [pair[side] for pair in data.train + data.validation + data.test]
        Subwords.train(every, len(shipped)).save(tmp_path / "c")  # so the check can fail
        assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_shipped_models_translate_a_sentence_of_the_training_kind(name):
    pairs = [pair for pair in english_french().test if len(pair[0].split()) <= 6][:40]
    found = load(name).translate([english for english, _ in pairs])
    shared = [
        sum((Counter(text.split()) & Counter(french.split())).values()) / len(french.split())
        for text, (_, french) in zip(found, pairs, strict=True)
    ]
    assert sum(shared) / len(shared) > 0.25  # random weights share nothing


def test_contexts_have_the_modules_their_names_say():
    kinds = [type(build(name, CONFIG, 0).context) for name in NAMES]
    assert kinds == [LastStates, Additive, Multiplicative]
