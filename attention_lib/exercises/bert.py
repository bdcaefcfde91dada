"""Checks for the exercises of chapter 12."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attention_lib.exercises.report import Report, check_against, check_answers, counted, waves
from attention_lib.models.bert import mean_state

Hide = Callable[[Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
PER_BLOCK = (4 * 768**2 + 4 * 768) + (2 * 768 * 3072 + 3072 + 768) + 2 * 2 * 768


@counted
def check_paper(masked: Any, unchanged: Any, block: Any, model: Any) -> Report:
    """Check the counts of the exercise on paper.

    Args:
        masked: Expected number of mask tokens.
        unchanged: Expected number of tokens that are asked for and stay.
        block: Parameters of one block.
        model: Parameters of the whole encoder.

    Returns:
        The report.

    Source:
        Devlin et al. (2019), section 3 and appendix A.1. Chapter 12, exercise "count".
    """
    embeddings = (30_522 + 512 + 2) * 768 + 2 * 768
    return check_answers(
        {
            "masked": (
                masked,
                48,
                "Fifteen in a hundred are chosen, and four fifths of those are masked.",
            ),
            "unchanged": (unchanged, 6, "A tenth of the chosen, not of all tokens."),
            "block": (
                block,
                PER_BLOCK,
                "Four matrices of D x D with biases, two of D x 4 D with biases, and two layer "
                "norms with a gain and a shift each.",
            ),
            "model": (
                model,
                12 * PER_BLOCK + embeddings,
                "Twelve blocks, three tables (tokens, positions, segments) and a layer norm on "
                "their sum.",
            ),
        }
    )


@counted
def check_hide(function: Hide) -> Report:
    """Check a function ``(tokens, chance, fate, random, mask_token) -> (shown, targets)``.

    Args:
        function: Takes tokens, two tensors of draws from 0 to 1, random tokens, and the token that
            hides; gives what the model sees, and the true token where it is asked, -100 elsewhere.

    Returns:
        The report.

    Raises:
        TypeError: If ``function`` cannot be called.

    Source:
        Devlin et al. (2019), appendix A.1. Chapter 12, exercise "hide".
    """
    if not callable(function):
        raise TypeError(f"function must be a function, got {type(function).__name__}")

    def stacked(*given: Any) -> Any:
        answer = function(*given)
        if isinstance(answer, tuple | list) and len(answer) == 2:
            return torch.stack([torch.as_tensor(part) for part in answer])
        return answer

    tokens, random = torch.arange(10, 18), torch.arange(50, 58)
    never, always = torch.full((8,), 0.9), torch.full((8,), 0.01)
    spread = torch.tensor([0.0, 0.79, 0.81, 0.89, 0.91, 0.99, 0.5, 0.85])
    hints = {
        "nothing is chosen": (
            (tokens, never, spread, random, 3),
            "A token is chosen where `chance` is below 0.15; elsewhere it is shown as it is and "
            "its target is -100.",
        ),
        "all are chosen, all are masked": (
            (tokens, always, torch.zeros(8), random, 3),
            "Where `fate` is below 0.8 the mask token is shown, and the target is the true token.",
        ),
        "all are chosen, with all three fates": (
            (tokens, always, spread, random, 3),
            "Below 0.8 the mask token, from 0.8 to 0.9 the random token, above 0.9 the token "
            "itself. All three are asked for.",
        ),
        "some of two rows": (
            (
                tokens.view(2, 4),
                torch.tensor([[0.1, 0.2, 0.14, 0.5], [0.16, 0.0, 0.99, 0.1]]),
                spread.view(2, 4),
                random.view(2, 4),
                3,
            ),
            "`fate` matters only where a token was chosen.",
        ),
    }
    return check_against(stacked, _hide, hints)


@counted
def check_pool(function: Callable[[Tensor, Tensor], Tensor]) -> Report:
    """Check a function ``(states, lengths) -> vectors``.

    Args:
        function: Takes states (B, T, D) and lengths (B,); gives the mean of each row's real states.

    Returns:
        The report.

    Source:
        Chapter 12, exercise "a mean that depends on the neighbours".
    """
    hints = {
        "no padding": (
            (waves(2, 3, 2), torch.tensor([3, 3])),
            "Where nothing is padded the answer is the plain mean over the positions.",
        ),
        "one row is padded": (
            (waves(2, 4, 2), torch.tensor([4, 2])),
            "Padding must count neither in the sum nor in the number that it is divided by.",
        ),
        "padding holds huge numbers": (
            (torch.cat([waves(2, 3, 2), torch.full((2, 2, 2), 1e6)], dim=1), torch.tensor([3, 1])),
            "Whatever stands in the padding must not matter.",
        ),
    }
    return check_against(function, mean_state, hints)


@counted
def check_reciprocal_rank(function: Callable[[Tensor, Tensor], Any]) -> Report:
    """Check a function ``(scores, right) -> mean reciprocal rank``.

    Args:
        function: Takes scores (Q, N) and the number of the right passage for each question (Q,);
            of other passages with the right one's score, half count as better.

    Returns:
        The report.

    Source:
        Voorhees (1999), for the measure. Chapter 12, exercise "how good is a search?".
    """
    hints = {
        "the right one is first": (
            (torch.tensor([[0.9, 0.1, 0.5]]), torch.tensor([0])),
            "The rank of the best passage is 1.",
        ),
        "the right one is second": (
            (torch.tensor([[0.9, 0.1, 0.5]]), torch.tensor([2])),
            "The rank is one more than the number of passages with a higher score.",
        ),
        "three questions": (
            (waves(3, 7), torch.tensor([6, 0, 3])),
            "Take the reciprocal of each rank first, the mean afterwards. (One `argsort` gives the "
            "passage at each place, not the place of each passage.)",
        ),
        "all scores are equal": (
            (torch.zeros(2, 5), torch.tensor([0, 4])),
            "Of the other passages with the same score, half count as better: a search that cannot "
            "tell them apart must not win.",
        ),
    }
    return check_against(function, _reciprocal_rank, hints)


def _hide(tokens: Tensor, chance: Tensor, fate: Tensor, random: Tensor, mask_token: int) -> Tensor:
    chosen = chance < 0.15
    shown = torch.where(chosen & (fate < 0.8), mask_token, tokens)
    shown = torch.where(chosen & (fate >= 0.8) & (fate < 0.9), random, shown)
    return torch.stack([shown, torch.where(chosen, tokens, -100)])


def _reciprocal_rank(scores: Tensor, right: Tensor) -> Tensor:
    own = scores.gather(1, right[:, None])
    ties = (scores == own).sum(dim=1) - 1
    return (1 / (1 + (scores > own).sum(dim=1) + ties / 2)).mean()
