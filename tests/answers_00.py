"""Right and plausible wrong answers to the exercises of chapter 00."""

import math

import torch
from torch.nn.functional import cross_entropy

from attention_lib.exercises import tools


def _standardise(x, *, axis=-1, keep=True, unbiased=False, root=True):
    centred = x - (x.mean(dim=axis, keepdim=True) if keep else x.mean(dim=axis))
    variance = centred.var(dim=axis, keepdim=True, correction=int(unbiased))
    return centred / (variance.sqrt() if root else variance)


CHECKS = {
    "00 paper": (
        tools.check_paper,
        (16.0, math.log(50)),
        {
            "variance": ((256.0, math.log(50)), "the deviation is the root"),
            "keys forgotten": ((8.0, math.log(50)), "Variances multiply"),
            "other base": ((16.0, math.log2(50)), "probability 1/50"),
            "probability": ((16.0, 0.02), "probability 1/50"),
        },
    ),
    "00 standardise": (
        tools.check_standardise,
        _standardise,
        {
            "D - 1": (lambda x: _standardise(x, unbiased=True), "not D - 1"),
            "variance in place of its root": (lambda x: _standardise(x, root=False), "fails"),
            "columns": (lambda x: _standardise(x, axis=-2), "fails"),
            "dimension not kept": (lambda x: _standardise(x, keep=False), "keep the dimension"),
            "first axis of a matrix": (
                lambda x: (x - x.mean(dim=1, keepdim=True)) / x.std(1, keepdim=True, correction=0),
                "last axis",
            ),
        },
    ),
    "00 loss": (
        tools.check_loss,
        cross_entropy,
        {
            "softmax twice": (lambda z, t: cross_entropy(z.softmax(dim=1), t), "How often"),
            "logarithm afterwards": (
                lambda z, t: -z.softmax(dim=1)[torch.arange(len(t)), t].log().mean(),
                "in one step",
            ),
            "sum in place of the mean": (
                lambda z, t: cross_entropy(z, t, reduction="sum"),
                "mean over the rows",
            ),
            "softmax over the batch": (
                lambda z, t: -z.log_softmax(dim=0)[torch.arange(len(t)), t].mean(),
                "ln 4",
            ),
        },
    ),
}
