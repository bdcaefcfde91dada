"""Checks for the exercises of chapter 14."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attention_lib.exercises.report import Case, Report, check_answers, check_cases, counted
from attention_lib.models.detection import box_overlap


@counted
def check_paper(greedy: Any, best: Any, iou: Any, giou: Any) -> Report:
    """Check the four numbers of the exercise on paper.

    Args:
        greedy: Total cost of the greedy assignment.
        best: Total cost of the best one.
        iou: IoU of the two boxes.
        giou: Their GIoU.

    Returns:
        The report.

    Source:
        Chapter 14, exercise "an assignment and an overlap".
    """
    return check_answers(
        {
            "greedy": (greedy, 12.0, "Take the smallest entry of all, cross out, go on."),
            "best": (best, 8.0, "Six assignments are possible: look at them all."),
            "IoU": (iou, 1 / 7, "One square is shared; count the squares that either box covers."),
            "GIoU": (giou, 1 / 7 - 2 / 9, "The hull has nine squares: how many lie in no box?"),
        }
    )


@counted
def check_giou(function: Callable[..., Tensor]) -> Report:
    """Check a function ``(boxes, others) -> GIoU`` for boxes given by centre and size.

    Args:
        function: Takes (N, 4) and (N, 4), returns (N,).

    Returns:
        The report.

    Source:
        Chapter 14, exercise "generalised overlap".
    """
    one = torch.tensor([[0.2, 0.2, 0.4, 0.4]])
    inputs = {
        "the same box": (
            one,
            one,
            "Four numbers: centre and size. With itself, the hull is the box, and so is the union.",
        ),
        "half of it": (
            one,
            torch.tensor([[0.4, 0.2, 0.4, 0.4]]),
            "The four numbers are centre and size: half the size lies on either side.",
        ),
        "corner to corner": (
            one,
            torch.tensor([[0.6, 0.6, 0.4, 0.4]]),
            "Nothing is shared, and half of the hull lies in no box.",
        ),
        "apart along both axes": (
            one,
            torch.tensor([[0.8, 0.7, 0.2, 0.2]]),
            "Two negative lengths have a positive product: clamp each before multiplying.",
        ),
        "several": (
            torch.tensor([[0.5, 0.5, 0.6, 0.2], [0.3, 0.3, 0.1, 0.4], [0.2, 0.8, 0.2, 0.3]]),
            torch.tensor([[0.5, 0.5, 0.2, 0.6], [0.3, 0.4, 0.3, 0.2], [0.8, 0.2, 0.2, 0.2]]),
            "Row n of the answer belongs to row n of both.",
        ),
    }
    cases = [
        Case(name, (a, b), box_overlap(a, b)[1], hint) for name, (a, b, hint) in inputs.items()
    ]
    return check_cases(function, cases)


@counted
def check_targets(function: Callable[..., Tensor]) -> Report:
    """Check a function ``(rows, columns, labels, queries, nothing) -> the class of each query``.

    Args:
        function: Takes the matched queries (M,), their objects (M,), the classes of the objects
            (M,), the number of queries and the class "no object"; returns (queries,).

    Returns:
        The report.

    Source:
        Chapter 14, exercise "find the bug: whose label?".
    """

    def case(name: str, rows: list[int], columns: list[int], labels: list[int], hint: str) -> Case:
        wanted = torch.full((6,), 10)
        for row, column in zip(rows, columns, strict=True):
            wanted[row] = labels[column]
        given = (torch.tensor(rows), torch.tensor(columns), torch.tensor(labels), 6, 10)
        return Case(name, given, wanted, hint)

    empty = Case(
        "no object at all",
        (*(torch.zeros(0, dtype=torch.int64) for _ in range(3)), 6, 10),
        torch.full((6,), 10),
        "Every query has to say 'no object'.",
    )
    cases = [
        case(
            "in order",
            [1, 4],
            [0, 1],
            [7, 3],
            "Rows are queries, columns are objects. Queries without an object get `nothing`.",
        ),
        case(
            "out of order",
            [0, 2, 5],
            [2, 0, 1],
            [7, 3, 8],
            "Query rows[i] was matched to object columns[i], which is not object i.",
        ),
        empty,
    ]
    return check_cases(function, cases)
