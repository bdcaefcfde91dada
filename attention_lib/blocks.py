"""Blocks: attention and a feed-forward network, each in a normalised residual. Chapter 09."""

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import relu, silu

from attention_lib._checks import check_count, check_fraction
from attention_lib._joint import project
from attention_lib.heads import KVCache, MultiHeadAttention
from attention_lib.masks import Mask

Activation = Callable[[Tensor], Tensor]
MaskLike = Mask | Bool[Tensor, "..."] | None


class FeedForward(nn.Module):
    r"""A network of one hidden layer, applied to every position by itself.

    .. math:: \mathrm{FFN}(x) = \phi(x W_1 + b_1)\, W_2 + b_2

    Args:
        width: D, width of input and output.
        hidden: Width of the hidden layer; four times ``width`` in the paper.
        activation: :math:`\phi`, a function of one tensor, such as ``torch.nn.functional.gelu``.
        dropout: Probability with which a hidden feature is dropped in training.
        bias: Whether the two projections have a bias.

    Raises:
        TypeError: If a width is not an integer.
        ValueError: If a width is less than 1 or ``dropout`` outside 0 to 1.

    Example:
        >>> import torch
        >>> network, x = FeedForward(4, 16), torch.eye(4)
        >>> torch.allclose(network(x)[1], network(x[1]), atol=1e-5)  # no position sees another
        True

    Source:
        Vaswani et al. (2017), section 3.3, equation 2. Chapter 09.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: Activation = relu,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        _check_sizes(width, hidden, dropout)
        self.up_proj = nn.Linear(width, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, width, bias=bias)
        self.activation = activation
        self.dropout = _dropout(dropout)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Apply the network to the last dimension."""
        hidden = self.dropout(self.activation(self.up_proj(x)))  # (..., hidden)
        output: Tensor = self.down_proj(hidden)
        return output


class GatedFeedForward(nn.Module):
    r"""A feed-forward network whose hidden layer is multiplied by a learned gate.

    .. math:: \mathrm{GLU}(x) = \big(\phi(x W_g) \odot x W_1\big)\, W_2

    With SiLU as :math:`\phi` this is SwiGLU, with GELU it is GEGLU. It has three matrices where
    :class:`FeedForward` has two: two thirds of the hidden width make them equal in size.

    Args:
        width: D, width of input and output.
        hidden: Width of the hidden layer.
        activation: :math:`\phi` of the gate.
        dropout: Probability with which a hidden feature is dropped in training.
        bias: Whether the three projections have a bias.

    Raises:
        TypeError: If a width is not an integer.
        ValueError: If a width is less than 1 or ``dropout`` outside 0 to 1.

    Example:
        >>> networks = GatedFeedForward(6, 16), FeedForward(6, 24, bias=False)
        >>> [sum(x.numel() for x in network.parameters()) for network in networks]
        [288, 288]

    Source:
        Shazeer (2020), equation 6. Chapter 09.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: Activation = silu,
        dropout: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        _check_sizes(width, hidden, dropout)
        self.gate_proj = nn.Linear(width, hidden, bias=bias)
        self.up_proj = nn.Linear(width, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, width, bias=bias)
        self.activation = activation
        self.dropout = _dropout(dropout)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Apply the network to the last dimension."""
        gate, up = project(x, (self.gate_proj, self.up_proj))  # (..., hidden) each
        hidden = self.dropout(self.activation(gate) * up)
        output: Tensor = self.down_proj(hidden)
        return output


class _Residual(nn.Module):
    """The parts of a residual: a norm and dropout; where they stand is the subclass's matter."""

    def __init__(
        self, width: int, *, norm: Callable[[int], nn.Module] = nn.LayerNorm, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_count("width", width, least=1)
        check_fraction("dropout", dropout)
        self.norm = norm(width)
        self.dropout = _dropout(dropout)


class PreNorm(_Residual):
    r"""Normalise what the sublayer reads, and leave the residual path alone.

    .. math:: y = x + \mathrm{dropout}\big(f(\mathrm{norm}(x))\big)

    A stack of these needs one more norm at its end.

    Args:
        width: D.
        norm: Makes the norm from the width: ``nn.LayerNorm``, ``nn.RMSNorm``, ``nn.Identity``.
        dropout: Probability with which a feature of the sublayer's output is dropped in training.

    Raises:
        TypeError: If ``width`` is not an integer.
        ValueError: If ``width`` is less than 1 or ``dropout`` outside 0 to 1.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 3.0]])
        >>> PreNorm(2)(x, lambda y: 0 * y).tolist()  # a sublayer that adds nothing
        [[1.0, 3.0]]

    Source:
        Xiong et al. (2020), figure 1b and table 1. Chapter 09.
    """

    def forward(
        self, x: Float[Tensor, "... D"], sublayer: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "... D"]:
        """Add to ``x`` what the sublayer makes of the normalised ``x``."""
        output: Tensor = x + self.dropout(sublayer(self.norm(x)))
        return output


class PostNorm(_Residual):
    r"""Normalise the sum of input and sublayer, as the 2017 Transformer does.

    .. math:: y = \mathrm{norm}\big(x + \mathrm{dropout}(f(x))\big)

    Args:
        width: D.
        norm: Makes the norm from the width: ``nn.LayerNorm``, ``nn.RMSNorm``, ``nn.Identity``.
        dropout: Probability with which a feature of the sublayer's output is dropped in training.

    Raises:
        TypeError: If ``width`` is not an integer.
        ValueError: If ``width`` is less than 1 or ``dropout`` outside 0 to 1.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 3.0]])
        >>> PostNorm(2)(x, lambda y: 0 * y).round(decimals=3).tolist()  # normalised all the same
        [[-1.0, 1.0]]

    Source:
        Vaswani et al. (2017), section 3.1. Chapter 09.
    """

    def forward(
        self, x: Float[Tensor, "... D"], sublayer: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "... D"]:
        """Normalise the sum of ``x`` and what the sublayer makes of it."""
        output: Tensor = self.norm(x + self.dropout(sublayer(x)))
        return output


class EncoderBlock(nn.Module):
    """Self-attention, then a feed-forward network, each in its residual.

    With a causal mask it is the block of a decoder-only model such as GPT.

    Args:
        attention: Mixes positions.
        feed_forward: Works on each position by itself.
        residual: Makes a residual; called once for each sublayer, for instance
            ``partial(PreNorm, 64, dropout=0.1)``.

    Example:
        >>> import torch
        >>> from attention_lib.masks import causal
        >>> block = EncoderBlock(MultiHeadAttention(4, 2), FeedForward(4, 8), lambda: PreNorm(4))
        >>> x = torch.eye(4)
        >>> torch.allclose(block(x, mask=causal())[:2], block(x[:2], mask=causal()), atol=1e-5)
        True

    Source:
        Vaswani et al. (2017), section 3.1, "Encoder". Chapter 09.
    """

    def __init__(
        self,
        attention: MultiHeadAttention,
        feed_forward: nn.Module,
        residual: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward
        self.attention_residual = residual()
        self.feed_forward_residual = residual()

    def forward(
        self, x: Float[Tensor, "... T D"], *, mask: MaskLike = None, cache: KVCache | None = None
    ) -> Float[Tensor, "... T D"]:
        """Apply both sublayers; ``mask`` and ``cache`` go to attention."""
        x = self.attention_residual(x, lambda y: self.attention(y, mask=mask, cache=cache))
        x = self.feed_forward_residual(x, self.feed_forward)
        return x


class DecoderBlock(nn.Module):
    """Causal self-attention, cross-attention to a memory, a feed-forward network.

    Args:
        attention: Self-attention of the target sequence.
        cross_attention: From the target to the memory.
        feed_forward: Works on each position by itself.
        residual: Makes a residual; called once for each of the three sublayers.

    Example:
        >>> import torch
        >>> own, cross = MultiHeadAttention(4, 2), MultiHeadAttention(4, 2, memory_width=6)
        >>> block = DecoderBlock(own, cross, FeedForward(4, 8), lambda: PreNorm(4))
        >>> tuple(block(torch.zeros(1, 3, 4), torch.zeros(1, 5, 6)).shape)
        (1, 3, 4)

    Source:
        Vaswani et al. (2017), section 3.1, "Decoder". Chapter 09.
    """

    def __init__(
        self,
        attention: MultiHeadAttention,
        cross_attention: MultiHeadAttention,
        feed_forward: nn.Module,
        residual: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.attention = attention
        self.cross_attention = cross_attention
        self.feed_forward = feed_forward
        self.attention_residual = residual()
        self.cross_residual = residual()
        self.feed_forward_residual = residual()

    def forward(
        self,
        x: Float[Tensor, "... T D"],
        memory: Float[Tensor, "... Tm Dm"],
        *,
        mask: MaskLike = None,
        memory_mask: MaskLike = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "... T D"]:
        """Apply the three sublayers; pass ``mask=causal()`` for a target that must not look ahead.

        ``memory_mask`` hides padding of the memory.
        """
        x = self.attention_residual(x, lambda y: self.attention(y, mask=mask, cache=cache))
        x = self.cross_residual(x, lambda y: self.cross_attention(y, memory, mask=memory_mask))
        x = self.feed_forward_residual(x, self.feed_forward)
        return x


def _dropout(probability: float) -> nn.Module:
    """Dropout, or, where nothing is dropped, a module that costs nothing."""
    return nn.Dropout(probability) if probability else nn.Identity()


def _check_sizes(width: int, hidden: int, dropout: float) -> None:
    check_count("width", width, least=1)
    check_count("hidden", hidden, least=1)
    check_fraction("dropout", dropout)
