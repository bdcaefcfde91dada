"""The kinds of function on the page "Find the bug": what they take, small cases, right answers.

- softmax: ``(scores, mask) -> weights``
- attention: ``(query, key, value, mask) -> output``
- causal: ``(query, key, value) -> output``, an attention that makes its own causal mask
- heads: attention with two heads
- block: ``(x, sublayer) -> output``, a residual with the norm after the sum
- vocabulary: ``(train, test) -> numbers of words``, from two lists of sentences

In a mask True means "may attend". No function may change what it is given.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from attention_lib.attention import attend_explicit
from attention_lib.exercises.report import waves
from attention_lib.heads import merge_heads, split_heads
from attention_lib.masks import causal
from attention_lib.softmax import softmax

Function = Callable[..., Any]

_T, _F = True, False
CASES: dict[str, dict[str, tuple[Any, ...]]] = {
    "softmax": {
        "two rows of two": (
            torch.tensor([[0.0, 1.0], [2.0, 0.0]]),
            torch.tensor([[_T, _T], [_F, _T]]),
        ),
        "three rows, some keys forbidden": (
            2 * waves(3, 3),
            torch.tensor([[_T, _T, _F], [_T, _T, _T], [_F, _T, _T]]),
        ),
    },
    "attention": {
        "two queries, four keys": (
            torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
            torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 2.0]]),
            torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [4.0, 1.0]]),
            torch.tensor([[_T, _T, _F, _F], [_F, _T, _T, _F]]),
        ),
        "three queries, five keys, a batch of two": (
            *(waves(2, 3, 4), waves(2, 5, 4, shift=1), waves(2, 5, 6, shift=2)),
            torch.tensor([[_T, _T, _T, _F, _F], [_F, _T, _F, _T, _F], [_F, _F, _T, _T, _T]]),
        ),
    },
    "causal": {
        "three positions": (
            torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]),
            torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0]]),
            torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]),
        ),
        "five positions, a batch of two": tuple(waves(2, 5, 4, shift=s) for s in range(3)),
    },
    "block": {
        "a sublayer that says nothing": (
            torch.tensor([[0.0, 10.0, 20.0], [30.0, 0.0, 30.0]]),
            torch.zeros_like,
        ),
        "a sublayer that speaks": (20 * waves(4, 5), torch.relu),
        "a batch of two": (20 * waves(2, 3, 4), torch.relu),
    },
    "vocabulary": {
        "one new word": (["boats reach the bank"], ["the shore"]),
        "several sentences": (["the boats", "reach banks"], ["a boat", "banks reach boats"]),
    },
}
CASES["heads"] = CASES["attention"]

# Only for the comparison with the library: shapes and masks that make a wrong function stop.
MORE_CASES: dict[str, dict[str, tuple[Any, ...]]] = {
    "softmax": {
        "two rows of three, one forbidden": (
            torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 3.0]]),
            torch.tensor([[_F, _F, _F], [_T, _T, _F]]),
        ),
        "a batch of two": (waves(2, 3, 4), torch.ones(3, 4).bool().triu()),
    },
}


def _heads(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    query, key, value = (split_heads(x, 2) for x in (query, key, value))
    return merge_heads(attend_explicit(query, key, value, mask))


def _vocabulary(train: list[str], test: list[str]) -> dict[str, int]:
    words = sorted({word for sentence in train for word in sentence.split()})
    return {word: number for number, word in enumerate(["<unknown>", *words])}


REFERENCES: dict[str, Function] = {
    "softmax": softmax,
    "attention": attend_explicit,
    "causal": lambda query, key, value: attend_explicit(query, key, value, causal()),
    "heads": _heads,
    "block": lambda x, sublayer: layer_norm(x + sublayer(x), x.shape[-1:]),
    "vocabulary": _vocabulary,
}
