"""PyTorch's modules with the parameters of ours: the outside reference for heads and blocks.

The translation of names is written a second time here, by tensors that keep their gradients, so
that a mistake in :mod:`attention_lib.interop` cannot hide itself.
"""

from collections.abc import Callable, Mapping

import torch
from oracle import random
from oracle_layers import part
from torch import Tensor, nn
from torch.func import functional_call

Parameters = Mapping[str, Tensor]
PROJECTIONS = ["query", "key", "value", "output"]


def parameters_of(
    module: nn.Module, generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """Random parameters: matrices of the usual size, vectors scattered about where they start."""
    found = {}
    for name, start in module.named_parameters():
        scale = start.shape[-1] ** -0.5 if start.ndim > 1 else 0.3
        noise = random(generator, *start.shape, scale=scale)
        found[name] = (noise if start.ndim > 1 else start.detach().double() + noise).to(dtype)
    return found


def off_the_kink(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make each hidden unit of a ReLU clearly on or clearly off.

    Near 0 a unit may be on in one precision and off in another, and the gradient jumps between.
    """
    moved = {}
    for name, x in parameters.items():
        if name.endswith("feed_forward.up_proj.bias"):
            moved[name] = (8 * (1 - 2 * (torch.arange(len(x)) % 2))).to(x.dtype)
    return parameters | moved


def filled(
    module: nn.Module, generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> nn.Module:
    """The module itself with :func:`parameters_of` it."""
    module.to(dtype).load_state_dict(parameters_of(module, generator, dtype))
    return module


def as_function(
    module: nn.Module,
    names: list[str],
    inputs: int,
    *,
    translate: Callable[[Parameters], Parameters] = dict,
    first: bool = False,
    **named: object,
) -> Callable[..., Tensor]:
    """The module as a function of its inputs, then of our parameters in the order of ``names``.

    ``translate`` brings our parameters under the module's own names; ``first`` takes the first of
    several results.
    """

    def call(*tensors: Tensor) -> Tensor:
        ours = dict(zip(names, tensors[inputs:], strict=True))
        result = functional_call(module, dict(translate(ours)), tensors[:inputs], named)
        return result[0] if first else result

    return call


def blocked(mask: Tensor | None, heads: int) -> Tensor | None:
    """(B, Tq, Tk) with True for "may attend" as (B * H, Tq, Tk) with True for "may not"."""
    return None if mask is None else ~mask.repeat_interleave(heads, dim=0)


def attention(ours: Parameters) -> dict[str, Tensor]:
    """Our names to those of ``nn.MultiheadAttention``."""
    query, key, value, output = (part(ours, f"{x}_proj") for x in PROJECTIONS)
    theirs = {f"out_proj.{name}": x for name, x in output.items()}
    if query["weight"].shape == key["weight"].shape:
        theirs["in_proj_weight"] = torch.cat([query["weight"], key["weight"], value["weight"]])
    else:
        for letter, own in zip("qkv", (query, key, value), strict=True):
            theirs[f"{letter}_proj_weight"] = own["weight"]
    if "bias" in query:
        theirs["in_proj_bias"] = torch.cat([query["bias"], key["bias"], value["bias"]])
    return theirs


def block(ours: Parameters) -> dict[str, Tensor]:
    """Our names to those of ``nn.TransformerEncoderLayer`` or ``nn.TransformerDecoderLayer``."""
    decoder = "cross_residual.norm.weight" in ours
    names = {"feed_forward.up_proj": "linear1", "feed_forward.down_proj": "linear2"}
    norms = ["attention", "cross", "feed_forward"] if decoder else ["attention", "feed_forward"]
    names |= {f"{name}_residual.norm": f"norm{i}" for i, name in enumerate(norms, start=1)}
    theirs = {
        f"{new}.{name}": x for old, new in names.items() for name, x in part(ours, old).items()
    }
    for old, new in (("attention", "self_attn"), ("cross_attention", "multihead_attn")):
        if decoder or old == "attention":
            own = attention(part(ours, old))
            theirs.update({f"{new}.{name}": x for name, x in own.items()})
    return theirs
