"""Operations and bytes on paper: what a product, attention, a block and a model cost. Chapter 15.

One multiply-add counts as two operations. Softmax, norms and activations are left out: they are few
operations, and they cost by the bytes that they move.
"""

import torch

from attention_lib._checks import check_counts, check_positive


def linear_operations(tokens: int, inputs: int, outputs: int) -> int:
    r"""How many operations multiply a matrix of tokens by a matrix of weights?

    .. math:: 2 \cdot T \cdot D_{in} \cdot D_{out}

    Args:
        tokens: T, rows of the first matrix.
        inputs: Width of the rows.
        outputs: Columns of the second matrix.

    Returns:
        Operations, two for each multiply-add.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is negative.

    Example:
        >>> linear_operations(tokens=2, inputs=3, outputs=4)
        48

    Source:
        Hoffmann et al. (2022), appendix F, which counts two for a multiply-add too. Chapter 15.
    """
    check_counts(least=0, tokens=tokens, inputs=inputs, outputs=outputs)
    return 2 * tokens * inputs * outputs


def attention_operations(
    queries: int, keys: int, head_width: int, *, heads: int = 1, value_width: int | None = None
) -> int:
    r"""How many operations do scores and weighted means take, every pair computed?

    .. math:: 2 \cdot H \cdot T_q \cdot T_k \cdot (D_h + D_v)

    Args:
        queries: Tq.
        keys: Tk.
        head_width: Dh, width of queries and keys in a head.
        heads: H.
        value_width: Dv, width of the values in a head; ``head_width`` if None.

    Returns:
        Operations of the two products, without the softmax.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is negative.

    Example:
        >>> attention_operations(queries=2, keys=3, head_width=4)
        96

    Source:
        Hoffmann et al. (2022), appendix F, the two products of attention. Chapter 15.
    """
    value_width = head_width if value_width is None else value_width
    check_counts(
        least=0,
        queries=queries,
        keys=keys,
        head_width=head_width,
        heads=heads,
        value_width=value_width,
    )
    return 2 * heads * queries * keys * (head_width + value_width)


def block_operations(
    length: int,
    width: int,
    hidden: int,
    *,
    past: int = 0,
    kv_width: int | None = None,
    matrices: int = 2,
) -> dict[str, int]:
    r"""How many operations does one block take for T new positions after P earlier ones?

    .. math:: \underbrace{4 T D (D + D_{kv})}_{\text{projections}} +
              \underbrace{4 T (P + T) D}_{\text{attention}} +
              \underbrace{2 m T D D_{ff}}_{\text{feed-forward}}

    The number of heads does not matter: their widths add up to D.

    Args:
        length: T, new positions.
        width: D.
        hidden: Hidden width of the feed-forward network.
        past: P, positions whose keys and values wait in a cache.
        kv_width: Width of all key heads together; ``width`` if None.
        matrices: m, matrices of the feed-forward network: two, or three if it is gated.

    Returns:
        Operations of ``projections``, ``attention`` and ``feed-forward``.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is negative.

    Example:
        >>> block_operations(length=1, width=2, hidden=8)
        {'projections': 32, 'attention': 8, 'feed-forward': 64}

    Source:
        Kaplan et al. (2020), table 1, for the parts; Hoffmann et al. (2022), appendix F.
        Chapter 15.
    """
    kv_width = width if kv_width is None else kv_width
    check_counts(
        least=0,
        length=length,
        width=width,
        hidden=hidden,
        past=past,
        kv_width=kv_width,
        matrices=matrices,
    )
    return {
        "projections": linear_operations(length, width, 2 * width + 2 * kv_width),
        "attention": attention_operations(length, past + length, width),
        "feed-forward": matrices * linear_operations(length, width, hidden),
    }


def linear_bytes(
    tokens: int, inputs: int, outputs: int, *, dtype: torch.dtype = torch.float32
) -> int:
    r"""How many bytes must move if tokens, weights and result each cross the memory bus once?

    .. math:: (T D_{in} + D_{in} D_{out} + T D_{out}) \cdot \text{bytes of a number}

    Args:
        tokens: T.
        inputs: Width of the rows.
        outputs: Columns of the weights.
        dtype: What a number is stored as.

    Returns:
        Bytes.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is negative.

    Example:
        >>> linear_bytes(tokens=2, inputs=3, outputs=4)  # (6 + 12 + 8) numbers of 4 bytes
        104

    Source:
        Williams, Waterman and Patterson (2009), who count traffic to main memory. Chapter 15.
    """
    check_counts(least=0, tokens=tokens, inputs=inputs, outputs=outputs)
    return (tokens * inputs + inputs * outputs + tokens * outputs) * dtype.itemsize


def attention_bytes(
    queries: int,
    keys: int,
    head_width: int,
    *,
    heads: int = 1,
    score_passes: int = 4,
    dtype: torch.dtype = torch.float32,
) -> int:
    r"""How many bytes must attention move between memory and processor?

    .. math:: H \big( 2 T_q D_h + 2 T_k D_h + p\, T_q T_k \big) \cdot \text{bytes of a number}

    Query, key, value and output cross once. The matrix of scores crosses :math:`p` times: the
    product writes it, softmax reads it and writes the weights, the second product reads those. A
    kernel that never stores the matrix has :math:`p = 0`, if the keys and values of a head stay in
    the processor's cache; otherwise it reads them again for each tile of queries, and calling this
    function once for each tile counts that.

    Args:
        queries: Tq.
        keys: Tk.
        head_width: Dh.
        heads: H.
        score_passes: p, how often a whole matrix of scores or weights is read or written.
        dtype: What a number is stored as.

    Returns:
        Bytes.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is negative.

    Example:
        >>> attention_bytes(queries=2, keys=2, head_width=4)
        192
        >>> attention_bytes(queries=2, keys=2, head_width=4, score_passes=0)
        128

    Source:
        Dao et al. (2022), algorithm 0, for the four passes. Chapter 15.
    """
    check_counts(
        least=0,
        queries=queries,
        keys=keys,
        head_width=head_width,
        heads=heads,
        score_passes=score_passes,
    )
    rows = 2 * (queries + keys) * head_width  # query and output, key and value
    return heads * (rows + score_passes * queries * keys) * dtype.itemsize


def intensity(operations: float, moved: float) -> float:
    r"""Arithmetic intensity: how many operations does each byte that moves pay for?

    .. math:: I = \text{operations} / \text{bytes}

    Args:
        operations: Number of operations.
        moved: Number of bytes.

    Returns:
        Operations per byte.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is not above 0.

    Example:
        >>> intensity(100, 25)
        4.0

    Source:
        Williams, Waterman and Patterson (2009), who call it operational intensity. Chapter 15.
    """
    check_positive("operations", operations)
    check_positive("moved", moved)
    return operations / moved


def roofline(operations_per_byte: float, peak: float, bandwidth: float) -> float:
    r"""The most operations a second that a machine can reach at an arithmetic intensity.

    .. math:: \min(\text{peak},\; I \cdot \text{bandwidth})

    Args:
        operations_per_byte: I.
        peak: Operations a second of the processor.
        bandwidth: Bytes a second of the memory.

    Returns:
        Operations a second.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is not above 0.

    Example:
        >>> roofline(4.0, peak=100.0, bandwidth=10.0), roofline(20.0, peak=100.0, bandwidth=10.0)
        (40.0, 100.0)

    Source:
        Williams, Waterman and Patterson (2009), "The Roofline Model". Chapter 15.
    """
    check_positive("operations_per_byte", operations_per_byte)
    check_positive("peak", peak)
    check_positive("bandwidth", bandwidth)
    return min(peak, operations_per_byte * bandwidth)
