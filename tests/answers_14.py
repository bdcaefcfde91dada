"""Right and plausible wrong answers to the exercises of chapter 14."""

import torch

from attention_lib.exercises import detr
from attention_lib.models.detection import box_overlap


def giou(a, b, *, corners=False, clamp=True, hull=True):
    if corners:  # (centre, size) taken for (left, top, right, bottom)
        low = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, :2], b[:, :2])
        high = torch.minimum(a[:, 2:], b[:, 2:]), torch.maximum(a[:, 2:], b[:, 2:])
    else:
        near, far = (x[:, :2] - x[:, 2:] / 2 for x in (a, b)), None
        near, far = list(near), [x[:, :2] + x[:, 2:] / 2 for x in (a, b)]
        low = torch.maximum(*near), torch.minimum(*near)
        high = torch.minimum(*far), torch.maximum(*far)
    inner = high[0] - low[0]
    shared = (inner.clamp(min=0) if clamp else inner).prod(dim=-1)
    union = a[:, 2:].prod(dim=-1) + b[:, 2:].prod(dim=-1) - shared
    around = (high[1] - low[1]).prod(dim=-1)
    return shared / union - ((around - union) / around if hull else 0)


def targets(rows, columns, labels, queries, nothing, *, index=True, rest=None, swap=False):
    wanted = torch.full((queries,), nothing if rest is None else rest)
    where, what = (columns, rows) if swap else (rows, columns)
    wanted[where] = labels[columns] if index or swap else labels
    return wanted + 0 * what.sum()


CHECKS = {
    "14 paper": (
        detr.check_paper,
        (12.0, 8.0, 1 / 7, 1 / 7 - 2 / 9),
        {
            "greedy taken for best": ((12.0, 12.0, 1 / 7, -5 / 63), "look at them all"),
            "objects may share": ((4.0, 8.0, 1 / 7, -5 / 63), "cross out"),
            "shared square counted twice": ((12.0, 8.0, 1 / 8, -5 / 63), "either box covers"),
            "hull not subtracted": ((12.0, 8.0, 1 / 7, 1 / 7), "how many lie in no box"),
        },
    ),
    "14 giou": (
        detr.check_giou,
        giou,
        {
            "centres taken for corners": (lambda a, b: giou(a, b, corners=True), "centre and size"),
            "not clamped": (lambda a, b: giou(a, b, clamp=False), "clamp each"),
            "plain IoU": (lambda a, b: box_overlap(a, b)[0], "half of the hull"),
            "all pairs": (lambda a, b: box_overlap(a[:, None], b)[1], "the hull is the box"),
        },
    ),
    "14 targets": (
        detr.check_targets,
        targets,
        {
            "label i for query rows[i]": (
                lambda *a: targets(*a, index=False),
                "which is not object i",
            ),
            "the rest is class 0": (lambda *a: targets(*a, rest=0), "get `nothing`"),
            "at the objects' places": (lambda *a: targets(*a, swap=True), "get `nothing`"),
        },
    ),
}
