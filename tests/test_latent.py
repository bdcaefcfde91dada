"""Latent attention: both forms against a float64 loop and against heads of product weights."""

import math
import re

import pytest
import torch
import twins
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import DTYPES, assert_matches, random
from oracle import softmax as softmax_loop
from torch import Tensor
from torch.func import functional_call
from torch.testing import assert_close

from attention_lib import KVCache, MultiHeadAttention, Rotary, causal, padding, sliding_window
from attention_lib.attention import attend, attend_explicit
from attention_lib.decoding import reorder
from attention_lib.efficient import latent as module_under_test
from attention_lib.efficient.caches import GrowingCache, StaticCache, cache_bytes
from attention_lib.efficient.cost import peak_bytes
from attention_lib.efficient.latent import (
    LatentAttention,
    attend_absorbed,
    attend_expanded,
    latent_bytes,
)
from attention_lib.efficient.paged import PagedCache, PagePool
from attention_lib.efficient.sliding import SlidingCache, window_with_sinks

BATCH, HEADS, HEAD_WIDTH, LATENT, ROTARY, TQ, TK = 2, 3, 5, 7, 4, 6, 11
WIDTH = HEADS * HEAD_WIDTH
FORM = pytest.mark.parametrize("form", [attend_expanded, attend_absorbed])
MASKS = {
    "none": None,
    "causal": causal(),
    "tensor": torch.rand(BATCH, 1, TQ, TK, generator=torch.Generator().manual_seed(2)) < 0.7,
    "nothing": torch.zeros(TQ, TK, dtype=torch.bool),
}


def _numbers(*shape: int, seed: int = 8) -> Tensor:
    return random(torch.Generator().manual_seed(seed), *shape)


def _parts(queries: int = TQ, keys: int = TK, rotary: int = ROTARY) -> list[Tensor]:
    """Queries, memory, and the two matrices of each head."""
    return [
        _numbers(BATCH, HEADS, queries, HEAD_WIDTH + rotary, seed=1),
        _numbers(BATCH, keys, LATENT + rotary, seed=2),
        _numbers(HEADS, HEAD_WIDTH, LATENT, seed=3),
        _numbers(HEADS, HEAD_WIDTH, LATENT, seed=4),
    ]


def _loop(query: Tensor, memory: Tensor, key_up: Tensor, value_up: Tensor, mask: Tensor) -> Tensor:
    """One query, one head, one key at a time, as the formula stands."""
    rows = []
    for b in range(len(query)):
        for h in range(len(key_up)):
            for i in range(query.shape[2]):
                scores, values = [], []
                for row in memory[b]:
                    latent, rotary = row[:LATENT], row[LATENT:]
                    key = torch.cat([(key_up[h] * latent).sum(dim=1), rotary])
                    scores.append((query[b, h, i] * key).sum() / math.sqrt(query.shape[-1]))
                    values.append((value_up[h] * latent).sum(dim=1))
                weights = softmax_loop(torch.stack(scores), mask[b, i])
                rows.append(sum(w * v for w, v in zip(weights, values, strict=True)))
    return torch.stack(rows).view(*query.shape[:-1], HEAD_WIDTH)


def _plain(query: Tensor, memory: Tensor, key_up: Tensor, value_up: Tensor, mask) -> Tensor:
    """The same through the explicit attention of chapter 04, with all keys and values made."""
    latent, rotary = memory[:, None, :, :LATENT], memory[:, None, :, LATENT:]
    key = torch.cat([latent @ key_up.mT, rotary.expand(-1, HEADS, -1, -1)], dim=-1)
    return attend_explicit(query, key, latent @ value_up.mT, mask)


def _module(**named) -> LatentAttention:
    sizes = {"latent": LATENT, "rotary": ROTARY} | named
    return twins.filled(LatentAttention(WIDTH, HEADS, **sizes), torch.Generator().manual_seed(7))


# --- the two forms -------------------------------------------------------------------------------


@FORM
def test_on_paper(form):
    # One head of width 1, latent vectors of width 1, no rotary part: the up-projections are 2 and
    # 3, the keys 2c, so that the scores of query ln(2) / 2 with c = 0 and 1 are 0 and ln 2.
    query = torch.tensor([[[math.log(2) / 2]]])
    memory = torch.tensor([[0.0], [1.0]])
    output = form(query, memory, torch.tensor([[[2.0]]]), torch.tensor([[[3.0]]]))
    assert_close(output, torch.tensor([[[2.0]]]))  # 1/3 of 0 and 2/3 of 3


@FORM
def test_the_rotary_part_adds_its_own_score_on_paper(form):
    # Scores (2 * 0 + ln 2) / sqrt(2) ... scaled by sqrt(2), so that they are ln 2 and ln 3.
    root = math.sqrt(2)
    query = torch.tensor([[[0.0, root]]])
    memory = torch.tensor([[1.0, math.log(2)], [4.0, math.log(3)]])
    output = form(query, memory, torch.tensor([[[2.0]]]), torch.tensor([[[5.0]]]))
    assert_close(output, torch.tensor([[[14.0]]]))  # (2 * 5 + 3 * 20) / 5


@pytest.mark.oracle
@FORM
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_and_gradients_against_the_loop(form, mask, dtype):
    given_mask = MASKS[mask]
    if given_mask is None or isinstance(given_mask, Tensor):
        dense = torch.ones(TQ, TK, dtype=torch.bool) if given_mask is None else given_mask
    else:
        dense = given_mask.dense(TQ, TK)
    dense = dense.expand(BATCH, 1, TQ, TK)[:, 0]
    assert_matches(
        lambda *parts: form(*parts, given_mask),
        lambda *parts: _plain(*parts, given_mask),
        lambda *parts: _loop(*parts, dense),
        [part.to(dtype) for part in _parts()],
    )


@pytest.mark.oracle
@FORM
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", [None, causal()], ids=["open", "causal"])
def test_one_query_against_the_loop(form, dtype, mask):
    assert_matches(
        lambda *parts: form(*parts, mask),
        lambda *parts: _plain(*parts, mask),
        lambda *parts: _loop(*parts, torch.ones(BATCH, 1, TK, dtype=torch.bool)),
        [part.to(dtype) for part in _parts(queries=1)],
    )


@pytest.mark.parametrize("mask", MASKS)
def test_the_forms_are_equal(mask):
    parts = _parts()
    assert_close(attend_absorbed(*parts, MASKS[mask]), attend_expanded(*parts, MASKS[mask]))


@FORM
@pytest.mark.parametrize("queries", [1, 2])
def test_gradcheck(form, queries):
    parts = [part.requires_grad_() for part in _parts(queries=queries, keys=3)]
    assert torch.autograd.gradcheck(lambda *x: form(*x, causal()), parts)


@FORM
def test_one_query_with_a_mask_of_its_own(form):
    parts, allowed = _parts(queries=1), torch.arange(TK) % 3 == 1
    expected = _loop(*parts, allowed.expand(BATCH, 1, TK))
    assert_close(form(*parts, allowed.expand(1, TK)), expected)


@FORM
def test_a_query_that_may_attend_to_nothing(form):
    parts = [part.requires_grad_() for part in _parts()]
    mask = torch.ones(TQ, TK, dtype=torch.bool)
    mask[2] = False
    output = form(*parts, mask)
    assert torch.equal(output[:, :, 2], torch.zeros(BATCH, HEADS, HEAD_WIDTH, dtype=output.dtype))
    output.sum().backward()
    assert all(part.grad.isfinite().all() for part in parts)
    assert torch.equal(parts[0].grad[:, :, 2], torch.zeros_like(parts[0].grad[:, :, 2]))


@FORM
@pytest.mark.hostile
def test_lengths_of_nothing(form):
    assert form(*_parts(queries=0)).shape == (BATCH, HEADS, 0, HEAD_WIDTH)
    empty = form(*_parts(keys=0))
    assert torch.equal(empty, torch.zeros(BATCH, HEADS, TQ, HEAD_WIDTH, dtype=torch.float64))
    assert form(*_parts(queries=0, keys=0), causal()).shape == (BATCH, HEADS, 0, HEAD_WIDTH)


@FORM
def test_no_matrix_of_queries_times_keys_is_stored(form):
    length = 512
    parts = [part.float() for part in _parts(queries=length, keys=length)]
    assert peak_bytes(form, *parts, causal()) < BATCH * HEADS * length * length * 4 // 2


@pytest.mark.parametrize("mask", [None, causal()], ids=["open", "causal"])
def test_the_heads_of_one_query_read_the_memory_together(monkeypatch, mask):
    shapes = []

    def noting(query, key, *rest, **named):
        shapes.append((tuple(query.shape), tuple(key.shape)))
        return attend(query, key, *rest, **named)

    monkeypatch.setattr(module_under_test, "attend", noting)
    parts = _parts(queries=1)
    attend_absorbed(*parts, mask)
    attend_absorbed(parts[0][0], parts[1][0], *parts[2:], mask)
    attend_absorbed(*_parts(queries=2), mask)
    row = LATENT + ROTARY
    assert shapes == [
        ((BATCH, 1, HEADS, row), (BATCH, 1, TK, row)),
        ((1, HEADS, row), (1, TK, row)),
        ((BATCH, HEADS, 2, row), (BATCH, 1, TK, row)),
    ]


@FORM
def test_inputs_stay_as_they_were(form):
    parts = _parts()
    copies = [part.clone() for part in parts]
    form(*parts, causal())
    assert all(torch.equal(x, y) for x, y in zip(parts, copies, strict=True))


@FORM
@pytest.mark.hostile
def test_scores_beyond_float16_are_finite(form):
    parts = [(60 * part).half() for part in _parts(queries=1)[:2]]
    parts += [part.half() for part in _parts()[2:]]
    assert form(*parts).isfinite().all()


@FORM
@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
def test_misfits_are_named(form):
    query, memory, key_up, value_up = _parts()
    for parts, error, message in (
        (
            (query, memory, key_up, value_up[..., :6]),
            ValueError,
            "value_up must have the shape of key_up, (3, 5, 7), got (3, 5, 6)",
        ),
        (
            (query[:, :2], memory, key_up, value_up),
            ValueError,
            "query must have the 3 heads of key_up, got shape (2, 2, 6, 9)",
        ),
        (
            (query[..., :8], memory, key_up, value_up),
            ValueError,
            "query and memory must have widths 5 + Dr and 7 + Dr with the same Dr, "
            "got shapes (2, 3, 6, 8) and (2, 11, 11)",
        ),
        (
            (query[..., :4], memory[..., :6], key_up, value_up),
            ValueError,
            "query and memory must have widths 5 + Dr and 7 + Dr with the same Dr, "
            "got shapes (2, 3, 6, 4) and (2, 11, 6)",
        ),
        ((query[0, 0], memory, key_up, value_up), ValueError, "query must have at least 3 dim"),
        ((query, memory[0, 0], key_up, value_up), ValueError, "memory must have at least 2 dim"),
        ((query, memory, key_up[0], value_up), ValueError, "key_up must have at least 3 dim"),
        ((query, memory, key_up, value_up[0]), ValueError, "value_up must have at least 3 dim"),
        ((query, memory.float(), key_up, value_up), TypeError, "memory must have the dtype of que"),
        ((query, memory, key_up.float(), value_up), TypeError, "key_up must have the dtype of que"),
        ((query, memory, key_up, value_up.long()), TypeError, "value_up must have a floating-poi"),
        ((query, memory.to("meta"), key_up, value_up), ValueError, "memory must be on the device"),
    ):
        with pytest.raises(error, match=f"^{re.escape(message)}"):
            form(*parts)


# --- the module ----------------------------------------------------------------------------------


def _projected(module: LatentAttention, parameters, x: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and memory made from the weights, rotary part turned by hand."""
    per_head = HEAD_WIDTH + module.rotary
    query = (x @ parameters["query_proj.weight"].T).unflatten(-1, (HEADS, per_head))
    query = query.transpose(-2, -3)
    memory = x @ parameters["memory_proj.weight"].T
    if not module.rotary:
        return query, memory

    def turn(part: Tensor) -> Tensor:
        half = module.rotary // 2
        rate = 10000.0 ** (-torch.arange(half, dtype=part.dtype) / half)
        angle = torch.arange(x.shape[-2], dtype=part.dtype)[:, None] * rate
        first, second = part[..., :half], part[..., half:]
        cosine, sine = angle.cos(), angle.sin()
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)

    query = torch.cat([query[..., :HEAD_WIDTH], turn(query[..., HEAD_WIDTH:])], dim=-1)
    return query, torch.cat([memory[..., :LATENT], turn(memory[..., LATENT:])], dim=-1)


@pytest.mark.oracle
@pytest.mark.parametrize("rotary", [0, 2, ROTARY])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_module_against_the_loop_with_every_gradient(rotary, dtype):
    module = LatentAttention(WIDTH, HEADS, latent=LATENT, rotary=rotary)
    generator = torch.Generator().manual_seed(7)
    parameters = twins.parameters_of(module, generator, dtype)
    assert {name: tuple(x.shape) for name, x in parameters.items()} == {
        "query_proj.weight": (HEADS * (HEAD_WIDTH + rotary), WIDTH),
        "memory_proj.weight": (LATENT + rotary, WIDTH),
        "key_up.weight": (WIDTH, LATENT),
        "value_up.weight": (WIDTH, LATENT),
        "output_proj.weight": (WIDTH, WIDTH),
    }
    names, mask = list(parameters), causal().dense(TQ, TQ)

    def with_attention(attention):
        def run(x, *values):
            named = dict(zip(names, values, strict=True))
            query, memory = _projected(module, named, x)
            sizes = (HEADS, HEAD_WIDTH, LATENT)
            up = named["key_up.weight"].view(sizes), named["value_up.weight"].view(sizes)
            output = attention(query, memory, *up)
            return output.transpose(1, 2).flatten(-2) @ named["output_proj.weight"].T

        return run

    assert_matches(
        lambda x, *values: functional_call(
            module, dict(zip(names, values, strict=True)), (x,), {"mask": causal()}
        ),
        with_attention(lambda *parts: _plain(*parts, causal())),
        with_attention(lambda *parts: _loop(*parts, mask.expand(BATCH, TQ, TQ))),
        [_numbers(BATCH, TQ, WIDTH).to(dtype), *parameters.values()],
        one_floor=True,
    )


@pytest.mark.oracle
@pytest.mark.parametrize("mask", [None, causal()], ids=["open", "causal"])
def test_without_a_rotary_part_it_is_multi_head_attention_with_the_product_weights(mask):
    ours, heads = _module(rotary=0), MultiHeadAttention(WIDTH, HEADS, bias=False).double()
    down = ours.memory_proj.weight  # (r, D)
    x = _numbers(BATCH, TQ, WIDTH)
    products = {
        "query_proj.weight": ours.query_proj.weight,
        "key_proj.weight": ours.key_up.weight @ down,
        "value_proj.weight": ours.value_up.weight @ down,
        "output_proj.weight": ours.output_proj.weight,
    }
    expected = functional_call(heads, products, (x,), {"mask": mask})
    found = ours(x, mask=mask)
    assert_close(found, expected)
    weights = list(ours.parameters())
    assert_close(
        torch.autograd.grad(found.square().sum(), weights),
        torch.autograd.grad(expected.square().sum(), weights),
    )
    assert torch.linalg.matrix_rank(products["key_proj.weight"]) == LATENT < WIDTH


CACHES = {
    "concatenating": KVCache,
    "static": lambda: StaticCache(TK),
    "growing": lambda: GrowingCache(1),
    "paged": lambda: PagedCache(PagePool(30, 3)),
    "sliding": lambda: SlidingCache(TK),
}
CACHE = pytest.mark.parametrize("kind", CACHES)


@CACHE
@pytest.mark.parametrize("rotary", [0, ROTARY])
@given(cuts=st.lists(st.integers(0, TK), max_size=5))
@settings(max_examples=8)
def test_chunks_equal_the_whole_sequence(rotary, kind, cuts):
    module, x = _module(rotary=rotary).requires_grad_(False), _numbers(BATCH, TK, WIDTH)
    cache = CACHES[kind]()
    outputs = [module(x[:, :0], mask=causal(), cache=cache)]
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), TK], strict=True):
        outputs.append(module(x[:, start:end], mask=causal(), cache=cache))
    assert len(cache) == TK
    assert_close(torch.cat(outputs, dim=1), module(x, mask=causal()))


@CACHE
def test_one_token_at_a_time_equals_the_whole_sequence(kind):
    module, x = _module().requires_grad_(False), _numbers(BATCH, TK, WIDTH)
    cache = CACHES[kind]()
    outputs = [module(token, mask=causal(), cache=cache) for token in x.split(1, dim=1)]
    assert_close(torch.cat(outputs, dim=1), module(x, mask=causal()))


@given(cuts=st.lists(st.integers(0, TK), max_size=5))
@settings(max_examples=15)
def test_a_sliding_cache_equals_its_mask(cuts):
    module, x = _module().requires_grad_(False), _numbers(BATCH, TK, WIDTH)
    cache, outputs = SlidingCache(3, 1), []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), TK], strict=True):
        outputs.append(module(x[:, start:end], mask=causal(), cache=cache))
    expected = module(x, mask=causal() & window_with_sinks(3, 1))
    assert_close(torch.cat(outputs, dim=1), expected)


def test_gradients_flow_through_the_cache():
    module, x = _module(), _numbers(BATCH, TQ, WIDTH).requires_grad_()
    cache = KVCache()
    outputs = [module(chunk, mask=causal(), cache=cache) for chunk in x.split(4, dim=1)]
    leaves = [x, *module.parameters()]
    found = torch.autograd.grad(torch.cat(outputs, dim=1).square().sum(), leaves)
    assert_close(found, torch.autograd.grad(module(x, mask=causal()).square().sum(), leaves))


def test_the_cache_holds_latent_vectors_and_turned_rotary_keys_and_nothing_else():
    module, x, cache = _module(), _numbers(BATCH, TQ, WIDTH), KVCache()
    with torch.no_grad():
        for token in x.split(1, dim=1):
            module(token, mask=causal(), cache=cache)
        _, memory = _projected(module, dict(module.named_parameters()), x)
    assert_close(cache.key, memory)
    assert cache.value.shape == (BATCH, TQ, 0)


@pytest.mark.parametrize("masked", ["batch", "tensor", "heads", "matrix"])
def test_masks_are_one_for_each_sequence_or_one_for_each_head(masked):
    batch = HEADS  # where they are equal, a mask of sequences could be taken for one of heads
    module, x = _module(), _numbers(batch, TQ, WIDTH)
    lengths = torch.tensor([2, 6, 4])
    generator = torch.Generator().manual_seed(4)
    heads = torch.rand(batch, HEADS, TQ, TQ, generator=generator) < 0.6
    mask, dense = {
        "batch": (padding(lengths), padding(lengths).dense(TQ, TQ)[:, None]),
        "tensor": (padding(lengths).dense(TQ, TQ), padding(lengths).dense(TQ, TQ)[:, None]),
        "heads": (heads, heads),
        "matrix": (heads[0, 0], heads[0, 0]),
    }[masked]
    query, memory = _projected(module, dict(module.named_parameters()), x)
    output = _plain(query, memory, *module.up(), dense).transpose(1, 2).flatten(-2)
    assert_close(module(x, mask=mask), module.output_proj(output))


def test_without_a_batch():
    module, x = _module(), _numbers(BATCH, TQ, WIDTH)
    wide = x.unflatten(0, (1, BATCH))
    for mask in (causal(), sliding_window(2)):
        assert_close(module(wide, mask=mask)[0], module(x, mask=mask))
        assert_close(module(x[1], mask=mask), module(x, mask=mask)[1])


@pytest.mark.hostile
@pytest.mark.parametrize(
    "mask", [None, causal(), sliding_window(2)], ids=["none", "causal", "window"]
)
def test_everything_stays_on_the_device_of_the_input(mask):
    module, cache = _module().to("meta"), KVCache()
    for length in (4, 1):
        x = torch.ones(BATCH, length, WIDTH, dtype=torch.float64, device="meta")
        assert module(x, mask=mask, cache=cache).device.type == "meta"


@pytest.mark.parametrize("offset", [None, 0])
def test_positions_of_a_projection_start_at_zero(offset):
    module, x = _module(), _numbers(BATCH, TQ, WIDTH)
    found = module.project(x) if offset is None else module.project(x, offset)
    assert_close(found, _projected(module, dict(module.named_parameters()), x))
    query, memory = module.project(x[:, 2:], 2)
    assert_close((query, memory), (found[0][:, :, 2:], found[1][:, 2:]))


def test_decoding_with_rows_that_are_reordered():
    module, x = _module().requires_grad_(False), _numbers(BATCH, 5, WIDTH)
    cache = KVCache()
    module(x[:, :4], mask=causal(), cache=cache)
    [chosen] = reorder([cache], torch.tensor([1, 0, 1]), size=BATCH)
    found = module(x[[1, 0, 1], 4:], mask=causal(), cache=chosen)
    assert_close(found, module(x, mask=causal())[[1, 0, 1], 4:])


@pytest.mark.parametrize(
    ("latent", "queries", "keys", "expected"),
    [
        # Expanding: Tk * r * Dh. Absorbing: Tq * (r * Dh + Tk * (r - Dh)). Dh = 5.
        (7, 1, 11, "absorbed"),  # 385 against 35 + 22
        (7, 6, 11, "absorbed"),  # 385 against 6 * 57 = 342
        (7, 7, 11, "expanded"),  # 385 against 399
        (7, 11, 11, "expanded"),
        (5, 4, 4, "expanded"),  # equal: 100 against 100
        (5, 3, 4, "absorbed"),
        (3, 4, 4, "absorbed"),  # latent vectors narrower than a head
    ],
)
def test_the_form_with_fewer_multiplications_is_taken(monkeypatch, latent, queries, keys, expected):
    calls = []
    for name in ("expanded", "absorbed"):
        real = getattr(module_under_test, f"attend_{name}")

        def noting(*parts, name=name, real=real):
            calls.append(name)
            return real(*parts)

        monkeypatch.setattr(module_under_test, f"attend_{name}", noting)
    module, cache = _module(latent=latent).requires_grad_(False), KVCache()
    old = _numbers(1, keys - queries, latent + ROTARY)
    cache.append(old, old[..., :0])
    module(_numbers(1, queries, WIDTH), mask=causal(), cache=cache)
    assert calls == [expected]


def test_the_base_of_the_frequencies_is_passed_on():
    assert _module().position.base == 10000.0
    assert _module(base=77.0).position.base == 77.0
    assert isinstance(_module().position, Rotary)
    assert list(_module(rotary=0).position.parameters()) == []


def test_it_is_deterministic_in_its_sizes():
    module = LatentAttention(WIDTH, HEADS, latent=LATENT, rotary=ROTARY)
    assert (module.width, module.heads, module.head_width) == (WIDTH, HEADS, HEAD_WIDTH)
    assert (module.latent, module.rotary) == (LATENT, ROTARY)
    assert all(not name.endswith("bias") for name, _ in module.named_parameters())


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
def test_bad_sizes_are_named():
    for named, error, message in (
        ({"width": 0}, ValueError, "width must be at least 1, got 0"),
        ({"heads": 4}, ValueError, "heads must divide width = 15, got 4"),
        ({"heads": 0}, ValueError, "heads must be at least 1, got 0"),
        ({"latent": 0}, ValueError, "latent must be at least 1, got 0"),
        ({"rotary": -2}, ValueError, "rotary must be at least 0, got -2"),
        ({"rotary": 3}, ValueError, "head_width must be even, got 3"),
        ({"width": 15.0}, TypeError, "width must be an integer, got float"),
        ({"latent": 2.0}, TypeError, "latent must be an integer, got float"),
        ({"rotary": 2.0}, TypeError, "rotary must be an integer, got float"),
    ):
        sizes = {"width": WIDTH, "heads": HEADS, "latent": 1, "rotary": 2} | named
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            LatentAttention(**sizes)
    module = _module()
    with pytest.raises(ValueError, match=r"^x must have width 15, got shape \(2, 14\)$"):
        module(torch.ones(2, 14).double())
    with pytest.raises(ValueError, match=r"^x must have at least 2 dimensions, got shape \(15,\)$"):
        module(torch.ones(15).double())


# --- bytes ---------------------------------------------------------------------------------------


def test_the_formula_on_paper_and_against_real_bytes():
    # 3 layers * (7 + 4) * 13 positions * 5 sequences * 4 bytes
    assert latent_bytes(3, 7, 4, 13, batch=5) == 8580
    assert latent_bytes(3, 7, 4, 13) == 1716
    assert latent_bytes(3, 7, 4, 13, dtype=torch.float16) == 858
    assert latent_bytes(1, 7, 0, 1) == 28
    assert isinstance(latent_bytes(1, 7, 0, 1), int)
    for dtype in DTYPES:
        module, cache = _module().to(dtype).requires_grad_(False), KVCache()
        module(_numbers(BATCH, TQ, WIDTH).to(dtype), mask=causal(), cache=cache)
        assert cache.nbytes == latent_bytes(1, LATENT, ROTARY, TQ, batch=BATCH, dtype=dtype)


def test_the_paper_compares_it_to_grouped_heads():
    # DeepSeek-V2: r = 4 Dh, Dr = Dh / 2; as much as 2.25 key and value heads.
    ours = latent_bytes(60, 512, 64, 1000)
    assert 4 * ours == 9 * cache_bytes(60, 1, 128, 1000)


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
def test_bad_numbers_of_bytes_are_named():
    names = ["layers", "latent", "rotary", "length"]
    for place, name in enumerate(names):
        sizes = [2, 3, 5, 7]
        sizes[place] = -1
        with pytest.raises(ValueError, match=f"^{name} must be at least 0, got -1$"):
            latent_bytes(*sizes)
        sizes[place] = 2.0
        with pytest.raises(TypeError, match=f"^{name} must be an integer, got float$"):
            latent_bytes(*sizes)
    with pytest.raises(ValueError, match=r"^batch must be at least 0, got -1$"):
        latent_bytes(1, 1, 1, 1, batch=-1)


def test_decoding_makes_no_keys_of_heads_and_copies_no_weights():
    heads, width, latent, rotary, length = 16, 512, 128, 16, 1024
    module = LatentAttention(width, heads, latent=latent, rotary=rotary).requires_grad_(False)
    cache = StaticCache(length)
    module(torch.randn(2, length - 2, width), mask=causal(), cache=cache)
    token = torch.randn(2, 1, width)
    module(token, mask=causal(), cache=cache)
    cache.truncate(length - 2)
    needed = peak_bytes(module, token, mask=causal(), cache=cache)
    memory, weights = 2 * length * (latent + rotary) * 4, width * latent * 4
    assert needed < weights // 2
    assert needed < memory // 8
    query, _ = module.project(token, length - 1)
    expanded = peak_bytes(attend_expanded, query, cache.key, *module.up())
    assert expanded > 2 * 2 * length * width * 4  # keys and values of all heads
