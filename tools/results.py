"""What the trained and the published models of the book reach, beside what was aimed at.

    python tools/results.py

Reads the logs in attention_lib/weights, runs the comparisons with the published models, prints the
table and writes chapters/results.md. No number is written by hand.
"""

import datetime
import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from parity import recorded, shown

from attention_lib.models.recipes import BEST, PLAIN, RECIPES

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "chapters" / "results.md"
WEIGHTS = ROOT / "attention_lib" / "weights"
PUBLISHED = (
    "tests/test_minilm.py::test_states_are_those_of_hugging_face",
    "tests/test_smollm.py::test_logits_equal_hugging_face_within_a_thousandth",
    "tests/test_dino.py::test_states_are_those_of_the_onnx_graph",
)
TEXT = """\
# Results

What the models of this book reach on data that they have not seen, beside what was aimed at before
they were trained. Times are CPU minutes on one thread, for one seed. The numbers come from the logs
that the commands wrote when they trained the models, and from tests that compare published weights
in this book's classes with another implementation.

`make results` runs those tests and writes this page; a test keeps it equal to the logs. Trained
weights differ from machine to machine, and so do the last digits.

| chapter | what | target | reached | CPU minutes |
|---|---|---|---|--:|
"""
PLAIN_NAME = next(name for name, recipe in RECIPES.items() if recipe is PLAIN)


class Row(NamedTuple):
    """One line of the table."""

    chapter: str
    what: str
    target: str
    reached: str
    met: bool
    minutes: float | None
    command: str


def log(name: str) -> dict[str, Any]:
    """A log that a training command wrote."""
    return json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))


# --- rows from the logs --------------------------------------------------------------------------


def character_rows() -> Iterable[Row]:
    """The plain and the best character model, on the benchmark and on the plays."""
    runs, pace = log("characters")["runs"], log("characters")["pace"]
    for text in ("benchmark", "plays"):
        losses, minutes = {}, {}
        for recipe in (PLAIN_NAME, BEST):
            chosen = [r for r in runs if (r["text"], r["recipe"]) == (text, recipe)]
            losses[recipe] = [r["test loss"] for r in chosen]
            minutes[recipe] = statistics.mean(r["CPU minutes on one thread"] for r in chosen)
        plain, ours = (statistics.mean(losses[recipe]) for recipe in (PLAIN_NAME, BEST))
        part = pace[text][BEST] / pace[text][PLAIN_NAME]
        seeds = len(losses[BEST])
        if text == "benchmark":
            what, target, met = "a benchmark text", "1.60 or below", ours <= 1.6
        else:
            what, target, met = "*Macbeth*", "0.20 below the plain recipe", plain - ours >= 0.2
        yield Row(
            "11", f"nats a character on {what}, {seeds} seeds", f"{target}, no slower",
            f"{ours:.4f}, plain {plain:.4f}; {part:.2f} of its time", met and part <= 1,
            minutes[BEST], "tools/train_characters.py",
        )  # fmt: skip


def translation_rows() -> Iterable[Row]:
    """The Transformer against the best recurrent model of chapter 06, with the same beam search."""
    pace = log("seq2seq_speed")["milliseconds a step"]
    theirs = [log("seq2seq_additive"), log("seq2seq_additive_seed1")]
    for what, name, most in (
        ("in equal time", "transformer_short", 1.0),
        ("in equal steps", "transformer", None),
    ):
        ours = [log(f"seq2seq_{name}"), log(f"seq2seq_{name}_seed1")]
        scores, others = (
            [float(one["test BLEU, beam 4"]["all"].split()[0]) for one in logs]
            for logs in (ours, theirs)
        )
        size = ours[0]["parameters"] / theirs[0]["parameters"]
        time = ours[0]["steps"] * pace["transformer"] / (theirs[0]["steps"] * pace["additive"])
        mean, other = statistics.mean(scores), statistics.mean(others)
        yield Row(
            "10", f"translation {what}: BLEU, {len(scores)} seeds",
            f"above the recurrent model's {other:.1f}",
            f"{mean:.1f}; {size:.2f} of its parameters, {time:.2f} of its time",
            mean > other and size <= 1.1 and (most is None or time <= most),
            statistics.mean(one["CPU minutes on one thread"] for one in ours),
            ours[0]["command"].removeprefix("python ").removesuffix(" --seed 0"),
        )  # fmt: skip


def sentiment_rows() -> Iterable[Row]:
    """Fine-tuning against two ways of counting words, at the largest training set."""
    rows = log("minilm_sentiment")["rows"]
    largest = max(row["size"] for row in rows)
    rows = [row for row in rows if row["size"] == largest]
    tuned, *counted = (
        [row[way]["percent"] for row in rows]
        for way in ("fine-tuned", "word counts", "naive Bayes")
    )
    means = [f"{statistics.mean(percents):.1f}" for percents in (tuned, *counted)]
    yield Row(
        "12", f"film reviews, {largest} to learn from: percent right, {len(rows)} seeds",
        "above counts of words, each seed",
        f"{means[0]}; word counts {means[1]}, naive Bayes {means[2]}",
        all(one > max(others) for one, *others in zip(tuned, *counted, strict=True)),
        statistics.mean(row["fine-tuned"]["CPU s"] for row in rows) / 60,
        "tools/train_sentiment.py",
    )  # fmt: skip


def vit_rows() -> Iterable[Row]:
    """The Vision Transformer on held-out digits."""
    runs = log("digits_vit")["runs"]
    found = [run["test accuracy"] for run in runs]
    minutes = statistics.mean(run["CPU minutes on one thread"] for run in runs)
    yield Row(
        "13", f"1000 held-out digits: percent right, {len(found)} seeds",
        "97 or more in 3 minutes", f"{statistics.mean(found):.1f} in {minutes:.1f} minutes",
        statistics.mean(found) >= 97 and minutes <= 3, minutes, "tools/train_vit.py",
    )  # fmt: skip


def detector_rows() -> Iterable[Row]:
    """DETR on held-out scenes."""
    logs = [log("detector_detr"), log("detector_detr_seed1")]
    found = [one["500 test scenes, weights in half precision"]["mAP50"] for one in logs]
    yield Row(
        "14", "digits in 500 held-out scenes: mAP50, 2 seeds", "0.90 or more",
        " and ".join(f"{value:.3f}" for value in found), min(found) >= 0.9,
        statistics.mean(one["CPU minutes on one thread"] for one in logs),
        "tools/train_detector.py detr",
    )  # fmt: skip


def speed_rows() -> Iterable[Row]:
    """Tokens a second of SmolLM2, against Hugging Face in the same process."""
    record = log("smollm2_generation")
    yield Row(
        "11", f"SmolLM2's tokens a second, median of {len(record['ratios'])} rounds",
        "1.3 times Hugging Face's",
        f"{record['ratio']:.2f} ({record['ratios'][0]:.2f} to {record['ratios'][-1]:.2f})",
        record["ratio"] >= 1.3, None, "benchmarks/generation.py",
    )  # fmt: skip


FROM_LOGS: tuple[Callable[[], Iterable[Row]], ...] = (
    translation_rows, character_rows, speed_rows, sentiment_rows, vit_rows, detector_rows,
)  # fmt: skip


# --- the page ------------------------------------------------------------------------------------


def published_rows() -> Iterable[Row]:
    """Largest difference between a published model in our class and elsewhere, from its test."""
    for found in recorded(*PUBLISHED):
        chapter, what = found["published"].split(" | ")
        difference, allowed = map(float, found["difference"].split())
        yield Row(
            chapter, f"{what}: largest difference", f"{shown(allowed)} or less", shown(difference),
            difference <= allowed, None, "make results",
        )  # fmt: skip


def line(row: Row) -> str:
    """A row as it stands on the page."""
    minutes = "" if row.minutes is None else f"{row.minutes:.1f}"
    reached = row.reached if row.met else f"{row.reached}; **missed**"
    cells = (row.chapter, row.what, row.target, reached, minutes)
    return f"| {' | '.join(map(str, cells))} |\n"


def main() -> None:
    """Print the table and write the page."""
    rows = [row for rows in FROM_LOGS for row in rows()] + list(published_rows())
    rows = sorted(rows, key=lambda row: row.chapter)
    table = "".join(line(row) for row in rows)
    commands = dict.fromkeys((row.chapter, row.command) for row in rows)
    made = "".join(f"- chapter {chapter}: `{command}`\n" for chapter, command in commands)
    versions = f"\nWritten on {datetime.date.today()} with PyTorch {torch.__version__}.\n"
    page = f"{TEXT}{table}\nThe commands that made them:\n\n{made}{versions}"
    PAGE.write_text(page, encoding="utf-8")
    print(TEXT[TEXT.index("| chapter") :] + table)


if __name__ == "__main__":
    main()
