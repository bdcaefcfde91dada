"""The same weights under PyTorch's names, for the modules that have a twin in ``torch.nn``.

=========================  ================================
ours                       PyTorch's
=========================  ================================
``MultiHeadAttention``     ``nn.MultiheadAttention``
``EncoderBlock``           ``nn.TransformerEncoderLayer``
``DecoderBlock``           ``nn.TransformerDecoderLayer``
=========================  ================================
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from attention_lib.blocks import DecoderBlock, EncoderBlock
from attention_lib.heads import MultiHeadAttention

State = Mapping[str, Tensor]

# Our part -> PyTorch's part. Attention has names of its own below.
_ENCODER = {
    "attention": "self_attn",
    "feed_forward.up_proj": "linear1",
    "feed_forward.down_proj": "linear2",
    "attention_residual.norm": "norm1",
    "feed_forward_residual.norm": "norm2",
}
_DECODER = {
    "attention": "self_attn",
    "cross_attention": "multihead_attn",
    "feed_forward.up_proj": "linear1",
    "feed_forward.down_proj": "linear2",
    "attention_residual.norm": "norm1",
    "cross_residual.norm": "norm2",
    "feed_forward_residual.norm": "norm3",
}
_PROJECTIONS = ("query_proj", "key_proj", "value_proj")


def load_torch_state(module: nn.Module, state: State) -> None:
    """Fill one of our modules with the weights of its twin.

    Args:
        module: A ``MultiHeadAttention``, ``EncoderBlock`` or ``DecoderBlock``.
        state: ``state_dict()`` of the twin.

    Raises:
        TypeError: If the module has no twin.
        ValueError: If the names do not fit, or the module has what the twin does not.
        RuntimeError: From PyTorch, if the shapes do not fit.

    Example:
        >>> ours, twin = MultiHeadAttention(4, 2), nn.MultiheadAttention(4, 2, batch_first=True)
        >>> load_torch_state(ours, twin.state_dict())
        >>> x = torch.eye(4)[None]
        >>> torch.allclose(ours(x), twin(x, x, x)[0], atol=1e-5)
        True

    Source:
        PyTorch documentation of the three classes. Chapters 07 and 09.
    """
    expected, got = set(to_torch_state(module)), set(state)
    if expected != got:
        raise ValueError(
            f"state must hold exactly the names of the twin; missing {sorted(expected - got)}, "
            f"not expected {sorted(got - expected)}"
        )
    ours = {}
    for mine, theirs in _parts(module).items():
        part = {
            name.removeprefix(theirs): x for name, x in state.items() if name.startswith(theirs)
        }
        if "out_proj.weight" in part:
            part = _from_packed(part)
        ours.update({mine + name: x for name, x in part.items()})
    module.load_state_dict(ours)


def to_torch_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights of one of our modules under the names of its twin.

    Args:
        module: A ``MultiHeadAttention``, ``EncoderBlock`` or ``DecoderBlock``.

    Returns:
        What ``load_state_dict`` of the twin takes.

    Raises:
        TypeError: If the module has no twin.
        ValueError: If the module has what the twin does not: ``kv_heads`` below ``heads``, a
            position, or other parameters such as those of a gate.

    Example:
        >>> sorted(to_torch_state(MultiHeadAttention(4, 2)))
        ['in_proj_bias', 'in_proj_weight', 'out_proj.bias', 'out_proj.weight']

    Source:
        PyTorch documentation of the three classes. Chapters 07 and 09.
    """
    state: dict[str, Tensor] = {}
    for mine, theirs in _parts(module).items():
        part = module.get_submodule(mine.removesuffix("."))
        own = part.state_dict()
        if isinstance(part, MultiHeadAttention):
            if part.kv_heads != part.heads:
                raise ValueError(
                    f"kv_heads must equal heads = {part.heads} for torch.nn.MultiheadAttention, "
                    f"got {part.kv_heads}"
                )
            if part.position is not None:
                raise ValueError(
                    "position must be None for torch.nn.MultiheadAttention, "
                    f"got {type(part.position).__name__}"
                )
            own = _to_packed(own)
        state.update({theirs + name: x for name, x in own.items()})
    lost = [name for name in module.state_dict() if not name.startswith(tuple(_parts(module)))]
    if lost:
        raise ValueError(f"module must have no parameters without a place in the twin, got {lost}")
    return state


def _parts(module: nn.Module) -> dict[str, str]:
    """Prefixes of our parts and of PyTorch's."""
    if isinstance(module, MultiHeadAttention):
        return {"": ""}
    for kind, names in ((EncoderBlock, _ENCODER), (DecoderBlock, _DECODER)):
        if isinstance(module, kind):
            return {f"{mine}.": f"{theirs}." for mine, theirs in names.items()}
    raise TypeError(
        "module must be a MultiHeadAttention, an EncoderBlock or a DecoderBlock, "
        f"got {type(module).__name__}"
    )


def _from_packed(part: State) -> dict[str, Tensor]:
    """PyTorch stacks the three projections where their widths agree."""
    ours = {f"output_{name.removeprefix('out_')}": x for name, x in part.items() if "out_" in name}
    if "in_proj_weight" in part:
        weights: tuple[Tensor, ...] = part["in_proj_weight"].chunk(3)
    else:
        weights = tuple(part[f"{letter}_proj_weight"] for letter in "qkv")
    ours.update({f"{name}.weight": x for name, x in zip(_PROJECTIONS, weights, strict=True)})
    if "in_proj_bias" in part:
        biases = part["in_proj_bias"].chunk(3)
        ours.update({f"{name}.bias": x for name, x in zip(_PROJECTIONS, biases, strict=True)})
    return ours


def _to_packed(own: State) -> dict[str, Tensor]:
    theirs = {
        name.replace("output_proj", "out_proj"): x for name, x in own.items() if "output" in name
    }
    weights = [own[f"{name}.weight"] for name in _PROJECTIONS]
    if len({weight.shape for weight in weights}) == 1:
        theirs["in_proj_weight"] = torch.cat(weights)
    else:
        theirs.update({f"{x}_proj_weight": w for x, w in zip("qkv", weights, strict=True)})
    if "query_proj.bias" in own:
        theirs["in_proj_bias"] = torch.cat([own[f"{name}.bias"] for name in _PROJECTIONS])
    return theirs
