"""How to make and train a small GPT: the plain recipe and the steps that improve it. Chapter 11.

A :class:`Recipe` is the parts of a model and the maker of its optimizer. Each step of
:data:`LADDER` replaces parts of the step before.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import gelu
from torch.optim import Optimizer

from attention_lib._checks import check_count, check_positive
from attention_lib.blocks import Activation, EncoderBlock, FeedForward, PreNorm
from attention_lib.heads import MultiHeadAttention
from attention_lib.models.characters import LENGTH, Alphabet
from attention_lib.models.gpt import GPT, GPTConfig, QueryKeyNorm, small_start
from attention_lib.models.optimizers import adamw, muon_and_adamw
from attention_lib.positions import Learned, Position, Rotary

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"

# --- parts ---------------------------------------------------------------------------------------


def squared_relu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""Zero below zero, the square above.

    .. math:: \phi(x) = \max(x, 0)^2

    Args:
        x: Features.

    Returns:
        A tensor of the same shape.

    Source:
        So et al. (2021), section 3. Chapter 11.
    """
    positive = x.relu()
    return positive * positive


class LookBack(Position):
    r"""Let each head begin with a preference for one earlier place, then let a position act.

    .. math:: b_{hij} = c \, [\, i - j = h + 1 \,], \qquad h = 0 \dots H - 1

    Head 0 starts with its eye on the token before, head 1 on the one before that, and so on. The
    preference is fixed, and queries and keys can outweigh it.

    Args:
        heads: H.
        position: What acts beside it; its own bias, if it has one, is added.
        strength: :math:`c`, added to the score at that place.

    Raises:
        TypeError: If ``heads`` is not an integer.
        ValueError: If ``heads`` is less than 1 or ``strength`` not above 0.

    Source:
        A fixed bias by distance as in Press, Smith and Lewis (2022), section 3, with one distance
        for each head in place of a slope. Chapter 11.
    """

    def __init__(self, heads: int, position: Position, *, strength: float = 3.0) -> None:
        super().__init__()
        check_count("heads", heads, least=1)
        check_positive("strength", strength)
        self.heads, self.strength, self.position = heads, strength, position

    def rotate(
        self, query: Float[Tensor, "... Tq Dh"], key: Float[Tensor, "... Tk Dh"], offset: int = 0
    ) -> tuple[Float[Tensor, "... Tq Dh"], Float[Tensor, "... Tk Dh"]]:
        """Do what the position does."""
        return self.position.rotate(query, key, offset)

    def bias(
        self, query_length: int, key_length: int, offset: int = 0
    ) -> Float[Tensor, "H Tq Tk"] | None:
        """The preference of each head."""
        head = torch.arange(self.heads)[:, None, None]
        back = torch.arange(offset, offset + query_length)[:, None] - torch.arange(key_length)
        preference = self.strength * (back == head + 1)
        other = self.position.bias(query_length, key_length, offset)
        return preference if other is None else preference + other


def zero_start(model: GPT) -> None:
    """Start as :func:`small_start` does, but with zeros where a block writes to the residual path.

    Every block is then the identity at first, and the model a table of its embeddings.

    Args:
        model: Changed in place.

    Source:
        Zhang, Dauphin and Ma (2019), first rule of Fixup, for the residual branches only (the rule
        starts the output layer at zero as well). Chapter 11.
    """
    small_start(model)
    for name, parameter in model.blocks.named_parameters():
        if name.endswith(("output_proj.weight", "down_proj.weight")):
            nn.init.zeros_(parameter)


# --- recipes -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """The parts of a character model, and how its optimizer is made.

    Args:
        added: Makes what adds positions to the embeddings, from a length and a width; or None.
        position: Makes what acts inside attention, from the number and the width of the heads; or
            None.
        norm: Makes a norm from a width.
        activation: Of the feed-forward networks.
        hidden: Hidden width of the feed-forward networks.
        kv_heads: Number of key and value heads.
        bias: Whether projections have biases.
        start: Sets the first weights of a model.
        optimizer: Makes the optimizer of a model.

    Source:
        Chapter 11.
    """

    added: Callable[[int, int], nn.Module] | None
    position: Callable[[int, int], Position] | None
    norm: Callable[[int], nn.Module]
    activation: Activation
    hidden: int
    kv_heads: int
    bias: bool
    start: Callable[[GPT], None]
    optimizer: Callable[[GPT], Optimizer]

    def model(self, tokens: int, seed: int) -> GPT:
        """An untrained model: 4 layers, 4 heads, width 128, for 64 characters.

        Args:
            tokens: V, size of the alphabet.
            seed: Sets the first weights; the global state of random numbers is left alone.

        Returns:
            The model.
        """
        config = GPTConfig(
            tokens,
            length=LENGTH,
            width=128,
            layers=4,
            heads=4,
            hidden=self.hidden,
            kv_heads=self.kv_heads,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            added = None if self.added is None else self.added(config.length, config.width)
            model = GPT(config, partial(self._block, config), self.norm(config.width), added=added)
            self.start(model)
        return model

    def _block(self, config: GPTConfig) -> EncoderBlock:
        head_width = config.width // config.heads
        position = None if self.position is None else self.position(config.heads, head_width)
        return EncoderBlock(
            MultiHeadAttention(
                config.width,
                config.heads,
                kv_heads=config.kv_heads,
                bias=self.bias,
                position=position,
            ),
            FeedForward(
                config.width, config.hidden_width, activation=self.activation, bias=self.bias
            ),
            partial(PreNorm, config.width, norm=self.norm),
        )


PLAIN = Recipe(
    added=Learned,
    position=None,
    norm=nn.LayerNorm,
    activation=partial(gelu, approximate="tanh"),
    hidden=512,
    kv_heads=4,
    bias=True,
    start=small_start,
    optimizer=partial(adamw, rate=1e-3),
)


def _normalised(heads: int, width: int) -> Position:
    return QueryKeyNorm(width, Rotary(width))


def _ladder() -> dict[str, Recipe]:
    def step(name: str, **parts: Any) -> None:
        ladder[name] = replace(list(ladder.values())[-1], **parts)

    ladder = {"GPT-2": PLAIN}
    step("rotary positions", added=None, position=lambda heads, width: Rotary(width))
    step("query/key norm", position=_normalised)
    step("RMSNorm, no biases", norm=partial(nn.RMSNorm, elementwise_affine=False), bias=False)
    step("squared ReLU", activation=squared_relu)
    step("zero outputs", start=zero_start)
    muon = partial(muon_and_adamw, rate=5e-3, muon_rate=0.02, decay=0.01)
    step("Muon", optimizer=muon)
    step("looking back", position=lambda heads, width: LookBack(heads, _normalised(heads, width)))
    step("fewer multiplications", hidden=256, kv_heads=1)
    return ladder


#: Recipes by the name of the step that leads to them; each has all steps before it.
LADDER = _ladder()
BEST = list(LADDER)[-1]
#: Recipes with AdamW at a higher rate, the plain one and the one before Muon; to see what that
#: alone would do.
CONTROLS = {
    f"{name}, rate 3e-3": replace(LADDER[name], optimizer=partial(adamw, rate=3e-3))
    for name in ("GPT-2", "zero outputs")
}
RECIPES = LADDER | CONTROLS


# --- the trained model ---------------------------------------------------------------------------


def save(model: GPT, alphabet: Alphabet, recipe: str, path: Path) -> None:
    """Write a model in half precision.

    Args:
        model: The model.
        alphabet: Its alphabet.
        recipe: The step of the ladder that it was made by.
        path: The file to make.

    Source:
        Chapter 11.
    """
    weights = {name: part.half() for name, part in model.state_dict().items()}
    save_file(weights, path, {"alphabet": alphabet.characters, "recipe": recipe})


def load(path: Path = WEIGHTS / "characters.safetensors") -> tuple[GPT, Alphabet]:
    """Read a model that :func:`save` wrote; by default the one that comes with the book.

    Args:
        path: The file.

    Returns:
        The model, in float32 and evaluation mode, and its alphabet.

    Raises:
        RuntimeError: If weights are missing or there are others.

    Source:
        Chapter 11.
    """
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
        weights = {name: file.get_tensor(name).float() for name in list(file.keys())}
    alphabet = Alphabet(about["alphabet"])
    model = RECIPES[about["recipe"]].model(len(alphabet), seed=0)
    model.load_state_dict(weights)
    return model.eval(), alphabet
