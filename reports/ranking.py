"""Which of several runs wins most against one baseline: a ranking, and how much of it is noise.

A run with the same settings and another seed is the same method trained again (`reports.methods`); the intervals are
over prompts and seeds (`reports.crossed`). They are of one method, or of one pair; nothing is added for how many
methods are ranked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reports.crossed import difference_interval, rate_interval
from reports.intervals import Interval
from reports.methods import methods_of

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Judged:
    """One run's samples, judged: its config, and the score of each prompt (1 won, 0 lost, 0.5 tied) that has one."""

    file: str
    config: Mapping[str, Any]
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Place:
    """A method in a ranking.

    Attributes:
        label: by what it differs from the others.
        seeds: how often it was trained.
        win_rate, interval: in per cent; no interval for a single prompt.
        behind, behind_interval: how far it is behind the first, in points; no interval for a single prompt.
    """

    label: str
    seeds: int
    win_rate: float
    interval: Interval | None
    behind: float
    behind_interval: Interval | None

    @property
    def within_noise(self) -> bool:
        """Whether it cannot be told from the first."""
        return self.behind_interval is None or self.behind_interval[0] <= 0


def rank(runs: Sequence[Judged]) -> tuple[list[Place], int]:
    """The methods among some runs, the best first, on the prompts that all runs have a score for.

    Returns:
        The places, and how many prompts they are measured on.

    Raises:
        ValueError: when no prompt has a score in all runs, or two runs are the same one (see `methods_of`).
    """
    import numpy as np

    shared = sorted(set.intersection(*(set(run.scores) for run in runs)))
    if not shared:
        raise ValueError(
            "no prompt has a verdict in all of these files: sample them for the same ones (++n_samples=null takes all)."
        )
    names = methods_of([run.config for run in runs], [run.file for run in runs])
    methods: dict[str, list[list[float]]] = {}
    for name, run in zip(names, runs, strict=True):
        methods.setdefault(name, []).append([run.scores[prompt] for prompt in shared])
    tables = {name: np.array(table) for name, table in methods.items()}
    order = sorted(tables, key=lambda name: (-tables[name].mean(), name))
    best = tables[order[0]]
    return [place(name, tables[name], best) for name in order], len(shared)


def place(label: str, table: np.ndarray, best: np.ndarray) -> Place:
    """One method's place, from its scores (seeds, prompts) and those of the best."""
    mean, behind = float(table.mean()), float(best.mean() - table.mean())
    lead = (0.0, 0.0) if best is table else difference_interval(best, table)
    return Place(
        label, len(table), 100 * mean, _in_per_cent(rate_interval(table)), 100 * behind, _in_per_cent(lead)
    )  # fmt: skip


def _in_per_cent(interval: Interval | None) -> Interval | None:
    return None if interval is None else (100 * interval[0], 100 * interval[1])


def format_ranking(places: Sequence[Place], prompts: int, judged: Sequence[int] = ()) -> str:
    """The ranking as a person reads it.

    Args:
        prompts: on which it is measured.
        judged: how many prompts have a verdict in each file; what is left out of them is said.
    """
    width = max(len(one.label) for one in places)
    lines = [f"Ranking on {prompts} prompt{'s' * (prompts != 1)}; 95 % intervals over prompts and seeds"]
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
    most = max(judged, default=prompts)
    if prompts < most:
        lines.append(
            f"Only {prompts} of up to {most} prompts of a file have a verdict in all files; the others are left out. "
            "Files that were sampled for the same prompts share all of them (++n_samples=null takes the whole split)."
        )
    return "\n".join(lines)
