"""Caches that need less: of copying, or of memory; and filling them in pieces. Chapter 17.

Each has the interface of :class:`attention_lib.heads.KVCache` and goes wherever that goes.
``len(cache)`` is always the number of positions seen, also where some were dropped, because it
tells the next position its number.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attention_lib._checks import check_count, check_counts, shape
from attention_lib.heads import KVCache


def cache_bytes(
    layers: int,
    kv_heads: int,
    head_width: int,
    length: int,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
) -> int:
    r"""How many bytes do the keys and values of all layers take?

    .. math:: 2 \cdot L \cdot H_{kv} \cdot D_h \cdot T \cdot B \cdot \text{bytes of a number}

    Args:
        layers: L, number of layers.
        kv_heads: Number of key and value heads.
        head_width: Dh.
        length: T, positions in the cache.
        batch: B, number of sequences.
        dtype: What a number is stored as.

    Returns:
        Bytes; the 2 is for keys and values.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is negative.

    Example:
        >>> cache_bytes(layers=2, kv_heads=3, head_width=4, length=5)  # 2 x 2 x 3 x 4 x 5 numbers
        960

    Source:
        Kwon et al. (2023), section 3, where one token of OPT-13B comes to 800 KB. Chapter 17.
    """
    check_counts(
        least=0,
        layers=layers,
        kv_heads=kv_heads,
        head_width=head_width,
        length=length,
        batch=batch,
    )
    return 2 * layers * kv_heads * head_width * length * batch * dtype.itemsize


class StaticCache(KVCache):
    """A cache with room for a fixed number of positions, into which new ones are written.

    The room is set aside at the first append. Appending copies nothing that is old; what it returns
    are views of the room, which stay as they are until ``truncate`` gives their place to others.
    For inference only: writing in place would overwrite what a backward pass needs.

    Args:
        length: The most positions it can hold.

    Raises:
        TypeError: As :class:`KVCache`, or if ``length`` is not an integer.
        ValueError: As :class:`KVCache`; if ``length`` is below 1; from ``append`` and ``extended``
            if there is no room left, or if keys or values require gradients.

    Example:
        >>> cache, x = StaticCache(length=8), torch.ones(1, 3, 2)
        >>> key, value = cache.append(x, x)
        >>> tuple(key.shape), cache.nbytes  # room for 8 keys and 8 values of 2 numbers
        ((1, 3, 2), 128)

    Source:
        Chapter 17.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        check_count("length", length, least=1)
        self.room = length
        self._keys: Tensor | None = None  # (..., room, Dh); of these, ``key`` is the written part
        self._values: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the whole room."""
        return sum(x.nbytes for x in (self._keys, self._values) if x is not None)

    def extended(
        self, key: Float[Tensor, "... T Dh"], value: Float[Tensor, "... T Dv"]
    ) -> tuple[Float[Tensor, "... Tk Dh"], Float[Tensor, "... Tk Dv"]]:
        """Return a copy of the stored keys and values followed by new ones, and store nothing."""
        self._fitting_room(key, value)
        return super().extended(key, value)

    def append(
        self, key: Float[Tensor, "... T Dh"], value: Float[Tensor, "... T Dv"]
    ) -> tuple[Float[Tensor, "... Tk Dh"], Float[Tensor, "... Tk Dv"]]:
        """Write new keys and values behind the old ones and return views of them all."""
        room = self._fitting_room(key, value)
        start, end = len(self), len(self) + key.shape[-2]
        if self._keys is None or self._values is None or room > self.room:
            self._keys = self._moved(key, self.key, room)
            self._values = self._moved(value, self.value, room)
            self.room = room
        self._keys[..., start:end, :] = key
        self._values[..., start:end, :] = value
        self.key, self.value = self._keys[..., :end, :], self._values[..., :end, :]
        return self.key, self.value

    def select(self, rows: Tensor) -> "StaticCache":
        """Return a cache of the given batch rows, with as much room."""
        chosen = type(self)(self.room)
        if self.key is not None and self.value is not None:
            chosen.append(self.key[rows], self.value[rows])
        return chosen

    def _fitting_room(self, key: Tensor, value: Tensor) -> int:
        """The room in which new keys and values fit, after all checks."""
        _refuse_gradients(key, value)
        self._check_fits(key, value)
        return self._room_for(len(self) + key.shape[-2])

    def _room_for(self, need: int) -> int:
        if need > self.room:
            raise ValueError(
                f"key must fit into the cache's room of {self.room} positions, "
                f"got {need - len(self)} new after {len(self)}, which need {need}"
            )
        return self.room

    def _moved(self, new: Tensor, old: Tensor | None, room: int) -> Tensor:
        """Memory for ``room`` positions of the kind of ``new``, with the old ones copied in."""
        with torch.inference_mode(False):  # so that it can be written to inside and outside of it
            memory = torch.empty(
                *new.shape[:-2], room, new.shape[-1], dtype=new.dtype, device=new.device
            )
        if old is not None:
            memory[..., : old.shape[-2], :] = old
            self.copied += old.nbytes
        return memory


class GrowingCache(StaticCache):
    r"""A static cache that doubles its room whenever it is full.

    .. math:: r_0 + 2 r_0 + 4 r_0 + \dots + R / 2 = R - r_0 < 2\, T

    With a room of :math:`r_0` at the start and R at the end, so many positions are copied when T
    were appended one by one; :class:`KVCache` copies T (T - 1) / 2.

    Args:
        length: The room at the start.

    Raises:
        TypeError: As :class:`StaticCache`.
        ValueError: As :class:`StaticCache`, but there is always room.

    Example:
        >>> cache, x = GrowingCache(length=2), torch.ones(1, 5, 4)
        >>> key, value = cache.append(x, x)
        >>> len(cache), cache.room  # 2 was doubled to 4, and to 8
        (5, 8)

    Source:
        Cormen et al. (2009), section 17.4, for the amortised cost of doubling tables. Chapter 17.
    """

    def __init__(self, length: int = 16) -> None:
        super().__init__(length)

    def _room_for(self, need: int) -> int:
        room = self.room
        while room < need:
            room *= 2
        return room


@runtime_checkable
class ReadsTokens(Protocol):
    """A model that :func:`prefill` can feed, such as :class:`attention_lib.models.gpt.GPT`.

    Example:
        >>> from attention_lib.models.gpt import GPT
        >>> issubclass(GPT, ReadsTokens)
        True
    """

    def states(
        self, tokens: Tensor, *, caches: Sequence[KVCache] | None = None
    ) -> Float[Tensor, "... T D"]:
        """The states after each token, with what the caches hold before them."""


def prefill(
    model: ReadsTokens, tokens: Int[Tensor, "... T"], caches: Sequence[KVCache], *, chunk: int
) -> Float[Tensor, "... T D"]:
    r"""Read a prompt into the caches piece by piece: only one piece at a time is worked on.

    .. math:: h_{a:b} = \mathrm{states}(y_{a:b} \mid \mathrm{cache\ of}\ y_{<a})

    The states are those of one go, because a later piece finds the earlier ones in the caches.
    Beside states and caches, memory grows with the chunk and not with the prompt, but for the mask
    of one piece. Without gradients.

    Args:
        model: Has ``states(tokens, caches=...)``.
        tokens: The prompt, (..., T).
        caches: One for each layer; they grow by T.
        chunk: How many tokens to read at a time, at least 1.

    Returns:
        States, (..., T, D).

    Raises:
        TypeError: If ``chunk`` is not an integer.
        ValueError: If ``chunk`` is below 1.

    Example:
        >>> from attention_lib.models.gpt import GPTConfig, gpt2
        >>> model = gpt2(GPTConfig(tokens=9, length=5, width=4, layers=1, heads=2))
        >>> tokens = torch.tensor([[1, 2, 3, 4, 5]])
        >>> states = prefill(model, tokens, model.empty_caches(), chunk=2)
        >>> torch.allclose(states, model.states(tokens), atol=1e-5)
        True

    Source:
        Agrawal et al. (2023), section 4, "chunked-prefills". Chapter 17.
    """
    check_count("chunk", chunk, least=1)
    with torch.no_grad():
        parts = [model.states(part, caches=caches) for part in tokens.split(chunk, dim=-1)]
    return torch.cat(parts, dim=-2)


def _refuse_gradients(key: Tensor, value: Tensor) -> None:
    """Require tensors that do not take part in a backward pass."""
    for name, x in (("key", key), ("value", value)):
        if x.requires_grad:
            raise ValueError(
                f"{name} must not require gradients where a cache writes in place: use "
                f"torch.no_grad() or a KVCache, got {shape(x)} with requires_grad=True"
            )
