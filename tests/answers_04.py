"""Right and plausible wrong answers to the exercises of chapter 04."""

import math

import torch

from attention_lib import attend, scaled_dot
from attention_lib.exercises import attention

EYE5 = 5 * torch.eye(5)

CHECKS = {
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
                "are the rows of the scores",
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
            "keys counted from the front": (
                lambda q, k, v: torch.softmax(scaled_dot(q, k), dim=1) @ v,
                "from the end",
            ),
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
}
