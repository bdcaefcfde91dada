"""The training loop: what it computes, what it leaves alone, and exact resume after kill -9."""

import io
import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path

import killed_run
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from killed_run import EVERY, OPTIMIZERS, STEPS, run
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from attention_lib import training
from attention_lib.training import (
    History,
    train,
    warmup_then_cosine,
    warmup_then_inverse_sqrt,
)

EACH_OPTIMIZER = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def line(value=1.0):
    """The smallest model: one weight."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, value)
    return model


def weight_itself(model, drawn):
    """A loss whose gradient is 1."""
    return model.weight.sum()


def short_run(
    model=None, optimizer=None, loss=weight_itself, batch=lambda generator: None, **named
):
    model = line() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5) if optimizer is None else optimizer
    return train(model, loss, batch, optimizer, **({"steps": 3, "seed": 0} | named))


def assert_same_weights(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    for (name, ours), (_, theirs) in pairs:
        assert torch.equal(ours, theirs), name


# --- on paper ------------------------------------------------------------------------------------


def test_three_steps_of_gradient_descent():
    model = line()
    assert short_run(model).losses == [1.0, 0.5, 0.0]
    assert model.weight.item() == -0.5


def test_the_schedule_multiplies_the_rate_of_every_group_and_is_taken_back():
    model = nn.Sequential(line(), line())
    groups = [{"params": model[0].parameters(), "lr": 1.0}, {"params": model[1].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.5)
    factors = {1: 1.0, 2: 0.25, 3: 0.0}
    short_run(
        model, optimizer, lambda model, _: model[0].weight.sum() + model[1].weight.sum(),
        schedule=factors.get,
    )  # fmt: skip
    assert model[0].weight.item() == 1 - 1.25
    assert model[1].weight.item() == 1 - 0.625
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.5]


def test_clipping_scales_all_gradients_together():
    model = nn.Sequential(line(), line())

    def loss(model, _):
        return 3 * model[0].weight.sum() + 4 * model[1].weight.sum()  # a gradient of norm 5

    short_run(model, loss=loss, clip=2.5, steps=1)
    assert_close(model[0].weight.item(), 1 - 0.5 * 1.5, rtol=0, atol=1e-6)
    assert_close(model[1].weight.item(), 1 - 0.5 * 2.0, rtol=0, atol=1e-6)
    model = line()
    short_run(model, clip=2.5, steps=1)  # a norm of 1 stays
    assert model.weight.item() == 0.5


def test_gradients_from_before_the_run_are_not_used():
    model = line()
    model.weight.grad = torch.full_like(model.weight, 100.0)
    short_run(model, steps=1)
    assert model.weight.item() == 0.5


def test_validation_comes_after_every_interval_and_at_the_end():
    measured = short_run(steps=5, validate=lambda model: model.weight.item(), validate_every=2)
    assert measured.validation == [(2, 0.0), (4, -1.0), (5, -1.5)]
    measured = short_run(steps=4, validate=lambda model: model.weight.item(), validate_every=2)
    assert measured.validation == [(2, 0.0), (4, -1.0)]
    assert short_run(steps=4, validate=lambda model: 7).validation == [(4, 7.0)]


def test_a_run_learns():
    model, history = run(None, "adamw")
    assert history.losses[0] > 1.5
    assert len(history.losses) == STEPS
    tokens = torch.arange(killed_run.VOCABULARY)
    with torch.no_grad():
        right = (model.eval()(tokens).argmax(dim=-1) == (tokens + 1) % len(tokens)).sum()
    assert right >= len(tokens) - 1


# --- seeds ---------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights_whatever_the_global_state():
    torch.manual_seed(11)
    one, history = run(None)
    torch.manual_seed(12)
    other, other_history = run(None)
    assert_same_weights(one, other)
    assert history == other_history


@pytest.mark.parametrize("dropout", [True, False])
def test_another_seed_gives_other_batches_and_other_dropout(dropout):
    # Without dropout only the batches can differ; with a constant batch only the dropout can.
    model = nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5 if dropout else 0.0))
    start = {name: part.clone() for name, part in model.state_dict().items()}

    def batch(generator):
        return torch.ones(3, 5) if dropout else torch.randn(3, 5, generator=generator)

    results = []
    for seed in (1, 2, 1):
        model.load_state_dict(start)
        short_run(model, loss=lambda model, x: model(x).square().mean(), batch=batch, seed=seed)
        results.append(model[0].weight.detach().clone())
    assert torch.equal(results[0], results[2])
    assert not torch.equal(results[0], results[1])


@pytest.mark.parametrize("fails", [False, True])
def test_the_global_random_state_is_untouched(fails):
    before = torch.get_rng_state()
    if fails:
        with pytest.raises(FloatingPointError):
            run(None, loss=lambda model, tokens: killed_run.loss(model, tokens) / 0)
    else:
        run(None)
    assert torch.equal(torch.get_rng_state(), before)


def test_validation_changes_nothing_in_the_training():
    plain, history = run(None, validate=None, validate_every=None)
    seen = []

    def validate(model):
        seen.append((model.training, torch.is_grad_enabled()))
        return torch.rand(()).item()  # takes from the global state

    watched, other = run(None, validate=validate, validate_every=3)
    assert_same_weights(plain, watched)
    assert history.losses == other.losses
    assert set(seen) == {(False, False)}


def test_each_part_of_the_model_gets_its_mode_back():
    model = nn.Sequential(line(), nn.Dropout(0.1), line())
    model[1].eval()
    modes = []

    def loss(model, _):
        modes.append([part.training for part in model.modules()])
        return model[0].weight.sum() + model[2].weight.sum()

    short_run(model, loss=loss, validate=lambda model: 0.0, validate_every=1)
    assert modes == [[True] * 4] * 3
    assert [part.training for part in model.modules()] == [True, True, False, True]


# --- checkpoints ---------------------------------------------------------------------------------


def steps_in(path):
    with safe_open(path, framework="pt") as file:
        return len(json.loads(file.metadata()["run"])["measured"]["losses"])


def stop_at(step):
    """A loss that fails in one step of the process."""
    calls = iter(range(1, 10**6))

    def loss(model, tokens):
        if next(calls) == step:
            raise InterruptedError
        return killed_run.loss(model, tokens)

    return loss


@EACH_OPTIMIZER
@pytest.mark.parametrize("step", [1, EVERY, EVERY + 1, STEPS])
def test_an_interrupted_run_goes_on_exactly(step, optimizer, tmp_path):
    expected, history = run(None, optimizer)
    path = tmp_path / "run.safetensors"
    with pytest.raises(InterruptedError):
        run(path, optimizer, loss=stop_at(step))
    assert path.exists() == (step > EVERY)
    # The weights of the new process are others: all must come from the file, if there is one.
    resumed, other = run(path, optimizer, weights=2 if step > EVERY else 1)
    assert_same_weights(resumed, expected)
    assert other == history


@pytest.mark.parametrize(("where", "optimizer"), [
    ("step", "adamw"), ("write", "adamw"), ("rename", "sgd"),
])  # fmt: skip
def test_a_run_that_was_killed_goes_on_exactly(where, optimizer, tmp_path):
    path = tmp_path / "run.safetensors"
    command = [sys.executable, killed_run.__file__, str(path), optimizer, where]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for printed in process.stdout:
            if int(printed) == 3 * EVERY + 2:
                process.kill()
        assert process.wait() == -signal.SIGKILL
    assert steps_in(path) == (3 if where == "step" else 2) * EVERY
    names = {path.name} if where == "step" else {path.name, f"{path.name}.part"}
    assert {file.name for file in tmp_path.iterdir()} == names

    expected, history = run(None, optimizer)
    resumed, other = run(path, optimizer, weights=2)
    assert_same_weights(resumed, expected)
    assert other == history
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_tied_weights_stay_tied(tmp_path):
    path = tmp_path / "run.safetensors"
    run(path)
    model, _ = run(path, weights=2)
    assert model.output.weight is model.embedding.weight


def test_the_optimizers_state_keeps_its_order_in_memory(tmp_path):
    strides = []
    for _ in range(2):  # a fresh run and a resumed one
        model = nn.Linear(3, 5)
        model.weight = nn.Parameter(torch.ones(3, 5).mT)
        optimizer = torch.optim.AdamW(model.parameters())
        short_run(model, optimizer, lambda m, _: m.weight.sum(), checkpoint=tmp_path / "run")
        strides.append(optimizer.state[model.weight]["exp_avg"].stride())
    assert strides == [(1, 5), (1, 5)]


def test_a_finished_run_is_not_run_again(tmp_path):
    path = tmp_path / "run.safetensors"
    expected, history = run(path)
    assert steps_in(path) == STEPS
    again, other = run(path, weights=2, loss=stop_at(1))
    assert_same_weights(again, expected)
    assert other == history


def test_without_an_interval_the_file_is_written_at_the_end(tmp_path):
    path = tmp_path / "run.safetensors"
    with pytest.raises(InterruptedError):
        run(path, loss=stop_at(STEPS), checkpoint_every=None)
    assert not path.exists()
    run(path, checkpoint_every=None)
    assert steps_in(path) == STEPS


def test_the_interval_of_checkpoints_may_change(tmp_path):
    path = tmp_path / "run.safetensors"
    with pytest.raises(InterruptedError):
        run(path, loss=stop_at(12))
    resumed, _ = run(str(path), checkpoint_every=9, weights=2)
    assert_same_weights(resumed, run(None)[0])


CHANGED = {
    "steps": ({"steps": STEPS + 1}, "which has 40 and not 41"),
    "seed": ({"seed": 4}, "which has 3 and not 4"),
    "clip": ({"clip": None}, "which has 1.0 and not None"),
    "validate_every": ({"validate_every": None}, "which has 7 and not None"),
    "schedule": ({"schedule": None}, "and not [1.0, 1.0, 1.0"),
}


@pytest.mark.hostile
@pytest.mark.parametrize("name", CHANGED)
def test_a_checkpoint_of_other_settings_is_refused(name, tmp_path):
    changed, message = CHANGED[name]
    path = tmp_path / "run.safetensors"
    run(path)
    rule = f"checkpoint must be of a run with the same {name}, got run.safetensors, "
    with pytest.raises(ValueError, match=f"^{re.escape(rule)}.*{re.escape(message)}"):
        run(path, **changed)


@pytest.mark.hostile
def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    run(path, "sgd")
    message = "the same optimizer, got run.safetensors, which has SGD and not AdamW"
    with pytest.raises(ValueError, match=re.escape(message)):
        run(path, "adamw")
    message = "the same optimizer's momentum in group 0, .* has 0.9 and not 0"
    with pytest.raises(ValueError, match=message):
        run(path, "plain")


MODELS = {
    "shape": (
        nn.Linear(3, 2), nn.Linear(3, 5), r"weight weight, .*float32 \(2, 3\) and not .*\(5, 3\)"
    ),
    "dtype": (nn.Linear(3, 2), nn.Linear(3, 2).double(), "weight weight, .*float32 .*float64"),
    "weight more": (
        nn.Linear(3, 2, bias=False), nn.Linear(3, 2), r"params in group 0, .* \['weight'\] and not"
    ),
    "buffer more": (
        nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)),
        nn.Sequential(nn.BatchNorm1d(3)),
        r"weight 0.running_mean, .* has nothing and not torch.float32 \(3,\)",
    ),
    "buffer less": (
        nn.Sequential(nn.BatchNorm1d(3)),
        nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)),
        r"weight 0.running_mean, .* has torch.float32 \(3,\) and not nothing",
    ),
}  # fmt: skip


@pytest.mark.hostile
@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_of_another_model_is_refused_and_nothing_is_changed(name, tmp_path):
    first, second, message = MODELS[name]

    def loss(model, _):
        return sum(p.sum() for p in model.parameters())

    path = tmp_path / "run.safetensors"
    short_run(first, loss=loss, checkpoint=path)
    before = {name: part.clone() for name, part in second.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        short_run(second, loss=loss, checkpoint=path)
    assert all(torch.equal(part, before[name]) for name, part in second.state_dict().items())


@pytest.mark.hostile
def test_parameters_in_another_order_are_another_run(tmp_path):
    path = tmp_path / "run.safetensors"
    model = nn.Sequential(line(), line())

    def loss(model, _):
        return model[0].weight.sum() + model[1].weight.sum()

    for parameters in (list(model.parameters()), list(model.parameters())[::-1]):
        if path.exists():
            with pytest.raises(ValueError, match="the same optimizer's params in group 0"):
                short_run(model, torch.optim.AdamW(parameters), loss, checkpoint=path)
        else:
            short_run(model, torch.optim.AdamW(parameters), loss, checkpoint=path)


@pytest.mark.hostile
@pytest.mark.parametrize("content", ["nothing", "text", "other", "folder"])
def test_a_file_of_another_kind_is_refused(content, tmp_path):
    path = tmp_path / "weights.safetensors"
    if content == "folder":
        path.mkdir()
    elif content == "other":
        save_file({"weight": torch.ones(2)}, path)
    else:
        path.write_text("" if content == "nothing" else "not a checkpoint at all")
    message = "checkpoint must be a file that train wrote, got weights.safetensors"
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        short_run(checkpoint=path)


class Rounds(torch.optim.SGD):
    """An optimizer that counts in a plain number."""

    def step(self, closure=None):
        """One step, counted."""
        super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["rounds"] = 1


@pytest.mark.hostile
def test_what_is_not_a_tensor_is_not_stored(tmp_path):
    model = line()
    message = "a checkpoint must hold tensors only, got int for optimizer.0.rounds"
    with pytest.raises(TypeError, match=re.escape(message) + "$"):
        short_run(model, Rounds(model.parameters()), checkpoint=tmp_path / "run.safetensors")
    assert list(tmp_path.iterdir()) == []


# --- the bar -------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A stream that a person watches."""

    def isatty(self):
        """It is."""
        return True


class FakeIPython:
    """A notebook, in which cells may ask questions or not."""

    def __init__(self, asks):
        self.kernel = type("Kernel", (), {"_allow_stdin": asks})()

    def get_ipython(self):
        """The running shell."""
        return self


def test_without_a_watcher_nothing_is_drawn(capsys):
    short_run()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("progress", [True, False])
def test_on_a_terminal_the_bar_is_drawn_and_wiped(progress, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    short_run(progress=progress)
    assert ("3/3" in terminal.getvalue() or "0/3" in terminal.getvalue()) == progress
    assert "\n" not in terminal.getvalue()


def test_the_bar_of_a_resumed_run_starts_where_the_run_does(monkeypatch, tmp_path):
    path = tmp_path / "run.safetensors"
    short_run(checkpoint=path)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    short_run(checkpoint=path)
    assert "3/3" in terminal.getvalue()
    assert "0/3" not in terminal.getvalue()


@pytest.mark.parametrize("asks", [True, False])
def test_in_a_notebook_the_bar_is_drawn_only_for_a_person(asks, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "IPython", FakeIPython(asks))
    short_run()
    drawn, errors = capsys.readouterr()
    assert ("0/3" in drawn) == asks
    assert errors == ""


def test_a_notebook_run_by_a_program_stores_nothing():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    source = (
        "import torch\nfrom attention_lib.training import train\nmodel = torch.nn.Linear(1, 1)\n"
        "_ = train(model, lambda m, b: m.weight.sum(), lambda g: None,\n"
        "          torch.optim.SGD(model.parameters(), lr=0.1), steps=5, seed=0)"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbclient.NotebookClient(notebook, kernel_name="python3").execute()
    assert notebook.cells[0].outputs == []


# --- schedules -----------------------------------------------------------------------------------


def test_the_inverse_square_root_on_paper():
    schedule = warmup_then_inverse_sqrt(4)
    assert [schedule(step) for step in (1, 2, 4, 16, 64)] == [0.25, 0.5, 1.0, 0.5, 0.25]


@pytest.mark.oracle
@given(st.integers(1, 5000), st.integers(1, 20000))
def test_the_inverse_square_root_is_the_papers_up_to_a_constant(warmup, step):
    def paper(step):
        return 512**-0.5 * min(step**-0.5, step * warmup**-1.5)

    assert_close(warmup_then_inverse_sqrt(warmup)(step), paper(step) / paper(warmup))


def test_the_cosine_on_paper():
    schedule = warmup_then_cosine(2, 10)
    assert [schedule(step) for step in (1, 2)] == [0.5, 1.0]
    found = [schedule(step) for step in (4, 6, 8, 10, 11)]
    root = math.sqrt(0.5)
    assert_close(found, [(1 + root) / 2, 0.5, (1 - root) / 2, 0.0, 0.0])
    assert_close(warmup_then_cosine(0, 2)(1), 0.5)


@given(st.integers(0, 50), st.integers(1, 50))
def test_the_cosine_rises_to_its_peak_and_falls_to_zero(warmup, rest):
    schedule = warmup_then_cosine(warmup, warmup + rest)
    factors = [schedule(step) for step in range(1, warmup + rest + 1)]
    peak = max(warmup - 1, 0)
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[-1] == 0 or warmup + rest == 0
    assert max(factors) <= 1


# --- hostile -------------------------------------------------------------------------------------


@pytest.mark.hostile
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_change(value):
    calls = iter([1.0, 1.0, value])
    model = line()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    message = f"loss must be finite, got {value} in step 3"
    with pytest.raises(FloatingPointError, match=re.escape(message) + "$"):
        short_run(
            model, optimizer, lambda model, _: model.weight.sum() + next(calls),
            steps=9, schedule=lambda step: 1 / step,
        )  # fmt: skip
    assert model.weight.item() == 1 - 0.5 - 0.25
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.hostile
def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_change():
    model = line(0.0)
    message = "the norm of the gradients must be finite, got inf in step 1"
    with pytest.raises(FloatingPointError, match=re.escape(message) + "$"):
        short_run(model, loss=lambda model, _: model.weight.sqrt().sum(), clip=1.0)
    assert model.weight.item() == 0


BAD = [
    ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
    ({"steps": 2.0}, TypeError, "steps must be an integer, got float"),
    ({"clip": 0.0}, ValueError,
     "clip must be a finite number above 0, in the range of float32, got 0.0"),
    ({"seed": 0.5}, TypeError, "seed must be an integer, got float"),
    ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    ({"validate": lambda model: 0.0, "validate_every": 0}, ValueError,
     "validate_every must be at least 1, got 0"),
    ({"validate_every": 2}, ValueError,
     "validate_every must be given with validate, got validate = None"),
    ({"checkpoint": "run.safetensors", "checkpoint_every": 1.5}, TypeError,
     "checkpoint_every must be an integer, got float"),
    ({"checkpoint_every": 2}, ValueError,
     "checkpoint_every must be given with checkpoint, got checkpoint = None"),
    ({"checkpoint": Path("nowhere/run.safetensors")}, ValueError,
     "checkpoint must lie in an existing folder, got nowhere/run.safetensors"),
    ({"schedule": lambda step: 1 - step}, ValueError,
     "schedule must return finite factors of at least 0, got -1.0 for step 2"),
    ({"schedule": lambda step: math.nan}, ValueError,
     "schedule must return finite factors of at least 0, got nan for step 1"),
    ({"optimizer": torch.optim.SGD(line().parameters(), lr=0.1)}, ValueError,
     "optimizer must hold parameters of model only, got 1 others"),
    ({"loss": lambda model, drawn: 1.0}, TypeError, "loss must return a torch.Tensor, got float"),
    ({"loss": lambda model, drawn: torch.ones(2, 3)}, ValueError,
     "loss must return one number, got shape (2, 3)"),
]  # fmt: skip


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize(("named", "kind", "message"), BAD, ids=[m for *_, m in BAD])
def test_a_bad_argument_is_named(named, kind, message):
    with pytest.raises(kind, match="^" + re.escape(message) + "$"):
        short_run(**named)


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
def test_a_bad_schedule_is_named():
    with pytest.raises(ValueError, match=r"^warmup must be at least 1, got 0$"):
        warmup_then_inverse_sqrt(0)
    with pytest.raises(TypeError, match=r"^warmup must be an integer, got float$"):
        warmup_then_inverse_sqrt(1.0)
    with pytest.raises(ValueError, match=r"^warmup must be at least 0, got -1$"):
        warmup_then_cosine(-1, 3)
    with pytest.raises(ValueError, match=r"^steps must be at least 4, got 3$"):
        warmup_then_cosine(3, 3)


def test_each_run_has_a_history_of_its_own():
    assert History().losses is not History().losses
    assert training.History() == History([], [])
