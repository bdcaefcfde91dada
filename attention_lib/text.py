"""Text as numbers: subwords learned from a training text, and padded batches. Chapter 06."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

# The first four numbers of every vocabulary.
PAD, START, END, UNKNOWN = range(4)
SPECIAL = ["<pad>", "<start>", "<end>", "<unknown>"]
WORD_START = "▁"  # the sign in front of a piece that begins a word


class Subwords:
    """Byte-pair encoding: frequent words are one piece, rare ones several.

    It starts from single characters and again and again merges the most frequent pair of
    neighbours within a word into a new piece. Only the texts it is trained on decide the pieces, so
    train it on the training split.

    Args:
        tokenizer: A trained tokenizer; use :meth:`train` or :meth:`load` to get one.

    Example:
        >>> subwords = Subwords.train(["low low lower lower"], size=20)
        >>> len(subwords.encode("low")), subwords.decode(subwords.encode("lower low"))
        (1, 'lower low')

    Source:
        Sennrich, Haddow and Birch (2016), section 3.2. Chapter 06.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> "Subwords":
        """Learn a vocabulary.

        Args:
            texts: Training texts.
            size: Number of pieces at most, the four special ones and all characters included.

        Returns:
            The trained vocabulary.

        Raises:
            ValueError: If the characters alone do not fit into ``size``.
        """
        texts = list(texts)
        alphabet = {c for text in texts for c in text.replace(" ", WORD_START)} | {WORD_START}
        if size < len(SPECIAL) + len(alphabet):
            raise ValueError(
                f"size must hold {len(SPECIAL)} special pieces and {len(alphabet)} characters, "
                f"got {size}"
            )
        tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[UNKNOWN]))
        # Words keep a sign for the space before them; marks stand alone, so that "name." and "name"
        # share a piece. Decoding gives the text back, but for characters never seen in training.
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Metaspace(WORD_START), pre_tokenizers.Punctuation("isolated")]
        )
        tokenizer.decoder = decoders.Metaspace(WORD_START)
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=SPECIAL, show_progress=False, min_frequency=2
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, path: Path) -> "Subwords":
        """Read a vocabulary that :meth:`save` wrote.

        Args:
            path: A JSON file.

        Returns:
            The vocabulary.
        """
        return cls(Tokenizer.from_file(str(path)))

    def save(self, path: Path) -> None:
        """Write the vocabulary to a JSON file.

        Args:
            path: Where to.
        """
        path.write_text(self._tokenizer.to_str(pretty=False), encoding="utf-8")

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Text to numbers, without start and end.

        Args:
            text: Text with single spaces.

        Returns:
            One number for each piece; ``UNKNOWN`` for a character that was not in the training
            texts.
        """
        return list(self._tokenizer.encode(text).ids)

    def decode(self, numbers: Sequence[int]) -> str:
        """Numbers to text; special ones are left out, and nothing after the first ``END`` counts.

        Args:
            numbers: Numbers of pieces.

        Returns:
            The text.
        """
        numbers = list(numbers)
        if END in numbers:
            numbers = numbers[: numbers.index(END)]
        return str(self._tokenizer.decode([n for n in numbers if n >= len(SPECIAL)]))

    def pieces(self, text: str) -> list[str]:
        """The pieces as strings, to look at; the first of each word begins with a sign.

        Args:
            text: Text with single spaces.

        Returns:
            The pieces.
        """
        return list(self._tokenizer.encode(text).tokens)


def pad(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "B T"], Int[Tensor, " B"]]:
    """Put rows of different length into one tensor, filled up with ``PAD`` at the end.

    Args:
        rows: At least one row of numbers.

    Returns:
        The tensor (B, T), T being the length of the longest row, and the lengths (B,).

    Raises:
        ValueError: If there is no row.

    Example:
        >>> tensor, lengths = pad([[5, 6, 7], [8]])
        >>> tensor.tolist(), lengths.tolist()
        ([[5, 6, 7], [8, 0, 0]], [3, 1])

    Source:
        Chapter 06.
    """
    if not rows:
        raise ValueError("rows must hold at least one row, got none")
    lengths = torch.tensor([len(row) for row in rows])
    tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=PAD), lengths
