"""Three ways to tell praise from blame in short film reviews, at three sizes of training set.

    python tools/train_sentiment.py      # the table of chapter 12, a quarter of an hour of CPU

Counts of words with logistic regression, and as a second baseline with naive Bayes; frozen vectors
of MiniLM with logistic regression; and MiniLM with all its weights trained further. All see the
same training reviews and the same thousand held-out reviews. Both regressions choose their penalty
by cross-validation among their training reviews; the rates and epochs of fine-tuning were fixed
before the first run. At the end, words are also counted in all reviews that are not held out. The
reviews may be loaded but not passed on, so no weights are kept, only the log. A run that was
stopped goes on from its checkpoint.
"""

import argparse
import copy
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import MultinomialNB
from torch import Tensor
from train_log import machine

from attention_lib.data import first_of_each, movie_reviews, split
from attention_lib.losses import cross_entropy
from attention_lib.models import minilm
from attention_lib.models.bert import TextClassifier
from attention_lib.models.minilm import MiniLM
from attention_lib.models.translation import WEIGHTS
from attention_lib.training import in_mode, train, warmup_then_cosine

SIZES, SEEDS, TEST = (200, 600, 2000), (0, 1, 2), 1000
BATCH, RATE, HEAD_RATE = 16, 1e-4, 1e-3
EPOCHS = {200: 6, 600: 3, 2000: 2}
PENALTIES = (0.1, 1, 10, 100, 1000, 10_000)  # inverse strengths among which the regressions choose
CHECKPOINTS = Path("build")

Reviews = list[tuple[str, int]]


def reviews(seed: int) -> tuple[Reviews, Reviews]:
    """Training reviews in an order of this seed, and test reviews, the same for all seeds."""
    pairs = movie_reviews("short")
    pairs = [pairs[row] for row in first_of_each(text for text, _ in pairs)]
    test, rest = split(len(pairs), (TEST, len(pairs) - TEST), seed=0)
    rest = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))]
    return [pairs[row] for row in rest.tolist()], [pairs[row] for row in test.tolist()]


def word_counts(training: Reviews, held_out: Reviews) -> float:
    """Share right: words and pairs of words weighted by TF-IDF, then logistic regression."""
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    features = words.fit_transform([text for text, _ in training])
    return regression(features, training, words.transform([t for t, _ in held_out]), held_out)


def naive_bayes(training: Reviews, held_out: Reviews) -> float:
    """Share right: which words and pairs occur, then naive Bayes, in which nothing is chosen."""
    words = CountVectorizer(ngram_range=(1, 2), binary=True)
    features = words.fit_transform([text for text, _ in training])
    classifier = MultinomialNB().fit(features, [label for _, label in training])
    others = words.transform([text for text, _ in held_out])
    return float(classifier.score(others, [label for _, label in held_out]))


def frozen(model: MiniLM, training: Reviews, held_out: Reviews) -> float:
    """Share right: the model's vectors as they are, then logistic regression."""
    features, others = (
        model.embed([text for text, _ in pairs]).numpy() for pairs in (training, held_out)
    )
    return regression(features, training, others, held_out)


def regression(features: object, training: Reviews, others: object, held_out: Reviews) -> float:
    """Share right of a logistic regression, its penalty chosen among the training reviews."""
    classifier = GridSearchCV(LogisticRegression(max_iter=1000), {"C": PENALTIES}, cv=5)
    classifier.fit(features, [label for _, label in training])
    return float(classifier.score(others, [label for _, label in held_out]))


def fine_tune(
    model: MiniLM,
    training: Reviews,
    *,
    epochs: int,
    seed: int,
    checkpoint: Path,
) -> tuple[TextClassifier, float]:
    """A classifier from a copy of the model, all weights trained further, and the CPU seconds."""
    classifier = TextClassifier(copy.deepcopy(model.bert), classes=2)
    tokens, lengths = model.encode([text for text, _ in training])
    labels = torch.tensor([label for _, label in training])

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Reviews of similar length: one eighth, by length, of eight batches."""
        rows = torch.randint(len(labels), (8 * BATCH,), generator=generator)
        slabs = rows[lengths[rows].argsort(stable=True)].view(8, BATCH)
        rows = slabs[int(torch.randint(8, (), generator=generator))]
        return tokens[rows, : int(lengths[rows].max())], lengths[rows], labels[rows]

    def loss(classifier: TextClassifier, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        tokens, lengths, labels = batch
        return cross_entropy(classifier(tokens, lengths), labels)

    steps = epochs * len(training) // BATCH
    head = list(classifier.output.parameters())
    groups = [{"params": classifier.bert.parameters(), "lr": RATE}, {"params": head}]
    optimizer = torch.optim.AdamW(groups, lr=HEAD_RATE, weight_decay=0.01, fused=True)
    history = train(
        classifier, loss, batch, optimizer,
        steps=steps, seed=seed, clip=1.0, schedule=warmup_then_cosine(steps // 10, steps),
        checkpoint=checkpoint, checkpoint_every=100,
    )  # fmt: skip
    return classifier, history.cpu_seconds


def share_right(model: MiniLM, classifier: TextClassifier, held_out: Reviews) -> float:
    """Share of reviews with the right class."""
    tokens, lengths = model.encode([text for text, _ in held_out])
    labels = torch.tensor([label for _, label in held_out])
    right = 0
    with torch.no_grad(), in_mode(classifier, training=False):
        for rows in lengths.argsort(stable=True).split(50):
            logits = classifier(tokens[rows, : int(lengths[rows].max())], lengths[rows])
            right += int((logits.argmax(dim=-1) == labels[rows]).sum())
    return right / len(labels)


def timed(measure: Callable[[], float], spent: float = 0.0) -> dict[str, float]:
    """A share in percent and the CPU seconds it took, with those that were spent before."""
    begin = time.process_time()
    share = measure()
    seconds = spent + time.process_time() - begin
    found = {"percent": round(100 * share, 1), "CPU s": round(seconds, 1)}
    print(found, flush=True)
    return found


def fill(row: dict[str, Any], model: MiniLM, checkpoint: Path) -> None:
    """All ways with one training set; those that the row already holds are kept."""
    training, held_out = reviews(row["seed"])
    training = training[: row["size"]]
    ways = {
        "word counts": lambda: word_counts(training, held_out),
        "naive Bayes": lambda: naive_bayes(training, held_out),
        "frozen": lambda: frozen(model, training, held_out),
    }
    for way, measure in ways.items():
        if way not in row:
            row[way] = timed(measure)
    if "fine-tuned" not in row:
        epochs = EPOCHS[row["size"]]
        classifier, spent = fine_tune(
            model, training, epochs=epochs, seed=row["seed"], checkpoint=checkpoint
        )
        row["fine-tuned"] = timed(lambda: share_right(model, classifier, held_out), spent)


def write(log: Path, rows: list[dict[str, Any]], **more: object) -> None:
    """The log, in one act."""
    about = {
        "command": "python tools/train_sentiment.py",
        "test reviews": TEST,
        "epochs": EPOCHS,
        "batch": BATCH,
        "rate": RATE,
        "rate of the head": HEAD_RATE,
        "penalties": PENALTIES,
        **machine(),
        "rows": rows,
    } | more
    unfinished = log.with_suffix(".part")
    unfinished.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(log)


def main() -> None:
    """Fill the table; rows that the log already holds are kept."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=WEIGHTS)
    log = parser.parse_args().folder / "minilm_sentiment.json"
    torch.set_num_threads(1)  # the matrices are small, and the result does not depend on the cores
    CHECKPOINTS.mkdir(exist_ok=True)
    model = minilm.load()
    rows: list[dict[str, Any]] = json.loads(log.read_text())["rows"] if log.exists() else []
    begun = {(row["size"], row["seed"]) for row in rows}
    for size, seed in itertools.product(SIZES, SEEDS):
        if (size, seed) not in begun:
            rows.append({"size": size, "seed": seed})
    for row in rows:
        checkpoint = CHECKPOINTS / f"sentiment_{row['size']}_{row['seed']}.safetensors"
        fill(row, model, checkpoint)
        write(log, rows)
        checkpoint.unlink(missing_ok=True)
    training, held_out = reviews(0)
    in_all: dict[str, object] = {}
    for way, measure in {"word counts": word_counts, "naive Bayes": naive_bayes}.items():
        found = timed(lambda measure=measure: measure(training, held_out))
        in_all[f"{way} in all"] = {"size": len(training)} | found
    write(log, rows, **in_all)


if __name__ == "__main__":
    main()
