"""Independent answers for positions, heads and blocks: float64 loops, as in :mod:`oracle`.

Parameters come as a dictionary under the names of the library's modules.
"""

import math
from collections.abc import Callable, Mapping

import oracle
import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]


def part(parameters: Parameters, prefix: str) -> dict[str, Tensor]:
    """The parameters of a submodule, under its own names."""
    start = f"{prefix}."
    return {k.removeprefix(start): x for k, x in parameters.items() if k.startswith(start)}


# --- positions, one number at a time -------------------------------------------------------------


def sinusoidal(length: int, width: int, base: float = 10000.0, offset: int = 0) -> Tensor:
    """P[t, 2i] = sin(t / base^(2i/D)) and P[t, 2i+1] = cos(t / base^(2i/D))."""
    table = torch.empty(length, width, dtype=torch.float64)
    for t in range(length):
        for i in range(width // 2):
            angle = (offset + t) / base ** (2 * i / width)
            table[t, 2 * i], table[t, 2 * i + 1] = math.sin(angle), math.cos(angle)
    return table


def rotary(x: Tensor, offset: int = 0, base: float = 10000.0) -> Tensor:
    """Each pair of features (i, i + Dh/2) times the matrix [[cos, -sin], [sin, cos]]."""
    if x.ndim > 2:
        return torch.stack([rotary(matrix, offset, base) for matrix in x])
    half = x.shape[-1] // 2
    rows = []
    for t, row in enumerate(x, start=offset):
        first, second = [], []
        for i in range(half):
            angle = t / base ** (2 * i / (2 * half))
            cosine, sine = math.cos(angle), math.sin(angle)
            first.append(cosine * row[i] - sine * row[i + half])
            second.append(sine * row[i] + cosine * row[i + half])
        rows.append(torch.stack(first + second))
    return torch.stack(rows)


def alibi(slopes: list[float], query_length: int, key_length: int, offset: int = 0) -> Tensor:
    """Minus the slope times the distance."""
    bias = torch.empty(len(slopes), query_length, key_length, dtype=torch.float64)
    for h, slope in enumerate(slopes):
        for i in range(query_length):
            for j in range(key_length):
                bias[h, i, j] = -slope * abs(offset + i - j)
    return bias


def relative(table: Tensor, query_length: int, key_length: int, offset: int = 0) -> Tensor:
    """The table's entry at j - i, which is cut off at the reach r on both sides."""
    reach = table.shape[-1] // 2

    def entry(h: int, i: int, j: int) -> Tensor:
        step = j - (offset + i)
        step = reach if step > reach else -reach if step < -reach else step
        return table[h, step + reach]

    heads, queries, keys = range(len(table)), range(query_length), range(key_length)
    rows = [[torch.stack([entry(h, i, j) for j in keys]) for i in queries] for h in heads]
    return torch.stack([torch.stack(matrix) for matrix in rows])


# --- layers, one row at a time -------------------------------------------------------------------


def linear(x: Tensor, parameters: Parameters) -> Tensor:
    """y_o = sum_i x_i W_oi + b_o: PyTorch stores the matrix as (out, in)."""
    if x.ndim > 1:
        return torch.stack([linear(row, parameters) for row in x])
    y = torch.stack([(x * row).sum() for row in parameters["weight"]])
    return y + parameters["bias"] if "bias" in parameters else y


def layer_norm(x: Tensor, parameters: Parameters) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-5), with the biased variance, then weight and bias."""
    if x.ndim > 1:
        return torch.stack([layer_norm(row, parameters) for row in x])
    mean = sum(x) / len(x)
    variance = sum((a - mean) ** 2 for a in x) / len(x)
    return (x - mean) / (variance + 1e-5).sqrt() * parameters["weight"] + parameters["bias"]


def feed_forward(x: Tensor, parameters: Parameters, activation: Callable[..., Tensor]) -> Tensor:
    """One hidden layer; with a gate if there are weights for one."""
    hidden = linear(x, part(parameters, "up_proj"))
    if "gate_proj.weight" in parameters:
        hidden = activation(linear(x, part(parameters, "gate_proj"))) * hidden
    else:
        hidden = activation(hidden)
    return linear(hidden, part(parameters, "down_proj"))


def multi_head(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parameters: Parameters,
    *,
    heads: int,
    kv_heads: int | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    turn: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """Each sequence and each head by itself; ``mask`` (B, Tq, Tk), ``bias`` (H, Tq, Tk)."""
    kv_heads = heads if kv_heads is None else kv_heads
    projected = [
        linear(x, part(parameters, f"{name}_proj"))
        for name, x in (("query", query), ("key", key), ("value", value))
    ]
    width = query.shape[-1] // heads
    outputs = []
    for b in range(len(query)):
        merged = []
        for h in range(heads):
            shared = h // (heads // kv_heads)  # the key and value head of this query head
            q = turn(projected[0][b][:, h * width : (h + 1) * width])
            k = turn(projected[1][b][:, shared * width : (shared + 1) * width])
            v = projected[2][b][:, shared * width : (shared + 1) * width]
            extra = None if bias is None else bias[h]
            allowed = None if mask is None else mask[b]
            merged.append(oracle.attend(q, k, v, extra, allowed))
        outputs.append(torch.cat(merged, dim=-1))
    return linear(torch.stack(outputs), part(parameters, "output_proj"))


# --- blocks --------------------------------------------------------------------------------------


def block(
    x: Tensor,
    parameters: Parameters,
    *,
    heads: int,
    pre: bool,
    activation: Callable[..., Tensor],
    memory: Tensor | None = None,
    mask: Tensor | None = None,
    memory_mask: Tensor | None = None,
    norm: Callable[[Tensor, Parameters], Tensor] = layer_norm,
) -> Tensor:
    """An encoder block, or with a memory a decoder block."""

    def residual(x: Tensor, name: str, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        scales = part(parameters, f"{name}_residual.norm")
        return x + sublayer(norm(x, scales)) if pre else norm(x + sublayer(x), scales)

    def attention(y: Tensor) -> Tensor:
        return multi_head(y, y, y, part(parameters, "attention"), heads=heads, mask=mask)

    def cross(y: Tensor) -> Tensor:
        own = part(parameters, "cross_attention")
        return multi_head(y, memory, memory, own, heads=heads, mask=memory_mask)

    def network(y: Tensor) -> Tensor:
        return feed_forward(y, part(parameters, "feed_forward"), activation)

    x = residual(x, "attention", attention)
    if memory is not None:
        x = residual(x, "cross", cross)
    return residual(x, "feed_forward", network)
