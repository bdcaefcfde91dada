"""Every check passes a right answer, catches each plausible wrong one, and says something useful.

The solutions in the chapters run through the same checks when the notebooks are executed. Wrong
answers have the right shape and type wherever the mistake allows it.
"""

import math

import pytest
import torch

from attention_lib import additive, attend, pearson, scaled_dot, softmax
from attention_lib.exercises import (
    Case,
    attention,
    check_against,
    check_answers,
    check_cases,
    correlation,
    learned,
    scores,
)
from attention_lib.exercises import softmax as soft


def centred_cosine(query, key, axis=-1, guard=True):
    query, key = (x - x.mean(dim=axis, keepdim=True) for x in (query, key))
    lengths = query.norm(dim=-1)[:, None] * key.norm(dim=-1)[None]
    return query @ key.mT / (torch.where(lengths > 0, lengths, 1) if guard else lengths)


def correlation_attention(query, key, value, temperature, axis=-1):
    return torch.softmax(pearson(query, key) / temperature, dim=axis) @ value


def ring(order):
    matrix = torch.zeros(5, 5)
    for i, height in enumerate(order):
        matrix[i, (i + 1) % 5] = matrix[(i + 1) % 5, i] = height
    return matrix


def dead(module, *inputs, clear=True, limit=1e-5):
    if clear:
        module.zero_grad(set_to_none=True)
    module(*inputs).square().sum().backward()
    size = {n: -1 if p.grad is None else p.grad.abs().max() for n, p in module.named_parameters()}
    return sorted(name for name in size if size[name] <= limit * max(size.values()))


def surprise(query, key, classes, one_hot, w_q, w_k, leak=False, swap=False, scale=True):
    if swap:
        w_q, w_k = w_k, w_q
    s = scaled_dot(query @ w_q, key @ w_k, None if scale else 1.0)
    mask = None if leak else ~torch.eye(len(key), dtype=torch.bool)
    return -(softmax(s, mask) @ one_hot)[torch.arange(len(classes)), classes].log().mean()


def masked(scores, mask, fill=-math.inf, zero=True, shift=True):
    filled = scores.masked_fill(~mask, fill)
    top = (filled if shift else scores).amax(dim=-1, keepdim=True)
    weights = torch.exp(filled - top.masked_fill(top == -math.inf, 0))
    total = weights.sum(dim=-1, keepdim=True)
    return weights / (total.masked_fill(total == 0, 1) if zero else total)


ROW = torch.tensor([1.0, 5.0, 2.0, 3.0])
EYE5 = 5 * torch.eye(5)

# check, right answer, {what is wrong: (wrong answer, a word of the message it must draw)}
CHECKS = {
    "01 paper": (
        correlation.check_paper,
        (-1.5 / math.sqrt(33 / 4), 2 / math.log(900)),
        {
            "sign lost": ((0.5222, 2 / math.log(900)), "Centre each vector"),
            "not centred": ((0.0, 2 / math.log(900)), "Centre each vector"),
            "one score 0 in place of -1": ((-0.5222, 1 / math.log(900)), "exp(-2/T)"),
            "second answer missing": ((-0.5222, None), "largest temperature: not attempted"),
        },
    ),
    "01 pearson": (
        correlation.check_pearson,
        centred_cosine,
        {
            "cosine without centring": (
                lambda q, k: torch.nn.functional.normalize(q) @ torch.nn.functional.normalize(k).mT,
                "own mean",
            ),
            "columns centred": (lambda q, k: centred_cosine(q, k, axis=0), "own mean"),
            "nan for a constant row": (lambda q, k: centred_cosine(q, k, guard=False), "not nan"),
            "transposed": (lambda q, k: centred_cosine(k, q), "Query i belongs in row i"),
            "changes its argument": (
                lambda q, k: (q.sub_(q.mean(dim=-1, keepdim=True)), centred_cosine(q, k))[1],
                "in place",
            ),
        },
    ),
    "01 attention": (
        correlation.check_attention,
        correlation_attention,
        {
            "softmax over queries": (
                lambda q, k, v, t: correlation_attention(q, k, v, t, axis=0),
                "taken over the keys",
            ),
            "temperature ignored": (
                lambda q, k, v, t: correlation_attention(q, k, v, 1.0),
                "temperature",
            ),
            "temperature multiplied": (
                lambda q, k, v, t: correlation_attention(q, k, v, 1 / t),
                "temperature",
            ),
            "plain mean": (lambda q, k, v, t: v.mean(dim=0).expand(len(q), -1), "own weights"),
        },
    ),
    "01 indistinguishable": (
        correlation.check_indistinguishable,
        lambda: torch.stack([ROW, 2 * ROW, 7 * ROW]),
        {
            "shifts": (lambda: torch.stack([ROW, ROW + 1, ROW + 2]), "What else"),
            "equal rows": (lambda: torch.stack([ROW, ROW, ROW]), "What else"),
            "a negative scale": (lambda: torch.stack([ROW, 2 * ROW, -ROW]), "must be equal"),
            "two rows": (lambda: torch.stack([ROW, 2 * ROW]), "(2, 4)"),
        },
    ),
    "02 paper": (
        scores.check_paper,
        (30, 1 / 30),
        {
            "variance": ((900, 1 / 900), "standard deviation"),
            "variances added": ((math.sqrt(25 * 13), 1 / math.sqrt(25 * 13)), "4 x 9"),
            "usual factor": ((30, 1 / 5), "variance one"),
        },
    ),
    "02 scaled dot": (
        scores.check_scaled_dot,
        scaled_dot,
        {
            "root of the length": (
                lambda q, k: q @ k.mT / k.shape[-2] ** 0.5,
                "Which axis does the product sum over",
            ),
            "divided by the width": (lambda q, k: q @ k.mT / k.shape[-1], "square root"),
            "not scaled": (lambda q, k: q @ k.mT, "square root"),
            "all axes reversed": (
                lambda q, k: torch.tensordot(q, k, ([-1], [-1])) / q.shape[-1] ** 0.5,
                "last two dimensions",
            ),
        },
    ),
    "02 additive": (
        scores.check_additive,
        additive,
        {
            "tanh of each part": (
                lambda q, k, a, b, v: (
                    (torch.tanh(q @ a).unsqueeze(-2) + torch.tanh(k @ b).unsqueeze(-3)) @ v
                ),
                "tanh of the sum",
            ),
            "no tanh": (
                lambda q, k, a, b, v: ((q @ a).unsqueeze(-2) + (k @ b).unsqueeze(-3)) @ v,
                "tanh",
            ),
            "no batch": (
                lambda q, k, a, b, v: torch.tanh((q @ a)[:, None] + (k @ b)[None]) @ v,
                "counted from the end",
            ),
        },
    ),
    "02 favourites": (
        scores.check_favourites,
        lambda: (torch.tensor([[1.0, 0]]), torch.tensor([[9.0, 9], [4, 0], [1, 0.2]])),
        {
            "long key along the query": (
                lambda: (torch.tensor([[1.0, 0]]), torch.tensor([[9.0, 0], [4, 0], [1, 0.2]])),
                "cosine must prefer",
            ),
            "close key is far": (
                lambda: (torch.tensor([[1.0, 0]]), torch.tensor([[9.0, 9], [1.5, 0], [3, 3.0]])),
                "gaussian must prefer",
            ),
            "wrong shape": (lambda: (torch.ones(2), torch.ones(3, 2)), "(2,)"),
        },
    ),
    "03 paper": (
        soft.check_paper,
        ([0.2, 0.3, 0.5], -0.06),
        {
            "logarithms normalised": (([0.204, 0.323, 0.473], -0.06), "exp(ln a)"),
            "diagonal entry": (([0.2, 0.3, 0.5], 0.16), "-w_i w_j"),
            "sign": (([0.2, 0.3, 0.5], 0.06), "-w_i w_j"),
        },
    ),
    "03 softmax": (
        soft.check_softmax,
        lambda s: torch.softmax(s, dim=-1),
        {
            "no keepdim": (
                lambda s: (e := torch.exp(s - s.max())) / e.sum(dim=-1),
                "Print their shape",
            ),
            "no shift": (
                lambda s: (e := torch.exp(s)) / e.sum(dim=-1, keepdim=True),
                "overflows",
            ),
            "one shift for all": (
                lambda s: (e := torch.exp(s - s.max())) / e.sum(dim=-1, keepdim=True),
                "own shift",
            ),
            "over the rows": (lambda s: torch.softmax(s, dim=0), "over their sum"),
        },
    ),
    "03 masked softmax": (
        soft.check_masked_softmax,
        masked,
        {
            "nan row": (lambda s, m: masked(s, m, zero=False), "give 0"),
            "-1e9": (
                lambda s, m: torch.softmax(s.masked_fill(~m, -1e9), dim=-1),
                "give 0",
            ),
            "zeroed afterwards": (lambda s, m: torch.softmax(s, dim=-1) * m, "still sum to one"),
            "the other way round": (lambda s, m: masked(s, ~m), "Softmax over the last"),
            "maximum before the mask": (lambda s, m: masked(s, m, shift=False), "largest allowed"),
            "writes into the scores": (
                lambda s, m: masked(s.masked_fill_(~m, -9e9), m),
                "in place",
            ),
        },
    ),
    "03 backward": (
        soft.check_backward,
        lambda w, g: w * (g - (w * g).sum(dim=-1, keepdim=True)),
        {
            "diagonal only": (lambda w, g: w * (1 - w) * g, "depends on every score"),
            "mean not weighted": (
                lambda w, g: w * (g - g.mean(dim=-1, keepdim=True)),
                "depends on every score",
            ),
            "sum over all": (lambda w, g: w * (g - (w * g).sum()), "own weighted mean"),
        },
    ),
    "03 wicked": (
        soft.check_wicked,
        lambda: torch.tensor([0.0, -2e9, -2e9]),
        {
            "ordinary scores": (lambda: torch.tensor([5.0, 1.0, 2.0]), "only the others"),
            "infinite scores": (lambda: torch.tensor([0.0, -math.inf, -math.inf]), "finite"),
            "a tie": (lambda: torch.tensor([0.0, -1e9, -1e9]), "not more than half"),
        },
    ),
    "04 paper": (
        attention.check_paper,
        ([1 / (1 + math.e), math.e / (1 + math.e)],),
        {
            "not scaled": (([0.1956, 0.8044],), "scaled scores are 0 and 1"),
            "swapped": (([0.7311, 0.2689],), "first key"),
            "one number": ((0.7311,), "scaled scores"),
        },
    ),
    "04 self-attention": (
        attention.check_self_attention,
        lambda x, a, b, c: attend(x @ a, x @ b, x @ c),
        {
            "values not projected": (lambda x, a, b, c: attend(x @ a, x @ b, x), "x @ W_V"),
            "scaled by the width of x": (
                lambda x, a, b, c: attend(x @ a, x @ b, x @ c, scale=x.shape[-1] ** -0.5),
                "that of the query",
            ),
            "query and key exchanged": (
                lambda x, a, b, c: attend(x @ b, x @ a, x @ c),
                "that of the query",
            ),
            "no batch": (
                lambda x, a, b, c: (
                    torch.softmax((x @ a) @ (x @ b).transpose(0, 1) / a.shape[-1] ** 0.5, -1)
                    @ (x @ c)
                ),
                "last two dimensions",
            ),
        },
    ),
    "04 cross-attention": (
        attention.check_cross_attention,
        attend,
        {
            "softmax over queries": (
                lambda q, k, v: torch.softmax(scaled_dot(q, k), dim=-2) @ v,
                "mean of equal values",
            ),
            "mean of the keys": (lambda q, k, v: attend(q, k, k), "taken of the values"),
            "not scaled": (lambda q, k, v: attend(q, k, v, scale=1.0), "sum to one"),
        },
    ),
    "04 previous": (
        attention.check_previous,
        lambda: (EYE5.roll(-1, dims=1), EYE5),
        {
            "looks right": (lambda: (EYE5.roll(1, dims=1), EYE5), "one to the right"),
            "one tensor": (lambda: EYE5, "2 tensors: return query, key"),
            "looks at itself": (lambda: (EYE5, EYE5), "direction of its own"),
            "too short": (lambda: (EYE5.roll(-1, dims=1) / 5, EYE5 / 5), "make the vectors long"),
            "four positions": (lambda: (torch.eye(4), torch.eye(4)), "(4, 4)"),
        },
    ),
    "04b paper": (
        learned.check_paper,
        (2 * 392 * 32, 392**2, 64 * 3500),
        {
            "one projection": ((392 * 32, 392**2, 64 * 3500), "Two matrices"),
            "square of the head": ((25088, 32**2, 64 * 3500), "each pixel"),
            "all pairs": ((25088, 392**2, 3500**2), "each pair"),
        },
    ),
    "04b loss": (
        learned.check_loss,
        surprise,
        {
            "leaks": (lambda *a: surprise(*a, leak=True), "Mask key i"),
            "projections exchanged": (lambda *a: surprise(*a, swap=True), "Queries through W_Q"),
            "not scaled": (lambda *a: surprise(*a, scale=False), "Mask key i"),
            "accuracy in place of surprise": (
                lambda q, k, c, o, a, b: (attend(q @ a, k @ b, o).argmax(-1) == c).float().mean(),
                "-ln",
            ),
        },
    ),
    "04b dead parameters": (
        learned.check_dead,
        dead,
        {
            "None only": (lambda m, *x: dead(m, *x, limit=-1e-9), "exist and be zero"),
            "exact zeros only": (lambda m, *x: dead(m, *x, limit=0), "rounding error"),
            "old gradients kept": (lambda m, *x: dead(m, *x, clear=False), "Clear old gradients"),
            "always empty": (lambda m, *x: [], ".grad is None"),
        },
    ),
    "04b ring": (
        learned.check_ring,
        lambda: ring([1.0, 2, 3, 4, 5]),
        {
            "not symmetric": (lambda: torch.eye(5).roll(1, dims=1), "Not symmetric"),
            "constant": (lambda: ring([1.0] * 5), "recipe"),
            "up and down": (lambda: ring([1.0, 5, 2, 4, 3]), "recipe"),
        },
    ),
}
MISTAKES = [(name, mistake) for name, (_, _, wrong) in CHECKS.items() for mistake in wrong]


def call(check, answer):
    return check(*answer) if isinstance(answer, tuple) else check(answer)


@pytest.mark.parametrize("name", CHECKS)
def test_check_passes_a_right_answer(name):
    check, right, _ = CHECKS[name]
    report = call(check, right)
    assert report.passed, report
    assert repr(report).startswith("Passed")


@pytest.mark.parametrize("name", CHECKS)
def test_check_knows_what_was_not_attempted(name):
    check, right, _ = CHECKS[name]
    nothing = (None,) * len(right) if isinstance(right, tuple) else lambda *arguments: None
    report = call(check, nothing)
    assert not report.passed
    assert "Not attempted" in report.message


@pytest.mark.parametrize(("name", "mistake"), MISTAKES)
def test_check_catches_a_wrong_answer_and_helps(name, mistake):
    check, _, wrong = CHECKS[name]
    answer, word = wrong[mistake]
    report = call(check, answer)
    assert not report.passed
    assert word in report.message, report.message


def test_every_check_of_every_chapter_is_tested():
    modules = (correlation, scores, soft, attention, learned)
    public = {f for m in modules for n, f in vars(m).items() if n.startswith("check_")}
    helpers = {check_against, check_answers, check_cases}
    assert public - helpers == {check for check, _, _ in CHECKS.values()}


def test_report_shows_input_expected_got_and_hint():
    case = Case("doubling", (torch.tensor([1.0, 2.0]),), torch.tensor([2.0, 4.0]), "Times two.")
    message = check_cases(lambda x: x, [case]).message
    assert message.splitlines() == [
        "Case 1 of 1 (doubling) fails.",
        "  input     [1.0, 2.0]",
        "  expected  [2.0, 4.0]",
        "  got       [1.0, 2.0] (0% of the entries are right)",
        "  hint      Times two.",
    ]


def test_report_shows_what_a_function_raised():
    case = Case("any", (1.0,), 1.0, "")
    assert "raised ZeroDivisionError" in check_cases(lambda x: x / 0, [case]).message


@pytest.mark.parametrize("answer", ["text", True, object(), [[1.0], [1.0, 2.0]]])
def test_answers_of_a_strange_type_are_wrong_and_shown(answer):
    report = check_cases(lambda x: answer, [Case("any", (1.0,), 1.0, "")])
    assert not report.passed


@pytest.mark.parametrize("name", ["01 indistinguishable", "03 wicked", "04b ring", "04 previous"])
def test_tensors_may_be_given_as_plain_lists(name):
    check, right, _ = CHECKS[name]
    tensors = right()
    lists = tensors.tolist() if torch.is_tensor(tensors) else [t.tolist() for t in tensors]
    assert check(lambda: lists).passed


@pytest.mark.parametrize("name", ["01 indistinguishable", "03 wicked", "04b ring", "04 previous"])
def test_what_is_no_tensor_is_reported_and_not_raised(name):
    check, _, _ = CHECKS[name]
    report = check(lambda: ("one", "two"))
    assert not report.passed
    assert "Expected tensors" in report.message


def test_a_check_needs_a_function(no_shape_hook):
    with pytest.raises(TypeError, match="function must be a function, got int"):
        check_cases(3, [])
