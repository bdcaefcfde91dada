"""What attention does with a mask before it uses it."""

from torch import Tensor

from attention_lib._checks import check_mask
from attention_lib.masks import Mask, causal


def dense_mask(mask: Mask | Tensor | None, full: tuple[int, ...], scores: Tensor) -> Tensor | None:
    """Write a mask out so that it broadcasts to scores of shape ``full``; check that it fits."""
    if mask is None:
        return None
    if not isinstance(mask, Mask):
        check_mask(mask, full, "(..., Tq, Tk)", scores)
        return mask
    allowed = mask.compact(full[-2], full[-1], scores.device)
    check_mask(allowed.expand(*allowed.shape[:-2], *full[-2:]), full, "(..., Tq, Tk)", scores)
    return allowed


def mask_per_head(mask: Mask | Tensor | None, rank: int) -> Mask | Tensor | None:
    """Give a mask of one matrix for each sequence a head dimension of 1.

    Without it a (B, Tq, Tk) mask would fail against scores of shape (B, H, Tq, Tk), here of
    ``rank`` 4, or, worse, mask heads in place of sequences when B equals H.
    """

    def spread(allowed: Tensor) -> Tensor:
        return allowed.unsqueeze(-3) if 2 < allowed.ndim < rank else allowed

    if isinstance(mask, Tensor):
        return spread(mask)
    if mask is None or mask is causal() or rank <= 3:
        return mask
    rule = mask.rule
    return Mask(lambda query, key: spread(rule(query, key)), mask.name)
