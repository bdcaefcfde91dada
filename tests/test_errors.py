"""Hostile arguments that are refused: the message names the argument, the rule and the value."""

import math
import re

import numpy as np
import pytest
import torch
from oracle import BATCH, DK, DV, HIDDEN, TK, TQ, D

import attention_lib as lib
from attention_lib import (
    attend,
    attend_explicit,
    attention_weights,
    causal,
    entropy,
    padding,
    softmax,
)
from attention_lib.data import shrink, split
from attention_lib.masks import Mask

# The shape checks of the test run would answer before the library does.
pytestmark = [pytest.mark.hostile, pytest.mark.usefixtures("no_shape_hook")]

PLAIN = [lib.dot, lib.scaled_dot, lib.cosine, lib.pearson, lib.spearman, lib.gaussian]


def _additive(query, key):
    return lib.additive(
        query, key, torch.ones(D, HIDDEN), torch.ones(D, HIDDEN), torch.ones(HIDDEN)
    )


def _bilinear(query, key):
    return lib.bilinear(query, key, torch.ones(D, D))


def _explicit(query, key):
    return attend_explicit(query, key, torch.ones(TK, DV))


def _fused(query, key):
    return attend(query, key, torch.ones(TK, DV))


PAIRS = [*PLAIN, _bilinear, _additive, attention_weights, _explicit, _fused]

query, key, value = torch.ones(TQ, D), torch.ones(TK, D), torch.ones(TK, DV)

# --- query and key, for every function that takes them -------------------------------------------

BAD_PAIRS = {
    "query is an array": (
        np.ones((TQ, D)), key, TypeError, "query must be a torch.Tensor, got ndarray"
    ),
    "key is a list": (query, [[1.0]], TypeError, "key must be a torch.Tensor, got list"),
    "query is None": (None, key, TypeError, "query must be a torch.Tensor, got NoneType"),
    "integer query": (
        query.long(), key, TypeError, "query must have a floating-point dtype, got torch.int64"
    ),
    "boolean key": (
        query, key > 0, TypeError, "key must have a floating-point dtype, got torch.bool"
    ),
    "complex query": (
        query.to(torch.complex64),
        key,
        TypeError,
        "query must have a floating-point dtype, got torch.complex64",
    ),
    "query is a vector": (
        query[0], key, ValueError, f"query must have at least 2 dimensions, got shape ({D},)"
    ),
    "key is a number": (
        query, key[0, 0], ValueError, "key must have at least 2 dimensions, got shape ()"
    ),
    "width 0": (
        query[:, :0],
        key[:, :0],
        ValueError,
        f"query must have a width of at least 1, got shape ({TQ}, 0)",
    ),
    "key of width 0": (
        query, key[:, :0], ValueError,
        f"key must have a width of at least 1, got shape ({TK}, 0)",
    ),
    "two dtypes": (
        query,
        key.double(),
        TypeError,
        "key must have the dtype of query (torch.float32), got torch.float64",
    ),
    "two devices": (
        query, key.to("meta"), ValueError, "key must be on the device of query (cpu), got meta"
    ),
    "batches that do not broadcast": (
        query.expand(2, TQ, D),
        key.expand(3, TK, D),
        ValueError,
        f"leading dimensions must broadcast together, got query (2, {TQ}, {D}), key (3, {TK}, {D})",
    ),
}  # fmt: skip


@pytest.mark.parametrize("function", PAIRS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", BAD_PAIRS)
def test_a_bad_query_or_key_is_named(function, name):
    bad_query, bad_key, kind, message = BAD_PAIRS[name]
    with pytest.raises(kind, match=re.escape(message)):
        function(bad_query, bad_key)


@pytest.mark.parametrize("function", [*PLAIN, attention_weights, _explicit, _fused])
def test_query_and_key_of_different_width_are_refused(function):
    message = f"key must have the width of query, D = {D}, got shape ({TK}, {DK})"
    with pytest.raises(ValueError, match=re.escape(message)):
        function(query.expand(BATCH, TQ, D), torch.ones(TK, DK))


# --- everything else, one call each --------------------------------------------------------------

SCORES = torch.ones(BATCH, TQ, TK)
MASKED = [softmax, lambda s, m: attention_weights(query.expand(BATCH, TQ, D), key, m)]
SHAPE = f"= ({BATCH}, {TQ}, {TK}), got"
weight, wq, wk, v = (
    torch.ones(*shape) for shape in ((D, DK), (D, HIDDEN), (DK, HIDDEN), (HIDDEN,))
)
wide_key = torch.ones(TK, DK)


def _call(function, *arguments, **named):
    return lambda: function(*arguments, **named)


BAD_CALLS = [
    # parameters of learned scores
    (_call(lib.bilinear, query, wide_key, weight.mT), ValueError,
     f"weight must have shape (Dq, Dk) = ({D}, {DK}), got ({DK}, {D})"),
    (_call(lib.bilinear, query, wide_key, weight[None]), ValueError,
     f"weight must have shape (Dq, Dk) = ({D}, {DK}), got (1, {D}, {DK})"),
    (_call(lib.bilinear, query, wide_key, weight.half()), TypeError,
     "weight must have the dtype of query (torch.float32), got torch.float16"),
    (_call(lib.bilinear, query, wide_key, 2.0), TypeError,
     "weight must be a torch.Tensor, got float"),
    (_call(lib.bilinear, query, wide_key, torch.tensor(2.0)), ValueError,
     "weight must have at least 1 dimension, got shape ()"),
    (_call(lib.additive, query, wide_key, wk, wk, v), ValueError,
     f"query_weight must have shape (Dq, A) = ({D}, {HIDDEN}), got ({DK}, {HIDDEN})"),
    (_call(lib.additive, query, wide_key, wq, wq, v), ValueError,
     f"key_weight must have shape (Dk, A) = ({DK}, {HIDDEN}), got ({D}, {HIDDEN})"),
    (_call(lib.additive, query, wide_key, wq, wk, v[:, None]), ValueError,
     f"vector must have shape (A,) = (1,), got ({HIDDEN}, 1)"),
    (_call(lib.additive, query, wide_key, wq, wk, torch.tensor(1.0)), ValueError,
     "vector must have at least 1 dimension, got shape ()"),
    (_call(lib.additive, query, wide_key, wq.to("meta"), wk, v), ValueError,
     "query_weight must be on the device of query (cpu), got meta"),
    # softmax and entropy
    (_call(softmax, [1.0]), TypeError, "scores must be a torch.Tensor, got list"),
    (_call(softmax, torch.tensor([1, 2])), TypeError,
     "scores must have a floating-point dtype, got torch.int64"),
    (_call(softmax, torch.tensor(1.0)), ValueError,
     "scores must have at least 1 dimension, got shape ()"),
    (_call(entropy, torch.tensor(1.0)), ValueError,
     "weights must have at least 1 dimension, got shape ()"),
    (_call(entropy, torch.tensor([1])), TypeError,
     "weights must have a floating-point dtype, got torch.int64"),
    (_call(entropy, torch.tensor([1.25, -0.25])), ValueError,
     "weights must be at least 0, got a smallest of -0.25"),
    # values and biases
    *((_call(path, query, key, torch.ones(TQ, DV)), ValueError,
       f"value must have one row for each key, Tk = {TK}, got shape ({TQ}, {DV})")
      for path in (attend_explicit, attend)),
    *((_call(path, query, key, value.double()), TypeError,
       "value must have the dtype of query (torch.float32), got torch.float64")
      for path in (attend_explicit, attend)),
    *((_call(path, query, key, value[0]), ValueError,
       f"value must have at least 2 dimensions, got shape ({DV},)")
      for path in (attend_explicit, attend)),
    *((_call(path, query.expand(2, TQ, D), key, value.expand(3, TK, DV)), ValueError,
       f"got query (2, {TQ}, {D}), key ({TK}, {D}), value (3, {TK}, {DV})")
      for path in (attend_explicit, attend)),
    *((_call(path, query, key, value, bias=torch.ones(TK, TQ)), ValueError,
       f"bias must broadcast to (..., Tq, Tk) = ({TQ}, {TK}), got ({TK}, {TQ})")
      for path in (attend_explicit, attend)),
    *((_call(path, query, key, value, bias=torch.ones(BATCH, TQ, TK)), ValueError,
       f"bias must broadcast to (..., Tq, Tk) = ({TQ}, {TK}), got ({BATCH}, {TQ}, {TK})")
      for path in (attend_explicit, attend)),
    *((_call(path, query, key, value, bias=torch.ones(TK).double()), TypeError,
       "bias must have the dtype of the scores (torch.float32), got torch.float64")
      for path in (attend_explicit, attend)),
    *((_call(path, query, key, value, bias=torch.ones(TK, device="meta")), ValueError,
       "bias must be on the device of the scores (cpu), got meta")
      for path in (attend_explicit, attend)),
    *((_call(path, query, key, value, bias=0.5), TypeError,
       "bias must be a torch.Tensor, got float")
      for path in (attend_explicit, attend)),
    # a mask names what it should fit
    (_call(softmax, SCORES, torch.ones(2, 1, dtype=torch.bool)), ValueError,
     f"mask must broadcast to the shape of scores = ({BATCH}, {TQ}, {TK}), got (2, 1)"),
    (_call(attention_weights, query, key, torch.ones(2, 1, dtype=torch.bool)), ValueError,
     f"mask must broadcast to (..., Tq, Tk) = ({TQ}, {TK}), got (2, 1)"),
    # rules about positions
    (_call(causal().dense, -1, 3), ValueError, "query_length must be at least 0, got -1"),
    (_call(causal().dense, 3, -2), ValueError, "key_length must be at least 0, got -2"),
    (_call(padding, [3, 1]), TypeError, "lengths must be an integer tensor, got list"),
    (_call(padding, torch.tensor([3.0])), TypeError,
     "lengths must be an integer tensor, got torch.float32"),
    (_call(padding, torch.tensor([True])), TypeError,
     "lengths must be an integer tensor, got torch.bool"),
    (_call(padding, torch.tensor([3, -4])), ValueError,
     "lengths must be at least 0, got a smallest of -4"),
    (_call(attend, query, key, value, padding(torch.tensor([3, 1]))), ValueError,
     f"mask must broadcast to (..., Tq, Tk) = ({TQ}, {TK}), got (2, {TQ}, {TK})"),
    (_call(attend, query, key, value, Mask(lambda query, key: key - query, "a number")), TypeError,
     "mask must be boolean with True for 'may attend', got torch.int64"),
    # data
    (_call(split, 5, (4, 2), 0), ValueError,
     "sizes must add up to at most count = 5, got (4, 2)"),
    (_call(shrink, torch.ones(3, 28, 28)), ValueError,
     "images must have shape (N, 784), got (3, 28, 28)"),
    (_call(shrink, torch.ones(3, 783)), ValueError,
     "images must have shape (N, 784), got (3, 783)"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), BAD_CALLS)
def test_a_bad_argument_is_named(call, kind, message):
    with pytest.raises(kind, match=re.escape(message) + "$"):
        call()


BAD_MASKS = {
    "one key too many": (torch.ones(TK + 1).bool(), ValueError, f"{SHAPE} ({TK + 1},)"),
    "transposed": (torch.ones(TK, TQ).bool(), ValueError, f"{SHAPE} ({TK}, {TQ})"),
    "would enlarge": (torch.ones(7, 1, 1, 1).bool(), ValueError, f"{SHAPE} (7, 1, 1, 1)"),
    "numbers": (torch.ones(TQ, TK), TypeError, "True for 'may attend', got torch.float32"),
    "array": (np.ones((TQ, TK), dtype=bool), TypeError, "must be a torch.Tensor, got ndarray"),
    "other device": (
        torch.ones(TQ, TK, device="meta").bool(), ValueError,
        "mask must be on the device of the scores (cpu), got meta",
    ),
}  # fmt: skip


@pytest.mark.parametrize("function", MASKED, ids=["softmax", "attention_weights"])
@pytest.mark.parametrize("name", BAD_MASKS)
def test_a_bad_mask_is_named(function, name):
    mask, kind, message = BAD_MASKS[name]
    with pytest.raises(kind, match="^mask .*" + re.escape(message.removeprefix("mask ")) + "$"):
        function(SCORES, mask)


@pytest.mark.parametrize("function", [softmax, lambda s, **t: attention_weights(query, key, **t)])
@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, math.nan, math.inf, -math.inf, 1e-39, 1e39])
def test_temperature_must_be_a_number_above_zero(function, temperature):
    message = "temperature must be a finite number above 0, in the range of float32, got "
    with pytest.raises(ValueError, match=re.escape(f"{message}{temperature}") + "$"):
        function(SCORES, temperature=temperature)


@pytest.mark.parametrize("temperature", [True, "1", None, torch.tensor(1.0)], ids=repr)
def test_temperature_must_be_of_a_number_type(temperature):
    message = f"temperature must be a number, got {type(temperature).__name__}"
    with pytest.raises(TypeError, match=re.escape(message)):
        softmax(SCORES, temperature=temperature)


def test_temperature_is_given_by_name():
    with pytest.raises(TypeError, match="positional argument"):
        softmax(SCORES, None, 2.0)
