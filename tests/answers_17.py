"""Right and wrong answers for the exercises of chapter 17, as in ``test_exercises.CHECKS``."""

import torch

from attention_lib.exercises import cache


def kept(seen, window, sinks):
    position = torch.arange(seen)
    return position[(position < sinks) | (position >= seen - window)]


def joined(seen, window, sinks):
    """Window and sinks overlap while the cache is not full."""
    start = max(0, seen - window)
    return torch.cat([torch.arange(min(sinks, seen)), torch.arange(start, seen)])


def window_holds_the_sinks(seen, window, sinks):
    position = torch.arange(seen)
    return position[(position < sinks) | (position >= seen - window + sinks)]


def no_sinks(seen, window, sinks):
    return torch.arange(max(0, seen - window), seen)


def unseen_sinks(seen, window, sinks):
    start = max(sinks, seen - window)
    return torch.cat([torch.arange(sinks), torch.arange(start, max(start, seen))])


def negative_slice(seen, window, sinks):
    """`-0:` is everything."""
    position = torch.arange(seen)
    recent = position[max(sinks, seen - window) :]
    return torch.cat([position[: -max(0, seen - sinks)], recent])


def replacement(p, q):
    left = (p - q).clamp(min=0)
    return left / left.sum() if left.sum() > 0 else p


def absolute(p, q):
    left = (p - q).abs()
    return left / left.sum()


def from_the_target(p, q):
    return p


def not_normalised(p, q):
    return (p - q).clamp(min=0)


def nothing_left(p, q):
    left = (p - q).clamp(min=0)
    return left / left.sum()


def doubled(p, q):
    """Right where what is left sums to a half."""
    left = 2 * (p - q).clamp(min=0)
    return left if left.any() else p


def faithful(decoder, length=20, sequences=2, tolerance=1e-8):
    for number in range(sequences):
        x = torch.randn(
            length, 3, generator=torch.Generator().manual_seed(number), dtype=torch.float64
        )
        store = decoder.start()
        steps = torch.stack([decoder.step(row, store) for row in x])
        if not torch.allclose(steps, decoder.whole(x), rtol=0, atol=tolerance):
            return False
    return True


def first_row(decoder):
    x = torch.ones(1, 3, dtype=torch.float64)
    return torch.allclose(decoder.step(x[0], decoder.start()), decoder.whole(x)[0])


def no_past(decoder):
    """Compares what each position adds by itself: two equal rows hide the positions."""
    x = torch.zeros(2, 3, dtype=torch.float64)
    x[0] = 1
    store = decoder.start()
    steps = torch.stack([decoder.step(row, store) for row in x])
    return bool(((steps != 0) == (decoder.whole(x) != 0)).all())


def whole_numbers(decoder):
    """Small whole numbers, which half precision keeps as they are."""
    for shift in range(2):
        x = (torch.arange(60, dtype=torch.float64).view(20, 3) + shift) % 7
        store = decoder.start()
        steps = torch.stack([decoder.step(row, store) for row in x])
        if not torch.allclose(steps, decoder.whole(x), rtol=0, atol=1e-8):
            return False
    return True


CHECKS = {
    "cache, paper": (
        cache.check_paper,
        (131_072, 65_536, 2.952),
        {
            "keys only": ((65_536, 65_536, 2.952), "values"),
            "four bytes": ((262_144, 65_536, 2.952), "two bytes"),
            "decimal gigabytes": ((131_072, 61_035, 2.952), "30"),
            "without the target's own": ((131_072, 65_536, 1.952), "own"),
        },
    ),
    "cache, kept": (
        cache.check_kept,
        kept,
        {
            "overlapping": (joined, "once"),
            "the window holds the sinks": (window_holds_the_sinks, "last three"),
            "no sinks": (no_sinks, "first two"),
            "sinks that were not seen": (unseen_sinks, "not seen"),
            "a negative slice": (negative_slice, "hint"),
        },
    ),
    "cache, replacement": (
        cache.check_replacement,
        replacement,
        {
            "absolute differences": (absolute, "often enough"),
            "drawn from the target": (from_the_target, "too much"),
            "not normalised": (not_normalised, "hint"),
            "nothing left": (nothing_left, "0 / 0"),
            "always doubled": (doubled, "replacement"),
        },
    ),
    "cache, faithful": (
        cache.check_faithful,
        faithful,
        {
            "only the first row": (first_row, "second row"),
            "only whether something is there": (no_past, "every step"),
            "too short": (lambda decoder: faithful(decoder, length=9), "16"),
            "simple inputs": (whole_numbers, "whole numbers"),
            "one sequence": (lambda decoder: faithful(decoder, sequences=1), "second sequence"),
            "equal to the last bit": (
                lambda decoder: faithful(decoder, tolerance=0.0),
                "round",
            ),
            "too tolerant": (lambda decoder: faithful(decoder, tolerance=1e-3), "1e-5"),
            "always content": (lambda decoder: True, "row"),
            "never content": (lambda decoder: False, "row t"),
        },
    ),
}
