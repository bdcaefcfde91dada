"""The published Vision Transformer from its ONNX file: all tensors used, numbers as the graph's."""

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
import transformers
import twins_models
from onnx import TensorProto, helper, numpy_helper
from oracle import record

from attention_lib.data import asset_path, photograph
from attention_lib.models import dino
from attention_lib.models.vit import ViTConfig

FINAL = "/backbone/layernorm/Add_1_output_0"  # what the decoder reads


@pytest.fixture(scope="module")
def tensors():
    return dino.onnx_tensors(asset_path("vit-small"))


@pytest.fixture(scope="module")
def published():
    return dino.load()


@pytest.fixture(scope="module")
def cat():
    return dino.standardise(photograph("cat"))[None]


@pytest.mark.oracle
def test_states_are_those_of_the_onnx_graph(published, cat, request):
    model = onnx.load(asset_path("vit-small"))
    model.graph.output.append(helper.make_tensor_value_info(FINAL, TensorProto.FLOAT, None))
    graph = onnx.reference.ReferenceEvaluator(model)
    _, expected = graph.run(None, {"input_image": cat.numpy()})
    with torch.no_grad():
        found = published.states(cat)
    difference = float(np.abs(found.numpy() - expected).max())
    record(request, "13 | ViT-S in the layout of DINOv2, states", difference, 1e-4)
    assert difference < 1e-4
    assert np.abs(expected).max() > 1


@pytest.mark.oracle
def test_states_are_those_of_hugging_face_with_the_same_weights(tensors, published, cat):
    theirs = transformers.Dinov2Model(
        transformers.Dinov2Config(
            image_size=224, patch_size=14, hidden_size=384, num_hidden_layers=12,
            num_attention_heads=6, mlp_ratio=4, layer_norm_eps=1e-6,
        )
    ).eval()  # fmt: skip
    state, _ = dino.dinov2_state(tensors, 224)
    weight = state["projection.weight"].unflatten(1, (3, 14, 14))
    translated = {
        "embeddings.cls_token": state["class_token"][None, None],
        "embeddings.mask_token": torch.zeros(1, 384),
        "embeddings.position_embeddings": state["positions.table"][None],
        "embeddings.patch_embeddings.projection.weight": weight,
        "embeddings.patch_embeddings.projection.bias": state["projection.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    for layer in range(12):
        block = {
            name.removeprefix(f"blocks.{layer}."): x
            for name, x in state.items()
            if name.startswith(f"blocks.{layer}.")
        }
        their_block = twins_models._dinov2_block(block)
        translated |= {f"encoder.layer.{layer}.{name}": x for name, x in their_block.items()}
    theirs.load_state_dict(translated, strict=True)
    with torch.no_grad():
        expected = theirs(pixel_values=cat).last_hidden_state
        assert (published.states(cat) - expected).abs().max() < 1e-4


def test_every_tensor_of_the_backbone_is_used_and_the_rest_is_the_decoders(tensors):
    state, unused = dino.dinov2_state(tensors, 224)
    assert len(unused) == 20
    assert {name.split(".")[0] for name in unused} == {"decoder"}
    backbone = [name for name in tensors if name.startswith("backbone.")]
    assert len(tensors) == len(backbone) + len(unused)
    assert len(state) == len(backbone) - 1  # the two parts of the positions are one table


def test_positions_are_interpolated_for_the_size_asked_for(tensors):
    full = torch.cat(
        [tensors["backbone.embeddings.Concat"], tensors["backbone.embeddings.Reshape"]], 1
    )
    assert full.shape == (1, 1 + 37**2, 384)
    state, _ = dino.dinov2_state(tensors, 518)
    assert torch.allclose(state["positions.table"], full[0], atol=1e-6)
    state, _ = dino.dinov2_state(tensors, 112)
    assert state["positions.table"].shape == (65, 384)


def test_a_smaller_model_takes_smaller_images():
    model = dino.load(image=56)
    assert model.config == ViTConfig(image=56, patch=14, channels=3, width=384, layers=12, heads=6)
    assert not model.training
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 56, 56)).shape == (2, 384)


@pytest.mark.hostile
def test_an_image_size_that_patches_do_not_fill_is_refused():
    with pytest.raises(ValueError, match="patch must divide image = 100, got 14"):
        dino.load(image=100)


@pytest.mark.hostile
def test_a_missing_tensor_is_named(tensors):
    less = {name: x for name, x in tensors.items() if not name.endswith("11.mlp.fc2.MatMul")}
    with pytest.raises(
        ValueError, match=r"1 missing \['backbone\.encoder\.layer\.11\.mlp\.fc2\.MatMul"
    ):
        dino.dinov2_state(less, 224)


@pytest.mark.hostile
def test_a_file_that_is_no_graph_is_refused(tmp_path):
    path = tmp_path / "some.onnx"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match=r"path must be an ONNX file, got some\.onnx"):
        dino.onnx_tensors(path)


def tiny_graph(path, *names):
    """A chain of multiplications; each node has the name given."""
    nodes, constants, before = [], [], "x"
    for index, name in enumerate(names):
        constants.append(
            numpy_helper.from_array(np.full((2, 2), float(index), "f4"), f"onnx::MatMul_{index}")
        )
        nodes.append(
            helper.make_node("MatMul", [before, f"onnx::MatMul_{index}"], [f"y{index}"], name=name)
        )
        before = f"y{index}"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
    y = helper.make_tensor_value_info(before, TensorProto.FLOAT, [2, 2])
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [y], constants)), path)


def test_a_constant_is_called_after_the_operation_that_reads_it(tmp_path):
    tiny_graph(tmp_path / "a.onnx", "/a/first/MatMul", "/a/second/MatMul")
    found = dino.onnx_tensors(tmp_path / "a.onnx")
    assert {name: x[0, 0].item() for name, x in found.items()} == {
        "a.first.MatMul": 0.0,
        "a.second.MatMul": 1.0,
    }


@pytest.mark.hostile
def test_two_constants_of_one_name_are_refused(tmp_path):
    tiny_graph(tmp_path / "a.onnx", "/a/MatMul", "/a/MatMul_1")
    with pytest.raises(ValueError, match="2 constants names of their own, 1"):
        dino.onnx_tensors(tmp_path / "a.onnx")


@pytest.mark.hostile
def test_tensors_that_belong_nowhere_are_not_passed_over(monkeypatch, tensors):
    monkeypatch.setattr(
        dino, "onnx_tensors", lambda path: tensors | {"backbone.extra": torch.ones(1)}
    )
    with pytest.raises(ValueError, match=r"1 not known \['backbone.extra'\]"):
        dino.load("any")


def test_images_are_standardised_channel_by_channel():
    grey = dino.standardise(torch.full((1, 2, 2), 0.5))
    assert grey.shape == (3, 2, 2)
    expected = [(0.5 - m) / d for m, d in zip(dino.MEAN, dino.DEVIATION, strict=True)]
    assert torch.allclose(grey[:, 0, 0], torch.tensor(expected))
    colours = torch.tensor(dino.MEAN)[:, None, None].expand(3, 2, 2)
    assert torch.allclose(dino.standardise(colours[None]), torch.zeros(1, 3, 2, 2), atol=1e-6)


@pytest.mark.hostile
def test_images_of_two_channels_are_refused(no_shape_hook):
    with pytest.raises(ValueError, match=r"must have 3 channels or 1, got shape \(2, 4, 4\)"):
        dino.standardise(torch.zeros(2, 4, 4))


def test_photographs_are_square_colour_images_from_0_to_1():
    for name in ("cat", "coffee", "astronaut", "rocket"):
        image = photograph(name, 28)
        assert image.shape == (3, 28, 28)
        assert image.dtype == torch.float32
        assert 0 <= image.min() < 0.3
        assert 0.5 < image.max() <= 1
    # The suit is orange: red above green above blue in the lower part of the picture.
    red, green, blue = photograph("astronaut", 28)[:, 18:, :10].mean((1, 2))
    assert red > green > blue
    assert photograph("cat").shape == (3, 224, 224)


@pytest.mark.hostile
def test_a_photograph_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"name must be one of \['astronaut', .*got 'dog'"):
        photograph("dog")
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        photograph("cat", 0)
