"""Right and plausible wrong answers to the exercises of chapter 12."""

import torch

from attention_lib.exercises import bert

BLOCK = 7_087_872
MODEL = 108_891_648


def _hide(*, share=0.15, borders=(0.8, 0.9), asked="all", own_target=False):
    def function(tokens, chance, fate, random, mask_token):
        chosen = chance < share
        shown = torch.where(chosen & (fate < borders[0]), mask_token, tokens)
        swapped = chosen & (fate >= borders[0]) & (fate < borders[1])
        shown = torch.where(swapped, random, shown)
        wanted = chosen & (shown == mask_token) if asked == "masked" else chosen
        return shown, torch.where(wanted, shown if own_target else tokens, -100)

    return function


def _fate_for_all(tokens, chance, fate, random, mask_token):
    shown, _ = _hide(share=2.0)(tokens, chance, fate, random, mask_token)
    return shown, torch.where(chance < 0.15, tokens, -100)


def _pool(states, lengths):
    real = torch.arange(states.shape[1]) < lengths[:, None]
    return (states * real[..., None]).sum(dim=1) / lengths[:, None]


def _rank(scores, right, ties=0.5):
    own = scores.gather(1, right[:, None])
    return 1 + (scores > own).sum(dim=1) + ties * ((scores == own).sum(dim=1) - 1)


CHECKS = {
    "12 paper": (
        bert.check_paper,
        (48, 6, BLOCK, MODEL),
        {
            "all chosen are masked": ((60, 6, BLOCK, MODEL), "four fifths"),
            "a tenth of all": ((48, 40, BLOCK, MODEL), "not of all tokens"),
            "one norm": ((48, 6, BLOCK - 2 * 768, MODEL), "two layer norms"),
            "no positions": ((48, 6, BLOCK, MODEL - 512 * 768), "three tables"),
        },
    ),
    "12 hide": (
        bert.check_hide,
        _hide(),
        {
            "every token is asked": (
                lambda tokens, *rest: (_hide()(tokens, *rest)[0], tokens),
                "target is -100",
            ),
            "random above, unchanged between": (_hide(borders=(0.8, 0.8)), "0.8 to 0.9"),
            "only the masked are asked": (_hide(asked="masked"), "All three are asked"),
            "asked for what is shown": (_hide(own_target=True), "the true token"),
            "chosen is forgotten": (_fate_for_all, "below 0.15"),
        },
    ),
    "12 pool": (
        bert.check_pool,
        _pool,
        {
            "padding counted": (lambda states, lengths: states.mean(dim=1), "neither in the sum"),
            "divided by the longest": (
                lambda states, lengths: _pool(states, lengths) * lengths[:, None] / states.shape[1],
                "neither in the sum",
            ),
            "the last row's padding": (
                lambda states, lengths: states[:, : int(lengths.min())].mean(dim=1),
                "neither in the sum",
            ),
        },
    ),
    "12 reciprocal rank": (
        bert.check_reciprocal_rank,
        lambda scores, right: (1 / _rank(scores, right)).mean(),
        {
            "counted from zero": (
                lambda scores, right: (1 / (_rank(scores, right) - 1).clamp(min=1)).mean(),
                "one more than",
            ),
            "reciprocal of the mean rank": (
                lambda scores, right: 1 / _rank(scores, right).double().mean(),
                "reciprocal of each rank first",
            ),
            "ties are won": (
                lambda scores, right: (1 / _rank(scores, right, ties=0)).mean(),
                "half count as better",
            ),
            "ties are lost": (
                lambda scores, right: (1 / _rank(scores, right, ties=1)).mean(),
                "half count as better",
            ),
            "one argsort": (
                lambda scores, right: (
                    (1 / (1 + scores.argsort(1, descending=True).gather(1, right[:, None])))
                    .double()
                    .mean()
                ),
                "One `argsort`",
            ),
            "ranked from the lowest": (
                lambda scores, right: (1 / _rank(-scores, right)).mean(),
                "rank of the best",
            ),
        },
    ),
}
