"""The Transformer: padding, causality, caches, embeddings, the paper's count of parameters."""

import hashlib
import json
import math
from dataclasses import replace

import pytest
import torch
from oracle_layers import sinusoidal
from torch import nn
from torch.testing import assert_close

from attention_lib.blocks import PostNorm, PreNorm
from attention_lib.data import english_french
from attention_lib.decoding import beam, greedy
from attention_lib.interpret import capture_weights
from attention_lib.losses import cross_entropy
from attention_lib.models.transformer import Embedding, TransformerConfig, original, pre_norm
from attention_lib.models.translation import FAMILIES, WEIGHTS, build, load
from attention_lib.text import END, PAD, START, pad
from attention_lib.training import train

# Vocabularies 23 and 29, 3 heads of width 10, 2 layers, hidden 13: no two sizes are alike.
CONFIG = TransformerConfig(23, 29, width=30, layers=2, heads=3, hidden=13)
SOURCE = [[4, 9, 22, 5, 2], [7, 2], [8, 8, 21, 2]]
TARGET = torch.tensor([[1, 6, 28, 4], [1, 27, 5, 9], [1, 8, 9, 10]])
LAYOUTS = pytest.mark.parametrize("layout", [original, pre_norm])


def model(layout, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return layout(replace(CONFIG, **changes)).double().eval()


# --- what a prediction may depend on -------------------------------------------------------------


@LAYOUTS
def test_a_padded_batch_equals_single_sentences(layout):
    network = model(layout)
    logits = network(*pad(SOURCE), TARGET)
    assert logits.shape == (3, 4, 29)
    for row, sentence in enumerate(SOURCE):
        assert_close(logits[row], network(*pad([sentence]), TARGET[[row]])[0])


@LAYOUTS
def test_padding_may_hold_any_token(layout):
    network = model(layout)
    source, lengths = pad(SOURCE)
    filled = torch.where(torch.arange(5) < lengths[:, None], source, 17)
    assert torch.equal(network(source, lengths, TARGET), network(filled, lengths, TARGET))


@LAYOUTS
def test_no_prediction_sees_the_tokens_that_follow(layout):
    network = model(layout)
    logits = network(*pad(SOURCE), TARGET)
    for first in range(1, 4):
        changed = TARGET.clone()
        changed[:, first:] = 11
        again = network(*pad(SOURCE), changed)
        assert torch.equal(again[:, :first], logits[:, :first])
        assert not torch.equal(again[:, first:], logits[:, first:])


@LAYOUTS
def test_every_prediction_sees_every_source_token(layout):
    network = model(layout)
    source, lengths = pad(SOURCE)
    logits = network(source, lengths, TARGET)
    for place in range(5):
        changed = source.clone()
        changed[0, place] = 13
        moved = (network(changed, lengths, TARGET) - logits).abs().amax(dim=-1)  # (B, Tt)
        assert (moved[0] > 1e-6).all()
        assert not moved[1:].any()  # another sentence of the batch feels nothing


@LAYOUTS
def test_the_order_of_the_source_counts(layout):
    """Without positions the encoder could not tell a sentence from its reverse."""
    network = model(layout)
    first = network(*pad([[4, 9, 22, 5]]), TARGET[:1])
    assert (network(*pad([[5, 22, 9, 4]]), TARGET[:1]) - first).abs().max() > 1e-3


@LAYOUTS
def test_step_by_step_equals_all_at_once(layout):
    network = model(layout)
    logits, state = network(*pad(SOURCE), TARGET), network.encode(*pad(SOURCE))
    for step in range(TARGET.shape[1]):
        one, state = network.step(TARGET[:, step], state)
        assert_close(one, logits[:, step])
    assert [len(cache) for cache in state["caches"]] == [4, 4]
    assert torch.equal(state["memory"], network.encode(*pad(SOURCE))["memory"])


@LAYOUTS
def test_a_beam_takes_its_caches_along(layout):
    """The best of a wide beam, scored again without a cache, has the score that the search found.

    Caches that stayed in the old order would give scores that belong to other sentences.
    """
    network = model(layout)
    size = len(SOURCE)
    start = torch.full((size,), START)
    found, scores = beam(
        network.step, network.encode(*pad(SOURCE)), start, END, 6, width=5, length_penalty=0.0
    )
    given = torch.cat([start[:, None], found[:, :-1]], dim=1)
    surprise = network(*pad(SOURCE), given).log_softmax(dim=-1)
    gained = surprise.gather(-1, found[..., None])[..., 0]
    ended = (found == END).cumsum(dim=1) - (found == END).long() > 0  # after the first end
    assert_close(gained.masked_fill(ended, 0.0).sum(dim=1), scores, check_dtype=False)


@LAYOUTS
def test_a_beam_of_one_is_greedy(layout):
    network = model(layout)
    start = torch.full((3,), START)
    one, _ = beam(network.step, network.encode(*pad(SOURCE)), start, END, 6, width=1)
    assert torch.equal(one, greedy(network.step, network.encode(*pad(SOURCE)), start, END, 6))


# --- parts ---------------------------------------------------------------------------------------


def test_embedding_is_a_row_times_the_root_of_the_width_plus_sines():
    embedding = Embedding(23, 30, 0.0).double()
    vectors = embedding(torch.tensor([[4, 9, 4]]), offset=7)
    expected = embedding.table.weight[[4, 9, 4]] * math.sqrt(30)
    assert_close(vectors[0], expected + sinusoidal(3, 30, offset=7), atol=1e-6, rtol=0)


def test_words_and_positions_are_equally_large_at_first():
    """Each sine and cosine pair has the length 1, so a position has sqrt(D / 2)."""
    words = Embedding(500, 30, 0.0).table.weight * math.sqrt(30)
    assert words.norm(dim=-1).mean().item() == pytest.approx(math.sqrt(30), rel=0.05)


@LAYOUTS
def test_first_logits_are_moderate(layout):
    """So the loss starts near ln V, as that of a model that knows nothing should."""
    network = model(layout, target_tokens=500)
    logits = network(*pad(SOURCE), TARGET)
    targets = torch.randint(500, TARGET.shape, generator=torch.Generator().manual_seed(0))
    assert cross_entropy(logits, targets).item() == pytest.approx(math.log(500), abs=1.0)


@LAYOUTS
def test_output_layer_is_the_table_of_the_target(layout):
    network = model(layout)
    names = dict(network.named_parameters())
    assert sum(p.numel() == 29 * 30 for p in names.values()) == 1
    before = network(*pad(SOURCE), TARGET)
    with torch.no_grad():
        network.target.table.weight[17, 0] += 1.0  # a token that TARGET does not hold
    moved = (network(*pad(SOURCE), TARGET) - before).abs().amax(dim=(0, 1)) > 1e-9
    assert moved.tolist() == [token == 17 for token in range(29)]


@LAYOUTS
def test_every_parameter_has_a_gradient(layout):
    network = model(layout)
    network(*pad(SOURCE), TARGET).square().sum().backward()
    sizes = {key: p.grad.abs().max().item() for key, p in network.named_parameters()}
    # Keys' biases shift all scores of a query alike, and the softmax does not feel that.
    idle = {key for key in sizes if key.endswith("key_proj.bias")}
    assert min(size for key, size in sizes.items() if key not in idle) > 1e-9, sizes


def test_layouts_differ_in_the_place_of_the_norms():
    post, pre = model(original), model(pre_norm)
    for network, kind in ((post, PostNorm), (pre, PreNorm)):
        found = [part for part in network.modules() if isinstance(part, PreNorm | PostNorm)]
        assert {type(part) for part in found} == {kind}
        assert len(found) == 2 * 2 + 2 * 3
    assert isinstance(post.encoder_end, nn.Identity)
    assert isinstance(pre.decoder_end, nn.LayerNorm)
    memory = pre.encode(*pad(SOURCE))["memory"]
    assert_close(memory.mean(dim=-1), torch.zeros(3, 5).double(), atol=1e-9, rtol=0)


@LAYOUTS
def test_dropout_acts_in_training_only(layout):
    network = model(layout, dropout=0.5)
    first = network(*pad(SOURCE), TARGET)
    assert torch.equal(first, network(*pad(SOURCE), TARGET))
    network.train()
    assert not torch.equal(network(*pad(SOURCE), TARGET), network(*pad(SOURCE), TARGET))


def test_attention_weights_are_the_mean_over_blocks_and_heads():
    network = model(pre_norm)
    weights = network.attention_weights(*pad(SOURCE), TARGET)
    with capture_weights(network) as seen:
        network(*pad(SOURCE), TARGET)
    single = [seen[f"decoder.{i}.cross_attention"][0] for i in range(2)]  # (B, H, Tt, Ts) each
    assert_close(weights, (single[0].mean(dim=1) + single[1].mean(dim=1)) / 2)
    assert_close(weights.sum(dim=-1), torch.ones(3, 4).double())
    assert not weights[1, :, 2:].any()  # padding
    assert not any(part._forward_pre_hooks for part in network.modules())


def test_the_base_model_of_the_paper_has_the_parts_that_its_table_counts():
    """Blocks of 44.1 million parameters; table 3 says 65 million with the table of 37,000 rows."""
    with torch.device("meta"):
        base = original(TransformerConfig(1, 37000, width=512, layers=6, heads=8, hidden=2048))
    blocks = sum(p.numel() for part in (base.encoder, base.decoder) for p in part.parameters())
    assert blocks == 6 * (3_152_384 + 4_204_032)
    assert round((blocks + base.target.table.weight.numel()) / 1e6, 1) == 63.1


# --- learning ------------------------------------------------------------------------------------


def _reversing(generator):
    source = torch.randint(4, 12, (32, 4), generator=generator)
    start, end = torch.full((32, 1), START), torch.full((32, 1), END)
    return source, torch.full((32,), 4), torch.cat([start, source.flip(1), end], dim=1)


def _surprise(network, batch):
    source, lengths, target = batch
    return cross_entropy(network(source, lengths, target[:, :-1]), target[:, 1:])


@LAYOUTS
def test_it_learns_to_reverse(layout):
    config = TransformerConfig(12, 12, width=32, layers=1, heads=2, hidden=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = layout(config)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    train(network, _surprise, _reversing, optimizer, steps=250, seed=0, clip=1.0)
    source, lengths, target = _reversing(torch.Generator().manual_seed(9))
    start = torch.full((32,), START)
    found = greedy(network.step, network.encode(source, lengths), start, END, 5)
    assert (found == target[:, 1:]).float().mean() > 0.9


# --- impossible sizes ----------------------------------------------------------------------------


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"width": 0}, ValueError, "width must be at least 1, got 0"),
        ({"heads": 4}, ValueError, "heads must divide width = 30, got 4"),
        ({"width": 33}, ValueError, "width must be even, for sines and cosines, got 33"),
        ({"layers": 0}, ValueError, "layers must be at least 1, got 0"),
        ({"hidden": 0}, ValueError, "hidden must be at least 1, got 0"),
        ({"hidden": 2.5}, TypeError, "hidden must be an integer, got float"),
        ({"source_tokens": 0}, ValueError, "source_tokens must be at least 1, got 0"),
        ({"dropout": 1.0}, ValueError, "dropout must be at least 0 and below 1, got 1.0"),
    ],
)
def test_impossible_sizes_are_refused(changes, kind, message, no_shape_hook):
    with pytest.raises(kind, match=message):
        replace(CONFIG, **changes)


def test_hidden_width_is_four_times_the_width_unless_given():
    assert CONFIG.hidden_width == 13
    assert replace(CONFIG, hidden=None).hidden_width == 120


@pytest.mark.hostile
def test_a_config_of_the_other_family_is_refused(no_shape_hook):
    message = "config must be a Seq2SeqConfig for 'additive', got TransformerConfig"
    with pytest.raises(TypeError, match=message):
        build("additive", CONFIG, seed=0)


# --- the shipped weights -------------------------------------------------------------------------


def test_shipped_weights_are_those_of_the_log():
    log = json.loads((WEIGHTS / "seq2seq_transformer.json").read_text(encoding="utf-8"))
    content = (WEIGHTS / "seq2seq_transformer.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == log["sha256"]
    count = sum(p.numel() for p in load("transformer").model.parameters())
    assert count == log["parameters"]
    recurrent = sum(p.numel() for p in load("additive").model.parameters())
    assert abs(count / recurrent - 1) < 0.1


def read_log(name):
    return json.loads((WEIGHTS / f"seq2seq_{name}.json").read_text(encoding="utf-8"))


def both_seeds(name):
    """BLEU with beam 4 of the runs with seeds 0 and 1."""
    logs = [read_log(run) for run in (name, f"{name}_seed1")]
    assert [log["seed"] for log in logs] == [0, 1]
    return [float(log["test BLEU, beam 4"]["all"].split()[0]) for log in logs]


def test_both_seeds_of_the_log_are_ahead_of_every_recurrent_run():
    runs = {name: both_seeds(name) for name in FAMILIES}
    own = runs.pop("transformer")
    assert own[0] != own[1]
    assert min(own) > max(map(max, runs.values())) + 1, (own, runs)


def test_each_run_that_took_no_more_time_is_ahead_of_the_best_recurrent_run_of_its_seed():
    own = both_seeds("transformer_short")
    assert own[0] != own[1]
    rivals = zip(*(both_seeds(name) for name in FAMILIES if name != "transformer"), strict=True)
    assert all(run > max(others) for run, others in zip(own, rivals, strict=True))
    step = read_log("speed")["milliseconds a step"]
    steps = {name: read_log(name)["steps"] for name in ("transformer_short", "additive")}
    assert steps["transformer_short"] == read_log("transformer_short_seed1")["steps"]
    assert step["transformer"] * steps["transformer_short"] <= step["additive"] * steps["additive"]


def test_steps_were_timed_for_every_model():
    assert read_log("speed")["milliseconds a step"].keys() == FAMILIES.keys()


def test_shipped_model_predicts_validation_sentences_as_the_log_says():
    log = json.loads((WEIGHTS / "seq2seq_transformer.json").read_text(encoding="utf-8"))
    translator, pairs = load("transformer"), english_french().validation
    source, lengths = pad([[*translator.source.encode(english), END] for english, _ in pairs])
    target, _ = pad([[START, *translator.target.encode(french), END] for _, french in pairs])
    with torch.no_grad():
        logits = translator.model(source, lengths, target[:, :-1])
    surprise = cross_entropy(logits, target[:, 1:], ignore_index=PAD)
    assert surprise.item() == pytest.approx(log["validation loss"][-1][1], abs=0.01)
