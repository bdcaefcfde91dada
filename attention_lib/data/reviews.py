"""Film reviews with their verdict: short snippets and long texts, loaded only. Chapter 12."""

import csv
import re
from collections.abc import Iterable

from attention_lib.data.fetch import asset_path

SOURCES = {"short": "rotten_tomatoes", "long": "imdb"}


def movie_reviews(kind: str = "short") -> list[tuple[str, int]]:
    """Reviews as they were published: in the order of the file, which is sorted by verdict.

    Args:
        kind: ``short``, 8,530 sentences of reviews by critics, or ``long``, 25,000 reviews by
            visitors of a site.

    Returns:
        Pairs of a text and its label, 1 for praise and 0 for blame.

    Raises:
        AssetError: If the file is not in the cache and cannot be fetched.
        ValueError: If ``kind`` is neither of the two.

    Source:
        Pang and Lee (2005) for the short; Maas et al. (2011), section 4, for the
        long; of the short ones a training part (the collection has 10,662, labelled by the
        verdict of the whole review), of the long ones the training half, as collected in the
        package movie-reviews. Chapter 12.
    """
    if kind not in SOURCES:
        raise ValueError(f"kind must be one of {sorted(SOURCES)}, got {kind!r}")
    with asset_path("reviews").open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        return [(row["text"], int(row["label"])) for row in rows if row["source"] == SOURCES[kind]]


def first_of_each(texts: Iterable[str]) -> list[int]:
    """Which texts to keep so that none is there twice.

    Two texts are the same if they agree in letters and digits, whatever their case, spaces and
    marks.

    Args:
        texts: Texts, perhaps with duplicates.

    Returns:
        Row numbers in rising order, of each group of equal texts the first.

    Source:
        Chapter 12.
    """
    first: dict[str, int] = {}
    for row, text in enumerate(texts):
        first.setdefault(" ".join(re.findall(r"\w+", text.lower())), row)
    return list(first.values())
