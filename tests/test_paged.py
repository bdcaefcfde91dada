"""The paged cache: which page holds what, who shares it, and what a full pool says."""

import gc
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import random

from attention_lib import KVCache
from attention_lib.decoding import beam
from attention_lib.efficient.paged import PagedCache, PagePool
from attention_lib.models.gpt import GPTConfig, llama


def _counted(rows: int, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys 100 * row + position of one number, values of two: minus that, and that plus a half."""
    row, position = torch.arange(rows)[:, None], torch.arange(start, stop)
    key = (100.0 * row + position)[..., None]  # (rows, T, 1)
    return key, torch.cat([-key, key + 0.5], dim=-1)


def _check(cache: PagedCache, key: torch.Tensor) -> None:
    """The cache returns these keys and the values that belong to them."""
    none = torch.zeros(len(key), 0, 1), torch.zeros(len(key), 0, 2)
    found_key, found_value = cache.extended(*none)
    assert torch.equal(found_key[..., 0], key)
    assert torch.equal(found_value, torch.stack([-key, key + 0.5], dim=-1))


def test_on_paper():
    pool = PagePool(6, 2)
    cache = PagedCache(pool)
    cache.append(*_counted(2, 0, 3))
    assert (cache.tables, pool.free, pool.holders) == ([[0, 1], [2, 3]], 2, [1, 1, 1, 1, 0, 0])
    assert pool.key.shape == (6, 2, 1)
    assert pool.value.shape == (6, 2, 2)
    assert pool.key[:4, :, 0].tolist() == [[0, 1], [2, 0], [100, 101], [102, 0]]
    cache.append(*_counted(2, 3, 4))
    assert cache.tables == [[0, 1], [2, 3]]
    cache.append(*_counted(2, 4, 5))
    assert (cache.tables, pool.free) == ([[0, 1, 4], [2, 3, 5]], 0)
    _check(cache, torch.tensor([[0.0, 1, 2, 3, 4], [100, 101, 102, 103, 104]]))
    assert pool.copies == 0


def test_the_memory_is_set_aside_once():
    pool = PagePool(6, 3)
    assert pool.key is None
    first, second = PagedCache(pool), PagedCache(pool)
    assert first.nbytes == 0
    first.append(*_counted(1, 0, 2))
    place = pool.key.data_ptr()
    second.append(*_counted(2, 0, 4))
    first.append(*_counted(1, 2, 4))
    assert pool.key.data_ptr() == place
    assert (first.tables, second.tables) == ([[0, 5]], [[1, 2], [3, 4]])
    _check(first, torch.tensor([[0.0, 1, 2, 3]]))
    _check(second, torch.tensor([[0.0, 1, 2, 3], [100, 101, 102, 103]]))


def test_bytes_are_those_of_the_pages_in_use():
    pool, page = PagePool(9, 4), 4 * (1 + 2) * 4  # 4 positions, 1 + 2 numbers, 4 bytes
    cache = PagedCache(pool)
    for length, pages in ((1, 2), (4, 2), (5, 4), (8, 4)):
        cache.append(*_counted(2, len(cache), length))
        assert cache.nbytes == pages * page
    assert cache.select(torch.tensor([0, 0, 1])).nbytes == 4 * page
    assert cache.select(torch.tensor([0, 0])).nbytes == 2 * page


def test_a_fork_shares_pages_until_one_writes():
    pool = PagePool(8, 2)
    cache = PagedCache(pool)
    cache.append(*_counted(1, 0, 3))  # pages 0 and 1, the second half full
    fork = cache.select(torch.tensor([0]))
    assert fork.tables == [[0, 1]]
    assert (pool.holders[:2], pool.free, pool.copies) == ([2, 2], 6, 0)
    fork.append(*_counted(1, 50, 51))
    assert (fork.tables, cache.tables) == ([[0, 2]], [[0, 1]])
    assert (pool.holders[:3], pool.free, pool.copies) == ([2, 1, 1], 5, 1)
    cache.append(*_counted(1, 3, 4))  # is alone on its page now
    assert (cache.tables, pool.copies) == ([[0, 1]], 1)
    _check(cache, torch.tensor([[0.0, 1, 2, 3]]))
    _check(fork, torch.tensor([[0.0, 1, 2, 50]]))


def test_a_full_last_page_needs_no_copy():
    pool = PagePool(8, 2)
    cache = PagedCache(pool)
    cache.append(*_counted(1, 0, 4))
    fork = cache.select(torch.tensor([0, 0]))
    fork.append(*_counted(2, 4, 5))
    assert (fork.tables, pool.copies) == ([[0, 1, 2], [0, 1, 3]], 0)
    assert pool.holders[:4] == [3, 3, 1, 1]


def test_rows_of_one_cache_part_too_and_one_of_them_keeps_the_page():
    pool = PagePool(8, 2)
    cache = PagedCache(pool)
    cache.append(*_counted(1, 0, 1))
    fork = cache.select(torch.tensor([0, 0, 0]))
    cache.release()
    assert pool.holders[0] == 3
    fork.append(*_counted(3, 1, 2))
    assert (fork.tables, pool.copies) == ([[1], [2], [0]], 2)
    assert pool.holders[:3] == [1, 1, 1]
    _check(fork, torch.tensor([[0.0, 1], [0, 101], [0, 201]]))


def test_appending_nothing_copies_nothing():
    pool = PagePool(4, 2)
    cache = PagedCache(pool)
    cache.append(*_counted(1, 0, 1))
    fork = cache.select(torch.tensor([0]))
    key, value = fork.append(*_counted(1, 1, 1))
    assert (key.shape, value.shape) == ((1, 1, 1), (1, 1, 2))
    assert (pool.copies, fork.tables, len(fork)) == (0, [[0]], 1)


def test_truncate_gives_pages_back_and_shared_ones_stay_with_others():
    pool = PagePool(8, 2)
    cache = PagedCache(pool)
    cache.append(*_counted(2, 0, 6))
    fork = cache.select(torch.tensor([1]))
    for length, pages in ((5, 3), (4, 2), (3, 2), (2, 1), (0, 0)):
        cache.truncate(length)
        assert [len(table) for table in cache.tables] == [pages, pages]
        assert pool.free == 8 - pages - 3
    _check(fork, torch.tensor([[100.0, 101, 102, 103, 104, 105]]))
    cache.append(*_counted(2, 0, 1))
    _check(cache, torch.tensor([[0.0], [100]]))


def test_release_empties_the_cache_and_others_may_take_its_pages():
    pool = PagePool(2, 3)
    cache = PagedCache(pool)
    cache.append(*_counted(2, 0, 2))
    assert pool.free == 0
    cache.release()
    assert (pool.free, cache.tables, len(cache), cache.nbytes) == (2, [], 0, 0)
    cache.append(*_counted(1, 0, 4))  # with another number of rows
    _check(cache, torch.tensor([[0.0, 1, 2, 3]]))


def test_a_forgotten_cache_gives_its_pages_back():
    pool = PagePool(2, 3)
    cache = PagedCache(pool)
    cache.append(*_counted(2, 0, 2))
    del cache
    gc.collect()
    assert pool.free == 2


def test_beam_search_leaves_no_page_behind():
    torch.manual_seed(5)
    model = llama(GPTConfig(tokens=13, length=32, width=12, layers=2, heads=3)).double()
    model.requires_grad_(False)
    pools = [PagePool(64, 2) for _ in model.blocks]
    caches = [PagedCache(pool) for pool in pools]
    beam(model.step, caches, torch.tensor([3, 7]), 0, 9, width=3)
    del caches
    gc.collect()
    assert [pool.free for pool in pools] == [64, 64]
    assert all(pool.copies for pool in pools)


@given(
    actions=st.lists(
        st.tuples(st.sampled_from(["append", "select", "truncate", "forget"]), st.integers(0, 4)),
        max_size=14,
    ),
    page=st.integers(1, 4),
)
@settings(max_examples=60)
def test_it_holds_what_a_plain_cache_holds_whatever_happens(actions, page):
    pool = PagePool(200, page)
    paged, plain = [PagedCache(pool)], [KVCache()]
    numbers, rows = torch.Generator().manual_seed(1), [2]
    for action, amount in actions:
        which = amount % len(paged)
        ours, theirs = paged[which], plain[which]
        if action == "append":
            key, value = (random(numbers, rows[which], 3, amount, width) for width in (5, 7))
            found, expected = ours.append(key, value), theirs.append(key, value)
            assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
        elif action == "select" and len(theirs):
            chosen = torch.arange(amount + 1) % rows[which]
            paged.append(ours.select(chosen))
            plain.append(theirs.select(chosen))
            rows.append(amount + 1)
        elif action == "truncate":
            length = min(amount, len(theirs))
            ours.truncate(length)
            theirs.truncate(length)
        elif action == "forget" and len(paged) > 1:
            del ours, theirs, paged[which], plain[which], rows[which]
    used = [number for cache in paged for table in cache.tables for number in table]
    assert pool.holders == [used.count(number) for number in range(200)]
    for ours, theirs, batch in zip(paged, plain, rows, strict=True):
        assert len(ours) == len(theirs)
        none = torch.zeros(batch, 3, 0, 5).double(), torch.zeros(batch, 3, 0, 7).double()
        if theirs.key is not None:
            found, expected = ours.extended(*none), theirs.extended(*none)
            assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
        assert all(len(table) == -(-len(ours) // page) for table in ours.tables)


# --- hostile -------------------------------------------------------------------------------------


@pytest.mark.hostile
def test_a_pool_that_is_too_small_says_so_and_nothing_changes():
    pool = PagePool(5, 2)
    cache = PagedCache(pool)
    cache.append(*_counted(2, 0, 3))
    message = "pool must have 2 free pages for 2 rows of 5 positions, got 1"
    with pytest.raises(ValueError, match=f"^{message}$"):
        cache.append(*_counted(2, 3, 5))
    assert (cache.tables, len(cache), pool.free) == ([[0, 1], [2, 3]], 3, 1)
    cache.append(*_counted(2, 3, 4))
    _check(cache, torch.tensor([[0.0, 1, 2, 3], [100, 101, 102, 103]]))


@pytest.mark.hostile
def test_copies_need_free_pages_too():
    pool = PagePool(4, 2)
    cache = PagedCache(pool)
    cache.append(*_counted(2, 0, 1))  # pages 0 and 1
    forks = cache.select(torch.tensor([0, 0, 1]))
    # Page 0 has three users and two of them write: both copy. Page 1 has two and one writes.
    message = "pool must have 3 free pages for 3 rows of 2 positions, got 2"
    with pytest.raises(ValueError, match=f"^{message}$"):
        forks.append(*_counted(3, 1, 2))
    assert (pool.copies, pool.holders) == (0, [3, 2, 0, 0])
    cache.release()
    forks.append(*_counted(3, 1, 2))  # now only one row has to leave page 0
    assert (pool.copies, pool.free) == (1, 1)


@pytest.mark.hostile
def test_an_empty_pool_hands_out_nothing():
    pool = PagePool(1, 2)
    assert (pool.take(), pool.free) == (0, 0)
    with pytest.raises(ValueError, match=r"^pool must have a free page, got all of 1 taken$"):
        pool.take()
    with pytest.raises(ValueError, match=r"^pool must have 1 free pages for 1 rows of 1"):
        PagedCache(pool).append(*_counted(1, 0, 1))
    assert pool.key is None


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
def test_pages_are_counts():
    for arguments, error, message in (
        ((0, 1), ValueError, "pages must be at least 1, got 0"),
        ((1, 0), ValueError, "page must be at least 1, got 0"),
        ((1.0, 1), TypeError, "pages must be an integer, got float"),
        ((1, 1.0), TypeError, "page must be an integer, got float"),
    ):
        with pytest.raises(error, match=f"^{message}$"):
            PagePool(*arguments)
    pool = PagePool(1, 1)
    assert (pool.pages, pool.page, pool.free, pool.copies) == (1, 1, 1, 0)


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
def test_misfits_name_both_shapes():
    cache = PagedCache(PagePool(4, 2))
    cache.append(torch.ones(2, 3, 1, 5), torch.ones(2, 3, 1, 7))
    key, value = torch.ones(2, 3, 2, 5), torch.ones(2, 3, 2, 7)
    start = "must fit the pool's pages in all but the length,"
    for pair, message in (
        ((key[:1], value), f"key {start} (2, 3, 2, 5), got (1, 3, 2, 5)"),
        ((key[:, :2], value), f"key {start} (2, 3, 2, 5), got (2, 2, 2, 5)"),
        ((key, value[..., :6]), f"value {start} (2, 3, 2, 7), got (2, 3, 2, 6)"),
        ((key[..., :4], value), f"key {start} (2, 3, 2, 5), got (2, 3, 2, 4)"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            cache.append(*pair)
    with pytest.raises(TypeError, match=r"^value must have the dtype of the pool's values"):
        cache.append(key, value.double())
    other = PagedCache(cache.pool)  # another cache may have other rows, but not other pages
    with pytest.raises(ValueError, match=re.escape(f"key {start} (1, 3, 2, 5), got (1, 3, 2, 4)")):
        other.append(key[:1, ..., :4], value[:1])
    other.append(key[:1], value[:1])


def test_a_new_cache_of_a_pool_in_use_is_empty():
    pool = PagePool(4, 2)
    PagedCache(pool).append(*_counted(2, 0, 3))
    first = PagedCache(pool)
    first.append(*_counted(1, 0, 1))
    cache, (key, value) = PagedCache(pool), _counted(3, 5, 7)
    found = cache.extended(key, value)
    assert torch.equal(found[0], key)
    assert torch.equal(found[1], value)
