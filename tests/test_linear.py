"""Linear attention: by hand, four forms against a float64 loop with all gradients, properties."""

import math
from functools import partial

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import BATCH, DTYPES, DV, TK, TQ, D, assert_matches, masks, normal, random
from torch.autograd.functional import jacobian
from torch.nn.functional import elu
from torch.testing import assert_close

from attention_lib import causal, padding
from attention_lib.efficient.linear import (
    LinearState,
    attend_linear,
    attend_linear_chunked,
    attend_linear_explicit,
    attend_linear_recurrent,
    elu_plus_one,
    linear_weights,
)

T, F = 11, 17
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
DIRECTIONS = torch.randn(D, F, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def more_features(x):
    """F positive features of D numbers."""
    return (x @ DIRECTIONS.to(x.dtype)).exp()


MAPS = pytest.mark.parametrize("feature_map", [elu_plus_one, more_features])


def masked(query, key, value, **options):
    return attend_linear_explicit(query, key, value, causal(), **options)


def by_weights(query, key, value):
    return linear_weights(query, key) @ value


def recurrent(query, key, value, **options):
    return attend_linear_recurrent(query, key, value, **options)[0]


def chunked(query, key, value, *, chunk=3, **options):
    return attend_linear_chunked(query, key, value, chunk=chunk, **options)[0]


def in_two_parts(query, key, value, **options):
    """The recurrence for the first five positions, chunks from the state that it left."""
    first, rest = zip(
        *(x.split([5, x.shape[-2] - 5], -2) for x in (query, key, value)), strict=True
    )
    begun, state = attend_linear_recurrent(*first, **options)
    ended, _ = attend_linear_chunked(*rest, state, chunk=4, **options)
    return torch.cat([begun, ended], dim=-2)


CAUSAL = [masked, recurrent, chunked, in_two_parts]
FORMS = pytest.mark.parametrize("form", CAUSAL, ids=lambda f: f.__name__)


def _inputs(generator, dtype=torch.float64, tq=T, tk=T, scale=1.0):
    shapes = (tq, D), (tk, D), (tk, DV)
    return [random(generator, BATCH, *shape, dtype=dtype, scale=scale) for shape in shapes]


def loop(query, key, value, *, is_causal=False, features=None):
    """The formula, one query and one key at a time."""
    if query.ndim > 2:
        parts = zip(query, key, value, strict=True)
        return torch.stack([loop(*part, is_causal=is_causal, features=features) for part in parts])
    features = features or (lambda x: torch.stack([a + 1 if a > 0 else a.exp() for a in x]))
    rows = []
    for i, q in enumerate(query):
        seen = range(i + 1 if is_causal else len(key))
        products = [
            sum(a * b for a, b in zip(features(q), features(key[j]), strict=True)) for j in seen
        ]
        rows.append(sum(w * value[j] for w, j in zip(products, seen, strict=True)) / sum(products))
    return torch.stack(rows)


def plain(query, key, value, *, is_causal=False):
    """PyTorch only, in the dtype of the inputs."""
    products = (elu(query) + 1) @ (elu(key) + 1).mT
    products = products.tril() if is_causal else products
    return products @ value / products.sum(dim=-1, keepdim=True)


# --- on paper ------------------------------------------------------------------------------------


def test_features_by_hand():
    x = torch.tensor([2.0, 0.5, 0.0, -math.log(2), -math.log(8)])
    assert_close(elu_plus_one(x), torch.tensor([3.0, 1.5, 1.0, 0.5, 0.125]))


def test_features_keep_what_elu_plus_one_of_float32_loses():
    x = torch.tensor(-20.0)
    assert elu(x) + 1 == 0
    assert elu_plus_one(x).item() == pytest.approx(math.exp(-20))


@DTYPE
def test_features_and_their_slope_are_those_of_elu(dtype):
    x = torch.linspace(-4, 4, 65, dtype=dtype).requires_grad_()
    ours, theirs = elu_plus_one(x), elu(x.double()) + 1
    assert ours.dtype == dtype
    near = partial(assert_close, rtol=16 * torch.finfo(dtype).eps, atol=0)
    near(ours.double(), theirs)
    slopes = (torch.autograd.grad(y.sum(), x)[0].double() for y in (ours, theirs))
    near(*slopes)


def test_the_slope_is_finite_where_exp_is_not():
    x = torch.tensor([1000.0, -1000.0], requires_grad=True)
    elu_plus_one(x).sum().backward()
    assert x.grad.tolist() == [1, 0]


def test_weights_by_hand():
    # Features (2, 1); (1, 1) and (3, 2): products 3 and 8.
    query, key = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0], [2.0, 1.0]])
    value = torch.tensor([[11.0], [22.0]])
    assert_close(linear_weights(query, key), torch.tensor([[3 / 11, 8 / 11]]))
    assert_close(attend_linear(query, key, value), torch.tensor([[3 + 16.0]]))


def test_the_state_by_hand():
    key, value = torch.tensor([[0.0, 0.0], [2.0, 1.0]]), torch.tensor([[5.0], [7.0]])
    output, state = attend_linear_recurrent(key, key, value)
    assert_close(state.total, torch.tensor([4.0, 3.0]))
    assert_close(state.sums, torch.tensor([[5 + 3 * 7.0], [5 + 2 * 7.0]]))
    assert_close(output, torch.tensor([[5.0], [(3 * 26 + 2 * 19) / (3 * 4 + 2 * 3)]]))


def test_the_default_features_and_chunk():
    generator = torch.Generator().manual_seed(0)
    inputs = _inputs(generator, tq=131, tk=131)
    named = {"feature_map": elu_plus_one}
    assert torch.equal(attend_linear(*inputs), attend_linear(*inputs, **named))
    assert torch.equal(recurrent(*inputs), recurrent(*inputs, **named))
    assert torch.equal(linear_weights(*inputs[:2]), linear_weights(*inputs[:2], **named))
    assert torch.equal(attend_linear_explicit(*inputs), attend_linear_explicit(*inputs, **named))
    default = attend_linear_chunked(*inputs)[0]
    assert torch.equal(default, chunked(*inputs, chunk=64, **named))
    assert not torch.equal(default, chunked(*inputs, chunk=63))


# --- against the loop and PyTorch ---------------------------------------------------------------


@pytest.mark.oracle
@DTYPE
@pytest.mark.parametrize("form", [attend_linear, attend_linear_explicit, by_weights])
def test_all_keys_against_the_loop(generator, dtype, form):
    inputs = _inputs(generator, dtype, TQ, TK)
    assert_matches(form, plain, loop, inputs, magnitude=8)


@pytest.mark.oracle
@DTYPE
@FORMS
def test_causal_forms_against_the_loop(generator, dtype, form):
    past = partial(loop, is_causal=True)
    inputs = _inputs(generator, dtype)
    assert_matches(form, partial(plain, is_causal=True), past, inputs, magnitude=8)


@FORMS
def test_causal_forms_agree_for_other_features(generator, form):
    inputs = _inputs(generator)
    features = partial(loop, is_causal=True, features=more_features)
    ours = partial(form, feature_map=more_features)
    assert_matches(ours, ours, features, inputs)


@MAPS
@pytest.mark.parametrize("chunk", [1, 2, 5, 10, 11, 12, 100])
def test_every_chunk_gives_the_same(generator, chunk, feature_map):
    inputs = _inputs(generator)
    whole, end = attend_linear_recurrent(*inputs, feature_map=feature_map)
    output, state = attend_linear_chunked(*inputs, feature_map=feature_map, chunk=chunk)
    assert_close(output, whole)
    assert_close(state.sums, end.sums)
    assert_close(state.total, end.total)


@FORMS
def test_gradcheck(generator, form):
    inputs = [x[:1, :7, :3].requires_grad_() for x in _inputs(generator)]
    assert torch.autograd.gradcheck(form, inputs)


def test_gradcheck_through_the_state(generator):
    inputs = [x[:1, :5, :3].requires_grad_() for x in _inputs(generator)]

    def states(*inputs):
        ends = [f(*inputs)[1] for f in (attend_linear_recurrent, attend_linear_chunked)]
        return [part for state in ends for part in (state.sums, state.total)]

    assert torch.autograd.gradcheck(states, inputs)


# --- properties ---------------------------------------------------------------------------------


@given(normal(BATCH, TQ, D), normal(BATCH, TK, D), masks(BATCH, TQ, TK))
def test_rows_sum_to_one_or_zero_and_masked_weights_are_zero(query, key, mask):
    weights = linear_weights(query, key, mask)
    assert_close(weights.sum(dim=-1), mask.any(dim=-1).double())
    assert (weights >= 0).all()
    assert (weights[~mask] == 0).all()


@given(normal(T, D), normal(T, D), normal(T, DV), st.integers(1, T - 1), st.integers(1, 6))
def test_the_future_changes_nothing(query, key, value, first, chunk):
    changed = [torch.cat([x[:first], x[first:] * 3 - 1]) for x in (query, key, value)]
    for form in (masked, recurrent, partial(chunked, chunk=chunk)):
        before, after = form(query, key, value), form(*changed)
        assert torch.equal(before[:first], after[:first])
        assert not torch.allclose(before[first:], after[first:])


@FORMS
def test_the_jacobian_is_lower_triangular(generator, form):
    query, key, value = (x[0] for x in _inputs(generator))
    found = jacobian(lambda key: form(query, key, value).sum(dim=-1), key).abs().sum(dim=-1)
    assert torch.equal(found.triu(1), torch.zeros(T, T, dtype=found.dtype))
    assert (found.tril()[1:] > 0).sum() == T * (T + 1) // 2 - 1


@given(normal(T, D), normal(T, D), normal(T, DV), st.integers(0, T))
def test_decoding_goes_on_where_the_prompt_ended(query, key, value, first):
    whole, end = attend_linear_chunked(query, key, value, chunk=4)
    outputs, state = attend_linear_chunked(query[:first], key[:first], value[:first], chunk=2)
    for t in range(first, T):
        here = slice(t, t + 1)
        new, state = attend_linear_recurrent(query[here], key[here], value[here], state)
        outputs = torch.cat([outputs, new])
    assert_close(outputs, whole)
    assert_close(state.sums, end.sums)


def test_the_rank_is_at_most_the_number_of_features(generator):
    query, key, _ = _inputs(generator, tq=29, tk=31)
    assert torch.linalg.matrix_rank(linear_weights(query, key)).tolist() == [D] * BATCH
    wider = linear_weights(query, key, feature_map=more_features)
    assert torch.linalg.matrix_rank(wider).tolist() == [F] * BATCH


def test_a_common_factor_of_the_features_cancels(generator):
    inputs = _inputs(generator, tq=TQ, tk=TK)
    larger = attend_linear(*inputs, feature_map=lambda x: 1000 * elu_plus_one(x))
    assert_close(larger, attend_linear(*inputs))


def test_keys_may_be_permuted(generator):
    query, key, value = _inputs(generator, tq=TQ, tk=TK)
    order = [3, 0, 4, 1, 2]
    assert_close(
        attend_linear(query, key[:, order], value[:, order]), attend_linear(query, key, value)
    )


def test_leading_dimensions_broadcast(generator):
    query = random(generator, 2, 1, T, D)
    key, value = random(generator, 3, T, D), random(generator, T, DV)
    wide = query.expand(2, 3, T, D), key.expand(2, 3, T, D), value.expand(2, 3, T, DV)
    for form in (attend_linear, masked, recurrent, chunked):
        assert_close(form(query, key, value), form(*wide))


def test_a_state_broadcasts_over_a_larger_batch(generator):
    first = [x[0] for x in _inputs(generator)]
    rest = _inputs(generator)
    _, state = attend_linear_recurrent(*first)
    for form in (attend_linear_recurrent, attend_linear_chunked):
        output, _ = form(*rest, state)
        for b in range(BATCH):
            assert_close(output[b], form(*(x[b] for x in rest), state)[0])


@pytest.mark.parametrize("form", [attend_linear_recurrent, attend_linear_chunked])
def test_one_sequence_goes_on_from_a_batch_of_states(generator, form):
    batch = _inputs(generator)
    first = [x[0] for x in _inputs(generator)]
    _, state = form(*batch)
    output, _ = form(*first, state)
    for b in range(BATCH):
        alone = LinearState(state.sums[b], state.total[b])
        assert_close(output[b], form(*first, alone)[0])


def test_inputs_and_states_are_not_changed(generator):
    inputs = _inputs(generator)
    copies = [x.clone() for x in inputs]
    _, state = attend_linear_recurrent(*inputs)
    sums, total = state.sums.clone(), state.total.clone()
    for form in (attend_linear_recurrent, attend_linear_chunked):
        form(*inputs, state)
    attend_linear(*inputs)
    masked(*inputs)
    assert all(torch.equal(x, copy) for x, copy in zip(inputs, copies, strict=True))
    assert torch.equal(state.sums, sums)
    assert torch.equal(state.total, total)


def test_a_padding_mask_hides_keys(generator):
    query, key, value = _inputs(generator, tq=TQ, tk=TK)
    found = attend_linear_explicit(query, key, value, padding(torch.tensor([2, 4])))
    assert_close(found[0], attend_linear(query[0], key[0, :2], value[0, :2]))
    assert_close(found[1], attend_linear(query[1], key[1, :4], value[1, :4]))


# --- hostile ------------------------------------------------------------------------------------


@pytest.mark.hostile
@pytest.mark.parametrize(("tq", "tk"), [(0, TK), (TQ, 0), (0, 0), (1, 1)])
def test_empty_and_single(generator, tq, tk):
    query, key, value = inputs = _inputs(generator, tq=tq, tk=tk)
    output = attend_linear(*inputs)
    assert output.shape == (BATCH, tq, DV)
    assert linear_weights(query, key).shape == (BATCH, tq, tk)
    if tk == 0:
        assert torch.equal(output, torch.zeros(BATCH, tq, DV, dtype=output.dtype))
    elif tq:
        assert_close(output, value)


@pytest.mark.hostile
@pytest.mark.parametrize("form", [attend_linear_recurrent, attend_linear_chunked])
@pytest.mark.parametrize("length", [0, 1])
def test_a_short_sequence_leaves_a_state(generator, form, length):
    query, key, value = _inputs(generator, tq=length, tk=length)
    output, state = form(query, key, value)
    assert_close(output, value)
    assert state.sums.shape == (BATCH, D, DV)
    assert_close(state.total, elu_plus_one(key).sum(dim=-2))
    again, same = form(query[:, :0], key[:, :0], value[:, :0], state)
    assert again.shape == (BATCH, 0, DV)
    assert torch.equal(same.sums, state.sums)


@pytest.mark.hostile
@pytest.mark.parametrize("form", [attend_linear, masked, recurrent, chunked])
def test_a_denominator_of_zero_gives_zero_and_gradient_zero(form):
    # relu features: the query [-1, -1] has none.
    query = torch.tensor([[1.0, 2.0], [-1.0, -1.0]], requires_grad=True)
    key = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    value = torch.tensor([[3.0], [4.0]], requires_grad=True)
    output = form(query, key, value, feature_map=torch.relu)
    assert output[1].item() == 0
    output[1].sum().backward()
    assert all(torch.equal(x.grad, torch.zeros_like(x)) for x in (query, key, value))


@pytest.mark.hostile
def test_signed_features_may_cancel_and_the_answer_is_still_zero():
    query, key = torch.tensor([[1.0]]), torch.tensor([[1.0], [-1.0]])
    value = torch.tensor([[3.0], [4.0]])
    assert attend_linear(query, key, value, feature_map=lambda x: x).item() == 0
    assert linear_weights(query, key, feature_map=lambda x: x).tolist() == [[0, 0]]


@pytest.mark.hostile
def test_a_masked_row_gives_zero_and_finite_gradients(generator):
    inputs = [x.requires_grad_() for x in _inputs(generator, tq=TQ, tk=TK)]
    mask = torch.ones(TQ, TK, dtype=torch.bool)
    mask[1] = False
    output = attend_linear_explicit(*inputs, mask)
    assert torch.equal(output[:, 1], torch.zeros(BATCH, DV, dtype=output.dtype))
    output.sum().backward()
    assert all(x.grad.isfinite().all() for x in inputs)
    assert torch.equal(inputs[0].grad[:, 1], torch.zeros(BATCH, D, dtype=output.dtype))


@pytest.mark.hostile
@pytest.mark.parametrize("form", [attend_linear, masked, recurrent, chunked])
def test_sums_that_float16_cannot_hold(form):
    # 60 * 61 * 30 * 2 is above 65504; the mean is 30.
    ones = torch.ones(64, 2, dtype=torch.float16)
    output = form(60 * ones, 60 * ones, 30 * ones)
    assert output.dtype == torch.float16
    assert torch.equal(output, 30 * ones)


@pytest.mark.hostile
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_state_of_half_precision_is_float32(generator, dtype):
    inputs = _inputs(generator, dtype)
    for form in (attend_linear_recurrent, attend_linear_chunked):
        output, state = form(*inputs)
        assert output.dtype == dtype
        assert state.sums.dtype == state.total.dtype == torch.float32
        assert form(*inputs, state)[0].dtype == dtype


# --- messages -----------------------------------------------------------------------------------


def _state(features=D, width=DV, dtype=torch.float64):
    return LinearState(
        torch.zeros(features, width, dtype=dtype), torch.zeros(features, dtype=dtype)
    )


X, V = torch.zeros(T, D, dtype=torch.float64), torch.zeros(T, DV, dtype=torch.float64)
WRONG = {
    "integers": (lambda: elu_plus_one(torch.arange(3)), TypeError, "x must have a floating-point"),
    "no tensor": (lambda: elu_plus_one(3.0), TypeError, "x must be a torch.Tensor, got float"),
    "width": (
        lambda: attend_linear(X, X[:, :5], V),
        ValueError,
        "key must have the width of query",
    ),
    "value": (
        lambda: attend_linear(X, X, V[:3]),
        ValueError,
        r"value must have one row for each key, Tk = 11, got shape \(3, 13\)",
    ),
    "dtype": (
        lambda: attend_linear(X, X, V.float()),
        TypeError,
        "value must have the dtype of query",
    ),
    "features of queries": (
        lambda: attend_linear(X, X, V, feature_map=lambda x: x.sum(dim=-1)),
        ValueError,
        r"feature_map must turn query \(11, 7\) into \(11, 'F'\), got \(11,\)",
    ),
    "features of keys": (
        lambda: attend_linear(X, X[:3], V[:3], feature_map=lambda x: x if len(x) > 3 else x[:, :2]),
        ValueError,
        r"feature_map must turn key \(3, 7\) into \(3, 'F'\), got \(3, 2\)",
    ),
    "mask": (
        lambda: linear_weights(X, X, torch.ones(3, 11, dtype=torch.bool)),
        ValueError,
        r"mask must broadcast to \(..., Tq, Tk\) = \(11, 11\), got \(3, 11\)",
    ),
    "value of the explicit form": (
        lambda: attend_linear_explicit(X, X, V[:3]),
        ValueError,
        r"value must have one row for each key, Tk = 11, got shape \(3, 13\)",
    ),
    "mask of numbers": (lambda: linear_weights(X, X, X), TypeError, "mask must be boolean"),
    "lengths": (
        lambda: attend_linear_recurrent(X[:3], X, V),
        ValueError,
        r"query must have the length of key, T = 11, got shape \(3, 7\)",
    ),
    "lengths of chunks": (
        lambda: attend_linear_chunked(X[:3], X, V),
        ValueError,
        r"query must have the length of key, T = 11, got shape \(3, 7\)",
    ),
    "chunk": (
        lambda: attend_linear_chunked(X, X, V, chunk=0),
        ValueError,
        "chunk must be at least 1, got 0",
    ),
    "state of other features": (
        lambda: attend_linear_recurrent(X, X, V, _state(features=5)),
        ValueError,
        r"state must hold sums \(..., 7, 13\) and a total \(..., 7\), got \(5, 13\) and \(5,\)",
    ),
    "state of another total": (
        lambda: attend_linear_recurrent(X, X, V, LinearState(_state().sums, _state(5).total)),
        ValueError,
        r"state must hold sums \(..., 7, 13\) and a total \(..., 7\), got \(7, 13\) and \(5,\)",
    ),
    "state of other values": (
        lambda: attend_linear_chunked(X, X, V, _state(width=3)),
        ValueError,
        r"got \(7, 3\) and \(7,\)",
    ),
    "state of another dtype": (
        lambda: attend_linear_recurrent(X, X, V, _state(dtype=torch.float32)),
        TypeError,
        r"state.sums must have the dtype of the features \(torch.float64\), got torch.float32",
    ),
    "total of another dtype": (
        lambda: attend_linear_recurrent(
            X, X, V, LinearState(_state().sums, _state().total.float())
        ),
        TypeError,
        r"state.total must have the dtype of the features \(torch.float64\), got torch.float32",
    ),
    "state of another batch": (
        lambda: attend_linear_recurrent(
            X.expand(2, T, D),
            X.expand(2, T, D),
            V.expand(2, T, DV),
            LinearState(torch.zeros(3, D, DV).double(), torch.zeros(3, D).double()),
        ),
        ValueError,
        r"query \(2, 11, 7\), value \(2, 11, 13\), state \(3, 7, 13\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_messages(name, no_shape_hook):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()


def test_the_oracle_of_this_file_is_attention_with_other_weights(generator):
    """The loop with exp(q k) as the one product is softmax attention: it can serve as an oracle."""
    query, key, value = _inputs(generator, tq=TQ, tk=TK)
    scores = query @ key.mT
    expected = oracle.attend(query, key, value, score=oracle.dot)
    found = (scores.exp() @ value) / scores.exp().sum(dim=-1, keepdim=True)
    assert_close(found, expected)
