"""Figures with their 95 % intervals, of many samples. The unit that varies is the sample, or where prompts repeat, the
prompt: completions of one prompt are not independent.

How each is made: means and ratios by the percentile bootstrap over units (Efron 1979, The Annals of Statistics 7, 1-26;
1,000 resamples with a seed of their own); shares by Wilson's score interval; the expected maximum by its projection.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

RESAMPLES = 1000
_CHUNK = 2_000_000  # numbers of resampled weights in memory at once
Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Estimate:
    """A figure and the ends of its 95 % interval, which are None where a single unit (or none) gives no interval.

    Attributes:
        count: samples that it was made of.
    """

    mean: float
    low: float | None
    high: float | None
    count: int

    def as_json(self) -> dict[str, Any]:
        """{mean, low, high, n}, rounded to 8 digits."""

        def short(value: float | None) -> float | None:
            return None if value is None else float(f"{value:.8g}")

        return {"mean": short(self.mean), "low": short(self.low), "high": short(self.high), "n": self.count}


def _numbered(units: Sequence[Any] | None, count: int) -> np.ndarray:
    """The units as numbers from 0 on (count,); None: each sample is one."""
    if units is None:
        return np.arange(count)
    if len(units) != count:
        raise ValueError(f"{len(units)} units for {count} samples: each sample has one.")
    places = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    return np.array([places[unit] for unit in units], dtype=np.int64)


def _resamples(units: np.ndarray) -> Iterator[np.ndarray]:
    """How often each sample (n,) is in a resample of units, in chunks (b, n): RESAMPLES rows in all."""
    count = int(units.max()) + 1
    generator = np.random.default_rng(0)
    step = max(1, min(RESAMPLES, _CHUNK // max(count, len(units))))
    for start in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - start)
        drawn = generator.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        yield weights[:, units]


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def ratio_estimate(
    numerators: Sequence[float], denominators: Sequence[float], units: Sequence[Any] | None = None
) -> Estimate:
    """sum(numerators) / sum(denominators) over samples, by the bootstrap over units.

    Raises:
        ValueError: the denominators sum to 0.
    """
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if not below.sum() > 0:
        raise ValueError("there is nothing to divide by: no sample has any of what the ratio counts.")
    numbers = _numbered(units, len(above))
    ratio = float(above.sum() / below.sum())
    if numbers.max() == 0:
        return Estimate(ratio, None, None, len(above))
    found = []
    for weights in _resamples(numbers):
        totals = weights @ below
        found.append((weights @ above)[totals > 0] / totals[totals > 0])
    return Estimate(ratio, *_percentiles(np.concatenate(found)), len(above))


def mean_estimate(values: Sequence[float], units: Sequence[Any] | None = None) -> Estimate:
    """The mean over samples, by the bootstrap over units; ValueError without any."""
    return ratio_estimate(values, np.ones(len(values)), units)


def expected_maximum_estimate(values: Sequence[float], size: int, units: Sequence[Any] | None = None) -> Estimate:
    """The expected maximum of `size` samples drawn without replacement from these, exactly: unbiased for that of `size`
    independent samples where these are such, a little low where units have several.

    The mean over all subsets of that size (a U-statistic; Hoeffding 1948, The Annals of Mathematical Statistics 19,
    293-325): of the sorted values x_1 <= ... <= x_n, the i-th is the maximum of C(i - 1, size - 1) of the C(n, size)
    subsets. The interval is by its projection: `size` times each sample's part in it, summed over units, whose variance
    is a mean's. Since few samples decide the maximum, the quantile is Student's for n / size - 1 degrees of freedom, n
    divided by the design effect as in `share_estimate`.

    Raises:
        ValueError: fewer values than `size`.
    """
    count = len(values)
    if count < size:
        raise ValueError(f"the expected maximum of {size} needs {size} samples, and there are {count}.")
    order = np.argsort(np.asarray(values, dtype=np.float64), kind="stable")
    ordered = np.asarray(values, dtype=np.float64)[order]
    mean = float(np.diff(_all_among_first(count, size), prepend=0.0) @ ordered)
    numbers = _numbered(units, count)
    groups = int(numbers.max()) + 1
    if min(count // size, groups) < 2:
        return Estimate(mean, None, None, count)
    others = _all_among_first(count, size - 1)
    above = np.diff(others, prepend=0.0) * ordered
    with_sample = ordered * others + above.sum() - above.cumsum()  # the expected maximum of a subset that has it
    parts = size * (with_sample - with_sample.mean()) / count
    of_samples, of_units = (
        (some**2).sum() * len(some) / (len(some) - 1) for some in (parts, np.bincount(numbers[order], weights=parts))
    )
    alike = max(1.0, of_units / of_samples) if of_samples > 0 else 1.0
    freedom = max(1, min(int(count / alike) // size, groups) - 1)
    half = student_quantile(freedom) * math.sqrt(of_units)
    return Estimate(mean, mean - half, mean + half, count)


def _all_among_first(count: int, size: int) -> np.ndarray:
    """For i = 1 ... count the share of the subsets of that size among the first i: C(i, size) / C(count, size)."""
    upto, share = np.arange(1, count + 1), np.ones(count)
    for taken in range(size):
        share *= np.maximum(upto - taken, 0) / (count - taken)
    return share


def student_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: exact for 1 and 2, 0.024 low for 3, else to 0.01.

    By the expansion 26.7.5 of Abramowitz and Stegun.
    """
    if freedom <= 2:
        return {1: 12.7062, 2: 4.30265}[freedom]
    z = Z95
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def share_estimate(flags: Sequence[bool], units: Sequence[Any] | None = None) -> Estimate:
    """The share of samples of which something holds, with Wilson's score interval (1927, JASA 22, 209-212).

    It has a width also at 0 and 1. Where units have several samples, their number is divided by the design effect: how
    much the variance over units is above that of independent samples (Korn and Graubard 1998, Survey Methodology 24,
    193-201). ValueError without any sample.
    """
    values = np.asarray(flags, dtype=np.float64)
    if not len(values):
        raise ValueError("a share needs at least one sample.")
    share, count = float(values.mean()), float(len(values))
    numbers = _numbered(units, len(values))
    groups = int(numbers.max()) + 1
    if 1 < groups < count and 0 < share < 1:
        excess = np.bincount(numbers, weights=values - share)
        variance = float((excess**2).sum()) * groups / (groups - 1) / count**2
        count /= max(1.0, variance / (share * (1 - share) / count))
    elif groups < count:
        count = float(groups)
    scale = 1 + Z95**2 / count
    centre = (share + Z95**2 / (2 * count)) / scale
    half = Z95 / scale * math.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half), len(values))
