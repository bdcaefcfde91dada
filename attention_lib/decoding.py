"""From a model to a sequence, token by token: greedy choice and beam search. Chapter 06.

A model takes part through one function, ``step(tokens, state) -> (logits, state)``. It gets the
last token of each row, (B,), and whatever it returned as its state the time before, and answers
with the logits of the next token, (B, V). Rows that have ended are stepped with ``end`` until all
have; what the model answers for them is not looked at.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional

from attention_lib._checks import at_least_float32, check_count, check_float, shape

Step = Callable[[Tensor, Any], tuple[Tensor, Any]]


def reorder(state: Any, rows: Integer[Tensor, " N"], *, size: int) -> Any:
    """Pick rows of a decoding state, so that each hypothesis takes along what its parent saw.

    Args:
        state: A tensor whose first dimension counts rows, an object with ``select(rows)`` that
            returns the picked rows (such as a key-value cache), or any nesting of tuples, lists and
            dicts of these. None and plain numbers belong to no row and stay as they are.
        rows: Which rows to take, (N,); one may be taken several times.
        size: How many rows the state has; keeps a layer dimension from being taken for rows.

    Returns:
        A state of the same form with N rows; ``state`` itself is left as it was.

    Raises:
        TypeError: If the state holds anything else.
        ValueError: If a tensor in it does not have ``size`` rows.

    Example:
        >>> state = {"hidden": torch.tensor([[1.0], [2.0]]), "length": 7}
        >>> reordered = reorder(state, torch.tensor([1, 1, 0]), size=2)
        >>> reordered["hidden"].tolist(), reordered["length"]
        ([[2.0], [2.0], [1.0]], 7)

    Source:
        Chapter 06.
    """
    if state is None or isinstance(state, int | float):
        return state
    if isinstance(state, Tensor):
        if state.ndim == 0 or state.shape[0] != size:
            raise ValueError(
                f"state must hold tensors with one row for each hypothesis, ({size}, ...), "
                f"got shape {shape(state)}"
            )
        return state.index_select(0, rows)
    if hasattr(state, "select"):
        return state.select(rows)
    if isinstance(state, dict):
        return {name: reorder(part, rows, size=size) for name, part in state.items()}
    if isinstance(state, tuple | list):
        parts = [reorder(part, rows, size=size) for part in state]
        # A named tuple takes its fields one by one.
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    raise TypeError(
        "state must be a tensor, an object with select(rows), None, a number, or a tuple, list or "
        f"dict of these, got {type(state).__name__}"
    )


def greedy(
    step: Step, state: Any, start: Integer[Tensor, " B"], end: int, max_length: int
) -> Integer[Tensor, "B L"]:
    r"""Take the most likely next token, again and again.

    .. math:: y_t = \arg\max_v \; p(v \mid y_{<t})

    Args:
        step: The model, as described at the top of this module.
        state: The state before the first token.
        start: The token that each row starts from, (B,).
        end: The token that ends a sequence.
        max_length: The most tokens a row may get, its end token among them.

    Returns:
        Tokens without ``start``, (B, L), where L is at most ``max_length``. After its first
        ``end`` a row is filled up with ``end``; a row that was cut off has none.

    Raises:
        TypeError: If ``start`` is not a tensor of int64, the logits are not floating-point numbers,
            or a number is not an integer.
        ValueError: If ``start`` is not (B,), ``max_length`` is below 1, ``end`` is no token, or the
            logits have another shape, hold a NaN or a plus infinity, or forbid every token.

    Example:
        >>> chances = torch.tensor([[0.0, 0.6, 0.4], [0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])
        >>> step = lambda tokens, state: (chances[tokens].log(), state)  # 0 starts and ends
        >>> greedy(step, None, torch.tensor([0]), end=0, max_length=2).tolist()
        [[1, 0]]

    Source:
        Sutskever et al. (2014), section 3.2, with a beam of 1. Chapter 06.
    """
    _check_arguments(start, end, max_length)
    tokens, ended = start, torch.zeros_like(start, dtype=torch.bool)
    chosen: list[Tensor] = []
    with torch.no_grad():
        while len(chosen) < max_length and not ended.all():
            logits, state = step(tokens, state)
            _check_logits(logits, ~ended, end, len(chosen) + 1)
            tokens = logits.argmax(dim=-1).masked_fill(ended, end)
            ended = tokens == end  # stays True, because an ended row is given nothing else
            chosen.append(tokens)
    return torch.stack(chosen, dim=1)


def beam(
    step: Step,
    state: Any,
    start: Integer[Tensor, " B"],
    end: int,
    max_length: int,
    *,
    width: int,
    length_penalty: float = 0.6,
) -> tuple[Integer[Tensor, "B L"], Float[Tensor, " B"]]:
    r"""Keep the ``width`` most likely beginnings of each row, and return the best sequence found.

    .. math:: s(Y) = \log p(Y) \Big/ \left(\frac{5 + |Y|}{6}\right)^{\alpha}

    Beginnings compete by log-probability, whole sequences by their score, in which dividing by the
    length gives long ones a chance. A sequence is whole when it ends while it is among the
    ``width`` best of its row, or when it reaches ``max_length``. The search goes on until no
    beginning can overtake the best whole sequence. Rows of a batch do not feel each other; ties are
    broken in any way.

    Args:
        step: The model, as described at the top of this module. After the first call it gets up to
            ``B * width`` rows, those of one sequence side by side.
        state: The state before the first token, of a form that :func:`reorder` takes.
        start: The token that each row starts from, (B,).
        end: The token that ends a sequence.
        max_length: The most tokens a row may get, its end token among them.
        width: How many beginnings are kept for each row.
        length_penalty: :math:`\alpha`, 0 to 10; at 0 the score is the log-probability.

    Returns:
        Tokens without ``start``, (B, L), filled up as in :func:`greedy`, and their scores, (B,).

    Raises:
        TypeError: If ``length_penalty`` is not a number, or for what :func:`greedy` and
            :func:`reorder` refuse.
        ValueError: If ``width`` is below 1, ``length_penalty`` is not between 0 and 10, or for what
            :func:`greedy` and :func:`reorder` refuse.

    Example:
        >>> chances = torch.tensor([[0.0, 0.6, 0.4], [0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])
        >>> step = lambda tokens, state: (chances[tokens].log(), state)  # 0 starts and ends
        >>> best, score = beam(step, None, torch.tensor([0]), 0, 2, width=2, length_penalty=0.0)
        >>> best.tolist(), round(score.exp().item(), 3)  # greedy: [[1, 0]], with 0.6 x 0.5 = 0.3
        ([[2, 0]], 0.4)

    Source:
        Sutskever et al. (2014), section 3.2; Wu et al. (2016), section 7,
        equation 14. Chapter 06.
    """
    _check_arguments(start, end, max_length)
    check_count("width", width, least=1)
    _check_penalty(length_penalty)
    size, kept = len(start), 1  # one beginning of each row at first: the empty one
    first = torch.arange(size, device=start.device)[:, None]
    tokens, prefixes = start, start.new_empty(size, 1, 0)
    totals = torch.zeros(size, 1, device=start.device)
    alive = torch.ones_like(totals, dtype=torch.bool)
    best = start.new_full((size, max_length), end)
    best_score = torch.full((size,), -math.inf, device=start.device)

    with torch.no_grad():
        for length in range(1, max_length + 1):
            logits, state = step(tokens, state)
            _check_logits(logits, alive.flatten(), end, length)
            gains = logits.to(at_least_float32(logits.dtype)).log_softmax(dim=-1)
            gains = gains.view(size, kept, -1).masked_fill(~alive[..., None], -math.inf)
            candidates = totals[..., None] + gains  # (B, kept, V)
            penalty = ((5 + length) / 6) ** length_penalty

            # Those that end now, if they are among the best, are whole.
            count = min(width, candidates[0].numel())
            bar = candidates.flatten(1).topk(count).values[:, -1:]
            ending = candidates[..., end]  # (B, kept)
            score, parent = (ending.masked_fill(ending < bar, -math.inf) / penalty).max(dim=1)
            whole = prefixes[first[:, 0], parent]
            best, best_score = _better(best, best_score, whole, score, end)

            # The best of those that do not end go on.
            candidates[..., end] = -math.inf
            totals, index = candidates.flatten(1).topk(count)
            parents, tokens = index // candidates.shape[-1], index % candidates.shape[-1]
            prefixes = torch.cat([prefixes[first, parents], tokens[..., None]], dim=-1)
            if length == max_length:
                score = totals[:, 0] / penalty
                best, best_score = _better(best, best_score, prefixes[:, 0], score, end)

            # A longer sequence has no higher log-probability, so its score is at most this bound.
            bound = totals / ((5 + max_length) / 6) ** length_penalty
            alive = bound > best_score[:, None]
            if not alive.any():
                break
            state = reorder(state, (first * kept + parents).flatten(), size=size * kept)
            tokens, kept = tokens.masked_fill(~alive, end).flatten(), count
    return _without_filling(best, end), best_score


def _better(
    best: Tensor, best_score: Tensor, tokens: Tensor, score: Tensor, end: int
) -> tuple[Tensor, Tensor]:
    """For each row the sequence with the higher score; ``tokens`` are filled up with ``end``."""
    filled = functional.pad(tokens, (0, best.shape[1] - tokens.shape[1]), value=end)
    wins = score > best_score
    return torch.where(wins[:, None], filled, best), torch.where(wins, score, best_score)


def _without_filling(tokens: Tensor, end: int) -> Tensor:
    """Drop the columns at the right that come after the first ``end`` of every row."""
    longest = int((tokens != end).sum(dim=1).max())
    return tokens[:, : longest + 1]


def _check_arguments(start: Tensor, end: int, max_length: int) -> None:
    if not isinstance(start, Tensor):
        raise TypeError(f"start must be a torch.Tensor, got {type(start).__name__}")
    if start.dtype != torch.int64:
        raise TypeError(f"start must have dtype torch.int64, got {start.dtype}")
    if start.ndim != 1 or len(start) == 0:
        raise ValueError(f"start must have shape (B,) with B at least 1, got {shape(start)}")
    check_count("end", end, least=0)
    check_count("max_length", max_length, least=1)


def _check_penalty(number: float) -> None:
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"length_penalty must be a number, got {type(number).__name__}")
    if not 0 <= number <= 10:  # far above what is of use, and far below what overflows
        raise ValueError(f"length_penalty must lie between 0 and 10, got {number}")


def _check_logits(logits: Tensor, alive: Tensor, end: int, length: int) -> None:
    """Require logits (rows, V) from which each row that is still alive can choose a token."""
    check_float("logits", logits, rank=1)
    if logits.ndim != 2 or len(logits) != len(alive):
        raise ValueError(f"logits must have shape (B, V) = ({len(alive)}, V), got {shape(logits)}")
    if end >= logits.shape[1]:
        raise ValueError(f"end must be below V = {logits.shape[1]}, got {end}")
    # The largest is NaN if any is, infinite if one is, and minus infinite if no token is allowed.
    largest = logits.amax(dim=1)
    bad = (alive & ~largest.isfinite()).nonzero()
    if len(bad):
        row = int(bad[0])
        raise ValueError(
            "logits must have a finite largest value in every row, "
            f"got {largest[row].item()} in row {row} for token {length}"
        )
