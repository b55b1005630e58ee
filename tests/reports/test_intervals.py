"""Intervals of the report: against published values and other software, and whether they cover what they claim."""

import math
import random

import pytest

from reports.intervals import mean_interval, median_interval, paired_difference, ratio_interval, t_quantile
from reports.win_rates import wilson_interval


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        # Wilson intervals of 19/41 and 14/41; correlation (14 x 22 - 41 / 2) / sqrt(19 x 22 x 14 x 27) = 0.7233
        ((14, 5, 0, 22), 0.011483, 0.226493),
        # 1 x 12 - 1 x 7 = 5 is positive, but below 21 / 2, so that the continuity correction leaves no correlation
        ((1, 1, 7, 12), -0.506920, -0.025559),
        # A negative correlation is not corrected: -54 / sqrt(6 x 10 x 9 x 7)
        ((0, 6, 9, 1), -0.571964, 0.267307),
    ],
)
def test_the_paired_interval_is_newcombes(counts, low, high):
    """Prevents a slip in the formula: method 10 by hand, with the Wilson limits that statsmodels gives."""
    assert paired_difference(*counts) == pytest.approx((low, high), abs=1e-6)


def test_the_paired_interval_turns_with_its_sides():
    """Prevents an interval that favours the model after: exchanging the two models turns the sign and nothing else."""
    low, high = paired_difference(20, 31, 7, 42)
    assert paired_difference(20, 7, 31, 42) == pytest.approx((-high, -low))
    assert low < 0.24 < high


def test_the_paired_interval_covers():
    """Prevents an interval that is too narrow: of 1,000 simulated runs about 95 % cover the true difference."""
    generator, covered = random.Random(0), 0
    for _ in range(1000):
        cells = [0, 0, 0, 0]
        for cell in generator.choices(range(4), (0.3, 0.2, 0.05, 0.45), k=60):
            cells[cell] += 1
        low, high = paired_difference(*cells)
        covered += low <= 0.15 <= high
    assert 930 <= covered <= 985


def test_nothing_changed_is_not_certainty():
    """Prevents "+0.0 to +0.0 points" when no prompt changed, which the textbook formula gives."""
    low, high = paired_difference(36, 0, 0, 97)
    assert low < 0 < high


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.706205), (2, 4.302653), (29, 2.045230), (132, 1.978099)])
def test_the_t_quantile(freedom, expected):
    """Prevents a slip in the quantile; values of scipy.stats.t.ppf(0.975, freedom)."""
    assert t_quantile(0.975, freedom) == pytest.approx(expected, abs=1e-5)


def test_a_mean_by_hand():
    """Prevents a division by n for the variance: of 1, 2, 3 it is 1, and the half width 4.3027 / sqrt(3)."""
    mean, interval = mean_interval([1, 2, 3])
    assert mean == 2 and interval == pytest.approx((2 - 2.484, 2 + 2.484), abs=1e-3)
    assert mean_interval([5.0]) == (5.0, None)


def test_a_ratio_is_of_the_sums():
    """Prevents a mean of ratios, in which a response of one token weighs as much as one of a hundred."""
    ratio, (low, high) = ratio_interval([1.0, 30.0], [1, 99])
    assert ratio == 0.31
    assert low < ratio < high
    assert ratio_interval([2.0, 4.0, 6.0], [1, 2, 3]) == (2.0, pytest.approx((2.0, 2.0)))


@pytest.mark.parametrize(
    ("count", "expected"),
    [(6, (0, 5)), (10, (1, 8)), (133, (54, 78)), (5, None), (1, None)],
)
def test_the_median_has_the_interval_of_its_order_statistics(count, expected):
    """Prevents ranks that are off by one; values of scipy.stats.quantile_test(range(count)).confidence_interval()."""
    values = list(range(count))
    random.Random(1).shuffle(values)
    assert median_interval(values) == ((count - 1) / 2, expected)


def test_many_values_do_not_overflow():
    """Prevents an overflow of the binomial coefficients on a large samples file."""
    _, (low, high) = median_interval(range(5000))
    assert low == pytest.approx(2500 - 1.96 * math.sqrt(5000) / 2, abs=2) and high == pytest.approx(4999 - low)


def test_wilson_is_the_one_of_the_win_rates():
    """Prevents two Wilson intervals in one report: 30 of 32 pairs."""
    assert wilson_interval(30 / 32, 32) == pytest.approx((0.7985, 0.9827), abs=1e-4)
