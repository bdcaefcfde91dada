"""Right and wrong answers to the exercises of chapter 10."""

import torch

from attention_lib.exercises import transformer


def smoothed(
    logits, targets, epsilon, pad, *, count_padding=False, over_all=False, others=False, guard=True
):
    kept = torch.ones_like(targets, dtype=torch.bool) if count_padding else targets != pad
    log = torch.log_softmax(logits[kept], dim=-1)
    true = -log.gather(-1, targets[kept][:, None])[:, 0]
    left_out, size = (true, logits.shape[-1] - 1) if others else (0, logits.shape[-1])
    spread = (-log.sum(dim=-1) - left_out) / size
    loss = (1 - epsilon) * true + (epsilon * spread if epsilon else 0)
    return loss.sum() / (len(targets) if over_all else max(len(loss), 1) if guard else len(loss))


def one_hot_times_log(logits, targets, epsilon, pad):
    kept = targets != pad
    size = logits.shape[-1]
    truth = (1 - epsilon) * torch.nn.functional.one_hot(targets[kept], size) + epsilon / size
    return -(truth * logits[kept].log_softmax(dim=-1)).sum() / max(int(kept.sum()), 1)


def leaks(predict, target, *, places=None, allow_own=True, only_next=False):
    before = predict(target)
    for place in range(1, len(target)) if places is None else places(target):
        changed = target.clone()
        end = place + 1 if only_next else len(target)
        changed[place:end] = (changed[place:end] + 1) % 12
        moved = (predict(changed) - before).abs().amax(dim=-1) > 1e-6
        first = place - 1 if only_next else 0
        rows = moved[first:place] if allow_own else moved
        if rows.any():
            return True
    return False


# check, right answer, {what is wrong: (wrong answer, a word of the message it must draw)}
CHECKS = {
    "10 paper": (
        transformer.check_paper,
        (3152384, 4204032, 63.0825),
        {
            "no biases": ((3145728, 4204032, 63.1), "four matrices with biases"),
            "one norm forgotten": ((3152384, 4203008, 63.1), "one more attention with its norm"),
            "three tables": ((3152384, 4204032, 101.0), "serves both languages"),
            "last answer missing": ((3152384, 4204032, None), "in millions: not attempted"),
        },
    ),
    "10 smoothed": (
        transformer.check_smoothed,
        smoothed,
        {
            "over the other tokens": (lambda *a: smoothed(*a, others=True), "epsilon / V each"),
            "padding counted": (lambda *a: smoothed(*a, count_padding=True), "neither in the sum"),
            "divided by all": (lambda *a: smoothed(*a, over_all=True), "neither in the sum"),
            "zero times infinity": (one_hot_times_log, "must not make NaN"),
            "zero over zero": (lambda *a: smoothed(*a, guard=False), "not 0 / 0"),
            "never smoothed": (lambda z, t, e, p: smoothed(z, t, 0.0, p), "Spread epsilon"),
        },
    ),
    "10 leaks": (
        transformer.check_leaks,
        leaks,
        {
            "always no": (lambda predict, target: False, "the token that it must predict"),
            "every change counts": (lambda *a: leaks(*a, allow_own=False), "not every change"),
            "only the last token": (
                lambda *a: leaks(*a, places=lambda t: [len(t) - 1]),
                "sees all tokens",
            ),
            "only one place": (
                lambda *a: leaks(*a, places=lambda t: [len(t) - 2]),
                "try every place",
            ),
            "only the next row": (
                lambda *a: leaks(*a, only_next=True),
                "nothing in between",
            ),
        },
    ),
}
