"""Several attentions side by side: heads, their module, and the cache of keys. Chapter 07."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention_lib._checks import (
    check_count,
    check_divides,
    check_float,
    check_fraction,
    check_like,
    shape,
)
from attention_lib._joint import project
from attention_lib._masking import mask_per_head
from attention_lib.attention import attend, attention_weights
from attention_lib.masks import Mask, causal
from attention_lib.positions import Position


def split_heads(x: Float[Tensor, "... T D"], heads: int) -> Float[Tensor, "... H T Dh"]:
    r"""Cut the width into heads and bring the head dimension before the positions.

    .. math:: (\dots, T, H \cdot D_h) \to (\dots, T, H, D_h) \to (\dots, H, T, D_h)

    The first step only re-reads the same numbers; the second is the transpose without which heads
    and positions would be mixed.

    Args:
        x: Features, (..., T, D).
        heads: H, a divisor of D.

    Returns:
        Features of each head, (..., H, T, Dh) with Dh = D / H.

    Raises:
        TypeError: If ``x`` is not a floating-point tensor or ``heads`` not an integer.
        ValueError: If ``heads`` does not divide D.

    Example:
        >>> split_heads(torch.arange(8.0).view(2, 4), heads=2).tolist()
        [[[0.0, 1.0], [4.0, 5.0]], [[2.0, 3.0], [6.0, 7.0]]]

    Source:
        Vaswani et al. (2017), section 3.2.2. Chapter 07.
    """
    check_float("x", x, rank=2)
    check_divides("heads", heads, "the width of x", x.shape[-1])
    split = x.view(*x.shape[:-1], heads, x.shape[-1] // heads)  # (..., T, H, Dh)
    return split.transpose(-2, -3)


def merge_heads(x: Float[Tensor, "... H T Dh"]) -> Float[Tensor, "... T D"]:
    r"""Undo :func:`split_heads`: put the heads of each position side by side.

    .. math:: (\dots, H, T, D_h) \to (\dots, T, H, D_h) \to (\dots, T, H \cdot D_h)

    Args:
        x: Features of each head, (..., H, T, Dh).

    Returns:
        Features, (..., T, D) with D = H * Dh.

    Raises:
        TypeError: If ``x`` is not a floating-point tensor.
        ValueError: If ``x`` has fewer than three dimensions.

    Example:
        >>> merge_heads(split_heads(torch.arange(8.0).view(2, 4), heads=2)).tolist()
        [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]

    Source:
        Vaswani et al. (2017), section 3.2.2. Chapter 07.
    """
    check_float("x", x, rank=3)
    return x.transpose(-2, -3).flatten(-2)


class KVCache:
    """Keys and values of the positions seen so far, for one layer.

    The only object of the library that changes: each call with new positions appends to it. Its
    memory is as long as what it holds, so that each call also copies all that came before;
    :mod:`attention_lib.efficient.caches` has kinds that do not.

    Raises:
        TypeError: From ``extended`` and ``append``, if a dtype is not that of what is stored; from
            ``truncate``, if the length is not an integer.
        ValueError: From ``extended`` and ``append``, if a shape other than the length, or the
            device, is not that of what is stored; from ``truncate``, if the length is negative or
            above that of the cache.

    Example:
        >>> attention, cache = MultiHeadAttention(width=4, heads=2), KVCache()
        >>> x = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
        >>> steps = torch.cat([attention(x[:, t : t + 1], cache=cache) for t in range(3)], dim=1)
        >>> torch.allclose(steps, attention(x, mask=causal()), atol=1e-5), len(cache)
        (True, 3)

    Source:
        Shazeer (2019), section 2.4, for incremental inference. Chapters 07 and 17.
    """

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None
        self.copied = 0  # bytes of earlier keys and values that appending has copied

    def __len__(self) -> int:
        """How many positions were seen; the position of the next one."""
        return 0 if self.key is None else self.key.shape[-2]

    @property
    def nbytes(self) -> int:
        """Bytes of memory that are set aside for keys and values."""
        return sum(x.nbytes for x in (self.key, self.value) if x is not None)

    def visible(
        self, mask: Mask | Bool[Tensor, "..."] | None, new: int
    ) -> Mask | Bool[Tensor, "..."] | None:
        """Return the mask for the keys that appending ``new`` positions will return.

        This cache returns the keys of all positions, so a mask over positions stays as it is.
        """
        return mask

    def extended(
        self, key: Float[Tensor, "... T Dh"], value: Float[Tensor, "... T Dv"]
    ) -> tuple[Float[Tensor, "... Tk Dh"], Float[Tensor, "... Tk Dv"]]:
        """Return the stored keys and values followed by new ones, and store nothing."""
        if self.key is None or self.value is None:
            return key, value
        self._check_fits(key, value)
        return torch.cat([self.key, key], dim=-2), torch.cat([self.value, value], dim=-2)

    def append(
        self, key: Float[Tensor, "... T Dh"], value: Float[Tensor, "... T Dv"]
    ) -> tuple[Float[Tensor, "... Tk Dh"], Float[Tensor, "... Tk Dv"]]:
        """Store new keys and values after the old ones and return them all."""
        longer = self.extended(key, value)
        self.copied += self.nbytes
        self.key, self.value = longer
        return longer

    def select(self, rows: Tensor) -> "KVCache":
        """Return a cache of the given batch rows, as beam search needs."""
        chosen = KVCache()
        if self.key is not None and self.value is not None:
            chosen.key, chosen.value = self.key[rows], self.value[rows]
        return chosen

    def truncate(self, length: int) -> None:
        """Forget all positions from ``length`` on, as speculative decoding needs."""
        self._check_truncation(length)
        if self.key is not None and self.value is not None:
            self.key, self.value = self.key[..., :length, :], self.value[..., :length, :]

    def _check_fits(self, key: Tensor, value: Tensor) -> None:
        """Require new keys and values that differ from the stored ones in the length only."""
        for name, new, stored in (("key", key, self.key), ("value", value, self.value)):
            if stored is None:
                continue
            check_like(name, new, f"the cached {name}s", stored)
            if new.shape[:-2] != stored.shape[:-2] or new.shape[-1] != stored.shape[-1]:
                raise ValueError(
                    f"{name} must fit the cached {name}s {shape(stored)} in all but the length, "
                    f"got {shape(new)}"
                )

    def _check_truncation(self, length: int) -> None:
        check_count("length", length, least=0)
        if length > len(self):
            raise ValueError(f"length must be at most that of the cache, {len(self)}, got {length}")


class MultiHeadAttention(nn.Module):
    r"""H attentions on H slices of the width, side by side, and a projection that mixes them.

    .. math:: \mathrm{head}_h = \mathrm{attend}(x W_Q^h,\; y W_K^h,\; z W_V^h), \qquad
              \mathrm{output} = [\mathrm{head}_1, \dots, \mathrm{head}_H]\, W_O

    With ``kv_heads`` below ``heads``, several query heads share one key and value head (grouped
    heads; multi-query attention for one). Initialised as ``nn.Linear`` is.

    Args:
        width: D, width of queries and output.
        heads: H; must divide ``width``.
        kv_heads: Number of key and value heads, a divisor of ``heads``; ``heads`` if None.
        memory_width: Width of keys and values for cross-attention; ``width`` if None.
        bias: Whether the four projections have a bias.
        dropout: Probability with which a weight is dropped in training.
        position: Acts inside attention, see :mod:`attention_lib.positions`; for self-attention.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If the sizes do not divide.

    Example:
        >>> attention, x = MultiHeadAttention(width=8, heads=2), torch.zeros(1, 3, 8)
        >>> tuple(attention(x).shape), tuple(attention.attention_weights(x).shape)
        ((1, 3, 8), (1, 2, 3, 3))

    Source:
        Vaswani et al. (2017), section 3.2.2; Ainslie et al. (2023), section 2.2, for grouped heads.
        Chapter 07.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        memory_width: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        position: Position | None = None,
    ) -> None:
        super().__init__()
        check_count("width", width, least=1)
        check_divides("heads", heads, "width", width)
        kv_heads = heads if kv_heads is None else kv_heads
        check_divides("kv_heads", kv_heads, "heads", heads)
        memory_width = width if memory_width is None else memory_width
        check_count("memory_width", memory_width, least=1)
        check_fraction("dropout", dropout)
        self.width, self.memory_width = width, memory_width
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, width // heads
        self.dropout = dropout
        self.position = position
        kv_width = kv_heads * self.head_width
        self.query_proj = nn.Linear(width, width, bias=bias)
        self.key_proj = nn.Linear(memory_width, kv_width, bias=bias)
        self.value_proj = nn.Linear(memory_width, kv_width, bias=bias)
        self.output_proj = nn.Linear(width, width, bias=bias)

    def forward(
        self,
        query: Float[Tensor, "... Tq D"],
        key: Float[Tensor, "... Tk Dm"] | None = None,
        value: Float[Tensor, "... Tk Dm"] | None = None,
        *,
        mask: Mask | Bool[Tensor, "..."] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "... Tq D"]:
        """Attend from ``query`` to ``key`` and ``value``.

        Args:
            query: What asks, (..., Tq, D).
            key: What is asked, (..., Tk, Dm); ``query`` if None (self-attention).
            value: What is read, (..., Tk, Dm); ``key`` if None.
            mask: True means "may attend". It broadcasts to (..., Tq, Tk), the same for all heads;
                with one dimension more, to (..., H, Tq, Tk).
            cache: Earlier keys and values, which the new ones are appended to.

        Returns:
            Output, (..., Tq, D).
        """
        offset = 0 if cache is None else len(cache)
        q, k, v = self._project(query, key, value, offset, cache)
        if cache is not None:
            mask = cache.visible(mask, q.shape[-2])
            k, v = cache.append(k, v)
        mask = mask_per_head(mask, max(q.ndim, k.ndim))
        bias = self._bias(q, k, offset)
        dropout = self.dropout if self.training else 0.0
        sees_all = bias is None and (mask is None or mask is causal())  # with one query
        if self.kv_heads < self.heads and q.shape[-2] == 1 and sees_all:
            # Heads of a group with one query each are one head with a group of queries, and the
            # keys and values of a long cache need not be copied for each of them.
            grouped = q.unflatten(-3, (self.kv_heads, -1)).squeeze(-2)  # (..., Hkv, H / Hkv, Dh)
            output = attend(grouped, k, v, dropout=dropout).flatten(-3, -2).unsqueeze(-2)
        else:
            share = self._share
            output = attend(q, share(k), share(v), mask, bias=bias, dropout=dropout)
        mixed: Tensor = self.output_proj(merge_heads(output))  # (..., Tq, D)
        return mixed

    def attention_weights(
        self,
        query: Float[Tensor, "... Tq D"],
        key: Float[Tensor, "... Tk Dm"] | None = None,
        *,
        mask: Mask | Bool[Tensor, "..."] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "... H Tq Tk"]:
        """Return the weights that ``forward`` uses, without dropout; the cache stays as it is.

        Args:
            query: As in :meth:`forward`.
            key: As in :meth:`forward`.
            mask: As in :meth:`forward`.
            cache: As in :meth:`forward`, before the call that would append to it.

        Returns:
            Weights of each head, (..., H, Tq, Tk).
        """
        offset = 0 if cache is None else len(cache)
        q, k, v = self._project(query, key, None, offset, cache)
        if cache is not None:
            mask = cache.visible(mask, q.shape[-2])
            k, _ = cache.extended(k, v)
        mask = mask_per_head(mask, max(q.ndim, k.ndim))
        bias = self._bias(q, k, offset)
        return attention_weights(q, self._share(k), mask, bias=bias)

    def _project(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        offset: int,
        cache: KVCache | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """New queries, keys and values, split into heads; queries and keys know their positions."""
        if key is None:
            if value is not None:
                raise ValueError("value must come with a key, got a value and no key")
            key = query
        elif self.position is not None or cache is not None:
            raise ValueError(
                f"key must be None where there is a {'position' if cache is None else 'cache'}, "
                f"which numbers one sequence, got key {shape(key)}"
            )
        value = key if value is None else value
        for name, x, width in (
            ("query", query, self.width),
            ("key", key, self.memory_width),
            ("value", value, self.memory_width),
        ):
            check_float(name, x, rank=2)
            if x.shape[-1] != width:
                raise ValueError(f"{name} must have width {width}, got shape {shape(x)}")
        if key is query and value is query:
            projected = project(query, (self.query_proj, self.key_proj, self.value_proj))
        else:
            projected = [self.query_proj(query), self.key_proj(key), self.value_proj(value)]
        q = split_heads(projected[0], self.heads)  # (..., H, Tq, Dh)
        k = split_heads(projected[1], self.kv_heads)  # (..., Hkv, Tk, Dh)
        v = split_heads(projected[2], self.kv_heads)
        if self.position is not None:
            q, k = self.position.rotate(q, k, offset)
        return q, k, v

    def _bias(self, q: Tensor, k: Tensor, offset: int) -> Tensor | None:
        """What the position adds to the scores, (H, Tq, Tk)."""
        if self.position is None:
            return None
        bias = self.position.bias(q.shape[-2], k.shape[-2], offset)
        if bias is None:
            return None
        if k.shape[-2] < offset + q.shape[-2]:
            raise ValueError(
                f"cache must keep all {offset + q.shape[-2]} positions where a position adds a "
                f"bias, which counts keys from 0, got {k.shape[-2]} keys"
            )
        return bias.to(q.dtype)

    def _share(self, x: Tensor) -> Tensor:
        """Give each query head its key or value head: (..., Hkv, T, Dh) to (..., H, T, Dh)."""
        groups = self.heads // self.kv_heads
        return x if groups == 1 else x.repeat_interleave(groups, dim=-3)
