"""Attention kernels for GPUs in Triton: tiles, online softmax, backward pass. Chapter 16.

A kernel is a program that runs many times side by side. Each run owns one tile: BLOCK_Q queries or
BLOCK_K keys of one sequence (here a sequence is one head of one example). It brings tiles of the
other side from the GPU's large slow memory into its small fast one, and never writes a score back.
What it reads and writes is query, key, value, output, and one number a row: the logarithm of the
sum of exponentials (lse), from which the backward pass makes every weight again.

Positions are those of the whole book: keys stand at 0 .. keys - 1 and queries at the last of these
positions, so row r of the queries stands at r + keys - queries. Tensors are contiguous, (N, T, D)
with N the number of sequences, or (N, T); D is a power of two, as the tiles' sides are.

This module needs Triton; ``attention_lib.efficient.triton_attention`` imports it when called.

Source: Dao (2023), algorithms 1 and 2, for the loops; Tillet, Kung and Cox (2019) for Triton.
"""

# ruff: noqa: N803 - in capitals: what is known when a kernel is compiled
# A kernel's arguments have types only when it is compiled.
# mypy: ignore-errors

import triton
import triton.language as tl

# GPUs have an instruction for powers of 2, and exp(x) is 2 to the power x * log2(e).
LOG2_E = tl.constexpr(1.4426950408889634)

# Compiled once for all lengths; otherwise there would be other versions for 1 and multiples of 16.
LENGTHS = ("queries", "keys")


# --- what the kernels share ----------------------------------------------------------------------


@triton.jit
def _load_rows(pointer, first, length, ROWS: tl.constexpr, D: tl.constexpr):
    """A tile of ROWS rows from row ``first`` on, (ROWS, D); rows beyond the end are 0."""
    rows = first + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, D)[None, :]
    return tl.load(pointer + rows * D + columns, mask=rows < length, other=0.0)


@triton.jit
def _store_rows(pointer, tile, first, length, ROWS: tl.constexpr, D: tl.constexpr):
    """Write a tile back, in the dtype of the tensor; rows beyond the end are left out."""
    rows = first + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, D)[None, :]
    tile = tile.to(pointer.dtype.element_ty)
    tl.store(pointer + rows * D + columns, tile, mask=rows < length)


@triton.jit
def _may_attend(rows, columns, offset, keys, CAUSAL: tl.constexpr):
    """True where a key exists and, if CAUSAL, does not stand after the query."""
    allowed = columns < keys
    if CAUSAL:
        allowed = allowed & (columns <= rows + offset)
    return allowed


@triton.jit
def _key_range(
    first_row, queries, keys,
    CAUSAL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Up to which key does a tile of queries need no mask, and up to which any key at all?

    Tiles of keys before ``free`` are allowed in full; those from ``free`` to ``end`` need the mask;
    those from ``end`` on are empty and are skipped, which halves the work of a causal mask.
    """
    free = keys  # without a mask only the ragged last tile needs one, because of keys beyond it
    end = keys
    if CAUSAL:
        position = first_row + keys - queries  # of the first query
        free = tl.maximum(0, tl.minimum(keys, position + 1))  # the keys that all its rows may see
        end = tl.maximum(0, tl.minimum(keys, position + BLOCK_Q))  # and those that any may see
    return free // BLOCK_K * BLOCK_K, end


# --- forward -------------------------------------------------------------------------------------


@triton.jit
def _forward_step(
    q, top, total, acc, key, value, start, rows, offset, keys, factor,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
    D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Let a tile of queries meet one tile of keys: the online softmax of chapter 16."""
    k = _load_rows(key, start, keys, BLOCK_K, D)  # (BLOCK_K, D)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * factor  # (BLOCK_Q, BLOCK_K)
    if MASKED:
        columns = start + tl.arange(0, BLOCK_K)[None, :]
        allowed = _may_attend(rows[:, None], columns, offset, keys, CAUSAL)
        scores = tl.where(allowed, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, axis=1))  # the largest score of each row so far
    shift = new_top
    if MASKED:  # a row that has seen nothing yet is shifted by 0: -inf minus -inf is not a number
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
    shrink = tl.exp2(top - shift)  # what was summed under the old maximum counts so much less
    p = tl.exp2(scores - shift[:, None])
    total = total * shrink + tl.sum(p, axis=1)
    v = _load_rows(value, start, keys, BLOCK_K, D)
    acc = acc * shrink[:, None]
    acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)  # acc + p @ v
    return new_top, total, acc


@triton.jit(do_not_specialize=LENGTHS)
def _forward_kernel(
    query, key, value, output, lse, scale, queries, keys,
    CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of one tile of queries."""
    # Which tile of which sequence is mine? Neighbours share a sequence, and so its keys in cache.
    tiles = tl.cdiv(queries, BLOCK_Q)
    first_row = (tl.program_id(0) % tiles) * BLOCK_Q
    sequence = (tl.program_id(0) // tiles).to(tl.int64)  # 64 bits: N * T * D may exceed 32
    query += sequence * queries * D
    output += sequence * queries * D
    lse += sequence * queries
    key += sequence * keys * D
    value += sequence * keys * D

    rows = first_row + tl.arange(0, BLOCK_Q)
    offset = keys - queries
    q = _load_rows(query, first_row, queries, BLOCK_Q, D)  # stays in fast memory to the end
    top = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, D], tl.float32)  # float32, whatever the inputs are
    factor = scale * LOG2_E

    free, end = _key_range(first_row, queries, keys, CAUSAL, BLOCK_Q, BLOCK_K)
    for start in range(0, free, BLOCK_K):
        top, total, acc = _forward_step(
            q, top, total, acc, key, value, start, rows, offset, keys, factor,
            CAUSAL, False, PRECISION, D, BLOCK_K,
        )  # fmt: skip
    for start in range(free, end, BLOCK_K):
        top, total, acc = _forward_step(
            q, top, total, acc, key, value, start, rows, offset, keys, factor,
            CAUSAL, True, PRECISION, D, BLOCK_K,
        )  # fmt: skip

    # A row that may attend to nothing gets output 0. Its lse is plus infinity, so that every weight
    # that the backward pass makes of it, exp(score - lse), is 0 and so are its gradients.
    nothing = total == 0
    total = tl.where(nothing, 1.0, total)
    _store_rows(output, acc / total[:, None], first_row, queries, BLOCK_Q, D)
    row_lse = tl.where(nothing, float("inf"), (top + tl.log2(total)) / LOG2_E)
    tl.store(lse + rows, row_lse, mask=rows < queries)


# --- backward ------------------------------------------------------------------------------------
#
# With P the weights, dO the gradient of the output and o the elementwise product:
#   dV = P^T dO,  dP = dO V^T,  dS = P o (dP - delta),  dQ = scale dS K,  dK = scale dS^T Q,
# where delta, one number a row, is the row sum of P o dP. It equals the row sum of dO o O, so that
# it is known before any tile of P is.


@triton.jit(do_not_specialize=("queries",))
def _delta_kernel(output, upstream, delta, queries, D: tl.constexpr, BLOCK_Q: tl.constexpr):
    """The row sums of dO o O, for one tile of queries."""
    tiles = tl.cdiv(queries, BLOCK_Q)
    first_row = (tl.program_id(0) % tiles) * BLOCK_Q
    sequence = (tl.program_id(0) // tiles).to(tl.int64)
    o = _load_rows(output + sequence * queries * D, first_row, queries, BLOCK_Q, D)
    do = _load_rows(upstream + sequence * queries * D, first_row, queries, BLOCK_Q, D)
    rows = first_row + tl.arange(0, BLOCK_Q)
    sums = tl.sum(o.to(tl.float32) * do.to(tl.float32), axis=1)
    tl.store(delta + sequence * queries + rows, sums, mask=rows < queries)


@triton.jit
def _key_step(
    k, v, dk, dv, query, upstream, lse, delta, start, columns, offset, queries, keys, factor,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
    D: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """What one tile of queries adds to the gradients of a tile of keys and values."""
    q = _load_rows(query, start, queries, BLOCK_Q, D)
    do = _load_rows(upstream, start, queries, BLOCK_Q, D)
    rows = start + tl.arange(0, BLOCK_Q)
    # Rows beyond the end have dO = 0 and delta = 0, so they add nothing.
    row_lse = tl.load(lse + rows, mask=rows < queries, other=0.0)
    row_delta = tl.load(delta + rows, mask=rows < queries, other=0.0)
    # Scores and weights lie on their side here, (BLOCK_K, BLOCK_Q), as P^T and dS^T are needed.
    scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * factor
    p = tl.exp2(scores - row_lse[None, :] * LOG2_E)
    if MASKED:
        p = tl.where(_may_attend(rows[None, :], columns[:, None], offset, keys, CAUSAL), p, 0.0)
    dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
    dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
    ds = p * (dp - row_delta[None, :])
    dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit(do_not_specialize=LENGTHS)
def _key_kernel(
    query, key, value, upstream, lse, delta, grad_key, grad_value, scale, queries, keys,
    CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of keys and values, summed over the queries that see them."""
    tiles = tl.cdiv(keys, BLOCK_K)
    first_key = (tl.program_id(0) % tiles) * BLOCK_K
    sequence = (tl.program_id(0) // tiles).to(tl.int64)
    query += sequence * queries * D
    upstream += sequence * queries * D
    lse += sequence * queries
    delta += sequence * queries

    k = _load_rows(key + sequence * keys * D, first_key, keys, BLOCK_K, D)
    v = _load_rows(value + sequence * keys * D, first_key, keys, BLOCK_K, D)
    columns = first_key + tl.arange(0, BLOCK_K)
    offset = keys - queries
    dk = tl.zeros([BLOCK_K, D], tl.float32)
    dv = tl.zeros([BLOCK_K, D], tl.float32)
    factor = scale * LOG2_E

    # With a causal mask the rows before ``begin`` see none of my keys, those from ``free`` on all.
    # Keys beyond the end need no mask: what they get is never stored.
    begin = 0
    free = 0
    if CAUSAL:
        begin = tl.maximum(0, first_key - offset) // BLOCK_Q * BLOCK_Q
        free = tl.maximum(0, first_key + BLOCK_K - 1 - offset)
        free = tl.minimum(queries, tl.cdiv(free, BLOCK_Q) * BLOCK_Q)
    for start in range(begin, free, BLOCK_Q):
        dk, dv = _key_step(
            k, v, dk, dv, query, upstream, lse, delta, start, columns, offset, queries, keys,
            factor, CAUSAL, True, PRECISION, D, BLOCK_Q,
        )  # fmt: skip
    for start in range(free, queries, BLOCK_Q):
        dk, dv = _key_step(
            k, v, dk, dv, query, upstream, lse, delta, start, columns, offset, queries, keys,
            factor, CAUSAL, False, PRECISION, D, BLOCK_Q,
        )  # fmt: skip
    _store_rows(grad_key + sequence * keys * D, dk * scale, first_key, keys, BLOCK_K, D)
    _store_rows(grad_value + sequence * keys * D, dv, first_key, keys, BLOCK_K, D)


@triton.jit
def _query_step(
    q, do, row_lse, row_delta, dq, key, value, start, rows, offset, keys, factor,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
    D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """What one tile of keys adds to the gradient of a tile of queries."""
    k = _load_rows(key, start, keys, BLOCK_K, D)
    v = _load_rows(value, start, keys, BLOCK_K, D)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * factor
    p = tl.exp2(scores - row_lse[:, None] * LOG2_E)  # (BLOCK_Q, BLOCK_K)
    if MASKED:
        columns = start + tl.arange(0, BLOCK_K)[None, :]
        p = tl.where(_may_attend(rows[:, None], columns, offset, keys, CAUSAL), p, 0.0)
    dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
    ds = p * (dp - row_delta[:, None])
    return tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.jit(do_not_specialize=LENGTHS)
def _query_kernel(
    query, key, value, upstream, lse, delta, grad_query, scale, queries, keys,
    CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gradient of one tile of queries, summed over the keys that it sees."""
    tiles = tl.cdiv(queries, BLOCK_Q)
    first_row = (tl.program_id(0) % tiles) * BLOCK_Q
    sequence = (tl.program_id(0) // tiles).to(tl.int64)
    key += sequence * keys * D
    value += sequence * keys * D

    q = _load_rows(query + sequence * queries * D, first_row, queries, BLOCK_Q, D)
    do = _load_rows(upstream + sequence * queries * D, first_row, queries, BLOCK_Q, D)
    rows = first_row + tl.arange(0, BLOCK_Q)
    exists = rows < queries
    row_lse = tl.load(lse + sequence * queries + rows, mask=exists, other=0.0)
    row_delta = tl.load(delta + sequence * queries + rows, mask=exists, other=0.0)
    offset = keys - queries
    dq = tl.zeros([BLOCK_Q, D], tl.float32)
    factor = scale * LOG2_E

    free, end = _key_range(first_row, queries, keys, CAUSAL, BLOCK_Q, BLOCK_K)
    for start in range(0, free, BLOCK_K):
        dq = _query_step(
            q, do, row_lse, row_delta, dq, key, value, start, rows, offset, keys, factor,
            CAUSAL, False, PRECISION, D, BLOCK_K,
        )  # fmt: skip
    for start in range(free, end, BLOCK_K):
        dq = _query_step(
            q, do, row_lse, row_delta, dq, key, value, start, rows, offset, keys, factor,
            CAUSAL, True, PRECISION, D, BLOCK_K,
        )  # fmt: skip
    _store_rows(grad_query + sequence * queries * D, dq * scale, first_row, queries, BLOCK_Q, D)


# With TRITON_INTERPRET=1 in the environment, kernels run as slow Python on the CPU, for tests.
INTERPRETED = not isinstance(_forward_kernel, triton.JITFunction)
