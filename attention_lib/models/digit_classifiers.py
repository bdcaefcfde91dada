"""The classifiers of digits in chapter 13: Vision Transformers, and a convolutional network.

They have about the same number of parameters. :func:`build` makes one, :func:`load` returns one of
the two trained Vision Transformers that the package holds.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from attention_lib.models.characters import Together
from attention_lib.models.vit import ViT, ViTConfig, vit
from attention_lib.training import in_mode

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
CONFIG = ViTConfig(
    image=28, patch=7, channels=1, width=64, layers=4, heads=4, classes=10, hidden=128
)
CONFIGS = {"vit": CONFIG, "fine": replace(CONFIG, patch=4)}  # as many parameters
KINDS = (*CONFIGS, "cnn")


def build(kind: str, seed: int) -> nn.Module:
    """Make an untrained classifier of 28 x 28 digits.

    Args:
        kind: ``vit`` with 16 patches, ``fine`` with 49, or ``cnn``.
        seed: Sets the first weights.

    Returns:
        A module from images (B, 1, 28, 28) to logits (B, 10).

    Raises:
        ValueError: If there is no such kind.

    Source:
        Chapter 13; the stack of 3 x 3 convolutions follows Simonyan and Zisserman (2015).
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {list(KINDS)}, got {kind!r}")
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return vit(CONFIGS[kind]) if kind in CONFIGS else _convolutions()


def _convolutions() -> nn.Sequential:
    """Three stages of two convolutions each; the last states are averaged over all places."""
    layers: list[nn.Module] = []
    before = 1
    for channels in (16, 40, 96):
        for _ in range(2):
            layers += [
                nn.Conv2d(before, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
            before = channels
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


def adamw(model: nn.Module, rate: float = 3e-3) -> Optimizer:
    """AdamW for all parameters of a classifier.

    Args:
        model: From :func:`build`.
        rate: The learning rate at the peak of the schedule.

    Returns:
        The optimizer.

    Source:
        Loshchilov and Hutter (2019), algorithm 2. Chapter 13.
    """
    return AdamW(model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.05)


def muon(model: ViT, rate: float = 1e-2) -> Optimizer:
    """Muon for the matrices of a Vision Transformer's blocks, AdamW for the rest.

    Args:
        model: From :func:`build`.
        rate: The learning rate of the matrices at the peak of the schedule.

    Returns:
        The optimizer.

    Source:
        Jordan et al. (2024). Chapter 13.
    """
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    inner = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inner]
    return Together(
        Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        AdamW(others, lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0),
    )


def optimizer(model: nn.Module) -> Optimizer:
    """Muon for a ViT's blocks, better on validation digits than AdamW; AdamW for convolutions.

    Args:
        model: From :func:`build`.

    Returns:
        The optimizer, with its rates at the peak of the schedule.

    Source:
        ``tools/train_vit.py tune`` compares rates of both; Muon for convolutions was not tried.
        Chapter 13.
    """
    return muon(model) if isinstance(model, ViT) else adamw(model)


def accuracy(
    model: nn.Module, images: Float[Tensor, "N C Y X"], labels: Int[Tensor, " N"]
) -> float:
    """The percentage of images whose largest logit is that of their class.

    Args:
        model: From images to logits.
        images: Images, (N, C, Y, X).
        labels: Classes, (N,).

    Returns:
        A number from 0 to 100.

    Source:
        Chapter 13.
    """
    with torch.no_grad(), in_mode(model, training=False):
        found = torch.cat([model(some).argmax(dim=-1) for some in images.split(250)])
    return 100 * (found == labels).double().mean().item()


def load(kind: str = "vit", folder: Path = WEIGHTS) -> ViT:
    """Load a trained Vision Transformer of digits that the package holds.

    Args:
        kind: ``vit`` or ``fine``, as in :func:`build`.
        folder: Where ``digits_vit.safetensors`` and ``digits_fine.safetensors`` lie.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: If there is no such kind.

    Source:
        Trained by ``tools/train_vit.py``; log and checksum beside the weights. Chapter 13.
    """
    if kind not in CONFIGS:
        raise ValueError(f"kind must be one of {list(CONFIGS)}, got {kind!r}")
    with safe_open(folder / f"digits_{kind}.safetensors", framework="pt") as file:
        config = ViTConfig(**json.loads(file.metadata()["config"]))
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (no dict)
    model = vit(config)
    model.load_state_dict(tensors)
    return model.eval()
