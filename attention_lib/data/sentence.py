"""The four-token sentence that runs through the book."""

import torch
from jaxtyping import Float
from torch import Tensor


def sentence(dtype: torch.dtype = torch.float32) -> tuple[list[str], Float[Tensor, "4 4"]]:
    """Four tokens with hand-made vectors of width 4, small enough to compute on paper.

    The features are, in order: water, money, motion, thing. They are chosen by hand, not learned.
    "bank" is as much about water as about money: alone, it is ambiguous.

    Args:
        dtype: Floating-point type of the vectors.

    Returns:
        The tokens, and their vectors (4, 4).

    Source:
        Made for this book. Chapters 01 to 09.
    """
    tokens = ["boats", "reach", "the", "bank"]
    vectors = [[2, 0, 0, 1], [0, 0, 2, 0], [0, 0, 0, 0], [1, 1, 0, 1]]
    return tokens, torch.tensor(vectors, dtype=dtype)
