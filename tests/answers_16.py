"""Right and wrong answers for the exercises of chapter 16, as in ``test_exercises.CHECKS``."""

import torch

from attention_lib.exercises import tiled


def merged(one, lse, other, other_lse, *, empty=True):
    top = torch.maximum(lse, other_lse)
    safe = top.masked_fill(top == -torch.inf, 0) if empty else top
    first, second = torch.exp(lse - safe), torch.exp(other_lse - safe)
    total = first + second
    total = total.masked_fill(total == 0, 1) if empty else total
    return (first / total)[:, None] * one + (second / total)[:, None] * other


def by_logaddexp(one, lse, other, other_lse, *, guard=True):
    total = torch.logaddexp(lse, other_lse)
    total = total.masked_fill(total == -torch.inf, 0) if guard else total
    first, second = torch.exp(lse - total), torch.exp(other_lse - total)
    return first[:, None] * one + second[:, None] * other


def shift_by(choose):
    def merge(one, lse, other, other_lse):
        top = choose(lse, other_lse)
        top = top.masked_fill(top == -torch.inf, 0)
        first, second = torch.exp(lse - top), torch.exp(other_lse - top)
        total = first + second
        total = total.masked_fill(total == 0, 1)
        return (first / total)[:, None] * one + (second / total)[:, None] * other

    return merge


def no_shift(one, lse, other, other_lse):
    first, second = lse.exp()[:, None], other_lse.exp()[:, None]
    return (first * one + second * other) / (first + second)


def by_logarithm(one, lse, other, other_lse):
    total = lse + other_lse
    return (lse / total)[:, None] * one + (other_lse / total)[:, None] * other


def streaming(scores, value, size, *, shrink="both", axis=-1, keys=None, shift=True):
    keys = scores.shape[-1] if keys is None else keys(scores.shape[-1], size)
    top = torch.full((len(scores), 1), -torch.inf)
    total, weighted = torch.zeros(len(scores), 1), torch.zeros(len(scores), value.shape[-1])
    for start in range(0, keys, size):
        part = scores[:, start : start + size]
        largest = part.amax(dim=-1, keepdim=True) if axis == -1 else part.max()
        new = torch.maximum(top, largest) if shift else torch.zeros(len(scores), 1)
        factor = torch.exp(top - new) if shift else torch.ones(len(scores), 1)
        powers = torch.exp(part - new)
        ones = torch.ones_like(factor)
        total = total * (factor if shrink != "output" else ones) + powers.sum(-1, keepdim=True)
        weighted = weighted * (factor if shrink != "total" else ones)
        weighted = weighted + powers @ value[start : start + size]
        top = new
    return weighted / total


def finished(scores, value, size, *, back="old", shrink=True):
    """The same with an output that is divided after every tile."""
    top = torch.full((len(scores), 1), -torch.inf)
    total, output = torch.zeros(len(scores), 1), torch.zeros(len(scores), value.shape[-1])
    for start in range(0, scores.shape[-1], size):
        part = scores[:, start : start + size]
        new = torch.maximum(top, part.amax(dim=-1, keepdim=True))
        powers, factor = torch.exp(part - new), torch.exp(top - new)
        grown = total * factor + powers.sum(-1, keepdim=True)
        again = {"old": total, "new": grown, "none": torch.ones_like(total)}[back]
        again = again * factor if shrink else again
        output = (output * again + powers @ value[start : start + size]) / grown
        top, total = new, grown
    return output


def mean_of_tiles(scores, value, size):
    starts = range(0, scores.shape[-1], size)
    outputs = [torch.softmax(scores[:, s : s + size], dim=-1) @ value[s : s + size] for s in starts]
    return torch.stack(outputs).mean(dim=0)


def key_gradient(
    query,
    key,
    value,
    output,
    lse,
    grad,
    lse_grad,
    *,
    mean="output",
    scale=True,
    weights=True,
    lse_by="weights",
):
    factor = query.shape[-1] ** -0.5
    p = torch.exp(factor * query @ key.mT - lse[:, None])
    dp = grad @ value.mT
    centre = {
        "output": (grad * output).sum(-1, keepdim=True),
        "none": torch.zeros(len(query), 1),
        "plain": dp.mean(-1, keepdim=True),
    }[mean]
    ds = (dp - centre) * (p if weights else 1)
    share = {"weights": p, "minus weights": -p, "one": 1, "nothing": 0}[lse_by]
    ds = ds + lse_grad[:, None] * share
    return (factor if scale else 1) * ds.mT @ query


CHECKS = {
    "16 paper": (
        tiled.check_paper,
        (1.5, 7 / 3, 528),
        {
            "nobody shrinks": ((3.0, 8 / 3, 528), "larger"),
            "the wrong one shrinks": ((2.25, 7 / 3, 528), "larger"),
            "only the total shrinks": ((1.5, 16 / 3, 528), "same factor"),
            "all tiles": ((1.5, 7 / 3, 1024), "Thirty-two rows"),
            "without the diagonal": ((1.5, 7 / 3, 496), "Thirty-two rows"),
        },
    ),
    "16 merge": (
        tiled.check_merge,
        merged,
        {
            "plain mean": (lambda a, la, b, lb: (a + b) / 2, "counts by its sum"),
            "sum": (lambda a, la, b, lb: a + b, "count the same"),
            "first part's shift": (shift_by(lambda a, b: a), "larger of the two"),
            "other part's shift": (shift_by(lambda a, b: b), "larger of the two"),
            "overflow": (no_shift, "only the difference"),
            "logarithms as shares": (by_logarithm, "count the same"),
            "nan without keys": (
                lambda *parts: merged(*parts, empty=False),
                "not a number",
            ),
            "the other way round": (
                lambda a, la, b, lb: merged(b, la, a, lb),
                "counts by its sum",
            ),
        },
    ),
    "16 merge by logaddexp": (
        tiled.check_merge,
        by_logaddexp,
        {
            "nan without keys": (
                lambda *parts: by_logaddexp(*parts, guard=False),
                "not a number",
            ),
        },
    ),
    "16 streaming": (
        tiled.check_streaming,
        streaming,
        {
            "output never shrinks": (
                lambda *given: streaming(*given, shrink="total"),
                "maximum moves",
            ),
            "total never shrinks": (
                lambda *given: streaming(*given, shrink="output"),
                "maximum moves",
            ),
            "mean of the tiles": (mean_of_tiles, "it counts"),
            "last tile lost": (
                lambda *given: streaming(*given, keys=lambda n, size: n // size * size),
                "it counts",
            ),
            "no shift": (lambda *given: streaming(*given, shift=False), "Subtract the maximum"),
            "one maximum for all rows": (
                lambda scores, value, size: streaming(scores, value, size, axis=None).nan_to_num(0),
                "own maximum",
            ),
        },
    ),
    "16 streaming, divided at all times": (
        tiled.check_streaming,
        finished,
        {
            "divided again and again": (
                lambda *given: finished(*given, back="none"),
                "divided already",
            ),
            "multiplied by the new sum": (
                lambda *given: finished(*given, back="new"),
                "divided already",
            ),
            "no shrinking": (lambda *given: finished(*given, shrink=False), "maximum moves"),
        },
    ),
    "16 key gradient": (
        tiled.check_key_gradient,
        key_gradient,
        {
            "no mean": (lambda *given: key_gradient(*given, mean="none"), "relative to the mean"),
            "plain mean": (
                lambda *given: key_gradient(*given, mean="plain"),
                "relative to the mean",
            ),
            "no scale": (lambda *given: key_gradient(*given, scale=False), "on the way back"),
            "no weights": (
                lambda *given: key_gradient(*given, weights=False),
                "relative to the mean",
            ),
            "as if the loss had no log-sum-exp": (
                lambda *given: key_gradient(*given, lse_by="nothing"),
                "Differentiate",
            ),
            "log-sum-exp moves one for one": (
                lambda *given: key_gradient(*given, lse_by="one"),
                "Differentiate",
            ),
            "log-sum-exp subtracted": (
                lambda *given: key_gradient(*given, lse_by="minus weights"),
                "Differentiate",
            ),
        },
    ),
    "16 flattering": (
        tiled.check_flattering,
        lambda: torch.tensor([3.0, 2.0, 1.0, 0.0]),
        {
            "rising": (lambda: torch.tensor([0.0, 1.0, 2.0, 3.0]), "does not move"),
            "largest second": (lambda: torch.tensor([1.0, 3.0, 2.0, 0.0]), "does not move"),
            "equal": (lambda: torch.ones(4), "different"),
            "too close": (lambda: torch.tensor([0.003, 0.002, 0.001, 0.0]), "by enough"),
            "too short": (lambda: torch.tensor([1.0, 0.0]), "T >= 4"),
            "infinite": (lambda: torch.tensor([3.0, 2.0, 1.0, -torch.inf]), "finite"),
        },
    ),
}
