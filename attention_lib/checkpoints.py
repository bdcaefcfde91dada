"""Checkpoints: all that a run needs to go on exactly where it was, in one file. Chapter 06.

The file is in safetensors format: weights, the optimizer's state and the states of the random
number generators as tensors, settings and measurements as JSON in its header. Reading it runs no
code. It appears under its name in one indivisible act, so that there is a whole one at any time.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class Checkpoint:
    """The parts of a run that change while it goes on, and the settings that must not.

    Args:
        model: Its ``state_dict`` is stored; tied weights stay tied.
        optimizer: Its state is stored; its options are settings.
        sources: The generators of random numbers, by name.
        settings: What else decides how the run goes, as JSON can write it.

    Source:
        Chapter 06.
    """

    model: nn.Module
    optimizer: Optimizer
    sources: dict[str, torch.Generator]
    settings: dict[str, Any]

    def save(self, path: Path, measured: dict[str, Any]) -> None:
        """Write a file beside ``path``, then give it that name.

        Args:
            path: The file to make or to replace.
            measured: What the run has measured so far, as JSON can write it.

        Raises:
            TypeError: If the model or the optimizer keeps something that is not a tensor.
        """
        named = {f"model.{name}": part for name, part in self.model.state_dict().items()}
        for index, entries in self.optimizer.state_dict()["state"].items():
            named |= {f"optimizer.{index}.{name}": part for name, part in entries.items()}
        named |= {f"random.{name}": source.get_state() for name, source in self.sources.items()}
        for name, part in named.items():
            if not isinstance(part, Tensor):
                kind = type(part).__name__
                raise TypeError(f"a checkpoint must hold tensors only, got {kind} for {name}")
        # Copies, because the format refuses tensors that share memory, as tied weights do.
        tensors = {
            name: part.detach().to("cpu", copy=True).contiguous() for name, part in named.items()
        }
        about = json.dumps({"settings": self._all_settings(), "measured": measured})
        unfinished = path.with_name(f"{path.name}.part")
        with unfinished.open("wb") as file:
            file.write(save(tensors, {"run": about}))
            file.flush()
            os.fsync(file.fileno())  # on the disk before the name is, should the power fail
        os.replace(unfinished, path)

    def load(self, path: Path) -> dict[str, Any]:
        """Put everything into place; nothing is changed if the file belongs to another run.

        Args:
            path: A file that :meth:`save` wrote.

        Returns:
            What the run had measured.

        Raises:
            ValueError: If ``path`` is no such file, or one of a run with other settings.
        """
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["run"])
                # Copies: what is read may be a view of the file, which the run will replace.
                tensors = {name: file.get_tensor(name).clone() for name in list(file.keys())}
        except (SafetensorError, OSError, KeyError) as error:
            raise ValueError(
                f"checkpoint must be a file that train wrote, got {path.name}"
            ) from error
        _check_same(path, about["settings"], json.loads(json.dumps(self._all_settings())))
        weights = _below("model.", tensors)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state = {
            index: {
                name: _laid_out_like(parameter, part)
                for name, part in _below(f"optimizer.{index}.", tensors).items()
            }
            for index, parameter in enumerate(parameters)
        }
        self.model.load_state_dict(weights)
        groups = self.optimizer.state_dict()["param_groups"]
        held = {index: entries for index, entries in state.items() if entries}
        self.optimizer.load_state_dict({"state": held, "param_groups": groups})
        for name, source in self.sources.items():
            source.set_state(tensors[f"random.{name}"])
        measured: dict[str, Any] = about["measured"]
        return measured

    def _all_settings(self) -> dict[str, Any]:
        """The settings, the optimizer's options, and the name and shape of every weight."""
        found = self.settings | {"optimizer": type(self.optimizer).__name__}
        found["generators"] = sorted(self.sources)
        # Parameters by name: the optimizer's own numbering would not notice another order.
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for index, group in enumerate(self.optimizer.param_groups):
            options = {name: repr(option) for name, option in group.items() if name != "params"}
            options["params"] = str([names[id(parameter)] for parameter in group["params"]])
            found |= {f"optimizer's {name} in group {index}": o for name, o in options.items()}
        for name, part in self.model.state_dict().items():
            if isinstance(part, Tensor):
                found[f"weight {name}"] = f"{part.dtype} {tuple(part.shape)}"
        return found


def _check_same(path: Path, stored: dict[str, Any], current: dict[str, Any]) -> None:
    for name in [*current, *stored]:
        old, new = (settings.get(name, "nothing") for settings in (stored, current))
        if old != new:
            raise ValueError(
                f"checkpoint must be of a run with the same {name}, "
                f"got {path.name}, which has {_short(old)} and not {_short(new)}"
            )


def _short(setting: object) -> str:
    text = str(setting)
    return text if len(text) <= 60 else f"{text[:40]} ... {text[-16:]}"


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, without it."""
    return {n.removeprefix(prefix): part for n, part in tensors.items() if n.startswith(prefix)}


def _laid_out_like(parameter: Tensor, part: Tensor) -> Tensor:
    """The same numbers in the parameter's order in memory, on which rounding may depend."""
    if part.ndim < 2 or part.shape != parameter.shape:
        return part
    return torch.empty_like(parameter, dtype=part.dtype, requires_grad=False).copy_(part)
