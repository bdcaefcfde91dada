"""Multi-head latent attention: keys and values of all heads from one short vector. Chapter 17.

A position is remembered as its latent vector and, beside it, one rotary key that all heads share:
together a row of ``memory``. Two functions give the same output. :func:`attend_expanded` makes the
keys and values of every head from the latent vectors, once a call. :func:`attend_absorbed` brings
the queries to the latent space instead and reads the memory as it is, once a head.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad

from attention_lib._checks import check_count, check_divides, check_float, check_like, shape
from attention_lib._masking import mask_per_head
from attention_lib.attention import attend
from attention_lib.efficient.caches import cache_bytes
from attention_lib.heads import KVCache, merge_heads, split_heads
from attention_lib.masks import Mask, causal
from attention_lib.positions import Position, Rotary


def latent_bytes(
    layers: int,
    latent: int,
    rotary: int,
    length: int,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
) -> int:
    r"""How many bytes does the cache of latent attention take?

    .. math:: L \cdot (r + D_r) \cdot T \cdot B \cdot \text{bytes of a number}

    The number of heads does not occur.

    Args:
        layers: L, number of layers.
        latent: r, width of the latent vectors.
        rotary: Dr, width of the rotary key.
        length: T, positions in the cache.
        batch: B, number of sequences.
        dtype: What a number is stored as.

    Returns:
        Bytes.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is negative.

    Example:
        >>> latent_bytes(layers=1, latent=6, rotary=2, length=10)  # 10 rows of 8 numbers
        320

    Source:
        DeepSeek-AI (2024), section 2.1.4, table 1. Chapter 17.
    """
    check_count("latent", latent, least=0)
    check_count("rotary", rotary, least=0)
    return cache_bytes(layers, 1, latent + rotary, length, batch=batch, dtype=dtype) // 2


def attend_expanded(
    query: Float[Tensor, "... H Tq Dq"],
    memory: Float[Tensor, "... Tk Dm"],
    key_up: Float[Tensor, "H Dh r"],
    value_up: Float[Tensor, "H Dh r"],
    mask: Mask | Bool[Tensor, "..."] | None = None,
) -> Float[Tensor, "... H Tq Dh"]:
    r"""Make keys and values of every head from the latent vectors, then attend.

    .. math:: k_{jh} = [W_K^h c_j ;\, \rho_j], \qquad v_{jh} = W_V^h c_j, \qquad
              o_{ih} = \sum_j \mathrm{softmax}_j\Big(\frac{q_{ih} \cdot k_{jh}}
              {\sqrt{D_h + D_r}}\Big) v_{jh}

    Args:
        query: Queries of each head, their rotary part last, (..., H, Tq, Dh + Dr).
        memory: Latent vectors c with the rotary keys behind them, (..., Tk, r + Dr).
        key_up: The matrices that make keys, (H, Dh, r).
        value_up: The matrices that make values, (H, Dh, r).
        mask: As in :func:`attention_lib.attention.attend`, for scores (..., H, Tq, Tk).

    Returns:
        Output of each head, (..., H, Tq, Dh); 0 for a query that may attend to nothing.

    Raises:
        TypeError: If a tensor is not floating-point or the dtypes differ.
        ValueError: If the shapes do not fit.

    Example:
        >>> query, memory = torch.zeros(1, 1, 2), torch.tensor([[0.0, 2.0], [4.0, 0.0]])
        >>> up = torch.eye(2)[None]  # one head, whose keys and values are the latent vectors
        >>> attend_expanded(query, memory, up, up).round(decimals=3).tolist()
        [[[2.0, 1.0]]]

    Source:
        DeepSeek-AI (2024), section 2.1.2, equations 9 to 11, and section 2.1.3, equations 16 to 18.
        Chapter 17.
    """
    head_width, latent = _check_parts(query, memory, key_up, value_up)
    compressed, rotary = memory[..., None, :, :latent], memory[..., None, :, latent:]
    key = compressed @ key_up.mT  # (..., H, Tk, Dh)
    key = torch.cat([key, rotary.expand(*key.shape[:-1], -1)], dim=-1)
    # Values as wide as keys, with zeros behind them, have a fused kernel on a CPU.
    value = pad(compressed @ value_up.mT, (0, rotary.shape[-1]))
    return attend(query, key, value, mask)[..., :head_width]


def attend_absorbed(
    query: Float[Tensor, "... H Tq Dq"],
    memory: Float[Tensor, "... Tk Dm"],
    key_up: Float[Tensor, "H Dh r"],
    value_up: Float[Tensor, "H Dh r"],
    mask: Mask | Bool[Tensor, "..."] | None = None,
) -> Float[Tensor, "... H Tq Dh"]:
    r"""Bring the queries to the latent space, attend there, and bring the output back.

    .. math:: q \cdot W_K c = (W_K^\top q) \cdot c, \qquad
              \sum_j w_j W_V c_j = W_V \sum_j w_j c_j

    The numbers are those of :func:`attend_expanded`, and no key or value of a head is ever made:
    all heads read the same memory, as in multi-query attention.

    Args:
        query: As in :func:`attend_expanded`.
        memory: As in :func:`attend_expanded`.
        key_up: As in :func:`attend_expanded`.
        value_up: As in :func:`attend_expanded`.
        mask: As in :func:`attend_expanded`.

    Returns:
        Output of each head, (..., H, Tq, Dh); 0 for a query that may attend to nothing.

    Raises:
        TypeError: If a tensor is not floating-point or the dtypes differ.
        ValueError: If the shapes do not fit.

    Example:
        >>> draw, sizes = torch.Generator().manual_seed(0), ((2, 4, 3), (4, 4), (2, 2, 3))
        >>> query, memory, up = (torch.randn(size, generator=draw) for size in sizes)
        >>> expanded = attend_expanded(query, memory, up, up, causal())
        >>> torch.allclose(attend_absorbed(query, memory, up, up, causal()), expanded, atol=1e-5)
        True

    Source:
        DeepSeek-AI (2024), section 2.1.2, on absorbing the matrices. Chapter 17.
    """
    head_width, latent = _check_parts(query, memory, key_up, value_up)
    inward = torch.einsum("...htd,hdr->...htr", query[..., :head_width], key_up)
    inward = torch.cat([inward, query[..., head_width:]], dim=-1)  # (..., H, Tq, r + Dr)
    shared, scale = memory.unsqueeze(-3), 1 / math.sqrt(query.shape[-1])
    # The memory itself stands for the values, because they are then as wide as the keys, and the
    # columns of the rotary keys are cut off.
    if query.shape[-2] == 1 and (mask is None or mask is causal()):
        # One query a head: the heads are the rows of one matrix, which reads the memory once.
        rows = inward.transpose(-2, -3)  # (..., 1, H, r + Dr)
        mean = attend(rows, shared, shared, scale=scale).transpose(-2, -3)
    else:
        mean = attend(inward, shared, shared, mask, scale=scale)
    return torch.einsum("...htr,hdr->...htd", mean[..., :latent], value_up)


class LatentAttention(nn.Module):
    r"""Self-attention whose cache holds one latent vector and one rotary key a position.

    .. math:: c_j = x_j W_C, \quad \rho_j = \mathrm{rotary}_j(x_j W_R), \quad
              q_i = [x_i W_Q ;\, \mathrm{rotary}_i(x_i W_{QR})], \quad
              \mathrm{output} = [o_1, \dots, o_H]\, W_O

    with :math:`o_h` from :func:`attend_expanded`. The rotation cannot act on the keys of the heads,
    because it would stand between the two matrices that are to be one; hence the separate part.
    Any cache goes with it. The key of the cache is the memory, (..., T, r + Dr), its value has
    width 0. DeepSeek-V2 also compresses the queries and normalises the latent vectors, which is
    left out here. Without biases; initialised as ``nn.Linear`` is.

    Args:
        width: D, width of input and output.
        heads: H; must divide ``width``; Dh is their quotient.
        latent: r, width of the latent vectors.
        rotary: Dr, width of the rotary part, an even number; 0 for none.
        base: Base of the rotary frequencies.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is too small or odd, or ``heads`` does not divide ``width``.

    Example:
        >>> attention, cache = LatentAttention(8, 2, latent=3, rotary=2), KVCache()
        >>> tuple(attention(torch.zeros(1, 4, 8), mask=causal(), cache=cache).shape)
        (1, 4, 8)
        >>> tuple(cache.key.shape), tuple(cache.value.shape)
        ((1, 4, 5), (1, 4, 0))

    Source:
        DeepSeek-AI (2024), section 2.1. Chapter 17.
    """

    def __init__(
        self, width: int, heads: int, *, latent: int, rotary: int, base: float = 10000.0
    ) -> None:
        super().__init__()
        check_count("width", width, least=1)
        check_divides("heads", heads, "width", width)
        check_count("latent", latent, least=1)
        check_count("rotary", rotary, least=0)
        self.width, self.heads, self.head_width = width, heads, width // heads
        self.latent, self.rotary = latent, rotary
        self.position = Rotary(rotary, base=base) if rotary else Position()
        self.query_proj = nn.Linear(width, heads * (self.head_width + rotary), bias=False)
        self.memory_proj = nn.Linear(width, latent + rotary, bias=False)
        self.key_up = nn.Linear(latent, width, bias=False)
        self.value_up = nn.Linear(latent, width, bias=False)
        self.output_proj = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "... T D"],
        *,
        mask: Mask | Bool[Tensor, "..."] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "... T D"]:
        """Attend from ``x`` to itself and to what the cache holds.

        Args:
            x: Input, (..., T, D).
            mask: As in :class:`attention_lib.heads.MultiHeadAttention`.
            cache: Memory of earlier positions, which that of the new ones is appended to.

        Returns:
            Output, (..., T, D), in the form that takes fewer multiplications.
        """
        query, memory = self.project(x, 0 if cache is None else len(cache))
        if cache is not None:
            mask = cache.visible(mask, x.shape[-2])
            memory, _ = cache.append(memory, memory[..., :0])
        new, total = x.shape[-2], memory.shape[-2]
        # Multiplications of a head beyond those that both forms need.
        expanding = total * self.latent * self.head_width
        absorbing = new * (self.latent * self.head_width + total * (self.latent - self.head_width))
        form = attend_absorbed if absorbing < expanding else attend_expanded
        key_up, value_up = self.up()
        output = form(query, memory, key_up, value_up, mask_per_head(mask, query.ndim))
        mixed: Tensor = self.output_proj(merge_heads(output))
        return mixed

    def project(
        self, x: Float[Tensor, "... T D"], offset: int = 0
    ) -> tuple[Float[Tensor, "... H T Dq"], Float[Tensor, "... T Dm"]]:
        """Queries (..., H, T, Dh + Dr) and memory (..., T, r + Dr) of positions from ``offset``."""
        check_float("x", x, rank=2)
        if x.shape[-1] != self.width:
            raise ValueError(f"x must have width {self.width}, got shape {shape(x)}")
        query, memory = split_heads(self.query_proj(x), self.heads), self.memory_proj(x)
        turned, rotary_key = self.position.rotate(
            query[..., self.head_width :], memory[..., self.latent :].unsqueeze(-3), offset
        )
        return (
            torch.cat([query[..., : self.head_width], turned], dim=-1),
            torch.cat([memory[..., : self.latent], rotary_key.squeeze(-3)], dim=-1),
        )

    def up(self) -> tuple[Float[Tensor, "H Dh r"], Float[Tensor, "H Dh r"]]:
        """The matrices that make keys and values of each head, as views of the weights."""
        sizes = (self.heads, self.head_width, self.latent)
        return self.key_up.weight.view(sizes), self.value_up.weight.view(sizes)


def _check_parts(
    query: Tensor, memory: Tensor, key_up: Tensor, value_up: Tensor
) -> tuple[int, int]:
    """Require tensors that fit together; return Dh and r."""
    for name, x, rank in (
        ("query", query, 3),
        ("memory", memory, 2),
        ("key_up", key_up, 3),
        ("value_up", value_up, 3),
    ):
        check_float(name, x, rank=rank)
        check_like(name, x, "query", query)
    heads, head_width, latent = key_up.shape
    if value_up.shape != key_up.shape:
        raise ValueError(
            f"value_up must have the shape of key_up, {shape(key_up)}, got {shape(value_up)}"
        )
    if query.shape[-3] != heads:
        raise ValueError(f"query must have the {heads} heads of key_up, got shape {shape(query)}")
    rotary = query.shape[-1] - head_width
    if rotary < 0 or memory.shape[-1] != latent + rotary:
        raise ValueError(
            f"query and memory must have widths {head_width} + Dr and {latent} + Dr with the same "
            f"Dr, got shapes {shape(query)} and {shape(memory)}"
        )
    return head_width, latent
