"""SmolLM2-135M in our own class: its file, its tokens, its logits, and damaged files."""

import re

import pytest
import torch
import transformers
import twins_models
from gguf import GGUFReader, GGUFWriter
from oracle import record
from torch.testing import assert_close

from attention_lib.data import asset_path
from attention_lib.models import smollm
from attention_lib.models.gpt import GPTConfig, llama
from attention_lib.positions import interleaved_from_half

QUESTION = "What is the capital of France?"
# Two layers, H = 2 over 1 key head, Dh = 4: what the file would call them comes below.
TINY = GPTConfig(tokens=13, length=11, width=8, layers=2, heads=2, kv_heads=1, hidden=5)


@pytest.fixture(scope="module")
def chatter():
    return smollm.load()


@pytest.fixture(scope="module")
def reference(chatter):
    return twins_models.smollm(chatter.model)


# --- against Hugging Face ------------------------------------------------------------------------


@pytest.mark.oracle
def test_logits_equal_hugging_face_within_a_thousandth(chatter, reference, request):
    tokens = torch.tensor([chatter.prompt(QUESTION)])
    with torch.inference_mode():
        ours, theirs = chatter.model(tokens), reference(input_ids=tokens).logits
    assert ours.abs().max() > 10
    difference = float((ours - theirs).abs().max())
    record(request, "11 | SmolLM2-135M, logits", difference, 1e-3)
    assert difference <= 1e-3


@pytest.mark.oracle
def test_greedy_tokens_equal_hugging_face(chatter, reference):
    tokens = chatter.prompt("Name three colours.")
    given = torch.tensor([tokens])
    with torch.inference_mode():
        theirs = reference.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=12, do_sample=False
        )
    assert chatter.write(tokens, 12) == theirs[0, len(tokens) :].tolist()


@pytest.mark.oracle
def test_tokens_equal_those_of_the_published_tokenizer(chatter):
    path = asset_path("smollm2")
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in (
        "Attention, please: 2017 was the year.",
        "  two spaces,\n\nnewlines\tand a tab",
        "naïve café, 注意力, 🙂",
        "<|im_start|>user\nhello<|im_end|>",
    ):
        ids = chatter.tokenizer.encode(text).ids
        assert ids == theirs.encode(text, add_special_tokens=False), text
        assert chatter.tokenizer.decode(ids, skip_special_tokens=False) == text


# --- the cache -----------------------------------------------------------------------------------


def test_written_with_a_cache_equals_written_without(chatter):
    tokens = chatter.prompt(QUESTION)
    slow = list(tokens)
    with torch.inference_mode():
        for _ in range(6):
            slow.append(int(chatter.model(torch.tensor([slow]))[0, -1].argmax()))
    assert chatter.write(tokens, 6) == slow[len(tokens) :]


def test_it_knows_the_capital_of_france_and_stops(chatter):
    assert "Paris" in chatter.answer(QUESTION, 20)
    assert chatter.write(chatter.prompt(QUESTION), 20)[-1] == chatter.end


def test_the_layout_for_decoding_changes_neither_shapes_nor_values():
    model = llama(TINY)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    smollm.lay_out_for_decoding(model)
    assert model.embedding.weight.stride() == (1, TINY.tokens)  # 13 rows, 8 columns
    both = 2 * TINY.hidden_width  # 5 rows, and the 5 of the gate beside them
    assert model.blocks[0].feed_forward.up_proj.weight.stride() == (1, both)
    for name, x in model.state_dict().items():
        assert torch.equal(x, before[name])


def test_a_matrix_with_fewer_outputs_than_inputs_stays_row_by_row():
    wide, tall = torch.nn.Linear(8, 5), torch.nn.Linear(5, 8)
    smollm.lay_out_for_decoding(torch.nn.Sequential(wide, tall))
    assert wide.weight.stride() == (8, 1)
    assert tall.weight.stride() == (1, 8)


# --- files ---------------------------------------------------------------------------------------


def _names(part):
    names = {ours: theirs for theirs, ours in (smollm._BLOCK | smollm._REST).items()}
    if part.startswith("blocks."):
        _, number, rest = part.split(".", 2)
        where, _, kind = rest.rpartition(".")
        return f"blk.{number}.{names[where]}.{kind}"
    where, _, kind = part.rpartition(".")
    return f"{names[where]}.{kind}"


def _write(path, model, *, leave_out=(), add=()):
    """A GGUF file with the tensors of a model, queries and keys in the file's layout."""
    writer = GGUFWriter(path, "llama")
    writer.add_uint32("llama.vocab_size", TINY.tokens)
    writer.add_context_length(TINY.length)
    writer.add_embedding_length(TINY.width)
    writer.add_block_count(TINY.layers)
    writer.add_feed_forward_length(TINY.hidden)
    writer.add_head_count(TINY.heads)
    writer.add_head_count_kv(TINY.kv_heads)
    writer.add_rope_freq_base(500.0)
    writer.add_layer_norm_rms_eps(1e-4)
    writer.add_token_list(["a", "b", "ab", *(f"<{n}>" for n in range(3, TINY.tokens))])
    writer.add_token_merges(["a b"])
    writer.add_token_types([1] * TINY.tokens)
    writer.add_eos_token_id(3)
    for name, tensor in model.state_dict().items():
        if "query_proj" in name or "key_proj" in name:
            heads = tensor.unflatten(0, (-1, 4))
            tensor = interleaved_from_half(heads.mT).mT.flatten(0, 1)
        if name not in leave_out:
            writer.add_tensor(_names(name), tensor.contiguous().numpy())
    for name in add:
        writer.add_tensor(name, torch.ones(2).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def tiny():
    model = llama(TINY, base=500.0, eps=1e-4)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model.eval()


def test_a_file_gives_back_the_model_it_was_made_from(tiny, tmp_path):
    loaded = smollm.load(_write(tmp_path / "tiny.gguf", tiny))
    tokens = torch.tensor([[0, 5, 12, 7]])
    assert loaded.model.config == TINY
    assert_close(loaded.model(tokens), tiny(tokens))
    assert loaded.end == 3
    assert loaded.tokenizer.encode("abba").ids == [2, 1, 0]


def test_queries_and_keys_come_in_another_layout(tiny, tmp_path):
    (entry,) = (
        x
        for x in GGUFReader(_write(tmp_path / "tiny.gguf", tiny)).tensors
        if x.name == "blk.1.attn_q.weight"
    )
    stored, ours = torch.from_numpy(entry.data.copy()), tiny.blocks[1].attention.query_proj.weight
    assert torch.equal(stored[[0, 2, 1, 3, 4, 6, 5, 7]], ours)


@pytest.mark.hostile
def test_a_missing_and_an_unknown_tensor_are_named(tiny, tmp_path):
    path = _write(
        tmp_path / "tiny.gguf",
        tiny,
        leave_out=["blocks.1.feed_forward.up_proj.weight", "norm.weight"],
        add=["blk.0.attn_q_norm.weight", "rope_freqs.weight"],
    )
    message = (
        "the file must hold exactly the tensors of the model; "
        "2 missing ['blocks.1.feed_forward.up_proj.weight', 'norm.weight'], "
        "2 not known ['blk.0.attn_q_norm.weight', 'rope_freqs.weight']"
    )
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        smollm.load(path)


@pytest.mark.hostile
def test_nothing_to_go_on_from_is_an_error(chatter):
    with pytest.raises(ValueError, match=r"tokens must hold at least one token, got none$"):
        chatter.write([], 3)
