"""Small computations with sliders that run in the page, without a kernel.

Each function returns what a notebook shows when it is the last line of a cell. The numbers under
the sliders are computed by the page itself, by the formula in the function's docstring.
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from attention_lib.component import Component, component


def temperature(scores: Sequence[float], labels: Sequence[str], *, description: str) -> Component:
    r"""Weights of some scores under a slider for the temperature.

    .. math:: w_j = \frac{e^{s_j / \tau}}{\sum_l e^{s_l / \tau}}

    Args:
        scores: One score for each key.
        labels: One name for each key.
        description: What to try, one or two sentences.

    Returns:
        The component; :math:`\tau` runs from 0.05 to 20.

    Raises:
        ValueError: If there are not as many labels as scores.

    Source:
        Chapter 03.
    """
    if len(labels) != len(scores):
        raise ValueError(f"labels must be {len(scores)} names, got {len(labels)}")
    steps = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 2.5, 3.0]
    steps += [3.5, 4.0, 4.5, 5.0, 7.0, 10.0, 20.0]
    data = {"scores": [float(score) for score in scores], "labels": list(labels)}
    return _live(
        "temperature", data, description, [_slider("temperature", "temperature", steps, 1.0)]
    )


def width(query: Float[Tensor, " D"], keys: Float[Tensor, "n D"], *, description: str) -> Component:
    r"""Weights from the first :math:`d` coordinates, with the factor :math:`1/\sqrt d` and without.

    .. math:: s_j = \sum_{i \le d} q_i k_{ji}, \qquad
              w = \mathrm{softmax}(s), \qquad w' = \mathrm{softmax}(s / \sqrt{d})

    Args:
        query: The query, (D).
        keys: The keys, (n, D).
        description: What to try.

    Returns:
        The component; :math:`d` runs through the powers of two up to D.

    Raises:
        ValueError: If the shapes do not fit.

    Source:
        Vaswani et al. (2017), section 3.2.1. Chapter 02.
    """
    if query.ndim != 1 or keys.ndim != 2 or keys.shape[1] != len(query):
        raise ValueError(
            f"query and keys must have shapes (D) and (n, D), "
            f"got {tuple(query.shape)} and {tuple(keys.shape)}"
        )
    widths = [2**power for power in range(len(query).bit_length()) if 2**power <= len(query)]
    data = {
        "query": _numbers(query),
        "keys": [_numbers(key) for key in keys],
        "labels": [f"key {number}" for number in range(len(keys))],
    }
    start = widths[len(widths) // 2]
    return _live("width", data, description, [_slider("width", "width D", widths, start)])


def rotary(
    query: Float[Tensor, " D"],
    key: Float[Tensor, " D"],
    *,
    base: float = 10000.0,
    positions: int = 32,
    description: str,
) -> Component:
    r"""The score of a query and a key that are turned by their positions.

    .. math:: s = \sum_{i < D/2} (R_{t \theta_i}\, q_i) \cdot (R_{s \theta_i}\, k_i), \qquad
              \theta_i = \text{base}^{-2i/D}

    The pair :math:`q_i` is made of coordinates :math:`i` and :math:`i + D/2`, as in
    :class:`attention_lib.positions.Rotary`.

    Args:
        query: The query, (D).
        key: The key, (D).
        base: Sets the lowest frequency.
        positions: The sliders run from 0 to one less.
        description: What to try.

    Returns:
        The component.

    Raises:
        ValueError: If query and key are not two vectors of one even width.

    Source:
        Su et al. (2021), section 3.2, equations 14 and 15. Chapter 08.
    """
    if query.shape != key.shape or query.ndim != 1 or len(query) % 2:
        raise ValueError(
            f"query and key must be vectors of one even width, "
            f"got shapes {tuple(query.shape)} and {tuple(key.shape)}"
        )
    pairs = len(query) // 2
    data = {
        "query": [_numbers(pair) for pair in query.reshape(2, pairs).T],
        "key": [_numbers(pair) for pair in key.reshape(2, pairs).T],
        "angles": [base ** (-2 * i / len(query)) for i in range(pairs)],
        "labels": [f"pair {number}" for number in range(pairs)],
    }
    steps = list(range(positions))
    sliders = [
        _slider("query", "query at t =", steps, min(5, positions - 1)),
        _slider("key", "key at s =", steps, min(2, positions - 1)),
    ]
    return _live("rotary", data, description, sliders)


def window(*, description: str) -> Component:
    r"""Pairs of query and key under a causal sliding window, beside all pairs.

    .. math:: \tfrac12 w (w + 1) + (n - w)\, w \quad\text{in place of}\quad \tfrac12 n (n + 1)

    Args:
        description: What to try.

    Returns:
        The component; lengths from 16 to 131,072, windows from 16 to 4,096.

    Source:
        Beltagy, Peters and Cohan (2020), section 3.1. Chapter 18.
    """
    lengths, windows = ([2**power for power in range(4, top)] for top in (18, 13))
    sliders = [
        _slider("length", "length n", lengths, 4096),
        _slider("window", "window w", windows, 256),
    ]
    return _live("window", {}, description, sliders)


def _slider(name: str, label: str, values: Sequence[float], start: float) -> dict[str, Any]:
    """A slider that stops at the given values."""
    return {"name": name, "label": label, "values": list(values), "start": values.index(start)}


def _numbers(vector: Tensor) -> list[float]:
    """Numbers short enough for a page: what is shown has three decimals."""
    return [float(f"{number:.6g}") for number in vector.double().tolist()]


def _live(
    kind: str, data: dict[str, Any], description: str, sliders: list[dict[str, Any]]
) -> Component:
    return component("live", data | {"kind": kind, "sliders": sliders}, description)
