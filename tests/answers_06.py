"""Right and wrong answers to the exercises of chapter 06."""

from collections import Counter

import torch

from attention_lib.exercises import seq2seq


def context(
    state, states, w_q, w_k, v, lengths, *, masked=True, dim=1, tanh=True, swap=False, mean=True
):
    if swap:
        w_q, w_k = w_k, w_q
    hidden = (state @ w_q)[:, None] + states @ w_k
    scores = (torch.tanh(hidden) if tanh else hidden) @ v
    if masked:
        inside = torch.arange(states.shape[1]) < lengths[:, None]
        scores = scores.masked_fill(~inside, float("-inf"))
    weights = torch.softmax(scores, dim=dim)
    total = (weights[..., None] * states).sum(dim=1)
    return total if mean else weights


def zeroed_afterwards(state, states, w_q, w_k, v, lengths):
    inside = torch.arange(states.shape[1]) < lengths[:, None]
    scores = torch.tanh((state @ w_q)[:, None] + states @ w_k) @ v
    return ((torch.softmax(scores, dim=1) * inside)[..., None] * states).sum(dim=1)


def precision(hypothesis, reference, n, *, clip=True, guard=True, of=0, use_n=True):
    def grams(text):
        words, size = text.split(), n if use_n else 1
        return Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))

    found, wanted = grams(hypothesis), grams(reference)
    if clip:
        shared = sum(min(count, wanted[gram]) for gram, count in found.items())
    else:
        shared = sum(count for gram, count in found.items() if gram in wanted)
    total = sum((found, wanted)[of].values())
    return shared / (max(total, 1) if guard else total)


def reads(weights, query, states, *, change=lambda states: torch.randn_like(states)):
    before = weights(query, states)
    return bool((weights(query, change(states)) - before).abs().max() > 1e-6)


def reads_by_gradient(weights, query, states, *, square):
    states = states.clone().requires_grad_()
    found = weights(query, states)
    total = found.square().sum() if square else found.sum()
    if not total.requires_grad:
        return False
    return bool(torch.autograd.grad(total, states)[0].abs().max() > 1e-5)


# check, right answer, {what is wrong: (wrong answer, a word of the message it must draw)}
CHECKS = {
    "06 paper": (
        seq2seq.check_paper,
        (2 * 160 * 160 + 160, 160 * 160, 0.77880),
        {
            "vector forgotten": ((51200, 25600, 0.7788), "hidden layer into one number"),
            "two matrices for one": ((51360, 51200, 0.7788), "One matrix of 160 x 160"),
            "lengths swapped": ((51360, 25600, 0.8187), "exp(1 - r/c)"),
            "last answer missing": ((51360, 25600, None), "brevity penalty: not attempted"),
        },
    ),
    "06 context": (
        seq2seq.check_context,
        context,
        {
            "no mask": (lambda *a: context(*a, masked=False), "need the score -inf"),
            "masked after the softmax": (zeroed_afterwards, "no longer add up to 1"),
            "softmax over the batch": (lambda *a: context(*a, dim=0), "over the positions"),
            "matrices swapped": (lambda *a: context(*a, swap=True), "s W_q + h W_k"),
            "no tanh": (lambda *a: context(*a, tanh=False), "tanh"),
            "weights in place of the context": (
                lambda *a: context(*a, mean=False),
                "shape (1, 2) in place of (1, 3)",
            ),
        },
    ),
    "06 precision": (
        seq2seq.check_precision,
        precision,
        {
            "not clipped": (lambda *a: precision(*a, clip=False), "at most as often"),
            "divided by the reference": (lambda *a: precision(*a, of=1), "Count the words"),
            "always single words": (lambda *a: precision(*a, use_n=False), "pairs of neighbours"),
            "divides by zero": (lambda *a: precision(*a, guard=False), "the precision is 0"),
        },
    ),
    "06 reads": (
        seq2seq.check_reads,
        reads,
        {
            "always yes": (lambda weights, query, states: True, "do the weights change"),
            "looks at the size only": (
                lambda *a: reads(*a, change=lambda states: 2 * states),
                "change more than the size",
            ),
            "a change too small": (
                lambda *a: reads(
                    *a, change=lambda states: states + 1e-3 * torch.randn_like(states)
                ),
                "a small change may do nothing",
            ),
            "exchanged states": (
                lambda *a: reads(*a, change=lambda states: states.flip(1)),
                "reads only the mean",
            ),
            "gradient of the sum": (
                lambda *a: reads_by_gradient(*a, square=False),
                "Their sum is always 1",
            ),
            "gradient of the squares": (
                lambda *a: reads_by_gradient(*a, square=True),
                "Its weights jump",
            ),
        },
    ),
}
