"""Right and plausible wrong answers to the exercises of the page "Find the bug".

Listings and repaired functions are those of the page: they are read from its cells.
"""

import ast
from pathlib import Path

import nbformat
import torch
from torch.nn.functional import layer_norm, scaled_dot_product_attention

from attention_lib import attend_explicit
from attention_lib.exercises import bugs
from attention_lib.softmax import softmax

PAGE = Path(__file__).resolve().parent.parent / "chapters" / "bugs.ipynb"


def _kept(node: ast.stmt) -> bool:
    """Whether a statement of the page is a listing, a repaired one, or what they need."""
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0]) == "layer"
    is_function = isinstance(node, ast.FunctionDef)
    return isinstance(node, ast.Import | ast.ImportFrom) or (
        is_function and node.name.startswith(("listing_", "repaired_"))
    )


def _functions() -> dict:
    """The functions ``listing_1``, ``repaired_1`` and so on."""
    found: dict = {}
    for cell in nbformat.read(PAGE, 4).cells[1:]:
        if cell.cell_type == "code" and "%pip" not in cell.source:
            kept = [node for node in ast.parse(cell.source).body if _kept(node)]
            exec(compile(ast.Module(kept, []), "<page>", "exec"), found)
    return found


FOUND = _functions()
LISTINGS = {number: FOUND[f"listing_{number}"] for number in range(1, 12)}
REPAIRED = {number: FOUND[f"repaired_{number}"] for number in range(1, 12)}
ANSWERS = {
    1: "rows_sum_to_one",
    2: "inputs_unchanged",
    3: "train_only",
    4: "scale_follows_width",
    5: "causal",
    6: "padding",
    7: "masked_rows",
    8: "gradient_reaches",
    9: "rows_normalised",
    10: "permutation",
    11: "masked_gradients",
}
# A property that holds for the listing, though one may suspect it.
SUSPECTED = {
    1: "inputs_unchanged",
    2: "masked_rows",
    3: "permutation",
    4: "padding",
    5: "rows_sum_to_one",
    6: "rows_sum_to_one",
    7: "rows_sum_to_one",
    8: "rows_sum_to_one",
    9: "gradient_reaches",
    10: "gradient_reaches",
    11: "masked_rows",
}


def _scores(query, key, mask, root):
    return (query @ key.mT / root).masked_fill(~mask, float("-inf"))


def _mean(scores, value):
    return torch.softmax(scores, dim=-1) @ value


def _columns(scores, mask):
    return torch.exp(scores).masked_fill(~mask, 0) / torch.exp(scores).sum(dim=-2, keepdim=True)


def _in_place(scores, mask):
    return softmax(scores.masked_fill_(~mask, float("-inf")), mask)


def _words(train, test, *, unknown=("<unknown>",), order=sorted):
    words = order(dict.fromkeys(word for sentence in train for word in sentence.split()))
    return {word: number for number, word in enumerate([*unknown, *words])}


def _sdpa(visible):
    def function(query, key, value):
        place = torch.arange(query.shape[-2])
        mask = visible(place[:, None], place)
        return scaled_dot_product_attention(query, key, value, attn_mask=mask)

    return function


def _masked_late(query, key, value, mask):
    weights = torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1)
    return weights.masked_fill(~mask, 0) @ value


def _joined_wrongly(query, key, value, mask):
    split = (x.unflatten(-1, (2, -1)).transpose(-2, -3) for x in (query, key, value))
    query, key, value = split
    read = attend_explicit(query, key, value, mask)  # (..., H, Tq, Dh)
    return read.reshape(*read.shape[:-3], read.shape[-2], -1)


def _opened(scores, mask):
    return softmax(scores, mask | ~mask.any(dim=-1, keepdim=True))


MISTAKES = {
    1: {
        "sums of columns": (_columns, "rows of weights"),
        "one sum for all": (
            lambda scores, mask: torch.exp(scores).masked_fill(~mask, 0) / torch.exp(scores).sum(),
            "rows of weights",
        ),
        "no mask": (lambda scores, mask: torch.softmax(scores, dim=-1), "at the last key"),
    },
    2: {
        "another call in place": (_in_place, "argument 1 is now"),
        "no mask": (lambda scores, mask: torch.softmax(scores, dim=-1), "at the last key"),
    },
    3: {
        "in the order of the sentences": (
            lambda train, test: _words(train, test, order=list),
            "reversed order",
        ),
        "no unknown word": (
            lambda train, test: _words(train, test, unknown=()),
            "the library gives other numbers",
        ),
        "only the test split": (lambda train, test: _words(test, train), "test split is empty"),
    },
    4: {
        "no scale": (lambda q, k, v, m: _mean(_scores(q, k, m, 1), v), "fourth root"),
        "no root": (lambda q, k, v, m: _mean(_scores(q, k, m, q.shape[-1]), v), "fourth root"),
    },
    5: {
        "one place too far": (_sdpa(lambda q, k: k <= q + 1), "first position that changes"),
        "no mask": (_sdpa(lambda q, k: (k > -1) & (q > -1)), "first position that changes"),
        "itself forbidden": (_sdpa(lambda q, k: k < q), "sums of the weights"),
    },
    6: {
        "no mask": (
            lambda q, k, v, m: _mean(_scores(q, k, torch.ones_like(m), q.shape[-1] ** 0.5), v),
            "at the last key",
        ),
        "masked after the softmax": (_masked_late, "sums of the weights"),
    },
    7: {
        "minus infinity": (
            lambda s, m: torch.softmax(s.masked_fill(~m, float("-inf")), dim=-1),
            "nan",
        ),
        "a larger number": (
            lambda s, m: torch.softmax(s.masked_fill(~m, -1e30), dim=-1),
            "weights of the first query",
        ),
    },
    8: {
        "no scale": (lambda q, k, v, m: _mean(_scores(q, k, m, 1), v), "fourth root"),
        "keys with themselves": (
            lambda q, k, v, m: _mean(_scores(k, k, m[:1], 1)[..., : q.shape[-2], :], v),
            "fourth root",
        ),
    },
    9: {
        "the sublayer normalised": (
            lambda x, f: x + layer_norm(f(x), x.shape[-1:]),
            "mean squares",
        ),
        "normalised before and after": (
            lambda x, f: layer_norm(x + f(layer_norm(x, x.shape[-1:])), x.shape[-1:]),
            "the library gives other numbers",
        ),
        "over all rows": (lambda x, f: (x + f(x) - x.mean()) / x.std(), "mean squares"),
    },
    10: {
        "one head": (attend_explicit, "the library gives other numbers"),
        "joined wrongly": (_joined_wrongly, "the library gives other numbers"),
    },
    11: {
        "not closed": (_opened, "weights of the first query"),
        "repaired twice": (
            lambda s, m: torch.nan_to_num(torch.nan_to_num(LISTINGS[11](s, m))),
            "gradients of the first row",
        ),
    },
}


def _stops(*arguments):
    raise ValueError("on purpose")


CHECKS = {
    f"bugs find {number}": (
        bugs.check_find,
        (number, LISTINGS[number], ANSWERS[number]),
        {
            "holds": (
                (number, LISTINGS[number], SUSPECTED[number]),
                f"Not this one: {SUSPECTED[number]} holds",
            ),
            "no such property": ((number, LISTINGS[number], "shapes"), "Known are"),
            "repaired before": ((number, REPAIRED[number], ANSWERS[number]), "holds"),
            "stops": ((number, _stops, ANSWERS[number]), "it raised ValueError: on purpose"),
        },
    )
    for number in LISTINGS
} | {
    f"bugs repair {number}": (
        bugs.check_repair,
        (number, REPAIRED[number]),
        {
            "as it was": ((number, LISTINGS[number]), "fails."),
            "stops": ((number, _stops), "it raised ValueError: on purpose"),
            **{name: ((number, wrong), word) for name, (wrong, word) in MISTAKES[number].items()},
        },
    )
    for number in LISTINGS
}
