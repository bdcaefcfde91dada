"""English-French sentence pairs from the translation catalogues of open-source programs.

The sentences are those of user interfaces, translated by people. They are normalised, filtered and
split so that no held-out sentence has a near-duplicate in another part. Chapter 06.
"""

import math
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from attention_lib.data.catalogues import Pair, messages

SOURCES = (
    "french-homeassistant",
    "french-jupyterlab",
    "french-sphinx",
    "french-horizon",
    "french-heat",
    "french-nova",
    "french-keystone",
    "french-sahara",
)

# Two sentences are near-duplicates if they share at least this part of all their words.
NEAR = 0.6
HELD_OUT_GROUP = 20  # larger families of near-duplicates stay in the training part

_PLAIN = str.maketrans({
    "’": "'", "‘": "'", "´": "'", "“": '"', "”": '"', "…": "...", "–": "-", "—": "-",
    "\u2011": "-", "\u00a0": " ", "\u202f": " ",
})  # fmt: skip
_PLACEHOLDER = re.compile(r"%\(\w+\)[sd]|\{\{?[\s\w.]*\}?\}|%[sd]|\$\{?\w+\}?")
_ACCELERATOR = re.compile(r"&(?=\w)")  # "&Open" underlines the O in a menu
_SENTENCE_END = re.compile(r'(?<=[.!?])\s+(?=[A-ZÀ-Ý"«])|\n\s*\n')
_FOREIGN = re.compile(r"""[^\w\s.,:;!?'"()-]|_|https?:|www\.|\.\w|\d{4}""")  # markup, paths, data
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class ParallelText:
    """Sentence pairs in three parts without near-duplicates across them.

    Args:
        train: Pairs to learn from.
        validation: Pairs to choose settings on.
        test: Pairs to measure on, once.

    Source:
        Chapter 06.
    """

    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]


@cache
def english_french() -> ParallelText:
    """The book's English-French sentence pairs, always the same ones in the same order.

    Sentences have 3 to 20 English words, in lower case, "x" in place of what a program fills in.
    Validation holds 600 pairs and test 1,000, two fifths of them with more than 8 English words.

    Returns:
        The three parts.

    Raises:
        AssetError: If a catalogue is not in the cache and cannot be fetched.

    Source:
        Catalogues of Home Assistant, JupyterLab, Sphinx and five programs of OpenStack. Chapter 06.
    """
    found = (message for source in SOURCES for message in messages(source))
    return split_pairs(clean(found), {"validation": (360, 240), "test": (600, 400)}, seed=0)


def clean(messages: Iterable[Pair]) -> list[Pair]:
    """Turn messages into normalised sentence pairs and keep those fit for learning.

    A message of several sentences is cut up if both languages have the same number of them. Kept
    are pairs of 3 to 20 English and 2 to 25 French words without markup, whose lengths in letters
    differ by a factor of 2 at most; each pair once.

    Args:
        messages: English and French texts.

    Returns:
        Pairs in the order in which they first occur.

    Source:
        Chapter 06.
    """
    found: dict[Pair, None] = {}
    for english, french in messages:
        first, second = _sentences(english), _sentences(french)
        if len(first) != len(second):
            first, second = [" ".join(first)], [" ".join(second)]
        for pair in zip(first, second, strict=True):
            if _is_fit(*pair):
                found[pair] = None
    return list(found)


def _sentences(text: str) -> list[str]:
    text = _PLACEHOLDER.sub("\0", _ACCELERATOR.sub("", text))
    text = re.sub(r"(?<=\w)\0", " \0", re.sub(r"\0(?=[\w\0])", "\0 ", text))  # a word of its own
    text = text.replace("\0", "x").strip()
    return [normalise(part) for part in _SENTENCE_END.split(text)]


def normalise(text: str) -> str:
    """Lower case, plain quotation marks, single spaces, none before a mark that ends something.

    Args:
        text: Any text.

    Returns:
        The normalised text.

    Source:
        Chapter 06.
    """
    text = unicodedata.normalize("NFC", text).translate(_PLAIN).lower()
    text = re.sub(r"«\s*|\s*»", '"', text)  # French puts spaces inside its quotation marks
    return " ".join(re.sub(r"\s+([:;!?,.)])", r"\1", text).split())


def _is_fit(english: str, french: str) -> bool:
    return (
        english != french
        and not _FOREIGN.search(english + " " + french)
        and 3 <= len(english.split()) <= 20
        and 2 <= len(french.split()) <= 25
        and 0.5 <= len(french) / len(english) <= 2
    )


def near_duplicates(sentences: Sequence[str], threshold: float = NEAR) -> list[tuple[int, int]]:
    r"""All pairs of sentences that share most of their words.

    .. math:: \frac{|A \cap B|}{|A \cup B|} \ge \mathrm{threshold}

    for the sets :math:`A` and :math:`B` of their words (Jaccard similarity).

    Args:
        sentences: Sentences.
        threshold: Smallest similarity that counts, above 0 and at most 1.

    Returns:
        Pairs of row numbers (i, j) with i > j.

    Raises:
        ValueError: If the threshold is not above 0 and at most 1.

    Source:
        Prefix filter: Bayardo, Ma and Srikant (2007). Chapter 06.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, got {threshold}")
    words = [frozenset(_WORD.findall(sentence.lower())) for sentence in sentences]
    counts = Counter(word for some in words for word in some)
    rows_with: dict[str, list[int]] = defaultdict(list)
    found = []
    for row, some in enumerate(words):
        # Similar sets share a word among their rarest ones, so only those need to be looked up.
        rarest = sorted(some, key=lambda word: (counts[word], word))
        needed = len(some) - math.ceil(threshold * len(some) - 1e-9) + 1
        candidates = set()
        for word in rarest[:needed]:
            candidates.update(rows_with[word])
            rows_with[word].append(row)
        for other in sorted(candidates):
            if len(some & words[other]) >= threshold * len(some | words[other]):
                found.append((row, other))
    return found


def split_pairs(
    pairs: Sequence[Pair], sizes: Mapping[str, tuple[int, int]], seed: int
) -> ParallelText:
    """Hold out whole families of near-duplicates, so that none has members in two parts.

    Two pairs are related if their English or their French sentences are near-duplicates; a family
    is everything that is related through a chain.

    Args:
        pairs: Sentence pairs.
        sizes: For ``validation`` and ``test`` the number of pairs with up to 8 and with more than 8
            English words.
        seed: Seed of the shuffle.

    Returns:
        The three parts; what is held out nowhere is the training part.

    Raises:
        ValueError: If there are too few pairs.

    Source:
        Chapter 06.
    """
    families = _families(pairs)
    order = sorted(families)
    random.Random(seed).shuffle(order)
    parts: dict[str, list[Pair]] = {name: [] for name in sizes}
    left = {(name, is_long): sizes[name][is_long] for name in sizes for is_long in (False, True)}
    train = set(range(len(pairs)))
    for family in order:
        rows = families[family]
        if len(rows) > HELD_OUT_GROUP:
            continue
        need = Counter(len(pairs[row][0].split()) > 8 for row in rows)
        for name in sizes:
            if all(left[name, is_long] >= count for is_long, count in need.items()):
                parts[name] += [pairs[row] for row in rows]
                train -= set(rows)
                for is_long, count in need.items():
                    left[name, is_long] -= count
                break
    if any(left.values()):
        raise ValueError(f"pairs must be enough to hold out {dict(sizes)}, still missing: {left}")
    return ParallelText([pairs[row] for row in sorted(train)], parts["validation"], parts["test"])


def _families(pairs: Sequence[Pair]) -> dict[int, list[int]]:
    """Rows of connected pairs, by the first row of each family."""
    parent = list(range(len(pairs)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]  # halve the path on the way
            row = parent[row]
        return row

    for side in (0, 1):
        for row, other in near_duplicates([pair[side] for pair in pairs]):
            first, second = sorted((root(row), root(other)))
            parent[second] = first
    families: dict[int, list[int]] = defaultdict(list)
    for row in range(len(pairs)):
        families[root(row)].append(row)
    return dict(families)
