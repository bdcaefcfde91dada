"""Cross-entropy: on paper, against a loop and PyTorch with gradients, and its edges."""

import math
import re

import pytest
import torch
from oracle import BATCH, DTYPES, TQ, assert_matches, random
from torch.nn import functional
from torch.testing import assert_close

from attention_lib.losses import cross_entropy

V = 11
TARGETS = torch.tensor([[0, 10, 3], [-100, 3, 7]])
SMOOTHING = pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.75])


def _loop(targets, smoothing, ignored=-100):
    """Minus q ln p, one token at a time."""

    def loss(logits):
        terms = []
        for row, target in zip(logits.reshape(-1, V), targets.flatten().tolist(), strict=True):
            if target == ignored:
                continue
            log_total = sum(z.exp() for z in row).log()
            for token, z in enumerate(row):
                share = (1 - smoothing) * (token == target) + smoothing / V
                terms.append(-share * (z - log_total))
        return sum(terms) / int((targets != ignored).sum())

    return loss


# --- on paper ------------------------------------------------------------------------------------


def test_a_token_of_probability_one_quarter_costs_two_bits():
    logits = torch.tensor([[math.log(2), 0.0, 0.0]], dtype=torch.float64)
    assert_close(cross_entropy(logits, torch.tensor([1])) / math.log(2), torch.tensor(2.0).double())


def test_smoothing_shares_the_target_out_among_all_tokens():
    logits = torch.tensor([[math.log(2), 0.0, 0.0]], dtype=torch.float64)
    # q = (0.8, 0.1, 0.1) and p = (1/2, 1/4, 1/4)
    expected = 0.8 * math.log(2) + 0.2 * math.log(4)
    assert_close(cross_entropy(logits, torch.tensor([0]), label_smoothing=0.3).item(), expected)


def test_an_ignored_position_is_not_in_the_mean():
    logits = torch.tensor([[0.0, 0.0], [5.0, -5.0]], dtype=torch.float64)
    loss = cross_entropy(logits, torch.tensor([1, 0]), ignore_index=0)
    assert_close(loss.item(), math.log(2))


# --- oracles -------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@SMOOTHING
@pytest.mark.parametrize("ignored", [-100, 3])
def test_value_and_gradient_match_loop_and_torch(ignored, smoothing, dtype, generator):
    targets = TARGETS if ignored == -100 else TARGETS.clamp(min=0)

    def reference(logits):
        flat, true = logits.reshape(-1, V), targets.flatten()
        return functional.cross_entropy(flat, true, ignore_index=ignored, label_smoothing=smoothing)

    def ours(logits):
        return cross_entropy(logits, targets, ignore_index=ignored, label_smoothing=smoothing)

    logits = random(generator, BATCH, TQ, V, dtype=dtype, scale=2)
    assert_matches(ours, reference, _loop(targets, smoothing, ignored), [logits])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@SMOOTHING
def test_half_precision_is_rounded_once_at_the_end(smoothing, dtype, generator):
    for _ in range(20):  # any one of them may be right by luck
        logits = random(generator, BATCH, TQ, V, dtype=dtype, scale=5)
        wide = cross_entropy(logits.float(), TARGETS, label_smoothing=smoothing)
        assert cross_entropy(logits, TARGETS, label_smoothing=smoothing) == wide.to(dtype)


@SMOOTHING
def test_gradcheck(smoothing, generator):
    logits = random(generator, BATCH, TQ, V).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: cross_entropy(z, TARGETS, label_smoothing=smoothing), logits
    )


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_any_integer_dtype_names_a_token(kind, generator):
    logits, targets = random(generator, BATCH, TQ, V), TARGETS.clamp(min=0)
    assert cross_entropy(logits, targets.to(kind)) == cross_entropy(logits, targets)


def test_one_prediction_without_further_dimensions(generator):
    logits = random(generator, V)
    expected = functional.cross_entropy(logits[None], torch.tensor([7]))
    assert_close(cross_entropy(logits, torch.tensor(7)), expected)


def test_shifting_all_logits_changes_nothing(generator):
    logits = random(generator, BATCH, TQ, V)
    assert_close(cross_entropy(logits + 1000, TARGETS), cross_entropy(logits, TARGETS))


# --- edges ---------------------------------------------------------------------------------------


@pytest.mark.hostile
@SMOOTHING
def test_where_everything_is_ignored_loss_and_gradient_are_zero(smoothing, generator):
    logits = random(generator, TQ, V, dtype=torch.float32).requires_grad_()
    loss = cross_entropy(logits, torch.full((TQ,), -100), label_smoothing=smoothing)
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros(TQ, V))


@pytest.mark.hostile
def test_an_empty_batch_costs_nothing():
    assert cross_entropy(torch.ones(0, V), torch.ones(0, dtype=torch.long)) == 0


@pytest.mark.hostile
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_logits_at_an_ignored_position_are_not_looked_at(junk, generator):
    clean = random(generator, BATCH, TQ, V).requires_grad_()
    dirty = clean.detach().clone()
    dirty[1, 0] = junk
    dirty.requires_grad_()
    losses = [cross_entropy(z, TARGETS) for z in (clean, dirty)]
    for loss in losses:
        loss.backward()
    assert losses[0] == losses[1]
    assert torch.equal(clean.grad, dirty.grad)
    assert torch.equal(dirty.grad[1, 0], torch.zeros(V).double())


@pytest.mark.hostile
def test_huge_logits_do_not_overflow():
    logits = torch.tensor([[3e4, -3e4]], dtype=torch.float16).requires_grad_()
    loss = cross_entropy(logits.float(), torch.tensor([1]))
    assert loss == 6e4
    assert cross_entropy(logits, torch.tensor([0])) == 0


@pytest.mark.hostile
def test_a_forbidden_token_costs_nothing_unless_it_is_the_target():
    logits = torch.tensor([[0.0, 0.0, -math.inf]]).requires_grad_()
    loss = cross_entropy(logits, torch.tensor([0]))
    loss.backward()
    assert_close(loss.item(), math.log(2))
    assert_close(logits.grad, torch.tensor([[-0.5, 0.5, 0.0]]))
    assert cross_entropy(logits, torch.tensor([2])) == math.inf


def test_the_arguments_are_left_as_they_were(generator):
    logits, targets = random(generator, BATCH, TQ, V), TARGETS.clone()
    before = logits.clone()
    cross_entropy(logits, targets, label_smoothing=0.1)
    assert torch.equal(logits, before)
    assert torch.equal(targets, TARGETS)


Z, T = torch.ones(TQ, V), torch.zeros(TQ, dtype=torch.long)
BAD = [
    (lambda: cross_entropy([1.0], T), TypeError, "logits must be a torch.Tensor, got list"),
    (lambda: cross_entropy(Z.long(), T), TypeError,
     "logits must have a floating-point dtype, got torch.int64"),
    (lambda: cross_entropy(torch.tensor(1.0), T), ValueError,
     "logits must have at least 1 dimension, got shape ()"),
    (lambda: cross_entropy(Z[:, :0], T), ValueError,
     f"logits must have at least 1 token, V, got shape ({TQ}, 0)"),
    (lambda: cross_entropy(Z, [0]), TypeError, "targets must be a torch.Tensor, got list"),
    (lambda: cross_entropy(Z, T.float()), TypeError,
     "targets must have an integer dtype, got torch.float32"),
    (lambda: cross_entropy(Z, T.to(torch.complex64)), TypeError,
     "targets must have an integer dtype, got torch.complex64"),
    (lambda: cross_entropy(Z, T.bool()), TypeError,
     "targets must have an integer dtype, got torch.bool"),
    (lambda: cross_entropy(Z, T[:2]), ValueError,
     f"targets must have the shape of logits without V, ({TQ},), got (2,)"),
    (lambda: cross_entropy(Z, T.to("meta")), ValueError,
     "targets must be on the device of logits (cpu), got meta"),
    (lambda: cross_entropy(Z, T + V), ValueError,
     f"targets must lie in 0 .. V - 1 = {V - 1} or be ignore_index = -100, got {V}"),
    (lambda: cross_entropy(Z, torch.tensor([0, -1, 5]), ignore_index=5), ValueError,
     f"targets must lie in 0 .. V - 1 = {V - 1} or be ignore_index = 5, got -1"),
    (lambda: cross_entropy(Z, T, label_smoothing=1.0), ValueError,
     "label_smoothing must be at least 0 and below 1, got 1.0"),
    (lambda: cross_entropy(Z, T, label_smoothing=-0.1), ValueError,
     "label_smoothing must be at least 0 and below 1, got -0.1"),
    (lambda: cross_entropy(Z, T, label_smoothing="0"), TypeError,
     "label_smoothing must be a number, got str"),
]  # fmt: skip


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize(("call", "kind", "message"), BAD, ids=[message for *_, message in BAD])
def test_a_bad_argument_is_named(call, kind, message):
    with pytest.raises(kind, match=re.escape(message) + "$"):
        call()
