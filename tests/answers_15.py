"""Right and wrong answers for the exercises of chapter 15, as in ``test_exercises.CHECKS``."""

import math

import numpy as np

from attention_lib.exercises import cost


def seconds(kernels, peak, bandwidth):
    return float(sum(max(work / peak, moved / bandwidth) for work, moved in kernels))


def maximum_of_sums(kernels, peak, bandwidth):
    """As if one kernel could compute while another one loads."""
    work, moved = (sum(kernel[side] for kernel in kernels) for side in (0, 1))
    return max(work / peak, moved / bandwidth)


def no_overlap(kernels, peak, bandwidth):
    return float(sum(work / peak + moved / bandwidth for work, moved in kernels))


def operations_only(kernels, peak, bandwidth):
    return float(sum(work / peak for work, _ in kernels))


def bytes_only(kernels, peak, bandwidth):
    return float(sum(moved / bandwidth for _, moved in kernels))


def shorter_side(kernels, peak, bandwidth):
    return float(sum(min(work / peak, moved / bandwidth) for work, moved in kernels))


def exponent(sizes, costs):
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def through_the_origin(sizes, costs):
    x, y = np.log(sizes), np.log(costs)
    return float((x @ y) / (x @ x))


def half_logarithmic(sizes, costs):
    return float(np.polyfit(sizes, np.log(costs), 1)[0])


def axes_swapped(sizes, costs):
    return float(np.polyfit(np.log(costs), np.log(sizes), 1)[0])


def rounded(sizes, costs):
    return float(round(exponent(sizes, costs)))


def first_step(sizes, costs):
    return math.log(costs[1] / costs[0]) / math.log(sizes[1] / sizes[0])


def both_ends(sizes, costs):
    return math.log(costs[-1] / costs[0]) / math.log(sizes[-1] / sizes[0])


def mean_of_slopes(sizes, costs):
    return float(np.mean(np.diff(np.log(costs)) / np.diff(np.log(sizes))))


def shows_the_peak(meter):
    events = {(1, -1, 2, 3, -4): 5, (2, 2): 4, (3, -1): 3, (3, -1, 2, -4, 1): 4}
    return all(meter(list(given)) == peak for given, peak in events.items())


def one_rise(meter):
    """What comes after the first fall is never the peak."""
    return meter([1, 2, 3, -6, 1]) == 6


def never_falls(meter):
    return meter([1, 2, 3]) == 6


def peak_at_even_places(meter):
    return meter([1, -1, 2, 3, -4, 1]) == 5 and meter([2, 2]) == 4


def peak_at_an_odd_place(meter):
    return meter([3, -1, 2, -4, 1]) == 4


CHECKS = {
    "cost, paper": (
        cost.check_paper,
        (256e6, 24_704, 3.571),
        {
            "multiply-adds": ((128e6, 24_704, 3.571), "two operations"),
            "one product": ((128e6, 24_704, 3.571), "Two products"),
            "six widths": ((256e6, 6 * 4096, 3.571), "three matrices"),
            "projections only": ((256e6, 2 * 4096, 3.571), "three matrices"),
            "one byte a weight": ((256e6, 24_704, 50 / 7), "two bytes"),
            "four bytes a weight": ((256e6, 24_704, 50 / 28), "two bytes"),
        },
    ),
    "cost, seconds": (
        cost.check_seconds,
        seconds,
        {
            "the maximum of the sums": (maximum_of_sums, "one after the other"),
            "no overlap": (no_overlap, "meanwhile"),
            "operations only": (operations_only, "80 bytes"),
            "bytes only": (bytes_only, "600 operations"),
            "the shorter side": (shorter_side, "600 operations"),
        },
    ),
    "cost, exponent": (
        cost.check_exponent,
        exponent,
        {
            "a line through the origin": (through_the_origin, "factor"),
            "an exponential": (half_logarithmic, "cost of 2"),
            "axes swapped": (axes_swapped, "cost of 2"),
            "rounded": (rounded, "whole"),
            "two points only": (first_step, "all the points"),
            "both ends": (both_ends, "all the points"),
            "the mean of the slopes": (mean_of_slopes, "all the points"),
        },
    ),
    "cost, meters": (
        cost.check_meters,
        shows_the_peak,
        {
            "one rise": (one_rise, "after something was freed"),
            "nothing is freed": (never_falls, "used again"),
            "a peak that lasts": (peak_at_even_places, "one event"),
            "one place only": (peak_at_an_odd_place, "even place"),
            "always content": (lambda meter: True, "used again"),
            "never content": (lambda meter: False, "running sum"),
        },
    ),
}
