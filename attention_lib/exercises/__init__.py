"""Checks for the exercises: call one on your own function and read what it says.

One module a chapter. A check tries your function on several cases and reports the first that fails:
the input, what was expected, what came, and a hint. A function that returns None counts as not
attempted.
"""

from attention_lib.exercises import (
    attention,
    blocks,
    correlation,
    heads,
    learned,
    masks,
    positions,
    scores,
    seq2seq,
    softmax,
    tools,
)
from attention_lib.exercises.report import (
    Case,
    Report,
    as_tensors,
    check_against,
    check_answers,
    check_cases,
)

__all__ = [
    "Case",
    "Report",
    "as_tensors",
    "attention",
    "blocks",
    "check_against",
    "check_answers",
    "check_cases",
    "correlation",
    "heads",
    "learned",
    "masks",
    "positions",
    "scores",
    "seq2seq",
    "softmax",
    "tools",
]
