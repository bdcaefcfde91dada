"""Right and plausible wrong answers to the exercises of chapter 02."""

import math

import torch

from attention_lib import additive, scaled_dot
from attention_lib.exercises import scores

CHECKS = {
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
}
