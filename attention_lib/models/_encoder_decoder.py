"""What every translator does with its two halves: write a step, or all steps at once."""

from abc import ABC, abstractmethod
from typing import Any, TypeAlias

from jaxtyping import Float, Int
from torch import Tensor, nn

# What a decoder carries from step to step; every tensor starts with the batch dimension.
State: TypeAlias = dict[str, Any]


class EncoderDecoder(nn.Module, ABC):
    """A model whose subclass says how it reads, ``encode``, and how it writes, ``decode``.

    Source:
        Sutskever, Vinyals and Le (2014), section 2. Chapters 06 and 10.
    """

    @abstractmethod
    def encode(self, source: Int[Tensor, "B Ts"], lengths: Int[Tensor, " B"]) -> State:
        """Read the source; padding after ``lengths`` has no effect on any number that is used.

        Args:
            source: Source tokens, (B, Ts), padded at the end with any valid token.
            lengths: Number of real tokens of each row.

        Returns:
            What ``decode`` starts from.
        """

    @abstractmethod
    def decode(
        self, target: Int[Tensor, "B Tt"], state: State
    ) -> tuple[Float[Tensor, "B Tt V"], State]:
        """Write on from a state, one step for each token given.

        Args:
            target: The tokens after which to predict, (B, Tt).
            state: From :meth:`encode` or from an earlier call.

        Returns:
            Logits, (B, Tt, V), and the state after the last token.
        """

    def step(self, tokens: Int[Tensor, " B"], state: State) -> tuple[Float[Tensor, "B V"], State]:
        """One step after the tokens written last, as :mod:`attention_lib.decoding` calls it."""
        logits, state = self.decode(tokens[:, None], state)
        return logits[:, 0], state

    def forward(
        self,
        source: Int[Tensor, "B Ts"],
        lengths: Int[Tensor, " B"],
        target: Int[Tensor, "B Tt"],
    ) -> Float[Tensor, "B Tt V"]:
        """Logits of every next token, each computed from the true tokens before it.

        Args:
            source: Source tokens, (B, Ts).
            lengths: Number of real source tokens of each row.
            target: Start token and the target, without its last token, (B, Tt).

        Returns:
            Logits, (B, Tt, V).
        """
        return self.decode(target, self.encode(source, lengths))[0]
