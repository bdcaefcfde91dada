"""Sliding-window attention that does only the work inside the window. Chapter 18.

A masked call of :func:`attention_lib.attend` computes all Tq x Tk scores and throws most of them
away. Here the queries are cut into blocks, and each block meets only the strip of keys that its
windows can touch, so that time and memory grow with Tq times the window.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attention_lib._checks import broadcast, check_count, check_query_key_value, flatten_batch
from attention_lib.attention import attend
from attention_lib.masks import causal

# Fewer queries in a block waste less of the strip, but make the matrix products too small.
SMALLEST_BLOCK = 64


def attend_window(
    query: Float[Tensor, "... Tq D"],
    key: Float[Tensor, "... Tk D"],
    value: Float[Tensor, "... Tk Dv"],
    before: int,
    after: int = 0,
    *,
    scale: float | None = None,
) -> Float[Tensor, "... Tq Dv"]:
    r"""Attention to the keys from ``before`` positions back to ``after`` ahead, at linear cost.

    .. math::
        o_i = \sum_{j = i - \text{before}}^{i + \text{after}} w_{ij} v_j, \qquad
        w_{ij} = \frac{\exp(s_{ij})}{\sum_{l = i - \text{before}}^{i + \text{after}} \exp(s_{il})}

    with :math:`s_{ij} = q_i \cdot k_j / \sqrt{D}` and only positions that exist. The numbers are
    those of ``attend(query, key, value, sliding_window(before, after))``. With w = before + after
    + 1 keys in a window, a block of b = max(64, w // 4) queries computes b (b + w - 1) scores, so
    that all blocks together compute about 1.25 Tq w of them where w is at least 256, in place of
    Tq Tk.

    Args:
        query: Queries, (..., Tq, D); they stand at the last Tq positions.
        key: Keys, (..., Tk, D).
        value: Values, (..., Tk, Dv).
        before: Keys before the query, at least 0.
        after: Keys after the query, at least 0; with 0 the window is causal.
        scale: Factor in place of :math:`1/\sqrt{D}`.

    Returns:
        Output, (..., Tq, Dv); a window longer than the sequence gives plain attention, and a query
        whose window holds no key (only where Tq > Tk) gets 0.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes or devices do not fit, or ``before`` or ``after`` is negative.

    Example:
        >>> from attention_lib.masks import sliding_window
        >>> query, key, value = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
        >>> output = attend_window(query, key, value, before=2)
        >>> torch.allclose(output, attend(query, key, value, sliding_window(2)), atol=1e-5)
        True

    Source:
        Beltagy, Peters and Cohan (2020), section 3.1. Chapter 18.
    """
    check_query_key_value(query, key, value)
    check_count("before", before, least=0)
    check_count("after", after, least=0)
    queries, keys = query.shape[-2], key.shape[-2]
    if before >= keys - 1:  # no window begins after the first key
        if after == 0:
            return attend(query, key, value, causal(), scale=scale)
        if after >= queries - 1:  # and none ends before the last
            return attend(query, key, value, scale=scale)

    batch = broadcast(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    query, key, value = (flatten_batch(tensor, batch) for tensor in (query, key, value))
    block = max(SMALLEST_BLOCK, (before + after + 1) // 4)
    band = _band(block, before, after, query.device)  # (block, strip), the same for every block
    offset = keys - queries  # the position of the first query

    # Of the blocks first .. last - 1 neither the queries nor the strip of keys are cut off.
    first = max(0, -((offset - before) // block))  # the division rounds up
    last = max(first, (queries - after) // block)
    starts = list(range(0, queries, block))
    parts = []
    for start in (*starts[:first], *starts[last:]):
        # The strip of this block is [left, left + strip), the part of it that exists is near.
        left = offset + start - before
        near = slice(max(0, left), max(0, min(left + band.shape[1], keys)))
        rows = query[:, start : start + block]
        allowed = band[: rows.shape[1], near.start - left : near.stop - left]
        parts.append(attend(rows, key[:, near], value[:, near], allowed, scale=scale))
    if first < last:
        rows = query[:, first * block : last * block].unflatten(1, (last - first, block))
        left = offset + first * block - before
        near = slice(left, left + (last - first - 1) * block + band.shape[1])
        inner = scaled_dot_product_attention(
            rows,
            _strips(key[:, near], band.shape[1], block),
            _strips(value[:, near], band.shape[1], block),
            attn_mask=band,
            scale=scale,
        )
        parts.insert(first, inner.flatten(1, 2))
    # Without queries the product of the three has the right shape, no rows, and gradients 0.
    output = torch.cat(parts, dim=1) if parts else query @ key.mT @ value
    return output.reshape(*batch, queries, value.shape[-1])


def _strips(x: Tensor, strip: int, block: int) -> Tensor:
    """Views of (N, T, D), each ``strip`` long and ``block`` after the last: (N, blocks, strip, D).

    The strips overlap and share memory; the gradient of a row is the sum over its strips.
    """
    return x.unfold(1, strip, block).mT


def _band(block: int, before: int, after: int, device: torch.device) -> Bool[Tensor, "block strip"]:
    """Which keys of its strip may each query of a block see? Row r sees before + 1 + after of them.

    The strip begins ``before`` keys in front of the block, so the window of row r begins at
    column r.
    """
    row = torch.arange(block, device=device)[:, None]
    column = torch.arange(block + before + after, device=device)[None, :]
    return (column >= row) & (column <= row + before + after)
