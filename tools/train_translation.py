"""Train the English-French models of chapters 06 and 10 and measure them on held-out sentences.

    python tools/train_translation.py            # trains, writes the weights and their log
    python tools/train_translation.py --speed    # times steps of the models side by side, no more

The three recurrent models see the same batches in the same order; the Transformer sees batches made
in the same way, for the same number of steps. ``--speed`` says how much longer that takes it, and
``--models transformer --steps 2300 --folder FOLDER`` gives it no more time than the additive model;
the logs of two such runs are kept as ``seq2seq_transformer_short*.json``, their weights are not.
Settings were chosen on the validation pairs; the test pairs are translated once, at the end.
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sacrebleu
import torch
from torch import Tensor
from train_log import checksum, machine

from attention_lib.data import english_french
from attention_lib.losses import cross_entropy
from attention_lib.models.seq2seq import Seq2SeqConfig
from attention_lib.models.transformer import TransformerConfig
from attention_lib.models.translation import FAMILIES, WEIGHTS, Translator, build, load
from attention_lib.text import END, PAD, START, Subwords, pad
from attention_lib.training import train, warmup_then_cosine

PIECES, BATCH, SMOOTHING = 2000, 64, 0.1
BEAM = 4
CHECKPOINTS = Path("build")  # a run that was stopped goes on from here

Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a model is made and trained."""

    config: Any
    steps: int
    rate: float
    warmup: int


def recipe(name: str, source: int, target: int) -> Recipe:
    """The settings of a model, for the given sizes of the vocabularies."""
    if name == "transformer":
        sizes = TransformerConfig(
            source, target, width=96, layers=2, heads=4, hidden=192, dropout=0.2
        )
        return Recipe(sizes, steps=3000, rate=3e-3, warmup=200)
    return Recipe(Seq2SeqConfig(source, target, 96, 160, 0.3), steps=3000, rate=3e-3, warmup=200)


class Numbers:
    """Sentence pairs as numbers, and batches of them."""

    def __init__(self, pairs: list[tuple[str, str]], source: Subwords, target: Subwords) -> None:
        self.vocabularies = source, target
        self.source = [[*source.encode(english), END] for english, _ in pairs]
        self.target = [[START, *target.encode(french), END] for _, french in pairs]
        self.lengths = torch.tensor([len(row) for row in self.target])

    def rows(self, rows: list[int]) -> Batch:
        """Padded source, its lengths, padded target."""
        source, lengths = pad([self.source[row] for row in rows])
        return source, lengths, pad([self.target[row] for row in rows])[0]

    def batch(self, generator: torch.Generator) -> Batch:
        """Random pairs of similar length: one eighth, by length, of eight batches."""
        rows = torch.randint(len(self.source), (8 * BATCH,), generator=generator)
        rows = rows[self.lengths[rows].argsort(stable=True)].view(8, BATCH)
        which = int(torch.randint(8, (), generator=generator))
        return self.rows(rows[which].tolist())


def loss(model: torch.nn.Module, batch: Batch, smoothing: float = SMOOTHING) -> Tensor:
    """Mean surprise at the next piece of the true translation."""
    source, lengths, target = batch
    logits = model(source, lengths, target[:, :-1])
    return cross_entropy(logits, target[:, 1:], ignore_index=PAD, label_smoothing=smoothing)


def bleu(translator: Translator, pairs: list[tuple[str, str]], width: int = BEAM) -> dict[str, str]:
    """Corpus BLEU with its bootstrap interval, overall and by length of the English sentence."""
    found = translator.translate([english for english, _ in pairs], width=width)
    lengths = [len(english.split()) for english, _ in pairs]
    scores = {}
    for name, least, most in [("all", 1, 99), ("up to 8 words", 1, 8), ("more than 8", 9, 99)]:
        rows = [row for row, length in enumerate(lengths) if least <= length <= most]
        metric = sacrebleu.BLEU()
        score = metric.corpus_score(
            [found[row] for row in rows], [[pairs[row][1] for row in rows]], n_bootstrap=1000
        )
        scores[name] = f"{score._mean:.1f} ± {score._ci:.1f} ({len(rows)} sentences)"
    return scores


def speed(names: list[str], folder: Path, training: Numbers) -> None:
    """Median CPU time of a training step of each model, the models taking turns."""
    sizes = [len(vocabulary) for vocabulary in training.vocabularies]
    models = {name: build(name, recipe(name, *sizes).config, seed=0) for name in names}
    optimizers = {name: torch.optim.AdamW(model.parameters()) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(30):
        for name, model in models.items():
            begin = time.process_time()
            train(model, loss, training.batch, optimizers[name], steps=2, seed=turn, clip=1.0)
            seconds[name].append((time.process_time() - begin) / 2)
    log = {
        "command": "python tools/train_translation.py --speed",
        **machine(),
        "milliseconds a step": {
            name: round(1000 * statistics.median(some[5:]), 1) for name, some in seconds.items()
        },
    }
    (folder / "seq2seq_speed.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    print(log)


def learn(
    name: str, seed: int, steps: int | None, folder: Path, training: Numbers, validation: Batch
) -> None:
    """Train one model, write its weights and its log."""
    data, source, target = english_french(), training.vocabularies[0], training.vocabularies[1]
    chosen = recipe(name, len(source), len(target))
    given = "" if steps is None else f" --steps {steps}"
    steps = chosen.steps if steps is None else steps
    model = build(name, chosen.config, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=chosen.rate, betas=(0.9, 0.98))
    checkpoint = CHECKPOINTS / f"translation_{name}_{seed}.safetensors"
    checkpoint.parent.mkdir(exist_ok=True)
    history = train(
        model, loss, training.batch, optimizer,
        steps=steps, seed=seed, clip=1.0,
        schedule=warmup_then_cosine(chosen.warmup, steps),
        validate=lambda model: loss(model, validation, smoothing=0.0).item(),
        validate_every=500,
        checkpoint=checkpoint,
        checkpoint_every=500,
    )  # fmt: skip
    minutes = history.cpu_seconds / 60
    translator = Translator(name, chosen.config, model, source, target)
    exact = bleu(translator, data.test)
    translator.save(folder)
    path = folder / f"seq2seq_{name}.safetensors"
    log = {
        "command": f"python tools/train_translation.py --models {name} --seed {seed}{given}",
        "seed": seed,
        "steps": steps,
        "batch": BATCH,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "CPU minutes on one thread": round(minutes, 1),
        **machine(),
        "validation loss": [(step, round(value, 3)) for step, value in history.validation],
        "test BLEU, greedy": bleu(translator, data.test, width=1),
        f"test BLEU, beam {BEAM}": exact,
        f"test BLEU, beam {BEAM}, weights in half precision": bleu(load(name, folder), data.test),
        "sha256": checksum(path),
    }
    text = json.dumps(log, indent=1, ensure_ascii=False)
    (folder / f"seq2seq_{name}.json").write_text(text + "\n", encoding="utf-8")
    print(name, text, flush=True)
    checkpoint.unlink()


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, help="in place of those of the recipe")
    parser.add_argument("--speed", action="store_true", help="time steps, train nothing to the end")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small, and the result does not depend on the cores

    data = english_french()
    source = Subwords.train([english for english, _ in data.train], PIECES)
    target = Subwords.train([french for _, french in data.train], PIECES)
    training = Numbers(data.train, source, target)
    validation = Numbers(data.validation, source, target).rows(list(range(len(data.validation))))
    if arguments.speed:
        speed(arguments.models, arguments.folder, training)
        return
    for name in arguments.models:
        learn(name, arguments.seed, arguments.steps, arguments.folder, training, validation)


if __name__ == "__main__":
    main()
