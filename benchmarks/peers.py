"""The competitors: the same computation with the same weights, elsewhere, at its best settings.

Biases of the projections are 0 in all of them, since x-transformers has none there; they are still
added where a layer has them. Outputs are compared before anything is timed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import CLIPVisionConfig, GPT2Config
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention, GPT2Block
from x_transformers.x_transformers import Attention, Decoder, Encoder

from attention_lib import EncoderBlock, FeedForward, MultiHeadAttention, PreNorm, causal

Layer = tuple[nn.Module, Callable[[Tensor], Tensor]]  # the module and how to call it

OURS, AGAIN = "attention_lib", "attention_lib again"
TORCH, PLAIN_TORCH = "torch", "torch, fast path off"
GPT2, CLIP, LUCID = "Hugging Face GPT-2", "Hugging Face CLIP", "x-transformers"


@contextmanager
def fast_path(enabled: bool) -> Iterator[None]:
    """Let PyTorch use its fused inference kernels for whole layers, or not."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def attentions(length: int, width: int, heads: int, is_causal: bool) -> dict[str, Layer]:
    """Self-attention with four projections, by name."""
    mask, blocked = _masks(length, is_causal)
    source = MultiHeadAttention(width, heads)
    _no_bias(source)
    layers: dict[str, Layer] = {}
    for name in (OURS, AGAIN):
        ours = MultiHeadAttention(width, heads)
        ours.load_state_dict(source.state_dict())
        layers[name] = ours, partial(ours, mask=mask)

    torchs = nn.MultiheadAttention(width, heads, batch_first=True)
    _copy_torch(source, torchs)

    def call_torch(x: Tensor, fast: bool) -> Tensor:
        with fast_path(fast):
            return torchs(x, x, x, need_weights=False, attn_mask=blocked, is_causal=is_causal)[0]

    layers[TORCH] = torchs, partial(call_torch, fast=True)
    layers[PLAIN_TORCH] = torchs, partial(call_torch, fast=False)

    packed = GPT2Attention(_gpt2_config(length, width, heads), layer_idx=0)
    _copy_gpt2(source, packed)
    layers[GPT2] = packed, lambda x: packed(x, is_causal=is_causal)[0]
    apart = CLIPAttention(_clip_config(width, heads))
    _copy_clip(source, apart)
    layers[CLIP] = apart, lambda x: apart(x, is_causal=is_causal)[0]

    lucid = Attention(dim=width, heads=heads, dim_head=width // heads, causal=is_causal, flash=True)
    _copy_lucid(source, lucid)
    layers[LUCID] = lucid, lucid
    return layers


def blocks(length: int, width: int, heads: int, is_causal: bool) -> dict[str, Layer]:
    """A pre-norm block with a GELU network of four times the width, by name."""
    mask, blocked = _masks(length, is_causal)

    def make() -> EncoderBlock:
        return EncoderBlock(
            MultiHeadAttention(width, heads),
            FeedForward(width, 4 * width, activation=gelu),
            partial(PreNorm, width),
        )

    source = make()
    _no_bias(source.attention)
    attention, network = source.attention, source.feed_forward
    layers: dict[str, Layer] = {}
    for name in (OURS, AGAIN):
        ours = make()
        ours.load_state_dict(source.state_dict())
        layers[name] = ours, partial(ours, mask=mask)

    torchs = nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout=0.0, activation=gelu, batch_first=True, norm_first=True
    )
    _copy_torch(attention, torchs.self_attn)
    _copy_linear(network.up_proj, torchs.linear1)
    _copy_linear(network.down_proj, torchs.linear2)
    layers[TORCH] = torchs, lambda x: torchs(x, src_mask=blocked, is_causal=is_causal)

    packed = GPT2Block(_gpt2_config(length, width, heads), layer_idx=0)
    _copy_gpt2(attention, packed.attn)
    with torch.no_grad():
        for ours, theirs in (
            (network.up_proj, packed.mlp.c_fc),
            (network.down_proj, packed.mlp.c_proj),
        ):
            theirs.weight.copy_(ours.weight.T)
            theirs.bias.copy_(ours.bias)

    def call_packed(x: Tensor) -> Tensor:
        output = packed(x, is_causal=is_causal)
        return output[0] if isinstance(output, tuple) else output

    layers[GPT2] = packed, call_packed
    apart = CLIPEncoderLayer(_clip_config(width, heads))
    _copy_clip(attention, apart.self_attn)
    _copy_linear(network.up_proj, apart.mlp.fc1)
    _copy_linear(network.down_proj, apart.mlp.fc2)

    def call_apart(x: Tensor) -> Tensor:
        output = apart(x, attention_mask=None, is_causal=is_causal)
        return output[0] if isinstance(output, tuple) else output

    layers[CLIP] = apart, call_apart

    kind = Decoder if is_causal else Encoder
    lucid = kind(
        dim=width, depth=1, heads=heads, attn_dim_head=width // heads, attn_flash=True,
        pre_norm_has_final_norm=False,
    )  # fmt: skip
    _copy_lucid(attention, lucid.layers[0][1])
    feed_forward = lucid.layers[1][1].ff
    _copy_linear(network.up_proj, feed_forward[0][0])
    _copy_linear(network.down_proj, feed_forward[2])
    layers[LUCID] = lucid, lucid
    return layers


def check_equal(layers: dict[str, Layer], x: Tensor) -> None:
    """Stop if somebody computes something else."""
    with torch.no_grad():
        expected = layers[OURS][1](x)
        for name, (_, call) in layers.items():
            output = call(x)
            assert output.shape == expected.shape
            difference = (output - expected).abs().max().item()
            if difference > 1e-4:
                raise SystemExit(f"{name} differs from {OURS} by {difference:.2g}")


# --- weights -------------------------------------------------------------------------------------


def _masks(length: int, is_causal: bool):  # ours, and PyTorch's in its opposite sense
    if not is_causal:
        return None, None
    return causal(), torch.ones(length, length, dtype=torch.bool).triu(1)


def _no_bias(attention: MultiHeadAttention) -> None:
    for name, parameter in attention.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)


@torch.no_grad()
def _copy_linear(ours: nn.Linear, theirs: nn.Linear) -> None:
    theirs.weight.copy_(ours.weight)
    if theirs.bias is not None:
        theirs.bias.copy_(ours.bias)


def _joined(attention: MultiHeadAttention) -> Tensor:
    parts = attention.query_proj, attention.key_proj, attention.value_proj
    return torch.cat([part.weight.detach() for part in parts])


@torch.no_grad()
def _copy_torch(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    theirs.in_proj_weight.copy_(_joined(ours))
    theirs.in_proj_bias.zero_()
    _copy_linear(ours.output_proj, theirs.out_proj)


@torch.no_grad()
def _copy_gpt2(ours: MultiHeadAttention, theirs: nn.Module) -> None:
    theirs.c_attn.weight.copy_(_joined(ours).T)
    theirs.c_attn.bias.zero_()
    theirs.c_proj.weight.copy_(ours.output_proj.weight.T)
    theirs.c_proj.bias.zero_()


def _copy_clip(ours: MultiHeadAttention, theirs: nn.Module) -> None:
    _copy_linear(ours.query_proj, theirs.q_proj)
    _copy_linear(ours.key_proj, theirs.k_proj)
    _copy_linear(ours.value_proj, theirs.v_proj)
    _copy_linear(ours.output_proj, theirs.out_proj)


def _copy_lucid(ours: MultiHeadAttention, theirs: nn.Module) -> None:
    _copy_linear(ours.query_proj, theirs.to_q)
    _copy_linear(ours.key_proj, theirs.to_k)
    _copy_linear(ours.value_proj, theirs.to_v)
    _copy_linear(ours.output_proj, theirs.to_out)


def _gpt2_config(length: int, width: int, heads: int) -> GPT2Config:
    return GPT2Config(
        n_positions=length, n_embd=width, n_head=heads, attn_pdrop=0.0, resid_pdrop=0.0,
        activation_function="gelu", attn_implementation="sdpa",
    )  # fmt: skip


def _clip_config(width: int, heads: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=width, intermediate_size=4 * width, num_attention_heads=heads,
        hidden_act="gelu", attention_dropout=0.0, attn_implementation="sdpa",
    )  # fmt: skip
