"""Scores: how well does each key match each query? Chapters 01 and 02.

Every function here takes ``query`` (..., Tq, D) and ``key`` (..., Tk, D) and returns ``scores``
(..., Tq, Tk), where a larger score means a better match. Vectors are rows, so a projection is
``x @ weight`` with ``weight`` (D_in, D_out). Functions with parameters take them as further
arguments; ``functools.partial`` turns them into a plain ``(query, key)`` function.

A NaN in one vector makes its own row (query) or column (key) of scores NaN and no other. So does an
infinity in the cosine and in Pearson's correlation; Spearman's takes it as the largest entry. An
empty sequence gives an empty score matrix.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from attention_lib._checks import at_least_float32, check_float, check_like, check_query_key, shape


def dot(
    query: Float[Tensor, "... Tq D"], key: Float[Tensor, "... Tk D"]
) -> Float[Tensor, "... Tq Tk"]:
    r"""Score each pair by its dot product.

    .. math:: s_{ij} = \sum_d q_{id} k_{jd}

    Args:
        query: Queries, (..., Tq, D).
        key: Keys, (..., Tk, D).

    Returns:
        Scores, (..., Tq, Tk).

    Raises:
        TypeError: If an argument is not a floating-point tensor, or the dtypes differ.
        ValueError: If ranks, widths, leading dimensions or devices do not fit.

    Example:
        >>> query = torch.tensor([[1.0, 2.0]])
        >>> key = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
        >>> dot(query, key).tolist()
        [[11.0, 2.0]]

    Source:
        Luong, Pham and Manning (2015), section 3.1, case "dot". Chapter 02.
    """
    check_query_key(query, key)
    return query @ key.mT


def scaled_dot(
    query: Float[Tensor, "... Tq D"], key: Float[Tensor, "... Tk D"], scale: float | None = None
) -> Float[Tensor, "... Tq Tk"]:
    r"""Score each pair by its dot product divided by the square root of the width.

    .. math:: s_{ij} = \frac{1}{\sqrt{D}} \sum_d q_{id} k_{jd}

    Args:
        query: Queries, (..., Tq, D).
        key: Keys, (..., Tk, D).
        scale: Factor in place of :math:`1/\sqrt{D}`.

    Returns:
        Scores, (..., Tq, Tk).

    Raises:
        TypeError: If an argument is not a floating-point tensor, or the dtypes differ.
        ValueError: If ranks, widths, leading dimensions or devices do not fit.

    Example:
        >>> query = torch.tensor([[1.0, 1.0, 1.0, 1.0]])  # a width of 4: the dot product is halved
        >>> key = torch.tensor([[2.0, 2.0, 2.0, 0.0]])
        >>> scaled_dot(query, key).tolist()
        [[3.0]]

    Source:
        Vaswani et al. (2017), equation 1. Chapter 02.
    """
    check_query_key(query, key)
    # The factor goes on the query, before the product: in float16 the bare product can overflow.
    return (query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)) @ key.mT


def cosine(
    query: Float[Tensor, "... Tq D"], key: Float[Tensor, "... Tk D"]
) -> Float[Tensor, "... Tq Tk"]:
    r"""Score each pair by the cosine of the angle between its vectors.

    .. math:: s_{ij} = \frac{q_i \cdot k_j}{\lVert q_i \rVert \, \lVert k_j \rVert}

    A vector of norm zero has no angle; its scores are 0.

    Args:
        query: Queries, (..., Tq, D).
        key: Keys, (..., Tk, D).

    Returns:
        Scores between -1 and 1 up to rounding, (..., Tq, Tk).

    Raises:
        TypeError: If an argument is not a floating-point tensor, or the dtypes differ.
        ValueError: If ranks, widths, leading dimensions or devices do not fit.

    Example:
        >>> query = torch.tensor([[2.0, 0.0]])
        >>> key = torch.tensor([[5.0, 0.0], [3.0, 4.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> cosine(query, key).round(decimals=3)
        tensor([[ 1.0000,  0.6000,  0.0000, -1.0000]])

    Source:
        Graves, Wayne and Danihelka (2014), equation 6. Chapter 02.
    """
    check_query_key(query, key)
    wide = at_least_float32(query.dtype)
    return (_unit(query.to(wide)) @ _unit(key.to(wide)).mT).to(query.dtype)


def pearson(
    query: Float[Tensor, "... Tq D"], key: Float[Tensor, "... Tk D"]
) -> Float[Tensor, "... Tq Tk"]:
    r"""Score each pair by its Pearson correlation: the cosine of the centred vectors.

    .. math:: s_{ij} = \frac{(q_i - \bar q_i) \cdot (k_j - \bar k_j)}
                            {\lVert q_i - \bar q_i \rVert \, \lVert k_j - \bar k_j \rVert}

    A vector whose entries are all equal has no correlation; its scores are 0. Entries so large that
    their sum overflows give NaN.

    Args:
        query: Queries, (..., Tq, D).
        key: Keys, (..., Tk, D).

    Returns:
        Scores between -1 and 1 up to rounding, (..., Tq, Tk).

    Raises:
        TypeError: If an argument is not a floating-point tensor, or the dtypes differ.
        ValueError: If ranks, widths, leading dimensions or devices do not fit.

    Example:
        >>> query = torch.tensor([[1.0, 2.0, 3.0]])
        >>> key = torch.tensor([[10.0, 20.0, 30.0], [9.0, 8.0, 7.0], [5.0, 5.0, 5.0]])
        >>> pearson(query, key).round(decimals=3).tolist()
        [[1.0, -1.0, 0.0]]

    Source:
        Pearson (1896). Chapter 01.
    """
    check_query_key(query, key)
    wide = at_least_float32(query.dtype)
    return cosine(_centre(query.to(wide)), _centre(key.to(wide))).to(query.dtype)


def spearman(
    query: Float[Tensor, "... Tq D"], key: Float[Tensor, "... Tk D"]
) -> Float[Tensor, "... Tq Tk"]:
    r"""Score each pair by its Spearman correlation: the Pearson correlation of the ranks.

    .. math:: s_{ij} = \mathrm{pearson}(\mathrm{rank}(q_i), \mathrm{rank}(k_j))

    Equal entries share the mean of their ranks. Ranks are piecewise constant, so the result has no
    gradient. A vector whose entries are all equal scores 0.

    Args:
        query: Queries, (..., Tq, D).
        key: Keys, (..., Tk, D).

    Returns:
        Scores between -1 and 1 up to rounding, (..., Tq, Tk).

    Raises:
        TypeError: If an argument is not a floating-point tensor, or the dtypes differ.
        ValueError: If ranks, widths, leading dimensions or devices do not fit.

    Example:
        >>> query = torch.tensor([[1.0, 2.0, 3.0]])
        >>> key = torch.tensor([[1.0, 10.0, 100.0], [3.0, 1.0, 2.0]])
        >>> spearman(query, key).round(decimals=3).tolist()
        [[1.0, -0.5]]

    Source:
        Spearman (1904). Chapter 01.
    """
    check_query_key(query, key)
    return pearson(_ranks(query), _ranks(key)).to(query.dtype)


def gaussian(
    query: Float[Tensor, "... Tq D"], key: Float[Tensor, "... Tk D"]
) -> Float[Tensor, "... Tq Tk"]:
    r"""Score each pair by minus half its squared distance.

    .. math:: s_{ij} = -\tfrac12 \lVert q_i - k_j \rVert^2
                     = q_i \cdot k_j - \tfrac12 \lVert k_j \rVert^2 - \tfrac12 \lVert q_i \rVert^2

    The softmax of these scores is the Nadaraya-Watson kernel regression with a Gaussian kernel; the
    temperature is the kernel's variance. Computed in at least float32 and cast back; squares beyond
    that range give scores that are not finite.

    Args:
        query: Queries, (..., Tq, D).
        key: Keys, (..., Tk, D).

    Returns:
        Scores of at most 0 up to rounding, (..., Tq, Tk).

    Raises:
        TypeError: If an argument is not a floating-point tensor, or the dtypes differ.
        ValueError: If ranks, widths, leading dimensions or devices do not fit.

    Example:
        >>> query = torch.tensor([[0.0, 0.0]])
        >>> key = torch.tensor([[3.0, 4.0], [1.0, 0.0]])  # at distances 5 and 1
        >>> gaussian(query, key).tolist()
        [[-12.5, -0.5]]

    Source:
        Nadaraya (1964); Watson (1964). Chapter 02.
    """
    check_query_key(query, key)
    dtype, wide = query.dtype, at_least_float32(query.dtype)
    query, key = query.to(wide), key.to(wide)
    # Distances do not change when both sides move; moving to the keys' mean keeps the terms small.
    # The mean leaves NaN and infinity out, so that they stay in their own column.
    finite = torch.where(key.isfinite(), key, 0).detach()
    centre = finite.sum(dim=-2, keepdim=True) / max(1, key.shape[-2])
    query, key = query - centre, key - centre
    half_query = query.square().sum(dim=-1, keepdim=True) / 2  # (..., Tq, 1)
    half_key = key.square().sum(dim=-1, keepdim=True) / 2  # (..., Tk, 1)
    return (query @ key.mT - half_query - half_key.mT).to(dtype)


def bilinear(
    query: Float[Tensor, "... Tq Dq"],
    key: Float[Tensor, "... Tk Dk"],
    weight: Float[Tensor, "Dq Dk"],
) -> Float[Tensor, "... Tq Tk"]:
    r"""Score each pair through one learned matrix ("general" or "multiplicative" attention).

    .. math:: s_{ij} = q_i W k_j^\top

    Query and key may have different widths. If :math:`W = W_Q W_K^\top`, this is the dot product of
    projected queries and keys.

    Args:
        query: Queries, (..., Tq, Dq).
        key: Keys, (..., Tk, Dk).
        weight: :math:`W`, (Dq, Dk).

    Returns:
        Scores, (..., Tq, Tk).

    Raises:
        TypeError: If an argument is not a floating-point tensor, or the dtypes differ.
        ValueError: If ranks, widths, leading dimensions or devices do not fit.

    Example:
        >>> query, key = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0, 1.0]])
        >>> weight = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]])
        >>> bilinear(query, key, weight).tolist()
        [[9.0]]

    Source:
        Luong, Pham and Manning (2015), section 3.1, case "general". Chapter 02.
    """
    check_query_key(query, key, same_width=False)
    _check_parameter("weight", weight, query, (query.shape[-1], key.shape[-1]), "(Dq, Dk)")
    return query @ weight @ key.mT


def additive(
    query: Float[Tensor, "... Tq Dq"],
    key: Float[Tensor, "... Tk Dk"],
    query_weight: Float[Tensor, "Dq A"],
    key_weight: Float[Tensor, "Dk A"],
    vector: Float[Tensor, " A"],
) -> Float[Tensor, "... Tq Tk"]:
    r"""Score each pair with a network of one hidden layer.

    .. math:: s_{ij} = \tanh(q_i W_q + k_j W_k) \cdot v

    The hidden layer is held for every pair, so memory grows with Tq x Tk x A.

    Args:
        query: Queries, (..., Tq, Dq).
        key: Keys, (..., Tk, Dk).
        query_weight: :math:`W_q`, (Dq, A).
        key_weight: :math:`W_k`, (Dk, A).
        vector: :math:`v`, (A,).

    Returns:
        Scores, (..., Tq, Tk).

    Raises:
        TypeError: If an argument is not a floating-point tensor, or the dtypes differ.
        ValueError: If ranks, widths, leading dimensions or devices do not fit.

    Example:
        >>> query, key = torch.tensor([[1.0]]), torch.tensor([[-1.0], [99.0]])
        >>> one, vector = torch.ones(1, 1), torch.tensor([2.0])
        >>> additive(query, key, one, one, vector).tolist()  # 2 tanh(0) and 2 tanh(100)
        [[0.0, 2.0]]

    Source:
        Bahdanau, Cho and Bengio (2015), section A.1.2. Chapter 02.
    """
    check_query_key(query, key, same_width=False)
    check_float("vector", vector, rank=1)
    hidden = vector.shape[-1]
    _check_parameter("vector", vector, query, (hidden,), "(A,)")
    _check_parameter("query_weight", query_weight, query, (query.shape[-1], hidden), "(Dq, A)")
    _check_parameter("key_weight", key_weight, query, (key.shape[-1], hidden), "(Dk, A)")
    from_query = (query @ query_weight).unsqueeze(-2)  # (..., Tq, 1, A)
    from_key = (key @ key_weight).unsqueeze(-3)  # (..., 1, Tk, A)
    return torch.tanh(from_query + from_key) @ vector


def _check_parameter(
    name: str, weight: Tensor, query: Tensor, expected: tuple[int, ...], symbols: str
) -> None:
    check_float(name, weight, rank=1)
    check_like(name, weight, "query", query)
    if shape(weight) != expected:
        raise ValueError(f"{name} must have shape {symbols} = {expected}, got {shape(weight)}")


def _unit(vectors: Tensor) -> Tensor:
    """Scale each row to norm 1 and leave rows of zeros alone."""
    # Dividing by the largest entry first keeps the squares inside the number range. The result
    # does not depend on that factor, so no gradient flows through it.
    peak = vectors.detach().abs().amax(dim=-1, keepdim=True)
    vectors = vectors / torch.where(peak == 0, 1, peak)
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(norm == 0, 1, norm)


def _centre(vectors: Tensor) -> Tensor:
    """Subtract each row's mean; a row of equal entries becomes exactly zero."""
    # The mean of equal entries can be off in the last digit, and the unit vector of that rounding
    # error would be noise of size 1.
    constant = (vectors == vectors[..., :1]).all(dim=-1, keepdim=True)
    return (vectors - vectors.mean(dim=-1, keepdim=True)).masked_fill(constant, 0)


def _ranks(vectors: Tensor) -> Tensor:
    """Ranks 1..D along the last dimension, equal entries sharing their mean rank, in float64."""
    vectors = vectors.detach().contiguous()
    ordered = vectors.sort(dim=-1).values
    below = torch.searchsorted(ordered, vectors)
    up_to = torch.searchsorted(ordered, vectors, right=True)
    ranks = (below + up_to + 1).double() / 2
    return ranks.masked_fill(vectors.isnan().any(dim=-1, keepdim=True), float("nan"))
