"""What is measured: each group is a function from settings to rows of a record."""

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import peers
import torch
from peers import AGAIN, OURS, Layer
from plain_gpt import PlainGPT, adamw
from rounds import Call, alternate, row
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from attention_lib import attend, attend_explicit, causal, padding, sliding_window
from attention_lib.efficient.caches import StaticCache
from attention_lib.efficient.cost import peak_bytes
from attention_lib.efficient.linear import attend_linear
from attention_lib.efficient.tiled import attend_tiled
from attention_lib.efficient.window import attend_window
from attention_lib.heads import KVCache
from attention_lib.models.characters import LENGTH, next_token_loss
from attention_lib.models.gpt import GPTConfig, llama
from attention_lib.models.recipes import BEST, PLAIN, RECIPES, Recipe
from attention_lib.models.smollm import lay_out_for_decoding

SHAPES = ((8, 512, 512, 8), (1, 4096, 512, 8), (32, 128, 256, 4), (1, 1024, 768, 12))
LONG, HEADS, HEAD_WIDTH, WINDOW, CACHED = 16_384, 8, 64, 256, 4_096
CURVE = tuple(2**power for power in range(9, 16))  # 512 to 32,768
FITS = 4_096  # the explicit path stores several matrices of scores
SDPA = "PyTorch SDPA"

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """How long a case is timed, and whether shapes are small, to try the program out."""

    seconds: float
    small: bool = False

    def shrink(self, length: int) -> int:
        """A length, or a much smaller one."""
        return max(64, length // 32) if self.small else length


def passes(layers: dict[str, Layer], x: Tensor, backward: bool) -> dict[str, Call]:
    """One call of each layer: forward in inference mode, or forward and backward."""
    upstream = torch.randn_like(x)

    def forward(module: nn.Module, call: Callable[[Tensor], Tensor]) -> None:
        with torch.inference_mode():
            call(x)

    def both(module: nn.Module, call: Callable[[Tensor], Tensor], given: Tensor) -> None:
        call(given).backward(upstream)
        given.grad = None
        for parameter in module.parameters():
            parameter.grad = None

    calls: dict[str, Call] = {}
    for name, (module, call) in layers.items():
        if backward:
            given = x.clone().requires_grad_()
            calls[name] = partial(both, module, call, given)
        else:
            calls[name] = partial(forward, module, call)
    return calls


def modules(
    make: Callable[..., dict[str, Layer]], directions: tuple[bool, ...], settings: Settings
) -> Iterator[Row]:
    """Our module against its peers, at all shapes."""
    for batch, length, width, heads in SHAPES:
        length = settings.shrink(length)
        for is_causal in (False, True):
            torch.manual_seed(0)
            layers = make(length, width, heads, is_causal)
            x = torch.randn(batch, length, width)
            for backward in directions:
                for module, _ in layers.values():
                    module.train(backward)
                peers.check_equal(layers, x)
                rounds = alternate(
                    passes(layers, x, backward), seconds=settings.seconds, keep=(OURS, AGAIN)
                )
                case = {
                    "shape": [batch, length, width, heads],
                    "causal": is_causal,
                    "backward": backward,
                }
                others = [name for name in layers if name not in (OURS, AGAIN)]
                yield row(case, rounds, OURS, others, AGAIN)


def attention(settings: Settings) -> Iterator[Row]:
    """MultiHeadAttention, forward, and forward and backward."""
    yield from modules(peers.attentions, (False, True), settings)


def block(settings: Settings) -> Iterator[Row]:
    """A pre-norm encoder block, forward and backward."""
    yield from modules(peers.blocks, (True,), settings)


# --- functions of query, key and value -----------------------------------------------------------


def functions(
    calls: dict[str, Callable[..., Tensor]], given: tuple[Tensor, Tensor, Tensor], backward: bool
) -> dict[str, Call]:
    """One call of each function: forward in inference mode, or forward and backward."""
    upstream = torch.randn(*given[0].shape[:-1], given[2].shape[-1])
    leaves = [tensor.clone().requires_grad_() for tensor in given] if backward else []

    def forward(call: Callable[..., Tensor]) -> None:
        with torch.inference_mode():
            call(*given)

    def both(call: Callable[..., Tensor]) -> None:
        call(*leaves).backward(upstream)
        for leaf in leaves:
            leaf.grad = None

    return {name: partial(both if backward else forward, call) for name, call in calls.items()}


def heads(batch: int, count: int, length: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries, keys and values."""
    query, key, value = (torch.randn(batch, count, length, width) for _ in range(3))
    return query, key, value


def plain(settings: Settings) -> Iterator[Row]:
    """attend() against the kernel that it calls; rows with other masks are no target."""
    for batch, length, width, count in SHAPES:
        length = settings.shrink(length)
        given = heads(batch, count, length, width // count)
        sizes = torch.linspace(length // 2, length, batch).long()[:, None]  # (B, 1)
        dense = {
            "padding": (torch.arange(length) < sizes)[:, None, None, :],
            "window of 64": sliding_window(63).dense(length, length),
        }
        masks: dict[str, tuple[Any, dict[str, Any]]] = {
            "none": (None, {}),
            "causal": (causal(), {"is_causal": True}),
            "padding": (padding(sizes), {"attn_mask": dense["padding"]}),
            "window of 64": (sliding_window(63), {"attn_mask": dense["window of 64"]}),
        }
        for name, (mask, named) in masks.items():
            target = name in ("none", "causal")
            for backward in (False, True) if target else (False,):
                ours = partial(attend, mask=mask)
                calls = {
                    OURS: ours, AGAIN: ours, SDPA: partial(scaled_dot_product_attention, **named)
                }  # fmt: skip
                equal(calls, given)
                timed = functions(calls, given, backward)
                rounds = alternate(timed, seconds=settings.seconds, keep=tuple(calls))
                case = {
                    "shape": [batch, length, width, count],
                    "mask": name,
                    "backward": backward,
                    "target": target,
                }
                yield row(case, rounds, OURS, [SDPA], AGAIN)


def equal(calls: dict[str, Callable[..., Tensor]], given: tuple[Tensor, ...]) -> None:
    """Stop if two functions differ."""
    with torch.inference_mode():
        first, *rest = (call(*given) for call in calls.values())
        for other in rest:
            difference = (first - other).abs().max().item()
            if difference > 1e-4:
                raise SystemExit(f"two of {list(calls)} differ by {difference:.2g}")


def tiled(settings: Settings) -> Iterator[Row]:
    """Tiled attention: time against the kernel, memory against the explicit path."""
    length = settings.shrink(LONG)
    given = heads(1, HEADS, length, HEAD_WIDTH)
    for mask, named in ((None, {}), (causal(), {"is_causal": True})):
        ours = partial(attend_tiled, mask=mask)
        calls = {OURS: ours, SDPA: partial(scaled_dot_product_attention, **named)}
        equal(calls, given)
        for backward in (False, True):
            timed = functions(calls, given, backward)
            rounds = alternate(timed, seconds=settings.seconds, least=4, keep=tuple(calls))
            explicit = explicit_bytes(settings, backward)
            case = {
                "shape": [1, length, HEADS * HEAD_WIDTH, HEADS],
                "causal": mask is not None,
                "backward": backward,
                "bytes": peak_bytes(timed[OURS]),
                "bytes of SDPA": peak_bytes(timed[SDPA]),
                "explicit": explicit | {"bytes": explicit["a score"] * HEADS * length**2},
            }
            yield row(case, rounds, OURS, [SDPA], None)


def explicit_bytes(settings: Settings, backward: bool) -> dict[str, float]:
    """Bytes that the explicit path holds for each score, measured where it fits."""
    lengths = [settings.shrink(FITS) // 2, settings.shrink(FITS)]
    found = []
    for length in lengths:
        call = functions({"": attend_explicit}, heads(1, 1, length, HEAD_WIDTH), backward)[""]
        found.append(peak_bytes(call))
    scores = lengths[1] ** 2 - lengths[0] ** 2
    linear = (found[1] - found[0]) / scores  # slightly more than the quadratic part alone
    return {"a score": linear, "lengths": list(lengths), "measured": found}


def window(settings: Settings) -> Iterator[Row]:
    """A sliding window of 256 keys against all keys."""
    length = settings.shrink(LONG)
    given = heads(1, HEADS, length, HEAD_WIDTH)
    ours = partial(attend_window, before=WINDOW - 1)
    equal({OURS: ours, "masked": partial(attend, mask=sliding_window(WINDOW - 1))}, given)
    for backward in (False, True):
        calls = {
            OURS: ours,
            SDPA: scaled_dot_product_attention,
            f"{SDPA}, causal": partial(scaled_dot_product_attention, is_causal=True),
        }
        timed = functions(calls, given, backward)
        rounds = alternate(timed, seconds=settings.seconds, least=4, keep=tuple(calls))
        for other in (SDPA, f"{SDPA}, causal"):
            case = {
                "shape": [1, length, HEADS * HEAD_WIDTH, HEADS],
                "window": WINDOW,
                "backward": backward,
                "target": other == SDPA and not backward,
                "bytes": peak_bytes(timed[OURS]),
            }
            yield row(case, rounds, OURS, [other], None)


# --- models --------------------------------------------------------------------------------------


def decoding(settings: Settings) -> Iterator[Row]:
    """One more token after many, from a cache and without one; two models in Llama's layout."""
    length = settings.shrink(CACHED)
    small = GPTConfig(1_000, length + 1, width=512, layers=4, heads=8)
    published = GPTConfig(
        49_152, length + 1, width=576, layers=2 if settings.small else 30, heads=9, kv_heads=3,
        hidden=1_536,
    )  # fmt: skip
    yield from one_more(small, "4 layers of width 512", settings)
    yield from one_more(published, "SmolLM2-135M", settings)


def one_more(config: GPTConfig, name: str, settings: Settings) -> Iterator[Row]:
    """One more token of a model with random weights."""
    length = config.length - 1
    torch.manual_seed(0)
    model = llama(config).eval()
    lay_out_for_decoding(model)
    tokens = torch.randint(config.tokens, (1, length + 1))
    filled = {}
    with torch.inference_mode():
        kinds = {OURS: lambda: StaticCache(length + 1), "growing by copies": KVCache}
        for kind, make in kinds.items():
            caches = [make() for _ in model.blocks]
            model.states(tokens[:, :-1], caches=caches)
            filled[kind] = caches

    def step(caches: list[KVCache]) -> Tensor:
        with torch.inference_mode():
            logits = model(tokens[:, -1:], caches=caches)[:, -1]
            for cache in caches:
                cache.truncate(length)
            return logits

    def again() -> Tensor:
        with torch.inference_mode():
            return model.states(tokens)[:, -1] @ model.embedding.weight.T

    calls: dict[str, Callable[[], Tensor]] = {
        kind: partial(step, caches) for kind, caches in filled.items()
    }
    calls["recomputing"] = again
    expected = again()
    for kind, call in calls.items():
        difference = (call() - expected).abs().max().item()
        if difference > 1e-3:
            raise SystemExit(f"{kind} differs by {difference:.2g}")
    rounds = alternate(calls, seconds=settings.seconds, keep=tuple(calls))
    for kind in filled:
        case = {
            "cached": length,
            "cache": "with room" if kind == OURS else kind,
            "model": name,
            "target": kind == OURS,
        }
        yield row(case, rounds, kind, ["recomputing"], None)


def training(settings: Settings) -> Iterator[Row]:
    """A training step of chapter 11 against a plain GPT: loss, gradients, clipping, AdamW."""
    tokens, batch = 65, 12
    window = torch.randint(tokens, (batch, LENGTH + 1), generator=torch.Generator().manual_seed(0))

    def ours(recipe: Recipe) -> Call:
        model = recipe.model(tokens, 0)
        return step(model, recipe.optimizer(model), lambda: next_token_loss(model, window))

    def theirs(fused: bool) -> Call:
        torch.manual_seed(0)
        model = PlainGPT(tokens, LENGTH, width=128, layers=4, heads=4)
        loss = partial(model, window[:, :-1], window[:, 1:])
        return step(model, adamw(model, fused=fused), loss)

    def step(model: nn.Module, optimizer: Any, loss: Callable[[], Tensor]) -> Call:
        parameters = list(model.parameters())

        def call() -> None:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            value.item()

        return call

    best_plain, as_published = "plain GPT, fused AdamW", "plain GPT as nanoGPT on a CPU"
    calls = {
        OURS: ours(PLAIN),
        AGAIN: ours(PLAIN),
        "best recipe": ours(RECIPES[BEST]),
        best_plain: theirs(True),
        as_published: theirs(False),
    }
    rounds = alternate(calls, seconds=3 * settings.seconds, keep=tuple(calls))
    for name, other in (
        (OURS, best_plain),
        (OURS, as_published),
        ("best recipe", best_plain),
    ):
        recipe = PLAIN if name == OURS else RECIPES[BEST]
        case = {
            "model": "GPT-2 layout" if name == OURS else "best recipe",
            "parameters": sum(p.numel() for p in recipe.model(tokens, 0).parameters()),
            "target": (name, other) == (OURS, best_plain),
        }
        yield row(case, rounds, name, [other], AGAIN if name == OURS else None)


IMPORT = """
import time
import numpy, torch
start = time.perf_counter()
import attention_lib
print(time.perf_counter() - start)
"""


def importing(settings: Settings) -> Iterator[Row]:
    """Seconds of the import in fresh processes, once torch and numpy are there."""
    repeats = 3 if settings.small else 15
    found = [
        float(
            subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, check=True).stdout
        )
        for _ in range(repeats)
    ]
    low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
    yield {"seconds": {"median": middle, "low": low, "high": high}, "rounds": repeats}


def curves(settings: Settings) -> Iterator[Row]:
    """Time and memory of a forward pass at growing length, one sequence with 8 heads of 64."""
    ways: dict[str, Callable[..., Tensor]] = {
        "explicit": attend_explicit,
        "SDPA": scaled_dot_product_attention,
        "tiled": attend_tiled,
        "window": partial(attend_window, before=WINDOW - 1),
        "linear": attend_linear,
    }
    for length in CURVE:
        if settings.small and length > 1024:
            return
        given = heads(1, HEADS, length, HEAD_WIDTH)
        fitting = {name: way for name, way in ways.items() if name != "explicit" or length <= FITS}
        calls = functions(fitting, given, backward=False)
        rounds = alternate(calls, seconds=settings.seconds / 2, least=4, keep=tuple(calls))
        for name, call in calls.items():
            yield {
                "way": name,
                "length": length,
                "seconds": statistics.median(rounds.seconds[name]),
                "bytes": peak_bytes(call),
                "rounds": len(rounds),
            }


BY_NAME: dict[str, Callable[[Settings], Iterator[Row]]] = {
    "attention": attention,
    "block": block,
    "attend": plain,
    "tiled": tiled,
    "window": window,
    "decoding": decoding,
    "training": training,
    "importing": importing,
    "curves": curves,
}
