"""Right and plausible wrong answers to the exercises of chapter 05."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from attention_lib import attend_explicit, causal
from attention_lib.exercises import masks


def _sdpa(mask):
    return lambda q, k, v: scaled_dot_product_attention(
        q, k, v, attn_mask=mask(torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool))
    )


def _after(query, key, value):
    weights = torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1)
    return weights.tril() @ value


def _unscaled(query, key, value):
    return attend_explicit(query * query.shape[-1] ** 0.5, key, value, causal())


def _detector(*, places=None, first=False, symmetric=False):
    def sees_future(function, x):
        before = function(x)
        for end in places or range(1, len(x)):
            changed = x.clone()
            changed[end:] = changed[end:] * 2 + 1
            after = function(changed)
            rows = slice(None) if symmetric else slice(0, 1) if first else slice(0, end)
            if not torch.equal(after[rows], before[rows]):
                return True
        return False

    return sees_future


CHECKS = {
    "05 paper": (
        masks.check_paper,
        ([1 / 6, 2 / 6, 3 / 6, 0], 55, 27),
        {
            "no mask": (([1 / 12, 2 / 12, 3 / 12, 6 / 12], 55, 27), "three keys"),
            "not rescaled": (([1 / 12, 2 / 12, 3 / 12, 0], 55, 27), "three keys"),
            "without the diagonal": (([1 / 6, 2 / 6, 3 / 6, 0], 45, 27), "Query i has i keys"),
            "first rows forgotten": (([1 / 6, 2 / 6, 3 / 6, 0], 55, 30), "the first queries"),
        },
    ),
    "05 block causal": (
        masks.check_block_causal,
        lambda query, key, size: key // size <= query // size,
        {
            "causal only": (lambda query, key, size: key <= query, "numbers of the blocks"),
            "own block only": (lambda query, key, size: key // size == query // size, "block"),
            "turned round": (lambda query, key, size: key // size >= query // size, "key <= query"),
            "positions made anew": (
                lambda query, key, size: (
                    torch.arange(key.shape[1])[None] // size
                    <= torch.arange(query.shape[0])[:, None] // size
                ),
                "positions that are passed in",
            ),
        },
    ),
    "05 causal attention": (
        masks.check_causal_attention,
        _sdpa(torch.Tensor.tril),
        {
            "upper triangle": (_sdpa(torch.Tensor.triu), "Which of the four values"),
            "no mask": (_sdpa(torch.Tensor.clone), "Which of the four values"),
            "one too far": (_sdpa(lambda ones: ones.tril(1)), "Which of the four values"),
            "cut after the softmax": (_after, "Which of the four values"),
            "not scaled": (_unscaled, "root of the width"),
        },
    ),
    "05 detector": (
        masks.check_sees_future,
        _detector(),
        {
            "always no": (lambda function, x: False, "Every row sees every other"),
            "always yes": (lambda function, x: True, "Nothing leaks"),
            "the last row only": (_detector(places=[5]), "every place"),
            "the first row only": (_detector(first=True), "compare all rows"),
            "compares the changed rows too": (_detector(symmetric=True), "Nothing leaks"),
        },
    ),
}
