"""From a model to a text by chance: temperature, top-k, top-p. Chapter 11.

A model takes part through the same function ``step`` as in :mod:`attention_lib.decoding`.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from attention_lib._checks import (
    at_least_float32,
    check_count,
    check_float,
    check_positive,
)
from attention_lib.decoding import Step


def keep_top_k(logits: Float[Tensor, "... V"], k: int) -> Float[Tensor, "... V"]:
    """Forbid all but the k most likely tokens.

    Args:
        logits: Scores, (..., V).
        k: How many to keep, at least 1; all if there are no more. Of tokens with equal scores at
            the border those with the lower numbers stay.

    Returns:
        The scores, with minus infinity for the forbidden.

    Raises:
        TypeError: If ``logits`` is not a floating-point tensor or ``k`` not an integer.
        ValueError: If ``k`` is below 1.

    Example:
        >>> keep_top_k(torch.tensor([1.0, 3.0, 2.0]), 2).tolist()
        [-inf, 3.0, 2.0]

    Source:
        Fan, Lewis and Dauphin (2018), section 5.4. Chapter 11.
    """
    check_float("logits", logits, rank=1)
    check_count("k", k, least=1)
    order = logits.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, True)
    return logits.masked_fill(~kept, float("-inf"))


def keep_top_p(logits: Float[Tensor, "... V"], p: float) -> Float[Tensor, "... V"]:
    r"""Forbid all but the fewest tokens that together have at least probability p.

    .. math:: \min k : \sum_{i \le k} p_{(i)} \ge p, \qquad p_{(1)} \ge p_{(2)} \ge \dots

    Args:
        logits: Scores, (..., V).
        p: The share of probability to keep, above 0 and at most 1.

    Returns:
        The scores, with minus infinity for the forbidden; the most likely token always stays.

    Raises:
        TypeError: If ``logits`` is not a floating-point tensor or ``p`` not a number.
        ValueError: If ``p`` is not above 0 and at most 1.

    Example:
        >>> keep_top_p(torch.tensor([0.5, 0.3, 0.2]).log(), 0.7).exp().round(decimals=3)
        tensor([0.5000, 0.3000, 0.0000])

    Source:
        Holtzman et al. (2020), section 3.1, equation 2. Chapter 11.
    """
    check_float("logits", logits, rank=1)
    check_positive("p", p)
    if p > 1:
        raise ValueError(f"p must be at most 1, got {p}")
    probability = logits.to(at_least_float32(logits.dtype)).softmax(dim=-1)
    largest, order = probability.sort(dim=-1, descending=True, stable=True)
    # A token stays if those before it have not reached p yet.
    before = largest.cumsum(dim=-1) - largest
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before < p)
    return logits.masked_fill(~kept, float("-inf"))


def sample(
    step: Step,
    state: Any,
    start: Integer[Tensor, " B"],
    max_length: int,
    *,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Iterator[Integer[Tensor, " B"]]:
    r"""Draw tokens one after the other, and hand each out as soon as it is drawn.

    .. math:: y_t \sim \mathrm{softmax}(z_t / \tau)

    First the temperature acts, then top-k, then top-p on what is left. Stop taking tokens when you
    have seen the one that ends a text.

    Args:
        step: The model, as described in :mod:`attention_lib.decoding`.
        state: The state before the first token.
        start: The token that each row starts from, (B,).
        max_length: The most tokens to draw.
        generator: Source of random numbers, on the device of the logits.
        temperature: :math:`\tau`; below 1 likely tokens become likelier.
        top_k: Keep that many tokens; all if None.
        top_p: Keep that share of probability; all if None.

    Yields:
        The next token of each row, (B,).

    Raises:
        TypeError: If a number has the wrong type.
        ValueError: If a number is out of range.

    Example:
        >>> step = lambda tokens, state: (torch.eye(4)[tokens + 1], state)  # the next number
        >>> start, generator = torch.tensor([0]), torch.Generator().manual_seed(0)
        >>> [token.item() for token in sample(step, None, start, 3, generator=generator, top_k=1)]
        [1, 2, 3]

    Source:
        Holtzman et al. (2020), sections 3.1 to 3.3. Chapter 11.
    """
    check_count("max_length", max_length, least=1)
    check_positive("temperature", temperature)
    tokens = start
    for _ in range(max_length):
        with torch.no_grad():
            logits, state = step(tokens, state)
            logits = logits.to(at_least_float32(logits.dtype)) / temperature
            if top_k is not None:
                logits = keep_top_k(logits, top_k)
            if top_p is not None:
                logits = keep_top_p(logits, top_p)
            drawn = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)
        tokens = drawn[:, 0]
        yield tokens
