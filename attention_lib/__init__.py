"""The shared library of the book: attention from a correlation to a Transformer.

Read the modules in this order and never turn back::

    scores -> softmax (masks) -> attention -> heads (positions) -> blocks -> models

Tensors keep one naming scheme everywhere: ``query``, ``key``, ``value``, ``scores``, ``mask``,
``weights``, ``output``. In shapes, ``B`` is the batch, ``H`` the number of heads, ``Tq`` and ``Tk``
the number of queries and of keys, ``D`` the width, ``Dh`` the width of a head. Masks are boolean,
and True means "may attend".
"""

from attention_lib.attention import attend, attend_explicit, attention_weights
from attention_lib.blocks import (
    DecoderBlock,
    EncoderBlock,
    FeedForward,
    GatedFeedForward,
    PostNorm,
    PreNorm,
)
from attention_lib.heads import KVCache, MultiHeadAttention, merge_heads, split_heads
from attention_lib.masks import (
    Mask,
    causal,
    document,
    for_torch_attention,
    padding,
    prefix,
    sliding_window,
)
from attention_lib.positions import (
    Alibi,
    Learned,
    Position,
    RelativeBias,
    Rotary,
    Sinusoidal,
    alibi_slopes,
    half_from_interleaved,
    interleaved_from_half,
    sinusoidal_table,
)
from attention_lib.scores import (
    additive,
    bilinear,
    cosine,
    dot,
    gaussian,
    pearson,
    scaled_dot,
    spearman,
)
from attention_lib.softmax import entropy, softmax

__version__ = "0.1.0"

__all__ = [
    "Alibi",
    "DecoderBlock",
    "EncoderBlock",
    "FeedForward",
    "GatedFeedForward",
    "KVCache",
    "Learned",
    "Mask",
    "MultiHeadAttention",
    "Position",
    "PostNorm",
    "PreNorm",
    "RelativeBias",
    "Rotary",
    "Sinusoidal",
    "additive",
    "alibi_slopes",
    "attend",
    "attend_explicit",
    "attention_weights",
    "bilinear",
    "causal",
    "cosine",
    "document",
    "dot",
    "entropy",
    "for_torch_attention",
    "gaussian",
    "half_from_interleaved",
    "interleaved_from_half",
    "merge_heads",
    "padding",
    "pearson",
    "prefix",
    "scaled_dot",
    "sinusoidal_table",
    "sliding_window",
    "softmax",
    "spearman",
    "split_heads",
]
