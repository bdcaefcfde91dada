"""Hugging Face's models with the parameters of ours: the outside reference for whole models.

Each family has a pair of tiny models and a translation of names that keeps gradients. Nothing is
downloaded: the references are built from configs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import transformers
from oracle_layers import part, sinusoidal
from torch import Tensor, nn
from transformers.models.detr import modeling_detr
from twins import block as block_names

from attention_lib.models import bert, detr, gpt, transformer, vit

Parameters = Mapping[str, Tensor]
TOKENS, LENGTH, LAYERS, HIDDEN = 29, 11, 2, 13


@dataclass(frozen=True)
class Family:
    """Our model, theirs, and our parameters under their names."""

    ours: Callable[[], nn.Module]
    theirs: Callable[[], nn.Module]
    translate: Callable[[Parameters], dict[str, Tensor]]


def _stack(
    ours: Parameters,
    old: str,
    new: str,
    translate: Callable[[Parameters], dict[str, Tensor]],
    layers: int = LAYERS,
) -> dict[str, Tensor]:
    """The parameters of all blocks of a stack."""
    found = {}
    for i in range(layers):
        block = translate(part(ours, f"{old}.{i}"))
        found |= {f"{new}.{i}.{name}": x for name, x in block.items()}
    return found


def _renamed(ours: Parameters, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Weights and biases of the parts named, under new names."""
    return {f"{new}.{name}": x for old, new in names.items() for name, x in part(ours, old).items()}


# --- GPT-2: fused projections, matrices the other way round ---------------------------------------


def _gpt2_block(ours: Parameters) -> dict[str, Tensor]:
    theirs = _renamed(
        ours, {"attention_residual.norm": "ln_1", "feed_forward_residual.norm": "ln_2"}
    )
    own = part(ours, "attention")
    for kind in ("weight", "bias"):
        fused = torch.cat([own[f"{name}_proj.{kind}"] for name in ("query", "key", "value")])
        theirs[f"attn.c_attn.{kind}"] = fused.T if kind == "weight" else fused
    for old, new in (
        ("attention.output_proj", "attn.c_proj"),
        ("feed_forward.up_proj", "mlp.c_fc"),
        ("feed_forward.down_proj", "mlp.c_proj"),
    ):
        theirs[f"{new}.weight"] = ours[f"{old}.weight"].T
        theirs[f"{new}.bias"] = ours[f"{old}.bias"]
    return theirs


def _gpt2(ours: Parameters) -> dict[str, Tensor]:
    return {
        "transformer.wte.weight": ours["embedding.weight"],
        "transformer.wpe.weight": ours["added.table"],
        **_renamed(ours, {"norm": "transformer.ln_f"}),
        **_stack(ours, "blocks", "transformer.h", _gpt2_block),
    }


GPT2 = Family(
    lambda: gpt.gpt2(
        gpt.GPTConfig(tokens=TOKENS, length=LENGTH, width=15, layers=LAYERS, heads=3, hidden=HIDDEN)
    ),
    lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=TOKENS, n_positions=LENGTH, n_embd=15, n_layer=LAYERS, n_head=3,
            n_inner=HIDDEN, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
            bos_token_id=None, eos_token_id=None,
        )
    ),
    _gpt2,
)  # fmt: skip


# --- Llama ---------------------------------------------------------------------------------------

_LLAMA_BLOCK = {
    "attention.query_proj": "self_attn.q_proj",
    "attention.key_proj": "self_attn.k_proj",
    "attention.value_proj": "self_attn.v_proj",
    "attention.output_proj": "self_attn.o_proj",
    "feed_forward.gate_proj": "mlp.gate_proj",
    "feed_forward.up_proj": "mlp.up_proj",
    "feed_forward.down_proj": "mlp.down_proj",
    "attention_residual.norm": "input_layernorm",
    "feed_forward_residual.norm": "post_attention_layernorm",
}


def llama_state(ours: Parameters, layers: int = LAYERS) -> dict[str, Tensor]:
    """Our parameters under the names of Hugging Face's Llama."""

    def block(own: Parameters) -> dict[str, Tensor]:
        return _renamed(own, _LLAMA_BLOCK)

    return {
        "model.embed_tokens.weight": ours["embedding.weight"],
        **_renamed(ours, {"norm": "model.norm"}),
        **_stack(ours, "blocks", "model.layers", block, layers),
    }


LLAMA = Family(
    lambda: gpt.llama(
        gpt.GPTConfig(
            tokens=TOKENS, length=LENGTH, width=60, layers=LAYERS, heads=6, kv_heads=2,
            hidden=HIDDEN,
        ),
        base=1000.0,
        eps=1e-4,
    ),
    lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=TOKENS, hidden_size=60, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
            num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=LENGTH,
            rms_norm_eps=1e-4, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
            bos_token_id=None, eos_token_id=None, pad_token_id=None,
        )
    ),
    llama_state,
)  # fmt: skip


def smollm(model: gpt.GPT) -> transformers.LlamaForCausalLM:
    """Hugging Face's SmolLM2 with our weights, on the same memory where they are contiguous."""
    config = model.config
    with torch.device("meta"):
        twin = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=config.tokens, hidden_size=config.width,
                intermediate_size=config.hidden, num_hidden_layers=config.layers,
                num_attention_heads=config.heads, num_key_value_heads=config.kv_heads,
                max_position_embeddings=config.length, rms_norm_eps=1e-5,
                rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
                tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2,
            )
        )  # fmt: skip
    state = llama_state(model.state_dict(), layers=config.layers)
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    twin.load_state_dict(state, assign=True)
    twin.model.rotary_emb = type(twin.model.rotary_emb)(twin.config)  # not on the meta device
    return twin.eval()


# --- BERT ----------------------------------------------------------------------------------------

_BERT_BLOCK = {
    "attention.query_proj": "attention.self.query",
    "attention.key_proj": "attention.self.key",
    "attention.value_proj": "attention.self.value",
    "attention.output_proj": "attention.output.dense",
    "attention_residual.norm": "attention.output.LayerNorm",
    "feed_forward.up_proj": "intermediate.dense",
    "feed_forward.down_proj": "output.dense",
    "feed_forward_residual.norm": "output.LayerNorm",
}


def _bert(ours: Parameters) -> dict[str, Tensor]:
    own = part(ours, "bert")
    encoder = {
        "embeddings.word_embeddings.weight": own["embedding.weight"],
        "embeddings.position_embeddings.weight": own["positions.table"],
        "embeddings.token_type_embeddings.weight": own["segments.weight"],
        **_renamed(own, {"norm": "embeddings.LayerNorm"}),
        **_stack(own, "blocks", "encoder.layer", lambda block: _renamed(block, _BERT_BLOCK)),
    }
    head = "cls.predictions"
    return {
        **{f"bert.{name}": x for name, x in encoder.items()},
        **_renamed(
            ours, {"transform": f"{head}.transform.dense", "norm": f"{head}.transform.LayerNorm"}
        ),
        f"{head}.bias": ours["bias"],
    }


BERT = Family(
    lambda: bert.MaskedLM(
        bert.Bert(
            bert.BertConfig(
                tokens=TOKENS, length=LENGTH, width=15, layers=LAYERS, heads=3, hidden=HIDDEN,
                segments=3,
            )
        )
    ),
    lambda: transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=TOKENS, max_position_embeddings=LENGTH, hidden_size=15,
            num_hidden_layers=LAYERS, num_attention_heads=3, intermediate_size=HIDDEN,
            type_vocab_size=3, hidden_dropout_prob=0, attention_probs_dropout_prob=0,
        )
    ),
    _bert,
)  # fmt: skip


# --- ViT -----------------------------------------------------------------------------------------

IMAGE, PATCH, CHANNELS, CLASSES = 10, 5, 3, 7
_VIT_NAMES = {
    "attention.query_proj": "attention.q_proj",
    "attention.key_proj": "attention.k_proj",
    "attention.value_proj": "attention.v_proj",
    "attention.output_proj": "attention.o_proj",
    "feed_forward.up_proj": "mlp.fc1",
    "feed_forward.down_proj": "mlp.fc2",
}


def _vit_start(ours: Parameters) -> dict[str, Tensor]:
    weight = ours["projection.weight"].unflatten(1, (CHANNELS, PATCH, PATCH))
    return {
        "embeddings.cls_token": ours["class_token"][None, None],
        "embeddings.position_embeddings": ours["positions.table"][None],
        "embeddings.patch_embeddings.projection.weight": weight,
        "embeddings.patch_embeddings.projection.bias": ours["projection.bias"],
        **_renamed(ours, {"norm": "layernorm"}),
    }


def _vit_block(ours: Parameters) -> dict[str, Tensor]:
    norms = {
        "attention_residual.norm": "layernorm_before",
        "feed_forward_residual.norm": "layernorm_after",
    }
    return _renamed(ours, _VIT_NAMES | norms)


def _vit(ours: Parameters) -> dict[str, Tensor]:
    body = _vit_start(ours) | _stack(ours, "blocks", "layers", _vit_block)
    return {
        **{f"vit.{name}": x for name, x in body.items()},
        **_renamed(ours, {"output": "classifier"}),
    }


VIT = Family(
    lambda: vit.vit(
        vit.ViTConfig(
            image=IMAGE, patch=PATCH, channels=CHANNELS, width=15, layers=LAYERS, heads=3,
            classes=CLASSES, hidden=HIDDEN, eps=1e-4,
        )
    ),
    lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(
            image_size=IMAGE, patch_size=PATCH, num_channels=CHANNELS, hidden_size=15,
            num_hidden_layers=LAYERS, num_attention_heads=3, intermediate_size=HIDDEN,
            hidden_dropout_prob=0, attention_probs_dropout_prob=0, layer_norm_eps=1e-4,
            num_labels=CLASSES,
        )
    ),
    _vit,
)  # fmt: skip


def _dinov2_block(ours: Parameters) -> dict[str, Tensor]:
    norms = {
        "attention_residual.residual.norm": "norm1",
        "feed_forward_residual.residual.norm": "norm2",
    }
    return {
        **_renamed(ours, _VIT_NAMES | norms),
        "layer_scale1.lambda1": ours["attention_residual.scale"],
        "layer_scale2.lambda1": ours["feed_forward_residual.scale"],
    }


def _dinov2(ours: Parameters) -> dict[str, Tensor]:
    return _vit_start(ours) | _stack(ours, "blocks", "encoder.layer", _dinov2_block)


DINOV2 = Family(
    lambda: vit.dinov2(
        vit.ViTConfig(
            image=IMAGE, patch=PATCH, channels=CHANNELS, width=15, layers=LAYERS, heads=3,
            hidden=30, eps=1e-4,
        )
    ),
    lambda: transformers.Dinov2Model(
        transformers.Dinov2Config(
            image_size=IMAGE, patch_size=PATCH, num_channels=CHANNELS, hidden_size=15,
            num_hidden_layers=LAYERS, num_attention_heads=3, mlp_ratio=2, layer_norm_eps=1e-4,
            hidden_dropout_prob=0, attention_probs_dropout_prob=0,
        )
    ),
    _dinov2,
)  # fmt: skip

# --- DETR: the encoder and the decoder, with positions passed in ----------------------------------

_DETR_BLOCK = {
    "attention.query_proj": "self_attn.q_proj",
    "attention.key_proj": "self_attn.k_proj",
    "attention.value_proj": "self_attn.v_proj",
    "attention.output_proj": "self_attn.o_proj",
    "cross_attention.query_proj": "encoder_attn.q_proj",
    "cross_attention.key_proj": "encoder_attn.k_proj",
    "cross_attention.value_proj": "encoder_attn.v_proj",
    "cross_attention.output_proj": "encoder_attn.o_proj",
    "attention_residual.norm": "self_attn_layer_norm",
    "cross_residual.norm": "encoder_attn_layer_norm",
    "feed_forward.up_proj": "mlp.fc1",
    "feed_forward.down_proj": "mlp.fc2",
    "feed_forward_residual.norm": "final_layer_norm",
}
DETR_WIDTH, QUERIES = 12, 5


class Stages(nn.Module):
    """Hugging Face's encoder and decoder of DETR, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        config = transformers.DetrConfig(
            d_model=DETR_WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS,
            encoder_attention_heads=3, decoder_attention_heads=3, encoder_ffn_dim=HIDDEN,
            decoder_ffn_dim=HIDDEN, dropout=0, attention_dropout=0, activation_dropout=0,
            backbone_config=transformers.ResNetConfig(), num_queries=QUERIES,
        )  # fmt: skip
        self.encoder = modeling_detr.DetrEncoder(config)
        self.decoder = modeling_detr.DetrDecoder(config)

    def forward(self, features: Tensor, position: Tensor, queries: Tensor) -> Tensor:
        """States of the queries from flattened features."""
        memory = self.encoder(
            inputs_embeds=features, spatial_position_embeddings=position
        ).last_hidden_state
        queries = queries.expand(len(features), -1, -1)
        return self.decoder(
            inputs_embeds=torch.zeros_like(queries),
            encoder_hidden_states=memory,
            spatial_position_embeddings=position,
            object_queries_position_embeddings=queries,
        ).last_hidden_state


class OurStages(nn.Module):
    """The same two of ours."""

    def __init__(self) -> None:
        super().__init__()
        config = detr.DetrConfig(
            classes=7, queries=QUERIES, width=DETR_WIDTH, encoder_layers=LAYERS,
            decoder_layers=LAYERS, heads=3, hidden=HIDDEN,
        )  # fmt: skip
        whole = detr.Detr(config, detr.Backbone([3, 2]))
        self.encoder, self.decoder, self.norm = whole.encoder, whole.decoder, whole.norm

    def forward(self, features: Tensor, position: Tensor, queries: Tensor) -> Tensor:
        """As in ``Detr.encode`` and ``Detr.decode``."""
        x = features
        for block in self.encoder:
            x = block(x, position)
        y = torch.zeros_like(queries).expand(len(features), -1, -1)
        for block in self.decoder:
            y = block(y, x, queries, position)
        return self.norm(y)


def _detr(ours: Parameters) -> dict[str, Tensor]:
    def block(own: Parameters) -> dict[str, Tensor]:
        return _renamed(own, _DETR_BLOCK)

    return {
        **_stack(ours, "encoder", "encoder.layers", block),
        **_stack(ours, "decoder", "decoder.layers", block),
        **_renamed(ours, {"norm": "decoder.layernorm"}),
    }


DETR = Family(OurStages, Stages, _detr)


# --- the Transformer: PyTorch's own --------------------------------------------------------------


class Torch(nn.Module):
    """``nn.Transformer`` between our embedding and our output layer."""

    def __init__(self, *, pre: bool) -> None:
        super().__init__()
        options = {"batch_first": True, "norm_first": pre, "dropout": 0.0}
        sizes = DETR_WIDTH, 3, HIDDEN
        # Left alone, PyTorch adds final norms to post-norm stacks too; the paper has none.
        ends = [nn.LayerNorm(DETR_WIDTH) if pre else None for _ in range(2)]
        self.body = nn.Transformer(
            DETR_WIDTH,
            3,
            custom_encoder=nn.TransformerEncoder(
                nn.TransformerEncoderLayer(*sizes, **options), LAYERS, ends[0],
                enable_nested_tensor=False,
            ),
            custom_decoder=nn.TransformerDecoder(
                nn.TransformerDecoderLayer(*sizes, **options), LAYERS, ends[1]
            ),
            batch_first=True,
        )  # fmt: skip
        self.source = nn.Embedding(TOKENS, DETR_WIDTH)
        self.target = nn.Embedding(CLASSES, DETR_WIDTH)
        self.bias = nn.Parameter(torch.zeros(CLASSES))

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """Logits; the arguments are those of our model."""
        padded = torch.arange(source.shape[1]) >= lengths[:, None]
        later = torch.ones(target.shape[1], target.shape[1]).triu(1).bool()
        x, y = (
            embedding(tokens) * DETR_WIDTH**0.5
            + sinusoidal(tokens.shape[1], DETR_WIDTH).to(embedding.weight)
            for embedding, tokens in ((self.source, source), (self.target, target))
        )
        states = self.body(
            x, y, tgt_mask=later, src_key_padding_mask=padded, memory_key_padding_mask=padded
        )
        return states @ self.target.weight.T + self.bias


def _torch(ours: Parameters) -> dict[str, Tensor]:
    ends = {"encoder_end": "body.encoder.norm", "decoder_end": "body.decoder.norm"}
    return {
        **_stack(ours, "encoder", "body.encoder.layers", block_names),
        **_stack(ours, "decoder", "body.decoder.layers", block_names),
        **_renamed(ours, ends | {"source.table": "source", "target.table": "target"}),
        "bias": ours["bias"],
    }


def transformer_family(*, pre: bool) -> Family:
    """Ours and PyTorch's, with pre-norm or post-norm blocks."""
    config = transformer.TransformerConfig(
        source_tokens=TOKENS, target_tokens=CLASSES, width=DETR_WIDTH, layers=LAYERS, heads=3,
        hidden=HIDDEN,
    )  # fmt: skip
    make = transformer.pre_norm if pre else transformer.original
    return Family(lambda: make(config), lambda: Torch(pre=pre), _torch)
