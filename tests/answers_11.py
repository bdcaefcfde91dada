"""Right and wrong answers for the exercises of chapter 11, as in ``test_exercises.CHECKS``."""

import torch

from attention_lib.exercises import gpt

GPT2_SMALL = 124_439_808


def windows(tokens, length):
    count = (len(tokens) - 1) // length
    return torch.stack([tokens[s : s + count * length].view(count, length) for s in (0, 1)])


def overlapping(tokens, length):
    rows = tokens.unfold(0, length + 1, 1)
    return torch.stack([rows[:, :-1], rows[:, 1:]])


def not_shifted(tokens, length):
    return windows(tokens, length)[[0, 0]]


def gaps(tokens, length):
    """Windows of T + 1 side by side: the first token of each is never a target."""
    count = len(tokens) // (length + 1)
    rows = tokens[: count * (length + 1)].view(count, length + 1)
    return torch.stack([rows[:, :-1], rows[:, 1:]])


def wrapped(tokens, length):
    """The last target is the first token of the text."""
    count = len(tokens) // length
    return torch.stack([x[: count * length].view(count, length) for x in (tokens, tokens.roll(-1))])


def nucleus(probabilities, p, *, reached=lambda sums, largest: sums - largest):
    largest, order = probabilities.sort(descending=True, stable=True)
    kept = torch.zeros_like(probabilities)
    kept[order] = largest * (reached(largest.cumsum(0), largest) < p)
    return kept / kept.sum()


def drops_the_crossing(probabilities, p):
    largest, order = probabilities.sort(descending=True, stable=True)
    kept = torch.zeros_like(probabilities)
    kept[order] = largest * (largest.cumsum(0) <= p)
    return kept / kept.sum()


def stays_sorted(probabilities, p):
    return nucleus(probabilities.sort(descending=True).values, p)


def not_normalised(probabilities, p):
    kept = nucleus(probabilities, p)
    return probabilities * (kept > 0)


def one_too_many(probabilities, p):
    largest, order = probabilities.sort(descending=True, stable=True)
    kept = torch.zeros_like(probabilities)
    kept[order] = largest * (largest.cumsum(0) - largest <= p)
    return kept / kept.sum()


def text(length=12):
    return torch.arange(length) % 11


def is_causal(model):
    whole = model(text())
    return all(torch.equal(whole[:n], model(text()[:n])) for n in range(1, 12)) and all(
        torch.equal(whole[:n], model(changed(n))[:n]) for n in range(1, 12)
    )


def changed(first):
    later = text()
    later[first:] = 3
    return later


def last_only(model):
    return torch.equal(model(text())[:-1], model(changed(11))[:-1])


def prefixes_of_three(model):
    return all(torch.equal(model(text(n))[:3], model(text(3))) for n in range(4, 9))


def changes_only(model):
    """Never cuts the text."""
    return all(torch.equal(model(text())[:n], model(changed(n))[:n]) for n in range(1, 12))


def tolerant(model):
    whole = model(text())
    return all(
        torch.allclose(whole[:n], model(text()[:n]), atol=1e-2, rtol=0) for n in range(1, 12)
    )


def far_only(model):
    """Looks at what is at least two positions back."""
    whole = model(text())
    return all(torch.equal(whole[: n - 1], model(text()[:n])[:-1]) for n in range(2, 12))


CHECKS = {
    "gpt, paper": (
        gpt.check_paper,
        (2.0794, 1.0, GPT2_SMALL),
        {
            "bits in place of nats": ((3.0, 1.0, GPT2_SMALL), "power"),
            "bits a token": ((2.0794, 3.0, GPT2_SMALL), "characters"),
            "nats a character": ((2.0794, 0.693, GPT2_SMALL), "characters"),
            "no biases": ((2.0794, 1.0, GPT2_SMALL - 12 * 9 * 768), "biases"),
            "an output layer of its own": (
                (2.0794, 1.0, GPT2_SMALL + 50257 * 768),
                "output",
            ),
        },
    ),
    "gpt, windows": (
        gpt.check_windows,
        windows,
        {
            "targets not shifted": (not_shifted, "after"),
            "overlapping windows": (overlapping, "overlap"),
            "gaps between windows": (gaps, "left out"),
            "the text taken for a ring": (wrapped, "three targets"),
        },
    ),
    "gpt, nucleus": (
        gpt.check_nucleus,
        nucleus,
        {
            "the crossing token is dropped": (drops_the_crossing, "crosses"),
            "left in sorted order": (stays_sorted, "place"),
            "not normalised": (not_normalised, "hint"),
            "one token too many": (one_too_many, "at least"),
        },
    ),
    "gpt, causal": (
        gpt.check_causal,
        is_causal,
        {
            "only the last token is changed": (last_only, "each position"),
            "only one prefix": (prefixes_of_three, "each position"),
            "never cut": (changes_only, "Cut"),
            "tolerant": (tolerant, "small"),
            "blind for the next token": (far_only, "just after"),
            "always content": (lambda model: True, "later"),
            "never content": (lambda model: False, "0 .. t"),
        },
    ),
}
