"""A translator: a model that reads and writes, with its two vocabularies. Chapters 06 and 10."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from attention_lib.decoding import beam, greedy
from attention_lib.models.seq2seq import (
    Additive,
    LastStates,
    Multiplicative,
    Seq2Seq,
    Seq2SeqConfig,
)
from attention_lib.models.transformer import Transformer, TransformerConfig, pre_norm
from attention_lib.text import END, START, Subwords, pad
from attention_lib.training import in_mode

Pieces = list[str]
WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
CONTEXTS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda width: LastStates(),
    "additive": Additive,
    "multiplicative": Multiplicative,
}


def _recurrent(context: Callable[[int], nn.Module], config: Seq2SeqConfig) -> Seq2Seq:
    return Seq2Seq(config, context(config.width))


# Name -> what holds the sizes of such a model, and what makes one from them.
FAMILIES: dict[str, tuple[type, Callable[[Any], nn.Module]]] = {
    **{name: (Seq2SeqConfig, partial(_recurrent, made)) for name, made in CONTEXTS.items()},
    "transformer": (TransformerConfig, pre_norm),
}


def build(name: str, config: Seq2SeqConfig | TransformerConfig, seed: int) -> Any:
    """Make an untrained model by its name.

    Args:
        name: ``none``, ``additive`` or ``multiplicative`` for a recurrent model with that context;
            ``transformer`` for a Transformer with pre-norm blocks.
        config: Sizes, a ``Seq2SeqConfig`` or a ``TransformerConfig``.
        seed: Sets the first weights; the global state of torch's random numbers is left alone.

    Returns:
        A ``Seq2Seq`` or a ``Transformer``, with ``encode``, ``step`` and
        ``attention_weights``.

    Raises:
        TypeError: If ``config`` is of the other kind.
        ValueError: If there is no such name.

    Source:
        Chapters 06 and 10.
    """
    kind, make = _family(name)
    if not isinstance(config, kind):
        raise TypeError(
            f"config must be a {kind.__name__} for {name!r}, got {type(config).__name__}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(config)


def _family(name: str) -> tuple[type, Callable[[Any], nn.Module]]:
    if name not in FAMILIES:
        raise ValueError(f"name must be one of {list(FAMILIES)}, got {name!r}")
    return FAMILIES[name]


@dataclass(frozen=True)
class Translator:
    """A model and the vocabularies of its two languages.

    Args:
        name: Name of the model's family, as for :func:`build`.
        config: Sizes of the model.
        model: The model.
        source: Vocabulary of the language it reads.
        target: Vocabulary of the language it writes.

    Source:
        Chapters 06 and 10.
    """

    name: str
    config: Seq2SeqConfig | TransformerConfig
    model: Seq2Seq | Transformer
    source: Subwords
    target: Subwords

    def translate(
        self,
        sentences: Sequence[str],
        *,
        width: int = 1,
        length_penalty: float = 0.6,
        max_length: int = 60,
    ) -> list[str]:
        """Translate sentences, a hundred at a time.

        Args:
            sentences: Normalised sentences.
            width: Beam width; 1 is greedy: the most likely piece at each step.
            length_penalty: As for :func:`attention_lib.decoding.beam`.
            max_length: The most pieces of a translation.

        Returns:
            The translations.
        """
        translations: list[str] = []
        for first in range(0, len(sentences), 100):
            some = sentences[first : first + 100]
            tokens, lengths = pad([[*self.source.encode(text), END] for text in some])
            with torch.no_grad(), in_mode(self.model, training=False):
                state = self.model.encode(tokens, lengths)
                start = torch.full((len(some),), START)
                if width == 1:
                    rows = greedy(self.model.step, state, start, END, max_length)
                else:
                    rows, _ = beam(
                        self.model.step, state, start, END, max_length,
                        width=width, length_penalty=length_penalty,
                    )  # fmt: skip
            translations += [self.target.decode(row) for row in rows.tolist()]
        return translations

    def example(
        self, source: str, target: str
    ) -> tuple[tuple[Int[Tensor, "1 Ts"], Int[Tensor, " 1"], Int[Tensor, "1 Tt"]], Pieces, Pieces]:
        """A sentence and its translation in the form in which the model takes them.

        Args:
            source: A sentence.
            target: Its translation, or any other.

        Returns:
            Source, its length, start token and target, which the model takes, and then the pieces
            of the target that are predicted and those of the source, each with the end piece.
        """
        numbers = [START, *self.target.encode(target)]  # row i is the prediction of what follows
        tokens, lengths = pad([[*self.source.encode(source), END]])
        pieces = [*self.target.pieces(target), "<end>"], [*self.source.pieces(source), "<end>"]
        return (tokens, lengths, torch.tensor([numbers])), *pieces

    def alignment(self, source: str, target: str) -> tuple[Float[Tensor, "Tt Ts"], Pieces, Pieces]:
        """Attention weights for a given sentence and a given translation.

        Args:
            source: A sentence.
            target: Its translation, or any other.

        Returns:
            Weights, (Tt, Ts); and the pieces of target and source, each with the end piece.

        Raises:
            TypeError: If the model has no attention.
        """
        inputs, rows, columns = self.example(source, target)
        with torch.no_grad(), in_mode(self.model, training=False):
            weights = self.model.attention_weights(*inputs)[0]
        return weights, rows, columns

    def save(self, folder: Path) -> None:
        """Write model and vocabularies to a folder; the matrices in half precision.

        Args:
            folder: Where to; the vocabularies are shared by all models in it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: x.half().contiguous() for name, x in self.model.state_dict().items()}
        metadata = {"config": json.dumps(asdict(self.config))}
        save_file(tensors, folder / f"seq2seq_{self.name}.safetensors", metadata=metadata)
        self.source.save(folder / "seq2seq_english.json")
        self.target.save(folder / "seq2seq_french.json")


def load(name: str, folder: Path = WEIGHTS) -> Translator:
    """Load a trained English-French translator; the package holds one of each name.

    Args:
        name: As for :func:`build`.
        folder: What :meth:`Translator.save` wrote.

    Returns:
        The translator, its model in evaluation mode.

    Raises:
        ValueError: If there is no such name.

    Source:
        Trained by ``tools/train_translation.py``; log and checksums beside the weights.
        Chapters 06 and 10.
    """
    kind, _ = _family(name)
    with safe_open(folder / f"seq2seq_{name}.safetensors", framework="pt") as file:
        config = kind(**json.loads(file.metadata()["config"]))
        tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (no dict)
    model = build(name, config, seed=0)
    model.load_state_dict(tensors)
    source = Subwords.load(folder / "seq2seq_english.json")
    target = Subwords.load(folder / "seq2seq_french.json")
    return Translator(name, config, model.eval(), source, target)
