"""GPT: layouts, causality and caches, query/key norm, recipes and optimizers, held-out loss."""

import hashlib
import json
import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from statistics import mean

import oracle
import pytest
import torch
from torch import nn
from torch.nn.functional import rms_norm
from torch.testing import assert_close

from attention_lib.attention import attention_weights
from attention_lib.data import plays, shakespeare, speeches
from attention_lib.heads import MultiHeadAttention
from attention_lib.models.characters import (
    LENGTH,
    Alphabet,
    batches,
    held_out_loss,
    next_token_loss,
)
from attention_lib.models.gpt import GPTConfig, QueryKeyNorm, gpt2, llama, small_start
from attention_lib.models.optimizers import Together, muon_and_adamw, warmup_then_linear
from attention_lib.models.recipes import (
    BEST,
    LADDER,
    PLAIN,
    WEIGHTS,
    LookBack,
    load,
    save,
    squared_relu,
)
from attention_lib.positions import Alibi, Position, Rotary
from attention_lib.training import train

# Vocabulary 23, length 13, width 3 heads x 10; 3 heads over 1.
CONFIG = GPTConfig(tokens=23, length=13, width=30, layers=2, heads=3, hidden=41)
LAYOUTS = {
    "gpt2": partial(gpt2, CONFIG),
    "gpt2, one key head": partial(gpt2, replace(CONFIG, kv_heads=1)),
    "llama": partial(llama, replace(CONFIG, kv_heads=1)),
    "best recipe": partial(LADDER[BEST].model, 23, 0),
}


def tokens(generator, *shape):
    return torch.randint(23, shape, generator=generator)


def filled(model, generator):
    """The model in float64 with weights of ordinary size, so that every part counts."""
    model = model.double().eval()
    for parameter in model.parameters():
        parameter.data = oracle.random(generator, *parameter.shape) / 3
    return model


# --- the model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_prefix_alone_has_the_same_logits(layout, generator):
    model = filled(LAYOUTS[layout](), generator)
    text = tokens(generator, 2, 13)
    whole = model(text)
    for end in range(1, 13):
        assert_close(model(text[:, :end]), whole[:, :end], rtol=0, atol=1e-10)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_future_leaves_the_past_bit_equal(layout, generator):
    model = filled(LAYOUTS[layout](), generator)
    text = tokens(generator, 13)
    other = torch.cat([text[:7], (text[7:] + 1) % 23])
    assert torch.equal(model(text)[:7], model(other)[:7])
    assert not torch.equal(model(text)[7:], model(other)[7:])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cut", [[1] * 13, [5, 1, 7]])
def test_with_caches_as_without(layout, cut, generator):
    model = filled(LAYOUTS[layout](), generator)
    text = tokens(generator, 2, 13)
    caches = model.empty_caches()
    parts = [model(part, caches=caches) for part in text.split(cut, dim=1)]
    assert_close(torch.cat(parts, dim=1), model(text), rtol=0, atol=1e-10)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_step_gives_the_logits_after_the_last_token(layout, generator):
    model = filled(LAYOUTS[layout](), generator)
    text, caches = tokens(generator, 2, 5), model.empty_caches()
    for place in range(5):
        logits, caches = model.step(text[:, place], caches)
        assert_close(logits, model(text)[:, place], rtol=0, atol=1e-10)


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"tokens": 0}, ValueError, "tokens must be at least 1, got 0"),
        ({"length": 0}, ValueError, "length must be at least 1, got 0"),
        ({"width": 0}, ValueError, "width must be at least 1, got 0"),
        ({"layers": 0}, ValueError, "layers must be at least 1, got 0"),
        ({"layers": 2.0}, TypeError, "layers must be an integer, got float"),
        ({"heads": 4}, ValueError, "heads must divide width = 30, got 4"),
        ({"kv_heads": 2}, ValueError, "kv_heads must divide heads = 3, got 2"),
        ({"hidden": 0}, ValueError, "hidden must be at least 1, got 0"),
        ({"dropout": 1.0}, ValueError, "dropout must be at least 0 and below 1, got 1.0"),
    ],
)
@pytest.mark.usefixtures("no_shape_hook")
def test_an_impossible_config_says_why(changes, error, words):
    with pytest.raises(error, match=words):
        replace(CONFIG, **changes)


@pytest.mark.hostile
def test_a_cache_for_each_block_is_asked_for(generator):
    model = gpt2(CONFIG)
    with pytest.raises(ValueError, match="one cache for each of 2 blocks, got 1"):
        model(tokens(generator, 1, 3), caches=model.empty_caches()[:1])


@pytest.mark.hostile
def test_learned_positions_end_where_the_config_says(generator):
    gpt2(CONFIG)(tokens(generator, 13))
    with pytest.raises(ValueError, match="must end at position 13"):
        gpt2(CONFIG)(tokens(generator, 14))
    llama(CONFIG)(tokens(generator, 14))  # nothing ends here


def test_first_weights_have_the_deviations_of_the_paper():
    model = gpt2(GPTConfig(tokens=97, length=31, width=128, layers=8, heads=4))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            writes = name.endswith(("output_proj.weight", "down_proj.weight"))
            expected = 0.02 / 4 if writes else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
        elif name.endswith("bias"):
            assert not parameter.any(), name


# --- query/key norm ------------------------------------------------------------------------------


def test_query_key_norm_forgets_the_size_and_keeps_the_direction(generator):
    query, key = oracle.random(generator, 2, 5, 6), oracle.random(generator, 2, 7, 6)
    norm = QueryKeyNorm(6, Position())
    for ours, x in zip(norm.rotate(query, key), (query, key), strict=True):
        expected = x / (x * x).mean(dim=-1, keepdim=True).sqrt()
        assert_close(ours, expected, rtol=0, atol=1e-9)
    again = norm.rotate(1000 * query, key / 1000)
    assert_close(again, norm.rotate(query, key), rtol=0, atol=1e-6)


def test_query_key_norm_bounds_the_scores(generator):
    query = 100 * oracle.random(generator, 2, 5, 6)
    q, k = QueryKeyNorm(6, Rotary(6)).rotate(query, query)
    scores = q @ k.mT / math.sqrt(6)
    assert scores.max().item() == pytest.approx(math.sqrt(6))  # a query with itself
    assert scores.abs().max() <= math.sqrt(6) + 1e-9


def test_query_key_norm_lets_its_position_rotate_and_bias(generator):
    query, key = oracle.random(generator, 3, 5, 6), oracle.random(generator, 3, 5, 6)
    ours = QueryKeyNorm(6, Rotary(6)).rotate(query, key, 11)
    assert_close(ours, Rotary(6).rotate(rms_norm(query, (6,)), rms_norm(key, (6,)), 11))
    assert_close(QueryKeyNorm(6, Alibi(3)).bias(4, 9, 5), Alibi(3).bias(4, 9, 5))


def test_query_key_norm_acts_inside_attention(generator):
    x = oracle.random(generator, 5, 6)
    attention = MultiHeadAttention(6, 2, position=QueryKeyNorm(3, Position())).double()
    heads = [
        (x @ part.weight.T + part.bias).unflatten(-1, (2, 3)).transpose(0, 1)
        for part in (attention.query_proj, attention.key_proj)
    ]
    expected = attention_weights(*(rms_norm(part, (3,)) for part in heads))
    assert_close(attention.attention_weights(x), expected)


# --- looking back --------------------------------------------------------------------------------


def test_look_back_prefers_one_place_for_each_head(generator):
    bias = LookBack(3, Position(), strength=2.0).bias(5, 5)
    for head in range(3):
        for i in range(5):
            for j in range(5):
                assert bias[head, i, j] == (2 if j == i - head - 1 else 0)
    with_cache = LookBack(3, Position(), strength=2.0).bias(2, 5, 3)
    assert torch.equal(with_cache, bias[:, 3:])


def test_look_back_adds_the_bias_of_its_position_and_rotates_as_it_does(generator):
    query, key = oracle.random(generator, 3, 5, 6), oracle.random(generator, 3, 5, 6)
    both = LookBack(3, Alibi(3))
    assert_close(both.bias(5, 5), LookBack(3, Position()).bias(5, 5) + Alibi(3).bias(5, 5))
    rotated = LookBack(3, Rotary(6)).rotate(query, key, 4)
    assert_close(rotated, Rotary(6).rotate(query, key, 4))


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
def test_look_back_needs_heads_and_a_strength():
    with pytest.raises(ValueError, match="heads must be at least 1, got 0"):
        LookBack(0, Position())
    with pytest.raises(ValueError, match="strength must be a finite number above 0"):
        LookBack(2, Position(), strength=0.0)


# --- recipes -------------------------------------------------------------------------------------


def test_the_plain_recipe_is_gpt2():
    ours = PLAIN.model(23, seed=5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        theirs = gpt2(GPTConfig(23, LENGTH, 128, 4, 4))
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_every_recipe_is_small_enough_and_differs_from_the_one_before():
    texts = []
    for name, recipe in LADDER.items():
        model = recipe.model(65, 0)
        assert sum(p.numel() for p in model.parameters()) <= 810_000, name
        start = sum(p.double().square().sum() for p in model.parameters()).item()
        functions = [m.activation for m in model.modules() if hasattr(m, "activation")]
        texts.append(f"{model} {start} {functions} {type(recipe.optimizer(model)).__name__}")
    assert len(set(texts)) == len(LADDER)


def test_with_zero_outputs_every_block_is_the_identity(generator):
    model = LADDER["zero outputs"].model(23, 0)
    text = tokens(generator, 13)
    embedded = rms_norm(model.embedding(text), (128,))
    assert_close(model.states(text), embedded)
    assert not torch.equal(LADDER["squared ReLU"].model(23, 0).states(text), embedded)


def test_squared_relu_by_hand():
    x = torch.tensor([-2.0, 0.0, 0.5, 3.0], requires_grad=True)
    y = squared_relu(x)
    y.sum().backward()
    assert y.tolist() == [0, 0, 0.25, 9]
    assert x.grad.tolist() == [0, 0, 1, 6]


def test_a_recipe_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    assert torch.equal(PLAIN.model(23, 1).added.table, PLAIN.model(23, 1).added.table)
    assert torch.equal(before, torch.get_rng_state())


def test_muon_gets_the_matrices_of_the_blocks_and_adamw_the_rest():
    model = PLAIN.model(23, 0)
    optimizer = muon_and_adamw(model, rate=1e-3, muon_rate=0.02, decay=0.01)
    muon, adamw = optimizer.parts
    held = [
        [id(p) for group in part.param_groups for p in group["params"]] for part in (muon, adamw)
    ]
    names = {id(p): name for name, p in model.named_parameters()}
    assert sorted(held[0] + held[1]) == sorted(names)
    inner = [n for n, p in model.named_parameters() if n.startswith("blocks") and p.ndim == 2]
    assert sorted(names[i] for i in held[0]) == sorted(inner)


def test_linear_schedule_by_hand():
    factor = warmup_then_linear(2, 6)
    assert [factor(step) for step in range(1, 7)] == [0.5, 1, 0.8, 0.6, 0.4, 0.2]
    assert [warmup_then_linear(1, 1)(1), warmup_then_linear(3, 3)(3)] == [1, 1]


@pytest.mark.hostile
def test_linear_schedule_needs_its_peak_within_the_run():
    with pytest.raises(ValueError, match="steps must be at least 5, got 4"):
        warmup_then_linear(5, 4)
    with pytest.raises(ValueError, match="warmup must be at least 1, got 0"):
        warmup_then_linear(0, 4)


# --- several optimizers as one -------------------------------------------------------------------


def problem():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Linear(5, 3)
    x = torch.linspace(-1, 1, 35).view(7, 5)
    return model, lambda model, _: (model(x) - x[:, :3]).square().mean()


def split(model, *, together=True):
    parts = [
        torch.optim.Muon([model.weight], lr=0.1),
        torch.optim.AdamW([model.bias], lr=0.01, fused=True),
    ]
    return Together(*parts) if together else parts


def test_together_does_what_its_parts_do():
    ours, loss = problem()
    theirs, _ = problem()
    one, several = split(ours), split(theirs, together=False)
    for _ in range(5):
        one.zero_grad()
        for part in several:
            part.zero_grad()
        loss(ours, None).backward()
        loss(theirs, None).backward()
        one.step()
        for part in several:
            part.step()
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)


def test_a_rate_set_from_outside_reaches_the_parts():
    model, loss = problem()
    optimizer, before = split(model), model.weight.detach().clone()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    loss(model, None).backward()
    optimizer.step()
    assert torch.equal(model.weight, before)


def test_a_run_with_together_resumes_exactly(tmp_path):
    def run(steps_before_a_stop):
        model, loss = problem()
        path = tmp_path / f"{steps_before_a_stop}.safetensors"
        calls = []

        def stopping(model, batch):
            calls.append(1)
            if len(calls) > steps_before_a_stop:
                raise KeyboardInterrupt
            return loss(model, batch)

        options = {"steps": 8, "seed": 0, "checkpoint": path, "checkpoint_every": 1}
        try:
            train(model, stopping, lambda g: None, split(model), **options)
        except KeyboardInterrupt:
            model, _ = problem()
            train(model, loss, lambda g: None, split(model), **options)
        return model

    whole, resumed = run(8), run(3)
    assert torch.equal(whole.weight, resumed.weight)
    assert torch.equal(whole.bias, resumed.bias)


# --- text ----------------------------------------------------------------------------------------


def test_the_plays():
    texts = plays()
    assert len(texts) == 38
    assert list(texts) == sorted(texts)
    assert texts["hamlet"] == "".join(f"{name}:\n{words}\n\n" for name, words in speeches())
    assert texts["macbeth"].startswith("First Witch:\nWhen shall we three meet again\n")
    assert min(map(len, texts.values())) > 80_000  # none lost its speeches
    assert 4_400_000 < sum(map(len, texts.values())) < 4_600_000


def test_held_out_plays_share_no_speech_with_the_training_plays():
    training, validation, test = shakespeare()
    assert Alphabet.of(training + validation + test) == Alphabet.of(training)
    spoken = set(training.split("\n\n"))
    for held_out in (validation, test):
        long = [speech for speech in held_out.split("\n\n") if len(speech) > 100]
        assert len(long) > 200
        assert not spoken & set(long)


def test_alphabet_there_and_back():
    alphabet = Alphabet.of("to be or not")
    assert alphabet.characters == " benort"
    assert len(alphabet) == 7
    numbers = alphabet.encode("not to be")
    assert numbers.tolist() == [3, 4, 6, 0, 6, 4, 0, 1, 2]
    assert alphabet.decode(numbers.tolist()) == "not to be"


@pytest.mark.hostile
def test_alphabet_names_what_it_does_not_have():
    with pytest.raises(ValueError, match=r"alphabet only, got \['x', 'z'\]"):
        Alphabet("abc").encode("abzxz")
    with pytest.raises(ValueError, match="characters must be different, got 'aba'"):
        Alphabet("aba")


def test_batches_are_windows_of_the_text_and_reach_both_ends(generator):
    text = torch.arange(10)
    draw = batches(text, size=500, length=7)
    found = draw(generator)
    assert found.shape == (500, 8)
    assert torch.equal(found - found[:, :1], torch.arange(8).expand(500, -1))
    assert set(found[:, 0].tolist()) == {0, 1, 2}
    again = draw(torch.Generator().manual_seed(generator.initial_seed()))
    assert torch.equal(again, found)


class Constant(nn.Module):
    """Logits that depend on the token alone."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.sin(torch.arange(23.0 * 23)).view(23, 23).double())
        self.dropout = nn.Dropout(0.5)

    def forward(self, tokens):
        return self.dropout(self.table[tokens])


def test_next_token_loss_is_minus_the_log_of_each_next_token(generator):
    model, window = Constant().eval(), tokens(generator, 3, 8)
    total = 0.0
    for row in window.tolist():
        for here, there in pairwise(row):
            total -= model.table[here].log_softmax(dim=0)[there].item()
    assert next_token_loss(model, window).item() == pytest.approx(total / 21)


@pytest.mark.parametrize("size", [8, 14, 15, 16, 7 * 300 + 3])
def test_held_out_loss_counts_every_position_of_whole_windows_once(size, generator):
    model, text = Constant(), tokens(generator, size)  # in training mode: dropout must be off
    counted = (size - 1) // 7 * 7
    loop = [-model.table[text[i]].log_softmax(dim=0)[text[i + 1]].item() for i in range(counted)]
    assert held_out_loss(model, text, length=7) == pytest.approx(sum(loop) / counted)
    assert model.training


@pytest.mark.hostile
def test_a_text_must_hold_a_window_and_its_last_target():
    with pytest.raises(ValueError, match="more than length = 7 tokens, got 7"):
        held_out_loss(Constant(), torch.zeros(7, dtype=torch.int64), length=7)
    with pytest.raises(ValueError, match="more than length = 7 tokens, got 7"):
        batches(torch.zeros(7, dtype=torch.int64), length=7)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        batches(torch.zeros(8, dtype=torch.int64), length=7, size=0)


# --- what comes with the book --------------------------------------------------------------------


def test_saved_and_read_a_model_is_the_same_up_to_half_precision(tmp_path, generator):
    model, alphabet = LADDER["Muon"].model(5, 3), Alphabet("\n abc")
    save(model, alphabet, "Muon", tmp_path / "model.safetensors")
    again, letters = load(tmp_path / "model.safetensors")
    assert letters == alphabet
    assert not again.training
    for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs.half().float())


def test_shipped_weights_are_those_of_the_log():
    log = json.loads((WEIGHTS / "characters.json").read_text(encoding="utf-8"))
    path = WEIGHTS / log["weights"]["file"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == log["weights"]["sha256"]
    assert path.stat().st_size < 1_700_000
    runs = [r for r in log["runs"] if (r["text"], r["recipe"]) == ("plays", BEST)]
    by_validation = min(runs, key=lambda r: r["validation loss"][-1][1])
    assert log["weights"]["recipe"] == BEST
    assert log["weights"]["seed"] == by_validation["seed"]


def test_the_shipped_model_has_its_recorded_loss_on_macbeth():
    log = json.loads((WEIGHTS / "characters.json").read_text(encoding="utf-8"))
    model, alphabet = load()
    kept = (log["weights"]["recipe"], log["weights"]["seed"], "plays")
    (run,) = [r for r in log["runs"] if (r["recipe"], r["seed"], r["text"]) == kept]
    _, _, macbeth = shakespeare()
    found = held_out_loss(model, alphabet.encode(macbeth[:20_001]))
    assert found == pytest.approx(run["test loss"], abs=0.1)  # the first quarter only


def test_the_log_has_every_recipe_with_three_seeds_and_the_margin_of_the_chapter():
    log = json.loads((WEIGHTS / "characters.json").read_text(encoding="utf-8"))
    losses = {
        step: {
            r["seed"]: r["test loss"]
            for r in log["runs"]
            if (r["text"], r["recipe"]) == ("plays", step)
        }
        for step in LADDER
    }
    assert all(sorted(seeds) == [0, 1, 2] for seeds in losses.values())
    assert {r["steps"] for r in log["runs"]} == {2000}
    plain, best = losses["GPT-2"].values(), losses[BEST].values()
    assert mean(plain) - mean(best) >= 0.2  # of single seeds, 0.196 at the least
    assert min(plain) - max(best) >= 0.19


def test_small_start_is_the_same_for_every_layout():
    model = llama(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    small_start(model)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    assert all(p.abs().max() < 0.2 for p in matrices)
    assert all((p == 7).all() for p in model.parameters() if p.ndim == 1)  # gains are not its job
