"""Hostile arguments of masks, positions, heads and blocks: the message names rule and value."""

import math
import re

import pytest
import torch

import attention_lib as lib
from attention_lib import (
    KVCache,
    MultiHeadAttention,
    attend,
    attend_explicit,
    causal,
    document,
    merge_heads,
    padding,
    prefix,
    sliding_window,
    split_heads,
)
from attention_lib.masks import for_torch_attention
from attention_lib.positions import alibi_slopes, half_from_interleaved, interleaved_from_half

# The shape checks of the test run would answer before the library does.
pytestmark = [pytest.mark.hostile, pytest.mark.usefixtures("no_shape_hook")]

QKV = torch.ones(3, 7), torch.ones(5, 7), torch.ones(5, 11)
BIASES = [lambda: lib.Alibi(2), lambda: lib.RelativeBias(2, 3)]
NETWORKS = [lib.FeedForward, lib.GatedFeedForward]

# --- sizes and shares, for every function that takes them ----------------------------------------

# The call with one argument left open, its name, and the least it may be.
COUNTS = [
    (lambda n: causal().dense(n, 3), "query_length", 0),
    (lambda n: causal().dense(3, n), "key_length", 0),
    (sliding_window, "before", 0),
    (lambda n: sliding_window(1, n), "after", 0),
    (lambda n: for_torch_attention(causal(), 2, 2, n), "heads", 1),
    (lambda n: lib.sinusoidal_table(n, 2), "length", 0),
    (lambda n: lib.sinusoidal_table(3, n), "width", 2),
    (lambda n: lib.sinusoidal_table(3, 2, offset=n), "offset", 0),
    (lib.Sinusoidal, "width", 2),
    (lambda n: lib.Learned(n, 3), "length", 1),
    (lambda n: lib.Learned(3, n), "width", 1),
    (lambda n: lib.Learned(3, 5)(torch.ones(2, 5), n), "offset", 0),
    (lib.Rotary, "head_width", 2),
    (lambda n: lib.Rotary(4).rotate(torch.ones(3, 4), torch.ones(3, 4), n), "offset", 0),
    (alibi_slopes, "heads", 1),
    (lib.Alibi, "heads", 1),
    (lambda n: lib.RelativeBias(n, 2), "heads", 1),
    (lambda n: lib.RelativeBias(2, n), "reach", 1),
    *((lambda n, make=make: make().bias(n, 3), "query_length", 0) for make in BIASES),
    *((lambda n, make=make: make().bias(3, n), "key_length", 0) for make in BIASES),
    *((lambda n, make=make: make().bias(3, 3, n), "offset", 0) for make in BIASES),
    (lambda n: split_heads(torch.ones(3, 6), n), "heads", 1),
    (lambda n: MultiHeadAttention(n, 1), "width", 1),
    (lambda n: MultiHeadAttention(6, n), "heads", 1),
    (lambda n: MultiHeadAttention(6, 2, kv_heads=n), "kv_heads", 1),
    (lambda n: MultiHeadAttention(6, 2, memory_width=n), "memory_width", 1),
    *((lambda n, kind=kind: kind(n, 3), "width", 1) for kind in NETWORKS),
    *((lambda n, kind=kind: kind(3, n), "hidden", 1) for kind in NETWORKS),
    (lib.PreNorm, "width", 1),
    (lib.PostNorm, "width", 1),
]


@pytest.mark.parametrize(("function", "name", "least"), COUNTS)
def test_a_size_must_be_an_integer_that_is_large_enough(function, name, least):
    for wrong in (2.0, True, "2", torch.tensor(2)):
        message = f"{name} must be an integer, got {type(wrong).__name__}"
        with pytest.raises(TypeError, match="^" + re.escape(message) + "$"):
            function(wrong)
    message = f"{name} must be at least {least}, got {least - 1}"
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        function(least - 1)


FRACTIONS = [
    lambda p: attend(*QKV, dropout=p),
    lambda p: attend_explicit(*QKV, dropout=p),
    lambda p: MultiHeadAttention(6, 2, dropout=p),
    lambda p: lib.FeedForward(3, 5, dropout=p),
    lambda p: lib.GatedFeedForward(3, 5, dropout=p),
    lambda p: lib.PreNorm(3, dropout=p),
    lambda p: lib.PostNorm(3, dropout=p),
]


@pytest.mark.parametrize("function", FRACTIONS)
def test_dropout_must_be_at_least_0_and_below_1(function):
    for wrong in (-0.1, 1, 1.5, math.nan, math.inf):
        message = f"dropout must be at least 0 and below 1, got {wrong}"
        with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
            function(wrong)
    for wrong in (True, None, "0.1"):
        message = f"dropout must be a number, got {type(wrong).__name__}"
        with pytest.raises(TypeError, match="^" + re.escape(message) + "$"):
            function(wrong)
    function(0)
    function(0.99)


# --- everything else, one call each --------------------------------------------------------------


def _call(function, *arguments, **named):
    return lambda: function(*arguments, **named)


def _filled_cache(method):
    cache = KVCache()
    cache.append(torch.ones(2, 3, 7), torch.ones(2, 3, 7))
    return getattr(cache, method)


BAD_CALLS = [
    # rules about positions
    *((_call(make, lengths), kind, f"{name} {message}")
      for make, name in ((padding, "lengths"), (prefix, "lengths"), (document, "ids"))
      for lengths, kind, message in (
          ((3, 1), TypeError, "must be an integer tensor, got tuple"),
          (torch.tensor([3.0]), TypeError, "must be an integer tensor, got torch.float32"),
          (torch.tensor([2j]), TypeError, "must be an integer tensor, got torch.complex64"),
          (torch.tensor([True]), TypeError, "must be an integer tensor, got torch.bool"),
          (torch.tensor([3, -4]), ValueError, "must be at least 0, got a smallest of -4"))),
    (_call(document, torch.tensor(3)), ValueError,
     "ids must have at least 1 dimension, got shape ()"),
    *((lambda lengths=lengths: document(torch.tensor([0, 1, 1])).dense(*lengths), ValueError,
       f"positions must lie in 0 .. 2, where ids has an entry, got {got}")
      for lengths, got in (((2, 4), "2 .. 3"), ((0, 4), "0 .. 3"), ((2, 1), "-1 .. 0"))),
    (_call(causal().tile, range(0, 4, 2), range(3)), ValueError,
     "queries must be a range of step 1, got step 2"),
    (_call(causal().tile, range(3), range(3, 0, -1)), ValueError,
     "keys must be a range of step 1, got step -1"),
    (_call(for_torch_attention, padding(torch.ones(2, 3).long()), 5, 7, 3), ValueError,
     "mask must be (Tq, Tk) or (B, Tq, Tk) when written out, got (2, 3, 5, 7)"),
    # positions
    *((_call(function, *arguments), ValueError, f"{name} must be even, got 5")
      for function, arguments, name in (
          (lib.sinusoidal_table, (3, 5), "width"),
          (lib.Sinusoidal, (5,), "width"),
          (lib.Rotary, (5,), "head_width"),
          (half_from_interleaved, (torch.ones(5),), "the width of x"),
          (interleaved_from_half, (torch.ones(5),), "the width of x"))),
    *((_call(function, *arguments, base=base), kind, message)
      for function, arguments in (
          (lib.sinusoidal_table, (3, 4)), (lib.Sinusoidal, (4,)), (lib.Rotary, (4,)))
      for base, kind, message in (
          (0, ValueError,
           "base must be a finite number above 0, in the range of float32, got 0"),
          (math.inf, ValueError,
           "base must be a finite number above 0, in the range of float32, got inf"),
          ("1", TypeError, "base must be a number, got str"))),
    *((_call(module, x), kind, message)
      for module in (lib.Sinusoidal(4), lib.Learned(3, 4))
      for x, kind, message in (
          ([1.0], TypeError, "x must be a torch.Tensor, got list"),
          (torch.ones(3, 4).long(), TypeError,
           "x must have a floating-point dtype, got torch.int64"),
          (torch.ones(4), ValueError, "x must have at least 2 dimensions, got shape (4,)"),
          (torch.ones(3, 5), ValueError, "x must have width 4, got shape (3, 5)"))),
    (_call(lib.Learned(7, 4), torch.ones(2, 5, 4), 3), ValueError,
     "x must end at position 7 at the latest, where the table of learned positions ends, "
     "got offset 3 + length 5 = 8"),
    (_call(lib.Rotary(4).rotate, torch.ones(3, 6), torch.ones(3, 4)), ValueError,
     "query must have width 4, got shape (3, 6)"),
    (_call(lib.Rotary(4).rotate, torch.ones(3, 4), torch.ones(3, 2)), ValueError,
     "key must have width 4, got shape (3, 2)"),
    *((_call(convert, x), kind, message)
      for convert in (half_from_interleaved, interleaved_from_half)
      for x, kind, message in (
          (torch.ones(4).long(), TypeError,
           "x must have a floating-point dtype, got torch.int64"),
          (torch.tensor(1.0), ValueError, "x must have at least 1 dimension, got shape ()"),
          (torch.ones(3, 0), ValueError, "the width of x must be at least 2, got 0"))),
    # heads
    (_call(split_heads, torch.ones(3, 6), 4), ValueError,
     "heads must divide the width of x = 6, got 4"),
    (_call(split_heads, torch.ones(6), 2), ValueError,
     "x must have at least 2 dimensions, got shape (6,)"),
    (_call(split_heads, torch.ones(3, 6).long(), 2), TypeError,
     "x must have a floating-point dtype, got torch.int64"),
    (_call(merge_heads, torch.ones(3, 6)), ValueError,
     "x must have at least 3 dimensions, got shape (3, 6)"),
    (_call(merge_heads, [1.0]), TypeError, "x must be a torch.Tensor, got list"),
    (_call(MultiHeadAttention, 6, 4), ValueError, "heads must divide width = 6, got 4"),
    (_call(MultiHeadAttention, 6, 6, kv_heads=4), ValueError,
     "kv_heads must divide heads = 6, got 4"),
    *((_call(call, *arguments), kind, message)
      for call in (MultiHeadAttention(6, 2, memory_width=4),
                   MultiHeadAttention(6, 2, memory_width=4).attention_weights)
      for arguments, kind, message in (
          ((torch.ones(3, 5), torch.ones(5, 4)), ValueError,
           "query must have width 6, got shape (3, 5)"),
          ((torch.ones(3, 6), torch.ones(5, 6)), ValueError,
           "key must have width 4, got shape (5, 6)"),
          ((torch.ones(6), torch.ones(5, 4)), ValueError,
           "query must have at least 2 dimensions, got shape (6,)"),
          ((torch.ones(3, 6), torch.ones(4)), ValueError,
           "key must have at least 2 dimensions, got shape (4,)"),
          (([1.0], torch.ones(5, 4)), TypeError, "query must be a torch.Tensor, got list"))),
    (_call(MultiHeadAttention(6, 2, memory_width=4), torch.ones(3, 6), torch.ones(5, 4),
           torch.ones(5, 6)), ValueError, "value must have width 4, got shape (5, 6)"),
    (_call(MultiHeadAttention(6, 2), torch.ones(3, 6), torch.ones(5, 6), torch.ones(7, 6)),
     ValueError, "value must have one row for each key, Tk = 5, got shape (2, 7, 3)"),
    (_call(MultiHeadAttention(6, 2), torch.ones(3, 6), value=torch.ones(3, 6)), ValueError,
     "value must come with a key, got a value and no key"),
    *((_call(MultiHeadAttention(6, 1, position=lib.Rotary(6)), torch.ones(3, 6),
             torch.ones(5, 6), **named), ValueError,
       f"key must be None where there is a {what}, which numbers one sequence, got key (5, 6)")
      for named, what in (({}, "position"), ({"cache": KVCache()}, "cache"))),
    *((_call(call, torch.ones(3, 6), torch.ones(5, 6), cache=KVCache()), ValueError,
       "key must be None where there is a cache, which numbers one sequence, got key (5, 6)")
      for call in (MultiHeadAttention(6, 1), MultiHeadAttention(6, 1).attention_weights)),
    (_call(MultiHeadAttention(6, 2, position=lib.Alibi(3)), torch.ones(5, 6)), ValueError,
     "bias must broadcast to (..., Tq, Tk) = (2, 5, 5), got (3, 5, 5)"),
    (_call(MultiHeadAttention(6, 2), torch.ones(2, 3, 6), mask=torch.ones(2, 3, 4).bool()),
     ValueError, "mask must broadcast to (..., Tq, Tk) = (2, 2, 3, 3), got (2, 1, 3, 4)"),
    (_call(MultiHeadAttention(6, 2), torch.ones(3, 6), mask=torch.ones(3, 3)), TypeError,
     "mask must be boolean with True for 'may attend', got torch.float32"),
    *((_call(_filled_cache(method), *arguments), kind, message)
      for method in ("extended", "append")
      for arguments, kind, message in (
          ((torch.ones(2, 5, 7).double(),) * 2, TypeError,
           "key must have the dtype of the cached keys (torch.float32), got torch.float64"),
          ((torch.ones(2, 5, 7, device="meta"),) * 2, ValueError,
           "key must be on the device of the cached keys (cpu), got meta"),
          ((torch.ones(3, 5, 7),) * 2, ValueError,
           "key must fit the cached keys (2, 3, 7) in all but the length, got (3, 5, 7)"),
          ((torch.ones(2, 5, 11),) * 2, ValueError,
           "key must fit the cached keys (2, 3, 7) in all but the length, got (2, 5, 11)"))),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), BAD_CALLS)
def test_a_bad_argument_is_named(call, kind, message):
    with pytest.raises(kind, match=re.escape(message) + "$"):
        call()
