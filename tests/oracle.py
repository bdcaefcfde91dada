"""Independent answers for the library's tests: float64 loops, one error budget, random inputs.

The loops follow the formulas letter by letter, one number at a time, so that they share no code and
no idea with the library. They are differentiable, so autograd gives exact gradients as well.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

# Every dimension is a different prime, so that a swapped axis cannot hide.
BATCH, TQ, TK, D, DK, DV, HIDDEN = 2, 3, 5, 7, 11, 13, 17


def random(
    generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64, scale: float = 1.0
) -> Tensor:
    """Normal numbers that the dtype can hold."""
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def tensors(*shape: int, largest: float = 4.0) -> st.SearchStrategy[Tensor]:
    """A hypothesis strategy: float64 tensors in which ties, zeros and equal rows are common."""
    elements = st.floats(-largest, largest, width=16) | st.sampled_from([0.0, 1.0, -1.0])
    return arrays(np.float64, shape, elements=elements).map(torch.from_numpy)


def normal(*shape: int) -> st.SearchStrategy[Tensor]:
    """A hypothesis strategy: float64 tensors of normal numbers, without ties or zeros."""
    seeds = st.integers(0, 2**32)
    return seeds.map(lambda seed: random(torch.Generator().manual_seed(seed), *shape))


def masks(*shape: int) -> st.SearchStrategy[Tensor]:
    """A hypothesis strategy: boolean tensors."""
    return arrays(np.bool_, shape).map(torch.from_numpy)


# --- the error budget ---------------------------------------------------------------------------


def error(tensor: Tensor, exact: Tensor) -> float:
    """The largest absolute difference from the exact answer."""
    assert tensor.shape == exact.shape, f"{tuple(tensor.shape)} is not {tuple(exact.shape)}"
    return (tensor.double() - exact).abs().max().item() if exact.numel() else 0.0


def budget(reference: Tensor, exact: Tensor, *, magnitude: float | None = None) -> float:
    """Twice the reference's own error against float64, plus a rounding floor.

    The floor is 4 units in the last place of the largest number involved: ``magnitude`` where sums
    cancel, otherwise the largest exact answer.
    """
    largest = _largest(exact) if magnitude is None else magnitude
    return 2 * error(reference, exact) + 4 * torch.finfo(reference.dtype).eps * largest


def assert_within_budget(
    ours: Tensor, reference: Tensor, exact: Tensor, *, magnitude: float | None = None
) -> None:
    """Allow the :func:`budget`."""
    assert reference.dtype == ours.dtype
    allowed, found = budget(reference, exact, magnitude=magnitude), error(ours, exact)
    assert found <= allowed, f"error {found:.3g} is above the budget of {allowed:.3g}"


def with_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor
) -> list[Tensor]:
    """The output and the gradient of every input, for a given gradient of the output."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream.to(output.dtype))]


def measure(
    ours: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    loop: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    *,
    magnitude: float | None = None,
    one_floor: bool = False,
) -> list[tuple[float, float]]:
    """Error and budget of the output, then of the gradient of every input; ``loop`` is in float64.

    ``one_floor``: the largest of all exact gradients sets the floor for each of them. Modules need
    it: a bias of the keys shifts all scores of a row alike, so its gradient cancels to 0.
    """
    exact_inputs = [tensor.double() for tensor in inputs]
    output = loop(*exact_inputs)
    generator = torch.Generator().manual_seed(1)
    upstream = random(generator, *output.shape, dtype=inputs[0].dtype)
    found = with_gradients(ours, inputs, upstream)
    theirs = with_gradients(reference, inputs, upstream)
    exact = with_gradients(loop, exact_inputs, upstream)
    assert found[0].dtype == theirs[0].dtype == inputs[0].dtype
    shared = max(map(_largest, exact[1:])) if one_floor else magnitude
    floors = [magnitude] + [shared] * len(inputs)
    return [
        (error(one, truth), budget(other, truth, magnitude=floor))
        for one, other, truth, floor in zip(found, theirs, exact, floors, strict=True)
    ]


def assert_matches(
    ours: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    loop: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    *,
    magnitude: float | None = None,
    one_floor: bool = False,
) -> None:
    """Output and all gradients of ``ours`` lie within the budget; see :func:`measure`."""
    pairs = measure(ours, reference, loop, inputs, magnitude=magnitude, one_floor=one_floor)
    for index, (found, allowed) in enumerate(pairs):
        name = f"gradient of input {index - 1}" if index else "output"
        assert found <= allowed, f"{name}: error {found:.3g} is above the budget of {allowed:.3g}"


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


# --- scores, one number at a time ---------------------------------------------------------------


def pairwise(score: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Turn a score of two vectors into scores of all pairs, batch by batch."""

    def scores(query: Tensor, key: Tensor, *parameters: Tensor) -> Tensor:
        if query.ndim > 2:
            pairs = zip(query, key, strict=True)
            return torch.stack([scores(q, k, *parameters) for q, k in pairs])
        return torch.stack([torch.stack([score(q, k, *parameters) for k in key]) for q in query])

    return scores


def _dot(q: Tensor, k: Tensor) -> Tensor:
    return sum(a * b for a, b in zip(q, k, strict=True))


def _cosine(q: Tensor, k: Tensor) -> Tensor:
    return _dot(q, k) / (_dot(q, q).sqrt() * _dot(k, k).sqrt())


def _centred(x: Tensor) -> Tensor:
    mean = sum(x) / len(x)
    return torch.stack([a - mean for a in x])


def _ranked(x: Tensor) -> Tensor:
    """The rank is 1 plus the number of smaller entries plus half the number of other equals."""
    return torch.stack([1 + (x < a).sum() + ((x == a).sum() - 1) / 2 for a in x]).double()


def _bilinear(q: Tensor, k: Tensor, weight: Tensor) -> Tensor:
    return sum(q[i] * weight[i, j] * k[j] for i in range(len(q)) for j in range(len(k)))


def _additive(q: Tensor, k: Tensor, wq: Tensor, wk: Tensor, v: Tensor) -> Tensor:
    hidden = [torch.tanh(_dot(q, wq[:, a]) + _dot(k, wk[:, a])) for a in range(len(v))]
    return sum(v[a] * hidden[a] for a in range(len(v)))


dot = pairwise(_dot)
scaled_dot = pairwise(lambda q, k: _dot(q, k) / math.sqrt(len(q)))
cosine = pairwise(_cosine)
pearson = pairwise(lambda q, k: _cosine(_centred(q), _centred(k)))
spearman = pairwise(lambda q, k: _cosine(_centred(_ranked(q)), _centred(_ranked(k))))
gaussian = pairwise(lambda q, k: -sum((a - b) ** 2 for a, b in zip(q, k, strict=True)) / 2)
bilinear = pairwise(_bilinear)
additive = pairwise(_additive)


# --- softmax and attention, one number at a time ------------------------------------------------


def softmax(scores: Tensor, mask: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """Exponentials of the allowed scores over their sum; a row that allows nothing is 0."""
    allowed = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    allowed = allowed.expand(scores.shape)
    if scores.ndim > 1:
        rows = zip(scores, allowed, strict=True)
        return torch.stack([softmax(row, ok, temperature) for row, ok in rows])
    zero = 0 * scores[0]
    terms = [(s / temperature).exp() if ok else zero for s, ok in zip(scores, allowed, strict=True)]
    total = sum(terms) if allowed.any() else zero + 1
    return torch.stack([term / total for term in terms])


def entropy(weights: Tensor) -> Tensor:
    """Minus the sum of w ln w over the positive weights."""
    if weights.ndim > 1:
        return torch.stack([entropy(row) for row in weights])
    return -sum(w * w.log() if w > 0 else 0 * w for w in weights)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    score: Callable[..., Tensor] = scaled_dot,
) -> Tensor:
    """The weighted mean of the values, summed one key at a time."""
    scores = score(query, key)
    weights = softmax(scores if bias is None else scores + bias, mask)
    keys = range(value.shape[-2])
    return sum(weights[..., j, None] * value[..., j, :].unsqueeze(-2) for j in keys)


def record(request: pytest.FixtureRequest, what: str, difference: float, allowed: float) -> None:
    """Leave what was measured against a published model for ``make results``."""
    request.node.user_properties += [("published", what), ("difference", f"{difference} {allowed}")]
