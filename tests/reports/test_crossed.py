"""Intervals over prompts and seeds: by hand, at their limits, and whether they cover what they claim."""

import numpy as np
import pytest

from reports.crossed import difference_interval, rate_interval

SECOND = np.array([[1, 0, 0.75, 0.5], [1, 0, 0.25, 0.5]])
FIRST = np.array([[1, 1, 1, 0.5], [1, 1, 0.5, 1]])


def test_a_rate_by_hand():
    """Prevents a variance that forgets the seeds or the prompts that are added.

    Means of the prompts 1, 0, 0.5, 0.5, and 1, 1, 0, 0 added: their mean 0.5, their variance 0.1875, by 8 prompts
    0.0234375 with 7 degrees of freedom. Means of the seeds 0.5625, 0.4375: 0.0078125 / 2 = 0.00390625 with 1. Together
    0.02734375 with 0.02734375^2 / (0.0234375^2 / 7 + 0.00390625^2) = 7.98, so 7: t = 2.364624, the half width 0.391013.
    """
    assert rate_interval(SECOND) == pytest.approx((0.5 - 0.391013, 0.5 + 0.391013), abs=1e-5)


def test_a_difference_by_hand():
    """Prevents seeds of one method that are left out, and prompts that are taken for different ones.

    Differences of the prompts 0, 1, 0.25, 0.25, and -1, 1 added: mean 0.25, variance 0.458333, by 6 prompts 0.0763889
    with 5 degrees of freedom. Seeds: 0 and 0.00390625 with 1 each. Together 0.0802951 with 5.45, so 5: t = 2.570582.
    """
    half = 2.570582 * 0.0802951**0.5
    assert difference_interval(FIRST, SECOND) == pytest.approx((0.25 - half, 0.25 + half), abs=1e-5)
    low, high = difference_interval(SECOND, FIRST)
    assert (low, high) == pytest.approx((-0.25 - half, -0.25 + half), abs=1e-5)


@pytest.mark.parametrize("prompts", [2, 10, 133])
@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("score", [0.0, 0.5, 1.0])
def test_scores_that_are_all_equal_are_not_certain(score: float, seeds: int, prompts: int):
    """Prevents 100.0 to 100.0 %, and what is below 0 % or above 100 %: ten wins of ten say 65 % to 100 %."""
    table = np.full((seeds, prompts), score)
    low, high = rate_interval(table)
    assert 0 <= low <= score <= high <= 1 and high - low > 1 / prompts
    low, high = difference_interval(table, np.zeros_like(table))
    assert -1 <= low <= score <= high <= 1 and high - low > 1 / prompts


def test_one_prompt_has_no_interval():
    """Prevents three seeds on one prompt that pass for three prompts."""
    assert rate_interval(np.ones((3, 1))) is None
    assert difference_interval(np.ones((3, 1)), np.zeros((3, 1))) is None


@pytest.mark.parametrize(
    ("seeds", "prompts", "spread", "rates", "ties"),
    [
        (1, 10, 0.0, (0.95, 0.95), 0.0),
        (1, 60, 0.0, (0.7, 0.5), 0.5),
        (2, 133, 0.0, (0.5, 0.5), 0.0),
        (2, 20, 0.08, (0.9, 0.8), 0.0),
        (3, 20, 0.0, (0.99, 0.99), 0.0),
        (3, 133, 0.05, (0.7, 0.5), 0.0),
        (3, 60, 0.03, (0.9, 0.8), 0.5),
        (5, 60, 0.08, (0.7, 0.5), 0.0),
    ],
)
def test_the_intervals_cover_what_they_say(
    seeds: int, prompts: int, spread: float, rates: tuple[float, float], ties: float
):
    """Prevents intervals that take few wins or few seeds for certain: of 400 experiments at least 92 % hold the truth.

    `spread` is the standard deviation of seeds; prompts of the same rate are hard and easy ones by 0.1, as long as all
    chances stay from 0 to 1.
    """
    generator = np.random.default_rng(0)
    hard = min(0.1, 1 - max(rates))

    def table(rate: float, of_prompts: np.ndarray) -> np.ndarray:
        chance = rate + of_prompts + generator.choice((-1, 1), (seeds, 1)) * min(spread, 1 - rate - hard)
        scores = (generator.random((seeds, prompts)) < chance).astype(float)
        return np.where(generator.random(scores.shape) < ties, 0.5, scores)

    held = apart = 0
    for _ in range(400):
        of_prompts = generator.choice((-hard, hard), prompts)
        first, second = (table(rate, of_prompts) for rate in rates)
        low, high = rate_interval(first)
        held += low <= ties / 2 + (1 - ties) * rates[0] <= high
        low, high = difference_interval(first, second)
        apart += low <= (1 - ties) * (rates[0] - rates[1]) <= high
    assert held / 400 >= 0.92 and apart / 400 >= 0.92
