"""Scores: values on paper, outside oracles with gradients, and the properties of chapters 01-02."""

import math

import numpy as np
import oracle
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import BATCH, DK, DTYPES, HIDDEN, TK, TQ, D, assert_matches, normal, random, tensors
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

import attention_lib as lib
from attention_lib.scores import _ranks

PLAIN = [lib.dot, lib.scaled_dot, lib.cosine, lib.pearson, lib.spearman, lib.gaussian]
SMOOTH = [score for score in PLAIN if score is not lib.spearman]  # ranks have no gradient


# --- on paper ------------------------------------------------------------------------------------


def test_rows_of_one_to_nine_all_correlate_at_one():
    rows = torch.arange(1.0, 10.0).view(3, 3)
    assert_close(lib.pearson(rows, rows), torch.ones(3, 3))


def test_a_line_and_its_square_do_not_correlate_on_a_symmetric_interval():
    x = torch.arange(-3.0, 4.0)[None]
    assert lib.pearson(x, x.square()).item() == 0


def test_values_that_a_person_can_compute():
    query, key = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0], [0.0, 2.0], [-6.0, -8.0]])
    assert lib.dot(query, key).tolist() == [[24, 8, -50]]
    assert_close(lib.scaled_dot(query, key), torch.tensor([[24, 8, -50]]) / math.sqrt(2))
    assert_close(lib.cosine(query, key), torch.tensor([[0.96, 0.8, -1.0]]))
    assert lib.pearson(query, key).tolist() == [[pytest.approx(s) for s in (-1, 1, -1)]]
    assert_close(lib.gaussian(query, key), torch.tensor([[-1, -6.5, -112.5]]))


def test_the_default_scale_can_be_replaced():
    query, key = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])
    assert lib.scaled_dot(query, key, scale=0.25).item() == 6
    assert lib.scaled_dot(query, key, scale=0.0).item() == 0


def test_spearman_shares_ranks_among_equals():
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5.
    scores = lib.spearman(torch.tensor([[1.0, 5, 5, 9]]), torch.tensor([[0.1, 0.2, 0.3, 70]]))
    assert scores.item() == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_ranks_start_at_one_and_equals_share_their_mean():
    ranks = _ranks(torch.tensor([[7.0, 5, 7, 9, 7], [2, 1, 1, 0, 3]]))
    assert ranks.tolist() == [[3, 1, 3, 5, 3], [4, 2.5, 2.5, 1, 5]]


def test_bilinear_reads_query_from_the_left_and_key_from_the_right():
    weight = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 5.0]])
    scores = lib.bilinear(torch.tensor([[2.0, 3.0]]), torch.tensor([[7.0, 11.0, 13.0]]), weight)
    assert scores.item() == 2 * 11 + 3 * 5 * 13


def test_additive_is_the_sum_of_hidden_units():
    one = torch.eye(2)
    scores = lib.additive(torch.tensor([[1.0, 0.0]]), one, one, one, torch.tensor([1.0, 10.0]))
    expected = [math.tanh(2), math.tanh(1) + 10 * math.tanh(1)]
    assert scores.tolist() == [pytest.approx(expected)]


# --- oracles -------------------------------------------------------------------------------------


def _all_pairs(query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.broadcast_tensors(query.unsqueeze(-2), key.unsqueeze(-3))


def _centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(dim=-1, keepdim=True)


class Bahdanau(nn.Module):
    """Additive attention as one would write it with torch.nn layers."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(D, HIDDEN, bias=False)
        self.key = nn.Linear(DK, HIDDEN, bias=False)
        self.score = nn.Linear(HIDDEN, 1, bias=False)

    def forward(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.query(query).unsqueeze(-2) + self.key(key).unsqueeze(-3))
        return self.score(hidden).squeeze(-1)


def _bahdanau(query, key, query_weight, key_weight, vector):
    weights = {"query": query_weight.mT, "key": key_weight.mT, "score": vector[None]}
    named = {f"{layer}.weight": weight for layer, weight in weights.items()}
    return torch.func.functional_call(Bahdanau(), named, (query, key))


def _bilinear(query, key, weight):
    query = query.unsqueeze(-2).expand(-1, -1, TK, -1).contiguous()
    key = key.unsqueeze(-3).expand(-1, TQ, -1, -1).contiguous()
    return functional.bilinear(query, key, weight[None]).squeeze(-1)


REFERENCES = {
    "dot": lambda q, k: torch.einsum("bid,bjd->bij", q, k),
    "scaled_dot": lambda q, k: torch.einsum("bid,bjd->bij", q, k) / math.sqrt(D),
    "cosine": lambda q, k: functional.cosine_similarity(*_all_pairs(q, k), dim=-1),
    "pearson": lambda q, k: functional.cosine_similarity(
        *_all_pairs(_centred(q), _centred(k)), dim=-1
    ),
    "gaussian": lambda q, k: -(q.unsqueeze(-2) - k.unsqueeze(-3)).square().sum(dim=-1) / 2,
    "bilinear": _bilinear,
    "additive": _bahdanau,
}
PARAMETERS = {"bilinear": [(D, DK)], "additive": [(D, HIDDEN), (DK, HIDDEN), (HIDDEN,)]}


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", REFERENCES)
def test_scores_and_gradients_match_loop_and_torch(name, dtype, generator):
    parameters = PARAMETERS.get(name, [])
    key_width = DK if parameters else D
    shapes = [(BATCH, TQ, D), (BATCH, TK, key_width), *parameters]
    inputs = [random(generator, *shape, dtype=dtype) for shape in shapes]
    assert_matches(getattr(lib, name), REFERENCES[name], getattr(oracle, name), inputs)


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_spearman_matches_loop_in_every_dtype(dtype, generator):
    query, key = (random(generator, BATCH, n, D, dtype=dtype).round(decimals=1) for n in (TQ, TK))
    exact = oracle.spearman(query.double(), key.double())
    oracle.assert_within_budget(lib.spearman(query, key), exact.to(dtype), exact)


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_pearson_matches_numpy_corrcoef(dtype, generator):
    query, key = random(generator, TQ, D, dtype=dtype), random(generator, TK, D, dtype=dtype)
    theirs = torch.from_numpy(np.corrcoef(query, key, dtype=query.numpy().dtype)[:TQ, TQ:])
    exact = oracle.pearson(query.double(), key.double())
    oracle.assert_within_budget(lib.pearson(query, key), theirs, exact)


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "theirs"), [("pearson", "pearsonr"), ("spearman", "spearmanr")])
def test_correlations_match_scipy(name, theirs, dtype, generator):
    query, key = (random(generator, n, D, dtype=dtype).round(decimals=1) for n in (TQ, TK))
    scipy_scores = [
        [getattr(scipy.stats, theirs)(q, k).statistic for k in key.numpy()] for q in query.numpy()
    ]
    exact = getattr(oracle, name)(query.double(), key.double())
    reference = torch.tensor(scipy_scores, dtype=dtype)
    oracle.assert_within_budget(getattr(lib, name)(query, key), reference, exact)


@pytest.mark.parametrize("score", SMOOTH, ids=lambda f: f.__name__)
def test_gradcheck(score, generator):
    inputs = [random(generator, n, D).requires_grad_() for n in (TQ, TK)]
    assert torch.autograd.gradcheck(score, inputs)


# --- properties ----------------------------------------------------------------------------------


@pytest.mark.parametrize("score", PLAIN, ids=lambda f: f.__name__)
@given(x=tensors(TQ, D))
def test_a_plain_score_is_symmetric(score, x):
    assert_close(score(x, x), score(x, x).mT)


@pytest.mark.parametrize("score", PLAIN, ids=lambda f: f.__name__)
@given(query=tensors(TQ, D), key=tensors(TK, D), order=st.permutations(range(TK)))
def test_scores_follow_a_permutation_of_the_keys(score, query, key, order):
    assert_close(score(query, key[order]), score(query, key)[:, order])


@pytest.mark.parametrize("score", [lib.cosine, lib.pearson, lib.spearman], ids=lambda f: f.__name__)
@given(query=tensors(TQ, D), key=tensors(TK, D))
def test_normalised_scores_stay_between_minus_one_and_one(score, query, key):
    assert score(query, key).abs().max() <= 1 + 4 * torch.finfo(query.dtype).eps


@given(normal(TQ, D), normal(TK, D), st.floats(-4, 4), st.floats(0.25, 4))
def test_pearson_ignores_shift_and_positive_scale(query, key, shift, factor):
    scores = lib.pearson(query, key)
    assert_close(lib.pearson(factor * query + shift, key), scores)
    assert_close(lib.pearson(query, -factor * key + shift), -scores)


@given(tensors(TQ, D), tensors(TK, D), st.floats(0.25, 4))
def test_cosine_ignores_positive_scale(query, key, factor):
    assert_close(lib.cosine(factor * query, key), lib.cosine(query, key))


@given(tensors(TQ, D), tensors(TK, D))
def test_spearman_ignores_rising_maps_and_flips_under_falling_ones(query, key):
    # The numbers have 11 significant bits, so these maps are exact in float64.
    scores = lib.spearman(query, key)
    assert_close(lib.spearman(2 * query + 1, key), scores)
    assert_close(lib.spearman(query, key**3), scores)
    assert_close(lib.spearman(-query, key), -scores)


@given(tensors(TQ, D), tensors(TK, D), tensors(D))
def test_gaussian_ignores_a_common_shift_and_is_never_positive(query, key, shift):
    scores = lib.gaussian(query, key)
    rounding = 1e-13 * (1 + query.abs().max() + key.abs().max() + shift.abs().max()) ** 2
    assert (scores <= rounding).all()
    assert_close(lib.gaussian(query + shift, key + shift), scores, rtol=0, atol=1e-11)


@given(normal(TQ, D), normal(TK, D))
def test_gaussian_and_dot_give_one_softmax_for_keys_of_equal_norm(query, key):
    key = 2 * functional.normalize(key, dim=-1)
    assert_close(lib.softmax(lib.gaussian(query, key)), lib.softmax(lib.dot(query, key)))


@given(normal(TQ, D), normal(TK, D))
def test_scaled_dot_of_normed_vectors_is_root_d_times_pearson(query, key):
    normed = [functional.layer_norm(x, (D,), eps=0.0) for x in (query, key)]
    assert_close(lib.scaled_dot(*normed), math.sqrt(D) * lib.pearson(query, key))


def test_bilinear_with_a_product_is_the_dot_of_projections(generator):
    query, key = random(generator, BATCH, TQ, D), random(generator, BATCH, TK, DK)
    wq, wk = random(generator, D, HIDDEN), random(generator, DK, HIDDEN)
    assert_close(lib.bilinear(query, key, wq @ wk.mT), lib.dot(query @ wq, key @ wk))


def test_gaussian_keeps_its_digits_far_from_the_origin(generator):
    query, key = random(generator, TQ, D), random(generator, TK, D)
    far = lib.gaussian((query + 1024).float(), (key + 1024).float())
    exact = oracle.gaussian((query + 1024).float().double(), (key + 1024).float().double())
    oracle.assert_within_budget(far, exact.float(), exact)


def test_leading_dimensions_broadcast(generator):
    query, key = random(generator, 3, 1, TQ, D), random(generator, 2, TK, D)
    for score in PLAIN:
        scores = score(query, key)
        assert scores.shape == (3, 2, TQ, TK)
        assert_close(scores[2, 1], score(query[2, 0], key[1]))


def test_spearman_has_no_gradient():
    x = torch.randn(TQ, D, requires_grad=True)
    assert not lib.spearman(x, x).requires_grad
