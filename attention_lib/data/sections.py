"""The book's own pages as a collection to search: a passage for each section. Chapter 12."""

import json
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "weights" / "sections.json"


@dataclass(frozen=True)
class Section:
    """A section of a chapter.

    Args:
        page: Name of the chapter's file, such as ``07_heads``.
        title: Its heading.
        text: How its prose begins.

    Source:
        Chapter 12.
    """

    page: str
    title: str
    text: str


def book_sections() -> list[Section]:
    """The sections of Parts I and II in their order, without exercises and summaries.

    They come with the package, so that a notebook that runs alone has them too. Made by
    ``python tools/book_sections.py``; a test compares them with the chapters.

    Returns:
        The sections.

    Source:
        Chapters 00 to 09. Chapter 12.
    """
    return [Section(*entry) for entry in json.loads(FILE.read_text(encoding="utf-8"))]


# What a reader might type, and the title of the section that answers it. Written before any search
# was run, to measure searches with.
QUESTIONS = (
    ("Which dimensions are lined up when two shapes differ?", "Broadcasting"),
    ("How do I measure how wrong a predicted distribution is?", "Cross-entropy"),
    ("How are rare words cut into pieces?", "Subwords"),
    ("What if the relation is monotone but bent?", "Ranks see what follows"),
    ("Why do 1 2 3 and 7 8 9 look the same to Pearson?", "The rows of"),
    ("Why divide by the square root of the dimension?", "Dot products grow with width"),
    ("A small vector and a large one get the same similarity", "Correlation cannot tell a puddle"),
    (
        "Additive attention and multiplicative attention",
        "Scores with something to learn",
    ),
    ("Zero vector, division by zero in the cosine", "A constant vector has no direction"),
    ("How do I avoid overflow in exp?", "Shift before you exponentiate"),
    ("derivative of softmax", "The Jacobian, by hand"),
    ("What happens when a query may see nothing at all?", "A row without any key"),
    ("Summing to one down the columns instead of along the rows", "The wrong axis"),
    ("Does shuffling the tokens change the result?", "Attention does not know the order"),
    ("What do query, key and value do?", "Three projections give each token three jobs"),
    ("gradients of attention derived on paper", "The backward pass, by hand"),
    (
        "Similarity goes both ways, relevance does not",
        "What no symmetric score can do",
    ),
    ("Short sentences in a batch are filled up with zeros", "Padding changes the answer"),
    ("The model cheats by looking at future words", "A leak looks like success"),
    ("Putting many small texts into a single training example", "Packing"),
    ("How good is a machine translation?", "BLEU, and how far to trust it"),
    ("Squeezing a whole sentence into a single vector", "A fixed-length vector is slow"),
    ("How many parameters does multi-head attention have?", "Four matrices, whatever the number"),
    ("Can I remove heads after training?", "Take the heads away, one by one"),
    ("Generate faster by keeping earlier keys and values", "A cache for one token at a time"),
    ("sine and cosine for the place of a word", "Added positions: waves of many lengths"),
    ("Inputs longer than those in training", "Train short, test long"),
    ("skip connections", "A residual is a sum over paths"),
    ("Why is a low learning rate needed in the first steps?", "Warm-up"),
    ("I forgot model.eval()", "Dropout left on"),
)
