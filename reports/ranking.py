"""Which of several runs wins most against one baseline: a ranking, and how much of it is noise.

A run with the same settings and another seed is the same method trained again. Scores of a method are crossed: every
seed answers every prompt. With a seeds, b prompts and score(seed, prompt) = mean + seed + prompt + rest, each part
independent, the variance of the mean of all scores is estimated without bias by

    V = var(means of seeds) / a + var(means of prompts) / b - var(rest) / (a b)

(two-way random effects; Searle, Casella and McCulloch 1992, Variance Components, chapter 4), and the interval takes
Student's t with Satterthwaite's degrees of freedom. Two methods answer the same prompts, so of a difference the
prompts' part is that of their differences, and the seeds' parts add up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reports.intervals import t_quantile

if TYPE_CHECKING:
    import numpy as np

NOT_A_SETTING = ("seed", "exp_name", "samples_dir", "n_samples", "mode", "saved_policy", "overwrite", "cache_dir")
"""Keys of a config that do not make a run another method."""


@dataclass(frozen=True)
class Judged:
    """One run's samples, judged: its config, and the score of each prompt (1 won, 0 lost, 0.5 tied) that has one."""

    exp_name: str
    config: Mapping[str, Any]
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Place:
    """A method in a ranking.

    Attributes:
        label: by what it differs from the others.
        seeds: how often it was trained.
        win_rate, interval: in per cent; no interval for a single prompt.
        behind, behind_interval: how far it is behind the first, in points.
    """

    label: str
    seeds: int
    win_rate: float
    interval: tuple[float, float] | None
    behind: float
    behind_interval: tuple[float, float] | None

    @property
    def within_noise(self) -> bool:
        """Whether it cannot be told from the first."""
        return self.behind_interval is None or self.behind_interval[0] <= 0


def rank(runs: Sequence[Judged]) -> tuple[list[Place], int]:
    """The methods among some runs, the best first, on the prompts that all runs have a score for.

    Returns:
        The places, and how many prompts they are measured on.

    Raises:
        ValueError: when no prompt has a score in all runs, or two runs are the same one.
    """
    import numpy as np

    shared = sorted(set.intersection(*(set(run.scores) for run in runs)))
    if not shared:
        raise ValueError(
            "no prompt has a verdict in all of these files: sample them for the same ones (++n_samples=null takes all)."
        )
    flat = [flatten(run.config) for run in runs]
    seeds = [(settings_of(one), one.get("seed"), run.exp_name) for one, run in zip(flat, runs, strict=True)]
    if len(set(seeds)) < len(seeds):
        raise ValueError("two of these files are of the same run: name each once.")
    methods: dict[tuple, list[list[float]]] = {}
    for (settings, *_), run in zip(seeds, runs, strict=True):
        key = settings if run.config else (("exp_name", run.exp_name),)
        methods.setdefault(key, []).append([run.scores[prompt] for prompt in shared])
    tables = {label: np.array(table) for label, table in zip(labels(list(methods)), methods.values(), strict=True)}
    order = sorted(tables, key=lambda label: (-tables[label].mean(), label))
    best = tables[order[0]]
    return [place(label, tables[label], best) for label in order], len(shared)


def place(label: str, table: np.ndarray, best: np.ndarray) -> Place:
    """One method's place, from its scores (seeds, prompts) and those of the best."""
    seeds, prompts = _parts(table)
    mean, behind = table.mean(), best.mean() - table.mean()
    if best is table:
        lead = (0.0, 0.0)
    else:
        others, _ = _parts(best)
        between = _part(best.mean(axis=0) - table.mean(axis=0))
        lead = _interval(behind, [seeds, others, between])
    return Place(
        label, len(table), 100 * mean, _in_per_cent(_interval(mean, [seeds, prompts])), 100 * behind,
        _in_per_cent(lead),
    )  # fmt: skip


Part = tuple[float, int]
"""A part of a mean's variance, and its degrees of freedom."""


def _part(means: np.ndarray) -> Part:
    return (float(means.var(ddof=1)) / len(means), len(means) - 1) if len(means) > 1 else (0.0, 0)


def _parts(table: np.ndarray) -> tuple[Part, Part]:
    """What seeds (less the rest, which the prompts' part has already) and prompts add to the variance of the mean."""
    seeds, prompts = _part(table.mean(axis=1)), _part(table.mean(axis=0))
    if min(table.shape) < 2:
        return seeds, prompts
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + table.mean()
    noise = float((rest**2).sum()) / ((len(table) - 1) * (table.shape[1] - 1)) / table.size
    return (max(0.0, seeds[0] - noise), seeds[1]), prompts


def _interval(mean: float, parts: Sequence[Part]) -> tuple[float, float] | None:
    known = [(variance, freedom) for variance, freedom in parts if freedom]
    if not known:
        return None
    total = sum(variance for variance, _ in known)
    if total == 0:
        return float(mean), float(mean)
    freedom = total**2 / sum(variance**2 / freedom for variance, freedom in known)
    half = t_quantile(0.975, max(1, math.floor(freedom))) * math.sqrt(total)
    return float(mean - half), float(mean + half)


def _in_per_cent(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if interval is None else (100 * interval[0], 100 * interval[1])


# Names ---------------------------------------------------------------------------------------------------------------


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and their values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def settings_of(flat: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What makes a run the method that it is."""
    return tuple(sorted((key, str(value)) for key, value in flat.items() if key not in NOT_A_SETTING))


def labels(methods: Sequence[tuple[tuple[str, str], ...]]) -> list[str]:
    """For each method the settings in which some of them differ; of another loss its name is enough."""
    dicts = [dict(method) for method in methods]
    keys = sorted({key for one in dicts for key in one if len({other.get(key) for other in dicts}) > 1})
    if "loss.name" in keys:
        same = {
            key: all(
                len({one.get(key) for one in dicts if one.get("loss.name") == name}) < 2
                for name in {one.get("loss.name") for one in dicts}
            )
            for key in keys
        }
        keys = ["loss.name", *(key for key in keys if key != "loss.name" and not same[key])]
    short = {key: "loss" if key == "loss.name" else key for key in keys}
    return [" ".join(f"{short[key]}={one[key]}" for key in keys if key in one) or "all" for one in dicts]


def format_ranking(places: Sequence[Place], prompts: int) -> str:
    """The ranking as a person reads it."""
    width = max(len(one.label) for one in places)
    lines = [f"Ranking on {prompts} prompts; 95 % intervals over prompts and seeds"]
    for number, one in enumerate(places, start=1):
        interval = "unknown" if one.interval is None else f"{one.interval[0]:5.1f} to {one.interval[1]:5.1f}"
        behind = "" if number == 1 else f"  {one.behind:5.1f} behind"
        if number > 1 and one.behind_interval is not None:
            behind += f" ({one.behind_interval[0]:.1f} to {one.behind_interval[1]:.1f})"
        noise = "  within noise of the first" if number > 1 and one.within_noise else ""
        seeds = f"{one.seeds} seed{'s' * (one.seeds != 1)}"
        lines.append(f"{number:3d}. {one.label:<{width}}  {one.win_rate:5.1f} % [{interval}]  {seeds}{behind}{noise}")
    if any(one.seeds == 1 for one in places):
        lines.append("A method with one seed: its interval does not know how much training it again would change.")
    return "\n".join(lines)
