"""Right and plausible wrong answers to the exercises of chapter 01."""

import math

import torch

from attention_lib import pearson
from attention_lib.exercises import correlation

ROW = torch.tensor([1.0, 5.0, 2.0, 3.0])


def centred_cosine(query, key, axis=-1, guard=True):
    query, key = (x - x.mean(dim=axis, keepdim=True) for x in (query, key))
    lengths = query.norm(dim=-1)[:, None] * key.norm(dim=-1)[None]
    return query @ key.mT / (torch.where(lengths > 0, lengths, 1) if guard else lengths)


def correlation_attention(query, key, value, temperature, axis=-1):
    return torch.softmax(pearson(query, key) / temperature, dim=axis) @ value


CHECKS = {
    "01 paper": (
        correlation.check_paper,
        (-1.5 / math.sqrt(33 / 4), 2 / math.log(900)),
        {
            "sign lost": ((0.5222, 2 / math.log(900)), "Centre each vector"),
            "not centred": ((0.0, 2 / math.log(900)), "Centre each vector"),
            "one score 0 in place of -1": ((-0.5222, 1 / math.log(900)), "ratio at temperature"),
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
}
