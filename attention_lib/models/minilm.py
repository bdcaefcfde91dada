"""A published encoder in our own class: all-MiniLM-L6-v2, which turns texts into vectors.

It has BERT's shape: six layers, twelve heads, width 384, 22.6 million parameters. Chapter 12.
"""

import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from attention_lib._checks import check_count
from attention_lib.data import asset_path
from attention_lib.models._published import check_all_used
from attention_lib.models.bert import Bert, BertConfig, mean_state

LENGTH = 256  # the most tokens of a text, both marks included, that its authors recommend
# Published name of a part -> ours.
_EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "embedding.weight",
    "embeddings.position_embeddings.weight": "positions.table",
    "embeddings.token_type_embeddings.weight": "segments.weight",
    "embeddings.LayerNorm.weight": "norm.weight",
    "embeddings.LayerNorm.bias": "norm.bias",
}
_BLOCK = {
    "attention.self.query": "attention.query_proj",
    "attention.self.key": "attention.key_proj",
    "attention.self.value": "attention.value_proj",
    "attention.output.dense": "attention.output_proj",
    "attention.output.LayerNorm": "attention_residual.norm",
    "intermediate.dense": "feed_forward.up_proj",
    "output.dense": "feed_forward.down_proj",
    "output.LayerNorm": "feed_forward_residual.norm",
}
# What the file holds and our class does not: the numbers 0, 1, 2, ..., and a layer on top of the
# first state; the authors' own vectors do not pass through it.
UNUSED = ("embeddings.position_ids", "pooler.dense.bias", "pooler.dense.weight")


@dataclass(frozen=True)
class MiniLM:
    """An encoder with its tokenizer.

    Args:
        bert: The encoder.
        tokenizer: Text to pieces of words, between ``[CLS]`` and ``[SEP]``.

    Source:
        Wang et al. (2020), section 3, for the way the model was made small, with UniLM v2 as the
        teacher (model card of MiniLM-L12-H384-uncased); Reimers and Gurevych (2019), section 3,
        for the mean as the vector of a text. Chapter 12.
    """

    bert: Bert
    tokenizer: Tokenizer

    def encode(
        self, texts: Sequence[str], *, length: int = LENGTH
    ) -> tuple[Int[Tensor, "B T"], Int[Tensor, " B"]]:
        """Texts as one tensor of tokens, padded at the end.

        Args:
            texts: At least one text.
            length: The most tokens of a text; what is longer loses its end.

        Returns:
            Tokens, (B, T), and the number of real ones in each row, (B,).

        Raises:
            TypeError: If ``texts`` is one string, or ``length`` not an integer.
            ValueError: If there is no text, or ``length`` is below 3: two marks and one piece.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a list of strings, got one string")
        if not texts:
            raise ValueError("texts must hold at least one text, got none")
        check_count("length", length, least=3)
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        rows = [row if len(row) <= length else [*row[: length - 1], row[-1]] for row in rows]
        padded = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        return padded, torch.tensor([len(row) for row in rows])

    def embed(
        self, texts: Sequence[str], *, length: int = LENGTH, batch: int = 32
    ) -> Float[Tensor, "N D"]:
        r"""One vector of length 1 for each text; their dot products are cosines.

        .. math:: e = \bar h \,/\, \lVert \bar h \rVert, \qquad
                  \bar h = \frac{1}{\ell} \sum_{t < \ell} h_t

        Args:
            texts: At least one text.
            length: The most tokens of a text.
            batch: How many texts go through the model together; no result depends on it.

        Returns:
            Vectors, (N, D), in the order of the texts, without gradient.

        Raises:
            TypeError: If ``batch`` is not an integer; or from :meth:`encode`.
            ValueError: If ``batch`` is below 1; or from :meth:`encode`.
        """
        check_count("batch", batch, least=1)
        tokens, lengths = self.encode(texts, length=length)
        vectors = torch.empty(len(tokens), self.bert.config.width)
        with torch.no_grad():
            # Texts of one length together, so that little is computed for padding.
            for rows in lengths.argsort(stable=True).split(batch):
                longest = int(lengths[rows].max())
                states = self.bert(tokens[rows, :longest], lengths[rows])  # (B, T, D)
                vectors[rows] = normalize(mean_state(states, lengths[rows]), dim=-1)
        return vectors


def load(path: Path | None = None) -> MiniLM:
    """Load the published model.

    Args:
        path: A tar archive with ``config.json``, ``tokenizer.json`` and ``model.safetensors``; the
            book's asset ``minilm`` if None.

    Returns:
        The model, in evaluation mode.

    Raises:
        AssetError: If the file is not in the cache and cannot be fetched.
        ValueError: If the archive misses a file or the weights are not those of such a model.

    Source:
        Published by Reimers and others as sentence-transformers/all-MiniLM-L6-v2. Chapter 12.
    """
    found: dict[str, bytes] = {}
    with tarfile.open(asset_path("minilm") if path is None else path) as archive:
        for entry in archive:
            file = archive.extractfile(entry)
            if file is not None:
                found[Path(entry.name).name] = file.read()
    wanted = {"config.json", "tokenizer.json", "model.safetensors"}
    if missing := wanted - set(found):
        raise ValueError(f"path must be an archive with {sorted(wanted)}, misses {sorted(missing)}")
    bert = Bert(_config(json.loads(found["config.json"])))
    tensors = safetensors.torch.load(found.pop("model.safetensors"))
    bert.load_state_dict(state_of(tensors, bert.config.layers))
    tokenizer = Tokenizer.from_str(found["tokenizer.json"].decode())
    tokenizer.no_padding()  # `encode` pads and cuts, and says so
    tokenizer.no_truncation()
    return MiniLM(bert.eval(), tokenizer)


def state_of(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Published weights under the names of :class:`~attention_lib.models.bert.Bert`.

    Args:
        tensors: The published tensors by name.
        layers: Number of blocks.

    Returns:
        A state for ``load_state_dict``.

    Raises:
        ValueError: If a tensor is missing, or one is left over that is not in ``UNUSED``.

    Source:
        Names as in Hugging Face's ``BertModel``. Chapter 12.
    """
    names = dict(_EMBEDDINGS)
    for layer in range(layers):
        for theirs, ours in _BLOCK.items():
            for kind in ("weight", "bias"):
                names[f"encoder.layer.{layer}.{theirs}.{kind}"] = f"blocks.{layer}.{ours}.{kind}"
    check_all_used(names, tensors, unused=UNUSED)
    return {ours: tensors[theirs] for theirs, ours in names.items()}


def _config(published: dict[str, Any]) -> BertConfig:
    """The sizes of a published configuration, with its training's dropout."""
    expected = {"hidden_act": "gelu", "position_embedding_type": "absolute"}
    for name, value in expected.items():
        if published[name] != value:
            raise ValueError(f"{name} must be {value!r}, got {published[name]!r}")
    return BertConfig(
        tokens=published["vocab_size"],
        length=published["max_position_embeddings"],
        width=published["hidden_size"],
        layers=published["num_hidden_layers"],
        heads=published["num_attention_heads"],
        hidden=published["intermediate_size"],
        segments=published["type_vocab_size"],
        dropout=published["hidden_dropout_prob"],
        eps=published["layer_norm_eps"],
    )
