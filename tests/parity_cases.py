"""The rows of the parity table: a component, an outside reference, a dtype and a mask.

A measurement returns error and budget of the output, then of each gradient. Error is the largest
difference from a float64 loop; the budget is twice the reference's own error plus rounding.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import oracle
import oracle_layers
import scipy.stats
import torch
import twins
from oracle import budget, error, measure, random
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import gelu, scaled_dot_product_attention

import attention_lib as lib
from attention_lib.losses import cross_entropy
from attention_lib.positions import alibi_slopes, half_from_interleaved, interleaved_from_half

HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
Pairs = list[tuple[float, float]]

# Different primes, but for the widths of modules, which are the product of heads and their width.
BATCH, HEADS, HEAD_WIDTH, TQ, TK, HIDDEN = 2, 3, 5, 7, 11, 13
WIDTH, GROUPED, EVEN = HEADS * HEAD_WIDTH, 6, 14
MASKS = {
    "none": None,
    "causal": lib.causal(),
    "padding": lib.padding(torch.tensor([4, 6])),
    # Each row allows at least one key: PyTorch's modules answer NaN where there is none.
    "random": torch.rand(BATCH, TQ, TK, generator=torch.Generator().manual_seed(1)) < 0.6,
}
MASKS["random"][..., 0] = True


@dataclass(frozen=True)
class Case:
    """One row; ``run`` takes the dtype, the name of the mask and a source of random numbers."""

    component: str
    reference: str
    dtype: torch.dtype
    mask: str
    run: Callable[[torch.dtype, str, torch.Generator], Pairs]

    def row(self) -> tuple[str, str, str, str]:
        """What names the case in the table."""
        return self.component, self.reference, str(self.dtype).removeprefix("torch."), self.mask


def _mask(name: str, keys: int) -> tuple[lib.Mask | Tensor | None, Tensor | None]:
    """The mask as ours takes it, and written out as (B, Tq, Tk)."""
    mask = MASKS[name]
    if isinstance(mask, Tensor):
        mask = mask[..., :keys]
    dense = mask.dense(TQ, keys) if isinstance(mask, lib.Mask) else mask
    return mask, None if dense is None else dense.expand(BATCH, TQ, keys)


def _without_gradient(ours: Tensor, reference: Tensor, exact: Tensor) -> Pairs:
    return [(error(ours, exact), budget(reference, exact))]


# --- scores and softmax --------------------------------------------------------------------------


def _spread(query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    pairs = torch.broadcast_tensors(query.unsqueeze(-2), key.unsqueeze(-3))
    return tuple(x.contiguous() for x in pairs)


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(dim=-1, keepdim=True)


def _bahdanau(query: Tensor, key: Tensor, wq: Tensor, wk: Tensor, v: Tensor) -> Tensor:
    hidden = functional.linear(query, wq.mT).unsqueeze(-2) + functional.linear(key, wk.mT)[:, None]
    return functional.linear(torch.tanh(hidden), v[None]).squeeze(-1)


def _bilinear(query: Tensor, key: Tensor, weight: Tensor) -> Tensor:
    return functional.bilinear(*_spread(query, key), weight[None]).squeeze(-1)


def _score(name, reference, *parameters, cancels=False):
    def run(dtype, mask, generator):
        shapes = (BATCH, TQ, HEAD_WIDTH), (BATCH, TK, HEAD_WIDTH), *parameters
        inputs = [random(generator, *shape, dtype=dtype) for shape in shapes]
        return measure(
            getattr(lib, name), reference, getattr(oracle, name), inputs, one_floor=cancels
        )

    return run


def _spearman(dtype, mask, generator):
    x = random(generator, HEADS, HEAD_WIDTH, dtype=dtype)
    reference = torch.from_numpy(scipy.stats.spearmanr(x, axis=1).statistic)
    return _without_gradient(lib.spearman(x, x), reference, oracle.spearman(x, x))


def _softmax(dtype, mask, generator):
    _, table = _mask(mask, TK)

    def reference(scores):
        return torch.softmax(
            scores if table is None else scores.masked_fill(~table, -math.inf), dim=-1
        )

    scores = random(generator, BATCH, TQ, TK, dtype=dtype)
    return measure(
        partial(lib.softmax, mask=table), reference, partial(oracle.softmax, mask=table), [scores]
    )


# --- attention and heads -------------------------------------------------------------------------


def _attend(path):
    def run(dtype, mask, generator):
        given, table = _mask(mask, TK)
        shapes = (BATCH, TQ, HEAD_WIDTH), (BATCH, TK, HEAD_WIDTH), (BATCH, TK, HIDDEN)
        return measure(
            lambda *x: path(*x, given),
            partial(scaled_dot_product_attention, attn_mask=table),
            partial(oracle.attend, mask=table),
            [random(generator, *shape, dtype=dtype) for shape in shapes],
        )

    return run


def _heads(keys, memory_width=None):
    """Self-attention if ``keys`` is TQ and there is no memory."""
    cross, width = keys != TQ, memory_width or WIDTH

    def run(dtype, mask, generator):
        given, table = _mask(mask, keys)
        module = lib.MultiHeadAttention(WIDTH, HEADS, memory_width=memory_width)
        parameters = twins.parameters_of(module, generator, dtype)
        names, inputs = list(parameters), [random(generator, BATCH, TQ, WIDTH, dtype=dtype)]
        if cross:
            inputs.append(random(generator, BATCH, keys, width, dtype=dtype))
        theirs = twins.as_function(
            nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, kdim=width, vdim=width),
            names,
            3,
            translate=twins.attention,
            first=True,
            attn_mask=twins.blocked(table, HEADS),
            need_weights=False,
        )

        def reference(*tensors):
            query, memory = tensors[0], tensors[len(inputs) - 1]
            return theirs(query, memory, memory, *tensors[len(inputs) :])

        def loop(*tensors):
            query, memory = tensors[0], tensors[len(inputs) - 1]
            own = dict(zip(names, tensors[len(inputs) :], strict=True))
            return oracle_layers.multi_head(query, memory, memory, own, heads=HEADS, mask=table)

        ours = twins.as_function(module, names, len(inputs), mask=given)
        return measure(ours, reference, loop, [*inputs, *parameters.values()], one_floor=True)

    return run


def _grouped(dtype, mask, generator):
    given, table = _mask(mask, TQ)
    width, shared = GROUPED * HEAD_WIDTH, 2
    module = lib.MultiHeadAttention(width, GROUPED, kv_heads=shared)
    parameters = twins.parameters_of(module, generator, dtype)
    names = list(parameters)

    def copied(ours):
        """Each key and value head as often as query heads share it."""
        own = dict(ours)
        for name in own:
            if name.startswith(("key_proj", "value_proj")):
                parts = own[name].unflatten(0, (shared, -1))
                own[name] = parts.repeat_interleave(GROUPED // shared, dim=0).flatten(0, 1)
        return twins.attention(own)

    twin = nn.MultiheadAttention(width, GROUPED, batch_first=True)
    named = {"attn_mask": twins.blocked(table, GROUPED), "need_weights": False}
    theirs = twins.as_function(twin, names, 3, translate=copied, first=True, **named)

    def loop(x, *tensors):
        own = dict(zip(names, tensors, strict=True))
        named = {"heads": GROUPED, "kv_heads": shared, "mask": table}
        return oracle_layers.multi_head(x, x, x, own, **named)

    return measure(
        twins.as_function(module, names, 1, mask=given),
        lambda x, *tensors: theirs(x, x, x, *tensors),
        loop,
        [random(generator, BATCH, TQ, width, dtype=dtype), *parameters.values()],
        one_floor=True,
    )


# --- blocks --------------------------------------------------------------------------------------


def _block(pre, decoder):
    residual = partial(lib.PreNorm if pre else lib.PostNorm, WIDTH)
    layer = nn.TransformerDecoderLayer if decoder else nn.TransformerEncoderLayer
    kind = lib.DecoderBlock if decoder else lib.EncoderBlock

    def run(dtype, mask, generator):
        given, table = _mask("causal" if decoder else mask, TQ)
        memory_mask, memory_table = _mask("padding" if decoder else "none", TK)
        attention = [lib.MultiHeadAttention(WIDTH, HEADS) for _ in range(1 + decoder)]
        block = kind(*attention, lib.FeedForward(WIDTH, HIDDEN, activation=gelu), residual)
        parameters = twins.parameters_of(block, generator, dtype)
        names, lengths = list(parameters), [TQ, TK] if decoder else [TQ]
        inputs = [random(generator, BATCH, length, WIDTH, dtype=dtype) for length in lengths]
        named = {"memory_mask": memory_mask} if decoder else {}
        blocked = {"tgt_mask" if decoder else "src_mask": twins.blocked(table, HEADS)}
        if decoder:
            blocked["memory_mask"] = twins.blocked(memory_table, HEADS)

        def loop(x, *tensors):
            memory = tensors[0] if decoder else None
            own = dict(zip(names, tensors[decoder:], strict=True))
            rest = {"memory": memory, "mask": table, "memory_mask": memory_table}
            return oracle_layers.block(x, own, heads=HEADS, pre=pre, activation=gelu, **rest)

        twin = layer(WIDTH, HEADS, HIDDEN, 0.0, gelu, batch_first=True, norm_first=pre)
        return measure(
            twins.as_function(block, names, len(inputs), mask=given, **named),
            twins.as_function(twin, names, len(inputs), translate=twins.block, **blocked),
            loop,
            [*inputs, *parameters.values()],
            one_floor=True,
        )

    return run


# --- positions and loss --------------------------------------------------------------------------


def _rotary(dtype, mask, generator):
    frequencies = 10000.0 ** (-torch.arange(0, EVEN, 2).double() / EVEN)
    turns = torch.exp(1j * torch.outer(torch.arange(TK).double(), frequencies))

    def ours(x):
        half = half_from_interleaved(x)
        return interleaved_from_half(lib.Rotary(EVEN).rotate(half, half)[0])

    def reference(x):
        numbers = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        return torch.view_as_real(numbers * turns.to(numbers.dtype)).flatten(-2)

    def loop(x):
        pairs = torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1)
        turned = oracle_layers.rotary(pairs)
        return torch.stack(turned.chunk(2, dim=-1), dim=-1).flatten(-2)

    return measure(ours, reference, loop, [random(generator, BATCH, TK, EVEN, dtype=dtype)])


def _sinusoidal(dtype, mask, generator):
    exact = oracle_layers.sinusoidal(TK, EVEN)
    return _without_gradient(lib.sinusoidal_table(TK, EVEN), exact.to(dtype), exact)


def _alibi(dtype, mask, generator):
    slopes = [2.0**-h for h in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    exact = oracle_layers.alibi(slopes, TQ, TK)
    assert len(alibi_slopes(12)) == len(slopes)
    return _without_gradient(lib.Alibi(12).bias(TQ, TK), exact.to(dtype), exact)


def _loss(dtype, mask, generator):
    targets = torch.randint(HIDDEN, (BATCH, TQ), generator=generator)
    targets[:, 4:] = -100
    flat = targets.flatten()

    def loop(logits):
        rows = [(z, t) for z, t in zip(logits.flatten(0, 1), flat, strict=True) if t >= 0]
        return sum(_surprise(z, t) for z, t in rows) / len(rows)

    return measure(
        partial(cross_entropy, targets=targets, label_smoothing=0.1),
        lambda z: functional.cross_entropy(z.flatten(0, 1), flat, label_smoothing=0.1),
        loop,
        [random(generator, BATCH, TQ, HIDDEN, dtype=dtype)],
    )


def _surprise(z: Tensor, target: Tensor) -> Tensor:
    """Minus the sum of q ln p, where q puts 0.9 on the target and spreads 0.1 over all."""
    p = oracle.softmax(z)
    return sum(-((0.9 if v == target else 0.0) + 0.1 / len(z)) * p[v].log() for v in range(len(z)))


# --- the table -----------------------------------------------------------------------------------

_BOTH, _ALL = [SINGLE, BRAIN], [SINGLE, HALF, BRAIN, DOUBLE]
_SDPA, _MHA = "scaled_dot_product_attention", "nn.MultiheadAttention"
_ENCODER, _DECODER = "nn.TransformerEncoderLayer", "nn.TransformerDecoderLayer"
_LAYERS = "PyTorch, written out"


def _cases(component, reference, run, dtypes, *masks):
    """The first dtype with every mask, the other dtypes with the last mask."""
    masks = masks or ("none",)
    pairs = [(dtypes[0], mask) for mask in masks] + [(dtype, masks[-1]) for dtype in dtypes[1:]]
    return [Case(component, reference, dtype, mask, run) for dtype, mask in pairs]


CASES = [
    *_cases("dot", "torch.matmul", _score("dot", lambda q, k: q @ k.mT), _BOTH),
    *_cases(
        "scaled_dot",
        "torch.matmul",
        _score("scaled_dot", lambda q, k: q @ k.mT / HEAD_WIDTH**0.5),
        _BOTH,
    ),
    *_cases(
        "cosine",
        "functional.cosine_similarity",
        _score("cosine", lambda q, k: functional.cosine_similarity(*_spread(q, k), dim=-1)),
        _BOTH,
    ),
    *_cases(
        "pearson",
        "functional.cosine_similarity",
        _score(
            "pearson",
            lambda q, k: functional.cosine_similarity(
                *_spread(_centred(q), _centred(k)), dim=-1
            ),
        ),
        _BOTH,
    ),
    *_cases("spearman", "scipy.stats.spearmanr", _spearman, [DOUBLE]),
    *_cases(
        "gaussian",
        _LAYERS,
        _score("gaussian", lambda q, k: -(q.unsqueeze(-2) - k.unsqueeze(-3)).square().sum(-1) / 2),
        _BOTH,
    ),
    *_cases(
        "bilinear",
        "functional.bilinear",
        _score("bilinear", _bilinear, (HEAD_WIDTH, HEAD_WIDTH)),
        _BOTH,
    ),
    *_cases(
        "additive",
        _LAYERS,
        _score("additive", _bahdanau, (HEAD_WIDTH, HIDDEN), (HEAD_WIDTH, HIDDEN), (HIDDEN,)),
        _BOTH,
    ),
    *_cases("softmax", "torch.softmax", _softmax, _BOTH, "none", "random"),
    *_cases("attend_explicit", _SDPA, _attend(lib.attend_explicit), _BOTH, "causal", "random"),
    *_cases("attend", _SDPA, _attend(lib.attend), _ALL, "none", "padding", "random", "causal"),
    *_cases(
        "MultiHeadAttention", _MHA, _heads(TQ), _ALL, "none", "padding", "random", "causal"
    ),
    *_cases("MultiHeadAttention, cross", _MHA, _heads(TK), _BOTH, "none", "padding"),
    *_cases(
        "MultiHeadAttention, memory_width", _MHA, _heads(TK, HIDDEN), _BOTH, "padding"
    ),
    *_cases("MultiHeadAttention, kv_heads", f"{_MHA}, copied heads", _grouped, _BOTH, "causal"),
    *_cases("EncoderBlock, PreNorm", _ENCODER, _block(True, False), _BOTH, "padding", "causal"),
    *_cases("EncoderBlock, PostNorm", _ENCODER, _block(False, False), _BOTH, "padding", "causal"),
    *_cases("DecoderBlock, PreNorm", _DECODER, _block(True, True), _BOTH, "causal, padding"),
    *_cases("DecoderBlock, PostNorm", _DECODER, _block(False, True), _BOTH, "causal, padding"),
    *_cases("Rotary", "complex numbers", _rotary, [SINGLE, DOUBLE]),
    *_cases("sinusoidal_table", "float64 loop", _sinusoidal, [SINGLE]),
    *_cases("Alibi", "float64 loop", _alibi, [SINGLE]),
    *_cases("cross_entropy", "functional.cross_entropy", _loss, _BOTH, "ignored targets"),
]  # fmt: skip
