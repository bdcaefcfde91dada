"""Train the character models of chapter 11, recipe by recipe, and measure them on held-out text.

    python tools/train_characters.py                          # trains what the log lacks, prints it
    python tools/train_characters.py --benchmark shakespeare.txt

The text is seven plays; an eighth is watched during training, and a ninth is read once by each
trained model. Recipes were chosen on the benchmark's training part. All models see the same windows
in the same order for the same number of steps.
The benchmark is a file of your own: nine tenths are for training and the last tenth is held out.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from train_log import checksum, machine

from attention_lib.data import shakespeare
from attention_lib.models.characters import (
    Alphabet,
    batches,
    held_out_loss,
    next_token_loss,
)
from attention_lib.models.optimizers import warmup_then_linear
from attention_lib.models.recipes import BEST, CONTROLS, LADDER, RECIPES, WEIGHTS, save
from attention_lib.training import train

STEPS, WARMUP, CLIP = 2000, 100, 1.0
CHECKPOINTS = Path("build")  # a run that was stopped goes on from here
PLAYS, BENCHMARK = "plays", "benchmark"


class Text:
    """The three parts of a text as numbers."""

    def __init__(self, training: str, validation: str, test: str) -> None:
        self.alphabet = Alphabet.of(training + validation + test)
        self.training = self.alphabet.encode(training)
        self.validation = self.alphabet.encode(validation)
        self.test = self.alphabet.encode(test)


def the_benchmark(path: Path) -> Text:
    """The first nine tenths and the last; the last of the nine is watched during training."""
    text = path.read_text(encoding="utf-8")
    tenth = len(text) // 10
    return Text(text[: 9 * tenth], text[8 * tenth : 9 * tenth], text[9 * tenth :])


def run(text: Text, name: str, recipe: str, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """Train one model; the one of the last recipe on the plays is kept if it is the best so far."""
    model = RECIPES[recipe].model(len(text.alphabet), seed)
    checkpoint = CHECKPOINTS / f"characters_{name}_{list(RECIPES).index(recipe)}_{seed}.safetensors"
    checkpoint.parent.mkdir(exist_ok=True)
    history = train(
        model, next_token_loss, batches(text.training), RECIPES[recipe].optimizer(model),
        steps=steps, seed=seed, clip=CLIP,
        schedule=warmup_then_linear(WARMUP, steps),
        validate=lambda model: held_out_loss(model, text.validation), validate_every=500,
        checkpoint=checkpoint, checkpoint_every=500,
    )  # fmt: skip
    minutes = history.cpu_seconds / 60
    if name == PLAYS and recipe == BEST:
        save(model, text.alphabet, recipe, folder / f"seed{seed}.safetensors")
    found = {
        "text": name,
        "recipe": recipe,
        "seed": seed,
        "steps": steps,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "CPU minutes on one thread": round(minutes, 2),
        "validation loss": [(step, round(value, 4)) for step, value in history.validation],
        "test loss": round(held_out_loss(model, text.test), 4),
    }
    checkpoint.unlink()
    return found


def pace(text: Text, recipes: list[str], rounds: int) -> dict[str, float]:
    """CPU milliseconds of a training step, the recipes taking turns, so that they fare alike."""
    models = {recipe: LADDER[recipe].model(len(text.alphabet), 0) for recipe in recipes}
    optimizers = {recipe: LADDER[recipe].optimizer(models[recipe]) for recipe in recipes}
    spent = dict.fromkeys(recipes, 0.0)
    draw, generator = batches(text.training), torch.Generator().manual_seed(0)
    for turn in range(-5, rounds):  # the first five warm up
        window = draw(generator)
        for recipe in recipes:
            begin = time.process_time()
            train(
                models[recipe], next_token_loss, lambda _, window=window: window,
                optimizers[recipe], steps=1, seed=0, clip=CLIP, progress=False,
            )  # fmt: skip
            spent[recipe] += (time.process_time() - begin) if turn >= 0 else 0.0
    return {recipe: round(1000 * seconds / rounds, 1) for recipe, seconds in spent.items()}


def table(log: dict[str, Any], name: str) -> str:
    """Mean and seeds of each recipe on one text, as lines."""
    lines = [f"{name}: loss in nats a character on the held-out text; CPU minutes of a run"]
    for recipe in RECIPES:
        runs = [r for r in log["runs"] if (r["text"], r["recipe"]) == (name, recipe)]
        if not runs:
            continue
        losses = [r["test loss"] for r in runs]
        minutes = sum(r["CPU minutes on one thread"] for r in runs) / len(runs)
        each = " ".join(f"{loss:.3f}" for loss in losses)
        lines.append(f"{recipe:24} {sum(losses) / len(losses):.3f}   ({each})   {minutes:.1f} min")
    if name in log["pace"]:
        first, *_, last = log["pace"][name].values()
        lines.append(f"CPU time of a step, {BEST} / {next(iter(LADDER))}: {last / first:.2f}")
    return "\n".join(lines)


def main() -> None:
    """Train, measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--benchmark", type=Path, help="a text file to train on as well")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--folder", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small, and the result does not depend on the cores

    path = arguments.folder / "characters.json"
    log = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    log = {"runs": [], "pace": {}} | log
    texts = {PLAYS: Text(*shakespeare())}
    if arguments.benchmark is not None:
        texts[BENCHMARK] = the_benchmark(arguments.benchmark)
    # The two recipes that are compared take turns, so that they find the machine alike.
    ends = [next(iter(LADDER)), BEST]
    both = [*ends, next(iter(CONTROLS))]  # on all texts
    wanted = [(name, r, s) for s in arguments.seeds for name in texts for r in both]
    wanted += [(PLAYS, r, s) for s in arguments.seeds for r in RECIPES if r not in both]
    wanted = [w for w in wanted if w[1] in arguments.recipes]

    def write() -> None:
        log["command"] = "python tools/train_characters.py"
        log.update(machine())
        path.write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")

    done = {(r["text"], r["recipe"], r["seed"]) for r in log["runs"]}
    for name, recipe, seed in tqdm([w for w in wanted if w not in done]):
        log["runs"].append(run(texts[name], name, recipe, seed, arguments.steps, arguments.folder))
        write()
    for name, text in texts.items():
        if name not in log["pace"]:
            log["pace"][name] = pace(text, ends, 100)
            write()
    keep_best(log, arguments.folder)
    write()
    for name in texts:
        print(table(log, name), end="\n\n")


def keep_best(log: dict[str, Any], folder: Path) -> None:
    """Keep the weights of the seed with the lowest validation loss, and their checksum."""
    runs = [r for r in log["runs"] if (r["text"], r["recipe"]) == (PLAYS, BEST)]
    kept, path = folder / "characters.safetensors", folder / "seed{}.safetensors"
    fresh = [r for r in runs if Path(str(path).format(r["seed"])).exists()]
    if not fresh or len(fresh) < len(runs):
        return  # the choice was made when all of them were there
    best = min(fresh, key=lambda r: r["validation loss"][-1][1])
    Path(str(path).format(best["seed"])).replace(kept)
    for r in fresh:
        Path(str(path).format(r["seed"])).unlink(missing_ok=True)
    log["weights"] = {
        "file": kept.name,
        "recipe": BEST,
        "seed": best["seed"],
        "sha256": checksum(kept),
    }


if __name__ == "__main__":
    main()
