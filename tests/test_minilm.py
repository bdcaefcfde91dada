"""The published encoder in our class: equal to the reference, and vectors that do not wander."""

import io
import json
import tarfile
from pathlib import Path

import book_sections
import pytest
import safetensors.torch
import torch
import transformers
from oracle import record
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.processors import TemplateProcessing

from attention_lib.data import AssetError, asset_path
from attention_lib.data.sections import QUESTIONS
from attention_lib.data.sections import book_sections as stored_sections
from attention_lib.models import minilm
from attention_lib.models.bert import Bert, BertConfig
from attention_lib.models.minilm import MiniLM

TEXTS = ["Boats reach the bank.", "A bank lends money to boat builders, at a price.", "Yes."]
CONFIG = {
    "vocab_size": 12, "max_position_embeddings": 9, "hidden_size": 15, "num_hidden_layers": 2,
    "num_attention_heads": 3, "intermediate_size": 7, "type_vocab_size": 2, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "layer_norm_eps": 1e-12, "position_embedding_type": "absolute",
}  # fmt: skip


@pytest.fixture(scope="module")
def published() -> MiniLM:
    """The real weights; there is nothing to test where they cannot be fetched."""
    try:
        asset_path("minilm")
    except AssetError as error:
        pytest.skip(f"the published weights cannot be fetched: {error}")
    return minilm.load()


@pytest.fixture(scope="module")
def reference(published) -> transformers.BertModel:
    """Hugging Face's model with the same file's weights."""
    with tarfile.open(asset_path("minilm")) as archive:
        files = {Path(entry.name).name: archive.extractfile(entry).read() for entry in archive}
    options = json.loads(files["config.json"])
    model = transformers.BertModel(transformers.BertConfig(**options)).eval()
    tensors = safetensors.torch.load(files["model.safetensors"])
    tensors = {name: x for name, x in tensors.items() if name != "embeddings.position_ids"}
    model.load_state_dict(tensors, strict=True)
    return model


def _tiny(**changes) -> dict[str, torch.Tensor]:
    """Tensors as published, for a tiny encoder; None removes one."""
    config = transformers.BertConfig(**CONFIG)
    state = transformers.BertModel(config).state_dict()
    state = {name: x.contiguous() for name, x in state.items()} | changes
    return {name: x for name, x in state.items() if x is not None}


def _archive(path: Path, tensors: dict[str, torch.Tensor], **config) -> Path:
    """An archive like the asset's, with a vocabulary of twelve pieces."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "e", "##a", "##b", "##c"]
    tokenizer = Tokenizer(WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=20)
    files = {
        "config.json": json.dumps(CONFIG | config).encode(),
        "tokenizer.json": tokenizer.to_str().encode(),
        "model.safetensors": safetensors.torch.save(tensors),
    }
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"somewhere/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


# --- the published model ---


@pytest.mark.oracle
def test_states_are_those_of_hugging_face(published, reference, request):
    tokens, lengths = published.encode(TEXTS)
    mask = torch.arange(tokens.shape[1]) < lengths[:, None]
    with torch.no_grad():
        ours = published.bert(tokens, lengths)
        theirs = reference(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    difference = float((ours - theirs)[mask].abs().max())
    record(request, "12 | MiniLM, states", difference, 1e-5)
    assert difference < 1e-5


@pytest.mark.oracle
def test_gradients_are_those_of_hugging_face(published, reference):
    tokens, lengths = published.encode(TEXTS)
    mask = torch.arange(tokens.shape[1]) < lengths[:, None]
    names = ["encoder.layer.0.attention.self.query.weight", "encoder.layer.5.output.dense.bias"]
    ours = dict(published.bert.named_parameters())
    wanted = [
        ours["blocks.0.attention.query_proj.weight"],
        ours["blocks.5.feed_forward.down_proj.bias"],
    ]
    theirs = [dict(reference.named_parameters())[name] for name in names]
    states = published.bert(tokens, lengths)
    others = reference(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    # A fixed direction: the sum of layer-normed states would have no gradient at all.
    weight = torch.sin(torch.arange(states.shape[-1]).float())
    found = torch.autograd.grad((states * weight)[mask].sum(), wanted)
    expected = torch.autograd.grad((others * weight)[mask].sum(), theirs)
    for a, b in zip(found, expected, strict=True):
        assert b.abs().max() > 1e-3
        assert (a - b).abs().max() < 1e-5 * max(1, float(b.abs().max()))


@pytest.mark.oracle
def test_tokens_are_those_of_hugging_face(published):
    with tarfile.open(asset_path("minilm")) as archive:
        entry = next(e for e in archive if e.name.endswith("tokenizer.json"))
        content = archive.extractfile(entry).read()
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_buffer(content))
    tokens, lengths = published.encode(TEXTS)
    for row, length, text in zip(tokens.tolist(), lengths.tolist(), TEXTS, strict=True):
        expected = theirs(text, padding=False, truncation=False)["input_ids"]
        assert row[:length] == [i for i in expected if i != 0]


def test_a_vector_has_length_one_and_does_not_depend_on_its_neighbours(published):
    together = published.embed([*TEXTS, "boat " * 200])
    assert torch.allclose(together.norm(dim=-1), torch.ones(4), atol=1e-6)
    for row, text in enumerate(TEXTS):
        assert (together[row] - published.embed([text])[0]).abs().max() < 1e-6
    one_by_one = published.embed([*TEXTS, "boat " * 200], batch=1)
    assert (together - one_by_one).abs().max() < 1e-6


def test_texts_of_one_meaning_are_nearer_than_texts_with_one_word(published):
    river, shore, loan = published.embed(
        ["The boat reached the bank.", "A ship came to the shore.", "The bank refused the loan."]
    )
    assert river @ shore > river @ loan + 0.1


def test_a_long_text_is_cut_and_keeps_its_last_mark(published):
    tokens, lengths = published.encode(["word " * 400, "word"], length=10)
    assert lengths.tolist() == [10, 3]
    assert tokens[0, -1] == tokens[1, 2]
    assert tokens[1, 3:].eq(0).all()


def test_the_published_model_has_the_size_that_the_book_names(published):
    assert sum(p.numel() for p in published.bert.parameters()) == 22_565_376
    assert not published.bert.training


# --- the loader, on tiny weights ---


@pytest.mark.oracle
def test_any_file_of_this_kind_loads_and_agrees_with_hugging_face(tmp_path):
    torch.manual_seed(0)
    tensors = _tiny()
    loaded = minilm.load(_archive(tmp_path / "tiny.tar", tensors))
    theirs = transformers.BertModel(transformers.BertConfig(**CONFIG)).eval()
    theirs.load_state_dict(tensors)
    tokens, lengths = loaded.encode(["a", "e"])
    with torch.no_grad():
        expected = theirs(input_ids=tokens).last_hidden_state
        assert (loaded.bert(tokens, lengths) - expected).abs().max() < 1e-5


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"encoder.layer.1.output.dense.bias": None},
            r"1 missing \['encoder.layer.1.output.dense.bias'\]",
        ),
        ({"encoder.layer.2.output.dense.bias": torch.zeros(15)}, r"1 not known \['encoder.layer.2"),
        ({"cls.bias": torch.zeros(3)}, r"1 not known \['cls.bias'\]"),
    ],
)
def test_every_weight_is_used_and_none_is_missing(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        minilm.load(_archive(tmp_path / "tiny.tar", _tiny(**changes)))


@pytest.mark.hostile
def test_a_model_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="hidden_act must be 'gelu', got 'relu'"):
        minilm.load(_archive(tmp_path / "tiny.tar", _tiny(), hidden_act="relu"))


@pytest.mark.hostile
def test_an_archive_without_the_files_is_refused(tmp_path):
    tarfile.open(tmp_path / "empty.tar", "w").close()
    with pytest.raises(ValueError, match=r"misses \['config.json', 'model.safetensors'"):
        minilm.load(tmp_path / "empty.tar")


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.embed("one text"), TypeError, "texts must be a list of strings, got one"),
        (lambda m: m.embed([]), ValueError, "texts must hold at least one text, got none"),
        (lambda m: m.encode(["a"], length=2), ValueError, "length must be at least 3, got 2"),
        (lambda m: m.embed(["a"], batch=0), ValueError, "batch must be at least 1, got 0"),
    ],
)
def test_bad_requests_say_what_is_wrong(call, error, message, tmp_path):
    tiny = minilm.load(_archive(tmp_path / "tiny.tar", _tiny()))
    with pytest.raises(error, match=message):
        call(tiny)


def test_unused_weights_are_named_and_nothing_else_is_dropped():
    names = set(_tiny()) | {"embeddings.position_ids"}
    kept = minilm.state_of(_tiny(), layers=2)
    config = BertConfig(tokens=12, length=9, width=15, layers=2, heads=3, hidden=7)
    assert set(kept) == set(Bert(config).state_dict())
    assert len(names) == len(kept) + len(minilm.UNUSED)


# --- the pages that it searches ---


def test_the_stored_sections_are_those_of_the_chapters():
    stored = [[s.page, s.title, s.text] for s in stored_sections()]
    assert stored == book_sections.collect(), "run `python tools/book_sections.py`"


def test_every_question_has_one_answer_among_the_sections():
    titles = [section.title for section in stored_sections()]
    assert len(QUESTIONS) == 30
    for question, start in QUESTIONS:
        assert sum(title.startswith(start) for title in titles) == 1, question
