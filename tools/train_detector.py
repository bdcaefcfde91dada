"""Train the detectors of chapter 14 and measure them on held-out scenes.

    python tools/train_detector.py detr --seed 0   # DETR
    python tools/train_detector.py grid --seed 0   # the convolutional detector beside it
    python tools/train_detector.py masks           # the mask head on the frozen DETR

Each writes its weights and their log. Both detectors start from the same backbone, which has
learned to name single digits, and see the same number of scenes. Settings were chosen on scenes of
the validation digits; the 500 test scenes are looked at once, at the end.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from train_log import checksum, machine

from attention_lib.data.scenes import SceneMaker, Scenes
from attention_lib.models.detection import Weights, detection_loss, match_all
from attention_lib.models.detection_score import (
    average_precision,
    field_entropy,
    predict,
    survivors,
)
from attention_lib.models.detector import CHANNELS, WEIGHTS, build, load, save
from attention_lib.models.detr import Backbone
from attention_lib.models.grid_detector import cells_of
from attention_lib.models.segmentation import mask_logits, mask_loss, mask_overlaps
from attention_lib.training import train, warmup_then_cosine

BACKBONE_STEPS, BACKBONE_BATCH, BACKBONE_RATE = 1500, 64, 2e-3
STEPS = {"detr": 10000, "grid": 10000, "masks": 1500}
RATES = {"detr": 7e-4, "grid": 7e-4, "masks": 4e-3}
BATCH, WARMUP, CLIP, DECAY = 16, 100, 1.0, 1e-4
TERMS = Weights(label=2.0)  # the classes are what is learned last
BITS = "bits missing to name the field of an object whose query is known"
CHECKPOINTS = Path("build")  # a run that was stopped goes on from here


class Classifier(nn.Module):
    """The backbone, the mean over its cells, and one layer that names the digit."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone(CHANNELS)
        self.head = nn.Sequential(nn.LayerNorm(CHANNELS[-1]), nn.Linear(CHANNELS[-1], 10))

    def forward(self, images: Tensor) -> Tensor:
        """Scores of the ten classes."""
        return self.head(self.backbone(images)[-1].mean(dim=(2, 3)))


def pretrained_backbone(seed: int) -> tuple[Backbone, dict[str, float]]:
    """A backbone that has learned single digits on small canvases, and what to log of it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier()
    maker = SceneMaker("train", side=32, clutter=2)
    history = train(
        model,
        lambda model, scenes: cross_entropy(model(scenes.images), torch.cat(scenes.labels)),
        lambda generator: maker.draw(BACKBONE_BATCH, generator, most=1),
        torch.optim.AdamW(model.parameters(), lr=BACKBONE_RATE),
        steps=BACKBONE_STEPS, seed=seed, clip=CLIP,
        schedule=warmup_then_cosine(50, BACKBONE_STEPS),
        checkpoint=CHECKPOINTS / f"backbone_{seed}.safetensors",
        checkpoint_every=200,
    )  # fmt: skip
    minutes = history.cpu_seconds / 60
    unseen = SceneMaker("validation", side=32, clutter=2).draw(
        500, torch.Generator().manual_seed(1), most=1
    )
    with torch.no_grad():
        right = (model(unseen.images).argmax(dim=1) == torch.cat(unseen.labels)).float().mean()
    return model.backbone, {
        "CPU minutes for the backbone": round(minutes, 1),
        "accuracy of the backbone on single digits": round(right.item(), 3),
    }


def detr_loss(model: nn.Module, scenes: Scenes) -> Tensor:
    """The terms of all decoder blocks together."""
    blocks = [detection_loss(p, scenes.labels, scenes.boxes, TERMS) for p in model(scenes.images)]
    return sum(sum(terms.values()) for terms in blocks)


def grid_loss(model: nn.Module, scenes: Scenes) -> Tensor:
    """The same terms with fixed pairs: the cell of an object's centre answers for it."""
    predictions = model(scenes.images)
    side = round(predictions.logits.shape[1] ** 0.5)
    pairs = cells_of(scenes.boxes, side, side)
    return sum(
        detection_loss(predictions, scenes.labels, scenes.boxes, TERMS, pairs=pairs).values()
    )


def masks_loss(detector: nn.Module):
    """The loss of a mask head on a detector that stays as it is."""

    def loss(model: nn.Module, scenes: Scenes) -> Tensor:
        with torch.no_grad():
            pairs = match_all(detector(scenes.images)[-1], scenes.labels, scenes.boxes)
        logits = mask_logits(detector, model, scenes.images, pairs)
        wanted = [mask[m] for mask, (_, m) in zip(scenes.masks, pairs, strict=True)]
        return sum(mask_loss(torch.cat(logits), torch.cat(wanted)).values())

    return loss


def measure(name: str, model: nn.Module, scenes: Scenes, folder: Path) -> dict[str, float]:
    """The scores of a trained model on scenes."""
    if name == "masks":
        overlaps = mask_overlaps(load("detr", folder), model, scenes)
        return {"mean mask IoU": round(overlaps.mean().item(), 3)}
    found = predict(model, scenes.images)
    keep = survivors(found) if name == "grid" else None
    precision = average_precision(
        found, scenes.labels, scenes.boxes, side=scenes.images.shape[-1], keep=keep
    )
    return {key: round(value, 3) for key, value in precision.items()}


def query_bits(model: nn.Module, scenes: Scenes) -> float:
    """How little the number of a query tells about the place of its object."""
    found = predict(model, scenes.images)
    pairs = match_all(found, scenes.labels, scenes.boxes)
    return field_entropy(pairs, scenes.boxes, found.boxes.shape[1])


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=list(STEPS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the result does not depend on the cores
    name, seed, folder = arguments.name, arguments.seed, arguments.folder
    steps = arguments.steps or STEPS[name]
    CHECKPOINTS.mkdir(exist_ok=True)

    model = build(name, seed)
    log: dict[str, object] = {
        "command": f"python tools/train_detector.py {name} --seed {seed} --steps {steps}"
    }
    if name == "masks":
        loss = masks_loss(load("detr", folder))
    else:
        backbone, about = pretrained_backbone(seed)
        model.backbone.load_state_dict(backbone.state_dict())
        log |= about
        print(about, flush=True)
        loss = detr_loss if name == "detr" else grid_loss
    maker = SceneMaker("train")
    validation = SceneMaker("validation").draw(200, torch.Generator().manual_seed(1))

    optimizer = torch.optim.AdamW(model.parameters(), lr=RATES[name], weight_decay=DECAY)
    bits = CHECKPOINTS / f"bits_{name}_{seed}.json"  # beside the checkpoint, for a run that goes on

    def watch_queries(step: int) -> None:
        known = dict(json.loads(bits.read_text())) if bits.exists() else {}
        known[step] = round(query_bits(model, validation), 2)
        bits.write_text(json.dumps(sorted(known.items())), encoding="utf-8")

    def score(model: nn.Module) -> float:
        if name == "detr":
            watch_queries(int(next(iter(optimizer.state.values()))["step"]))
        return next(iter(measure(name, model, validation, folder).values()))

    checkpoint = CHECKPOINTS / f"detector_{name}_{seed}.safetensors"
    if name == "detr" and not checkpoint.exists():
        watch_queries(0)
    history = train(
        model, loss, lambda generator: maker.draw(BATCH, generator),
        optimizer, steps=steps, seed=seed, clip=CLIP, schedule=warmup_then_cosine(WARMUP, steps),
        validate=score, validate_every=1000, checkpoint=checkpoint, checkpoint_every=500,
    )  # fmt: skip
    minutes = history.cpu_seconds / 60
    path = save(name, model, folder)
    test = SceneMaker("test").draw(500, torch.Generator().manual_seed(2))
    log |= {
        "seed": seed,
        "steps": steps,
        "batch": BATCH,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "CPU minutes on one thread": round(minutes, 1),
        **machine(),
        "validation": history.validation,
        **({BITS: json.loads(bits.read_text())} if bits.exists() else {}),
        "500 test scenes, weights in half precision": measure(
            name, load(name, folder), test, folder
        ),
        "sha256": checksum(path),
    }
    text = json.dumps(log, indent=1)
    (folder / f"detector_{name}.json").write_text(text + "\n", encoding="utf-8")
    print(text, flush=True)
    for path in (checkpoint, bits):
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
