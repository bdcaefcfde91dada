"""What code costs on this machine: memory, time, how both grow, and the roof above. Chapter 15."""

import contextlib
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._profiler import _EventType
from torch.autograd.profiler import profile

from attention_lib._checks import check_count, check_positive
from attention_lib.efficient.counts import linear_operations, roofline


def peak_bytes(function: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    r"""How many bytes of CPU memory does a call hold at most, beyond what was there before?

    .. math:: \max_t \sum_{b} \mathrm{bytes}(b) \,
              [\text{block } b \text{ allocated before } t \text{ and not yet freed}]

    It counts what PyTorch's allocator on the CPU gives out during the call: tensors, what autograd
    saves, and the scratch of kernels, also of fused ones. It does not see what other libraries take
    for themselves (NumPy's arrays, the work space of a matrix library) nor other Python threads,
    and a block from before that the call frees is not subtracted. The result of ``function`` counts
    while the call lasts.

    Args:
        function: What to measure; it may call ``backward``.
        args: Passed to ``function``.
        kwargs: Passed to ``function``.

    Returns:
        The largest number of bytes held at one time, at least 0.

    Raises:
        TypeError: If ``function`` cannot be called.
        RuntimeError: If a profiler is already running.

    Example:
        >>> peak_bytes(lambda: torch.zeros(1000)[:1].clone())  # 1000 numbers and 1, of 4 bytes each
        4004

    Source:
        The rule of ``torch.cuda.max_memory_allocated``, for the memory of the CPU. Chapter 15.
    """
    return _memory(function, *args, **kwargs)[0]


def held_bytes(function: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    r"""How many bytes of CPU memory are still held when a call returns its result?

    .. math:: \text{bytes(result)} + \text{bytes(what autograd saved for the backward pass)}

    Weights and inputs were there before and do not count. What the function hides elsewhere (in a
    list, a cache, a ``grad``) does.

    Args:
        function: What to measure, say the forward pass of a model.
        args: Passed to ``function``.
        kwargs: Passed to ``function``.

    Returns:
        Bytes allocated by the call and not freed when it ends; see :func:`peak_bytes`.

    Raises:
        TypeError: If ``function`` cannot be called.
        RuntimeError: If a profiler is already running.

    Example:
        >>> held_bytes(lambda: torch.zeros(1000)[:1].clone())  # of 1000 numbers 1 stays
        4

    Source:
        The rule of ``torch.cuda.memory_allocated``, for the memory of the CPU. Chapter 15.
    """
    return _memory(function, *args, **kwargs)[1]


def median_seconds(
    functions: Mapping[str, Callable[[], Any]], *, repeats: int = 5
) -> dict[str, float]:
    r"""Time several functions side by side: every round runs each once, then come the medians.

    .. math:: \mathrm{median}(t_1, \dots, t_R)

    A machine that slows down for several rounds slows all of them down alike; what hits one call
    alone is dropped by the median. One round more, in front, is not counted: it warms up caches
    and starts threads.

    Args:
        functions: What to time, by name; each is called without arguments.
        repeats: R, number of rounds.

    Returns:
        Seconds of one call, by name.

    Raises:
        TypeError: If ``repeats`` is not an integer.
        ValueError: If ``repeats`` is below 1.

    Example:
        >>> tasks = {"nothing": lambda: None, "nap": lambda: time.sleep(0.02)}
        >>> seconds = median_seconds(tasks, repeats=3)
        >>> seconds["nothing"] < seconds["nap"]
        True

    Source:
        Chapter 15.
    """
    return {name: statistics.median(each) for name, each in _rounds(functions, repeats).items()}


def shortest_seconds(
    functions: Mapping[str, Callable[[], Any]], *, repeats: int = 5
) -> dict[str, float]:
    r"""Time several functions side by side as :func:`median_seconds` does, and keep the best round.

    .. math:: \min(t_1, \dots, t_R)

    What a machine can do at its best is what a roof is made of. A neighbour on the same machine can
    only make a call longer, so the minimum is also the figure that scatters least.

    Args:
        functions: What to time, by name; each is called without arguments.
        repeats: R, number of rounds.

    Returns:
        Seconds of the shortest call, by name.

    Raises:
        TypeError: If ``repeats`` is not an integer.
        ValueError: If ``repeats`` is below 1.

    Example:
        >>> tasks = {"nothing": lambda: None, "nap": lambda: time.sleep(0.02)}
        >>> seconds = shortest_seconds(tasks, repeats=2)
        >>> seconds["nothing"] < seconds["nap"]
        True

    Source:
        Chapter 15.
    """
    return {name: min(each) for name, each in _rounds(functions, repeats).items()}


def _rounds(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call in each round but the first."""
    check_count("repeats", repeats, least=1)
    rounds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            rounds[name].append(time.perf_counter() - start)
    return {name: seconds[1:] for name, seconds in rounds.items()}


def fit_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    r"""The power of the size with which a cost grows: the slope of a line in log and log.

    .. math:: \min_{a, b} \sum_i \big( \ln c_i - a - b \ln n_i \big)^2, \qquad c \approx e^a n^b

    Args:
        sizes: n, above 0, at least two of them different.
        costs: c, above 0, one for each size.

    Returns:
        The exponent b.

    Raises:
        ValueError: If the numbers do not pair up, are not positive, or the sizes are all equal.

    Example:
        >>> round(fit_exponent([1, 2, 4], [3, 12, 48]), 3)  # twice the size, four times the cost
        2.0

    Source:
        Least squares on logarithms. Chapter 15.
    """
    if len(sizes) != len(costs):
        raise ValueError(f"costs must be one for each of {len(sizes)} sizes, got {len(costs)}")
    for name, numbers in (("sizes", sizes), ("costs", costs)):
        for number in numbers:
            check_positive(name, number)
    if len(set(sizes)) < 2:
        raise ValueError(f"sizes must hold at least two different numbers, got {list(sizes)}")
    return statistics.linear_regression(
        [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    ).slope


@dataclass(frozen=True)
class Machine:
    r"""Two speeds of a machine, which bound what any code can reach on it.

    .. math:: \text{balance} = \text{operations a second} / \text{bytes a second}

    Args:
        operations_per_second: Of a large product of matrices.
        bytes_per_second: Between memory and processor.

    Example:
        >>> machine = Machine(operations_per_second=100.0, bytes_per_second=10.0)
        >>> machine.balance, machine.roof(4.0)
        (10.0, 40.0)

    Source:
        Williams, Waterman and Patterson (2009), "The Roofline Model". Chapter 15.
    """

    operations_per_second: float
    bytes_per_second: float

    @property
    def balance(self) -> float:
        """Operations per byte where the roof bends; below it the memory sets the speed."""
        return self.operations_per_second / self.bytes_per_second

    def roof(self, operations_per_byte: float) -> float:
        """The most operations a second at an intensity, see :func:`~.counts.roofline`."""
        return roofline(operations_per_byte, self.operations_per_second, self.bytes_per_second)


def measure_machine(
    *, size: int = 1024, megabytes: int = 256, repeats: int = 9, dtype: torch.dtype = torch.float32
) -> Machine:
    r"""Measure the two speeds of this machine: a product of matrices, and a copy.

    .. math:: 2 n^3 / t_{\text{product}}, \qquad 2 \cdot \text{bytes} / t_{\text{copy}}

    A copy reads each byte and writes it, so it counts twice. The array must be larger than the
    processor's caches. A roof is what can be reached, so the shortest time of all rounds counts.

    Args:
        size: n, rows and columns of the matrices.
        megabytes: Millions of bytes in the array to copy.
        repeats: How often each is timed, after once to warm up.
        dtype: What the numbers are stored as.

    Returns:
        The speeds, with as many threads as PyTorch uses now.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If a number is below 1.

    Example:
        >>> measure_machine(size=8, megabytes=1, repeats=1).balance > 0
        True

    Source:
        McCalpin (1995), for the copy; Williams, Waterman and Patterson (2009). Chapter 15.
    """
    check_count("size", size, least=1)
    check_count("megabytes", megabytes, least=1)
    left, right, product = (torch.ones(size, size, dtype=dtype) for _ in range(3))
    source = torch.ones(megabytes * 10**6 // dtype.itemsize, dtype=dtype)
    target = torch.zeros_like(source)
    shortest = shortest_seconds(
        {
            "product": lambda: torch.mm(left, right, out=product),
            "copy": lambda: target.copy_(source),
        },
        repeats=repeats,
    )
    return Machine(
        linear_operations(size, size, size) / shortest["product"],
        2 * source.nbytes / shortest["copy"],
    )


def _memory(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[int, int]:
    """The most bytes that a call holds, and the bytes that it holds at its end."""
    if not callable(function):
        raise TypeError(f"function must be callable, got {type(function).__name__}")
    if torch._C._autograd._profiler_enabled():
        raise RuntimeError("memory must be measured outside profilers, got one that is running")
    with _quiet(), profile(profile_memory=True) as recorded:
        result = function(*args, **kwargs)
    del result
    assert recorded.kineto_results is not None
    pending = list(recorded.kineto_results.experimental_event_tree())
    changes = []
    while pending:
        event = pending.pop()
        pending.extend(event.children)
        if event.tag == _EventType.Allocation and event.extra_fields.device.type == "cpu":
            block = event.extra_fields
            changes.append((event.start_time_ns, block.ptr, block.alloc_size))
    held: dict[int, int] = {}  # bytes of each live block by address
    total = peak = 0
    for _, address, size in sorted(changes):
        # A block of an earlier profile may be freed in this one: it is not among those held.
        total += size if size > 0 else -held.pop(address, 0)
        if size > 0:
            held[address] = size
        peak = max(peak, total)
    return peak, total


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the profiler's own remarks from the standard error; all other lines pass, afterwards."""
    saved = os.dup(2)
    try:
        with tempfile.TemporaryFile() as caught:
            os.dup2(caught.fileno(), 2)
            try:
                yield
            finally:
                os.dup2(saved, 2)
                caught.seek(0)
                for line in caught:
                    if b"ActivityProfiler" not in line and b"Memory block of unknown" not in line:
                        os.write(saved, line)
    finally:
        os.close(saved)
