"""Attention: weights from scores, output from weights and values. Chapter 04.

``attend_explicit`` is the formula written out; ``attend`` gives the same numbers through PyTorch's
fused kernel. Self-attention and cross-attention are two ways of calling them.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attention_lib._checks import (
    broadcast,
    check_broadcast,
    check_float,
    check_fraction,
    check_like,
    check_query_key,
    check_query_key_value,
    flatten_batch,
    shape,
)
from attention_lib._masking import dense_mask
from attention_lib.masks import Mask, causal
from attention_lib.scores import scaled_dot
from attention_lib.softmax import softmax

Score = Callable[[Tensor, Tensor], Tensor]


def attention_weights(
    query: Float[Tensor, "... Tq Dq"],
    key: Float[Tensor, "... Tk Dk"],
    mask: Mask | Bool[Tensor, "..."] | None = None,
    *,
    score: Score = scaled_dot,
    bias: Float[Tensor, "..."] | None = None,
    temperature: float = 1.0,
) -> Float[Tensor, "... Tq Tk"]:
    r"""For each query, how much weight does each key get?

    .. math:: w_i = \mathrm{softmax}_j \big( (s(q_i, k_j) + b_{ij}) / \tau \big)

    Args:
        query: Queries, (..., Tq, D).
        key: Keys, (..., Tk, D).
        mask: A :class:`Mask`, or a boolean tensor that broadcasts to (..., Tq, Tk); True means "may
            attend". A query that may attend to nothing gets weights 0.
        score: Any function of :mod:`attention_lib.scores`.
        bias: Added to the scores; finite; broadcasts to (..., Tq, Tk).
        temperature: :math:`\tau` above 0.

    Returns:
        Weights, (..., Tq, Tk); each row sums to 1, or to 0 if the mask allows nothing.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes, devices or the temperature do not fit.

    Example:
        >>> query = torch.tensor([[0.0, 2**0.5]])
        >>> key = torch.tensor([[0.0, 0.0], [0.0, 1.0]])  # the scores are 0 and 1
        >>> attention_weights(query, key).round(decimals=3)
        tensor([[0.2690, 0.7310]])

    Source:
        Bahdanau, Cho and Bengio (2015), section 3.1; Vaswani et al. (2017), equation 1. Chapter 04.
    """
    check_query_key(query, key, same_width=False)
    scores = score(query, key)  # (..., Tq, Tk)
    allowed = dense_mask(mask, shape(scores), scores)
    if bias is not None:
        _check_bias(bias, shape(scores), scores)
        scores = scores + bias
    return softmax(scores, allowed, temperature=temperature)


def attend_explicit(
    query: Float[Tensor, "... Tq Dq"],
    key: Float[Tensor, "... Tk Dk"],
    value: Float[Tensor, "... Tk Dv"],
    mask: Mask | Bool[Tensor, "..."] | None = None,
    *,
    score: Score = scaled_dot,
    bias: Float[Tensor, "..."] | None = None,
    temperature: float = 1.0,
    dropout: float = 0.0,
) -> Float[Tensor, "... Tq Dv"]:
    r"""Attention with every step written out: for each query, a weighted mean of the values.

    .. math:: o_i = \sum_j w_{ij} v_j

    Values must be finite, masked ones too: their weight is 0, and 0 times NaN is NaN.

    Args:
        query: Queries, (..., Tq, D).
        key: Keys, (..., Tk, D).
        value: Values, (..., Tk, Dv).
        mask: As in :func:`attention_weights`.
        score: As in :func:`attention_weights`.
        bias: As in :func:`attention_weights`.
        temperature: As in :func:`attention_weights`.
        dropout: As in :func:`attend`.

    Returns:
        Output, (..., Tq, Dv); 0 for a query that may attend to nothing.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes, devices or the temperature do not fit.

    Example:
        >>> query, key = torch.zeros(1, 2), torch.eye(2)  # all scores are 0
        >>> value, mask = torch.tensor([[2.0], [4.0]]), torch.tensor([[True, False]])
        >>> attend_explicit(query, key, value).tolist()
        [[3.0]]
        >>> attend_explicit(query, key, value, mask).tolist()
        [[2.0]]

    Source:
        Bahdanau, Cho and Bengio (2015), equation 5; Vaswani et al. (2017), equation 1. Chapter 04.
    """
    check_query_key_value(query, key, value, same_width=False)
    check_fraction("dropout", dropout)
    weights = attention_weights(query, key, mask, score=score, bias=bias, temperature=temperature)
    return (torch.dropout(weights, dropout, train=True) if dropout else weights) @ value


def attend(
    query: Float[Tensor, "... Tq D"],
    key: Float[Tensor, "... Tk D"],
    value: Float[Tensor, "... Tk Dv"],
    mask: Mask | Bool[Tensor, "..."] | None = None,
    *,
    bias: Float[Tensor, "..."] | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "... Tq Dv"]:
    r"""Scaled dot-product attention through PyTorch's fused kernel.

    .. math:: O = \mathrm{softmax}\big(Q K^\top / \sqrt{D} + \mathrm{bias}\big) V

    The numbers are those of :func:`attend_explicit`. Where a fused kernel fits (on a CPU: values as
    wide as keys) the weights are never stored. Keys and values must be finite, masked ones too: a
    masked NaN key scores NaN plus minus infinity, a masked NaN value is multiplied by 0, and both
    are NaN.

    Args:
        query: Queries, (..., Tq, D).
        key: Keys, (..., Tk, D).
        value: Values, (..., Tk, Dv).
        mask: As in :func:`attention_weights`.
        bias: Added to the scaled scores; finite; broadcasts to (..., Tq, Tk).
        scale: Factor in place of :math:`1/\sqrt{D}`.
        dropout: Probability with which a weight is set to 0, at least 0 and below 1; the others are
            divided by 1 minus it. It always applies: pass 0 outside training.

    Returns:
        Output, (..., Tq, Dv); 0 for a query that may attend to nothing.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes or devices do not fit.

    Example:
        >>> query, key, value = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
        >>> output = attend(query, key, value, causal())
        >>> torch.allclose(output, attend_explicit(query, key, value, causal()), atol=1e-5)
        True

    Source:
        Vaswani et al. (2017), equation 1; Dao et al. (2022) for the fused kernel. Chapter 04.
    """
    check_query_key_value(query, key, value)
    check_fraction("dropout", dropout)
    batch = broadcast(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    full = (*batch, query.shape[-2], key.shape[-2])
    if mask is causal() and full[-2] == 1:
        mask = None  # one query stands at the last position and sees every key
    is_causal = mask is causal() and bias is None and full[-2] == full[-1]
    allowed = None if is_causal else dense_mask(mask, full, query)
    if bias is not None:
        _check_bias(bias, full, query)
    if key.shape[-2] == 0:  # the kernel does not take an empty sequence; an empty sum is 0
        return query @ key.mT @ value

    blocked = None
    if allowed is not None:
        # A row that allows nothing is opened for the kernel and set to zero afterwards, which
        # also stops its gradient, whatever this build of the kernel does with such rows.
        blocked = ~allowed.any(dim=-1, keepdim=True)  # (..., Tq, 1)
        if _certainly_none(blocked):
            blocked = None
        else:
            allowed = allowed | blocked
    extra = allowed
    if bias is not None:
        extra = bias if allowed is None else bias.masked_fill(~allowed, float("-inf"))
    query, key, value = (_four_dimensional(tensor, batch) for tensor in (query, key, value))
    output = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if extra is None else _for_kernel(extra, batch),
        dropout_p=dropout,
        is_causal=is_causal,
        scale=scale,
    )
    if len(batch) != 2:
        output = output.reshape(*batch, full[-2], value.shape[-1])
    return output if blocked is None else output.masked_fill(blocked, 0)


def _four_dimensional(tensor: Tensor, batch: tuple[int, ...]) -> Tensor:
    """Bring (..., T, D) to the four dimensions for which PyTorch has its fast kernels."""
    if tensor.ndim == 4 and tensor.shape[:-2] == batch:
        return tensor
    if len(batch) == 2:
        return tensor.expand(*batch, *tensor.shape[-2:])
    return flatten_batch(tensor, batch)[None]


def _for_kernel(extra: Tensor, batch: tuple[int, ...]) -> Tensor:
    """Give a mask or a bias four dimensions; what is the same for all heads is not copied."""
    extra = torch.atleast_2d(extra)
    if len(batch) == 2:
        return extra[(None,) * (4 - extra.ndim)]
    if math.prod(extra.shape[:-2]) == 1:
        return extra.reshape(1, 1, *extra.shape[-2:])
    return _four_dimensional(extra, batch)


def _certainly_none(blocked: Tensor) -> bool:
    """Whether no entry is True, where that is cheap to ask: not on a GPU, nor while tracing."""
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore
    if tracing or blocked.device.type != "cpu":
        return False
    try:
        return not blocked.any()
    except RuntimeError:  # under vmap one tensor stands for many
        return False


def _check_bias(bias: Tensor, full: tuple[int, ...], scores: Tensor) -> None:
    check_float("bias", bias, rank=0)
    check_like("bias", bias, "the scores", scores)
    check_broadcast("bias", bias, full, "(..., Tq, Tk)")
