"""A small training run that test_training.py starts in a process of its own and kills.

    python killed_run.py CHECKPOINT OPTIMIZER WHERE

WHERE says how it dies: ``step`` prints each step and waits to be killed from outside, ``write``
kills itself with half of the third checkpoint on the disk, ``rename`` with all of it.
"""

import os
import signal
import sys
import time
from itertools import count
from pathlib import Path

import torch
from torch import Tensor, nn

from attention_lib.training import History, train, warmup_then_inverse_sqrt

STEPS, EVERY, VOCABULARY, WIDTH = 40, 5, 7, 11


class Tied(nn.Module):
    """Embedding, dropout, a normalisation with buffers; the output weights are the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        # A weight whose rows are not contiguous in memory.
        self.hidden = nn.Parameter(torch.randn(13, WIDTH).mT)
        self.rest = nn.Sequential(
            nn.BatchNorm1d(13), nn.Dropout(0.3), nn.GELU(), nn.Linear(13, WIDTH, bias=False)
        )
        self.output = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B,) to logits (B, VOCABULARY)."""
        logits: Tensor = self.output(self.rest(self.embedding(tokens) @ self.hidden))
        return logits


OPTIMIZERS = {
    "adamw": lambda matrices, others: torch.optim.AdamW(
        [{"params": matrices}, {"params": others, "lr": 0.02, "weight_decay": 0.0}], lr=0.01
    ),
    "sgd": lambda matrices, others: torch.optim.SGD([*matrices, *others], lr=0.05, momentum=0.9),
    "plain": lambda matrices, others: torch.optim.SGD([*matrices, *others], lr=0.05),
}
if hasattr(torch.optim, "Muon"):
    OPTIMIZERS["muon"] = lambda matrices, others: torch.optim.Muon(matrices, lr=0.02)


def batch(generator: torch.Generator) -> Tensor:
    """Tokens to be predicted from the token before, (B,)."""
    return torch.randint(VOCABULARY, (17,), generator=generator)


def loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Each token is followed by its successor."""
    return nn.functional.cross_entropy(model(tokens), (tokens + 1) % VOCABULARY)


def run(checkpoint: Path | None, optimizer: str = "adamw", **other) -> tuple[nn.Module, History]:
    """The run; every call has the same settings but for ``other``."""
    with torch.random.fork_rng([]):
        torch.manual_seed(other.pop("weights", 1))
        model = Tied()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    settings = {
        "steps": STEPS, "seed": 3, "schedule": warmup_then_inverse_sqrt(10), "clip": 1.0,
        "validate": lambda model: model(torch.arange(VOCABULARY)).sum().item(),
        "validate_every": 7, "checkpoint": checkpoint,
        "checkpoint_every": None if checkpoint is None else EVERY,
    }  # fmt: skip
    built = OPTIMIZERS[optimizer](matrices, others)
    return model, train(model, other.pop("loss", loss), batch, built, **(settings | other))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Run and be killed."""
    torch.set_num_threads(1)
    path, optimizer, where = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    steps, files, fsync, replace = count(1), count(1), os.fsync, os.replace

    def print_step(model, tokens):
        print(next(steps), flush=True)
        time.sleep(0.05)
        return loss(model, tokens)

    def cut_the_third(number):
        if next(files) == 3:
            os.ftruncate(number, os.fstat(number).st_size // 2)
            _die()
        fsync(number)

    def leave_the_third(*names):
        if next(files) == 3:
            _die()
        replace(*names)

    if where == "write":
        os.fsync = cut_the_third
    elif where == "rename":
        os.replace = leave_the_third
    run(path, optimizer, loss=print_step if where == "step" else loss)


if __name__ == "__main__":
    main()
