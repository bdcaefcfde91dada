"""A cache in pages: many sequences share one memory, and none reserves what it may not need.

A pool sets its memory aside once and hands it out in pages of a few positions. A cache lists the
pages of each of its rows in a table. So at most the last page of a row is partly empty, and rows
that began alike can share pages. Chapter 17.
"""

from collections import Counter

import torch
from jaxtyping import Float
from torch import Tensor

from attention_lib._checks import check_count, check_like, shape
from attention_lib.efficient.caches import _refuse_gradients
from attention_lib.heads import KVCache


class PagePool:
    """Memory for keys and values of one layer, in pages that caches take and give back.

    The memory is set aside when the first cache writes. ``copies`` counts the pages that were
    copied because somebody else still used the old one.

    Args:
        pages: How many pages there are, at least 1.
        page: How many positions a page holds, at least 1.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If a number is too small; from ``take``, if all pages are taken.

    Example:
        >>> pool = PagePool(pages=3, page=16)
        >>> pool.take(), pool.free
        (0, 2)

    Source:
        Kwon et al. (2023), sections 4.2 and 4.4. Chapter 17.
    """

    def __init__(self, pages: int, page: int) -> None:
        check_count("pages", pages, least=1)
        check_count("page", page, least=1)
        self.pages, self.page, self.copies = pages, page, 0
        self.key: Tensor | None = None  # (pages, ..., page, Dh)
        self.value: Tensor | None = None
        self.holders = [0] * pages  # how many tables list the page

    @property
    def free(self) -> int:
        """How many pages nobody uses."""
        return self.holders.count(0)

    def take(self) -> int:
        """Hand out a free page."""
        if not self.free:
            raise ValueError(f"pool must have a free page, got all of {self.pages} taken")
        number = self.holders.index(0)
        self.holders[number] = 1
        return number

    def own(self, number: int) -> int:
        """The page itself if one table lists it, otherwise a copy for one of them."""
        if self.holders[number] == 1 or self.key is None or self.value is None:
            return number
        copy = self.take()
        self.holders[number] -= 1
        self.key[copy], self.value[copy] = self.key[number], self.value[number]
        self.copies += 1
        return copy

    def make_room(self, key: Tensor, value: Tensor) -> None:
        """Set memory aside for keys (B, ..., T, Dh) and values of this kind, the first time."""
        if self.key is None:
            self.key, self.value = self._memory(key), self._memory(value)

    def _memory(self, x: Tensor) -> Tensor:
        sizes = (self.pages, *x.shape[1:-2], self.page, x.shape[-1])
        with torch.inference_mode(False):  # so that it can be written to inside and outside of it
            return torch.zeros(sizes, dtype=x.dtype, device=x.device)


class PagedCache(KVCache):
    """A cache whose positions lie in pages of a pool.

    ``tables[row]`` lists a row's pages in order; position t of it is row t % page of page number
    t // page of the list. ``select`` forks: the new cache lists the same pages, and whoever first
    writes to a shared one copies it. What ``append`` returns is gathered into one tensor, as plain
    PyTorch needs; a kernel for pages reads them where they lie. For inference only.

    Args:
        pool: Where the pages come from, one pool for each layer.

    Raises:
        TypeError: As :class:`KVCache`.
        ValueError: As :class:`KVCache`; from ``append``, if the pool has too few free pages, in
            which case nothing has changed, or if keys or values require gradients.

    Example:
        >>> cache, x = PagedCache(PagePool(pages=4, page=2)), torch.arange(6.0).view(1, 3, 2)
        >>> key, value = cache.append(x, x)
        >>> torch.equal(key, x), cache.tables  # three positions in two pages
        (True, [[0, 1]])

    Source:
        Kwon et al. (2023), sections 4.1 to 4.4. Chapter 17.
    """

    def __init__(self, pool: PagePool) -> None:
        super().__init__()  # its key and value stay None: they lie in the pool
        self.pool = pool
        self.tables: list[list[int]] = []
        self.seen = 0

    def __len__(self) -> int:
        """How many positions were seen."""
        return self.seen

    @property
    def nbytes(self) -> int:
        """Bytes of the pages that the tables list, each counted once."""
        pages = len({page for table in self.tables for page in table})
        return sum(pages * x[0].nbytes for x in (self.pool.key, self.pool.value) if x is not None)

    def extended(
        self, key: Float[Tensor, "... T Dh"], value: Float[Tensor, "... T Dv"]
    ) -> tuple[Float[Tensor, "... Tk Dh"], Float[Tensor, "... Tk Dv"]]:
        """Return a copy of the stored keys and values followed by new ones, and store nothing."""
        self._check(key, value)
        if self.pool.key is None or self.pool.value is None or not self.tables:
            return key, value
        old_key, old_value = self._gathered(self.pool.key), self._gathered(self.pool.value)
        return torch.cat([old_key, key], dim=-2), torch.cat([old_value, value], dim=-2)

    def append(
        self, key: Float[Tensor, "... T Dh"], value: Float[Tensor, "... T Dv"]
    ) -> tuple[Float[Tensor, "... Tk Dh"], Float[Tensor, "... Tk Dv"]]:
        """Write new keys and values into pages and return all, gathered into one tensor."""
        self._check(key, value)
        tables = self.tables or [[] for _ in range(key.shape[0])]
        end, page = self.seen + key.shape[-2], self.pool.page
        more = -(-end // page) - -(-self.seen // page)  # new pages of each row
        partial = self.seen % page > 0 and end > self.seen  # the last page is written to
        need = more * len(tables) + (self._shared() if partial else 0)
        if need > self.pool.free:
            raise ValueError(
                f"pool must have {need} free pages for {len(tables)} rows of {end} positions, "
                f"got {self.pool.free}"
            )
        self.pool.make_room(key, value)
        assert self.pool.key is not None
        assert self.pool.value is not None
        self.tables = tables
        for row, table in enumerate(tables):
            if partial:
                table[-1] = self.pool.own(table[-1])
            table += [self.pool.take() for _ in range(more)]
            at = torch.arange(self.seen, end)
            pages, places = torch.tensor(table, dtype=torch.int64)[at // page], at % page
            # Advanced indices that do not stand together bring their dimension to the front.
            self.pool.key[pages, ..., places, :] = key[row].movedim(-2, 0)
            self.pool.value[pages, ..., places, :] = value[row].movedim(-2, 0)
        self.seen = end
        return self._gathered(self.pool.key), self._gathered(self.pool.value)

    def select(self, rows: Tensor) -> "PagedCache":
        """Return a cache of the given batch rows, which shares their pages."""
        chosen = PagedCache(self.pool)
        if self.tables:
            chosen.tables, chosen.seen = (
                [list(self.tables[row]) for row in rows.tolist()],
                self.seen,
            )
        for table in chosen.tables:
            for number in table:
                self.pool.holders[number] += 1
        return chosen

    def truncate(self, length: int) -> None:
        """Forget all positions from ``length`` on, and give back the pages behind them."""
        self._check_truncation(length)
        used = -(-length // self.pool.page)
        for table in self.tables:
            for number in table[used:]:
                self.pool.holders[number] -= 1
            del table[used:]
        self.seen = length

    def release(self) -> None:
        """Give back all pages; the cache is empty then."""
        self.truncate(0)
        self.tables = []

    def __del__(self) -> None:
        """A cache that nobody can reach any more needs no pages."""
        if hasattr(self, "tables"):  # not if ``__init__`` was refused
            self.release()

    def _gathered(self, memory: Tensor) -> Tensor:
        """The rows of a pool's memory that the tables list, (B, ..., T, Dh)."""
        tables = torch.tensor(self.tables, dtype=torch.int64, device=memory.device)
        pages = memory[tables]  # (B, pages of a row, ..., page, Dh)
        return pages.movedim(1, -3).flatten(-3, -2)[..., : self.seen, :]

    def _shared(self) -> int:
        """How many last pages have to be copied before all rows can write to theirs."""
        last = Counter(table[-1] for table in self.tables)
        # Where nobody outside of this cache uses a page, one of its rows keeps the old one.
        return sum(min(rows, self.pool.holders[page] - 1) for page, rows in last.items())

    def _check(self, key: Tensor, value: Tensor) -> None:
        """Require new keys and values for the rows of this cache and the pages of the pool."""
        _refuse_gradients(key, value)
        for name, x, memory in (
            ("key", key, self.pool.key),
            ("value", value, self.pool.value),
        ):
            if memory is None:
                continue
            check_like(name, x, f"the pool's {name}s", memory)
            rows = len(self.tables) or x.shape[0]
            expected = (rows, *memory.shape[1:-2], x.shape[-2], memory.shape[-1])
            if shape(x) != expected:
                raise ValueError(
                    f"{name} must fit the pool's pages in all but the length, {expected}, "
                    f"got {shape(x)}"
                )
