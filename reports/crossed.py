"""95 % intervals for scores of which every seed has one on every prompt: of their mean, and of two methods' difference.

The scores of a method are a table of seeds and prompts, score(seed, prompt) = mean + seed + prompt + rest, each part
independent. The variance of the mean of all of them is estimated as

    V = var(means of seeds) / seeds + var(means of prompts) / prompts

which counts the rest twice and so errs on the wide side (McCullagh 2000, Resampling and exchangeable arrays, Bernoulli
6, 285-301; Owen 2007, The pigeonhole bootstrap, Annals of Applied Statistics 1, 386-411). To take the rest off once has
no bias, but with two or three seeds it often leaves nothing of the seeds' part, and intervals that are too narrow.
The interval is the mean plus and minus sqrt(V) times Student's t with Satterthwaite's degrees of freedom (1946,
Biometrics Bulletin 2, 110-114). Two methods answer the same prompts, so of a difference the prompts' part is that of
their differences, and the seeds' parts add up.

Scores are wins, ties and losses, and near 0 % and 100 % the variance of a few of them says little: that of ten wins is
0. So made-up prompts are added before prompts are averaged: for a rate two that are won and two that are lost, for a
difference one that only the first wins and one that only the second wins. The first is the adjustment of Agresti and
Coull (1998, Approximate is better than "exact" for interval estimation of binomial proportions, The American
Statistician 52, 119-126); the second follows the idea of Bonett and Price (2012, Adjusted Wald confidence interval for
a difference of binomial proportions based on paired data, Journal of Educational and Behavioral Statistics 37,
479-488), who adjust the two discordant counts. Both papers have one answer a prompt and the normal quantile; seeds,
ties and Student's t are ours, and what they do is computed and simulated. The intervals are cut to what is possible,
and what is estimated is in them.

Coverage of the truth, by `python -m benchmarks.coverage` (benchmarks/coverage.json). With one seed, of all outcomes: a
rate 0.943 or more (10, 20, 50 and 133 prompts), a difference 0.935 or more (10, 20 and 50). Simulated in 1,040
settings, 1,000 times each, so that a figure is known to 0.01 or so, with 1 to 5 seeds, 10 to 133 prompts, rates of 0.5
to 0.99, up to half of the scores ties or none, and chances to win that have normal parts of seeds and prompts and are
cut to 0 and 1. A difference is covered in 0.94 or more, but with two seeds that vary by 8 or 15 points at rates of 0.9
or more in 0.92 and 0.91. A rate is covered in 0.94 or more where seeds do not vary or by a standard deviation of 3
points, but with two such seeds at rates of 0.9 or more in 0.92. With 8 points and two, three or five seeds it is 0.89,
0.94 and 0.94 at rates of 0.5 and 0.7, with 15 points 0.87, 0.92 and 0.94. Where rates are 0.9 or more and seeds vary by
so much, many seeds win everything, and two that do cannot know of others: 0.72, 0.86 and 0.94 with 8 points, 0.68, 0.78
and 0.88 with 15.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from reports.intervals import Interval, t_quantile

if TYPE_CHECKING:
    import numpy as np

Part = tuple[float, int]
"""A part of a mean's variance, and its degrees of freedom."""


def rate_interval(scores: np.ndarray) -> Interval | None:
    """Of the mean of scores (seeds, prompts) from 0 to 1; None for a single prompt."""
    if scores.shape[1] < 2:
        return None
    mean, prompts = _prompts(scores.mean(axis=0), (0, 0, 1, 1))
    low, high = _interval(mean, [prompts, *_seeds(scores)])
    return max(0.0, low), min(1.0, high)


def difference_interval(first: np.ndarray, second: np.ndarray) -> Interval | None:
    """Of the mean of a method's scores less that of another's on the same prompts; None for a single prompt."""
    if first.shape[1] < 2:
        return None
    mean, prompts = _prompts(first.mean(axis=0) - second.mean(axis=0), (-1, 1))
    low, high = _interval(mean, [prompts, *_seeds(first), *_seeds(second)])
    return max(-1.0, low), min(1.0, high)


def _prompts(means: np.ndarray, added: Sequence[float]) -> tuple[float, Part]:
    """The mean over prompts and those that are added, and the part of its variance."""
    import numpy as np

    values = np.concatenate([means, added])
    return float(values.mean()), (float(values.var()) / len(values), len(values) - 1)


def _seeds(scores: np.ndarray) -> list[Part]:
    """Nothing for a single seed, of which nobody knows what another would change."""
    seeds = len(scores)
    return [(float(scores.mean(axis=1).var(ddof=1)) / seeds, seeds - 1)] if seeds > 1 else []


def _interval(mean: float, parts: Sequence[Part]) -> Interval:
    total = sum(variance for variance, _ in parts)
    freedom = total**2 / sum(variance**2 / freedom for variance, freedom in parts)
    half = t_quantile(0.975, max(1, math.floor(freedom))) * math.sqrt(total)
    return mean - half, mean + half
