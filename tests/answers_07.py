"""Right and plausible wrong answers to the exercises of chapter 07."""

import torch

from attention_lib.exercises import heads


def _multi_head(*, scale=None, split=True, merge=True, mix=True, axis=-1):
    def function(x, w_q, w_k, w_v, w_o, count):
        size = x.shape

        def cut(y):
            if split:
                return y.unflatten(-1, (count, -1)).transpose(1, 2)
            return y.reshape(size[0], count, size[1], size[2] // count)

        query, key, value = cut(x @ w_q), cut(x @ w_k), cut(x @ w_v)
        width = size[-1] if scale == "width" else query.shape[-1]
        weights = torch.softmax(query @ key.mT / width**0.5, dim=axis)
        read = weights @ value
        joined = read.transpose(1, 2).reshape(size) if merge else read.reshape(size)
        return joined @ w_o if mix else joined

    return function


def _one_head(x, w_q, w_k, w_v, w_o, count):
    return _multi_head()(x, w_q, w_k, w_v, w_o, 1)


CHECKS = {
    "07 paper": (
        heads.check_paper,
        (64, 4 * 768**2 + 4 * 768, 2 * 768**2 + 2 * 768 * 192),
        {
            "head as wide as the model": ((768, 2362368, 1474560), "share the width"),
            "no biases": ((64, 4 * 768**2, 1474560), "four biases"),
            "times the heads": ((64, 12 * (4 * 768**2 + 4 * 768), 1474560), "four matrices"),
            "only one matrix smaller": (
                (64, 2362368, 3 * 768**2 + 768 * 192),
                "keys and values have three heads",
            ),
        },
    ),
    "07 multi-head": (
        heads.check_multi_head,
        _multi_head(),
        {
            "heads ignored": (_one_head, "own half of the features"),
            "scaled by the whole width": (_multi_head(scale="width"), "root of that half's"),
            "view only": (_multi_head(split=False), "position by position"),
            "joined without the transpose": (_multi_head(merge=False), "position by position"),
            "no output projection": (_multi_head(mix=False), "last product"),
            "softmax over the queries": (_multi_head(axis=-2), "Softmax over the keys"),
        },
    ),
    "07 share": (
        heads.check_share,
        lambda key, count: key.repeat_interleave(count // key.shape[1], dim=1),
        {
            "repeated as a whole": (
                lambda key, count: key.repeat(1, count // key.shape[1], 1, 1),
                "1, 1, 2, 2",
            ),
            "first head for all": (
                lambda key, count: key[:, :1].expand(-1, count, -1, -1),
                "own key head",
            ),
            "positions repeated": (
                lambda key, count: key.repeat_interleave(count // key.shape[1], dim=2),
                "1, 1, 2, 2",
            ),
        },
    ),
}
