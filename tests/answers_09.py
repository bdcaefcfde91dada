"""Right and wrong answers for the exercises of chapter 09, as in ``test_exercises.CHECKS``."""

import torch
from torch import nn
from torch.nn.functional import layer_norm

from attention_lib.exercises import blocks

ROW = torch.tensor([-5.0, 1.0, 1.0, 3.0])


def norm(x, correction=0, eps=1e-5, axis=-1):
    centred = x - x.mean(dim=axis, keepdim=True)
    return centred / (x.var(dim=axis, correction=correction, keepdim=True) + eps).sqrt()


def attention(y, w_q, w_k, w_v, w_o, scale=None, axis=-1):
    scale = w_q.shape[-1] ** -0.5 if scale is None else scale
    return torch.softmax((y @ w_q) @ (y @ w_k).mT * scale, dim=axis) @ (y @ w_v) @ w_o


def pre(x, *w, norm=norm, **options):
    x = x + attention(norm(x), *w[:4], **options)
    return x + (norm(x) @ w[4]).relu() @ w[5]


def post(x, *w):
    x = norm(x + attention(x, *w[:4]))
    return norm(x + (x @ w[4]).relu() @ w[5])


def on_path(x, *w):
    y = norm(x)
    x = y + attention(y, *w[:4])
    y = norm(x)
    return y + (y @ w[4]).relu() @ w[5]


def parallel(x, *w):
    y = norm(x)
    return x + attention(y, *w[:4]) + (y @ w[4]).relu() @ w[5]


def one_norm(x, *w):
    x = x + attention(norm(x), *w[:4])
    return x + (x @ w[4]).relu() @ w[5]


def no_relu(x, *w):
    x = x + attention(norm(x), *w[:4])
    return x + norm(x) @ w[4] @ w[5]


def is_normalised(output):
    return bool((output.var(dim=-1, correction=0) - 1).abs().max() < 1e-3)


def silenced(block, x):
    for last in (block.attention.output_proj, block.feed_forward.down_proj):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return block(x)


def placement(block, x):
    leaves = is_normalised(block(x))
    silent = silenced(block, x)
    if torch.equal(silent, x):
        return "pre"
    keeps = torch.allclose(silent, layer_norm(x, x.shape[-1:]), atol=1e-3)
    return "post" if leaves and keeps else "neither"


def silent_only(block, x):
    silent = silenced(block, x)
    if torch.equal(silent, x):
        return "pre"
    return "post" if is_normalised(silent) else "neither"


def loud_only(block, x):
    return "post" if is_normalised(block(x)) else "pre"


def no_residual_seen(block, x):
    if is_normalised(block(x)):
        return "post"
    return "pre" if torch.equal(silenced(block, x), x) else "neither"


def rows(a, b):
    return lambda: (torch.tensor(a), torch.tensor(b))


CHECKS = {
    "09 paper": (
        blocks.check_paper,
        (ROW / 3, 198272, 0),
        {
            "unbiased deviation": ((ROW / 12**0.5, 198272, 0), "1/D"),
            "divided by the variance": ((ROW / 9, 198272, 0), "1/D"),
            "no biases": ((ROW / 3, 4 * 128**2 + 2 * 128 * 512 + 4 * 128, 0), "with biases"),
            "one norm": ((ROW / 3, 198272 - 256, 0), "two norms"),
            "each head has its own matrices": ((ROW / 3, 198272, 8 * 4 * 128**2), "slices"),
        },
    ),
    "09 block": (
        blocks.check_block,
        pre,
        {
            "post-norm": (post, "return x itself"),
            "norm on the path": (on_path, "return x itself"),
            "no residual": (lambda x, *w: pre(x, *w) - x, "return x itself"),
            "unbiased": (lambda x, *w: pre(x, *w, norm=lambda z: norm(z, 1)), "1/D"),
            "norm over positions": (
                lambda x, *w: pre(x, *w, norm=lambda z: norm(z, axis=-2)),
                "normalised x",
            ),
            "not scaled": (lambda x, *w: pre(x, *w, scale=1.0), "root of Dh"),
            "scaled by the width": (lambda x, *w: pre(x, *w, scale=0.5), "root of Dh"),
            "softmax over queries": (lambda x, *w: pre(x, *w, axis=-2), "root of Dh"),
            "no ReLU": (no_relu, "ReLU"),
            "one norm": (one_norm, "normalised sum"),
            "both read the first x": (parallel, "not the first x"),
            "no batch": (lambda x, *w: torch.stack([pre(x.reshape(-1, 4), *w)])[0], "last dim"),
            "no epsilon": (lambda x, *w: pre(x, *w, norm=lambda z: norm(z, eps=0)), "epsilon"),
        },
    ),
    "09 placement": (
        blocks.check_placement,
        placement,
        {
            "always pre": (lambda block, x: "pre", "mean 0 and variance 1"),
            "always post": (lambda block, x: "post", "silent sublayers it returns x"),
            "only with silent sublayers": (silent_only, "loud ones"),
            "only with loud sublayers": (loud_only, "loud ones"),
            "normalised rows are enough": (no_residual_seen, "leave normalised"),
        },
    ),
    "09 blind": (
        blocks.check_blind,
        rows([1.0, -1, 1, -1], [10.0, 8, 10, 8]),
        {
            "scaled only": (rows([1.0, 2, 3, 4], [2.0, 4, 6, 8]), "not the shift"),
            "turned round": (rows([1.0, 2, 3, 4], [-1.0, -2, -3, -4]), "tells them apart"),
            "constant": (rows([1.0] * 4, [3.0] * 4), "constant"),
            "too large": (rows([1.0, -1, 1, -1], [101.0, 99, 101, 99]), "between -10 and 10"),
            "shifted a little": (rows([1.0, -1, 1, -1], [1.1, -0.9, 1.1, -0.9]), "1 was asked"),
            "width three": (rows([1.0, -1, 0], [9.0, 7, 8]), "(4,)"),
            "one row": (lambda: torch.zeros(4), "2 tensors"),
            "not a number": (rows([float("nan")] * 4, [1.0, 2, 3, 4]), "between -10 and 10"),
        },
    ),
}
