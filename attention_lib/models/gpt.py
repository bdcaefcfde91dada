"""Decoder-only language models: one stack, whose layouts are parts passed in. Chapter 11.

:class:`GPT` embeds tokens, sends them through causal blocks, and reads off the logits of the next
token. :func:`gpt2` fills it with learned positions, LayerNorm and GELU; :func:`llama` with rotary
positions inside attention, RMSNorm, grouped key and value heads and a gated feed-forward network.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, rms_norm

from attention_lib._checks import check_count, check_divides
from attention_lib.blocks import EncoderBlock, FeedForward, GatedFeedForward, PreNorm
from attention_lib.heads import KVCache, MultiHeadAttention
from attention_lib.masks import causal
from attention_lib.models._config import StackConfig
from attention_lib.positions import Learned, Position, Rotary


@dataclass(frozen=True)
class GPTConfig(StackConfig):
    """Sizes of a :class:`GPT`.

    Args:
        tokens: V, size of the vocabulary.
        length: The most positions it is made for; learned positions end there.
        width: D.
        layers: Number of blocks.
        heads: H, a divisor of the width.
        kv_heads: Number of key and value heads, a divisor of ``heads``; ``heads`` if None.
        hidden: Hidden width of the feed-forward networks; four times the width if None.
        dropout: Share of embeddings, weights and sublayer outputs that training drops.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is not positive, a number of heads does not divide, or the dropout is
            outside [0, 1).

    Source:
        Radford et al. (2019), section 2.3. Chapter 11.
    """

    tokens: int
    length: int
    width: int
    layers: int
    heads: int
    kv_heads: int | None = None
    hidden: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self.check("tokens", "length", "layers")
        if self.kv_heads is not None:
            check_divides("kv_heads", self.kv_heads, "heads", self.heads)


class GPT(nn.Module):
    r"""Causal blocks between an embedding and its transpose.

    .. math:: h_0 = e(y) + p, \qquad h_l = \mathrm{block}_l(h_{l-1}), \qquad
              \mathrm{logits} = \mathrm{norm}(h_L)\, E^\top

    The output layer is the table of embeddings :math:`E` itself.

    Args:
        config: Sizes.
        block: Makes a block; called once for each layer.
        norm: The norm after the last block.
        added: Adds positions to the embeddings; None where they act inside attention.

    Raises:
        ValueError: From ``forward``, if there is not one cache for each block.

    Source:
        Radford et al. (2018), equation 2; Radford et al. (2019), section 2.3, for the norms.
        Chapter 11.
    """

    def __init__(
        self,
        config: GPTConfig,
        block: Callable[[], EncoderBlock],
        norm: nn.Module,
        *,
        added: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.tokens, config.width)
        # It is the output layer too, so its entries are small and the first logits nearly equal.
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.added = added
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(block() for _ in range(config.layers))
        self.norm = norm

    def empty_caches(self) -> list[KVCache]:
        """One empty cache for each block, for :meth:`forward`, :meth:`states` and :meth:`step`."""
        return [KVCache() for _ in self.blocks]

    def states(
        self, tokens: Int[Tensor, "... T"], *, caches: Sequence[KVCache] | None = None
    ) -> Float[Tensor, "... T D"]:
        """The normalised output of the last block at each position.

        Args:
            tokens: Tokens, (..., T); with caches only those that are not in them yet.
            caches: From :meth:`empty_caches`; they grow by T.

        Returns:
            States, (..., T, D).
        """
        if caches is not None and len(caches) != len(self.blocks):
            raise ValueError(
                f"caches must hold one cache for each of {len(self.blocks)} blocks, "
                f"got {len(caches)}"
            )
        x = self.embedding(tokens)  # (..., T, D)
        if self.added is not None:
            x = self.added(x, 0 if caches is None else len(caches[0]))
        x = self.dropout(x)
        each: Sequence[KVCache | None] = [None] * len(self.blocks) if caches is None else caches
        for block, cache in zip(self.blocks, each, strict=True):
            x = block(x, mask=causal(), cache=cache)
        normalised: Tensor = self.norm(x)
        return normalised

    def forward(
        self, tokens: Int[Tensor, "... T"], *, caches: Sequence[KVCache] | None = None
    ) -> Float[Tensor, "... T V"]:
        """Logits of the next token after each position; arguments as in :meth:`states`."""
        return self.states(tokens, caches=caches) @ self.embedding.weight.T

    def step(
        self, tokens: Int[Tensor, " B"], caches: list[KVCache]
    ) -> tuple[Float[Tensor, "B V"], list[KVCache]]:
        """Logits after one more token of each row, as :mod:`attention_lib.decoding` calls it."""
        return self(tokens[:, None], caches=caches)[:, 0], caches


def gpt2(config: GPTConfig) -> GPT:
    """Make a :class:`GPT` in the layout of GPT-2.

    Learned positions, LayerNorm in front of each sublayer and at the end, GELU in its tanh form,
    biases.

    Args:
        config: Sizes.

    Returns:
        The model, untrained.

    Source:
        Radford et al. (2019), section 2.3. Chapter 11.
    """

    def block() -> EncoderBlock:
        return EncoderBlock(
            MultiHeadAttention(
                config.width, config.heads, kv_heads=config.kv_heads, dropout=config.dropout
            ),
            FeedForward(
                config.width, config.hidden_width, activation=partial(gelu, approximate="tanh")
            ),
            partial(PreNorm, config.width, dropout=config.dropout),
        )

    model = GPT(
        config, block, nn.LayerNorm(config.width), added=Learned(config.length, config.width)
    )
    small_start(model)
    return model


def llama(config: GPTConfig, *, base: float = 10000.0, eps: float = 1e-5) -> GPT:
    """Make a :class:`GPT` in the layout of Llama.

    Rotary positions, RMSNorm in front of each sublayer and at the end, grouped key and value heads,
    a gated feed-forward network with SiLU, no biases.

    Args:
        config: Sizes.
        base: Base of the rotary frequencies.
        eps: What RMSNorm adds to the mean square.

    Returns:
        The model, untrained.

    Source:
        Touvron et al. (2023), section 2.2. Chapter 11.
    """
    norm = partial(nn.RMSNorm, eps=eps)
    rotary = Rotary(config.width // config.heads, base=base)

    def block() -> EncoderBlock:
        return EncoderBlock(
            MultiHeadAttention(
                config.width,
                config.heads,
                kv_heads=config.kv_heads,
                bias=False,
                dropout=config.dropout,
                position=rotary,
            ),
            GatedFeedForward(config.width, config.hidden_width),
            partial(PreNorm, config.width, norm=norm, dropout=config.dropout),
        )

    model = GPT(config, block, norm(config.width))
    small_start(model)
    return model


class QueryKeyNorm(Position):
    r"""Normalise every query and key to mean square 1, then let a position act.

    .. math:: q \mapsto q \big/ \sqrt{\overline{q^2}}, \qquad
              k \mapsto k \big/ \sqrt{\overline{k^2}}

    A scaled score then lies between :math:`-\sqrt{D_h}` and :math:`\sqrt{D_h}`, however large the
    projections grow. It stands where a position stands because it acts on the same two tensors.

    Args:
        head_width: Dh.
        position: What acts after it.

    Raises:
        TypeError: If ``head_width`` is not an integer.
        ValueError: If ``head_width`` is less than 1.

    Source:
        Henry et al. (2020), section 3, with RMS in place of the Euclidean norm; Dehghani et al.
        (2023), section 2. Chapter 11.
    """

    def __init__(self, head_width: int, position: Position) -> None:
        super().__init__()
        check_count("head_width", head_width, least=1)
        self.head_width = (head_width,)
        self.position = position

    def rotate(
        self, query: Float[Tensor, "... Tq Dh"], key: Float[Tensor, "... Tk Dh"], offset: int = 0
    ) -> tuple[Float[Tensor, "... Tq Dh"], Float[Tensor, "... Tk Dh"]]:
        """Normalise, then do what the position does."""
        query, key = rms_norm(query, self.head_width), rms_norm(key, self.head_width)
        return self.position.rotate(query, key, offset)

    def bias(
        self, query_length: int, key_length: int, offset: int = 0
    ) -> Float[Tensor, "H Tq Tk"] | None:
        """The bias of the position."""
        return self.position.bias(query_length, key_length, offset)


def small_start(model: GPT) -> None:
    r"""Start all matrices at a deviation of 0.02, those that write to the residual path lower.

    .. math:: w \sim \mathcal{N}(0,\, 0.02^2), \qquad
              w_{\mathrm{out}} \sim \mathcal{N}\big(0,\, 0.02^2 / (2L)\big)

    Each block adds two outputs to the path; dividing by the root of their number keeps its size
    independent of the depth at the start. Biases start at 0.

    Args:
        model: Changed in place.

    Source:
        Radford et al. (2018), section 4.1, for the 0.02; Radford et al. (2019), section 2.3, for
        the division. Chapter 11.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            writes = name.endswith(("output_proj.weight", "down_proj.weight"))
            deviation = 0.02 / math.sqrt(2 * len(model.blocks)) if writes else 0.02
            nn.init.normal_(parameter, std=deviation)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
