"""What all caches share: any kind, in chunks of any size, gives what the whole sequence gives."""

import re
from copy import deepcopy
from functools import cache as remember
from itertools import pairwise

import pytest
import torch
import twins
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_within_budget, random
from torch.testing import assert_close

from attention_lib import Alibi, KVCache, MultiHeadAttention, RelativeBias, Rotary, causal, padding
from attention_lib.decoding import beam, greedy, reorder
from attention_lib.efficient.caches import (
    GrowingCache,
    StaticCache,
    cache_bytes,
    prefill,
)
from attention_lib.efficient.cost import peak_bytes
from attention_lib.efficient.paged import PagedCache, PagePool
from attention_lib.efficient.sliding import SlidingCache
from attention_lib.models.gpt import GPTConfig, gpt2, llama

BATCH, HEADS, HEAD_WIDTH, LENGTH = 2, 3, 4, 11
WIDTH = HEADS * HEAD_WIDTH
POSITIONS = {
    "none": None,
    "rotary": Rotary(HEAD_WIDTH),
    "alibi": Alibi(HEADS),
    "relative": RelativeBias(HEADS, 2),
}
MASKS = {"causal": causal(), "padding": causal() & padding(torch.tensor([5, 11]))}
KINDS = {
    "concatenating": KVCache,
    "static": lambda: StaticCache(LENGTH),
    "spacious": lambda: StaticCache(LENGTH + 2),
    "growing": lambda: GrowingCache(2),
    "paged": lambda: PagedCache(PagePool(40, 3)),
    "sliding": lambda: SlidingCache(LENGTH, 1),  # long enough to keep all
}
KIND = pytest.mark.parametrize("kind", KINDS)
IN_PLACE = pytest.mark.parametrize("kind", ["static", "growing", "paged"])


def _attention(position="none", **named) -> MultiHeadAttention:
    module = MultiHeadAttention(WIDTH, HEADS, position=deepcopy(POSITIONS[position]), **named)
    return twins.filled(module, torch.Generator().manual_seed(7)).requires_grad_(False)


def _numbers(*shape: int, seed: int = 8) -> torch.Tensor:
    return random(torch.Generator().manual_seed(seed), *shape)


def _pair(length: int, batch: int = BATCH, seed: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of different widths; shorter ones are the beginning of longer ones."""
    both = _many(seed)[:batch, :, :length].clone()
    return both[..., :5], both[..., 5:]


@remember
def _many(seed: int) -> torch.Tensor:
    return _numbers(5, HEADS, 512, 5 + 7, seed=seed)


def _filled(kind: str, length: int) -> KVCache:
    cache = KINDS[kind]()
    for part in zip(*(x.split(2, dim=-2) for x in _pair(length)), strict=True):
        cache.append(*part)
    return cache


def _held(cache: KVCache) -> tuple[torch.Tensor, torch.Tensor]:
    """What the cache holds, read through its interface."""
    key, value = _pair(0)
    return cache.extended(key, value)


@st.composite
def chunks(draw) -> list[int]:
    """Sizes that add up to LENGTH, some of them perhaps 0."""
    cuts = draw(st.lists(st.integers(0, LENGTH), max_size=6))
    edges = [0, *sorted(cuts), LENGTH]
    return [end - start for start, end in pairwise(edges)]


# --- in attention --------------------------------------------------------------------------------


@KIND
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("mask", MASKS)
@given(sizes=chunks())
@settings(max_examples=6)
def test_chunks_equal_the_whole_sequence(mask, position, kind, sizes):
    module, x, cache = _attention(position), _numbers(BATCH, LENGTH, WIDTH), KINDS[kind]()
    outputs = []
    for chunk in x.split(sizes, dim=1):
        before = len(cache)
        weights = module.attention_weights(chunk, mask=MASKS[mask], cache=cache)
        assert weights.shape[-1] == before + chunk.shape[1]
        assert len(cache) == before
        outputs.append(module(chunk, mask=MASKS[mask], cache=cache))
    assert len(cache) == LENGTH
    assert_close(torch.cat(outputs, dim=1), module(x, mask=MASKS[mask]))


@KIND
def test_one_token_at_a_time_with_shared_heads(kind):
    module, x = _attention("rotary", kv_heads=1), _numbers(BATCH, LENGTH, WIDTH)
    cache = KINDS[kind]()
    outputs = [module(token, mask=causal(), cache=cache) for token in x.split(1, dim=1)]
    assert_close(torch.cat(outputs, dim=1), module(x, mask=causal()))


@KIND
def test_a_model_writes_the_same_with_any_cache(kind):
    torch.manual_seed(5)
    model = llama(GPTConfig(tokens=13, length=32, width=12, layers=2, heads=3, hidden=7)).double()
    model.requires_grad_(False)
    start = torch.tensor([3, 7])
    expected = greedy(model.step, model.empty_caches(), start, 0, 9)
    caches = [KINDS[kind]() for _ in model.blocks]
    assert torch.equal(greedy(model.step, caches, start, 0, 9), expected)
    best, score = beam(model.step, model.empty_caches(), start, 0, 7, width=3)
    caches = [KINDS[kind]() for _ in model.blocks]
    found, total = beam(model.step, caches, start, 0, 7, width=3)
    assert torch.equal(found, best)
    assert_close(total, score)


# --- the interface -------------------------------------------------------------------------------


@KIND
@pytest.mark.parametrize("length", [1, 2, 3, 6, 7])
def test_a_cache_holds_what_was_appended(kind, length):
    cache = _filled(kind, length)
    assert len(cache) == length
    for found, expected in zip(_held(cache), _pair(length), strict=True):
        assert torch.equal(found, expected)


@KIND
def test_append_returns_old_and_new_and_extended_stores_nothing(kind):
    cache, whole = _filled(kind, 4), _pair(7)
    new = [x[..., 4:, :] for x in whole]
    longer = cache.extended(*new)
    assert len(cache) == 4
    appended = cache.append(*new)
    assert len(cache) == 7
    for found, returned, expected in zip(longer, appended, whole, strict=True):
        assert torch.equal(found, expected)
        assert torch.equal(returned, expected)


@KIND
def test_the_first_append_and_extended_of_an_empty_cache_return_the_new(kind):
    cache = KINDS[kind]()
    assert len(cache) == 0
    assert cache.nbytes == cache.copied == 0
    for method in (cache.extended, cache.append):
        for found, expected in zip(method(*_pair(3)), _pair(3), strict=True):
            assert torch.equal(found, expected)
    assert len(cache) == 3


@KIND
def test_what_was_read_stays_when_more_is_appended(kind):
    cache = KINDS[kind]()
    before = cache.append(*_pair(3))
    copies = [x.clone() for x in before]
    cache.append(*_pair(5, seed=1))
    assert all(torch.equal(x, y) for x, y in zip(before, copies, strict=True))


@IN_PLACE
def test_a_cache_does_not_feel_changes_to_what_was_appended(kind):
    cache, (key, value) = KINDS[kind](), _pair(3)
    cache.append(key, value)
    key.zero_()
    value.zero_()
    assert torch.equal(_held(cache)[0], _pair(3)[0])


@KIND
@pytest.mark.parametrize("rows", [[1], [1, 0], [1, 1, 0, 1]])
def test_select_takes_rows_in_order_and_both_go_on_alone(kind, rows):
    cache = _filled(kind, 4)
    chosen = cache.select(torch.tensor(rows))
    assert type(chosen) is type(cache)
    assert len(chosen) == 4
    more = _pair(2, batch=len(rows), seed=3)
    chosen.append(*more)
    cache.append(*_pair(1, seed=4))
    for found, old, new in zip(_held_rows(chosen, len(rows)), _pair(4), more, strict=True):
        assert torch.equal(found, torch.cat([old[rows], new], dim=-2))
    for found, old, new in zip(_held(cache), _pair(4), _pair(1, seed=4), strict=True):
        assert torch.equal(found, torch.cat([old, new], dim=-2))


def _held_rows(cache: KVCache, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    return cache.extended(*_pair(0, batch=batch))


@KIND
def test_select_of_an_empty_cache_is_an_empty_cache(kind):
    cache = KINDS[kind]()
    chosen = cache.select(torch.tensor([0, 1, 1]))
    assert chosen is not cache
    assert len(chosen) == 0
    chosen.append(*_pair(2, batch=3))
    assert len(chosen) == 2
    assert len(cache) == 0


@KIND
def test_reorder_takes_caches_in_a_list(kind):
    cache = _filled(kind, 3)
    [chosen] = reorder([cache], torch.tensor([1, 1]), size=2)
    assert torch.equal(_held(chosen)[0], _pair(3)[0][[1, 1]])


@KIND
@pytest.mark.parametrize("length", range(7))
def test_truncate_forgets_the_end_and_writing_goes_on(kind, length):
    cache = _filled(kind, 6)
    cache.truncate(length)
    assert len(cache) == length
    for found, expected in zip(_held(cache), _pair(6), strict=True):
        assert torch.equal(found, expected[..., :length, :])
    cache.append(*_pair(3, seed=2))
    assert len(cache) == length + 3
    for found, old, new in zip(_held(cache), _pair(6), _pair(3, seed=2), strict=True):
        assert torch.equal(found, torch.cat([old[..., :length, :], new], dim=-2))


@KIND
def test_truncate_of_an_empty_cache(kind):
    cache = KINDS[kind]()
    cache.truncate(0)
    assert len(cache) == 0


@KIND
@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
def test_truncate_refuses_what_is_not_there(kind):
    cache = _filled(kind, 4)
    message = "length must be at most that of the cache, 4, got 5"
    with pytest.raises(ValueError, match=re.escape(message)):
        cache.truncate(5)
    with pytest.raises(ValueError, match="length must be at least 0, got -1"):
        cache.truncate(-1)
    with pytest.raises(TypeError, match="length must be an integer, got float"):
        cache.truncate(2.0)
    assert len(cache) == 4


@KIND
def test_a_mask_over_all_positions_fits_where_all_are_kept(kind):
    cache = _filled(kind, 4)
    tensor = torch.ones(3, 7, dtype=torch.bool)
    for mask in (None, causal(), MASKS["padding"], tensor):
        assert cache.visible(mask, 3) is mask


@KIND
def test_a_cache_of_inference_mode_can_be_read_and_written_outside(kind):
    cache = KINDS[kind]()
    with torch.inference_mode():
        cache.append(*_pair(2))
        cache.append(*(x[..., 2:4, :] for x in _pair(6)))
    with torch.no_grad():
        cache.append(*(x[..., 4:, :] for x in _pair(6)))
        assert torch.equal(_held(cache)[0][..., 2:, :], _pair(6)[0][..., 2:, :])


@KIND
@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize("method", ["extended", "append"])
def test_new_keys_must_be_like_the_old_ones(kind, method):
    cache = _filled(kind, 4)
    key, value = _pair(1)
    whose = "the pool's" if kind == "paged" else "the cached"
    hostile = [
        (key.float(), value, TypeError, f"key must have the dtype of {whose} keys"),
        (key, value.half(), TypeError, f"value must have the dtype of {whose} values"),
        (key.to("meta"), value, ValueError, f"key must be on the device of {whose} keys"),
        (key[:1], value, ValueError, f"key must fit {whose} "),
        (key[:, :1], value, ValueError, f"key must fit {whose} "),
        (key[..., :4], value, ValueError, f"key must fit {whose} "),
        (key, value[:1], ValueError, f"value must fit {whose} "),
        (key, value[:, :1], ValueError, f"value must fit {whose} "),
        (key, value[..., :6], ValueError, f"value must fit {whose} "),
    ]
    for bad_key, bad_value, error, message in hostile:
        with pytest.raises(error, match=f"^{message}"):
            getattr(cache, method)(bad_key, bad_value)
        assert len(cache) == 4


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize("kind", ["concatenating", "static", "growing", "sliding"])
def test_messages_of_misfits_name_both_shapes(kind):
    cache, (key, value) = _filled(kind, 4), _pair(1)
    found = []
    for pair in ((key[..., :4], value), (key, value[..., :6]), (key, value.float())):
        with pytest.raises((TypeError, ValueError)) as caught:
            cache.append(*pair)
        found.append(str(caught.value))
    assert found == [
        "key must fit the cached keys (2, 3, 4, 5) in all but the length, got (2, 3, 1, 4)",
        "value must fit the cached values (2, 3, 4, 7) in all but the length, got (2, 3, 1, 6)",
        "value must have the dtype of the cached values (torch.float64), got torch.float32",
    ]


# --- bytes ---------------------------------------------------------------------------------------


def test_the_formula_on_paper():
    # 2 (keys, values) * 3 layers * 5 heads * 7 wide * 11 positions * 13 sequences * 4 bytes
    assert cache_bytes(3, 5, 7, 11, batch=13) == 120_120
    assert cache_bytes(3, 5, 7, 11) == 9_240
    assert cache_bytes(3, 5, 7, 11, dtype=torch.float16) == 4_620
    assert cache_bytes(3, 5, 7, 0) == 0
    # OPT-13B in the paper: 2 * 5120 * 40 * 2 bytes, "800 KB" a token.
    assert cache_bytes(40, 40, 128, 1, dtype=torch.float16) == 819_200


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@KIND
def test_the_formula_gives_the_real_bytes(kind, dtype):
    layers, length = 2, 9
    torch.manual_seed(5)
    model = llama(GPTConfig(tokens=13, length=32, width=12, layers=layers, heads=6, kv_heads=3))
    model.to(dtype).requires_grad_(False)
    caches = [KINDS[kind]() for _ in range(layers)]
    model.states(torch.zeros(BATCH, length, dtype=torch.int64), caches=caches)
    room = {"static": LENGTH, "spacious": LENGTH + 2, "growing": 16}.get(kind, length)
    expected = cache_bytes(layers, 3, 2, room, batch=BATCH, dtype=dtype)
    assert sum(cache.nbytes for cache in caches) == expected


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize("place", range(4))
def test_sizes_must_not_be_negative(place):
    names = ["layers", "kv_heads", "head_width", "length"]
    sizes = [2, 3, 5, 7]
    sizes[place] = -1
    with pytest.raises(ValueError, match=f"^{names[place]} must be at least 0, got -1$"):
        cache_bytes(*sizes)
    sizes[place] = 2.0
    with pytest.raises(TypeError, match=f"^{names[place]} must be an integer, got float$"):
        cache_bytes(*sizes)


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
def test_the_batch_must_not_be_negative():
    with pytest.raises(ValueError, match=r"^batch must be at least 0, got -1$"):
        cache_bytes(1, 1, 1, 1, batch=-1)
    assert cache_bytes(1, 1, 1, 1, batch=0) == 0


def _one_by_one(cache: KVCache, length: int) -> KVCache:
    for _ in range(length):
        cache.append(*_pair(1))
    return cache


def test_copies_grow_with_the_square_of_the_length_or_not_at_all():
    length, row = 21, BATCH * HEADS * (5 + 7) * 8  # bytes of one position
    assert _one_by_one(KVCache(), length).copied == length * (length - 1) // 2 * row
    assert _one_by_one(StaticCache(length), length).copied == 0
    # From room 3 by way of 6 and 12 to 24.
    growing = _one_by_one(GrowingCache(3), length)
    assert (growing.room, growing.copied) == (24, (3 + 6 + 12) * row)
    assert _one_by_one(GrowingCache(), 16).copied == 0
    assert _one_by_one(GrowingCache(), 17).copied == 16 * row


def test_appending_to_a_full_static_cache_needs_no_new_memory():
    cache, pair = StaticCache(512), _pair(1)
    cache.append(*_pair(500))
    row = BATCH * HEADS * (5 + 7) * 8
    assert peak_bytes(cache.append, *pair) < row
    other = KVCache()
    other.append(*_pair(500))
    assert peak_bytes(other.append, *pair) >= 501 * row


# --- static and growing --------------------------------------------------------------------------


def test_a_static_cache_hands_out_views_of_one_memory():
    cache = StaticCache(5)
    first, _ = cache.append(*_pair(2))
    place = first.data_ptr()
    for length in (3, 4, 5):
        key, _ = cache.append(*_pair(1, seed=length))
        assert key.data_ptr() == place
        assert key.shape == (BATCH, HEADS, length, 5)
        assert cache.key is key
    assert torch.equal(first, _pair(2)[0])
    assert cache.value.shape == (BATCH, HEADS, 5, 7)


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize("method", ["extended", "append"])
def test_overflow_names_room_and_need_and_changes_nothing(method):
    cache = StaticCache(5)
    cache.append(*_pair(3))
    message = "key must fit into the cache's room of 5 positions, got 4 new after 3, which need 7"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        getattr(cache, method)(*_pair(4))
    assert len(cache) == 3
    assert torch.equal(_held(cache)[0], _pair(3)[0])
    getattr(cache, method)(*_pair(2))  # just fits
    with pytest.raises(ValueError, match="got 6 new after 0"):
        StaticCache(5).append(*_pair(6))


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
def test_a_model_whose_cache_is_full_says_so():
    module, cache = _attention(), StaticCache(2)
    module(_numbers(1, 2, WIDTH), mask=causal(), cache=cache)
    with pytest.raises(ValueError, match="room of 2 positions"):
        module(_numbers(1, 1, WIDTH), mask=causal(), cache=cache)


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize("kind", [StaticCache, GrowingCache])
def test_room_is_a_positive_integer(kind):
    with pytest.raises(ValueError, match=r"^length must be at least 1, got 0$"):
        kind(0)
    with pytest.raises(TypeError, match=r"^length must be an integer, got float$"):
        kind(4.0)
    assert kind(1).room == 1


def test_a_selected_static_cache_has_as_much_room():
    cache = StaticCache(5)
    cache.append(*_pair(3))
    chosen = cache.select(torch.tensor([0]))
    assert chosen.room == 5
    assert chosen.nbytes * 2 == cache.nbytes


def test_growing_doubles_as_often_as_needed():
    cache = GrowingCache(2)
    rooms = []
    for length in (1, 1, 1, 2, 9):
        cache.append(*_pair(length))
        rooms.append(cache.room)
    assert rooms == [2, 2, 4, 8, 16]
    assert cache.nbytes == BATCH * HEADS * 16 * (5 + 7) * 8
    cache.extended(*_pair(9))
    assert cache.room == 16
    assert GrowingCache().room == 16


@IN_PLACE
@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize("method", ["extended", "append"])
@pytest.mark.parametrize("name", ["key", "value"])
def test_gradients_are_refused_where_writing_is_in_place(kind, method, name):
    pair = dict(zip(("key", "value"), _pair(3), strict=True))
    pair[name].requires_grad_()
    message = (
        f"{name} must not require gradients where a cache writes in place: use torch.no_grad() "
        f"or a KVCache, got {tuple(pair[name].shape)} with requires_grad=True"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        getattr(KINDS[kind](), method)(**pair)


@IN_PLACE
def test_a_trained_module_decodes_without_gradients(kind):
    module, x = _attention().requires_grad_(True), _numbers(BATCH, 2, WIDTH)
    with pytest.raises(ValueError, match="must not require gradients"):
        module(x, mask=causal(), cache=KINDS[kind]())
    with torch.no_grad():
        assert_close(module(x, mask=causal(), cache=KINDS[kind]()), module(x, mask=causal()))


@IN_PLACE
@pytest.mark.parametrize("leading", [(2,), (2, 3), (2, 3, 1)], ids=str)
def test_any_number_of_leading_dimensions(kind, leading):
    cache, whole = KINDS[kind](), _numbers(*leading, LENGTH, 5 + 2)
    for part in whole.split([4, 1, 6], dim=-2):
        key, value = cache.append(part[..., :5], part[..., 5:])
    assert torch.equal(key, whole[..., :5])
    assert torch.equal(value, whole[..., 5:])


@pytest.mark.hostile
@KIND
def test_a_cache_stays_on_the_device_of_its_keys(kind):
    module, cache = _attention("rotary").to("meta"), KINDS[kind]()
    for length in (3, 4, 1):
        x = torch.ones(BATCH, length, WIDTH, dtype=torch.float64, device="meta")
        assert module(x, mask=causal(), cache=cache).device.type == "meta"
    new = torch.ones(BATCH, HEADS, 1, HEAD_WIDTH, dtype=torch.float64, device="meta")
    key, value = cache.extended(new, new)
    assert key.device.type == value.device.type == "meta"
    assert len(cache) == 8


# --- prefill -------------------------------------------------------------------------------------

MODELS = {
    "rotary": lambda: llama(GPTConfig(tokens=13, length=99, width=12, layers=2, heads=3)),
    "learned": lambda: gpt2(GPTConfig(tokens=13, length=99, width=12, layers=2, heads=3)),
}


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["concatenating", "static", "paged"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk", [1, 4, 11, 20])
def test_a_prompt_read_in_pieces_gives_the_states_of_one_go(name, kind, chunk):
    torch.manual_seed(3)
    model, tokens = MODELS[name]().eval(), torch.randint(13, (BATCH, LENGTH))
    caches = [KINDS[kind]() for _ in model.blocks]
    found = prefill(model, tokens, caches, chunk=chunk)
    assert not found.requires_grad
    whole = model.empty_caches()
    with torch.no_grad():
        reference = model.states(tokens, caches=whole)
        exact = deepcopy(model).double().states(tokens)
    assert_within_budget(found, reference, exact)
    assert [len(cache) for cache in caches] == [LENGTH, LENGTH]
    empty = torch.zeros(BATCH, HEADS, 0, HEAD_WIDTH)
    for cache, expected in zip(caches, whole, strict=True):
        key, value = cache.extended(empty, empty)
        assert_close(key, expected.key)
        assert_close(value, expected.value)


def test_prefill_goes_on_where_the_caches_end():
    torch.manual_seed(3)
    model, tokens = MODELS["rotary"]().double(), torch.randint(13, (BATCH, LENGTH))
    caches = model.empty_caches()
    first = prefill(model, tokens[:, :5], caches, chunk=2)
    second = prefill(model, tokens[:, 5:], caches, chunk=4)
    assert_close(torch.cat([first, second], dim=1), model.states(tokens).detach())


@pytest.mark.usefixtures("no_shape_hook")
def test_prefill_reads_pieces_of_the_size_asked_for():
    class Listener:
        def __init__(self):
            self.heard = []

        def states(self, tokens, *, caches=None):
            self.heard.append(tokens.tolist())
            assert caches == ["a cache"]
            return torch.ones(*tokens.shape, 2)

    listener = Listener()
    assert prefill(listener, torch.arange(7), ["a cache"], chunk=3).shape == (7, 2)
    assert listener.heard == [[0, 1, 2], [3, 4, 5], [6]]


def test_prefill_needs_less_memory_than_one_go():
    torch.manual_seed(3)
    config = GPTConfig(tokens=13, length=999, width=12, layers=2, heads=3, hidden=96)
    model, tokens = llama(config).requires_grad_(False), torch.randint(13, (1, 512))

    def needs(chunk: int) -> int:
        caches = [StaticCache(512) for _ in range(2)]
        prefill(model, tokens[:, :1], caches, chunk=1)  # sets the room aside
        for cache in caches:
            cache.truncate(0)
        return peak_bytes(prefill, model, tokens, caches, chunk=chunk)

    states = 512 * 12 * 4
    whole, pieces = needs(512), needs(32)
    assert whole > 2 * 512 * 96 * 4  # two hidden layers of all positions
    # All states twice (in pieces and joined), the work of one piece and its mask.
    assert pieces < 2 * states + whole // 4


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@KIND
def test_an_empty_prompt_leaves_empty_caches(kind):
    model = MODELS["rotary"]().eval()
    caches = [KINDS[kind]() for _ in model.blocks]
    states = prefill(model, torch.zeros(BATCH, 0, dtype=torch.int64), caches, chunk=3)
    assert states.shape == (BATCH, 0, 12)
    assert [len(cache) for cache in caches] == [0, 0]


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
def test_the_chunk_is_a_positive_integer():
    model, tokens = MODELS["rotary"](), torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^chunk must be at least 1, got 0$"):
        prefill(model, tokens, model.empty_caches(), chunk=0)
    with pytest.raises(TypeError, match=r"^chunk must be an integer, got float$"):
        prefill(model, tokens, model.empty_caches(), chunk=2.0)
