"""Right and wrong answers for the exercises of chapter 18, as in ``test_exercises.CHECKS``."""

import math

import torch

from attention_lib.exercises import approximate

VARIANCE = (math.exp(4) - 1) / 64


def state(q, k, v, *, before=False, normalised=True):
    sums, total, outputs = torch.zeros(k.shape[1], v.shape[1]), torch.zeros(k.shape[1]), []
    for t in range(len(k)):
        if before and t:
            outputs.append(q[t] @ sums / (q[t] @ total))
        sums, total = sums + torch.outer(k[t], v[t]), total + k[t]
        if not before or not t:
            outputs.append(q[t] @ sums / (q[t] @ total if normalised else 1))
    return torch.stack(outputs)


def all_keys(q, k, v):
    return q @ (k.mT @ v) / (q @ k.sum(dim=0))[:, None]


def softmaxed(q, k, v):
    scores = (q @ k.mT).masked_fill(torch.ones(len(q), len(k)).triu(1).bool(), -math.inf)
    return scores.softmax(dim=-1) @ v


def by_length(q, k, v):
    """Divided by the number of positions in place of the sum of weights."""
    count = torch.arange(1, len(k) + 1)[:, None]
    return (q @ k.mT).tril() @ v / count / (q[:1] @ k[:1].mT)


def one_feature(q, k, v):
    """Right for one feature only: the products of features are never summed."""
    sums, total = (k[:, :1] * v).cumsum(dim=0), k[:, :1].cumsum(dim=0)
    return sums / total


def chunks(q, k, v, chunk, *, keep=True, late=True, causal=True, total_too=True):
    sums, total, outputs = torch.zeros(k.shape[1], v.shape[1]), torch.zeros(k.shape[1]), []
    for start in range(0, len(k), chunk):
        a, b, c = (x[start : start + chunk] for x in (q, k, v))
        if not late:
            sums, total = sums + b.mT @ c, total + b.sum(dim=0)
        inside = (a @ b.mT).tril() if causal else a @ b.mT
        weight = (a @ total)[:, None] * total_too + inside.sum(dim=-1, keepdim=True)
        outputs.append((a @ sums + inside @ c) / weight)
        if late:
            sums = (sums if keep else 0) + b.mT @ c
            total = (total if keep else 0) + b.sum(dim=0)
    return torch.cat(outputs)


def rest_lost(q, k, v, chunk):
    """What does not fill a chunk is answered with zeros."""
    whole = len(k) // chunk * chunk
    found = chunks(q[:whole], k[:whole], v[:whole], chunk)
    return torch.cat([found, torch.zeros(len(k) - whole, v.shape[1])])


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def twins():
    """12 over 4 against 18 over 6: another state, and linear attention answers 3 both times."""
    return column(0, 2), column(0, 4), column(2, 2), column(2, 4)


CHECKS = {
    "approximate, paper": (
        approximate.check_paper,
        (512, 33, VARIANCE, 1536),
        {
            "products counted once": ((256, 33, VARIANCE, 1536), "8 n F D"),
            "the last length at which the state is larger": (
                (512, 32, VARIANCE, 1536),
                "first whole",
            ),
            "keys only": ((512, 66, VARIANCE, 1536), "2 n D"),
            "one feature": ((512, 33, VARIANCE * 64, 1536), "number of features"),
            "minus 1 forgotten": ((512, 33, math.exp(4) / 64, 1536), "minus 1"),
            "one window": ((512, 33, VARIANCE, 128), "further"),
            "last missing": ((512, 33, VARIANCE, None), "reach: not attempted"),
        },
    ),
    "approximate, state": (
        approximate.check_state,
        state,
        {
            "read before written": (lambda q, k, v: state(q, k, v, before=True), "itself"),
            "not divided": (lambda q, k, v: state(q, k, v, normalised=False), "divide"),
            "all keys": (all_keys, "up to t"),
            "softmax": (softmaxed, "(1 * 8 + 3 * 4)"),
            "divided by the length": (by_length, "(1 * 8 + 3 * 4)"),
            "one feature": (one_feature, "outer product"),
        },
    ),
    "approximate, chunks": (
        approximate.check_chunks,
        chunks,
        {
            "the state is lost": (lambda *x: chunks(*x, keep=False), "recurrence"),
            "the chunk counts twice": (lambda *x: chunks(*x, late=False), "own"),
            "not causal inside": (lambda *x: chunks(*x, causal=False), "up to its own"),
            "the total of the past is left out": (
                lambda *x: chunks(*x, total_too=False),
                "before it",
            ),
            "the rest is lost": (rest_lost, "multiple"),
            "nothing carried over": (
                lambda q, k, v, c: torch.cat(
                    [chunks(*x, c) for x in zip(q.split(c), k.split(c), v.split(c), strict=True)]
                ),
                "before it",
            ),
        },
    ),
    "approximate, twins": (
        approximate.check_twins,
        twins,
        {
            "the same memory twice": (lambda: (*twins()[:2], *twins()[:2]), "hardly"),
            "other order only": (
                lambda: (*twins()[:2], column(2, 0), column(4, 0)),
                "hardly",
            ),
            "the sum of the keys only": (
                lambda: (column(0, 2), column(0, 4), column(1, 1), column(0, 4)),
                "tells them apart",
            ),
            "the mean of the values only": (
                lambda: (column(0, 2), column(0, 4), column(1, 1), column(2, 2)),
                "tells them apart",
            ),
            "too large": (lambda: (column(0, 20), *twins()[1:]), "from -4 to 4"),
            "not a number": (lambda: (column(0, math.nan), *twins()[1:]), "from -4 to 4"),
            "vectors": (lambda: tuple(x[:, 0] for x in twins()), "same shape"),
            "of different lengths": (lambda: (*twins()[:3], column(2)), "same shape"),
        },
    ),
}
