"""Properties that see what shapes and a falling loss do not. Used by the page "Find the bug".

A property takes a function and its kind (:mod:`attention_lib.exercises.kinds`). It tries the cases
of that kind, the smallest first, and reports that it holds, or the first case that breaks it.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from attention_lib.exercises.kinds import CASES, Function
from attention_lib.exercises.report import Report, check_against, show, waves

Inputs = dict[str, tuple[tuple[Any, ...], str]]


def rows_sum_to_one(function: Function, kind: str) -> Report:
    """The weights of each query sum to one, so the mean of values that are all one is one.

    Args:
        function: The function to look at.
        kind: "softmax", "attention", "heads" or "causal".

    Source:
        Chapters 03 and 04.
    """

    def sums(*given: Tensor) -> Any:
        if kind == "softmax":
            return function(*given).sum(dim=-1)
        query, key, value, *mask = given
        return function(query, key, torch.ones_like(value), *mask)[..., 0]

    hint = "Expected and got are the sums of the rows of weights."
    if kind != "softmax":
        hint = "All values are replaced by ones, so what comes out are the sums of the weights."
    cases = _cases(kind, hint)
    return _judge("rows_sum_to_one", sums, lambda x, *_: torch.ones(x.shape[:-1]), cases)


def scale_follows_width(function: Function, kind: str) -> Report:
    r"""Each feature twice, divided by the fourth root of 2, in queries and keys changes nothing.

    .. math:: \frac{2 \, q k^\top / \sqrt 2}{\sqrt{2 D}} = \frac{q k^\top}{\sqrt D}

    Args:
        function: The function to look at.
        kind: "attention", "heads" or "causal".

    Source:
        Chapters 02 and 07.
    """

    def wider(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, dim=-1) / 2**0.25

    return _judge(
        "scale_follows_width",
        lambda query, key, *rest: function(wider(query), wider(key), *rest),
        function,
        _cases(
            kind,
            "Got: queries and keys with each feature twice, divided by the fourth root of 2. "
            "That must change nothing; expected is the output without it.",
        ),
    )


def padding(function: Function, kind: str) -> Report:
    """What the mask forbids to all queries may hold any finite numbers: nothing changes.

    Args:
        function: The function to look at.
        kind: "softmax", "attention" or "heads".

    Source:
        Chapter 05.
    """

    def last_forbidden(*given: Tensor) -> tuple[Any, ...]:
        real = torch.arange(given[-1].shape[-1]) < given[-1].shape[-1] - 1
        return (*given[:-1], real.expand_as(given[-1]))

    def changed(*given: Tensor) -> Any:
        if kind == "softmax":
            return function(_other_rows(given[0].mT, -1).mT, given[1])
        query, key, value, mask = given
        return function(query, _other_rows(key, -1), _other_rows(value, -1), mask)

    hint = "Got is what comes out after a change at the last key, which nobody may see."
    return _judge("padding", changed, function, _cases(kind, hint, last_forbidden))


def masked_rows(function: Function, kind: str) -> Report:
    """A query that may attend to nothing gives weight 0 to every key.

    Args:
        function: The function to look at.
        kind: "softmax".

    Source:
        Chapters 03 and 05.
    """
    return _judge(
        "masked_rows",
        lambda scores, mask: function(scores, mask)[..., 0, :],
        lambda scores, mask: torch.zeros_like(scores[..., 0, :]),
        _cases(kind, "Expected and got are the weights of the first query.", _first_row_masked),
    )


def masked_gradients(function: Function, kind: str) -> Report:
    """From a query that may attend to nothing comes gradient 0, not NaN.

    Args:
        function: The function to look at.
        kind: "softmax".

    Source:
        Chapters 03 and 05.
    """
    return _judge(
        "masked_gradients",
        lambda *given: _gradients(function, given)[0][..., 0, :],
        lambda scores, mask: torch.zeros_like(scores[..., 0, :]),
        _cases(
            kind, "Expected and got are gradients of the first row of scores.", _first_row_masked
        ),
    )


def causal(function: Function, kind: str) -> Report:
    """Change everything from one position on, and what comes before stays.

    Args:
        function: The function to look at.
        kind: "causal" or "block".

    Source:
        Chapter 05.
    """

    def changed(*given: Any) -> Any:
        *arguments, end = given
        future = [_other_rows(a, end) if isinstance(a, Tensor) else a for a in arguments]
        return function(*future)[..., :end, :]

    hint = "The last input is the first position that changes; got are the rows before it."
    cases = {
        f"{name}, changed from position {end} on": ((*arguments, end), hint)
        for name, arguments in CASES[kind].items()
        for end in range(1, arguments[0].shape[-2])
    }
    return _judge(
        "causal", changed, lambda *given: function(*given[:-1])[..., : given[-1], :], cases
    )


def permutation(function: Function, kind: str) -> Report:
    """Keys, values and columns of the mask in another order, all in the same, change nothing.

    A vocabulary does not depend on the order of the sentences.

    Args:
        function: The function to look at.
        kind: "attention", "heads" or "vocabulary".

    Source:
        Chapter 04.
    """
    if kind == "vocabulary":
        cases = _cases(kind, "Got is the vocabulary of the same sentences in reversed order.")
        return _judge(
            "permutation", lambda *splits: function(*(s[::-1] for s in splits)), function, cases
        )
    return _judge(
        "permutation",
        lambda q, k, v, m: function(q, k.roll(1, dims=-2), v.roll(1, dims=-2), m.roll(1, dims=-1)),
        function,
        _cases(kind, "Got is the output after each key, with its value, moved on by one place."),
    )


def gradient_reaches(function: Function, kind: str) -> Report:
    """Every input has a gradient that is more than rounding.

    Args:
        function: The function to look at.
        kind: Any but "vocabulary".

    Source:
        Chapter 04b.
    """
    names = {"softmax": ["scores"], "block": ["x"]}.get(kind, ["query", "key", "value"])

    def reached(*given: Any) -> str:
        sizes = [gradient.abs().max() for gradient in _gradients(function, given)]
        return ", ".join(n for n, size in zip(names, sizes, strict=True) if size > 1e-6)

    cases = _cases(kind, "Expected and got are the inputs that have a gradient.")
    return _judge("gradient_reaches", reached, lambda *_: ", ".join(names), cases)


def inputs_unchanged(function: Function, kind: str) -> Report:
    """After the call every argument is what it was before.

    Args:
        function: The function to look at.
        kind: Any.

    Source:
        Chapter 05.
    """
    unchanged = "no argument has changed"

    def written(*given: Any) -> str:
        before = deepcopy(given)
        function(*given)
        for place, (old, new) in enumerate(zip(before, given, strict=True), start=1):
            other = not torch.equal(old, new) if isinstance(old, Tensor) else old != new
            if other:
                return f"argument {place} is now {show(new)}"
        return unchanged

    cases = _cases(kind, "Got names the first argument that the call has written into.")
    return _judge("inputs_unchanged", written, lambda *_: unchanged, cases)


def rows_normalised(function: Function, kind: str) -> Report:
    """Each row that leaves a norm with gain one and shift zero has mean 0 and mean square 1.

    Args:
        function: The function to look at.
        kind: "block".

    Source:
        Chapter 09.
    """

    def moments(*given: Any) -> Tensor:
        rows = function(*given)
        return torch.stack([rows.mean(dim=-1), rows.square().mean(dim=-1)])

    return _judge(
        "rows_normalised",
        moments,
        lambda x, _: torch.stack([torch.zeros(x.shape[:-1]), torch.ones(x.shape[:-1])]),
        _cases(kind, "Expected and got are the means of the rows, then their mean squares."),
    )


def train_only(function: Function, kind: str) -> Report:
    """What is learned from the training split does not change with the test split.

    Args:
        function: The function to look at.
        kind: "vocabulary".

    Source:
        Chapter 06.
    """
    cases = _cases(kind, "Expected is the answer where the test split is empty.")
    return _judge("train_only", function, lambda train, _: function(train, []), cases)


def _judge(name: str, got: Function, expected: Function, inputs: Inputs) -> Report:
    """Compare two ways to the same numbers, case by case: the property holds, or where it fails."""
    try:
        # On copies, so that a function that writes into its arguments hides no other failure.
        report = check_against(_on_copies(got), _on_copies(expected), inputs)
    except Exception as error:
        return Report(False, f"{name}: your function raised {type(error).__name__}: {error}")
    count = f"{name} holds: {len(inputs)} cases."
    return Report(True, count) if report.passed else Report(False, f"{name}: {report.message}")


def _cases(kind: str, hint: str, adapt: Function = lambda *given: given) -> Inputs:
    """The cases of a kind with a hint, each adapted to a property."""
    return {name: (adapt(*given), hint) for name, given in CASES[kind].items()}


def _on_copies(function: Function) -> Function:
    return lambda *given: function(*deepcopy(given))


def _other_rows(x: Tensor, start: int) -> Tensor:
    """Change all rows from ``start`` on."""
    return torch.cat([x[..., :start, :], 2 * x[..., start:, :] + 3], dim=-2)


def _first_row_masked(scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Forbid everything to the first query."""
    return scores, torch.cat([torch.zeros_like(mask[:1]), mask[1:]])


def _gradients(function: Function, given: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Gradients of a weighted sum of the output, one for each input that holds numbers."""
    leaves = {
        place: x.clone().requires_grad_()
        for place, x in enumerate(given)
        if isinstance(x, Tensor) and x.is_floating_point()
    }
    # Times one: in a network the inputs are no leaves, and may be written into.
    inner = [leaves[place] * 1 if place in leaves else x for place, x in enumerate(given)]
    output = function(*inner)
    loss = (output * waves(*output.shape)).sum()
    return torch.autograd.grad(
        loss, list(leaves.values()), allow_unused=True, materialize_grads=True
    )
