"""Speculative decoding: a cheap model guesses some tokens, a dear one checks them at once.

The text that comes out is distributed as if the dear model had written it alone. Chapter 17.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attention_lib._checks import at_least_float32, check_count, check_float, shape
from attention_lib.efficient.readers import Reader

Rule = Callable[[Tensor], Tensor]  # logits (..., V) to probabilities (..., V)
ROUNDING = 1e-2  # how far a row of probabilities in half precision may be from the sum 1


# --- the mathematics -----------------------------------------------------------------------------


def plain(logits: Float[Tensor, "... V"]) -> Float[Tensor, "... V"]:
    r"""Probabilities as the model gives them.

    .. math:: p = \mathrm{softmax}(z)

    Args:
        logits: Scores of the next token, (..., V).

    Returns:
        Probabilities, (..., V), in at least float32.

    Raises:
        TypeError: If ``logits`` is not a floating-point tensor.

    Example:
        >>> plain(torch.tensor([1.0, 3.0]).log()).round(decimals=3)
        tensor([0.2500, 0.7500])

    Source:
        Leviathan, Kalman and Matias (2023), section 2.2. Chapter 17.
    """
    check_float("logits", logits, rank=1)
    return logits.to(at_least_float32(logits.dtype)).softmax(dim=-1)


def likeliest(logits: Float[Tensor, "... V"]) -> Float[Tensor, "... V"]:
    r"""All probability on the most likely token: greedy choice, written as a distribution.

    .. math:: p_v = [\, v = \arg\max_w z_w \,]

    Args:
        logits: Scores of the next token, (..., V).

    Returns:
        One 1 in each row, (..., V), in at least float32; of equal scores the first.

    Raises:
        TypeError: If ``logits`` is not a floating-point tensor.

    Example:
        >>> likeliest(torch.tensor([0.5, 2.0, 1.0])).tolist()
        [0.0, 1.0, 0.0]

    Source:
        Leviathan, Kalman and Matias (2023), section 2.2. Chapter 17.
    """
    check_float("logits", logits, rank=1)
    best = logits.argmax(dim=-1, keepdim=True)
    return torch.zeros_like(logits, dtype=at_least_float32(logits.dtype)).scatter(-1, best, 1.0)


def acceptance(
    target: Float[Tensor, "... V"], draft: Float[Tensor, "... V"]
) -> Float[Tensor, "..."]:
    r"""The probability that a token drawn from the draft is accepted.

    .. math:: \beta = \sum_v \min(p_v, q_v) = 1 - \tfrac12 \sum_v |p_v - q_v|

    Args:
        target: Probabilities p of the model that decides, (..., V).
        draft: Probabilities q of the model that guesses, (..., V).

    Returns:
        One number for each row, from 0 to 1.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If the shapes differ or a row is no distribution.

    Example:
        >>> acceptance(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])).item()
        0.75

    Source:
        Leviathan, Kalman and Matias (2023), theorem 3.5 and lemma 3.3. Chapter 17.
    """
    _check_distributions("target", target)
    _check_distributions("draft", draft)
    if target.shape != draft.shape:
        raise ValueError(f"draft must have the shape of target {shape(target)}, got {shape(draft)}")
    return torch.minimum(target, draft).sum(dim=-1)


def residual(
    target: Float[Tensor, "... V"], draft: Float[Tensor, "... V"]
) -> Float[Tensor, "... V"]:
    r"""What a rejected token is replaced from: where the target gives more than the draft.

    .. math:: r_v = \frac{\max(p_v - q_v, 0)}{\sum_w \max(p_w - q_w, 0)}

    Args:
        target: Probabilities p of the model that decides, (..., V).
        draft: Probabilities q of the model that guesses, (..., V).

    Returns:
        Probabilities, (..., V); those of the target where the two are equal and nothing is left.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If the shapes differ or a row is no distribution.

    Example:
        >>> residual(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.25, 0.5])).tolist()
        [0.5, 0.5, 0.0]

    Source:
        Leviathan, Kalman and Matias (2023), section 2.3; Chen et al. (2023), algorithm 2.
        Chapter 17.
    """
    acceptance(target, draft)  # for its checks
    left = (target - draft).clamp(min=0)
    total = left.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, left / total.where(total > 0, 1.0), target)


def verify(
    proposed: Int[Tensor, " K"],
    draft: Float[Tensor, "K V"],
    target: Float[Tensor, "K1 V"],
    uniform: Float[Tensor, " K1"],
) -> Int[Tensor, " N"]:
    r"""Accept a beginning of what was proposed, and add one token of the target's.

    .. math:: x_i \text{ is accepted if } u_i < p_i(x_i) / q_i(x_i)

    At the first rejection the token is drawn from :func:`residual`, and what was proposed after it
    is dropped. If all are accepted, one more is drawn from the target's last row. Everything that
    is left to chance comes in as an argument.

    Args:
        proposed: Tokens that the draft drew, (K,), K may be 0.
        draft: The probabilities that it drew them from, (K, V).
        target: Those of the target at the same places and at the one after, (K + 1, V).
        uniform: Numbers drawn evenly from [0, 1), (K + 1,): one for each decision, in order, and
            the last for the token that is added.

    Returns:
        The accepted tokens and the added one, (N,) with N from 1 to K + 1.

    Raises:
        TypeError: If probabilities are not floating-point tensors.
        ValueError: If shapes do not fit, a row is no distribution, or a token was proposed to which
            the draft gives no probability.

    Example:
        >>> proposed, draft = torch.tensor([0]), torch.tensor([[0.5, 0.5]])
        >>> target, uniform = torch.tensor([[0.5, 0.5], [0.0, 1.0]]), torch.tensor([0.9, 0.3])
        >>> verify(proposed, draft, target, uniform).tolist()
        [0, 1]
        >>> verify(proposed, draft, target[[1, 1]], uniform).tolist()  # a target that never says 0
        [1]

    Source:
        Leviathan, Kalman and Matias (2023), algorithm 1; Chen et al. (2023), algorithm 2.
        Chapter 17.
    """
    count = len(proposed)
    _check_distributions("target", target)
    if target.ndim != 2 or len(target) != count + 1:
        raise ValueError(
            f"target must have shape (K + 1, V) = ({count + 1}, V), got {shape(target)}"
        )
    _check_distributions("draft", draft)
    if draft.shape != target[:-1].shape:
        raise ValueError(f"draft must have shape (K, V) = {shape(target[:-1])}, got {shape(draft)}")
    if uniform.shape != (count + 1,):
        raise ValueError(f"uniform must have shape (K + 1,) = ({count + 1},), got {shape(uniform)}")
    place = torch.arange(count, device=proposed.device)
    p, q = target[place, proposed].double(), draft[place, proposed].double()
    if not (q > 0).all():
        bad = int((q <= 0).nonzero()[0])
        raise ValueError(
            "draft must give a probability above 0 to each token that it proposed, "
            f"got {q[bad].item()} for token {int(proposed[bad])} at place {bad}"
        )
    accepted = int((uniform[:-1] * q < p).long().cumprod(dim=0).sum())
    if accepted < count:
        last = residual(target[accepted].double(), draft[accepted].double())
    else:
        last = target[accepted].double()
    return torch.cat([proposed[:accepted], draw(last, uniform[-1])[None]])


def draw(probability: Float[Tensor, " V"], uniform: Float[Tensor, ""]) -> Int[Tensor, ""]:
    r"""The token at which the running sum of the probabilities passes a number.

    .. math:: x = \min \Big\{ v : \sum_{w \le v} p_w > u \sum_w p_w \Big\}

    Args:
        probability: Probabilities, (V,).
        uniform: A number from [0, 1).

    Returns:
        The token; never one of probability 0.

    Example:
        >>> draw(torch.tensor([0.25, 0.25, 0.5]), torch.tensor(0.3)).item()
        1

    Source:
        Inversion of the distribution function: Devroye (1986), section III.2. Chapter 17.
    """
    running = probability.double().cumsum(dim=0)
    token = torch.searchsorted(running, uniform.double() * running[-1], right=True)
    # The product may round up to the whole sum; the last token with any probability is meant then.
    return token.clamp(max=int(probability.nonzero()[-1]))


def expected_tokens(rate: float, ahead: int) -> float:
    r"""How many tokens one call of the target yields on average, its own included.

    .. math:: \mathbb{E}[N] = \sum_{i=0}^{k} \alpha^i = \frac{1 - \alpha^{k+1}}{1 - \alpha}

    It holds if each proposal is accepted with the same probability, independent of the others.

    Args:
        rate: :math:`\alpha`, from 0 to 1.
        ahead: k, tokens proposed for one call, at least 0.

    Returns:
        A number from 1 to k + 1.

    Raises:
        TypeError: If ``ahead`` is not an integer.
        ValueError: If ``rate`` is not between 0 and 1, or ``ahead`` is negative.

    Example:
        >>> expected_tokens(0.5, ahead=2)  # 1 + 1/2 + 1/4
        1.75

    Source:
        Leviathan, Kalman and Matias (2023), equation 1. Chapter 17.
    """
    check_count("ahead", ahead, least=0)
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be between 0 and 1, got {rate}")
    return float(sum(rate**i for i in range(ahead + 1)))


def expected_speedup(rate: float, ahead: int, cost: float) -> float:
    r"""How many times faster the writing gets, if checking k + 1 tokens costs one step.

    .. math:: \frac{1 - \alpha^{k+1}}{(1 - \alpha)(c k + 1)}

    Args:
        rate: :math:`\alpha`, from 0 to 1.
        ahead: k, tokens proposed for one call, at least 0.
        cost: c, the time of a step of the draft over that of a step of the target, at least 0.

    Returns:
        The factor; below 1 it is a loss.

    Raises:
        TypeError: If ``ahead`` is not an integer.
        ValueError: If a number is out of range.

    Example:
        >>> expected_speedup(0.5, ahead=2, cost=0.125)  # 1.75 / 1.25
        1.4

    Source:
        Leviathan, Kalman and Matias (2023), theorem 3.8. Chapter 17.
    """
    if not cost >= 0:
        raise ValueError(f"cost must be at least 0, got {cost}")
    return expected_tokens(rate, ahead) / (cost * ahead + 1)


# --- the loop ------------------------------------------------------------------------------------


def speculate(
    target: Reader,
    draft: Reader,
    text: Int[Tensor, " T"],
    max_length: int,
    *,
    generator: torch.Generator,
    ahead: int = 4,
    rule: Rule = plain,
) -> Iterator[Int[Tensor, " N"]]:
    r"""Write with a target model that checks what a draft model proposes.

    .. math:: \Pr(\text{text}) = \prod_t p(x_t \mid x_{<t}) \quad \text{whatever the draft is}

    Args:
        target: The model whose text is wanted; it may have read a beginning of ``text`` already.
        draft: A cheaper model of the same vocabulary; likewise.
        text: What to go on from, (T,), at least one token that neither has read.
        max_length: The most tokens to write.
        generator: Source of random numbers, on the device of ``text``.
        ahead: k, how many tokens the draft proposes for one call of the target.
        rule: From logits to the probabilities to draw from, for both models; :func:`likeliest` for
            greedy choice.

    Yields:
        The tokens that one call of the target adds, (N,) with N from 1 to k + 1: those accepted and
        one of its own. Stop taking when you have seen the one that ends a text.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If a number is below 1, a reader has read all of ``text``, or for what
            :func:`verify` refuses.

    Example:
        >>> from attention_lib.efficient.readers import WindowReader
        >>> next_number = lambda seen, n: torch.eye(8)[seen[-n:] + 1]
        >>> readers = [WindowReader(next_number, context=1) for _ in range(2)]
        >>> text, generator = torch.tensor([0]), torch.Generator().manual_seed(0)
        >>> pieces = speculate(*readers, text, 6, generator=generator, ahead=2, rule=likeliest)
        >>> [piece.tolist() for piece in pieces]
        [[1, 2, 3], [4, 5, 6]]

    Source:
        Leviathan, Kalman and Matias (2023), algorithm 1. Chapter 17.
    """
    check_count("max_length", max_length, least=1)
    check_count("ahead", ahead, least=1)
    written = text.tolist()
    for name, reader in (("target", target), ("draft", draft)):
        if len(reader) >= len(written):
            raise ValueError(
                f"{name} must have read less than the {len(written)} tokens of text, "
                f"got {len(reader)}"
            )
    end = len(written) + max_length
    while len(written) < end:
        with torch.no_grad():
            count = min(ahead, end - len(written) - 1)  # and one more from the target
            uniform = torch.rand(
                2 * count + 1, generator=generator, dtype=torch.float64, device=text.device
            )
            guesses: list[int] = []
            chances: list[Tensor] = []
            for number in uniform[count + 1 :]:
                unread = (written + guesses)[len(draft) :]
                chances.append(rule(draft.read(text.new_tensor(unread))[-1]))
                guesses.append(int(draw(chances[-1], number)))
            unread = (written + guesses)[len(target) :]
            found = rule(target.read(text.new_tensor(unread))[-count - 1 :])
            guessed = text.new_tensor(guesses)
            q = torch.stack(chances) if chances else found[:0]
            new = verify(guessed, q, found, uniform[: count + 1])
            kept = len(written) + len(new) - 1  # the last new token is in neither
            target.forget(kept)
            draft.forget(min(kept, len(draft)))
        written += new.tolist()
        yield new


# --- checks --------------------------------------------------------------------------------------


def _check_distributions(name: str, probability: Tensor) -> None:
    """Require rows that are not negative and sum to 1."""
    check_float(name, probability, rank=1)
    if not probability.numel():
        return
    total, least = probability.double().sum(dim=-1), probability.min()
    worst = (total - 1).abs().max()
    if not (worst <= ROUNDING and least >= 0):  # a NaN is refused too
        far = total.flatten()[(total - 1).abs().argmax()].item()
        raise ValueError(
            f"{name} must hold probabilities, rows of sum 1 without negative numbers, "
            f"got a sum of {far:.4g} and a smallest entry of {least.item():.4g}"
        )
