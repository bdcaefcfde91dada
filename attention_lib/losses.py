"""What training makes small: the cross-entropy between predicted and true tokens. Chapter 06."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn.functional import log_softmax

from attention_lib._checks import at_least_float32, check_float, check_fraction, shape


def cross_entropy(
    logits: Float[Tensor, "*N V"],
    targets: Integer[Tensor, "*N"],
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    r"""Mean surprise at the true tokens, in nats; 0 if every prediction is certain and right.

    .. math::
        \ell_i = -\sum_v q_{iv} \ln p_{iv}, \qquad p_i = \mathrm{softmax}(z_i), \qquad
        q_{iv} = (1 - \varepsilon) \, [\, v = t_i \,] + \varepsilon / V

    Computed in at least float32 and cast back. Ignored positions count neither in the sum nor in
    the number it is divided by, and get gradient 0 whatever their logits are, NaN included. Where
    all are ignored the loss is 0 (``torch.nn.functional.cross_entropy`` answers NaN).

    Args:
        logits: Scores before the softmax, (..., V).
        targets: The true tokens, (...), each in 0 .. V - 1 or ``ignore_index``.
        ignore_index: The target of positions that do not count, such as the token for padding.
        label_smoothing: :math:`\varepsilon`, the share of the target spread over all tokens.

    Returns:
        The mean over the positions that count, one number in the dtype of ``logits``.

    Raises:
        TypeError: If ``logits`` is not a floating-point tensor, ``targets`` not an integer tensor,
            or ``label_smoothing`` not a number.
        ValueError: If the shapes or devices differ, a target is neither a token nor
            ``ignore_index``, or ``label_smoothing`` is not at least 0 and below 1.

    Example:
        >>> logits = torch.zeros(2, 4)  # four tokens, all alike
        >>> loss = cross_entropy(logits, torch.tensor([3, -100]))  # the second does not count
        >>> round(loss.item(), 3), round(loss.exp().item(), 3)
        (1.386, 4.0)

    Source:
        Szegedy et al. (2016), section 7, for the smoothing; Vaswani et al. (2017), section 5.4.
        Chapter 06.
    """
    check_fraction("label_smoothing", label_smoothing)
    _check_targets(logits, targets)
    targets = targets.long()
    counted = targets != ignore_index
    if not counted.all():  # taking rows out copies them, so it is left out where all count
        logits, targets = logits[counted], targets[counted]  # (M, V) and (M,)
    _check_range(targets, logits.shape[-1], ignore_index)
    logs = log_softmax(logits.to(at_least_float32(logits.dtype)), dim=-1)  # ln p
    surprise = -logs.gather(-1, targets[..., None])
    if label_smoothing > 0:  # otherwise a forbidden token, of score -inf, would count 0 times inf
        spread = -logs.mean(dim=-1, keepdim=True)
        surprise = (1 - label_smoothing) * surprise + label_smoothing * spread
    return (surprise.sum() / max(surprise.numel(), 1)).to(logits.dtype)


def _check_targets(logits: Tensor, targets: Tensor) -> None:
    check_float("logits", logits, rank=1)
    if logits.shape[-1] == 0:
        raise ValueError(f"logits must have at least 1 token, V, got shape {shape(logits)}")
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets must be a torch.Tensor, got {type(targets).__name__}")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(f"targets must have an integer dtype, got {targets.dtype}")
    if targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"targets must have the shape of logits without V, {shape(logits)[:-1]}, "
            f"got {shape(targets)}"
        )
    if targets.device != logits.device:
        raise ValueError(
            f"targets must be on the device of logits ({logits.device}), got {targets.device}"
        )


def _check_range(tokens: Tensor, size: int, ignore_index: int) -> None:
    wrong = tokens[(tokens < 0) | (tokens >= size)]
    if len(wrong):
        raise ValueError(
            f"targets must lie in 0 .. V - 1 = {size - 1} or be ignore_index = {ignore_index}, "
            f"got {int(wrong[0])}"
        )
