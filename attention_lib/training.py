"""One small training loop: seeds, schedule, clipping, validation, exact resume. Chapter 06.

A run is a function of its arguments and of the weights it starts from. It draws from two sources of
random numbers, one for the batches and one for what happens inside the model (dropout), both set
from ``seed`` and both part of a checkpoint. So a run that was killed and started again ends with
the weights of a run that was not, bit by bit, on the same machine with the same versions.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from attention_lib._checks import check_count, check_positive, shape
from attention_lib.checkpoints import Checkpoint


@dataclass(frozen=True)
class History:
    """What a run has measured: the loss of each step, and ``(step, value)`` of each validation.

    ``cpu_seconds`` is the time that this process, and those before it that wrote the checkpoint,
    have computed in the run; two histories are equal when all the rest is.

    Source:
        Chapter 06.
    """

    losses: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    cpu_seconds: float = field(default=0.0, compare=False)


def train(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    batch: Callable[[torch.Generator], Any],
    optimizer: Optimizer,
    *,
    steps: int,
    seed: int,
    schedule: Callable[[int], float] | None = None,
    clip: float | None = None,
    validate: Callable[[Any], float] | None = None,
    validate_every: int | None = None,
    checkpoint: Path | str | None = None,
    checkpoint_every: int | None = None,
    progress: bool = True,
) -> History:
    """Train ``model`` in place: draw a batch, compute the loss, step the optimizer, repeat.

    The global state of torch's random numbers, the learning rates of ``optimizer`` and the mode of
    ``model`` are afterwards what they were. If the file ``checkpoint`` exists, the run goes on from
    there; what the functions compute is not recorded, so they must be those of the first run.

    Args:
        model: The module to train, in training mode, on a CPU or on CUDA devices.
        loss: ``loss(model, batch)``, a tensor with one number.
        batch: ``batch(generator)``, one training batch, random only through the generator.
        optimizer: Holds parameters of ``model`` and keeps its state in tensors.
        steps: Number of updates, at least 1.
        seed: Sets the batches and the dropout, not the weights that ``model`` starts with; at
            least 0.
        schedule: ``schedule(step)`` multiplies the learning rates in steps 1, 2, ..., ``steps``.
        clip: The largest norm of all gradients together; longer ones are scaled down to it.
        validate: ``validate(model)``, one number, without gradients and in evaluation mode. It
            changes nothing in the training.
        validate_every: Validate after that many steps, and after the last in any case.
        checkpoint: A file in an existing folder, in safetensors format. It is written anew after
            the last step, and at no time half written.
        checkpoint_every: Write it also after that many steps.
        progress: Show a bar where somebody is watching.

    Returns:
        The losses and validations of the whole run, from step 1 also after a resume.

    Raises:
        TypeError: If a number has the wrong type, ``loss`` does not return a tensor, or a
            checkpoint would have to hold something that is not a tensor.
        ValueError: If a number is out of range, ``optimizer`` holds foreign parameters, ``loss``
            returns several numbers, or ``checkpoint`` is not a file of the same run.
        FloatingPointError: If the loss, or with ``clip`` the norm of the gradients, is not finite;
            the weights are those of the step before.

    Source:
        Pascanu et al. (2013), section 3.2, for clipping by the norm. Chapter 06.
    """
    check_count("steps", steps, least=1)
    check_count("seed", seed, least=0)
    _check_pairs(validate, validate_every, checkpoint, checkpoint_every)
    if clip is not None:
        check_positive("clip", clip)
    factors = _factors(schedule, steps)
    _check_belonging(model, optimizer)
    rates = [group["lr"] for group in optimizer.param_groups]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    history, path = History(), None if checkpoint is None else _file(checkpoint)

    with torch.random.fork_rng(devices), in_mode(model, training=True):
        sources = {"batch": torch.Generator(), "cpu": torch.default_generator}
        sources |= {f"cuda{index}": torch.cuda.default_generators[index] for index in devices}
        for source in sources.values():
            source.manual_seed(seed)
        settings = {"seed": seed, "steps": steps, "clip": clip, "validate_every": validate_every}
        saved = Checkpoint(model, optimizer, sources, settings | {"schedule": factors})
        if path is not None and path.exists():
            measured = saved.load(path)
            validation = [(step, value) for step, value in measured["validation"]]
            spent = measured.get("cpu_seconds", 0.0)
            history = History(measured["losses"], validation, spent)
        done, begin = len(history.losses), time.process_time() - history.cpu_seconds
        watcher = _watcher() if progress else None
        try:
            with tqdm(
                range(done + 1, steps + 1),
                initial=done, total=steps, leave=False, file=watcher, disable=watcher is None,
            ) as bar:  # fmt: skip
                for step in bar:
                    _set_rates(optimizer, rates, factors[step - 1])
                    value = _update(model, loss, batch(sources["batch"]), optimizer, clip, step)
                    history.losses.append(value)
                    bar.set_postfix(loss=f"{value:.3f}", refresh=False)
                    if validate is not None and _due(step, validate_every, steps):
                        with (
                            torch.random.fork_rng(devices),
                            torch.no_grad(),
                            in_mode(model, training=False),
                        ):
                            history.validation.append((step, float(validate(model))))
                    if path is not None and _due(step, checkpoint_every, steps):
                        _set_rates(optimizer, rates, 1)  # as the settings have them
                        spent = time.process_time() - begin
                        saved.save(path, asdict(replace(history, cpu_seconds=spent)))
        finally:
            _set_rates(optimizer, rates, 1)
    return replace(history, cpu_seconds=time.process_time() - begin)


def warmup_then_inverse_sqrt(warmup: int) -> Callable[[int], float]:
    r"""Rise in a straight line to 1 at step ``warmup``, then fall with the root of the step.

    .. math:: f(t) = \sqrt{w} \cdot \min(t^{-1/2},\; t \, w^{-3/2})

    Args:
        warmup: :math:`w`, the step with the peak, at least 1.

    Returns:
        A schedule for :func:`train`.

    Raises:
        TypeError: If ``warmup`` is not an integer.
        ValueError: If ``warmup`` is below 1.

    Source:
        Vaswani et al. (2017), section 5.3, equation 3, without the factor for the width and scaled
        to a peak of 1. Chapters 06 and 09.
    """
    check_count("warmup", warmup, least=1)
    return lambda step: min(math.sqrt(warmup / step), step / warmup)


def warmup_then_cosine(warmup: int, steps: int) -> Callable[[int], float]:
    r"""Rise in a straight line to 1 at step ``warmup``, then fall to 0 along half a cosine.

    .. math::
        f(t) = \frac{t}{w} \;\; (t \le w), \qquad
        f(t) = \tfrac12 + \tfrac12 \cos \frac{\pi (t - w)}{n - w} \;\; (w \le t \le n)

    Args:
        warmup: :math:`w`, the step with the peak; 0 for none.
        steps: :math:`n`, the step at which the factor reaches 0, above ``warmup``.

    Returns:
        A schedule for :func:`train`.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If ``warmup`` is below 0 or ``steps`` not above ``warmup``.

    Source:
        Loshchilov and Hutter (2017), section 3, equation 5, without restarts. Chapter 09.
    """
    check_count("warmup", warmup, least=0)
    check_count("steps", steps, least=warmup + 1)

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        return 0.5 + 0.5 * math.cos(math.pi * min((step - warmup) / (steps - warmup), 1))

    return factor


# --- one step ------------------------------------------------------------------------------------


def _update(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    drawn: Any,
    optimizer: Optimizer,
    clip: float | None,
    step: int,
) -> float:
    """One update of the weights; returns the loss before it."""
    optimizer.zero_grad()
    result = loss(model, drawn)
    if not isinstance(result, Tensor):
        raise TypeError(f"loss must return a torch.Tensor, got {type(result).__name__}")
    if result.numel() != 1:
        raise ValueError(f"loss must return one number, got shape {shape(result)}")
    value = result.item()
    if not math.isfinite(value):
        raise FloatingPointError(f"loss must be finite, got {value} in step {step}")
    result.backward()
    if clip is not None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, clip).item()
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"the norm of the gradients must be finite, got {norm} in step {step}"
            )
    optimizer.step()
    return value


def _set_rates(optimizer: Optimizer, rates: list[float], factor: float) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor


def _due(step: int, every: int | None, steps: int) -> bool:
    return step == steps or (every is not None and step % every == 0)


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put every part of a model into one mode, and each back into its own afterwards.

    Args:
        model: The module.
        training: True for training, False for evaluation.

    Source:
        Chapters 06 and 09.
    """
    modes = [(part, part.training) for part in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for part, before in modes:
            part.training = before


def _watcher() -> Any:
    """Where to draw a bar: a terminal, a notebook in which a person works, or nowhere.

    A notebook's streams are no terminal, and what is drawn there is stored with the notebook. But a
    front end that a person works in lets a cell ask questions (``input()``), while programs that
    run notebooks (nbval, nbconvert, papermill) forbid it, and the kernel knows. So a reader in
    Jupyter or Colab sees the bar and stored outputs stay clean. It goes to stdout there, because
    stderr has a red background.
    """
    if sys.stderr is not None and sys.stderr.isatty():
        return sys.stderr
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    asks = getattr(getattr(shell, "kernel", None), "_allow_stdin", False)
    return sys.stdout if asks else None


# --- arguments -----------------------------------------------------------------------------------


def _check_pairs(
    validate: object, validate_every: int | None, checkpoint: object, checkpoint_every: int | None
) -> None:
    """An interval must be a count, and there must be something to do after it."""
    for name, what, every in (
        ("validate", validate, validate_every),
        ("checkpoint", checkpoint, checkpoint_every),
    ):
        if every is not None:
            check_count(f"{name}_every", every, least=1)
            if what is None:
                raise ValueError(f"{name}_every must be given with {name}, got {name} = None")


def _factors(schedule: Callable[[int], float] | None, steps: int) -> list[float]:
    """The factors of all steps; asked for beforehand, so that a checkpoint can tell them apart."""
    if schedule is None:
        return [1.0] * steps
    factors = [float(schedule(step)) for step in range(1, steps + 1)]
    for step, factor in enumerate(factors, start=1):
        if not 0 <= factor < math.inf:
            raise ValueError(
                f"schedule must return finite factors of at least 0, got {factor} for step {step}"
            )
    return factors


def _check_belonging(model: nn.Module, optimizer: Optimizer) -> None:
    own = {id(parameter) for parameter in model.parameters()}
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    foreign = sum(member not in own for member in held)
    if foreign:
        raise ValueError(f"optimizer must hold parameters of model only, got {foreign} others")


def _file(checkpoint: Path | str) -> Path:
    path = Path(checkpoint)
    if not path.parent.is_dir():
        raise ValueError(f"checkpoint must lie in an existing folder, got {checkpoint}")
    return path
