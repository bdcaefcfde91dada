"""The detectors of digits that come with the book: their settings and their weights. Chapter 14."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from attention_lib.models.detr import Backbone, Detr, DetrConfig
from attention_lib.models.grid_detector import GridDetector
from attention_lib.models.segmentation import MaskHead

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
CHANNELS = (1, 16, 48, 96)
CONFIG = DetrConfig(
    classes=10, queries=12, width=64, encoder_layers=2, decoder_layers=3, heads=4, hidden=256
)


def build(name: str, seed: int) -> nn.Module:
    """Make an untrained model with the book's settings.

    Args:
        name: ``detr``, ``grid`` or ``masks``.
        seed: Sets the first weights; the global state of torch's random numbers is left alone.

    Returns:
        A :class:`~attention_lib.models.detr.Detr`, a
        :class:`~attention_lib.models.grid_detector.GridDetector` or a
        :class:`~attention_lib.models.segmentation.MaskHead`.

    Raises:
        ValueError: If there is no such model.

    Source:
        Chapter 14.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match name:
            case "detr":
                return Detr(CONFIG, Backbone(CHANNELS))
            case "grid":
                return GridDetector(CONFIG.classes, Backbone(CHANNELS))
            case "masks":
                return MaskHead(CONFIG.width, CONFIG.heads, CHANNELS, hidden=8)
    raise ValueError(f"name must be 'detr', 'grid' or 'masks', got {name!r}")


def save(name: str, model: nn.Module, folder: Path = WEIGHTS) -> Path:
    """Write a model's weights to a folder, in half precision.

    Args:
        name: As in :func:`build`.
        model: The model.
        folder: Where to.

    Returns:
        The file.

    Source:
        Chapter 14.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"detector_{name}.safetensors"
    save_file({key: x.half().contiguous() for key, x in model.state_dict().items()}, path)
    return path


def load(name: str, folder: Path = WEIGHTS) -> nn.Module:
    """Load a trained model; the package holds one of each name.

    Args:
        name: As in :func:`build`.
        folder: What :func:`save` wrote.

    Returns:
        The model in evaluation mode.

    Raises:
        ValueError: If there is no such model.
        RuntimeError: If a weight is missing or left over.

    Source:
        Trained by ``tools/train_detector.py``; log and checksums beside the weights. Chapter 14.
    """
    model = build(name, seed=0)
    with safe_open(folder / f"detector_{name}.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (no dict)
    model.load_state_dict(tensors)
    return model.eval()
