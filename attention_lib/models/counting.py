"""A language model made of counts, with nothing to train: tables for contexts of each length."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attention_lib._checks import check_count, check_positive, shape


class CountingModel:
    r"""Tables of what followed each context, mixed from the shortest context to the longest.

    .. math:: p_n(y) = \frac{c(xy) + d\, p_{n-1}(y)}{c(x) + d}, \qquad d = \delta\, u(x), \qquad
              p_{-1}(y) = 1 / V

    x are the last n tokens, c counts in the text that was read, and u(x) is the number of different
    tokens seen after x. A context that was never seen has c = d = 0 and changes nothing. It is
    cheap enough to guess for a large model, see :mod:`attention_lib.efficient.speculative`.

    Args:
        text: Tokens to count, (N,).
        tokens: V, size of the vocabulary.
        context: The most tokens that a prediction looks back, at least 0.
        doubt: :math:`\delta`, how much each different token counts against trusting a table.

    Raises:
        TypeError: If a size is not an integer or ``text`` holds none.
        ValueError: If a size is too small, ``doubt`` not above 0, or a token outside 0 to V - 1.

    Source:
        Witten and Bell (1991), method C, with :math:`\delta = 1`; chapter 11 has
        :math:`\delta = 16`. Chapter 17.
    """

    def __init__(
        self, text: Int[Tensor, " N"], *, tokens: int, context: int, doubt: float = 1.0
    ) -> None:
        check_count("tokens", tokens, least=1)
        check_count("context", context, least=0)
        check_positive("doubt", doubt)
        _check_tokens("text", text, tokens)
        self.tokens, self.context, self.doubt = tokens, context, doubt
        self.tables: list[_Table] = []
        # Contexts of each length are numbered, so that the next longer one is a number and a token.
        names = np.zeros(len(text), dtype=np.int64)  # of the context that ends before each token
        seen = text.cpu().numpy()
        for length in range(context + 1):
            if length:
                # What stands `length` places back; the first contexts are cut off with the text.
                names, known = _numbered(names[1:] * tokens + seen[: len(names) - 1])
            else:
                known = np.zeros(1, dtype=np.int64)
            if not len(names):
                break  # no context is that long
            self.tables.append(_Table(known, names * tokens + seen[length:], tokens))
        self.base = self._mixed(np.full(tokens, 1 / tokens), self.tables[:1])

    def __call__(self, text: Int[Tensor, " T"], last: int | None = None) -> Float[Tensor, "last V"]:
        """Log-probabilities of the next token after each of the last tokens of a text.

        Args:
            text: Tokens, (T,).
            last: For how many places at the end, 1 to T; for all if None.

        Returns:
            Log-probabilities, (last, V), in float64.

        Raises:
            TypeError: If ``last`` is not an integer.
            ValueError: If it is not from 1 to T, or a token is outside 0 to V - 1.
        """
        last = len(text) if last is None else last
        check_count("last", last, least=1)
        if last > len(text):
            raise ValueError(f"last must be at most T = {len(text)}, got {last}")
        _check_tokens("text", text, self.tokens)
        numbers = text[-(last - 1 + max(1, self.context)) :].tolist()
        ends = range(len(numbers) - last + 1, len(numbers) + 1)
        rows = [self._after(numbers[max(0, end - self.context) : end]) for end in ends]
        return torch.from_numpy(np.log(rows)).to(text.device)

    def step(
        self, tokens: Int[Tensor, " B"], state: Int[Tensor, "B T"] | None = None
    ) -> tuple[Float[Tensor, "B V"], Int[Tensor, "B T1"]]:
        """Log-probabilities after one more token, as :mod:`attention_lib.decoding` calls it.

        Args:
            tokens: The last token of each row, (B,).
            state: The tokens before it, (B, T); None at the start.

        Returns:
            Log-probabilities, (B, V), and the tokens that the next step may look back at.
        """
        text = tokens[:, None] if state is None else torch.cat([state, tokens[:, None]], dim=1)
        text = text[:, -max(1, self.context) :]
        return torch.cat([self(row, last=1) for row in text]), text

    def _after(self, text: list[int]) -> np.ndarray:
        """Probabilities after a text."""
        return self._mixed(self.base, self.tables[1:], text)

    def _mixed(
        self, start: np.ndarray, tables: "list[_Table]", text: list[int] | None = None
    ) -> np.ndarray:
        """Correct a distribution by one table after the other, as long as the context is known."""
        chance, name = start.copy(), 0
        for length, table in enumerate(tables, start=1):
            if text is not None:
                if length > len(text):
                    break
                found = table.find(name * self.tokens + text[-length])
                if found is None:
                    break  # a longer context has not been seen either
                name = found
            following, counts = table.row(name)
            doubt = self.doubt * len(counts)
            total = counts.sum() + doubt
            chance *= doubt / total
            chance[following] += counts / total
        return chance


class _Table:
    """What followed each context of one length, and how often."""

    def __init__(self, known: np.ndarray, pairs: np.ndarray, tokens: int) -> None:
        self.known = known  # sorted: a shorter context's name times V plus the token before it
        pairs, self.counts = np.unique(pairs, return_counts=True)
        names, self.following = np.divmod(pairs, tokens)
        self.starts = np.searchsorted(names, np.arange(len(known) + 1))

    def find(self, key: int) -> int | None:
        """The name of a context; None if it was not seen."""
        place = int(np.searchsorted(self.known, key))
        return place if place < len(self.known) and self.known[place] == key else None

    def row(self, name: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that followed a context, and how often each did."""
        where = slice(self.starts[name], self.starts[name + 1])
        return self.following[where], self.counts[where]


def _numbered(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of each key among the different ones, and these in order."""
    known, numbers = np.unique(keys, return_inverse=True)
    return numbers, known


def _check_tokens(name: str, text: Tensor, tokens: int) -> None:
    if not isinstance(text, Tensor) or text.is_floating_point():
        found = text.dtype if isinstance(text, Tensor) else type(text).__name__
        raise TypeError(f"{name} must be a tensor of integers, got {found}")
    if text.ndim != 1 or not len(text):
        raise ValueError(f"{name} must have shape (T,) with T at least 1, got {shape(text)}")
    if text.min() < 0 or text.max() >= tokens:
        outside = [number for number in text.unique().tolist() if not 0 <= number < tokens]
        raise ValueError(
            f"{name} must hold tokens from 0 to V - 1 = {tokens - 1}, got {outside[0]}"
        )
