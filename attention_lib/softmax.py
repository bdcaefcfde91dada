"""From scores to weights: softmax with a temperature and a mask, and entropy. Chapter 03."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attention_lib._checks import (
    at_least_float32,
    check_float,
    check_mask,
    check_positive,
    shape,
)


def softmax(
    scores: Float[Tensor, "... Tk"],
    mask: Bool[Tensor, "..."] | None = None,
    *,
    temperature: float = 1.0,
) -> Float[Tensor, "... Tk"]:
    r"""Turn each row of scores into weights that are positive and sum to one.

    .. math:: w_{ij} = \frac{m_{ij} \exp(s_{ij} / \tau)}{\sum_l m_{il} \exp(s_{il} / \tau)}

    Computed in at least float32 and cast back. Where the mask is False the weight is exactly 0
    whatever the score is, NaN included. A row with no allowed key has weights 0 and gradient 0. An
    allowed NaN or plus infinity makes its row NaN; an allowed minus infinity has weight 0.

    Args:
        scores: Scores, (..., Tk).
        mask: True where a key may be attended; broadcasts to the shape of ``scores``.
        temperature: :math:`\tau` above 0; a small one sharpens, a large one flattens.

    Returns:
        Weights, (..., Tk), in the dtype of ``scores``.

    Raises:
        TypeError: If ``scores`` is not a floating-point tensor, ``mask`` not a boolean tensor, or
            ``temperature`` not a number.
        ValueError: If ``mask`` does not broadcast or is on another device, or ``temperature`` is
            not a finite number above 0 in the range of float32.

    Example:
        >>> scores = torch.tensor([1.0, 1.0, 2.0]).log()
        >>> softmax(scores).round(decimals=3)
        tensor([0.2500, 0.2500, 0.5000])
        >>> softmax(scores, torch.tensor([True, True, False])).tolist()
        [0.5, 0.5, 0.0]

    Source:
        Bridle (1990), for the name and the normalisation. Chapter 03.
    """
    check_float("scores", scores, rank=1)
    check_positive("temperature", temperature)
    if mask is not None:
        check_mask(mask, shape(scores), "the shape of scores", scores)
    if scores.shape[-1] == 0:
        return scores.clone()
    wide = scores.to(at_least_float32(scores.dtype))
    if mask is not None:
        wide = wide.masked_fill(~mask, float("-inf"))
    # Softmax does not change when a row is shifted; shifting by the maximum keeps exp from
    # overflowing, and before the division it keeps a small temperature from doing so. A row of
    # -inf is shifted by 0, and its sum of 0 divided by 1.
    top = wide.detach().amax(dim=-1, keepdim=True)
    shifted = wide - top.masked_fill(top == float("-inf"), 0)
    exponentials = torch.exp(shifted / temperature)
    total = exponentials.sum(dim=-1, keepdim=True)
    return (exponentials / total.masked_fill(total == 0, 1)).to(scores.dtype)


def entropy(weights: Float[Tensor, "... Tk"]) -> Float[Tensor, "..."]:
    r"""Entropy of each row of weights in nats: 0 for one key, :math:`\ln n` for n equal weights.

    .. math:: H_i = -\sum_j w_{ij} \ln w_{ij}, \qquad 0 \ln 0 = 0

    Args:
        weights: Weights of at least 0, (..., Tk). A NaN makes the entropy of its row NaN.

    Returns:
        Entropies in nats, (...).

    Raises:
        TypeError: If ``weights`` is not a floating-point tensor.
        ValueError: If a weight is negative.

    Example:
        >>> entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]])).round(decimals=3)
        tensor([0.0000, 0.6930])

    Source:
        Shannon (1948), section 6. Chapter 03.
    """
    check_float("weights", weights, rank=1)
    if (weights < 0).any():
        raise ValueError(
            f"weights must be at least 0, got a smallest of {weights.min().item():.3g}"
        )
    wide = weights.to(at_least_float32(weights.dtype))
    # The inner where keeps log(0) out of the backward pass as well.
    logs = torch.where(wide > 0, wide, 1).log()
    # Subtracting from 0 rather than negating: one certain key has entropy 0, not -0.
    return (0 - (wide * logs).sum(dim=-1)).to(weights.dtype)
