"""Right and wrong answers for the exercises of chapter 08, in the form of CHECKS."""

import math

import torch

from attention_lib.exercises import positions


def turned(x, offset, half=False, sign=1, moved=True, power=2, base=10000.0, axis=-2):
    width = x.shape[-1]
    start = offset if moved else 0
    t = torch.arange(start, start + x.shape[axis])[:, None]
    angle = sign * t * base ** (-power * torch.arange(width // 2) / width)  # (T, D / 2)
    if axis != -2:
        angle = angle[:, None]
    if half:
        first, second = x.chunk(2, dim=-1)
    else:
        first, second = x[..., 0::2], x[..., 1::2]
    pair = [
        first * angle.cos() - second * angle.sin(),
        first * angle.sin() + second * angle.cos(),
    ]
    return torch.cat(pair, dim=-1) if half else torch.stack(pair, dim=-1).flatten(-2)


def bias(slopes, query_length, key_length, start=True, absolute=True, sign=-1, power=1):
    i = torch.arange(query_length)[:, None] + (key_length - query_length if start else 0)
    steps = i - torch.arange(key_length)
    steps = (steps.abs() if absolute else steps) ** power
    return sign * slopes[:, None, None] * steps


def slopes_along_queries(slopes, query_length, key_length):
    steps = bias(torch.ones(1), query_length, key_length)[0]
    if len(slopes) == query_length:
        return (slopes[:, None] * steps).expand(len(slopes), -1, -1)
    return slopes[:, None, None] * steps


def only_distance(score, shifts=range(1, 40), distances=(-3, 0, 2, 5), exact=False, swap=False):
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    for d in distances:
        found = [score(query, key, 5 + d + shift, 5 + shift) for shift in shifts]
        if swap:
            found.append(score(query, key, 5, 5 + d))
        if max(found) - min(found) > (0 if exact else 1e-6):
            return False
    return True


TURNED = (torch.tensor([0.5, math.sqrt(3) / 2]), torch.tensor([-1.0, 0.0]))

CHECKS = {
    "08 paper": (
        positions.check_paper,
        (*TURNED, -0.5, -0.5),
        {
            "with the clock": (
                (torch.tensor([0.5, -math.sqrt(3) / 2]), TURNED[1], -0.5, -0.5),
                "(cosine, sine)",
            ),
            "key with the clock": (
                (TURNED[0], torch.tensor([1.0, 0.0]), 0.5, 0.5),
                "points up",
            ),
            "not turned": ((torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 0, 0), "query"),
            "score scaled": ((*TURNED, -0.5 / math.sqrt(2), -0.5), "do not scale"),
            "moved score fades": ((*TURNED, -0.5, 0.0), "left of both angles"),
            "last answer missing": ((*TURNED, -0.5, None), "moved: not attempted"),
        },
    ),
    "08 rotary": (
        positions.check_rotary,
        turned,
        {
            "the other layout": (lambda x, o: turned(x, o, half=True), "2i and 2i + 1"),
            "with the clock": (lambda x, o: turned(x, o, sign=-1), "(cos t, sin t)"),
            "offset forgotten": (lambda x, o: turned(x, o, moved=False), "position offset"),
            "exponent -i/D": (lambda x, o: turned(x, o, power=1), "power -2i/D"),
            "other base": (lambda x, o: turned(x, o, base=1000.0), "10000"),
            "positions along the heads": (
                lambda x, o: turned(x, o, axis=-3 if x.ndim == 3 else -2),
                "last two dimensions",
            ),
            "nothing turned": (lambda x, o: x.clone(), "t radians"),
        },
    ),
    "08 bias": (
        positions.check_bias,
        bias,
        {
            "queries start at 0": (
                lambda s, q, k: bias(s, q, k, start=False),
                "not the first",
            ),
            "slopes along the queries": (slopes_along_queries, "belongs to a head"),
            "a reward for distance": (lambda s, q, k: bias(s, q, k, sign=1), "falls from 0"),
            "the future is rewarded": (
                lambda s, q, k: bias(s, q, k, absolute=False),
                "both sides",
            ),
            "the square of the distance": (lambda s, q, k: bias(s, q, k, power=2), "falls from 0"),
            "the two bugs of the exercise": (
                lambda s, q, k: -s[:, None] * (torch.arange(q)[:, None] - torch.arange(k)).abs(),
                "(H, Tq, Tk)",
            ),
        },
    ),
    "08 only distance": (
        positions.check_only_distance,
        only_distance,
        {
            "always true": (lambda score: True, "same number"),
            "always false": (lambda score: False, "never changes"),
            "m and n exchanged": (lambda s: only_distance(s, swap=True), "Exchanging m and n"),
            "exactly equal": (lambda s: only_distance(s, exact=True), "never exactly"),
            "even moves only": (lambda s: only_distance(s, shifts=range(0, 40, 2)), "odd numbers"),
            "distance 0 only": (lambda s: only_distance(s, distances=(0,)), "other than 0"),
            "distance 1 only": (lambda s: only_distance(s, distances=(1,)), "several distances"),
        },
    ),
}
