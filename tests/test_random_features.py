"""Random features: the formula, mean and variance over many draws, and attention from them."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from oracle import BATCH, DTYPES, DV, TK, TQ, D, assert_matches, normal, random
from scipy import stats
from torch.testing import assert_close

from attention_lib import attend, causal
from attention_lib.efficient.linear import (
    attend_linear,
    attend_linear_chunked,
    attend_linear_explicit,
    attend_linear_recurrent,
)
from attention_lib.efficient.random_features import (
    attend_random_features,
    gaussian_directions,
    orthogonal_directions,
    positive_features,
    trigonometric_features,
)

F, T = 11, 17
DRAWS = pytest.mark.parametrize("draw", [gaussian_directions, orthogonal_directions])
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
MAPS = pytest.mark.parametrize("features", [positive_features, trigonometric_features])


def _inputs(generator, dtype=torch.float64, tq=TQ, tk=TK, scale=1.0):
    shapes = (tq, D), (tk, D), (tk, DV)
    return [random(generator, BATCH, *shape, dtype=dtype, scale=scale) for shape in shapes]


def many(draw, generator, width, features, times):
    """Many independent draws, (times, features, width)."""
    return torch.stack([draw(features, width, generator) for _ in range(times)]).double()


def estimates(features, draws, query, key):
    """An estimate of exp(query key) for each draw, (times,)."""
    found = [features(query, w) @ features(key, w).mT for w in draws]
    return torch.cat(found).squeeze(-1)


# --- directions ---------------------------------------------------------------------------------


@DRAWS
@pytest.mark.parametrize(("features", "width"), [(1, 1), (1, 7), (7, 1), (5, 7), (7, 7), (17, 7)])
def test_shapes_and_the_same_numbers_for_the_same_seed(draw, features, width):
    first, second = (draw(features, width, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.shape == (features, width)
    assert first.dtype == torch.float32
    assert torch.equal(first, second)
    assert not torch.equal(first, draw(features, width, torch.Generator().manual_seed(4)))


def test_drawing_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    orthogonal_directions(5, 3, torch.Generator())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("features", "blocks"), [(6, 1), (7, 1), (8, 2)])
def test_no_block_more_than_needed_is_drawn(features, blocks):
    first, second = (torch.Generator().manual_seed(3) for _ in range(2))
    orthogonal_directions(features, 7, first)
    for rows in (features, *[7] * blocks):  # the lengths, then a square for each block
        gaussian_directions(rows, 7, second)
    assert torch.equal(first.get_state(), second.get_state())


def test_directions_of_a_block_are_orthogonal_and_blocks_are_not(generator):
    rows = orthogonal_directions(17, D, generator).double()
    rows = rows / rows.norm(dim=-1, keepdim=True)
    products = (rows @ rows.mT).fill_diagonal_(0).abs()
    for start in (0, 7, 14):
        assert products[start : start + 7, start : start + 7].max() < 1e-6
    assert products[:7, 7:14].max() > 0.1
    assert products[7:14, 14:].max() > 0.1


@DRAWS
def test_each_direction_is_normal(generator, draw):
    drawn = many(draw, generator, 3, 4, 2000)  # (2000, 4, 3)
    for numbers in (drawn[:, 0, 0], drawn[:, 1, 2], drawn[:, 2, 1], drawn[:, 3, 0]):
        assert stats.kstest(numbers.numpy(), "norm").pvalue > 0.001
    squares = drawn.square().sum(dim=-1)
    assert stats.kstest(squares[:, 2].numpy(), stats.chi2(3).cdf).pvalue > 0.001
    # The length says nothing about the direction.
    cosines = drawn[:, 0, 0] / squares[:, 0].sqrt()
    assert abs(torch.corrcoef(torch.stack([cosines, squares[:, 0]]))[0, 1]) < 0.1


def test_the_lengths_of_one_block_are_independent(generator):
    squares = many(orthogonal_directions, generator, 3, 3, 2000).square().sum(dim=-1)
    assert torch.corrcoef(squares.T).fill_diagonal_(0).abs().max() < 0.1


# --- features -----------------------------------------------------------------------------------


def test_positive_features_by_hand():
    x, directions = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 5.0], [0.0, 3.0]])
    expected = torch.tensor([[1.5, -0.5]]).exp() / math.sqrt(2)
    assert_close(positive_features(x, directions), expected)


def test_trigonometric_features_by_hand():
    x = torch.tensor([[math.pi, 0.0]])
    directions = torch.tensor([[0.5, 9.0], [1.0, 7.0]])
    expected = torch.tensor([[0.0, -1.0, 1.0, 0.0]]) * math.exp(math.pi**2 / 2) / math.sqrt(2)
    assert_close(trigonometric_features(x, directions), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.oracle
@DTYPE
@MAPS
def test_features_against_the_formula(generator, dtype, features):
    x = random(generator, BATCH, T, D, dtype=dtype, scale=0.5)
    directions = random(generator, F, D, dtype=dtype)

    def one(x, w):
        dot, square = sum(a * b for a, b in zip(x, w, strict=True)), sum(a * a for a in x)
        if features is positive_features:
            return [(dot - square / 2).exp() / math.sqrt(F)]
        return [(square / 2).exp() * f(dot) / math.sqrt(F) for f in (torch.cos, torch.sin)]

    def formula(x, directions):
        rows = [
            torch.stack(
                [f for part in zip(*(one(row, w) for w in directions), strict=True) for f in part]
            )
            for row in x.reshape(-1, D)
        ]
        return torch.stack(rows).reshape(BATCH, T, -1)

    def reference(x, directions):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return formula(x.to(wide), directions.to(wide)).to(dtype)

    assert_matches(features, reference, formula, [x, directions], magnitude=32)


QUERY = torch.tensor([[0.6, -0.2, 0.1]], dtype=torch.float64)
KEY = torch.tensor([[0.3, 0.5, -0.4]], dtype=torch.float64)


@MAPS
@DRAWS
def test_estimates_are_unbiased(generator, features, draw):
    truth = (QUERY @ KEY.mT).exp().item()
    found = estimates(features, many(draw, generator, 3, 5, 2000), QUERY, KEY)
    standard_error = found.std().item() / math.sqrt(len(found))
    assert standard_error < 0.05
    assert abs(found.mean().item() - truth) < 4 * standard_error


def test_the_variance_of_positive_features_is_that_of_the_docstring(generator):
    found = estimates(
        positive_features, many(gaussian_directions, generator, 3, 5, 10_000), QUERY, KEY
    )
    both, score = (QUERY + KEY).square().sum(), (QUERY * KEY).sum()
    expected = (2 * score).exp() * (both.exp() - 1) / 5
    assert found.var().item() == pytest.approx(expected.item(), rel=0.1)


def test_the_error_falls_as_one_over_the_number_of_features(generator):
    few = estimates(positive_features, many(gaussian_directions, generator, 3, 4, 4000), QUERY, KEY)
    more = estimates(
        positive_features, many(gaussian_directions, generator, 3, 64, 4000), QUERY, KEY
    )
    assert (few.var() / more.var()).item() == pytest.approx(16, rel=0.3)


def test_orthogonal_directions_vary_less(generator):
    free, square = (
        estimates(positive_features, many(draw, generator, 3, 3, 4000), QUERY, KEY).var()
        for draw in (gaussian_directions, orthogonal_directions)
    )
    assert square < 0.9 * free


def test_positive_features_are_positive_and_trigonometric_estimates_are_not(generator):
    far = torch.tensor([[2.0, 0.0, 0.0]])
    draws = many(gaussian_directions, generator, 3, 5, 200).float()
    assert estimates(positive_features, draws, far, -far).min() > 0
    negative = (estimates(trigonometric_features, draws, far, -far) < 0).double().mean()
    assert 0.3 < negative < 0.7


def test_near_zero_scores_positive_features_are_the_better(generator):
    """Choromanski et al. (2021), lemma 2: opposite vectors, whose score is very negative."""
    draws = many(gaussian_directions, generator, 3, 5, 2000)
    away = torch.tensor([[1.5, 0.5, -0.5]], dtype=torch.float64)
    positive, signed = (
        estimates(f, draws, away, -away).var() for f in (positive_features, trigonometric_features)
    )
    assert positive < 1e-6 * signed


# --- attention ----------------------------------------------------------------------------------


def reference(query, key, value, directions, mask=None):
    """Without the two factors that cancel, in the dtype of the inputs."""
    scale = D**-0.25
    q, k = (positive_features(x * scale, directions) for x in (query, key))
    products = q @ k.mT
    products = products.tril() if mask else products
    return products @ value / products.sum(dim=-1, keepdim=True)


@pytest.mark.oracle
@DTYPE
def test_attention_against_the_formula(generator, dtype):
    inputs = [*_inputs(generator, dtype), random(generator, F, D, dtype=dtype)]
    assert_matches(attend_random_features, reference, reference, inputs, magnitude=16)


FORMS = {
    "masked": lambda *x, **options: attend_linear_explicit(*x, causal(), **options),
    "recurrent": lambda *x, **options: attend_linear_recurrent(*x, **options)[0],
    "chunked": lambda *x, **options: attend_linear_chunked(*x, chunk=5, **options)[0],
}


@pytest.mark.parametrize("form", FORMS)
def test_causal_attention_through_each_form(generator, form):
    inputs = [*_inputs(generator, tq=T, tk=T), random(generator, F, D)]
    ours = partial(attend_random_features, attend=FORMS[form])
    past = partial(reference, mask=True)
    assert_matches(ours, past, past, inputs, magnitude=16)


def test_the_default_form_sees_all_keys(generator):
    inputs = [*_inputs(generator), random(generator, F, D)]
    explicit = attend_random_features(*inputs, attend=attend_linear)
    assert torch.equal(attend_random_features(*inputs), explicit)


def test_gradcheck(generator):
    inputs = [x[:1, :, :3].requires_grad_() for x in _inputs(generator)]
    directions = random(generator, 5, 3).requires_grad_()
    assert torch.autograd.gradcheck(attend_random_features, [*inputs, directions])


def test_attention_comes_closer_to_softmax_with_more_features(generator):
    inputs = _inputs(generator, tq=31, tk=37, scale=0.5)
    exact = attend(*inputs)
    errors = []
    for features in (7, 7 * 16, 7 * 256):
        draws = many(orthogonal_directions, generator, D, features, 8)
        errors.append(
            sum((attend_random_features(*inputs, w) - exact).square().mean() for w in draws).item()
        )
    assert errors[0] > 4 * errors[1]
    assert errors[1] > 8 * errors[2]


def test_sharper_scores_are_estimated_worse(generator):
    query, key, value = _inputs(generator, tq=31, tk=37)
    draws = many(orthogonal_directions, generator, D, 64, 4)
    errors = []
    for sharpness in (0.5, 1, 2):
        q, k = query * sharpness, key * sharpness
        exact = attend(q, k, value)
        errors.append(sum((attend_random_features(q, k, value, w) - exact).norm() for w in draws))
    assert errors[0] < errors[1] < errors[2]


@given(normal(TQ, D), normal(TK, D), normal(F, D))
def test_the_output_is_a_mean_of_the_values(query, key, directions):
    output = attend_random_features(query, key, torch.eye(TK, dtype=query.dtype), directions)
    assert_close(output.sum(dim=-1), torch.ones(TQ, dtype=query.dtype))
    assert (output >= 0).all()


def test_inputs_are_not_changed(generator):
    inputs = [*_inputs(generator), random(generator, F, D)]
    copies = [x.clone() for x in inputs]
    attend_random_features(*inputs)
    trigonometric_features(inputs[0], inputs[3])
    assert all(torch.equal(x, copy) for x, copy in zip(inputs, copies, strict=True))


@pytest.mark.parametrize("form", [attend_linear_recurrent, attend_linear_chunked])
def test_a_state_carried_between_calls_needs_one_offset(generator, form):
    query, key, value = _inputs(generator, tq=T, tk=T)
    directions = random(generator, F, D)

    def carried(**options):
        state, outputs = None, []

        def attend(*features, **rest):
            nonlocal state
            output, state = form(*features, state, **rest)
            return output

        for rows in (slice(0, 4), slice(4, T)):
            parts = (x[..., rows, :] for x in (query, key, value))
            outputs.append(attend_random_features(*parts, directions, attend=attend, **options))
        return torch.cat(outputs, dim=-2)

    whole = reference(query, key, value, directions, mask=True)
    assert_close(carried(key_offset=1.5), whole)
    assert_close(carried(key_offset=0.0), whole)
    # Without it each call subtracts the largest exponent of its own keys.
    assert (carried() - whole).abs().max() > 1e-3


def test_a_fixed_offset_keeps_a_large_later_key_out_of_earlier_outputs(generator):
    query, key, value = (x.float() for x in _inputs(generator, tq=T, tk=T))
    directions = random(generator, F, D, dtype=torch.float32)
    far = 40 * key
    large = torch.cat([far[..., :-1, :], 0 * far[..., -1:, :]], dim=-2)
    early = [
        attend_random_features(query, x, value, directions, attend=FORMS["masked"])[..., :-1, :]
        for x in (far, large)
    ]
    assert not torch.allclose(*early)
    assert (early[1] == 0).all(dim=-1).any()
    fixed = [
        attend_random_features(
            query, x / 40, value, directions, attend=FORMS["masked"], key_offset=0.0
        )[..., :-1, :]
        for x in (far, large)
    ]
    assert_close(*fixed)


# --- hostile ------------------------------------------------------------------------------------


@pytest.mark.hostile
@pytest.mark.parametrize(("tq", "tk"), [(0, TK), (TQ, 0), (0, 0), (1, 1), (TQ, 1)])
def test_empty_and_single(generator, tq, tk):
    query, key, value = _inputs(generator, tq=tq, tk=tk)
    output = attend_random_features(query, key, value, random(generator, F, D))
    assert output.shape == (BATCH, tq, DV)
    if tk == 1:
        assert_close(output, value.expand_as(output))
    if tk == 0:
        assert torch.equal(output, torch.zeros_like(output))


@pytest.mark.hostile
@pytest.mark.parametrize("scale", [0, 30])
def test_exponents_that_float32_cannot_hold_without_the_factors(generator, scale):
    query, key, value = _inputs(generator, torch.float32, scale=max(scale, 1))
    directions = random(generator, F, D, dtype=torch.float32)
    scaled = positive_features(query * D**-0.25, directions)
    assert (scaled == 0).any() == (scale == 30)
    output = attend_random_features(query, key, value, directions)
    assert output.isfinite().all()
    # A common shift of all keys' exponents stays within the hull of the values.
    assert (output.abs().amax() <= value.abs().amax() * (1 + 1e-6)).all()


@pytest.mark.hostile
def test_features_without_overlap_give_zero_and_finite_gradients():
    # The query lives on the first direction, the key on the second, by more than float32 can hold.
    query = torch.tensor([[20.0, 0.0]], requires_grad=True)
    key = torch.tensor([[0.0, 20.0]], requires_grad=True)
    directions = torch.tensor([[20.0, 0.0], [0.0, 20.0]])
    output = attend_random_features(query, key, torch.ones(1, 1), directions)
    output.sum().backward()
    assert output.item() == 0
    assert torch.equal(query.grad, torch.zeros(1, 2))
    assert torch.equal(key.grad, torch.zeros(1, 2))


@pytest.mark.hostile
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(generator, dtype):
    inputs = _inputs(generator, dtype)
    directions = random(generator, F, D, dtype=torch.float32)
    output = attend_random_features(*inputs, directions)
    wide = attend_random_features(*(x.float() for x in inputs), directions)
    assert output.dtype == dtype
    assert torch.equal(output, wide.to(dtype))
    for features in (positive_features, trigonometric_features):
        found = features(inputs[0], directions)
        assert torch.equal(found, features(inputs[0].float(), directions).to(dtype))


# --- messages -----------------------------------------------------------------------------------

X, V, W = torch.zeros(TQ, D), torch.zeros(TQ, DV), torch.zeros(F, D)
SEED = torch.Generator()
WRONG = {
    "no features": (
        lambda: gaussian_directions(0, 3, SEED),
        ValueError,
        "features must be at least 1, got 0",
    ),
    "no width": (
        lambda: gaussian_directions(3, 0, SEED),
        ValueError,
        "width must be at least 1, got 0",
    ),
    "half a feature": (
        lambda: orthogonal_directions(0.5, 3, SEED),
        TypeError,
        "features must be an integer",
    ),
    "no orthogonal width": (
        lambda: orthogonal_directions(3, 0, SEED),
        ValueError,
        "width must be at least 1",
    ),
    "integers": (lambda: positive_features(X.int(), W), TypeError, "x must have a floating-point"),
    "a vector": (
        lambda: positive_features(X[0], W),
        ValueError,
        "x must have at least 2 dimensions",
    ),
    "width": (
        lambda: positive_features(X, W[:, :3]),
        ValueError,
        r"directions must have shape \(F, D\) with F at least 1 and D = 7, got \(11, 3\)",
    ),
    "no direction": (lambda: trigonometric_features(X, W[:0]), ValueError, r"got \(0, 7\)"),
    "a batch of directions": (
        lambda: trigonometric_features(X, W[None]),
        ValueError,
        r"got \(1, 11, 7\)",
    ),
    "directions of integers": (
        lambda: attend_random_features(X, X, V, W.int()),
        TypeError,
        "directions must have a floating-point dtype, got torch.int32",
    ),
    "one direction as a vector": (
        lambda: positive_features(X, W[0]),
        ValueError,
        "directions must have at least 2 dimensions",
    ),
    "key": (
        lambda: attend_random_features(X, X[:, :3], V, W),
        ValueError,
        "key must have the width of query",
    ),
    "value": (
        lambda: attend_random_features(X, X, V[:2], W),
        ValueError,
        r"value must have one row for each key, Tk = 3, got shape \(2, 13\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_messages(name, no_shape_hook):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()
