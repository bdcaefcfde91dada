"""Train the classifiers of chapter 13 and measure them on 1,000 held-out digits.

    python tools/train_vit.py            # the shipped Vision Transformer, and two more seeds
    python tools/train_vit.py fine       # one with smaller patches
    python tools/train_vit.py tune       # optimizers and learning rates, on validation digits
    python tools/train_vit.py compare    # a ViT and a convolutional network on fewer images

Settings were chosen on the 500 validation digits; the test digits are looked at once, at the end.
In the comparison both see the same images, distorted alike, for the same number of steps. With the
fewest images the ViT has also twice as many, which takes the time of the convolutional network.
Last, the squares of all images are put into another order, the same for every image. A comparison
that was stopped goes on where its log ends.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from train_log import checksum, machine

from attention_lib.data import digits, jitter, split
from attention_lib.models import digit_classifiers
from attention_lib.models.digit_classifiers import CONFIGS, KINDS, WEIGHTS, accuracy, build
from attention_lib.training import train, warmup_then_cosine

SEEDS = (0, 1, 2)
STEPS, BATCH, WARMUP = {"vit": 2000, "fine": 1600}, 64, 100
COMPARED, COMPARED_STEPS, SIZES = ("vit", "cnn"), 500, (100, 300, 1000, 3500)
TUNED_STEPS, TUNED_IMAGES = 300, 1000
TUNED = {
    ("vit", "adamw"): (1e-3, 3e-3, 1e-2),
    ("vit", "muon"): (3e-3, 1e-2, 3e-2),
    ("cnn", "adamw"): (1e-3, 3e-3, 1e-2),
}
CHECKPOINTS = Path("build")  # a run that was stopped goes on from here

Batch = tuple[Tensor, Tensor]
Change = Callable[[Tensor], Tensor]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean surprise at the true class."""
    images, labels = batch
    return cross_entropy(model(images), labels)


class Digits:
    """The fixed split: 3,500 digits to train on, 500 for validation, 1,000 for the test."""

    def __init__(self) -> None:
        images, self.labels = digits()
        self.images = images.unflatten(-1, (1, 28, 28))
        self.train, self.validation, self.test = split(5000, (3500, 500, 1000), seed=0)


def in_order(images: Tensor) -> Tensor:
    """Images as they are."""
    return images


def scrambled(images: Tensor) -> Tensor:
    """Images whose 4 x 4 squares of 7 x 7 pixels stand in another order, the same for all."""
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    squares = images.unflatten(-1, (4, 7)).unflatten(-3, (4, 7))  # (N, 1, 4, 7, 4, 7)
    squares = squares.transpose(-3, -2).flatten(2, 3)[:, :, order]  # (N, 1, 16, 7, 7)
    return squares.unflatten(2, (4, 4)).transpose(-3, -2).reshape(images.shape)


def fit(
    data: Digits,
    kind: str,
    seed: int,
    count: int,
    steps: int,
    *,
    change: Change = in_order,
    optimizer: Callable[[Any], Optimizer] = digit_classifiers.optimizer,
    trial: str = "",
) -> tuple[nn.Module, Any]:
    """Train on the first ``count`` training digits; the model, and what was measured.

    A run with the name of a trial compares settings: it does not look at the test digits.
    """
    rows = data.train[:count]

    def batch(generator: torch.Generator) -> Batch:
        some = rows[torch.randint(count, (BATCH,), generator=generator)]
        return change(jitter(data.images[some], generator)), data.labels[some]

    def measure(model: nn.Module, rows: Tensor) -> float:
        return accuracy(model, change(data.images[rows]), data.labels[rows])

    model = build(kind, seed)
    name = f"digits_{kind}_{change.__name__}_{count}_{steps}_{seed}{trial}"
    checkpoint = CHECKPOINTS / f"{name}.safetensors"
    checkpoint.parent.mkdir(exist_ok=True)
    history = train(
        model, loss, batch, optimizer(model),
        steps=steps, seed=seed, clip=1.0,
        schedule=warmup_then_cosine(min(WARMUP, steps // 10), steps),
        validate=lambda model: measure(model, data.validation),
        validate_every=max(steps // 5, 1),
        checkpoint=checkpoint,
        checkpoint_every=max(steps // 5, 1),
    )  # fmt: skip
    measured = {
        "seed": seed,
        "CPU minutes on one thread": round(history.cpu_seconds / 60, 2),
        "validation accuracy": [(step, round(value, 1)) for step, value in history.validation],
    }
    if not trial:
        measured["test accuracy"] = round(measure(model, data.test), 1)
    checkpoint.unlink()
    return model, measured


def about(command: str) -> dict[str, Any]:
    """What a log says besides the measurements."""
    return {
        "command": f"python tools/train_vit.py {command}".strip(),
        "batch": BATCH,
        **machine(),
        "parameters": {kind: sum(p.numel() for p in build(kind, 0).parameters()) for kind in KINDS},
    }


def write(path: Path, log: dict[str, Any]) -> None:
    """Write a log."""
    path.write_text(json.dumps(log, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def ship(data: Digits, kind: str, seeds: tuple[int, ...], folder: Path, steps: int) -> None:
    """Train with each seed; keep the weights of the first, in half precision."""
    runs = []
    for seed in seeds:
        model, measured = fit(data, kind, seed, len(data.train), steps)
        if seed == seeds[0]:
            tensors = {name: x.half().contiguous() for name, x in model.state_dict().items()}
            path = folder / f"digits_{kind}.safetensors"
            save_file(tensors, path, metadata={"config": json.dumps(asdict(CONFIGS[kind]))})
            path.chmod(0o644)
            half = accuracy(
                digit_classifiers.load(kind, folder), data.images[data.test], data.labels[data.test]
            )
            measured["test accuracy, weights in half precision"] = round(half, 1)
            measured["sha256"] = checksum(path)
        runs.append(measured)
        print(measured, flush=True)
    write(
        folder / f"digits_{kind}.json",
        about("" if kind == "vit" else kind) | {"steps": steps, "runs": runs},
    )


def tune(data: Digits, folder: Path, steps: int) -> None:
    """Train both classifiers with several optimizers and rates; the test digits stay unseen."""
    runs = []
    for (kind, name), rates in TUNED.items():
        for rate in rates:
            chosen, trial = partial(getattr(digit_classifiers, name), rate=rate), f"_{name}_{rate}"
            _, measured = fit(
                data, kind, SEEDS[0], TUNED_IMAGES, steps, optimizer=chosen, trial=trial
            )
            runs.append({"kind": kind, "optimizer": name, "rate": rate, **measured})
            print(runs[-1], flush=True)
    log = about("tune") | {"steps": steps, "images": TUNED_IMAGES, "runs": runs}
    write(folder / "digits_tuned.json", log)


def compare(data: Digits, folder: Path, steps: int) -> None:
    """Train both classifiers on fewer and fewer images, each with every seed."""
    path = folder / "digits_compared.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    jobs = [(kind, count, steps, in_order) for count in SIZES for kind in COMPARED]
    jobs += [("vit", SIZES[0], 2 * steps, in_order)]
    jobs += [(kind, SIZES[-1], steps, scrambled) for kind in COMPARED]
    for kind, count, budget, change in jobs:
        for seed in SEEDS:
            run = {"kind": kind, "images": count, "steps": budget, "squares": change.__name__}
            run["seed"] = seed
            if any(run.items() <= done.items() for done in runs):
                continue
            runs.append(run | fit(data, kind, seed, count, budget, change=change)[1])
            print(runs[-1], flush=True)
            write(path, about("compare") | {"runs": runs})


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    choices = ["vit", "fine", "tune", "compare"]
    parser.add_argument("what", nargs="?", default="vit", choices=choices)
    parser.add_argument("--folder", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small, and the result does not depend on the cores
    what, folder, steps = arguments.what, arguments.folder, arguments.steps
    if what == "compare":
        compare(Digits(), folder, steps or COMPARED_STEPS)
    elif what == "tune":
        tune(Digits(), folder, steps or TUNED_STEPS)
    else:
        seeds = SEEDS if what == "vit" else SEEDS[:1]
        ship(Digits(), what, seeds, folder, steps or STEPS[what])


if __name__ == "__main__":
    main()
