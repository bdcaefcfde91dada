"""Text as characters: an alphabet, windows of a text, and the loss on held-out text. Chapter 11."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attention_lib._checks import check_count
from attention_lib.losses import cross_entropy
from attention_lib.models.optimizers import Together as Together  # chapters 12, 13 look here
from attention_lib.training import in_mode

LENGTH = 64  # characters that the models of chapter 11 see at once


@dataclass(frozen=True)
class Alphabet:
    """The characters of a text, numbered in the order of their code points.

    Args:
        characters: Each character once.

    Raises:
        ValueError: If a character comes twice; from ``encode``, if a text has a character that is
            not in the alphabet.

    Source:
        Chapter 11.
    """

    characters: str

    def __post_init__(self) -> None:
        if len(set(self.characters)) < len(self.characters):
            raise ValueError(f"characters must be different, got {self.characters!r}")

    @classmethod
    def of(cls, text: str) -> "Alphabet":
        """The alphabet of a text."""
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Int[Tensor, " N"]:
        """Text to numbers."""
        numbers = {character: number for number, character in enumerate(self.characters)}
        foreign = sorted(set(text) - set(numbers))
        if foreign:
            raise ValueError(f"text must have characters of the alphabet only, got {foreign}")
        return torch.tensor([numbers[character] for character in text], dtype=torch.int64)

    def decode(self, numbers: Iterable[int]) -> str:
        """Numbers to text."""
        return "".join(self.characters[number] for number in numbers)


def batches(
    text: Int[Tensor, " N"], *, size: int = 12, length: int = LENGTH
) -> Callable[[torch.Generator], Int[Tensor, "B T1"]]:
    """Make a function that draws windows anywhere in a text.

    Args:
        text: Tokens, (N,).
        size: B, windows in a batch.
        length: T; a window has one token more, the last target.

    Returns:
        A function from a generator to windows, (B, T + 1), as :func:`attention_lib.training.train`
        wants it.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If the text is no longer than ``length`` or a number below 1.

    Source:
        Chapter 11.
    """
    _check_text(text, length)
    check_count("size", size, least=1)
    windows = text.unfold(0, length + 1, 1)  # (N - T, T + 1), a view

    def draw(generator: torch.Generator) -> Tensor:
        return windows[torch.randint(len(windows), (size,), generator=generator)]

    return draw


def next_token_loss(model: nn.Module, window: Int[Tensor, "B T1"]) -> Float[Tensor, ""]:
    r"""Mean loss at predicting each token of some windows from those before it in the window.

    .. math:: \ell = -\frac{1}{BT} \sum_{b,t} \ln p(y_{b,t+1} \mid y_{b,1}, \dots, y_{b,t})

    Args:
        model: From tokens (B, T) to logits (B, T, V).
        window: Tokens, (B, T + 1).

    Returns:
        One number, in nats.

    Source:
        Radford et al. (2018), equation 1. Chapter 11.
    """
    return cross_entropy(model(window[:, :-1]), window[:, 1:])


def held_out_loss(model: nn.Module, text: Int[Tensor, " N"], *, length: int = LENGTH) -> float:
    """Mean loss in nats at all positions of windows that stand side by side.

    The windows do not overlap, and all their positions count, the first ones with hardly any
    context too. What fills no window at the end is left out.

    Args:
        model: From tokens (B, T) to logits (B, T, V).
        text: Tokens, (N,).
        length: T.

    Returns:
        The loss.

    Raises:
        TypeError: If ``length`` is not an integer.
        ValueError: If the text is no longer than ``length``.

    Source:
        Chapter 11.
    """
    _check_text(text, length)
    windows = text.unfold(0, length + 1, length)  # (M, T + 1); the last target starts the next
    total = 0.0
    with torch.no_grad(), in_mode(model, training=False):
        for some in windows.split(128):
            total += next_token_loss(model, some).item() * len(some)
    return total / len(windows)


def _check_text(text: Tensor, length: int) -> None:
    check_count("length", length, least=1)
    if len(text) <= length:
        raise ValueError(f"text must have more than length = {length} tokens, got {len(text)}")
