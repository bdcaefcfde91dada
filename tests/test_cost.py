"""Operations and bytes on paper, against PyTorch's counters, and the meters against known sizes."""

import math
import os
import time
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks
from torch.autograd.profiler import profile
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from attention_lib import (
    EncoderBlock,
    FeedForward,
    MultiHeadAttention,
    PreNorm,
    attend,
    attend_explicit,
)
from attention_lib.blocks import GatedFeedForward
from attention_lib.efficient import cost
from attention_lib.efficient.cost import (
    Machine,
    fit_exponent,
    held_bytes,
    measure_machine,
    median_seconds,
    peak_bytes,
    shortest_seconds,
)
from attention_lib.efficient.counts import (
    attention_bytes,
    attention_operations,
    block_operations,
    intensity,
    linear_bytes,
    linear_operations,
    roofline,
)

MEGA = 1000, 1000  # of float32: 4,000,000 bytes
SIZE = 4_000_000


# --- memory -------------------------------------------------------------------------------------


def test_peak_of_one_block():
    assert peak_bytes(torch.zeros, *MEGA) == SIZE
    assert peak_bytes(torch.zeros, *MEGA, dtype=torch.float64) == 2 * SIZE
    assert peak_bytes(lambda: None) == 0


def test_freed_memory_can_be_used_again():
    def five_times():
        for _ in range(5):
            torch.zeros(*MEGA)

    assert peak_bytes(five_times) == SIZE


def test_two_blocks_at_one_time():
    def grow_and_shrink():
        first = torch.zeros(*MEGA)
        both = torch.zeros(*MEGA), first
        del first, both
        return torch.zeros(1000)

    assert peak_bytes(grow_and_shrink) == 2 * SIZE
    assert held_bytes(grow_and_shrink) == 4000


def test_the_result_counts_to_the_end():
    def result_and_scratch():
        result = torch.zeros(*MEGA)
        torch.zeros(500, 1000)
        return result

    assert peak_bytes(result_and_scratch) == SIZE + SIZE // 2
    assert held_bytes(result_and_scratch) == SIZE


def test_a_view_costs_nothing():
    x = torch.zeros(*MEGA)
    assert peak_bytes(lambda: x.T[:3].view(3, 1000)) == 0
    assert held_bytes(x.t) == 0


def test_resize_holds_old_and_new():
    assert peak_bytes(lambda: torch.empty(1000).resize_(3000)) == 4000 + 12_000


def test_backward_of_a_product():
    left, right = (torch.ones(*MEGA, requires_grad=True) for _ in range(2))
    upstream = torch.ones(*MEGA)

    def forward_and_backward():
        (left @ right).backward(upstream)

    # The product is freed before the second gradient appears, or after: two or three blocks.
    assert 2 * SIZE <= peak_bytes(forward_and_backward) <= 3 * SIZE


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputing_holds_less_than_saving(reentrant):
    x = torch.ones(*MEGA, requires_grad=True)

    def layers(x):
        for _ in range(6):
            x = x.sin()
        return x

    def recompute(x):
        for _ in range(3):
            x = checkpoint(lambda x: x.sin().sin(), x, use_reentrant=reentrant)
        return x

    plain = peak_bytes(lambda: torch.autograd.grad(layers(x).sum(), x))
    assert plain >= 6 * SIZE
    x.grad = None
    assert SIZE < peak_bytes(lambda: recompute(x).sum().backward()) < plain


def test_the_scratch_of_a_fused_kernel_counts():
    query = torch.ones(1, 1, 1024, 64)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        peak = peak_bytes(attend, query, query, query)
    assert peak > 4 * 1024 * (64 + 1)  # the output, and a number for each query
    assert peak < 4 * 1024 * 1024  # less than the scores


def test_memory_from_before_is_neither_added_nor_subtracted():
    store = [torch.zeros(*MEGA)]

    def exchange():
        store.clear()
        store.append(torch.zeros(500, 1000))

    assert peak_bytes(exchange) == SIZE // 2
    # The new block was allocated under the last profile, and this one sees how it is freed.
    assert peak_bytes(exchange) == SIZE // 2
    assert peak_bytes(store.clear) == 0


def test_a_block_of_an_earlier_profile_hides_nothing():
    store = [torch.zeros(1)]
    held_bytes(lambda: store.append(torch.zeros(*MEGA)))

    def free_then_allocate():
        store.clear()
        return torch.zeros(*MEGA)

    assert held_bytes(free_then_allocate) == SIZE


def test_held_bytes_are_result_and_what_autograd_saved(generator):
    inputs = [torch.randn(1, 1, 37, 11, generator=generator).requires_grad_() for _ in range(3)]
    before = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in before:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = attend_explicit(*inputs)
    found = held_bytes(attend_explicit, *inputs)
    expected = sum(saved.values()) + output.nbytes
    # Scalars such as the scale may be kept as tensors of one number.
    assert expected <= found <= expected + 64
    with torch.no_grad():
        assert held_bytes(attend_explicit, *inputs) == output.nbytes


def test_arguments_and_keywords_are_passed_on():
    assert held_bytes(torch.full, (7, 11), 2.0, dtype=torch.float64) == 7 * 11 * 8


def test_errors_pass_and_leave_a_working_meter():
    def fail():
        raise ZeroDivisionError("as planned")

    for meter in (peak_bytes, held_bytes):
        with pytest.raises(ZeroDivisionError, match="as planned"):
            meter(fail)
        assert meter(torch.zeros, *MEGA) == SIZE


def test_meters_say_what_they_cannot_do(no_shape_hook):
    for meter in (peak_bytes, held_bytes):
        with pytest.raises(TypeError, match=r"^function must be callable, got int$"):
            meter(3)
        with pytest.raises(
            RuntimeError,
            match=r"^memory must be measured outside profilers, got one that is running$",
        ):
            meter(peak_bytes, torch.zeros, 3)
        with profile(), pytest.raises(RuntimeError, match="outside profilers"):
            meter(torch.zeros, 3)
    assert peak_bytes(torch.zeros, *MEGA) == SIZE


def test_nothing_of_the_profiler_on_standard_error(capfd):
    old = [torch.zeros(1) for _ in range(1001)]
    peak_bytes(old.clear)  # PyTorch warns of every thousandth block that it does not know
    assert capfd.readouterr().err == ""


def test_what_the_function_writes_on_standard_error_passes(capfd):
    peak_bytes(lambda: os.write(2, b"first\nsecond\n"))
    assert capfd.readouterr().err == "first\nsecond\n"
    os.write(2, b"later\n")
    assert capfd.readouterr().err == "later\n"


def test_no_file_stays_open():
    peak_bytes(torch.zeros, 3)
    lowest = os.dup(2)
    os.close(lowest)
    for _ in range(3):
        peak_bytes(torch.zeros, 3)
    again = os.dup(2)
    os.close(again)
    assert again == lowest


# --- time ---------------------------------------------------------------------------------------


def clock(monkeypatch, durations):
    """Let each call take the next of the given durations."""
    now = [0.0]
    waiting = iter(durations)

    def work():
        now[0] += next(waiting)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return work


def test_the_median_of_all_rounds_but_the_first(monkeypatch):
    work = clock(monkeypatch, [100, 1, 7, 2])
    assert median_seconds({"a": work}, repeats=3) == {"a": 2}


def test_the_shortest_of_all_rounds_but_the_first(monkeypatch):
    work = clock(monkeypatch, [1, 9, 3, 7])
    assert shortest_seconds({"a": work}, repeats=3) == {"a": 3}


@pytest.mark.parametrize("timer", [median_seconds, shortest_seconds])
def test_rounds_are_interleaved(timer):
    order = []
    timer({"a": partial(order.append, "a"), "b": partial(order.append, "b")}, repeats=2)
    assert order == ["a", "b"] * 3


@pytest.mark.parametrize("timer", [median_seconds, shortest_seconds])
def test_five_rounds_by_default(timer):
    calls = []
    assert set(timer({"a": lambda: calls.append(0)})) == {"a"}
    assert len(calls) == 6
    assert timer({}) == {}


def test_seconds_are_seconds():
    assert 0.02 <= median_seconds({"sleep": lambda: time.sleep(0.02)}, repeats=1)["sleep"] < 0.5


@pytest.mark.parametrize(
    ("repeats", "error", "message"),
    [
        (0, ValueError, r"^repeats must be at least 1, got 0$"),
        (1.5, TypeError, r"^repeats must be an integer, got float$"),
    ],
)
def test_timing_errors(no_shape_hook, repeats, error, message):
    for timer in (median_seconds, shortest_seconds):
        with pytest.raises(error, match=message):
            timer({}, repeats=repeats)


# --- the exponent -------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 0.5, 1.0, 2.0, 3.7])
def test_exponent_of_a_power(exponent):
    sizes = [3, 5, 11, 17]
    assert fit_exponent(sizes, [7 * n**exponent for n in sizes]) == pytest.approx(exponent)


def test_exponent_on_paper():
    # Slopes 2 and 0 between the points, equal distances: least squares gives their mean.
    assert fit_exponent([1, 2, 4], [1, 4, 4]) == pytest.approx(1.0)
    assert fit_exponent([1, math.e], [math.e, math.e**3]) == pytest.approx(2.0)


@given(
    st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**9)), min_size=2, max_size=9),
    st.sampled_from([0.001, 3.0, 1e6]),
)
def test_units_do_not_change_the_exponent(points, unit):
    sizes, costs = map(list, zip(*points, strict=True))
    if len(set(sizes)) < 2:
        return
    slope = fit_exponent(sizes, costs)
    assert fit_exponent(sizes, [unit * c for c in costs]) == pytest.approx(slope, abs=1e-6)
    assert fit_exponent([unit * n for n in sizes], costs) == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize(
    ("sizes", "costs", "message"),
    [
        ([1, 2], [1], r"^costs must be one for each of 2 sizes, got 1$"),
        ([2], [1], r"^sizes must hold at least two different numbers, got \[2\]$"),
        ([], [], r"^sizes must hold at least two different numbers, got \[\]$"),
        ([3, 3], [1, 2], r"^sizes must hold at least two different numbers, got \[3, 3\]$"),
        (
            [0, 2],
            [1, 2],
            r"^sizes must be a finite number above 0, in the range of float32, got 0$",
        ),
        (
            [1, 2],
            [1, -2],
            r"^costs must be a finite number above 0, in the range of float32, got -2$",
        ),
        (
            [1, 2],
            [1, math.inf],
            r"^costs must be a finite number above 0, in the range of float32, got inf$",
        ),
    ],
)
@pytest.mark.hostile
def test_fit_exponent_errors(no_shape_hook, sizes, costs, message):
    with pytest.raises(ValueError, match=message):
        fit_exponent(sizes, costs)


# --- operations ---------------------------------------------------------------------------------


def counted(function):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def test_operations_on_paper():
    assert linear_operations(3, 5, 7) == 210
    assert attention_operations(2, 3, 5) == 2 * 2 * 3 * 5 * 2 == 120
    assert attention_operations(2, 3, 5, value_width=7) == 2 * 2 * 3 * (5 + 7)
    assert attention_operations(2, 3, 5, heads=11) == 11 * 120
    assert attention_operations(2, 3, 5, value_width=0) == 60


@pytest.mark.oracle
@given(st.integers(1, 7), st.integers(1, 11), st.integers(1, 5), st.integers(1, 13))
def test_attention_as_pytorch_counts_it(queries, keys, width, value_width):
    query, key, value = (
        torch.ones(2, 3, rows, columns)
        for rows, columns in ((queries, width), (keys, width), (keys, value_width))
    )
    paper = attention_operations(queries, keys, width, heads=6, value_width=value_width)
    assert counted(partial(attend_explicit, query, key, value)) == paper


@pytest.mark.oracle
@pytest.mark.parametrize("kv_heads", [1, 5])
@pytest.mark.parametrize(("network", "matrices"), [(FeedForward, 2), (GatedFeedForward, 3)])
def test_block_as_pytorch_counts_it(kv_heads, network, matrices):
    norm = partial(PreNorm, 35)
    block = EncoderBlock(MultiHeadAttention(35, 5, kv_heads=kv_heads), network(35, 23), norm)
    found = counted(partial(block, torch.ones(1, 13, 35)))
    parts = block_operations(13, 35, 23, kv_width=7 * kv_heads, matrices=matrices)
    assert found == sum(parts.values())


def test_block_parts_on_paper():
    assert block_operations(3, 5, 7) == {
        "projections": 2 * 3 * 5 * 20,
        "attention": 2 * 3 * 3 * 10,
        "feed-forward": 2 * 2 * 3 * 5 * 7,
    }
    assert block_operations(1, 5, 7, past=10, kv_width=2, matrices=3) == {
        "projections": 2 * 5 * (10 + 4),
        "attention": 2 * 11 * 10,
        "feed-forward": 3 * 2 * 5 * 7,
    }


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_a_text_in_two_pieces_saves_the_upper_corner(first, second, width):
    whole = block_operations(first + second, width, 3)
    pieces = [block_operations(first, width, 3), block_operations(second, width, 3, past=first)]
    for part in ("projections", "feed-forward"):
        assert whole[part] == sum(piece[part] for piece in pieces)
    corner = attention_operations(first, second, width)  # the first never meets the second
    assert whole["attention"] == sum(piece["attention"] for piece in pieces) + corner


# --- bytes, intensity and the roof ----------------------------------------------------------------


def test_bytes_on_paper():
    assert linear_bytes(3, 5, 7) == 4 * (15 + 35 + 21)
    assert linear_bytes(3, 5, 7, dtype=torch.bfloat16) == 2 * (15 + 35 + 21)
    assert attention_bytes(2, 3, 5) == 4 * (2 * 10 + 2 * 15 + 4 * 6)
    assert attention_bytes(2, 3, 5, score_passes=0) == 4 * (2 * 10 + 2 * 15)
    assert attention_bytes(2, 3, 5, score_passes=7) == 4 * (2 * 10 + 2 * 15 + 7 * 6)
    assert attention_bytes(2, 3, 5, heads=7, dtype=torch.float64) == 7 * 8 * (50 + 24)


def test_bytes_are_those_of_the_tensors():
    x, weight = torch.ones(3, 5), torch.ones(5, 7)
    assert linear_bytes(3, 5, 7) == x.nbytes + weight.nbytes + (x @ weight).nbytes
    query, key = torch.ones(11, 2, 5), torch.ones(11, 3, 5)
    moved = query.nbytes + 2 * key.nbytes + attend(query, key, key).nbytes
    assert attention_bytes(2, 3, 5, heads=11, score_passes=0) == moved


def test_tiles_of_queries_read_the_keys_again():
    whole = attention_bytes(12, 5, 7, score_passes=0)
    tiles = 3 * attention_bytes(4, 5, 7, score_passes=0)
    assert tiles == whole + 2 * (5 * 7 * 2) * 4


def test_intensity_and_roof_on_paper():
    assert intensity(600, 40) == 15
    assert roofline(2, 100, 20) == 40
    assert roofline(5, 100, 20) == 100
    assert roofline(50, 100, 20) == 100
    machine = Machine(100, 20)
    assert machine.balance == 5
    assert [machine.roof(i) for i in (0.5, 5, 9)] == [10, 100, 100]


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
@pytest.mark.hostile
def test_what_cannot_be_divided_is_refused(no_shape_hook, value):
    rule = "must be a finite number above 0, in the range of float32, got"
    for function, good in ((intensity, [1, 1]), (roofline, [1, 1, 1])):
        names = (
            ["operations", "moved"]
            if function is intensity
            else [
                "operations_per_byte",
                "peak",
                "bandwidth",
            ]
        )
        for place, name in enumerate(names):
            given_values = [*good]
            given_values[place] = value
            with pytest.raises(ValueError, match=f"^{name} {rule} {value}$"):
                function(*given_values)
    with pytest.raises(TypeError, match=r"^moved must be a number, got str$"):
        intensity(1, "2")


SIZES = {
    linear_operations: ("tokens", "inputs", "outputs"),
    linear_bytes: ("tokens", "inputs", "outputs"),
    attention_operations: ("queries", "keys", "head_width", "heads", "value_width"),
    attention_bytes: ("queries", "keys", "head_width", "heads", "score_passes"),
    block_operations: ("length", "width", "hidden", "past", "kv_width", "matrices"),
}


@pytest.mark.parametrize(
    ("function", "name"), [(function, name) for function, names in SIZES.items() for name in names]
)
@pytest.mark.hostile
def test_sizes_may_be_zero_but_not_negative(no_shape_hook, function, name):
    good = dict.fromkeys(SIZES[function], 2)
    result = function(**{**good, name: 0})
    assert (sum(result.values()) if isinstance(result, dict) else result) >= 0
    with pytest.raises(ValueError, match=f"^{name} must be at least 0, got -1$"):
        function(**{**good, name: -1})
    with pytest.raises(TypeError, match=f"^{name} must be an integer, got float$"):
        function(**{**good, name: 2.0})


# --- the machine --------------------------------------------------------------------------------


def test_speeds_come_from_the_shortest_rounds(monkeypatch):
    asked = []

    def rounds(functions, repeats):
        for function in functions.values():
            function()
        asked.append((list(functions), repeats))
        return {"product": [4.0, 2.0, 8.0], "copy": [0.5, 1.0]}

    monkeypatch.setattr(cost, "_rounds", rounds)
    machine = measure_machine(size=10, megabytes=3, repeats=7)
    assert machine == Machine(2 * 10**3 / 2.0, 2 * 3_000_000 / 0.5)
    assert measure_machine(size=10, megabytes=3, dtype=torch.float64) == machine
    assert asked == [(["product", "copy"], 7), (["product", "copy"], 9)]


def test_by_default_the_array_is_larger_than_caches(monkeypatch):
    monkeypatch.setattr(cost, "_rounds", lambda functions, repeats: {"product": [1], "copy": [1]})
    assert measure_machine() == Machine(2 * 1024**3, 2 * 256_000_000)


def test_a_real_machine_has_two_speeds():
    machine = measure_machine(size=128, megabytes=8, repeats=1)
    assert machine.operations_per_second > 1e7
    assert machine.bytes_per_second > 1e7


@pytest.mark.parametrize("name", ["size", "megabytes", "repeats"])
@pytest.mark.hostile
def test_measure_machine_errors(no_shape_hook, name):
    sizes = {"size": 8, "megabytes": 1, "repeats": 1}
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, got 0$"):
        measure_machine(**{**sizes, name: 0})
    with pytest.raises(TypeError, match=f"^{name} must be an integer, got str$"):
        measure_machine(**{**sizes, name: "4"})
