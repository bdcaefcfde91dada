"""Blocks: against loops and PyTorch's layers with all gradients, and what a residual does."""

from functools import partial

import oracle_layers
import pytest
import torch
import twins
from oracle import DTYPES, assert_matches, random
from torch import nn
from torch.autograd.functional import jacobian
from torch.nn.functional import gelu, relu, silu
from torch.testing import assert_close

from attention_lib import (
    Alibi,
    DecoderBlock,
    EncoderBlock,
    FeedForward,
    GatedFeedForward,
    KVCache,
    MultiHeadAttention,
    PostNorm,
    PreNorm,
    causal,
    padding,
)

# Every dimension is a different prime but the width, the product of heads and their width.
BATCH, HEADS, HEAD_WIDTH, LENGTH, MEMORY_LENGTH, HIDDEN = 2, 3, 5, 7, 11, 13
WIDTH = HEADS * HEAD_WIDTH

DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
RESIDUALS = {"pre": PreNorm, "post": PostNorm}
ORDER = pytest.mark.parametrize("order", RESIDUALS)
MASKS = {
    "open": None,
    "causal": causal(),
    "padding": padding(torch.tensor([4, 7])),
    "table": torch.ones(BATCH, LENGTH, LENGTH).bool().triu(-1),
}


def _dense(mask, keys=LENGTH):
    if mask is None:
        return None
    dense = mask if isinstance(mask, torch.Tensor) else mask.dense(LENGTH, keys)
    return dense.expand(BATCH, LENGTH, keys)


def _block(order, activation=relu, *, decoder=False, dropout=0.0, **named):
    attention = [MultiHeadAttention(WIDTH, HEADS, **named) for _ in range(2 if decoder else 1)]
    network = FeedForward(WIDTH, HIDDEN, activation=activation, dropout=dropout)
    kind = DecoderBlock if decoder else EncoderBlock
    return kind(*attention, network, partial(RESIDUALS[order], WIDTH, dropout=dropout))


def _parameters(block, activation, generator, dtype):
    parameters = twins.parameters_of(block, generator, dtype)
    return twins.off_the_kink(parameters) if activation is relu else parameters


# --- against loops and PyTorch -------------------------------------------------------------------


@pytest.mark.oracle
@DTYPE
@ORDER
@pytest.mark.parametrize("mask", MASKS)
def test_an_encoder_block_matches_loop_and_torch(mask, order, dtype, generator):
    _check_encoder(order, relu, MASKS[mask], dtype, generator)


@pytest.mark.oracle
@DTYPE
@ORDER
def test_an_encoder_block_matches_with_gelu(order, dtype, generator):
    _check_encoder(order, gelu, causal(), dtype, generator)


def _check_encoder(order, activation, mask, dtype, generator):
    ours = _block(order, activation)
    parameters, table = _parameters(ours, activation, generator, dtype), _dense(mask)
    names, pre = list(parameters), order == "pre"
    theirs = nn.TransformerEncoderLayer(
        WIDTH, HEADS, HIDDEN, 0.0, activation, batch_first=True, norm_first=pre
    )

    def loop(x, *tensors):
        own = dict(zip(names, tensors, strict=True))
        return oracle_layers.block(x, own, heads=HEADS, pre=pre, activation=activation, mask=table)

    assert_matches(
        twins.as_function(ours, names, 1, mask=mask),
        twins.as_function(
            theirs, names, 1, translate=twins.block, src_mask=twins.blocked(table, HEADS)
        ),
        loop,
        [random(generator, BATCH, LENGTH, WIDTH, dtype=dtype), *parameters.values()],
        one_floor=True,
    )


@pytest.mark.oracle
@DTYPE
@ORDER
@pytest.mark.parametrize("activation", [relu, gelu], ids=["relu", "gelu"])
def test_a_decoder_block_matches_loop_and_torch(activation, order, dtype, generator):
    ours, pre = _block(order, activation, decoder=True), order == "pre"
    parameters = _parameters(ours, activation, generator, dtype)
    names, memory_mask = list(parameters), padding(torch.tensor([4, 9]))
    tables = _dense(causal()), _dense(memory_mask, MEMORY_LENGTH)
    theirs = nn.TransformerDecoderLayer(
        WIDTH, HEADS, HIDDEN, 0.0, activation, batch_first=True, norm_first=pre
    )

    def loop(x, memory, *tensors):
        return oracle_layers.block(
            x,
            dict(zip(names, tensors, strict=True)),
            heads=HEADS,
            pre=pre,
            activation=activation,
            memory=memory,
            mask=tables[0],
            memory_mask=tables[1],
        )

    masks = {
        "tgt_mask": twins.blocked(tables[0], HEADS),
        "memory_mask": twins.blocked(tables[1], HEADS),
    }
    x = random(generator, BATCH, LENGTH, WIDTH, dtype=dtype)
    memory = random(generator, BATCH, MEMORY_LENGTH, WIDTH, dtype=dtype)
    assert_matches(
        twins.as_function(ours, names, 2, mask=causal(), memory_mask=memory_mask),
        twins.as_function(theirs, names, 2, translate=twins.block, **masks),
        loop,
        [x, memory, *parameters.values()],
        one_floor=True,
    )


@pytest.mark.oracle
@pytest.mark.parametrize("activation", [relu, gelu, silu], ids=lambda f: f.__name__)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("kind", [FeedForward, GatedFeedForward])
def test_feed_forward_matches_the_loop(kind, bias, activation, generator):
    module = twins.filled(kind(WIDTH, HIDDEN, activation=activation, bias=bias), generator)
    parameters, x = dict(module.named_parameters()), random(generator, BATCH, LENGTH, WIDTH)
    x.requires_grad_()
    expected = oracle_layers.feed_forward(x, parameters, activation)
    output = module(x)
    assert_close(output, expected)
    leaves = [x, *parameters.values()]
    found = torch.autograd.grad(output.square().sum(), leaves)
    assert_close(found, torch.autograd.grad(expected.square().sum(), leaves))


def test_feed_forward_defaults_are_those_of_the_papers():
    assert FeedForward(3, 5).activation is relu
    assert FeedForward(3, 5).up_proj.bias is not None
    assert FeedForward(3, 5).down_proj.bias is not None
    gated = GatedFeedForward(3, 5)
    assert gated.activation is silu
    assert [p.shape for p in gated.parameters()] == [(5, 3), (5, 3), (3, 5)]  # no bias
    assert [p.shape for p in FeedForward(3, 5, bias=False).parameters()] == [(5, 3), (3, 5)]


# --- residuals on paper --------------------------------------------------------------------------


def test_pre_norm_and_post_norm_on_paper():
    x = torch.tensor([[1.0, 3.0]], dtype=torch.float64)  # its norm is [-1, 1]
    pre, post = PreNorm(2).double(), PostNorm(2).double()
    for residual in (pre, post):
        residual.norm.eps = 0.0
    assert_close(pre(x, lambda y: 10 * y), torch.tensor([[-9.0, 13.0]]).double())
    # Normalising x + f(x) = [4, 2] gives [1, -1].
    assert_close(post(x, lambda y: torch.tensor([[3.0, -1.0]])), torch.tensor([[1.0, -1]]).double())


@ORDER
def test_the_norm_is_passed_in(order, generator):
    x = random(generator, BATCH, LENGTH, WIDTH)
    plain = RESIDUALS[order](WIDTH, norm=nn.Identity)
    assert_close(plain(x, lambda y: 2 * y), 3 * x)
    assert not list(plain.parameters())
    root = RESIDUALS[order](WIDTH, norm=nn.RMSNorm).double()

    def rms(y):
        return y / (y.square().mean(dim=-1, keepdim=True) + torch.finfo(y.dtype).eps).sqrt()

    assert_close(root(x, torch.sin), x + rms(x).sin() if order == "pre" else rms(x + x.sin()))


def test_the_residual_path_of_pre_norm_is_the_identity(generator):
    x = random(generator, LENGTH, WIDTH)
    block = _block("pre").double()
    for last in (block.attention.output_proj, block.feed_forward.down_proj):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    assert torch.equal(block(x), x)


@ORDER
def test_each_sublayer_has_a_residual_of_its_own(order):
    encoder, decoder = _block(order), _block(order, decoder=True)
    assert encoder.attention_residual is not encoder.feed_forward_residual
    residuals = decoder.attention_residual, decoder.cross_residual, decoder.feed_forward_residual
    assert len(set(residuals)) == 3


# --- properties ----------------------------------------------------------------------------------


@ORDER
@pytest.mark.parametrize("decoder", [False, True], ids=["encoder", "decoder"])
def test_a_causal_block_does_not_see_the_future(decoder, order, generator):
    block = twins.filled(_block(order, gelu, decoder=decoder), generator)
    x, other = random(generator, 2, BATCH, LENGTH, WIDTH)
    memory = [random(generator, BATCH, MEMORY_LENGTH, WIDTH)] if decoder else []
    changed = torch.cat([x[:, :4], other[:, 4:]], dim=1)
    before, after = (block(y, *memory, mask=causal()) for y in (x, changed))
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])
    rows = [m[0] for m in memory]
    found = jacobian(lambda y: block(y, *rows, mask=causal()), x[0]).abs().amax(dim=(1, 3))
    assert torch.equal(found > 0, torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril())


@ORDER
@pytest.mark.parametrize("decoder", [False, True], ids=["encoder", "decoder"])
def test_a_block_with_a_cache_equals_one_without(decoder, order, generator):
    block = _block(order, decoder=decoder)
    block.attention.position = Alibi(HEADS)
    twins.filled(block, generator)
    x, cache = random(generator, BATCH, LENGTH, WIDTH), KVCache()
    memory = [random(generator, BATCH, MEMORY_LENGTH, WIDTH)] if decoder else []
    outputs = [block(part, *memory, mask=causal(), cache=cache) for part in x.split(2, dim=1)]
    assert_close(torch.cat(outputs, dim=1), block(x, *memory, mask=causal()))
    assert len(cache) == LENGTH


def test_padding_of_the_memory_is_not_read(generator):
    block = twins.filled(_block("pre", decoder=True), generator)
    x, memory = random(generator, 1, LENGTH, WIDTH), random(generator, 1, MEMORY_LENGTH, WIDTH)
    output = block(x, memory, memory_mask=padding(torch.tensor([4])))
    assert_close(output, block(x, memory[:, :4]))


# --- dropout -------------------------------------------------------------------------------------


def _zeros(module: nn.Module, x: torch.Tensor) -> float:
    return (module(x) == 0).float().mean().item()


def test_hidden_features_are_dropped_in_training_only():
    x = torch.ones(401, 1)
    for kind in (FeedForward, GatedFeedForward):
        module = kind(1, 1, dropout=0.25, bias=False)
        for parameter in module.parameters():
            nn.init.ones_(parameter)
        assert _zeros(module, x) == pytest.approx(0.25, abs=0.05)
        assert _zeros(module.eval(), x) == 0


@ORDER
def test_the_output_of_a_sublayer_is_dropped_in_training_only(order):
    residual = RESIDUALS[order](101, norm=nn.Identity, dropout=0.25)
    x = torch.ones(11, 101)
    added = residual(x, lambda y: 3 * y) - x
    assert set(added.unique().tolist()) == {0, 4}
    assert (added == 0).float().mean().item() == pytest.approx(0.25, abs=0.04)
    assert (residual.eval()(x, lambda y: 3 * y) == 4).all()
