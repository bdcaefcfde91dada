"""The book's Triton kernels beside PyTorch's fused attention, on this machine's GPU.

Run: python benchmarks/triton_attention.py [--lengths 4096 8192 16384] [--widths 64 128]
[--heads 16] [--rounds 30] [--write FILE]. Causal, bfloat16. The peer is
``scaled_dot_product_attention`` held to its FlashAttention kernel. Before it is timed, each case is
checked: the error of the output and of each gradient against float32 must be at most twice the
peer's. In each round both run once, in turns, between CUDA events; what is printed is the median
of the ratios, peer's time over ours (1 is equally fast), with quartiles. The targets are 0.8
forward and 0.7 forward and backward. Without a GPU it measures and writes nothing.
"""

import argparse
import datetime
import json
import platform
import shlex
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from attention_lib import causal
from attention_lib.efficient.triton_attention import attend_triton

TARGETS = {"forward": 0.8, "forward and backward": 0.7}
WARM_UP = 5
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The kernels of the book."""
    return attend_triton(query, key, value, causal())


def peer(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's FlashAttention kernel and no other."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return scaled_dot_product_attention(query, key, value, is_causal=True)


def exact(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same in the inputs' dtype, float32 here, without the FlashAttention kernel."""
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        return scaled_dot_product_attention(query, key, value, is_causal=True)


def with_gradients(attention: Attention, inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    """The output and the gradients of query, key and value."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = attention(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream)]


def check(inputs: list[Tensor], upstream: Tensor) -> list[float]:
    """Our error over the peer's, for the output and each gradient; raises where one exceeds 2."""
    truth = with_gradients(exact, [tensor.float() for tensor in inputs], upstream.float())
    errors = {}
    for attention in (ours, peer):
        found = with_gradients(attention, inputs, upstream)
        errors[attention] = [
            (one.float() - other).abs().max().item()
            for one, other in zip(found, truth, strict=True)
        ]
    ratios = [mine / theirs for mine, theirs in zip(errors[ours], errors[peer], strict=True)]
    if not all(ratio <= 2 for ratio in ratios):
        raise AssertionError(f"error over the peer's, output and gradients: {ratios}")
    return ratios


def milliseconds(call: Callable[[], object]) -> float:
    """Time of one call on the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, object]:
    """Medians of both, and of the peer's time over ours, round by round."""
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    torch.cuda.synchronize()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds):
        order = list(calls) if index % 2 else list(calls)[::-1]
        for name in order:
            times[name].append(milliseconds(calls[name]))
    ratios = [theirs / mine for mine, theirs in zip(times["ours"], times["peer"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "milliseconds": {name: statistics.median(found) for name, found in times.items()},
        "speed": middle,
        "quartiles": [low, high],
    }


def case(length: int, width: int, heads: int, rounds: int) -> list[dict[str, object]]:
    """Check and time one shape: a row for forward, a row for forward and backward."""
    generator = torch.Generator("cuda").manual_seed(length + width)
    shape = (1, heads, length, width)
    *inputs, upstream = (
        torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)
        for _ in range(4)
    )
    errors = check(inputs, upstream)
    both = {"ours": ours, "peer": peer}
    rows = []
    for what, target in TARGETS.items():
        if what == "forward":
            calls = {name: lambda call=call: call(*inputs) for name, call in both.items()}
        else:
            calls = {
                name: lambda call=call: with_gradients(call, inputs, upstream)
                for name, call in both.items()
            }
        row = {"what": what, "length": length, "width": width, "heads": heads, "target": target}
        rows.append({**row, **measure(calls, rounds), "error over the peer's": errors})
    return rows


def machine() -> dict[str, object]:
    """Where this was measured, and with what."""
    import triton

    return {
        "device": torch.cuda.get_device_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "command": shlex.join(["python", "benchmarks/triton_attention.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def main() -> None:
    """Print every row; write them all with ``--write``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--write", type=Path, help="a JSON file for the rows")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no GPU is at hand: nothing is measured and nothing is written")
    rows = []
    for width in arguments.widths:
        for length in arguments.lengths:
            for row in case(length, width, arguments.heads, arguments.rounds):
                rows.append(row)
                met = "met" if row["speed"] >= row["target"] else "missed"
                print(
                    f"{row['what']:>20}, length {length:>6}, width {width:>3}: "
                    f"{row['speed']:.2f} of the peer's speed (target {row['target']}, {met})"
                )
    if arguments.write:
        arguments.write.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
