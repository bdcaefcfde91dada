"""Right and plausible wrong answers to the exercises of chapter 03."""

import math

import torch

from attention_lib.exercises import softmax as soft


def masked(scores, mask, fill=-math.inf, zero=True, shift=True):
    filled = scores.masked_fill(~mask, fill)
    top = (filled if shift else scores).amax(dim=-1, keepdim=True)
    weights = torch.exp(filled - top.masked_fill(top == -math.inf, 0))
    total = weights.sum(dim=-1, keepdim=True)
    return weights / (total.masked_fill(total == 0, 1) if zero else total)


CHECKS = {
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
            "nan row": (lambda s, m: masked(s, m, zero=False), "give weight 0"),
            "-1e9": (
                lambda s, m: torch.softmax(s.masked_fill(~m, -1e9), dim=-1),
                "give weight 0",
            ),
            "-1e9, zeroed afterwards": (
                lambda s, m: torch.softmax(s.masked_fill(~m, -1e9), dim=-1) * m,
                "however small",
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
}
