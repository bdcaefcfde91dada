"""Train the English-French models of chapter 06 and measure them on held-out sentences.

    python tools/train_translation.py            # trains, writes the weights and their log

The three models see the same batches in the same order for the same number of steps. Settings were
chosen on the validation pairs; the test pairs are translated once, at the end.
"""

import argparse
import hashlib
import json
import platform
import time
from pathlib import Path

import sacrebleu
import torch
from torch import Tensor

from attention_lib.data import english_french
from attention_lib.losses import cross_entropy
from attention_lib.models.seq2seq import Seq2Seq, Seq2SeqConfig
from attention_lib.models.translation import CONTEXTS, WEIGHTS, Translator, build, load
from attention_lib.text import END, PAD, START, Subwords, pad
from attention_lib.training import train, warmup_then_cosine

PIECES, EMBEDDING, WIDTH, DROPOUT = 2000, 96, 160, 0.3
STEPS, BATCH, RATE, WARMUP, SMOOTHING = 3000, 64, 3e-3, 200, 0.1
BEAM = 4
CHECKPOINTS = Path("build")  # a run that was stopped goes on from here

Batch = tuple[Tensor, Tensor, Tensor]


class Numbers:
    """Sentence pairs as numbers, and batches of them."""

    def __init__(self, pairs: list[tuple[str, str]], source: Subwords, target: Subwords) -> None:
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


def loss(model: Seq2Seq, batch: Batch, smoothing: float = SMOOTHING) -> Tensor:
    """Mean surprise at the next piece of the true translation."""
    source, lengths, target = batch
    logits = model(source, lengths, target[:, :-1])
    return cross_entropy(logits, target[:, 1:], ignore_index=PAD, label_smoothing=smoothing)


def bleu(translator: Translator, pairs: list[tuple[str, str]]) -> dict[str, str]:
    """Corpus BLEU with its bootstrap interval, overall and by length of the English sentence."""
    found = translator.translate([english for english, _ in pairs], width=BEAM)
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


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--contexts", nargs="+", default=list(CONTEXTS), choices=CONTEXTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small, and the result does not depend on the cores

    data = english_french()
    source = Subwords.train([english for english, _ in data.train], PIECES)
    target = Subwords.train([french for _, french in data.train], PIECES)
    training = Numbers(data.train, source, target)
    validation = Numbers(data.validation, source, target).rows(list(range(len(data.validation))))
    config = Seq2SeqConfig(len(source), len(target), EMBEDDING, WIDTH, DROPOUT)

    for context in arguments.contexts:
        model = build(context, config, arguments.seed)
        translator = Translator(context, config, model, source, target)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98))
        checkpoint = CHECKPOINTS / f"translation_{context}_{arguments.seed}.safetensors"
        checkpoint.parent.mkdir(exist_ok=True)
        begin = time.process_time()
        history = train(
            model, loss, training.batch, optimizer,
            steps=arguments.steps, seed=arguments.seed, clip=1.0,
            schedule=warmup_then_cosine(WARMUP, arguments.steps),
            validate=lambda model: loss(model, validation, smoothing=0.0).item(),
            validate_every=500,
            checkpoint=checkpoint,
            checkpoint_every=500,
        )  # fmt: skip
        minutes = (time.process_time() - begin) / 60
        exact = bleu(translator, data.test)
        translator.save(arguments.folder)
        path = arguments.folder / f"seq2seq_{context}.safetensors"
        log = {
            "command": f"python tools/train_translation.py --seed {arguments.seed}",
            "seed": arguments.seed,
            "steps": arguments.steps,
            "batch": BATCH,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "CPU minutes on one thread": round(minutes, 1),
            "torch": torch.__version__,
            "processor": platform.machine(),
            "validation loss": [(step, round(value, 3)) for step, value in history.validation],
            f"test BLEU, beam {BEAM}": exact,
            f"test BLEU, beam {BEAM}, weights in half precision": bleu(
                load(context, arguments.folder), data.test
            ),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        text = json.dumps(log, indent=1, ensure_ascii=False)
        (arguments.folder / f"seq2seq_{context}.json").write_text(text + "\n", encoding="utf-8")
        print(context, text, flush=True)
        checkpoint.unlink()


if __name__ == "__main__":
    main()
