"""The page of other names: every name exists, every convention is what the library does.

The page is the source. Code in its tables that begins with the name of a library is looked up:
``torch.nn.MultiheadAttention(embed_dim=, num_heads=)`` must exist and take these arguments. In the
tables of conventions the second cell is an answer, and a function here finds the answer by running
the library. What is not installed is skipped.
"""

import importlib
import inspect
import math
import os
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import attention_lib
from attention_lib import (
    MultiHeadAttention,
    attend,
    causal,
    half_from_interleaved,
    interleaved_from_half,
    merge_heads,
    sliding_window,
    split_heads,
)
from attention_lib.interop import load_torch_state, to_torch_state
from attention_lib.losses import cross_entropy
from attention_lib.positions import Rotary, alibi_slopes

os.environ.setdefault("KERAS_BACKEND", "torch")
PAGE = Path(__file__).parents[1] / "chapters" / "names.md"
LIBRARIES = ("torch", "keras", "jax", "flax", "transformers")
NAME = re.compile(rf"((?:{'|'.join(LIBRARIES)})(?:\.\w+)+)(?:\(((?:\w+=,? ?)+)\))?")
OWN = re.compile(r"(\w+(?:\.\w+)*)(?:\(((?:\w+=,? ?)+)\))?")

# Imports of large libraries warn of this and that, which is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


def tables_of(text: str) -> list[tuple[str, list[str], list[list[str]]]]:
    """The tables of a page: the heading above, the names of the columns, the rows."""
    tables, heading, above = [], "", ""
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and not above.startswith("|"):
            tables.append((heading, cells, []))
        elif line.startswith("|") and not set(line) <= set("|-: "):
            tables[-1][2].append(cells)
        above = line
    return tables


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


TABLES = tables_of(PAGE.read_text())
CELLS = [cell for _, _, rows in TABLES for row in rows for cell in row]
OUTSIDE = sorted({span for cell in CELLS for span in spans(cell) if NAME.fullmatch(span)})
OWN_NAMES = sorted(
    {
        span
        for _, columns, rows in TABLES
        if columns[0] == "this book"
        for row in rows
        for span in spans(row[0])
    }
)
CLAIMS = {
    (heading, row[0]): row[1]
    for heading, columns, rows in TABLES
    if columns[0] != "this book"
    for row in rows
}


def need(name: str) -> Any:
    """A library, or a skip where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def resolve(path: str) -> Any:
    """The object behind a dotted name."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(path)


def takes(function: Any, argument: str) -> bool:
    """Whether a function, or the constructor of a class, has a named argument."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # built into PyTorch: the signature is the first line of the documentation
        line = inspect.getdoc(function).split("->")[0]
        return re.search(rf"\b{argument}\b", line) is not None
    if argument in parameters:
        return True
    # A class whose constructor takes anything keeps what it understands.
    only_keywords = {p.kind for p in parameters.values()} == {inspect.Parameter.VAR_KEYWORD}
    return inspect.isclass(function) and only_keywords and hasattr(function(), argument)


def lacking(name: str, arguments: str | None) -> list[str]:
    """Arguments that the page gives to a name and the name does not take."""
    found = resolve(name)
    return [x for x in re.findall(r"\w+", arguments or "") if not takes(found, x)]


@pytest.mark.parametrize("span", OUTSIDE)
def test_every_name_of_another_library_exists(span: str):
    name, arguments = NAME.fullmatch(span).groups()
    need(name.split(".")[0])
    assert lacking(name, arguments) == []


@pytest.mark.parametrize("span", OWN_NAMES)
def test_every_name_of_the_book_exists(span: str):
    name, arguments = OWN.fullmatch(span).groups()
    path = name if name.startswith("torch.") else f"attention_lib.{name}"
    assert lacking(path, arguments) == []


def test_the_page_names_the_version_of_each_library():
    text = PAGE.read_text()
    assert all(re.search(rf"`{library} \d+\.\d+", text) for library in LIBRARIES)


def test_names_that_do_not_exist_are_found():
    with pytest.raises(AttributeError):
        resolve("torch.nn.MultiHeadAttention")
    with pytest.raises(ModuleNotFoundError):
        resolve("no_such_library.attention")
    assert lacking("torch.nn.MultiheadAttention", "embed_dim=, heads=") == ["heads"]
    sdpa = "torch.nn.functional.scaled_dot_product_attention"
    assert lacking(sdpa, "attn_mask=, scale=, mask=") == ["mask"]


# The conventions. A function answers; the second cell of its row must say the same.

ANSWERS: dict[tuple[str, str], Callable[[], str]] = {}


def row(heading: str, cell: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    def keep(function: Callable[[], str]) -> Callable[[], str]:
        ANSWERS[heading, cell] = function
        return function

    return keep


def test_every_row_of_conventions_has_an_answer_and_no_answer_is_left_over():
    assert sorted(CLAIMS) == sorted(ANSWERS)


@pytest.mark.parametrize("key", ANSWERS, ids=lambda key: re.sub(r"[`()]", "", ": ".join(key)))
def test_convention(key: tuple[str, str]):
    for name in re.findall(rf"\b({'|'.join(LIBRARIES)})\.", key[1]):
        need(name)
    assert ANSWERS[key]() == CLAIMS.get(key)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(a: Any, b: Any) -> bool:
    a, b = _plain(a), _plain(b)
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), atol=1e-4)


def _plain(x: Any) -> Tensor:
    """An array of any library as a tensor."""
    return x.detach() if isinstance(x, Tensor) else torch.from_numpy(numpy.array(x))


ELSE = "something else"
B, H, T, DH = 2, 3, 5, 4
D = H * DH
Q, K, V = (draw(B, H, T, DH, seed=seed) for seed in (1, 2, 3))
X = draw(B, T, D, seed=4)
CAUSAL = torch.ones(T, T).tril().bool()


def book_layout(x: Tensor) -> Tensor:
    return x.transpose(1, 2)


def array(x: Tensor) -> Any:
    return x.detach().numpy()


def functions() -> dict[str, Callable[..., Any]]:
    """Attention of other libraries on (B, T, H, Dh) arrays."""
    found: dict[str, Callable[..., Any]] = {}
    for library, path in {
        "keras": "keras.ops.dot_product_attention",
        "jax": "jax.nn.dot_product_attention",
        "linen": "flax.linen.dot_product_attention",
        "nnx": "flax.nnx.dot_product_attention",
    }.items():
        found[library] = partial(_call, path)
    return found


def _call(path: str, *inputs: Any, **options: Any) -> Tensor:
    need(path.split(".")[0])
    options = {name: array(x) if isinstance(x, Tensor) else x for name, x in options.items()}
    return _plain(resolve(path)(*(array(x) for x in inputs), **options))


def meaning(
    run: Callable[[Tensor], Any], allowed: Tensor, expect: Callable[[Tensor], Tensor]
) -> str:
    """What True means to a function that takes a mask."""
    with torch.no_grad():
        given = run(allowed)
        if same(given, expect(allowed)):
            return "may attend"
        return "may not attend" if same(given, expect(~allowed)) else ELSE


# What True means

TRUE = "What True means in a mask"
SDPA = "`torch.nn.functional.scaled_dot_product_attention(attn_mask=)`"
MIXED = draw(T, T, seed=9) > 0  # a mask whose opposite is a mask as well: no row is empty
MIXED[:, 0], MIXED[:, 1] = True, False


@row(TRUE, "`attend(mask=)` of this book")
def _own() -> str:
    explicit = partial(attention_lib.attend_explicit, Q, K, V)
    return meaning(lambda m: attend(Q, K, V, m), MIXED, lambda m: explicit(m))


@row(TRUE, SDPA)
def _sdpa() -> str:
    run = partial(scaled_dot_product_attention, Q, K, V)
    return meaning(lambda m: run(attn_mask=m), MIXED, lambda m: attend(Q, K, V, m))


def twin() -> tuple[MultiHeadAttention, nn.MultiheadAttention]:
    """A module of the book and PyTorch's with the same weights."""
    ours = MultiHeadAttention(D, H)
    theirs = nn.MultiheadAttention(D, H, batch_first=True)
    theirs.load_state_dict(to_torch_state(ours))
    return ours.eval(), theirs.eval()


@row(TRUE, "`torch.nn.MultiheadAttention.forward(attn_mask=)`")
def _mha() -> str:
    ours, theirs = twin()
    return meaning(lambda m: theirs(X, X, X, attn_mask=m)[0], MIXED, lambda m: ours(X, mask=m))


@row(TRUE, "`torch.nn.MultiheadAttention.forward(key_padding_mask=)`")
def _mha_padding() -> str:
    ours, theirs = twin()
    real = MIXED[:B]
    return meaning(
        lambda m: theirs(X, X, X, key_padding_mask=m)[0], real, lambda m: ours(X, mask=m[:, None])
    )


def _layer(name: str) -> str:
    layer = nn.TransformerEncoderLayer(D, H, 16, dropout=0.0, batch_first=True).eval()
    m = MIXED if name == "src_mask" else MIXED[:B]
    ours, _ = twin()
    load_torch_state(ours, layer.self_attn.state_dict())

    def expect(mask: Tensor) -> Tensor:
        x = layer.norm1(X + ours(X, mask=mask if name == "src_mask" else mask[:, None]))
        return layer.norm2(x + layer.linear2(layer.linear1(x).relu()))

    return meaning(lambda mask: layer(X, **{name: mask}), m, expect)


@row(TRUE, "`torch.nn.TransformerEncoderLayer.forward(src_mask=)`")
def _src_mask() -> str:
    return _layer("src_mask")


@row(TRUE, "`torch.nn.TransformerEncoderLayer.forward(src_key_padding_mask=)`")
def _src_padding() -> str:
    return _layer("src_key_padding_mask")


@row(TRUE, "`torch.nn.attention.flex_attention.create_block_mask(mask_mod=)`")
def _flex() -> str:
    from torch.nn.attention.flex_attention import create_block_mask

    m = create_block_mask(lambda b, h, q, k: k <= q, None, None, 256, 256, device="cpu")
    return "may attend" if m.to_dense()[0, 0].tolist() == [[1, 0], [1, 1]] else ELSE


@row(TRUE, "`keras.ops.dot_product_attention(mask=)`")
def _keras_ops() -> str:
    return _function_mask("keras")


@row(TRUE, "`jax.nn.dot_product_attention(mask=)`")
def _jax() -> str:
    return _function_mask("jax")


@row(TRUE, "`flax.linen.dot_product_attention(mask=)`")
def _linen() -> str:
    return _function_mask("linen")


@row(TRUE, "`flax.nnx.dot_product_attention(mask=)`")
def _nnx() -> str:
    return _function_mask("nnx")


def _function_mask(library: str) -> str:
    run = functions()[library]
    q, k, v = map(book_layout, (Q, K, V))
    return meaning(
        lambda m: book_layout(run(q, k, v, mask=m.expand(B, H, T, T))),
        MIXED,
        lambda m: attend(Q, K, V, m),
    )


def keras_layer() -> tuple[MultiHeadAttention, Any]:
    """A Keras layer with random weights, and a module of the book with the same."""
    keras = need("keras")
    layer = keras.layers.MultiHeadAttention(num_heads=H, key_dim=DH)
    layer(array(X), array(X))
    kernels = {}
    for seed, weight in enumerate(layer.weights):
        weight.assign(array(draw(*weight.shape, seed=seed) / 3))
        path = "/".join(weight.path.split("/")[-2:])
        kernels[path] = _plain(keras.ops.convert_to_numpy(weight))
    names = ("query", "key", "value", "attention_output")
    return from_kernels([(kernels[f"{x}/kernel"], kernels[f"{x}/bias"]) for x in names]), layer


def from_kernels(pairs: list[tuple[Tensor, Tensor]]) -> MultiHeadAttention:
    """The book's module from kernels (D, H, Dh), (D, H, Dh), (D, H, Dh) and (H, Dh, D)."""
    ours = MultiHeadAttention(D, H)
    parts = (ours.query_proj, ours.key_proj, ours.value_proj, ours.output_proj)
    for part, (kernel, bias) in zip(parts, pairs, strict=True):
        part.weight.data = kernel.reshape(D, D).T.contiguous()
        part.bias.data = bias.reshape(D)
    return ours.eval()


def keras_mask(name: str, m: Tensor) -> str:
    ours, layer = keras_layer()
    convert = need("keras").ops.convert_to_numpy
    return meaning(
        lambda mask: convert(layer(array(X), array(X), **{name: array(mask)})),
        m,
        lambda mask: ours(X, mask=mask if mask.ndim == 3 else mask[:, None]),
    )


@row(TRUE, "`keras.layers.MultiHeadAttention.call(attention_mask=)`")
def _keras_attention_mask() -> str:
    return keras_mask("attention_mask", MIXED.expand(B, T, T))


@row(TRUE, "`keras.layers.MultiHeadAttention.call(value_mask=)`")
def _keras_value_mask() -> str:
    return keras_mask("value_mask", MIXED[:B])


@row(TRUE, "`keras.layers.MultiHeadAttention.call(key_mask=)`")
def _keras_key_mask() -> str:
    return keras_mask("key_mask", MIXED[:B])


def linen_layer() -> tuple[MultiHeadAttention, Callable[..., Any]]:
    linen, jax = need("flax.linen"), need("jax")
    layer = linen.MultiHeadDotProductAttention(num_heads=H)
    weights = layer.init(jax.random.key(0), array(X))
    parts = [weights["params"][name] for name in ("query", "key", "value", "out")]
    ours = from_kernels([(_plain(part["kernel"]), _plain(part["bias"])) for part in parts])
    return ours, partial(layer.apply, weights)


def nnx_layer() -> tuple[MultiHeadAttention, Any]:
    nnx = need("flax.nnx")
    layer = nnx.MultiHeadAttention(num_heads=H, in_features=D, decode=False, rngs=nnx.Rngs(0))
    parts = [getattr(layer, name) for name in ("query", "key", "value", "out")]
    ours = from_kernels([(_plain(part.kernel[...]), _plain(part.bias[...])) for part in parts])
    return ours, layer


@row(TRUE, "`flax.linen.MultiHeadDotProductAttention.__call__(mask=)`")
def _linen_layer() -> str:
    ours, run = linen_layer()
    return meaning(
        lambda m: run(array(X), mask=array(m.expand(B, 1, T, T))), MIXED, lambda m: ours(X, mask=m)
    )


@row(TRUE, "`flax.nnx.MultiHeadAttention.__call__(mask=)`")
def _nnx_layer() -> str:
    ours, run = nnx_layer()
    return meaning(
        lambda m: run(array(X), mask=array(m.expand(B, 1, T, T))), MIXED, lambda m: ours(X, mask=m)
    )


VOCABULARY = 31


def bert(**options: Any) -> Any:
    transformers = need("transformers")
    sizes = {"hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": H}
    sizes |= {"intermediate_size": 16, "max_position_embeddings": 16, "vocab_size": VOCABULARY}
    return transformers.BertModel(transformers.BertConfig(**sizes, **options)).eval()


def gpt2(**options: Any) -> Any:
    transformers = need("transformers")
    sizes = {"n_embd": D, "n_layer": 2, "n_head": H, "n_positions": 16, "vocab_size": VOCABULARY}
    options |= {"bos_token_id": 1, "eos_token_id": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **options)).eval()


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


@row(TRUE, "`transformers.BertModel.forward(attention_mask=)`, 1 in place of True")
def _hugging_face() -> str:
    model, text = bert(), tokens(1, 3)
    longer = torch.cat([text, tokens(1, 2, seed=1)], dim=1)
    kept = torch.tensor([[1, 1, 1, 0, 0]])
    with torch.no_grad():
        alone = model(text).last_hidden_state
        if same(model(longer, attention_mask=kept).last_hidden_state[:, :3], alone):
            return "may attend"
    return ELSE


# Floats

FLOATS = "What a mask of floats does"


@row(FLOATS, SDPA)
def _sdpa_floats() -> str:
    return _added(lambda m: scaled_dot_product_attention(Q, K, V, attn_mask=m))


@row(FLOATS, "`torch.nn.MultiheadAttention.forward(attn_mask=)`")
def _mha_floats() -> str:
    ours, theirs = twin()
    parts = (ours.query_proj, ours.key_proj, ours.value_proj)
    q, k, v = (split_heads(part(X), H) for part in parts)
    bias = draw(T, T, seed=5)
    found = theirs(X, X, X, attn_mask=bias)[0]
    expected = ours.output_proj(merge_heads(attend(q, k, v, bias=bias)))
    return "added to the scores" if same(found, expected) else ELSE


def _added(run: Callable[[Tensor], Tensor]) -> str:
    bias = draw(T, T, seed=5)
    return "added to the scores" if same(run(bias), attend(Q, K, V, bias=bias)) else ELSE


@row(FLOATS, "`torch.nn.Transformer.generate_square_subsequent_mask`")
def _square() -> str:
    mask = nn.Transformer.generate_square_subsequent_mask(3)
    expected = torch.full((3, 3), -math.inf).triu(1)
    return "0 and minus infinity, to be added" if torch.equal(mask, expected) else ELSE


# Alignment

ALIGNED = "Where causal is aligned when there are fewer queries than keys"


def alignment(run: Callable[[Tensor, Tensor, Tensor], Any]) -> str:
    """What one query sees of five keys: functions on (B, H, T, Dh)."""
    found = run(Q[:, :, -1:], K, V)
    if same(found, attend(Q[:, :, -1:], K, V)):
        return "at the end: it sees all"
    return "at the start: it sees the first" if same(found, V[:, :, :1]) else ELSE


@row(ALIGNED, "`causal` of this book")
def _own_alignment() -> str:
    return alignment(lambda q, k, v: attend(q, k, v, causal()))


@row(ALIGNED, "`torch.nn.functional.scaled_dot_product_attention(is_causal=)`")
def _sdpa_alignment() -> str:
    return alignment(partial(scaled_dot_product_attention, is_causal=True))


@row(ALIGNED, "`torch.nn.attention.bias.causal_lower_right`")
def _lower_right() -> str:
    from torch.nn.attention.bias import causal_lower_right

    return alignment(partial(scaled_dot_product_attention, attn_mask=causal_lower_right(1, T)))


@row(ALIGNED, "`torch.nn.attention.bias.causal_upper_left`")
def _upper_left() -> str:
    from torch.nn.attention.bias import causal_upper_left

    return alignment(partial(scaled_dot_product_attention, attn_mask=causal_upper_left(1, T)))


def _function_alignment(library: str) -> str:
    run = functions()[library]
    return alignment(lambda q, k, v: book_layout(run(*map(book_layout, (q, k, v)), is_causal=True)))


@row(ALIGNED, "`keras.ops.dot_product_attention(is_causal=)`")
def _keras_alignment() -> str:
    return _function_alignment("keras")


@row(ALIGNED, "`jax.nn.dot_product_attention(is_causal=)`")
def _jax_alignment() -> str:
    return _function_alignment("jax")


@row(ALIGNED, "`flax.nnx.dot_product_attention(is_causal=)`")
def _nnx_alignment() -> str:
    return _function_alignment("nnx")


@row(ALIGNED, "`keras.layers.MultiHeadAttention.call(use_causal_mask=)`")
def _keras_layer_alignment() -> str:
    ours, layer = keras_layer()
    found = need("keras").ops.convert_to_numpy(
        layer(array(X[:, -1:]), array(X), use_causal_mask=True)
    )
    if same(found, ours(X[:, -1:], X)):
        return "at the end: it sees all"
    first = same(found, ours(X[:, -1:], X[:, :1]))
    return "at the start: it sees the first" if first else ELSE


@row(ALIGNED, "`transformers.GPT2LMHeadModel` with a cache")
def _hugging_face_alignment() -> str:
    model, text = gpt2(), tokens(1, T)
    with torch.no_grad():
        past = model(text[:, :-1], use_cache=True).past_key_values
        found = model(text[:, -1:], past_key_values=past).logits
        whole = model(text).logits[:, -1:]
    return "at the end: it sees all" if same(found, whole) else ELSE


# Nothing allowed

EMPTY = "What a query gets that may attend to nothing"


def emptiness(found: Any, values: Tensor) -> str:
    found = _plain(found)
    if found.isnan().all():
        return "nan"
    if not found.any():
        return "zeros"
    mean = values.mean(dim=-2, keepdim=True).expand_as(found)
    return "the mean of all values" if same(found, mean) else ELSE


NOTHING = torch.zeros(T, T, dtype=torch.bool)


@row(EMPTY, "`attend` of this book")
def _own_empty() -> str:
    return emptiness(attend(Q, K, V, NOTHING), V)


@row(EMPTY, "`torch.nn.functional.scaled_dot_product_attention`")
def _sdpa_empty() -> str:
    return emptiness(scaled_dot_product_attention(Q, K, V, attn_mask=NOTHING), V)


@row(EMPTY, "`torch.nn.MultiheadAttention` that returns weights")
def _mha_empty() -> str:
    _, theirs = twin()
    return emptiness(theirs(X, X, X, key_padding_mask=torch.ones(B, T).bool())[0], X)


def _function_empty(library: str) -> str:
    run = functions()[library]
    nothing = NOTHING.expand(B, H, T, T)
    return emptiness(book_layout(run(*map(book_layout, (Q, K, V)), mask=nothing)), V)


@row(EMPTY, "`keras.ops.dot_product_attention`")
def _keras_empty() -> str:
    return _function_empty("keras")


@row(EMPTY, "`jax.nn.dot_product_attention`")
def _jax_empty() -> str:
    return _function_empty("jax")


@row(EMPTY, "`flax.linen.dot_product_attention`")
def _linen_empty() -> str:
    return _function_empty("linen")


@row(EMPTY, "`flax.nnx.dot_product_attention`")
def _nnx_empty() -> str:
    return _function_empty("nnx")


# Layout

AXES = "The order of the axes"
HEADS_FIRST, TIME_FIRST = "(B, H, T, Dh)", "(B, T, H, Dh)"


def layout(run: Callable[..., Any]) -> str:
    expected = attend(Q, K, V)
    if same(run(Q, K, V), expected):
        return HEADS_FIRST
    found = run(*map(book_layout, (Q, K, V)))
    return TIME_FIRST if same(found, book_layout(expected)) else ELSE


@row(AXES, "`attend` of this book")
def _own_layout() -> str:
    return layout(attention_lib.attend_explicit)


@row(AXES, "`torch.nn.functional.scaled_dot_product_attention`")
def _sdpa_layout() -> str:
    return layout(scaled_dot_product_attention)


@row(AXES, "`keras.ops.dot_product_attention`")
def _keras_layout() -> str:
    return layout(functions()["keras"])


@row(AXES, "`jax.nn.dot_product_attention`")
def _jax_layout() -> str:
    return layout(functions()["jax"])


@row(AXES, "`flax.linen.dot_product_attention`")
def _linen_layout() -> str:
    return layout(functions()["linen"])


@row(AXES, "`flax.nnx.dot_product_attention`")
def _nnx_layout() -> str:
    return layout(functions()["nnx"])


@row(AXES, "`transformers.integrations.sdpa_attention.sdpa_attention_forward`")
def _interface_layout() -> str:
    need("transformers")
    forward = resolve("transformers.integrations.sdpa_attention.sdpa_attention_forward")
    module = nn.Module()
    module.is_causal = False  # what it asks its layer
    found, _ = forward(module, Q, K, V, None, scaling=DH**-0.5)
    right = same(found, book_layout(attend(Q, K, V)))
    return f"{HEADS_FIRST} in, {TIME_FIRST} out" if right else ELSE


@row(AXES, "`torch.nn.MultiheadAttention`")
def _mha_layout() -> str:
    _, first = twin()
    default = nn.MultiheadAttention(D, H).eval()
    default.load_state_dict(first.state_dict())
    time_first = default(*(X.transpose(0, 1) for _ in range(3)))[0].transpose(0, 1)
    right = same(time_first, first(X, X, X)[0]) and not same(default(X, X, X)[0], time_first)
    return "(T, B, D); (B, T, D) with batch_first" if right else ELSE


@row(AXES, "`keras.layers.MultiHeadAttention`")
def _keras_layer_layout() -> str:
    ours, layer = keras_layer()
    found = need("keras").ops.convert_to_numpy(layer(array(X), array(X)))
    return "(B, T, D)" if same(found, ours(X)) else ELSE


@row(AXES, "`flax.linen.MultiHeadDotProductAttention`")
def _linen_layer_layout() -> str:
    ours, run = linen_layer()
    return "(B, T, D)" if same(run(array(X)), ours(X)) else ELSE


@row(AXES, "`flax.nnx.MultiHeadAttention`")
def _nnx_layer_layout() -> str:
    ours, run = nnx_layer()
    return "(B, T, D)" if same(run(array(X)), ours(X)) else ELSE


@row(AXES, "`keras.layers.Attention`, order of its list")
def _keras_order() -> str:
    keras = need("keras")
    q, k, v = (draw(B, T, DH, seed=seed) for seed in (1, 2, 3))
    layer = keras.layers.Attention()
    found = keras.ops.convert_to_numpy(layer([array(q), array(v), array(k)]))
    return "query, value, key" if same(found, attend(q, k, v, scale=1.0)) else ELSE


# Scale

SCALE = "What the scores are divided by"
ROOT = "root of the head's width"


def scaling(found: Any, q: Tensor, k: Tensor, v: Tensor) -> str:
    for answer, scale in ((ROOT, None), ("nothing", 1.0)):
        if same(found, attend(q, k, v, scale=scale)):
            return answer
    return ELSE


@row(SCALE, "`attend` of this book, unless `scale` is given")
def _own_scale() -> str:
    weights = torch.softmax(Q @ K.mT / DH**0.5, dim=-1)
    return ROOT if same(attend(Q, K, V), weights @ V) else ELSE


@row(SCALE, "`torch.nn.functional.scaled_dot_product_attention`, unless `scale` is given")
def _sdpa_scale() -> str:
    return scaling(scaled_dot_product_attention(Q, K, V), Q, K, V)


@row(SCALE, "`jax.nn.dot_product_attention`, unless `scale` is given")
def _jax_scale() -> str:
    return scaling(book_layout(functions()["jax"](*map(book_layout, (Q, K, V)))), Q, K, V)


@row(SCALE, "`flax.nnx.dot_product_attention`")
def _nnx_scale() -> str:
    return scaling(book_layout(functions()["nnx"](*map(book_layout, (Q, K, V)))), Q, K, V)


@row(SCALE, "`keras.ops.dot_product_attention`, unless `scale` is given")
def _keras_scale() -> str:
    return scaling(book_layout(functions()["keras"](*map(book_layout, (Q, K, V)))), Q, K, V)


@row(SCALE, "`keras.layers.Attention`")
def _keras_attention_scale() -> str:
    keras = need("keras")
    q, k, v = (draw(B, T, DH, seed=seed) for seed in (1, 2, 3))
    found = keras.ops.convert_to_numpy(keras.layers.Attention()([array(q), array(v), array(k)]))
    return scaling(found, q, k, v)


@row(SCALE, "`transformers.models.t5.modeling_t5.T5Attention`")
def _t5_scale() -> str:
    transformers = need("transformers")
    kind = resolve("transformers.models.t5.modeling_t5.T5Attention")
    config = transformers.T5Config(d_model=D, d_kv=DH, num_heads=H, dropout_rate=0.0)
    layer = kind(config, has_relative_attention_bias=False).eval()
    q, k, v = (split_heads(part(X), H) for part in (layer.q, layer.k, layer.v))
    found = layer(X)[0]
    for answer, scale in ((ROOT, None), ("nothing", 1.0)):
        if same(found, layer.o(merge_heads(attend(q, k, v, scale=scale)))):
            return answer
    return ELSE


# What comes back

BACK = "What comes back"


@row(BACK, "`MultiHeadAttention.attention_weights` of this book")
def _own_weights() -> str:
    found = twin()[0].attention_weights(X)
    right = found.shape == (B, H, T, T) and same(found.sum(dim=-1), torch.ones(B, H, T))
    return "weights (B, H, Tq, Tk)" if right else ELSE


@row(BACK, "`torch.nn.MultiheadAttention.forward(need_weights=)`")
def _mha_weights() -> str:
    ours, theirs = twin()
    mean = same(theirs(X, X, X)[1], ours.attention_weights(X).mean(dim=1))
    return "output and weights, mean over heads" if mean else ELSE


@row(BACK, "`torch.nn.MultiheadAttention.forward(average_attn_weights=)`, False")
def _mha_each() -> str:
    ours, theirs = twin()
    found = theirs(X, X, X, average_attn_weights=False)[1]
    return "weights (B, H, Tq, Tk)" if same(found, ours.attention_weights(X)) else ELSE


@row(BACK, "`keras.layers.MultiHeadAttention.call(return_attention_scores=)`")
def _keras_weights() -> str:
    ours, layer = keras_layer()
    _, found = layer(array(X), array(X), return_attention_scores=True)
    found = need("keras").ops.convert_to_numpy(found)
    right = same(found, ours.attention_weights(X))
    return "output and weights (B, H, Tq, Tk), not scores" if right else ELSE


@row(
    BACK,
    '`transformers.GPT2LMHeadModel` with `attn_implementation="eager"`, '
    "called with `output_attentions=True`",
)
def _hugging_face_weights() -> str:
    model = gpt2(attn_implementation="eager")
    with torch.no_grad():
        found = model(tokens(B, T), output_attentions=True).attentions
    right = len(found) == 2 and all(w.shape == (B, H, T, T) for w in found)
    right = right and all(same(w.sum(dim=-1), torch.ones(B, H, T)) for w in found)
    return "one tensor a layer, weights (B, H, Tq, Tk)" if right else ELSE


@row(BACK, "the same with the default implementation")
def _hugging_face_weights_by_default() -> str:
    with torch.no_grad():
        found = gpt2().eval()(tokens(B, T), output_attentions=True).attentions
    return ELSE if found and any(w is not None for w in found) else "no weights"


# Losses

LOSSES = "Losses"


@row(LOSSES, "`losses.cross_entropy` of this book")
def _own_loss() -> str:
    logits, targets = draw(B, T, VOCABULARY), tokens(B, T)
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return "logits (..., V)" if same(cross_entropy(logits, targets), expected) else ELSE


@row(LOSSES, "`torch.nn.functional.cross_entropy`")
def _torch_loss() -> str:
    logits, targets = draw(B, T, VOCABULARY), tokens(B, T)
    found = nn.functional.cross_entropy(logits.mT, targets)
    return "logits (B, V, ...)" if same(found, cross_entropy(logits, targets)) else ELSE


@row(LOSSES, "`keras.losses.SparseCategoricalCrossentropy`, unless `from_logits` is True")
def _keras_loss() -> str:
    keras = need("keras")
    logits, targets = draw(B, T, VOCABULARY), tokens(B, T)
    loss = keras.losses.SparseCategoricalCrossentropy()
    found = keras.ops.convert_to_numpy(loss(array(targets), array(logits.softmax(dim=-1))))
    right = same(found, cross_entropy(logits, targets))
    return "probabilities (..., V)" if right else ELSE


@row(LOSSES, "`transformers.GPT2LMHeadModel.forward(labels=)`")
def _hugging_face_loss() -> str:
    model, text = gpt2(), tokens(B, T)
    labels = text.clone()
    labels[:, -1] = -100
    with torch.no_grad():
        found = model(text, labels=labels)
    expected = cross_entropy(found.logits[:, :-2], text[:, 1:-1])
    right = same(found.loss, expected)
    return "the input itself, shifted inside; -100 is skipped" if right else ELSE


# Defaults

DEFAULTS = "Defaults that differ"


def default(path: str, argument: str) -> str:
    need(path.split(".")[0])
    return f"{inspect.signature(resolve(path)).parameters[argument].default:g}"


for _path, _argument in (
    ("torch.nn.LayerNorm", "eps"),
    ("keras.layers.LayerNormalization", "epsilon"),
    ("keras.layers.RMSNormalization", "epsilon"),
    ("flax.linen.LayerNorm", "epsilon"),
    ("flax.linen.RMSNorm", "epsilon"),
    ("flax.nnx.LayerNorm.__init__", "epsilon"),
):
    ANSWERS[DEFAULTS, f"`{_path}({_argument}=)`"] = partial(default, _path, _argument)


def of_config(kind: str, name: str) -> str:
    value = getattr(getattr(need("transformers"), kind)(), name)
    return value if isinstance(value, str) else f"{value:g}"


for _kind, _name in (
    ("BertConfig", "layer_norm_eps"),
    ("GPT2Config", "layer_norm_epsilon"),
    ("LlamaConfig", "rms_norm_eps"),
):
    ANSWERS[DEFAULTS, f"`transformers.{_kind}({_name}=)`"] = partial(of_config, _kind, _name)


def bend(function: Callable[[Any], Any]) -> str:
    x = torch.linspace(-3, 3, 25)
    for answer, approximate in (("exact", "none"), ("through a tanh", "tanh")):
        if torch.allclose(
            _plain(function(x)),
            nn.functional.gelu(x, approximate=approximate),
            atol=1e-5,
        ):
            return answer
    return ELSE


@row(DEFAULTS, "`torch.nn.functional.gelu`")
def _torch_gelu() -> str:
    return bend(nn.functional.gelu)


@row(DEFAULTS, "`keras.activations.gelu`")
def _keras_gelu() -> str:
    keras = need("keras")
    return bend(lambda x: keras.ops.convert_to_numpy(keras.activations.gelu(array(x))))


@row(DEFAULTS, "`jax.nn.gelu`")
def _jax_gelu() -> str:
    jax = need("jax")
    return bend(lambda x: jax.nn.gelu(array(x)))


@row(DEFAULTS, "`transformers.GPT2Config(activation_function=)`")
def _gpt2_gelu() -> str:
    return bend(gpt2().transformer.h[0].mlp.act)


@row(DEFAULTS, "`torch.nn.functional.scaled_dot_product_attention(dropout_p=)`")
def _sdpa_dropout() -> str:
    dropped = scaled_dot_product_attention(Q, K, V, dropout_p=0.5)
    return "drops in evaluation too" if not same(dropped, attend(Q, K, V)) else ELSE


@row(DEFAULTS, "`torch.nn.TransformerEncoderLayer(norm_first=)`")
def _norm_first() -> str:
    layer = nn.TransformerEncoderLayer(D, H, 16, batch_first=True).eval()
    with torch.no_grad():
        rows = layer(3 * X)
    return "post-norm" if same(rows.mean(dim=-1), torch.zeros(B, T)) else "pre-norm"


@row(DEFAULTS, "`jax.nn.dot_product_attention(local_window_size=)`, one number")
def _jax_window() -> str:
    q, k, v = map(book_layout, (Q, K, V))
    found = book_layout(functions()["jax"](q, k, v, local_window_size=1))
    both = same(found, attend(Q, K, V, sliding_window(1, 1)))
    return "so many keys on both sides, besides its own" if both else ELSE


@row(DEFAULTS, "`transformers.MistralConfig(sliding_window=)`")
def _mistral_window() -> str:
    transformers = need("transformers")
    sizes = {"hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": H}
    sizes |= {"num_key_value_heads": H, "intermediate_size": 16, "vocab_size": VOCABULARY}
    config = transformers.MistralConfig(**sizes, sliding_window=3)
    model, text = transformers.MistralForCausalLM(config).eval(), tokens(1, 8)
    other = text.clone()
    other[0, 2] = 3 if text[0, 2] != 3 else 4
    with torch.no_grad():
        moved = (model(text).logits != model(other).logits).any(dim=-1)[0]
    seen = moved.nonzero().flatten().tolist()
    return "so many keys, its own among them" if seen == [2, 3, 4] else f"rows {seen} of key 2"


# Weights

STORED = "How weights are stored"


def orientation(weight: Any, out: int) -> str:
    return {(out, D): "(out, in)", (D, out): "(in, out)"}[tuple(weight.shape)]


@row(STORED, "`torch.nn.Linear`")
def _linear() -> str:
    return orientation(nn.Linear(D, 7).weight, 7)


@row(STORED, "`keras.layers.Dense`")
def _dense() -> str:
    layer = need("keras").layers.Dense(7)
    layer(array(X))
    return orientation(layer.kernel, 7)


@row(STORED, "`flax.linen.Dense`")
def _linen_dense() -> str:
    linen, jax = need("flax.linen"), need("jax")
    return orientation(linen.Dense(7).init(jax.random.key(0), array(X))["params"]["kernel"], 7)


@row(STORED, "`flax.nnx.Linear`")
def _nnx_linear() -> str:
    nnx = need("flax.nnx")
    return orientation(nnx.Linear(D, 7, rngs=nnx.Rngs(0)).kernel, 7)


@row(STORED, "`transformers.pytorch_utils.Conv1D`, in GPT-2")
def _conv1d() -> str:
    need("transformers")
    layer = resolve("transformers.pytorch_utils.Conv1D")(7, D)
    assert same(layer(X), X @ layer.weight + layer.bias)
    return orientation(layer.weight, 7)


@row(STORED, "`torch.nn.MultiheadAttention`")
def _packed() -> str:
    ours, theirs = twin()
    parts = (ours.query_proj, ours.key_proj, ours.value_proj)
    right = torch.equal(theirs.in_proj_weight, torch.cat([part.weight for part in parts]))
    return "rows of one matrix (3 D, D): query, key, value" if right else ELSE


@row(STORED, "`torch.nn.MultiheadAttention(kdim=, vdim=)`")
def _unpacked() -> str:
    layer = nn.MultiheadAttention(D, H, kdim=7, vdim=11)
    shapes = [
        tuple(x.shape) for x in (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    ]
    right = layer.in_proj_weight is None and shapes == [(D, D), (D, 7), (D, 11)]
    return "three matrices (out, in)" if right else ELSE


@row(STORED, "`transformers.models.gpt2.modeling_gpt2.GPT2Attention`")
def _c_attn() -> str:
    theirs = gpt2().transformer.h[0].attn
    pairs = [*zip(theirs.c_attn.weight.chunk(3, dim=1), theirs.c_attn.bias.chunk(3), strict=True)]
    pairs.append((theirs.c_proj.weight, theirs.c_proj.bias))
    ours = from_kernels([(w.detach(), b.detach()) for w, b in pairs])
    right = theirs.c_attn.weight.shape == (D, 3 * D)
    right = right and same(theirs(X, attention_mask=CAUSAL[None, None])[0], ours(X, mask=causal()))
    return "columns of one matrix (D, 3 D): query, key, value" if right else ELSE


@row(STORED, "`transformers.models.bert.modeling_bert.BertSelfAttention`")
def _bert_attention() -> str:
    layer = bert().encoder.layer[0].attention.self
    same_shape = all(
        isinstance(part, nn.Linear) and part.weight.shape == (D, D)
        for part in (layer.query, layer.key, layer.value)
    )
    return "three matrices (out, in)" if same_shape else ELSE


@row(STORED, "`transformers.models.llama.modeling_llama.LlamaAttention`")
def _llama_attention() -> str:
    transformers = need("transformers")
    config = transformers.LlamaConfig(
        hidden_size=D, num_attention_heads=H, num_key_value_heads=1, num_hidden_layers=1
    )
    layer = resolve("transformers.models.llama.modeling_llama.LlamaAttention")(config, 0)
    shapes = [tuple(x.weight.shape) for x in (layer.q_proj, layer.k_proj, layer.v_proj)]
    right = shapes == [(D, D), (DH, D), (DH, D)] and layer.q_proj.bias is None
    return "three matrices (out, in), no biases" if right else ELSE


@row(STORED, "`keras.layers.MultiHeadAttention`")
def _keras_kernels() -> str:
    ours, layer = keras_layer()
    found = need("keras").ops.convert_to_numpy(layer(array(X), array(X)))
    shapes = [tuple(x.shape) for x in layer.weights if x.name == "kernel"]
    right = shapes == [(D, H, DH)] * 3 + [(H, DH, D)] and same(found, ours(X))
    return "kernels (D, H, Dh) three times, then (H, Dh, D)" if right else ELSE


@row(STORED, "`flax.linen.MultiHeadDotProductAttention`")
def _linen_kernels() -> str:
    ours, run = linen_layer()
    right = same(run(array(X)), ours(X))
    return "kernels (D, H, Dh) three times, then (H, Dh, D)" if right else ELSE


@row(STORED, "`flax.nnx.MultiHeadAttention`")
def _nnx_kernels() -> str:
    ours, run = nnx_layer()
    right = same(run(array(X)), ours(X)) and tuple(run.out.kernel.shape) == (H, DH, D)
    return "kernels (D, H, Dh) three times, then (H, Dh, D)" if right else ELSE


@row(STORED, "`transformers.GPT2LMHeadModel`, output layer")
def _tied() -> str:
    model = gpt2()
    tied = model.lm_head.weight is model.transformer.wte.weight
    return "the table of embeddings itself" if tied else ELSE


# Positions

PAIRS = "What positions do"


@row(PAIRS, "`Rotary` of this book")
def _own_pairs() -> str:
    first = torch.eye(8)[:1].expand(2, 8)  # only feature 0, at positions 0 and 1
    touched = Rotary(8).rotate(first, first)[0][1].nonzero().flatten().tolist()
    return {(0, 4): "pairs i and i + Dh / 2", (0, 1): "pairs 2 i and 2 i + 1"}[tuple(touched)]


def pairing(found: Tensor) -> str:
    """Rotated queries (B, H, T, Dh), in one layout or the other."""
    if same(found, Rotary(DH).rotate(Q, Q)[0]):
        return "pairs i and i + Dh / 2"
    half = half_from_interleaved(Q)
    neighbours = interleaved_from_half(Rotary(DH).rotate(half, half)[0])
    return "pairs 2 i and 2 i + 1" if same(found, neighbours) else ELSE


@row(PAIRS, "`transformers.models.llama.modeling_llama.apply_rotary_pos_emb`")
def _llama_pairs() -> str:
    transformers = need("transformers")
    module = resolve("transformers.models.llama.modeling_llama")
    config = transformers.LlamaConfig(hidden_size=D, num_attention_heads=H)
    waves = module.LlamaRotaryEmbedding(config)(Q, torch.arange(T)[None])
    return pairing(module.apply_rotary_pos_emb(Q, Q, *waves)[0])


@row(PAIRS, "`transformers.models.gptj.modeling_gptj.apply_rotary_pos_emb`")
def _gptj_pairs() -> str:
    need("transformers")
    module = resolve("transformers.models.gptj.modeling_gptj")
    sine, cosine = module.create_sinusoidal_positions(T, DH).chunk(2, dim=-1)
    return pairing(
        book_layout(module.apply_rotary_pos_emb(book_layout(Q), sine[None], cosine[None]))
    )


@row(PAIRS, "`transformers.models.bloom.modeling_bloom.build_alibi_tensor`")
def _bloom() -> str:
    need("transformers")
    build = resolve("transformers.models.bloom.modeling_bloom.build_alibi_tensor")
    found = build(torch.ones(1, T, dtype=torch.long), 4, torch.float32).view(4, T)
    right = same(found, alibi_slopes(4)[:, None] * torch.arange(T))
    return "a bias: slope times the place of the key" if right else ELSE
