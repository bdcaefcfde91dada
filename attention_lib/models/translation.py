"""A translator: a sequence-to-sequence model with its two vocabularies. Chapter 06."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
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
from attention_lib.text import END, START, Subwords, pad
from attention_lib.training import in_mode

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
CONTEXTS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda width: LastStates(),
    "additive": Additive,
    "multiplicative": Multiplicative,
}


def build(context: str, config: Seq2SeqConfig, seed: int) -> Seq2Seq:
    """Make an untrained model with one of the three contexts.

    Args:
        context: ``none``, ``additive`` or ``multiplicative``.
        config: Sizes.
        seed: Sets the first weights; the global state of torch's random numbers is left alone.

    Returns:
        The model.

    Raises:
        ValueError: If there is no such context.

    Source:
        Chapter 06.
    """
    if context not in CONTEXTS:
        raise ValueError(f"context must be one of {list(CONTEXTS)}, got {context!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Seq2Seq(config, CONTEXTS[context](config.width))


@dataclass(frozen=True)
class Translator:
    """A model and the vocabularies of its two languages.

    Args:
        context: Name of the model's context.
        config: Sizes of the model.
        model: The model.
        source: Vocabulary of the language it reads.
        target: Vocabulary of the language it writes.

    Source:
        Chapter 06.
    """

    context: str
    config: Seq2SeqConfig
    model: Seq2Seq
    source: Subwords
    target: Subwords

    def translate(
        self, sentences: Sequence[str], *, width: int = 1, max_length: int = 60
    ) -> list[str]:
        """Translate sentences, a hundred at a time.

        Args:
            sentences: Normalised sentences.
            width: Beam width; 1 is greedy: the most likely piece at each step.
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
                    rows, _ = beam(self.model.step, state, start, END, max_length, width=width)
            translations += [self.target.decode(row) for row in rows.tolist()]
        return translations

    def alignment(
        self, source: str, target: str
    ) -> tuple[Float[Tensor, "Tt Ts"], list[str], list[str]]:
        """Attention weights for a given sentence and a given translation.

        Args:
            source: A sentence.
            target: Its translation, or any other.

        Returns:
            Weights, (Tt, Ts); and the pieces of target and source, each with the end piece.

        Raises:
            TypeError: If the context of the model is not attention.
        """
        numbers = [START, *self.target.encode(target)]  # row i is the prediction of what follows
        tokens, lengths = pad([[*self.source.encode(source), END]])
        with torch.no_grad(), in_mode(self.model, training=False):
            weights = self.model.attention_weights(tokens, lengths, torch.tensor([numbers]))[0]
        pieces = [*self.target.pieces(target), "<end>"], [*self.source.pieces(source), "<end>"]
        return weights, *pieces

    def save(self, folder: Path) -> None:
        """Write model and vocabularies to a folder; the matrices in half precision.

        Args:
            folder: Where to; the vocabularies are shared by all models in it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: x.half().contiguous() for name, x in self.model.state_dict().items()}
        metadata = {"config": json.dumps(asdict(self.config))}
        save_file(tensors, folder / f"seq2seq_{self.context}.safetensors", metadata=metadata)
        self.source.save(folder / "seq2seq_english.json")
        self.target.save(folder / "seq2seq_french.json")


def load(context: str, folder: Path = WEIGHTS) -> Translator:
    """Load a trained English-French translator; the package holds one for each context.

    Args:
        context: ``none``, ``additive`` or ``multiplicative``.
        folder: What :meth:`Translator.save` wrote.

    Returns:
        The translator, its model in evaluation mode.

    Raises:
        ValueError: If there is no such context.

    Source:
        Trained by ``tools/train_translation.py``; log and checksums beside the weights. Chapter 06.
    """
    path = folder / f"seq2seq_{context}.safetensors"
    if context not in CONTEXTS:
        raise ValueError(f"context must be one of {list(CONTEXTS)}, got {context!r}")
    with safe_open(path, framework="pt") as file:
        config = Seq2SeqConfig(**json.loads(file.metadata()["config"]))
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (no dict)
    model = build(context, config, seed=0)
    model.load_state_dict(tensors)
    source = Subwords.load(folder / "seq2seq_english.json")
    target = Subwords.load(folder / "seq2seq_french.json")
    return Translator(context, config, model.eval(), source, target)
