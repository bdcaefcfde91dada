"""The shared library of the book: attention from a correlation to a Transformer.

Read the modules in this order and never turn back::

    scores -> softmax (masks) -> attention

Tensors keep one naming scheme everywhere: ``query``, ``key``, ``value``, ``scores``, ``mask``,
``weights``, ``output``. In shapes, ``B`` is the batch, ``Tq`` and ``Tk`` the number of queries and
of keys, ``D`` the width. Masks are boolean, and True means "may attend".
"""

from attention_lib.attention import attend, attend_explicit, attention_weights
from attention_lib.masks import Mask, causal, padding
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
    "Mask",
    "additive",
    "attend",
    "attend_explicit",
    "attention_weights",
    "bilinear",
    "causal",
    "cosine",
    "dot",
    "entropy",
    "gaussian",
    "padding",
    "pearson",
    "scaled_dot",
    "softmax",
    "spearman",
]
