"""Linear attention: exp(q k) replaced by a product of features. Chapter 18.

The weights factor, so the sums over the keys can be formed before any query is known. The same
numbers come out of four forms: the matrix of weights (n squared), two products for all queries
(linear, not causal), a recurrence over the positions (for decoding), and a recurrence over chunks
(for training). None of them equals softmax attention: the weights are others.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attention_lib._checks import (
    at_least_float32,
    broadcast,
    check_batches,
    check_count,
    check_float,
    check_like,
    check_query_key,
    check_query_key_value,
    shape,
)
from attention_lib._masking import dense_mask
from attention_lib.masks import Mask

FeatureMap = Callable[[Tensor], Tensor]


def elu_plus_one(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""A positive feature for each number: straight above 0, exponential below.

    .. math:: \phi(x) = x + 1 \ \text{for}\ x > 0, \qquad e^x \ \text{otherwise}

    That is elu(x) + 1, without the subtraction in which float32 loses all of e^x below -17.

    Args:
        x: Any numbers, (...).

    Returns:
        Features above 0, of the same shape; 0 where e^x is too small for the dtype.

    Raises:
        TypeError: If ``x`` is not a floating-point tensor.

    Example:
        >>> elu_plus_one(torch.tensor([-1.0, 0.0, 2.0])).round(decimals=3)
        tensor([0.3680, 1.0000, 3.0000])

    Source:
        Katharopoulos et al. (2020), equation 7. Chapter 18.
    """
    check_float("x", x, rank=0)
    # The clamp keeps exp of a large number, infinite, out of the backward pass.
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


def linear_weights(
    query: Float[Tensor, "... Tq D"],
    key: Float[Tensor, "... Tk D"],
    mask: Mask | Bool[Tensor, "..."] | None = None,
    *,
    feature_map: FeatureMap = elu_plus_one,
) -> Float[Tensor, "... Tq Tk"]:
    r"""The weights that linear attention has but never writes down.

    .. math:: w_{ij} = \frac{m_{ij}\, \phi(q_i) \cdot \phi(k_j)}
                            {\sum_l m_{il}\, \phi(q_i) \cdot \phi(k_l)}

    Without a mask their matrix has at most as many independent rows as there are features.

    Args:
        query: Queries, (..., Tq, D).
        key: Keys, (..., Tk, D).
        mask: A :class:`Mask`, or a boolean tensor that broadcasts to (..., Tq, Tk); True means "may
            attend".
        feature_map: Takes (..., T, D), returns features (..., T, F) that are at least 0.

    Returns:
        Weights, (..., Tq, Tk); each row sums to 1, or is 0 if its sum of products is 0.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes or devices do not fit.

    Example:
        >>> query, key = torch.tensor([[0.0]]), torch.tensor([[0.0], [2.0]])
        >>> linear_weights(query, key).tolist()  # features 1 for the query, 1 and 3 for the keys
        [[0.25, 0.75]]

    Source:
        Katharopoulos et al. (2020), equations 3 and 4. Chapter 18.
    """
    products = _products(query, key, mask, feature_map)
    return _ratio(products, products.sum(dim=-1, keepdim=True)).to(query.dtype)


def attend_linear_explicit(
    query: Float[Tensor, "... Tq D"],
    key: Float[Tensor, "... Tk D"],
    value: Float[Tensor, "... Tk Dv"],
    mask: Mask | Bool[Tensor, "..."] | None = None,
    *,
    feature_map: FeatureMap = elu_plus_one,
) -> Float[Tensor, "... Tq Dv"]:
    r"""Linear attention with all its weights written out: any mask, and quadratic cost.

    .. math:: o_i = \sum_j w_{ij} v_j

    Args:
        query: Queries, (..., Tq, D).
        key: Keys, (..., Tk, D).
        value: Values, (..., Tk, Dv).
        mask: As in :func:`linear_weights`.
        feature_map: As in :func:`linear_weights`.

    Returns:
        Output, (..., Tq, Dv); computed in at least float32 and cast back.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes or devices do not fit.

    Example:
        >>> query, key = torch.tensor([[0.0]]), torch.tensor([[0.0], [2.0]])
        >>> attend_linear_explicit(query, key, torch.tensor([[4.0], [8.0]])).tolist()
        [[7.0]]

    Source:
        Katharopoulos et al. (2020), equation 4. Chapter 18.
    """
    products = _products(query, key, mask, feature_map)
    v = _wide_value(query, key, value)
    return _ratio(products @ v, products.sum(dim=-1, keepdim=True)).to(query.dtype)


def attend_linear(
    query: Float[Tensor, "... Tq D"],
    key: Float[Tensor, "... Tk D"],
    value: Float[Tensor, "... Tk Dv"],
    *,
    feature_map: FeatureMap = elu_plus_one,
) -> Float[Tensor, "... Tq Dv"]:
    r"""Linear attention from every query to all keys, in time linear in both lengths.

    .. math:: o_i = \frac{\phi(q_i) \, \big(\sum_j \phi(k_j)^\top v_j\big)}
                         {\phi(q_i) \cdot \sum_j \phi(k_j)}

    Both sums are the same for all queries. Computed in at least float32 and cast back. Where the
    denominator is 0, the output and its gradients are 0. Features of both signs can bring it close
    to 0 and the output to any size.

    Args:
        query: Queries, (..., Tq, D).
        key: Keys, (..., Tk, D).
        value: Values, (..., Tk, Dv).
        feature_map: As in :func:`linear_weights`.

    Returns:
        Output, (..., Tq, Dv).

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes or devices do not fit.

    Example:
        >>> query, key, value = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
        >>> explicit = attend_linear_explicit(query, key, value)
        >>> torch.allclose(attend_linear(query, key, value), explicit, atol=1e-5)
        True

    Source:
        Katharopoulos et al. (2020), equations 5 and 6. Chapter 18.
    """
    q, k = _features(query, key, feature_map)
    v = _wide_value(query, key, value)
    sums, total = k.mT @ v, k.sum(dim=-2)  # (..., F, Dv), (..., F)
    return _ratio(q @ sums, q @ total.unsqueeze(-1)).to(query.dtype)


@dataclass(frozen=True)
class LinearState:
    """All that linear attention remembers of the past, whatever its length.

    Args:
        sums: Sum over the past keys of features times value, (..., F, Dv), in at least float32.
        total: Sum of their features, (..., F), in the same dtype.

    Example:
        >>> x = torch.zeros(3, 2)  # each feature is 1
        >>> _, state = attend_linear_recurrent(x, x, x)
        >>> tuple(state.sums.shape), state.total.tolist()
        ((2, 2), [3.0, 3.0])

    Source:
        Katharopoulos et al. (2020), section 3.4. Chapter 18.
    """

    sums: Tensor
    total: Tensor


def attend_linear_recurrent(
    query: Float[Tensor, "... T D"],
    key: Float[Tensor, "... T D"],
    value: Float[Tensor, "... T Dv"],
    state: LinearState | None = None,
    *,
    feature_map: FeatureMap = elu_plus_one,
) -> tuple[Float[Tensor, "... T Dv"], LinearState]:
    r"""Causal linear attention one position after the other: a recurrent network.

    .. math:: S_t = S_{t-1} + \phi(k_t)^\top v_t, \qquad z_t = z_{t-1} + \phi(k_t), \qquad
              o_t = \frac{\phi(q_t) \, S_t}{\phi(q_t) \cdot z_t}

    For decoding: with one new position at a time a step costs the same however long the past is.

    Args:
        query: Queries, (..., T, D).
        key: Keys of the same positions, (..., T, D).
        value: Values, (..., T, Dv).
        state: What an earlier call returned; nothing has been read if None.
        feature_map: As in :func:`linear_weights`, on each position by itself.

    Returns:
        Output, (..., T, Dv), and the state after the last position.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes or devices do not fit.

    Example:
        >>> from attention_lib.masks import causal
        >>> x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
        >>> output, state = attend_linear_recurrent(x, x, x)
        >>> torch.allclose(output, attend_linear_explicit(x, x, x, causal()), atol=1e-5)
        True

    Source:
        Katharopoulos et al. (2020), equations 16 to 20. Chapter 18.
    """
    q, k, v, state, outputs = _causal_inputs(query, key, value, state, feature_map)
    sums, total = state.sums, state.total
    for t in range(k.shape[-2]):
        sums = sums + k[..., t, :, None] * v[..., t, None, :]  # (..., F, Dv)
        total = total + k[..., t, :]  # (..., F)
        here = q[..., t, None, :]  # (..., 1, F)
        outputs.append(_ratio(here @ sums, here @ total.unsqueeze(-1)))
    return torch.cat(outputs, dim=-2).to(query.dtype), LinearState(sums, total)


def attend_linear_chunked(
    query: Float[Tensor, "... T D"],
    key: Float[Tensor, "... T D"],
    value: Float[Tensor, "... T Dv"],
    state: LinearState | None = None,
    *,
    feature_map: FeatureMap = elu_plus_one,
    chunk: int = 64,
) -> tuple[Float[Tensor, "... T Dv"], LinearState]:
    r"""Causal linear attention in chunks: a matrix of weights inside, a state between.

    .. math:: O_c = \frac{\Phi(Q_c) \, S_{c-1} + (M \odot \Phi(Q_c) \Phi(K_c)^\top) \, V_c}
                         {\Phi(Q_c) \, z_{c-1} + (M \odot \Phi(Q_c) \Phi(K_c)^\top) \, 1}

    The numbers are those of the recurrence and of the masked matrix. Cost is linear in T, and the
    work consists of matrix products, which is what training wants.

    Args:
        query: Queries, (..., T, D).
        key: Keys of the same positions, (..., T, D).
        value: Values, (..., T, Dv).
        state: As in :func:`attend_linear_recurrent`.
        feature_map: As in :func:`attend_linear_recurrent`.
        chunk: Positions in a chunk, at least 1; the last chunk may be shorter.

    Returns:
        Output, (..., T, Dv), and the state after the last position.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes or devices do not fit, or ``chunk`` is below 1.

    Example:
        >>> x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
        >>> output, state = attend_linear_chunked(x, x, x, chunk=2)
        >>> torch.allclose(output, attend_linear_recurrent(x, x, x)[0], atol=1e-5)
        True

    Source:
        The chunkwise form as in Yang et al. (2024), section 2; Hua et al. (2022) mix a table inside
        each chunk with linear attention across chunks. Chapter 18.
    """
    check_count("chunk", chunk, least=1)
    q, k, v, state, outputs = _causal_inputs(query, key, value, state, feature_map)
    sums, total = state.sums, state.total
    parts = zip(*(x.split(chunk, dim=-2) for x in (q, k, v)), strict=True)
    for queries, keys, values in parts if k.shape[-2] else ():
        inside = (queries @ keys.mT).tril()  # (..., C, C)
        weighted = queries @ sums + inside @ values  # (..., C, Dv)
        weight = queries @ total.unsqueeze(-1) + inside.sum(dim=-1, keepdim=True)
        outputs.append(_ratio(weighted, weight))
        sums = sums + keys.mT @ values
        total = total + keys.sum(dim=-2)
    return torch.cat(outputs, dim=-2).to(query.dtype), LinearState(sums, total)


def _features(query: Tensor, key: Tensor, feature_map: FeatureMap) -> tuple[Tensor, Tensor]:
    """Features of queries and keys, (..., T, F), in at least float32."""
    check_query_key(query, key)
    wide = at_least_float32(query.dtype)
    q, k = feature_map(query.to(wide)), feature_map(key.to(wide))
    for name, x, found in (("query", query, q), ("key", key, k)):
        if found.shape[:-1] != x.shape[:-1] or found.shape[-1] != q.shape[-1]:
            raise ValueError(
                f"feature_map must turn {name} {shape(x)} into {(*x.shape[:-1], 'F')}, "
                f"got {shape(found)}"
            )
    return q, k


def _products(
    query: Tensor, key: Tensor, mask: Mask | Tensor | None, feature_map: FeatureMap
) -> Tensor:
    """Products of features of all allowed pairs, (..., Tq, Tk), in at least float32."""
    q, k = _features(query, key, feature_map)
    products = q @ k.mT
    allowed = dense_mask(mask, shape(products), products)
    return products if allowed is None else products.masked_fill(~allowed, 0)


def _wide_value(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The checked values in at least float32."""
    check_query_key_value(query, key, value)
    return value.to(at_least_float32(value.dtype))


def _causal_inputs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: LinearState | None,
    feature_map: FeatureMap,
) -> tuple[Tensor, Tensor, Tensor, LinearState, list[Tensor]]:
    """Features, values and the state to start from, and a list with an output of length 0."""
    q, k = _features(query, key, feature_map)
    v = _wide_value(query, key, value)
    if query.shape[-2] != key.shape[-2]:
        raise ValueError(
            f"query must have the length of key, T = {key.shape[-2]}, got shape {shape(query)}"
        )
    features, width = k.shape[-1], v.shape[-1]
    if state is None:
        batch = broadcast(k.shape[:-2], v.shape[:-2])
        state = LinearState(v.new_zeros(*batch, features, width), v.new_zeros(*batch, features))
    check_like("state.sums", state.sums, "the features", v)
    check_like("state.total", state.total, "the features", v)
    if state.sums.shape[-2:] != (features, width) or state.total.shape[-1:] != (features,):
        raise ValueError(
            f"state must hold sums (..., {features}, {width}) and a total (..., {features}), "
            f"got {shape(state.sums)} and {shape(state.total)}"
        )
    check_batches(query=query, value=value, state=state.sums)
    batch = broadcast(q.shape[:-2], k.shape[:-2], v.shape[:-2], state.sums.shape[:-2])
    return q, k, v, state, [v.new_zeros(*batch, 0, width)]


def _ratio(weighted: Tensor, weight: Tensor) -> Tensor:
    """Divide, and answer 0 with gradient 0 where the weight is 0."""
    empty = weight == 0
    return (weighted / weight.masked_fill(empty, 1)).masked_fill(empty, 0)
