"""Right and plausible wrong answers to the exercises of chapter 04b."""

import torch

from attention_lib import attend, scaled_dot, softmax
from attention_lib.exercises import learned


def ring(order):
    matrix = torch.zeros(5, 5)
    for i, height in enumerate(order):
        matrix[i, (i + 1) % 5] = matrix[(i + 1) % 5, i] = height
    return matrix


def dead(module, *inputs, clear=True, limit=1e-5):
    if clear:
        module.zero_grad(set_to_none=True)
    module(*inputs).square().sum().backward()
    size = {n: -1 if p.grad is None else p.grad.abs().max() for n, p in module.named_parameters()}
    return sorted(name for name in size if size[name] <= limit * max(size.values()))


def surprise(query, key, classes, one_hot, w_q, w_k, leak=False, swap=False, scale=True):
    if swap:
        w_q, w_k = w_k, w_q
    s = scaled_dot(query @ w_q, key @ w_k, None if scale else 1.0)
    mask = None if leak else ~torch.eye(len(key), dtype=torch.bool)
    return -(softmax(s, mask) @ one_hot)[torch.arange(len(classes)), classes].log().mean()


CHECKS = {
    "04b paper": (
        learned.check_paper,
        (2 * 392 * 32, 392**2, 64 * 3500),
        {
            "one projection": ((392 * 32, 392**2, 64 * 3500), "Two matrices"),
            "square of the head": ((25088, 32**2, 64 * 3500), "each pixel"),
            "all pairs": ((25088, 392**2, 3500**2), "each pair"),
        },
    ),
    "04b loss": (
        learned.check_loss,
        surprise,
        {
            "leaks": (lambda *a: surprise(*a, leak=True), "Mask key i"),
            "projections exchanged": (lambda *a: surprise(*a, swap=True), "Queries through W_Q"),
            "not scaled": (lambda *a: surprise(*a, scale=False), "Mask key i"),
            "accuracy in place of surprise": (
                lambda q, k, c, o, a, b: (attend(q @ a, k @ b, o).argmax(-1) == c).float().mean(),
                "-ln",
            ),
        },
    ),
    "04b dead parameters": (
        learned.check_dead,
        dead,
        {
            "None only": (lambda m, *x: dead(m, *x, limit=-1e-9), "exist and be zero"),
            "exact zeros only": (lambda m, *x: dead(m, *x, limit=0), "rounding error"),
            "old gradients kept": (lambda m, *x: dead(m, *x, clear=False), "Clear old gradients"),
            "always empty": (lambda m, *x: [], ".grad is None"),
        },
    ),
    "04b ring": (
        learned.check_ring,
        lambda: ring([1.0, 2, 3, 4, 5]),
        {
            "not symmetric": (lambda: torch.eye(5).roll(1, dims=1), "Not symmetric"),
            "constant": (lambda: ring([1.0] * 5), "recipe"),
            "up and down": (lambda: ring([1.0, 5, 2, 4, 3]), "recipe"),
        },
    ),
}
