"""The Transformer of 2017: an encoder, a decoder that attends to it. Chapter 10.

:class:`Transformer` embeds both languages and stacks the blocks of chapter 09. :func:`original`
fills it with post-norm blocks as published, :func:`pre_norm` with pre-norm blocks and a norm at the
end of each stack.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attention_lib.blocks import DecoderBlock, EncoderBlock, FeedForward, PostNorm, PreNorm
from attention_lib.heads import KVCache, MultiHeadAttention
from attention_lib.masks import causal, padding
from attention_lib.models._config import StackConfig
from attention_lib.models._encoder_decoder import EncoderDecoder, State
from attention_lib.positions import Sinusoidal


@dataclass(frozen=True)
class TransformerConfig(StackConfig):
    """Sizes of a :class:`Transformer`.

    Args:
        source_tokens: Size of the source vocabulary.
        target_tokens: Size of the target vocabulary.
        width: D, an even number.
        layers: Number of blocks in the encoder, and again in the decoder.
        heads: H, a divisor of the width.
        hidden: Hidden width of the feed-forward networks; four times the width if None.
        dropout: Share of embeddings, attention weights, hidden features and sublayer outputs that
            training drops.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is not positive, the width odd or not divided by the heads, or the
            dropout outside [0, 1).

    Source:
        Vaswani et al. (2017), table 3. Chapter 10.
    """

    source_tokens: int
    target_tokens: int
    width: int
    layers: int
    heads: int
    hidden: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self.check("source_tokens", "target_tokens", "layers")
        if self.width % 2:
            raise ValueError(f"width must be even, for sines and cosines, got {self.width}")


class Embedding(nn.Module):
    r"""Tokens to vectors: a table, times the root of the width, plus sines and cosines.

    .. math:: x_t = \sqrt{D}\, E_{y_t} + P_t

    The factor lets the table be small, as an output layer should be, and its vectors as large as
    the sines.

    Args:
        tokens: Number of rows of the table.
        width: D.
        dropout: Share of the sum that training drops.

    Source:
        Vaswani et al. (2017), sections 3.4 and 3.5. Chapter 10.
    """

    def __init__(self, tokens: int, width: int, dropout: float) -> None:
        super().__init__()
        self.table = nn.Embedding(tokens, width)
        nn.init.normal_(self.table.weight, std=width**-0.5)
        self.positions = Sinusoidal(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Int[Tensor, "B T"], offset: int = 0) -> Float[Tensor, "B T D"]:
        """Embed tokens that stand at the positions ``offset`` and after."""
        vectors = self.table(tokens) * math.sqrt(self.table.embedding_dim)  # (B, T, D)
        embedded: Tensor = self.dropout(self.positions(vectors, offset))
        return embedded


class Transformer(EncoderDecoder):
    r"""Encoder and decoder; the logits are dot products with the target embeddings.

    .. math:: m = \mathrm{encoder}(x), \qquad
              \mathrm{logits} = \mathrm{decoder}(y, m)\, E^\top + b

    Args:
        config: Sizes.
        encoder_block: Makes a block of the encoder; called once for each layer.
        decoder_block: Makes a block of the decoder.
        end: Makes what stands at the end of each stack: a norm after pre-norm blocks.

    Source:
        Vaswani et al. (2017), section 3 and figure 1; section 3.4 for the tied output layer.
        Chapter 10.
    """

    def __init__(
        self,
        config: TransformerConfig,
        encoder_block: Callable[[], EncoderBlock],
        decoder_block: Callable[[], DecoderBlock],
        end: Callable[[], nn.Module] = nn.Identity,
    ) -> None:
        super().__init__()
        self.config = config
        self.source = Embedding(config.source_tokens, config.width, config.dropout)
        self.target = Embedding(config.target_tokens, config.width, config.dropout)
        self.encoder = nn.ModuleList(encoder_block() for _ in range(config.layers))
        self.decoder = nn.ModuleList(decoder_block() for _ in range(config.layers))
        self.encoder_end, self.decoder_end = end(), end()
        self.bias = nn.Parameter(torch.zeros(config.target_tokens))

    def encode(self, source: Int[Tensor, "B Ts"], lengths: Int[Tensor, " B"]) -> State:
        """Read the source; padding after ``lengths`` has no effect on any number that is used.

        Args:
            source: Source tokens, (B, Ts), padded at the end with any valid token.
            lengths: Number of real tokens of each row.

        Returns:
            ``memory`` (B, Ts, D), ``mask`` (B, 1, Ts), and ``caches``, one for each decoder block.
        """
        mask = padding(lengths).dense(1, source.shape[1], source.device)  # (B, 1, Ts)
        x = self.source(source)  # (B, Ts, D)
        for block in self.encoder:
            x = block(x, mask=mask)
        caches = [KVCache() for _ in self.decoder]
        return {"memory": self.encoder_end(x), "mask": mask, "caches": caches}

    def decode(
        self, target: Int[Tensor, "B Tt"], state: State
    ) -> tuple[Float[Tensor, "B Tt V"], State]:
        """Write on from a state, one step for each token given.

        Args:
            target: The tokens after which to predict, (B, Tt).
            state: From :meth:`encode` or from an earlier call; its caches grow.

        Returns:
            Logits, (B, Tt, V), and the state after the last token.
        """
        caches = state["caches"]
        x = self.target(target, len(caches[0]))  # (B, Tt, D)
        for block, cache in zip(self.decoder, caches, strict=True):
            x = block(x, state["memory"], mask=causal(), memory_mask=state["mask"], cache=cache)
        logits = self.decoder_end(x) @ self.target.table.weight.T + self.bias
        return logits, state

    def attention_weights(
        self,
        source: Int[Tensor, "B Ts"],
        lengths: Int[Tensor, " B"],
        target: Int[Tensor, "B Tt"],
    ) -> Float[Tensor, "B Tt Ts"]:
        """Where each target position looks in the source: the mean over all blocks and heads.

        For single heads, and for the weights inside encoder and decoder, see
        :func:`~attention_lib.interpret.capture_weights`.

        Args:
            source: Source tokens, (B, Ts).
            lengths: Number of real source tokens of each row.
            target: As in :meth:`forward`; row i belongs to the prediction after ``target[i]``.

        Returns:
            Weights, (B, Tt, Ts).
        """
        found: list[Tensor] = []

        def note(attention: nn.Module, inputs: Any, options: Any) -> None:
            assert isinstance(attention, MultiHeadAttention)
            found.append(attention.attention_weights(*inputs, **options))  # (B, H, Tt, Ts)

        crossings = [cast(DecoderBlock, block).cross_attention for block in self.decoder]
        hooks = [part.register_forward_pre_hook(note, with_kwargs=True) for part in crossings]
        try:
            self(source, lengths, target)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(found).mean(dim=(0, 2))


def original(config: TransformerConfig) -> Transformer:
    """Make a :class:`Transformer` as published: post-norm blocks with ReLU.

    Section 5.4 drops only sums of embeddings and sublayer outputs; here attention weights and
    hidden features are dropped too, as in ``nn.Transformer``. The paper shares one table between
    both languages; here each has its own.

    Args:
        config: Sizes.

    Returns:
        The model, untrained.

    Source:
        Vaswani et al. (2017), section 3. Chapter 10.
    """
    return _stacks(config, PostNorm, nn.Identity)


def pre_norm(config: TransformerConfig) -> Transformer:
    """Make a :class:`Transformer` of pre-norm blocks, with a norm at the end of each stack.

    Args:
        config: Sizes.

    Returns:
        The model, untrained.

    Source:
        Xiong et al. (2020), figure 1b. Chapter 10.
    """
    return _stacks(config, PreNorm, partial(nn.LayerNorm, config.width))


def _stacks(
    config: TransformerConfig, kind: Callable[..., nn.Module], end: Callable[[], nn.Module]
) -> Transformer:
    width, dropout = config.width, config.dropout
    attention = partial(MultiHeadAttention, width, config.heads, dropout=dropout)
    feed_forward = partial(FeedForward, width, config.hidden_width, dropout=dropout)
    residual = partial(kind, width, dropout=dropout)
    model = Transformer(
        config,
        lambda: EncoderBlock(attention(), feed_forward(), residual),
        lambda: DecoderBlock(attention(), attention(), feed_forward(), residual),
        end,
    )
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "table" not in name:
            nn.init.xavier_uniform_(parameter)
        elif name.endswith("_proj.bias"):
            nn.init.zeros_(parameter)
    return model
