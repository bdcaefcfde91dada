"""Train the small BERT of chapter 12 to fill gaps in Shakespeare's plays.

    python tools/train_bert.py            # trains, writes the weights and their log

Settings were chosen on the validation plays; the test plays are read once, at the end.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer
from train_log import checksum, machine

from attention_lib import sinusoidal_table
from attention_lib.losses import cross_entropy
from attention_lib.models.bert import BertConfig, MaskedLM, hide_tokens
from attention_lib.models.characters import Together
from attention_lib.models.gap_filler import (
    WEIGHTS,
    GapFiller,
    build,
    load,
    play_speeches,
    simplify,
)
from attention_lib.text import END, Subwords
from attention_lib.training import in_mode, train, warmup_then_cosine

PIECES, LENGTH, WIDTH, LAYERS, HEADS = 2048, 32, 128, 4, 4
STEPS, BATCH, RATE, MUON_RATE, WARMUP = 2000, 64, 3e-3, 2e-2, 100
SHARE = 0.3  # hidden in training: a short run needs many questions; measured at the usual 0.15
CHECKPOINTS = Path("build")  # a run that was stopped goes on from here

Batch = tuple[Tensor, Tensor, Tensor]


def hide(
    tokens: Tensor, filler: GapFiller, generator: torch.Generator, share: float = 0.15
) -> Batch:
    """True tokens, what the model sees, and where it is asked."""
    shown, chosen = hide_tokens(
        tokens,
        tokens != END,
        mask_token=filler.mask_token,
        vocabulary=len(filler.words) + 1,
        generator=generator,
        share=share,
    )
    return tokens, shown, chosen


def loss(model: MaskedLM, batch: Batch) -> Tensor:
    """Mean surprise at the chosen tokens."""
    tokens, shown, chosen = batch
    return cross_entropy(model.head(model.bert(shown)[chosen]), tokens[chosen])


def optimizer(model: MaskedLM) -> Optimizer:
    """Muon for the matrices inside the blocks, AdamW for the rest, as in chapter 11."""
    matrices = [p for p in model.bert.blocks.parameters() if p.ndim == 2]
    inner = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inner]
    return Together(
        Muon(matrices, lr=MUON_RATE, weight_decay=0.0),
        AdamW(others, lr=RATE, betas=(0.9, 0.98), fused=True),
    )


def windows(stream: Tensor) -> Tensor:
    """Windows side by side; a rest at the end is dropped."""
    return stream[: len(stream) // LENGTH * LENGTH].view(-1, LENGTH)


def measure(filler: GapFiller, batch: Batch) -> dict[str, float]:
    """Loss in nats and share right, over all chosen tokens, a hundred windows at a time."""
    surprise, right, count = 0.0, 0, 0
    with torch.no_grad(), in_mode(filler.model, training=False):
        for tokens, shown, chosen in zip(*(part.split(100) for part in batch), strict=True):
            logits = filler.model.head(filler.model.bert(shown)[chosen])
            surprise += cross_entropy(logits, tokens[chosen]).item() * len(logits)
            right += int((logits.argmax(dim=-1) == tokens[chosen]).sum())
            count += len(logits)
    return {"loss": round(surprise / count, 3), "percent right": round(100 * right / count, 1)}


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small, and the result does not depend on the cores

    texts = {split: play_speeches(split) for split in ("training", "validation", "test")}
    words = Subwords.train(map(simplify, texts["training"]), PIECES - 1)
    config = BertConfig(len(words) + 1, LENGTH, WIDTH, LAYERS, HEADS)
    filler = GapFiller(build(config, arguments.seed), words)
    model = filler.model
    streams = {split: filler.stream(speeches) for split, speeches in texts.items()}
    training = streams["training"]
    held_out = {
        split: hide(windows(streams[split]), filler, torch.Generator().manual_seed(0))
        for split in ("validation", "test")
    }
    # Start from what counting knows: how frequent each piece is.
    counts = training.bincount(minlength=config.tokens) + 1.0
    frequency = (counts / counts.sum()).log()
    model.bias.data.copy_(frequency)
    # Waves of many lengths, as large as the other embeddings: near places start out alike.
    model.bert.positions.table.data.copy_(0.02 * 2**0.5 * sinusoidal_table(LENGTH, WIDTH))

    def batch(generator: torch.Generator) -> Batch:
        start = torch.randint(len(training) - LENGTH, (BATCH, 1), generator=generator)
        return hide(training[start + torch.arange(LENGTH)], filler, generator, SHARE)

    checkpoint = CHECKPOINTS / f"bert_plays_{arguments.seed}.safetensors"
    checkpoint.parent.mkdir(exist_ok=True)
    history = train(
        model, loss, batch, optimizer(model), steps=arguments.steps, seed=arguments.seed, clip=1.0,
        schedule=warmup_then_cosine(WARMUP, arguments.steps),
        validate=lambda _: measure(filler, held_out["validation"])["loss"], validate_every=500,
        checkpoint=checkpoint, checkpoint_every=250,
    )  # fmt: skip
    minutes = history.cpu_seconds / 60
    path = filler.save(arguments.folder)
    true, _, chosen = held_out["test"]
    log = {
        "command": f"python tools/train_bert.py --seed {arguments.seed}",
        "seed": arguments.seed,
        "steps": arguments.steps,
        "batch": f"{BATCH} windows of {LENGTH} pieces, {SHARE:.0%} chosen",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "CPU minutes on one thread": round(minutes, 1),
        **machine(),
        "validation loss": [(step, round(value, 3)) for step, value in history.validation],
        "test, frequency alone": {"loss": round(-frequency[true[chosen]].mean().item(), 3)},
        "test": measure(filler, held_out["test"]),
        "test, weights in half precision": measure(load(arguments.folder), held_out["test"]),
        "sha256": checksum(path),
    }
    text = json.dumps(log, indent=1)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    print(text, flush=True)
    checkpoint.unlink()


if __name__ == "__main__":
    main()
