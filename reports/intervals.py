"""95 % intervals of what the report shows besides win rates: differences, means, ratios and medians over prompts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

from reports.win_rates import wilson_interval

Interval = tuple[float, float]


def paired_difference(both: int, only_first: int, only_second: int, neither: int) -> Interval:
    """95 % interval of p_first - p_second, two proportions of the same prompts; in [-1, 1].

    Newcombe, R. G. (1998), Improved confidence intervals for the difference between binomial proportions based on
    paired data, Statistics in Medicine 17, 2635-2650, method 10: the two Wilson intervals, joined by the
    continuity-corrected correlation of the two answers. It has a width also where no prompt changed.
    """
    count = both + only_first + only_second + neither
    first, second = (both + only_first) / count, (both + only_second) / count
    (first_low, first_high), (second_low, second_high) = (wilson_interval(p, count) for p in (first, second))
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    excess = both * neither - only_first * only_second
    if excess > 0:
        excess = max(excess - count / 2, 0)
    correlation = excess / math.sqrt(margins) if margins else 0.0

    def joined(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * correlation * one * other + other * other))

    low = first - second - joined(first - first_low, second_high - second)
    high = first - second + joined(first_high - first, second - second_low)
    return max(-1.0, low), min(1.0, high)


@functools.cache
def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t for `probability` > 0.5, by Simpson's rule and bisection, to about 1e-6."""
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)

    def density(t: float) -> float:
        return math.exp(log_scale - (freedom + 1) / 2 * math.log1p(t * t / freedom))

    low, high = 0.0, 100.0
    for _ in range(40):
        middle = (low + high) / 2
        below = 0.5 + _simpson(density, middle)
        low, high = (middle, high) if below < probability else (low, middle)
    return (low + high) / 2


def _simpson(function: Callable[[float], float], end: float, pieces: int = 2000) -> float:
    width = end / pieces
    inner = sum((4 if index % 2 else 2) * function(index * width) for index in range(1, pieces))
    return width / 3 * (function(0.0) + inner + function(end))


def mean_interval(values: Sequence[float]) -> tuple[float, Interval | None]:
    """The mean and its 95 % interval by Student's t; no interval for a single value."""
    return ratio_interval(values, [1.0] * len(values))


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float]) -> tuple[float, Interval | None]:
    """sum(numerators) / sum(denominators) over independent units, and its 95 % interval.

    By linearization (Cochran 1977, Sampling Techniques, section 6.4) with Student's t; no interval for a single unit.
    """
    count, total = len(numerators), sum(denominators)
    ratio = sum(numerators) / total
    if count < 2:
        return ratio, None
    rest = sum((a - ratio * b) ** 2 for a, b in zip(numerators, denominators, strict=True))
    half = t_quantile(0.975, count - 1) * math.sqrt(rest * count / (count - 1)) / total
    return ratio, (ratio - half, ratio + half)


def median_interval(values: Sequence[float]) -> tuple[float, Interval | None]:
    """The median and its 95 % interval between two order statistics, which assumes nothing of the distribution.

    Fewer than six values have no such interval.
    """
    ordered, count = sorted(values), len(values)
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    rank, below = 0, 0.0  # below: the chance that fewer than `rank` + 1 of the values lie under the true median
    while (below := below + math.comb(count, rank) / 2**count) <= 0.025:
        rank += 1
    return middle, (ordered[rank - 1], ordered[count - rank]) if rank else None
