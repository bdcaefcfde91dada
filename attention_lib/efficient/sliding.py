"""A cache that keeps the last positions and the first, for texts without end. Chapter 17."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attention_lib._checks import check_count, shape
from attention_lib.heads import KVCache
from attention_lib.masks import Mask, causal


def window_with_sinks(window: int, sinks: int = 0) -> Mask:
    r"""Allow the last ``window`` keys up to the query's own, and the first ``sinks`` of all.

    .. math:: m_{ij} = [\, j > i - \text{window} \,] \lor [\, j < \text{sinks} \,]

    It says nothing of the future: combine it with :func:`attention_lib.masks.causal`.

    Args:
        window: Keys up to the query, its own among them, at least 1.
        sinks: Keys at the start, at least 0.

    Returns:
        The mask.

    Raises:
        TypeError: If an argument is not an integer.
        ValueError: If an argument is too small.

    Example:
        >>> (causal() & window_with_sinks(2, sinks=1)).dense(4, 4).long()
        tensor([[1, 0, 0, 0],
                [1, 1, 0, 0],
                [1, 1, 1, 0],
                [1, 0, 1, 1]])

    Source:
        Xiao et al. (2024), section 3.2 and figure 4, for the keys that are kept. Chapter 17.
    """
    check_count("window", window, least=1)
    check_count("sinks", sinks, least=0)
    return Mask(
        lambda query, key: (key > query - window) | (key < sinks),
        f"window({window})+sinks({sinks})",
    )


class _OfKept(Mask):
    """A mask over the keys that a sliding cache returns, not over all positions."""


class SlidingCache(KVCache):
    """A cache that keeps the last ``window`` positions and the first ``sinks`` of all.

    A query sees what :func:`window_with_sinks` allows, in chunks of any size. For more than one
    query at a time that needs a mask, which ``visible`` makes from a mask over all positions;
    :class:`attention_lib.heads.MultiHeadAttention` asks for it.

    Keys keep the positions that they were stored with; a rotary score, which depends on the
    distance, is then that of the whole sequence. StreamingLLM numbers the kept keys anew, as if
    what was dropped had never been; that keeps distances below ``window + sinks``, whatever the
    length. A bias on the scores (:class:`attention_lib.positions.Alibi`) cannot know which keys
    were dropped, so the module refuses it with this cache from then on.

    Args:
        window: How many of the last positions to keep, at least 1.
        sinks: How many of the first, at least 0.

    Raises:
        TypeError: As :class:`KVCache`, or if a number is not an integer.
        ValueError: As :class:`KVCache`; if a number is too small; from ``append`` and ``extended``
            for several positions that need a mask, if ``visible`` was not asked for it; from
            ``truncate`` if positions have been dropped that would be needed again.

    Example:
        >>> cache = SlidingCache(window=2, sinks=1)
        >>> for x in torch.arange(5.0):
        ...     key, value = cache.append(x.view(1, 1), x.view(1, 1))
        >>> key.tolist(), len(cache)  # the first and the last two of five
        ([[0.0], [3.0], [4.0]], 5)

    Source:
        Xiao et al. (2024), section 3.2. Chapter 17.
    """

    def __init__(self, window: int, sinks: int = 0) -> None:
        super().__init__()
        self._rule = window_with_sinks(window, sinks)
        self.window, self.sinks = window, sinks
        self.seen = 0
        self._masked = 1  # for how many new positions a mask was made; one query needs none

    def __len__(self) -> int:
        """How many positions were seen, kept or not."""
        return self.seen

    def visible(
        self, mask: Mask | Bool[Tensor, "..."] | None, new: int
    ) -> Mask | Bool[Tensor, "..."] | None:
        """Return the mask for the keys that appending ``new`` positions will return.

        Args:
            mask: Over all positions seen, as without a cache; a tensor is (..., Tq, T). What this
                method has made before comes back as it is.
            new: How many positions will be appended.

        Returns:
            The same, without the columns of dropped keys and inside window and sinks; ``mask``
            itself where that changes nothing.
        """
        self._masked = new
        total = self.seen + new
        if isinstance(mask, _OfKept) or total <= self.sinks + self.window:
            return mask
        if new == 1 and (mask is None or mask is causal()):
            return mask  # one query sees all keys that are returned
        kept = new if self.key is None else self._still_seen(self.key, new).shape[-2] + new
        dropped = total - kept

        def position(index: Tensor) -> Tensor:
            return torch.where(index < self.sinks, index, index + dropped)

        if isinstance(mask, Tensor):
            if dropped and mask.shape[-1] == kept:
                return mask
            inside = self._rule.dense(new, total, mask.device)
            return (mask & inside)[..., position(torch.arange(kept, device=mask.device))]
        both = self._rule if mask is None else mask & self._rule
        # The queries are the last of all, behind everything that was dropped.
        return _OfKept(lambda query, key: both.rule(query + dropped, position(key)), both.name)

    def extended(
        self, key: Float[Tensor, "... T Dh"], value: Float[Tensor, "... T Dv"]
    ) -> tuple[Float[Tensor, "... Tk Dh"], Float[Tensor, "... Tk Dv"]]:
        """Return what the new positions may see followed by themselves, and store nothing."""
        self._check_fits(key, value)
        new, held = key.shape[-2], self.sinks + self.window
        if new > 1 and self.seen + new > held and self._masked != new:
            raise ValueError(
                f"key must come with the mask of visible(mask, {new}), because {new} queries in a "
                f"cache of {held} positions do not all see the same, got {shape(key)} without it"
            )
        if self.key is None or self.value is None:
            return key, value
        longer = [
            torch.cat([self._still_seen(old, new), x], dim=-2)
            for old, x in ((self.key, key), (self.value, value))
        ]
        return longer[0], longer[1]

    def append(
        self, key: Float[Tensor, "... T Dh"], value: Float[Tensor, "... T Dv"]
    ) -> tuple[Float[Tensor, "... Tk Dh"], Float[Tensor, "... Tk Dv"]]:
        """Store new keys and values, drop what is too old, and return what the new may see."""
        longer = self.extended(key, value)
        self.copied += sum(x.nbytes for x in longer) - key.nbytes - value.nbytes
        self.seen += key.shape[-2]
        self._masked = 1
        self.key, self.value = longer
        if longer[0].shape[-2] > self.sinks + self.window:
            # A copy, so that a long chunk does not stay in memory behind a short view of it.
            self.key, self.value = (self._last(x, self.window) for x in longer)
            self.copied += self.nbytes
        return longer

    def select(self, rows: Tensor) -> "SlidingCache":
        """Return a cache of the given batch rows."""
        chosen = SlidingCache(self.window, self.sinks)
        chosen.seen = self.seen
        if self.key is not None and self.value is not None:
            chosen.key, chosen.value = self.key[rows], self.value[rows]
        return chosen

    def truncate(self, length: int) -> None:
        """Forget all positions from ``length`` on; only while nothing has been dropped."""
        self._check_truncation(length)
        dropped = self.seen - (0 if self.key is None else self.key.shape[-2])
        if dropped and length < self.seen:
            raise ValueError(
                f"length must be {self.seen}, because {dropped} dropped positions would be needed "
                f"again, got {length}"
            )
        super().truncate(length)
        self.seen = length

    def _still_seen(self, stored: Tensor, new: int) -> Tensor:
        """Of the stored rows those that the first of the new queries sees beside its own."""
        return self._last(stored, self.window - min(new, 1))

    def _last(self, x: Tensor, count: int) -> Tensor:
        """The sinks and the last ``count`` rows."""
        start = x.shape[-2] - count
        if start <= self.sinks:
            return x
        return torch.cat([x[..., : self.sinks, :], x[..., start:, :]], dim=-2)
