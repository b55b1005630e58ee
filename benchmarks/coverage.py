"""How often the intervals of a ranking (reports/crossed.py) hold the truth: simulated, and with one seed computed. It
takes three minutes on one core.

    python -m benchmarks.coverage [--repetitions 1000] [--output benchmarks/coverage.json]

Simulated: each prompt and each seed of a method has a chance to win, rate + seed + prompt, cut to 0 and 1; the parts of
seeds and prompts are normal, prompts are as hard for both methods, and the second method's rate is lower by 0 or 10
points. A chance c becomes a win, or with `ties` = 0.5 also a tie: one of every two scores that could be one, so that
half of all scores are ties at c = 0.5. The truth is the mean of the cut chance, in closed form.

Computed: one seed, no parts, no ties; every possible outcome with its probability.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed import commit, machine
from reports.crossed import difference_interval, rate_interval
from scorers.progress import progress

GRID = {
    "seeds": (1, 2, 3, 5),
    "prompts": (10, 20, 50, 133),
    "rate": (0.5, 0.7, 0.9, 0.95, 0.99),
    "ties": (0.0, 0.5),
    "of_prompts": (0.0, 0.3),
    "of_seeds": (0.0, 0.03, 0.08, 0.15),
}
"""Standard deviations of the parts of prompts and of seeds are in the unit of the rate. One seed has no part."""
BEHIND = (0.0, 0.1)
"""By how much the second method's rate is lower; half of the settings have each, whatever one looks at."""
EXACT_PROMPTS = (10, 20, 50, 133)
EXACT_PAIRS = (10, 20, 50)
"""Numbers of prompts for which all outcomes of one seed are gone through; of a difference they grow with the square."""


def settings() -> list[dict[str, Any]]:
    """What is simulated; a single seed has no part of seeds, since nothing in the data tells of one."""
    made = []
    for places in itertools.product(*(range(len(values)) for values in GRID.values())):
        one = {key: values[place] for place, (key, values) in zip(places, GRID.items(), strict=True)}
        if one["seeds"] > 1 or not one["of_seeds"]:
            made.append(one | {"behind": BEHIND[sum(places) % len(BEHIND)]})
    return made


def mean_of_cut_normal(mean: float, deviation: float) -> float:
    """The mean of a normal number that is cut to 0 and 1."""
    if deviation == 0:
        return min(1.0, max(0.0, mean))

    def mean_above_zero(shift: float) -> float:
        z = shift / deviation
        density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        return shift * (1 + math.erf(z / math.sqrt(2))) / 2 + deviation * density

    return mean_above_zero(mean) - mean_above_zero(mean - 1)


def simulate(setting: dict[str, Any], repetitions: int, generator: np.random.Generator) -> tuple[float, float]:
    """The shares of repetitions in which the interval of a rate, and that of a difference, hold the truth."""
    size, ties = (setting["seeds"], setting["prompts"]), setting["ties"]
    rates = setting["rate"], setting["rate"] - setting["behind"]
    truths = [mean_of_cut_normal(rate, math.hypot(setting["of_prompts"], setting["of_seeds"])) for rate in rates]

    def scores(rate: float, of_prompts: np.ndarray) -> np.ndarray:
        of_seeds = setting["of_seeds"] * generator.standard_normal((size[0], 1))
        chance = np.clip(rate + of_seeds + of_prompts, 0, 1)
        tie = 2 * ties * np.minimum(chance, 1 - chance)
        draw = generator.random(size)
        return np.where(draw < chance - tie / 2, 1.0, np.where(draw < chance + tie / 2, 0.5, 0.0))

    held = np.zeros(2)
    for _ in range(repetitions):
        of_prompts = setting["of_prompts"] * generator.standard_normal(size[1])
        first, second = (scores(rate, of_prompts) for rate in rates)
        low, high = rate_interval(first)
        held[0] += low <= truths[0] <= high
        low, high = difference_interval(first, second)
        held[1] += low <= truths[0] - truths[1] <= high
    return tuple(float(share) for share in held / repetitions)


def exact_rate(prompts: int) -> float:
    """The lowest coverage of a rate's interval over rates of 0.005 to 0.995: one seed, wins and losses."""
    made = [rate_interval(np.array([[1.0] * wins + [0.0] * (prompts - wins)])) for wins in range(prompts + 1)]
    chosen = [math.comb(prompts, wins) for wins in range(prompts + 1)]

    def coverage(rate: float) -> float:
        return sum(
            chosen[wins] * rate**wins * (1 - rate) ** (prompts - wins)
            for wins, (low, high) in enumerate(made)
            if low <= rate <= high
        )

    return min(coverage(number / 200) for number in range(1, 200))


def exact_difference(prompts: int) -> float:
    """The lowest coverage of a difference's interval over chances, in steps of 0.05, that one alone wins: one seed."""
    outcomes = [(first, second) for first in range(prompts + 1) for second in range(prompts + 1 - first)]
    low, high = (np.empty(len(outcomes)), np.empty(len(outcomes)))
    for place, (first, second) in enumerate(outcomes):
        one = np.array([[1.0] * first + [0.0] * (prompts - first)])
        other = np.array([[0.0] * first + [1.0] * second + [0.0] * (prompts - first - second)])
        low[place], high[place] = difference_interval(one, other)
    both = np.array(outcomes)
    counts = [*both.T, prompts - both.sum(axis=1)]
    log_factorial = np.array([math.lgamma(number + 1) for number in range(prompts + 1)])
    log_ways = log_factorial[prompts] - sum(log_factorial[count] for count in counts)
    lowest = 1.0
    for first, second in itertools.product(np.arange(0, 1.0001, 0.05), repeat=2):
        if first + second > 1.0001:
            continue
        chances = (first, second, max(0.0, 1 - first - second))
        chance = np.exp(log_ways) * np.prod([p**count for p, count in zip(chances, counts, strict=True)], axis=0)
        inside = (low <= first - second + 1e-12) & (first - second - 1e-12 <= high)
        lowest = min(lowest, float(chance[inside].sum()))
    return lowest


def lowest(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lowest coverages by number of seeds, their spread and the height of the rate."""
    found = []
    for spread, high, seeds in itertools.product(GRID["of_seeds"], (False, True), GRID["seeds"]):
        some = [one for one in rows if (one["of_seeds"], one["rate"] >= 0.9, one["seeds"]) == (spread, high, seeds)]
        if some:
            of = {"of_seeds": spread, "rates": "0.9 or more" if high else "0.5 and 0.7", "seeds": seeds}
            found.append(of | {key: min(one[key] for one in some) for key in ("rate_held", "difference_held")})
    return found


def main(arguments: list[str] | None = None) -> None:
    """Simulates and computes all of it, and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000, help="experiments for each setting (1000)")
    parser.add_argument("--output", default=str(Path(__file__).with_name("coverage.json")))
    options = parser.parse_args(arguments)
    rows = []
    for number, setting in enumerate(progress(settings(), desc="coverage", unit="setting")):
        held = simulate(setting, options.repetitions, np.random.default_rng([0, number]))
        rows.append(setting | dict(zip(("rate_held", "difference_held"), held, strict=True)))
    summary = lowest(rows)
    exact = {
        "rate": {str(count): round(exact_rate(count), 4) for count in EXACT_PROMPTS},
        "difference": {str(count): round(exact_difference(count), 4) for count in EXACT_PAIRS},
    }
    for one in (*summary, exact):
        print(json.dumps(one))

    def listed(key: str, some: Sequence[Any]) -> str:
        return f'"{key}": [\n' + ",\n".join(f"  {json.dumps(one)}" for one in some) + "\n]"

    facts = {"version": commit(), "machine": machine(), "repetitions": options.repetitions, "one_seed_lowest": exact}
    facts["columns"] = [*rows[0]]
    parts = [f'"{key}": {json.dumps(value)}' for key, value in facts.items()]
    text = ",\n".join([*parts, listed("lowest", summary), listed("rows", [[*one.values()] for one in rows])])
    Path(options.output).write_text("{" + text + "}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
