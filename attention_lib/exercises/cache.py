"""Checks for the exercises of chapter 17."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attention_lib.exercises.report import (
    Case,
    Report,
    check_against,
    check_answers,
    check_cases,
    counted,
    waves,
)


@counted
def check_paper(bytes_a_token: Any, tokens_in_memory: Any, tokens_a_call: Any) -> Report:
    """Check the three answers of the exercise on paper.

    Args:
        bytes_a_token: Of a cache with 32 layers, 8 key heads of 128, two bytes a number.
        tokens_in_memory: How many tokens of it fit into 8 GiB.
        tokens_a_call: Tokens a call of a target yields at acceptance 0.8 and three ahead.

    Returns:
        The report.

    Source:
        Chapter 17, exercise "three sizes".
    """
    return check_answers(
        {
            "bytes a token": (
                bytes_a_token,
                131_072,
                "Keys and values, of each layer and each key head; two bytes a number.",
            ),
            "tokens in memory": (
                tokens_in_memory,
                65_536,
                "8 GiB are eight times 2 to the power of 30 bytes. Divide.",
            ),
            "tokens a call": (
                tokens_a_call,
                2.952,
                "The target's own token always comes; the first guess with 0.8, and so on.",
            ),
        }
    )


@counted
def check_kept(function: Callable[[int, int, int], Any]) -> Report:
    """Check a function ``(seen, window, sinks) -> positions`` for a sliding cache.

    Args:
        function: Takes how many positions were seen, the window and the sinks; returns the
            positions that the cache holds, in order, as a tensor of integers.

    Returns:
        The report.

    Source:
        Chapter 17, exercise "what a sliding cache holds".
    """
    inputs: dict[str, tuple[tuple[Any, ...], str]] = {
        "a window that is full": ((10, 3, 2), "The first two positions and the last three."),
        "just full": ((5, 3, 2), "Five positions fit into a cache of two and three."),
        "not full yet": (
            (4, 3, 2),
            "Window and sinks would overlap here: hold each position once.",
        ),
        "fewer positions than sinks": ((1, 3, 2), "Nothing that was not seen."),
        "no sinks": ((7, 4, 0), "Without sinks only the window is left."),
        "nothing seen": ((0, 3, 2), "An empty cache is a tensor with no entry."),
    }
    return check_against(function, _kept, inputs)


def _kept(seen: int, window: int, sinks: int) -> Tensor:
    position = torch.arange(seen)
    return position[(position < sinks) | (position >= seen - window)]


@counted
def check_replacement(function: Callable[[Tensor, Tensor], Any]) -> Report:
    """Check a function ``(p, q) -> probabilities`` of the token that replaces a rejected one.

    Args:
        function: Takes the target's probabilities (V,) and the draft's (V,); returns (V,).

    Returns:
        The report.

    Source:
        Chapter 17, exercise "find the bug".
    """
    p = torch.tensor([0.5, 0.25, 0.25])
    q = torch.tensor([0.25, 0.75, 0.0])
    inputs: dict[str, tuple[tuple[Any, ...], str]] = {
        "on paper": (
            (p, q),
            "Where the draft gives too much, nothing may be added: that token came often enough.",
        ),
        "the other way round": ((q, p), "What is left sums to 0.5 here too; divide by the sum."),
        "a draft that is sure": (
            (torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.0, 0.0, 1.0, 0.0])),
            "A rejected token may not come back as its own replacement.",
        ),
        "equal": (
            (p, p.clone()),
            "Nothing is left, so nothing is ever rejected; give the target back, not 0 / 0.",
        ),
    }
    return check_against(function, _replacement, inputs)


def _replacement(p: Tensor, q: Tensor) -> Tensor:
    left = (p - q).clamp(min=0)
    return left / left.sum() if left.any() else p


# --- decoders that may or may not be faithful to their whole pass ---------------------------------


class Decoder:
    """A layer that sums what it has seen, each weighted by how far back it lies.

    Args:
        weight: From the position of the query and that of the key to a weight.
        wrong: The same, as the steps of a mistaken cache see it; ``weight`` if None.
        keep: From an input to what the steps' cache stores of it; all of it if None.
        shared: Whether all sequences get one and the same cache.
        noise: Added by each step.

    Source:
        Chapter 17, exercise "a test for caches".
    """

    def __init__(
        self,
        weight: Callable[[int, int], float],
        wrong: Callable[[int, int], float] | None = None,
        *,
        keep: Callable[[Tensor], Tensor] | None = None,
        shared: bool = False,
        noise: float = 0.0,
    ) -> None:
        self._weight, self._wrong = weight, weight if wrong is None else wrong
        self._keep = keep
        self._cache: list[Tensor] | None = [] if shared else None
        self._noise = noise

    def whole(self, x: Tensor) -> Tensor:
        """Outputs (T, D) for inputs (T, D), in one pass."""
        rows = [sum(self._weight(t, s) * x[s] for s in range(t + 1)) for t in range(len(x))]
        return torch.stack(rows)  # type: ignore[arg-type]

    def start(self) -> list[Tensor]:
        """A cache for a new sequence."""
        return [] if self._cache is None else self._cache

    def step(self, x: Tensor, cache: list[Tensor]) -> Tensor:
        """The output (D,) for one more input (D,); the cache grows by it."""
        cache.append(x if self._keep is None else self._keep(x))
        t = len(cache) - 1
        total: Tensor = sum(self._wrong(t, s) * cache[s] for s in range(t + 1))  # type: ignore
        return total + self._noise * waves(len(x), shift=t).double()

    def __repr__(self) -> str:
        return "a decoder"


@counted
def check_faithful(function: Callable[[Decoder], bool]) -> Report:
    """Check a property test ``(decoder) -> bool``: do its steps give what its whole pass gives?

    Args:
        function: Takes a decoder with ``whole(x)``, ``start()`` and ``step(x, cache)`` for inputs
            in float64; returns whether steps through a new cache equal one pass, up to rounding.

    Returns:
        The report.

    Source:
        Chapter 17, exercise "a test for caches".
    """

    def far(t: int, s: int) -> float:
        return 1.0 + s + 2.0 * t  # the place counts, not only the distance

    cases = {
        "a right one": (Decoder(far), True, "Step t must give row t of the whole pass."),
        "it remembers nothing": (
            Decoder(far, lambda t, s: far(t, s) * (t == s)),
            False,
            "Compare the second row as well: the first has no past.",
        ),
        "its positions start again at 0": (
            Decoder(far, lambda t, s: far(0, s)),
            False,
            "Compare every step, not only the first.",
        ),
        "it forgets what is twelve back": (
            Decoder(far, lambda t, s: far(t, s) * (t - s < 12)),
            False,
            "Take a sequence of 16 or more.",
        ),
        "it keeps inputs in half precision": (
            Decoder(far, keep=lambda x: x.half().double()),
            False,
            "Small whole numbers hide this one: take random inputs.",
        ),
        "all sequences share one cache": (
            Decoder(far, shared=True),
            False,
            "Decode a second sequence from a new start().",
        ),
        "right up to rounding": (
            Decoder(far, noise=1e-11),
            True,
            "Sums in another order round differently: allow about 1e-9.",
        ),
        "a small error": (
            Decoder(far, noise=1e-5),
            False,
            "In float64 an error of 1e-5 is not rounding.",
        ),
        "two sequences, rightly": (
            Decoder(lambda t, s: float(s == 0)),
            True,
            "Another right one: it always looks at the first position.",
        ),
    }
    return check_cases(
        function,
        [Case(name, (decoder,), answer, hint) for name, (decoder, answer, hint) in cases.items()],
    )
