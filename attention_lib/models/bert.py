"""Encoder-only models that fill gaps in a text: BERT. Chapter 12.

:class:`Bert` turns tokens into states that know both sides of the text. :class:`MaskedLM` adds the
head that names the hidden tokens, and :func:`hide_tokens` hides them. :class:`TextClassifier` puts
another head on the same encoder, which gives a whole text a class.
"""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu

from attention_lib._checks import check_count, check_fraction, check_positive, shape
from attention_lib.blocks import EncoderBlock, FeedForward, PostNorm
from attention_lib.heads import MultiHeadAttention
from attention_lib.masks import padding
from attention_lib.models._config import StackConfig
from attention_lib.positions import Learned


@dataclass(frozen=True)
class BertConfig(StackConfig):
    """Sizes of a :class:`Bert`.

    Args:
        tokens: V, size of the vocabulary.
        length: The most positions a text may have.
        width: D.
        layers: Number of blocks.
        heads: H, a divisor of the width.
        hidden: Hidden width of the feed-forward networks; four times the width if None.
        segments: Number of kinds of segment: 2, for a pair of sentences.
        dropout: Share of embeddings, weights and sublayer outputs that training drops.
        eps: What LayerNorm adds to the variance.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is not positive, the heads do not divide the width, or the dropout is
            outside [0, 1).

    Source:
        Devlin et al. (2019), section 3. Chapter 12.
    """

    tokens: int
    length: int
    width: int
    layers: int
    heads: int
    hidden: int | None = None
    segments: int = 2
    dropout: float = 0.0
    eps: float = 1e-12

    def __post_init__(self) -> None:
        self.check("tokens", "length", "layers", "segments")
        check_positive("eps", self.eps)


class Bert(nn.Module):
    r"""Post-norm encoder blocks over the normalised sum of three embeddings.

    .. math:: h_0 = \mathrm{norm}(E_{x_t} + P_t + S_{s_t}), \qquad
              h_l = \mathrm{block}_l(h_{l-1})

    No mask but padding: every position sees both sides of the text. The norm on the sum and the
    ``eps`` of the norms are not in the paper but in the published code.

    Args:
        config: Sizes.

    Raises:
        ValueError: From ``forward``, if the text has more than ``length`` positions.

    Source:
        Devlin et al. (2019), section 3 and figure 2. Chapter 12.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        width, dropout = config.width, config.dropout
        norm = partial(nn.LayerNorm, eps=config.eps)
        self.embedding = nn.Embedding(config.tokens, width)
        self.positions = Learned(config.length, width)
        self.segments = nn.Embedding(config.segments, width)
        self.norm = norm(width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            EncoderBlock(
                MultiHeadAttention(width, config.heads, dropout=dropout),
                FeedForward(width, config.hidden_width, activation=gelu),
                partial(PostNorm, width, norm=norm, dropout=dropout),
            )
            for _ in range(config.layers)
        )
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        lengths: Int[Tensor, " B"] | None = None,
        segments: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """States of all positions.

        Args:
            tokens: Tokens, (B, T), padded at the end with any valid token.
            lengths: Number of real tokens of each row; all T if None.
            segments: Which segment each token belongs to; 0 for all if None.

        Returns:
            States, (B, T, D); those of padding have no meaning.
        """
        segments = torch.zeros_like(tokens) if segments is None else segments
        x = self.positions(self.embedding(tokens) + self.segments(segments))  # (B, T, D)
        x = self.dropout(self.norm(x))
        mask = None
        if lengths is not None:  # one mask for all blocks
            mask = padding(lengths).dense(1, tokens.shape[1], tokens.device)  # (B, 1, T)
        for block in self.blocks:
            x = block(x, mask=mask)
        states: Tensor = x
        return states


class MaskedLM(nn.Module):
    r"""A :class:`Bert` with the head that names hidden tokens.

    .. math:: \mathrm{logits} = \mathrm{norm}(\mathrm{GELU}(h W + c))\, E^\top + b

    The output layer is the table of token embeddings :math:`E`.

    Args:
        bert: The encoder.

    Source:
        Devlin et al. (2019), section 3.1, task 1; the layer before the output and the shared table
        are those of the published code. Chapter 12.
    """

    def __init__(self, bert: Bert) -> None:
        super().__init__()
        config = bert.config
        self.bert = bert
        self.transform = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.bias = nn.Parameter(torch.zeros(config.tokens))
        nn.init.normal_(self.transform.weight, std=0.02)
        nn.init.zeros_(self.transform.bias)

    def head(self, states: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Logits for states; in training call it on those of hidden tokens only."""
        x: Tensor = self.norm(gelu(self.transform(states)))
        return x @ self.bert.embedding.weight.T + self.bias

    def forward(
        self, tokens: Int[Tensor, "B T"], lengths: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B T V"]:
        """Logits of the token at every position; arguments as in :class:`Bert`."""
        logits: Tensor = self.head(self.bert(tokens, lengths))
        return logits


class TextClassifier(nn.Module):
    r"""A :class:`Bert` with a head that gives a text a class.

    .. math:: \mathrm{logits} = \mathrm{dropout}(\bar h)\, W + b

    The text is the mean of its states, :func:`mean_state`. The head starts at 0: before training
    every class is as likely as any other.

    Args:
        bert: The encoder.
        classes: Number of classes, at least 2.

    Raises:
        TypeError: If ``classes`` is not an integer.
        ValueError: If ``classes`` is below 2.

    Source:
        Devlin et al. (2019), section 3.2, with the mean of the states in place of the state of the
        first token. Chapter 12.
    """

    def __init__(self, bert: Bert, classes: int) -> None:
        super().__init__()
        check_count("classes", classes, least=2)
        self.bert = bert
        self.dropout = nn.Dropout(bert.config.dropout)
        self.output = nn.Linear(bert.config.width, classes)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(
        self, tokens: Int[Tensor, "B T"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C"]:
        """Logits of the classes; arguments as in :class:`Bert`."""
        text = mean_state(self.bert(tokens, lengths), lengths)  # (B, D)
        logits: Tensor = self.output(self.dropout(text))
        return logits


def hide_tokens(
    tokens: Int[Tensor, "*N"],
    candidates: Bool[Tensor, "*N"],
    *,
    mask_token: int,
    vocabulary: int,
    generator: torch.Generator,
    share: float = 0.15,
) -> tuple[Int[Tensor, "*N"], Bool[Tensor, "*N"]]:
    """Choose tokens to predict, and hide most of them: the task BERT learns from.

    Each candidate is chosen with probability ``share``. Of the chosen, 80 % become the mask token,
    10 % a random token, and 10 % stay, so that the model cannot rely on the mask to know where it
    is asked.

    Args:
        tokens: Tokens, of any shape.
        candidates: True where a token may be chosen: not on padding or special tokens.
        mask_token: The token that hides.
        vocabulary: V; random tokens are drawn from 0 .. V - 1.
        generator: Source of random numbers, on the CPU.
        share: Probability of being chosen.

    Returns:
        The tokens to show to the model, and True where one was chosen.

    Raises:
        TypeError: If a number has the wrong type.
        ValueError: If the shapes differ, ``mask_token`` is no token, or ``share`` outside [0, 1).

    Source:
        Devlin et al. (2019), section 3.1 and appendix A.1. Chapter 12.
    """
    if tokens.shape != candidates.shape:
        raise ValueError(
            f"candidates must have the shape of tokens {shape(tokens)}, got {shape(candidates)}"
        )
    check_count("vocabulary", vocabulary, least=1)
    check_count("mask_token", mask_token, least=0)
    if mask_token >= vocabulary:
        raise ValueError(f"mask_token must be below vocabulary = {vocabulary}, got {mask_token}")
    check_fraction("share", share)
    chosen = (torch.rand(tokens.shape, generator=generator) < share) & candidates.cpu()
    fate = torch.rand(tokens.shape, generator=generator)
    random = torch.randint(vocabulary, tokens.shape, generator=generator)
    shown = tokens.cpu().clone()
    shown[chosen & (fate < 0.8)] = mask_token
    shown = torch.where(chosen & (fate >= 0.9), random, shown)
    return shown.to(tokens.device), chosen.to(tokens.device)


def mean_state(states: Float[Tensor, "B T D"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
    r"""The mean of the states of the real tokens: one vector for a text.

    .. math:: \bar h_b = \frac{1}{\ell_b} \sum_{t < \ell_b} h_{bt}

    Args:
        states: From :class:`Bert`, (B, T, D).
        lengths: Number of real tokens of each row, at least 1.

    Returns:
        Vectors, (B, D).

    Raises:
        ValueError: If a length is below 1 or above T.

    Source:
        Reimers and Gurevych (2019), section 3. Chapter 12.
    """
    if bool((lengths < 1).any()) or bool((lengths > states.shape[1]).any()):
        raise ValueError(f"lengths must lie in 1 .. T = {states.shape[1]}, got {lengths.tolist()}")
    real = padding(lengths).dense(1, states.shape[1], states.device).mT  # (B, T, 1)
    total = states.masked_fill(~real, 0).sum(dim=1)  # (B, D)
    return total / lengths[:, None].to(states.device)
