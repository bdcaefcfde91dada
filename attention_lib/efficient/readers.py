"""Models that keep their place in a text and can go back, for speculative decoding. Chapter 17."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from attention_lib._checks import check_count


@runtime_checkable
class Reader(Protocol):
    """A model that keeps its place in one text and can go back to an earlier one.

    Example:
        >>> issubclass(CachedReader, Reader), issubclass(WindowReader, Reader)
        (True, True)

    Source:
        Chapter 17.
    """

    def __len__(self) -> int:
        """How many tokens it has read."""
        ...

    def read(self, tokens: Int[Tensor, " T"]) -> Float[Tensor, "T V"]:
        """Read on, and return the logits of the next token after each."""
        ...

    def forget(self, length: int) -> None:
        """Go back to the first ``length`` tokens."""
        ...


class CachedReader:
    """A model with key-value caches as a :class:`Reader`.

    Args:
        model: From tokens (B, T) and ``caches=`` to logits (B, T, V), as
            :class:`attention_lib.models.gpt.GPT` is.
        caches: One for each layer, with ``truncate``; they may hold the start of the text already.

    Raises:
        ValueError: From ``forget``, if more than was read is to stay.

    Example:
        >>> import torch
        >>> from attention_lib.models.gpt import GPTConfig, gpt2
        >>> model = gpt2(GPTConfig(tokens=9, length=5, width=4, layers=1, heads=2))
        >>> reader = CachedReader(model, model.empty_caches())
        >>> tuple(reader.read(torch.tensor([1, 2, 3])).shape), len(reader)
        ((3, 9), 3)

    Source:
        Chapter 17.
    """

    def __init__(self, model: Callable[..., Tensor], caches: Sequence[Any]) -> None:
        self.model, self.caches = model, caches

    def __len__(self) -> int:
        return len(self.caches[0])

    def read(self, tokens: Int[Tensor, " T"]) -> Float[Tensor, "T V"]:
        """Read on, and return the logits of the next token after each."""
        return self.model(tokens[None], caches=self.caches)[0]

    def forget(self, length: int) -> None:
        """Go back to the first ``length`` tokens: their keys and values stay as they are."""
        for cache in self.caches:
            cache.truncate(length)


class WindowReader:
    """A model without a cache, which sees the last tokens again each time, as a :class:`Reader`.

    Args:
        model: From tokens (T,) and a number n to the logits after the last n of them, (n, V).
        context: How many tokens it needs to see for one prediction, at least 1.

    Raises:
        TypeError: If ``context`` is not an integer.
        ValueError: If ``context`` is below 1; from ``read``, if there is no token; from ``forget``,
            if more than was read is to stay.

    Example:
        >>> import torch
        >>> reader = WindowReader(lambda seen, n: seen[-n:, None].float(), context=1)
        >>> reader.read(torch.tensor([5, 6, 7])).tolist()
        [[5.0], [6.0], [7.0]]
        >>> reader.forget(1)
        >>> len(reader)
        1

    Source:
        Chapter 17.
    """

    def __init__(self, model: Callable[[Tensor, int], Tensor], context: int) -> None:
        check_count("context", context, least=1)
        self.model, self.context = model, context
        self.text: list[int] = []

    def __len__(self) -> int:
        return len(self.text)

    def read(self, tokens: Int[Tensor, " T"]) -> Float[Tensor, "T V"]:
        """Read on, and return the logits of the next token after each."""
        if not len(tokens):
            raise ValueError("tokens must hold at least one token, got none")
        self.text += tokens.tolist()
        seen = self.text[-(self.context - 1 + len(tokens)) :]
        return self.model(tokens.new_tensor(seen), len(tokens))

    def forget(self, length: int) -> None:
        """Go back to the first ``length`` tokens."""
        check_count("length", length, least=0)
        if length > len(self.text):
            raise ValueError(f"length must be at most {len(self.text)} tokens read, got {length}")
        del self.text[length:]
