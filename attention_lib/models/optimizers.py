"""Optimizers and a schedule: AdamW, Muon beside it, several as one. Chapter 11."""

from collections.abc import Callable
from typing import Any

from torch.optim import AdamW, Muon, Optimizer

from attention_lib._checks import check_count
from attention_lib.models.gpt import GPT


class Together(Optimizer):
    """Several optimizers that behave as one, each with parameters of its own.

    Args:
        parts: The optimizers.

    Source:
        Chapter 11.
    """

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Let each part make its step."""
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put a saved state back into all parts."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Give the parts this object's groups and state, so that a change here is one there."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state


def adamw(model: GPT, *, rate: float) -> Optimizer:
    """AdamW as torch has it, with weight decay on matrices only.

    The decay of a step is the rate times 0.1; in the paper's algorithm it is not multiplied by the
    rate.

    Args:
        model: The model.
        rate: The learning rate at the peak of the schedule.

    Returns:
        The optimizer.

    Source:
        Loshchilov and Hutter (2019), algorithm 2. Chapter 11.
    """
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim != 2], "weight_decay": 0.0},
    ]
    return AdamW([g for g in groups if g["params"]], lr=rate, betas=(0.9, 0.99), fused=True)


def muon_and_adamw(
    model: GPT, *, rate: float, muon_rate: float, decay: float, steps: int = 3
) -> Optimizer:
    r"""Muon for the matrices inside the blocks, AdamW for embeddings and gains.

    Muon replaces the averaged gradient of a matrix by (nearly) the closest matrix with orthogonal
    rows or columns, so that all its directions are learned at one speed:

    .. math:: G = U \Sigma V^\top \;\mapsto\; U V^\top

    Args:
        model: The model.
        rate: The learning rate of AdamW.
        muon_rate: The learning rate of Muon.
        decay: Weight decay of Muon.
        steps: Newton-Schulz steps.

    Returns:
        The optimizer.

    Source:
        Jordan et al. (2024). Chapter 11.
    """
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    inner = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inner]
    return Together(
        Muon(matrices, lr=muon_rate, weight_decay=decay, momentum=0.95, ns_steps=steps),
        AdamW(others, lr=rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
    )


def warmup_then_linear(warmup: int, steps: int) -> Callable[[int], float]:
    r"""Rise in a straight line to 1 at step ``warmup``, then fall in another one towards 0.

    .. math::
        f(t) = \frac{t}{w} \;\; (t \le w), \qquad
        f(t) = \frac{n + 1 - t}{n + 1 - w} \;\; (w \le t \le n)

    Args:
        warmup: :math:`w`, the step with the peak; at least 1.
        steps: :math:`n`, the last step, at least ``warmup``.

    Returns:
        A schedule for :func:`attention_lib.training.train`.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If ``warmup`` is below 1 or ``steps`` below ``warmup``.

    Source:
        Chapter 11.
    """
    check_count("warmup", warmup, least=1)
    check_count("steps", steps, least=warmup)
    return lambda step: min(step / warmup, (steps + 1 - step) / (steps + 1 - warmup))
