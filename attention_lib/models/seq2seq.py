"""Sequence to sequence with recurrent networks: one decoder, the context passed in. Chapter 06.

The encoder reads the source in both directions. The decoder writes the target one token at a time,
and for each token asks for a context vector. ``LastStates`` answers with the same fixed-length
vector every time, ``Additive`` and ``Multiplicative`` with attention over all encoder states.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attention_lib._checks import check_count, check_fraction
from attention_lib.attention import attend_explicit, attention_weights
from attention_lib.masks import padding
from attention_lib.models._encoder_decoder import EncoderDecoder, State
from attention_lib.scores import additive, bilinear


@dataclass(frozen=True)
class Seq2SeqConfig:
    """Sizes of a :class:`Seq2Seq`.

    Args:
        source_tokens: Size of the source vocabulary.
        target_tokens: Size of the target vocabulary.
        embedding: Width E of the embeddings.
        width: Width D of the decoder's state; each direction of the encoder has half of it.
        dropout: Share of entries dropped from embeddings, encoder states and features.

    Raises:
        ValueError: If a size is not positive, the width odd, or the dropout outside [0, 1).

    Source:
        Bahdanau, Cho and Bengio (2015), section A.2. Chapter 06.
    """

    source_tokens: int
    target_tokens: int
    embedding: int
    width: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("source_tokens", "target_tokens", "embedding", "width"):
            check_count(name, getattr(self, name), least=1)
        if self.width % 2:
            raise ValueError(f"width must be even, half for each direction, got {self.width}")
        check_fraction("dropout", self.dropout)


class LastStates(nn.Module):
    r"""The context without attention: the last states of both directions, at every step the same.

    .. math:: c_i = [\overrightarrow{h}_{T_s}, \overleftarrow{h}_1]

    Source:
        Cho et al. (2014), section 2.2: one vector c for all steps. Chapter 06.
    """

    def forward(self, query: Float[Tensor, "B Tq D"], memory: State) -> Float[Tensor, "B Tq D"]:
        """The encoder's last states, whatever the queries are."""
        last: Tensor = memory["last"]  # (B, D)
        return last[:, None].expand(-1, query.shape[1], -1)


class Attention(nn.Module):
    r"""The context with attention: for each step its own weighted mean of all encoder states.

    .. math:: c_i = \sum_j w_{ij} h_j

    A subclass owns the parameters of the score and defines ``score(query, key)``.

    Raises:
        NotImplementedError: If it does not.

    Source:
        Bahdanau, Cho and Bengio (2015), equations 5 and 6. Chapter 06.
    """

    def score(self, query: Float[Tensor, "B Tq D"], key: Float[Tensor, "B Ts D"]) -> Tensor:
        """How well each encoder state matches each query, (B, Tq, Ts); a subclass defines it."""
        raise NotImplementedError

    def weights(self, query: Float[Tensor, "B Tq D"], memory: State) -> Float[Tensor, "B Tq Ts"]:
        """How much weight each source position gets; 0 on padding."""
        return attention_weights(query, memory["states"], memory["mask"], score=self.score)

    def forward(self, query: Float[Tensor, "B Tq D"], memory: State) -> Float[Tensor, "B Tq D"]:
        """The weighted mean of the encoder's states, for each query."""
        states = memory["states"]  # (B, Ts, D), keys and values alike
        return attend_explicit(query, states, states, memory["mask"], score=self.score)


class Additive(Attention):
    """Attention with Bahdanau's score, a network of one hidden layer.

    Args:
        width: D of the query, of the encoder states and of the hidden layer.

    Source:
        Bahdanau, Cho and Bengio (2015), section A.1.2. Chapter 06.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, width)))
        self.key_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, width)))
        self.vector = nn.Parameter(nn.init.normal_(torch.empty(width), std=width**-0.5))

    def score(self, query: Tensor, key: Tensor) -> Tensor:
        """Additive scores with this module's parameters, (B, Tq, Ts)."""
        return additive(query, key, self.query_weight, self.key_weight, self.vector)


class Multiplicative(Attention):
    """Attention with Luong's score "general", one matrix between query and key.

    Args:
        width: D of the query and of the encoder states.

    Source:
        Luong, Pham and Manning (2015), section 3.1. Chapter 06.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        # Small: at first all weights are nearly equal, since states of a GRU stay below one.
        self.weight = nn.Parameter(nn.init.normal_(torch.empty(width, width), std=1 / width))

    def score(self, query: Tensor, key: Tensor) -> Tensor:
        """Multiplicative scores with this module's parameter, (B, Tq, Ts)."""
        return bilinear(query, key, self.weight)


class Encoder(nn.Module):
    """A GRU in each direction over the embedded source.

    Args:
        config: Sizes.

    Source:
        Bahdanau, Cho and Bengio (2015), section 3.2. Chapter 06.
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.source_tokens, config.embedding)
        half = config.width // 2
        self.gru = nn.GRU(config.embedding, half, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Int[Tensor, "B Ts"], lengths: Int[Tensor, " B"]) -> State:
        """Read the source; padding after ``lengths`` has no effect on any number.

        Args:
            tokens: Source tokens, (B, Ts), padded at the end with any valid token.
            lengths: Number of real tokens of each row, from 1 to Ts.

        Returns:
            ``states`` (B, Ts, D), 0 on padding; ``last`` (B, D), where each direction ended;
            ``mask`` (B, 1, Ts), True on real tokens.
        """
        embedded = self.dropout(self.embedding(tokens))  # (B, Ts, E)
        packed = nn.utils.rnn.pack_padded_sequence(
            embedded, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        states, ends = self.gru(packed)
        states, _ = nn.utils.rnn.pad_packed_sequence(
            states, batch_first=True, total_length=tokens.shape[1]
        )
        return {
            "states": self.dropout(states),  # (B, Ts, D)
            "last": self.dropout(torch.cat([ends[0], ends[1]], dim=-1)),  # (B, D)
            "mask": padding(lengths).dense(1, tokens.shape[1], tokens.device),  # (B, 1, Ts)
        }


class Seq2Seq(EncoderDecoder):
    r"""Encoder, decoder, and between them the context that is passed in.

    .. math:: s_i = \mathrm{GRU}(e(y_{i-1}), s_{i-1}), \quad
              c_i = \mathrm{context}(s_i, h), \quad
              \tilde s_i = \tanh([c_i, s_i] W)

    The logits are the dot products of :math:`\tilde s_i` with the target embeddings. W brings the
    concatenation back to a fixed width, and the state s never grows. The context does not enter the
    recurrence, so in training one call computes all states.

    Args:
        config: Sizes.
        context: :class:`LastStates`, :class:`Additive` or :class:`Multiplicative`.

    Source:
        Luong, Pham and Manning (2015), section 3, equation 5; output layer tied to the embeddings
        as in Press and Wolf (2017). Chapter 06.
    """

    def __init__(self, config: Seq2SeqConfig, context: nn.Module) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.context = context
        self.embedding = nn.Embedding(config.target_tokens, config.embedding)
        # It is also the output layer, so its entries are small: first logits have a spread below 1.
        nn.init.normal_(self.embedding.weight, std=config.embedding**-0.5)
        self.start = nn.Linear(config.width, config.width)
        self.gru = nn.GRU(config.embedding, config.width, batch_first=True)
        self.combine = nn.Linear(2 * config.width, config.embedding)
        self.bias = nn.Parameter(torch.zeros(config.target_tokens))
        self.dropout = nn.Dropout(config.dropout)

    def encode(self, source: Int[Tensor, "B Ts"], lengths: Int[Tensor, " B"]) -> State:
        """What :class:`Encoder` returns, and the decoder's first state ``decoder``, (B, D)."""
        memory = self.encoder(source, lengths)
        return {**memory, "decoder": torch.tanh(self.start(memory["last"]))}

    def decode(
        self, target: Int[Tensor, "B Tt"], state: State
    ) -> tuple[Float[Tensor, "B Tt V"], State]:
        """Write on from a state, one step for each token given, as ``EncoderDecoder`` says."""
        states, last = self._states(target, state)  # (B, Tt, D), (1, B, D)
        context = self.context(states, state)  # (B, Tt, D)
        combined = torch.tanh(self.combine(torch.cat([context, states], dim=-1)))  # (B, Tt, E)
        logits = nn.functional.linear(self.dropout(combined), self.embedding.weight, self.bias)
        return logits, {**state, "decoder": last[0]}

    def _states(self, target: Tensor, state: State) -> tuple[Tensor, Tensor]:
        embedded = self.dropout(self.embedding(target))  # (B, Tt, E)
        states, last = self.gru(embedded, state["decoder"][None].contiguous())
        return self.dropout(states), last

    def attention_weights(
        self,
        source: Int[Tensor, "B Ts"],
        lengths: Int[Tensor, " B"],
        target: Int[Tensor, "B Tt"],
    ) -> Float[Tensor, "B Tt Ts"]:
        """Where each target position looks: row i belongs to the prediction after ``target[i]``.

        Args:
            source: Source tokens, (B, Ts).
            lengths: Number of real source tokens of each row.
            target: As in :meth:`forward`.

        Returns:
            Weights, (B, Tt, Ts).

        Raises:
            TypeError: If the context of this model is not attention.
        """
        if not isinstance(self.context, Attention):
            raise TypeError(
                f"context must be Attention to have weights, got {type(self.context).__name__}"
            )
        state = self.encode(source, lengths)
        return self.context.weights(self._states(target, state)[0], state)
