"""Win rates with their uncertainty. The unit is the prompt.

A verdict is one of "candidate", "baseline", "tie", "undecided" (the judge answered, but gave no verdict) and "failed"
(it did not answer). A row of the samples file has a verdict for each order in which its two responses were shown.
"""

from __future__ import annotations

import csv
import datetime
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Protocol

from reports.methods import one_line

_SCORES = {"candidate": 1.0, "tie": 0.5, "baseline": 0.0}
_BOUNDS_FROM = 0.01  # fraction of prompts without a score from which the best and worst case are printed


class Judged(Protocol):
    """One row: its prompt, a verdict for each order, and whose response ("candidate", "baseline") stood first in it."""

    prompt: str
    verdicts: Sequence[str]
    shown_first: Sequence[str]
    answers: Sequence[str]  # the judge's words, where it has any


def wilson_interval(mean: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval for the mean of `count` independent values in [0, 1]; all in [0, 1].

    Wilson, E. B. (1927), Probable inference, the law of succession, and statistical inference, JASA 22, 209-212: the
    means p for which (mean - p)^2 <= z^2 p (1 - p) / count. It was made for wins and losses. With ties (values of
    0.5) it errs on the wide side, for p (1 - p) is the largest variance that values in [0, 1] can have. It has
    a width also at 0 and 1, where the normal approximation has none.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    scale = 1 + z * z / count
    centre = (mean + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class WinRate:
    """How often the candidate is preferred.

    Attributes:
        total: prompts, which are candidate_wins + baseline_wins + ties + undecided + failed.
        win_rate: percent; mean score of the decided prompts (win 1, tie 0.5, loss 0); None if there are none.
        ci95: [low, high] percent, 95 % Wilson interval over the decided prompts.
        bounds: [low, high] percent; what the rate over all prompts would be if every row without a score were
            a loss, or a win.
        rows, rows_failed, rows_undecided: the same counts before rows of one prompt are taken together.
        swap_consistency: percent of the rows judged in both orders in which both verdicts agree.
        first_wins: percent of the verdicts for one response that fell on the one shown first; 50 is no bias.
    """

    total: int
    candidate_wins: int
    baseline_wins: int
    ties: int
    undecided: int
    failed: int
    win_rate: float | None
    ci95: list[float] | None
    bounds: list[float]
    rows: int
    rows_undecided: int
    rows_failed: int
    swap_consistency: float | None
    first_wins: float | None


def row_outcome(verdicts: Sequence[str]) -> float | str:
    """The row's score, the mean over its orders; "failed" or "undecided" if any of them is."""
    for missing in ("failed", "undecided"):
        if missing in verdicts:
            return missing
    return sum(_SCORES[verdict] for verdict in verdicts) / len(verdicts)


def prompt_outcome(outcomes: Sequence[float | str]) -> float | str:
    """The prompt's score, the mean over its scored rows; without any, "failed" if a row failed, else "undecided"."""
    scores = [outcome for outcome in outcomes if not isinstance(outcome, str)]
    if scores:
        return sum(scores) / len(scores)
    return "failed" if "failed" in outcomes else "undecided"


def prompt_scores(rows: Sequence[Judged]) -> dict[str, float]:
    """The score of each prompt that has one."""
    by_prompt: dict[str, list[float | str]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt, []).append(row_outcome(row.verdicts))
    outcomes = {prompt: prompt_outcome(some) for prompt, some in by_prompt.items()}
    return {prompt: outcome for prompt, outcome in outcomes.items() if not isinstance(outcome, str)}


def summarize(rows: Sequence[Judged]) -> WinRate:
    """The win rate over the judged rows, of which there must be at least one."""
    outcomes = [row_outcome(row.verdicts) for row in rows]
    by_prompt: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        by_prompt.setdefault(row.prompt, []).append(index)
    results = [prompt_outcome([outcomes[index] for index in indices]) for indices in by_prompt.values()]
    scores = [result for result in results if not isinstance(result, str)]
    mean = sum(scores) / len(scores) if scores else None
    win_rate = WinRate(
        total=len(results),
        candidate_wins=sum(score > 0.5 for score in scores),
        baseline_wins=sum(score < 0.5 for score in scores),
        ties=sum(score == 0.5 for score in scores),
        undecided=results.count("undecided"),
        failed=results.count("failed"),
        win_rate=None if mean is None else round(100 * mean, 4),
        ci95=None if mean is None else [round(100 * end, 4) for end in wilson_interval(mean, len(scores))],
        bounds=[_rate_if_missing_were(score, outcomes, list(by_prompt.values())) for score in (0.0, 1.0)],
        rows=len(rows),
        rows_undecided=outcomes.count("undecided"),
        rows_failed=outcomes.count("failed"),
        swap_consistency=_swap_consistency(rows),
        first_wins=_first_wins(rows),
    )
    counts = win_rate.candidate_wins, win_rate.baseline_wins, win_rate.ties, win_rate.undecided, win_rate.failed
    assert sum(counts) == win_rate.total
    return win_rate


def _rate_if_missing_were(missing: float, outcomes: list[float | str], by_prompt: list[list[int]]) -> float:
    scores = [missing if isinstance(outcome, str) else outcome for outcome in outcomes]
    of_prompts = [sum(scores[index] for index in indices) / len(indices) for indices in by_prompt]
    return round(100 * sum(of_prompts) / len(of_prompts), 4)


def _swap_consistency(rows: Sequence[Judged]) -> float | None:
    both = [row.verdicts for row in rows if len(row.shown_first) == 2 and all(v in _SCORES for v in row.verdicts)]
    return round(100 * sum(first == second for first, second in both) / len(both), 4) if both else None


def _first_wins(rows: Sequence[Judged]) -> float | None:
    pairs = [pair for row in rows if row.shown_first for pair in zip(row.verdicts, row.shown_first, strict=True)]
    won = [verdict == first for verdict, first in pairs if verdict in ("candidate", "baseline")]
    return round(100 * sum(won) / len(won), 4) if won else None


def result_line(
    win_rate: WinRate,
    *,
    seed: int,
    exp_name: str,
    judge: str,
    orders: int,
    candidate: tuple[str, list[float]],
    baseline: tuple[str, list[float]],
    rule: str | None = None,
    cache_hits: int = 0,
    config: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One line of the results file: HALOs' keys, then ours (see `WinRate`).

    Args:
        candidate, baseline: the key of each one's responses in the samples, and their lengths in words, one per prompt.
        rule: the words of an offline rule.
        cache_hits: requests that were not sent because their answer was known.
        config: the configuration of the run that wrote the responses.
    """
    line: dict[str, Any] = {
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "total": win_rate.total,
        "seed": seed,
        "exp_name": exp_name,
        "judge": judge,
        "candidate": {"name": candidate[0], "wins": win_rate.candidate_wins, "lengths": candidate[1]},
        "baseline": {"name": baseline[0], "wins": win_rate.baseline_wins, "lengths": baseline[1]},
    }
    ours = {name: value for name, value in vars(win_rate).items() if name not in ("candidate_wins", "baseline_wins")}
    line |= ours | {"orders": orders, "cache_hits": cache_hits}
    if rule is not None:
        line["rule"] = rule
    return line | {"config": config or {}}


def format_table(line: dict[str, Any]) -> str:
    """A result line as a person reads it."""
    candidate, baseline, total = line["candidate"], line["baseline"], line["total"]
    by = f"the rule {line['judge']}" if "rule" in line else f"{line['judge']}, orders: {line['orders']}"
    head = f"{line['exp_name']}: {candidate['name']} against {baseline['name']}, {total} prompts, judged by {by}"
    counts = [
        (f"{candidate['name']} wins", candidate["wins"]),
        (f"{baseline['name']} wins", baseline["wins"]),
        ("ties", line["ties"]),
        ("undecided", line["undecided"]),
        ("failed", line["failed"]),
    ]
    width = max(len(name) for name, _ in [*counts, ("95 % interval", 0), ("mean words", 0)]) + 2
    table = [one_line(head), *(f"  {name:<{width}}{count:>6}" for name, count in counts)]

    def add(name: str, words: str) -> None:
        table.append(f"  {name:<{width}}{words}")

    if line["win_rate"] is None:
        add("win rate", "unknown: no prompt has a verdict")
    else:
        add("win rate", f"{line['win_rate']:6.1f} % of {total - line['undecided'] - line['failed']} decided prompts")
        add("95 % interval", f"{line['ci95'][0]:6.1f} to {line['ci95'][1]:.1f} % (Wilson, over prompts)")
    if line["undecided"] + line["failed"] > _BOUNDS_FROM * total:
        low, high = line["bounds"]
        add("worst, best", f"{low:6.1f} to {high:.1f} % if all that have no verdict were losses, or wins")
    means = [sum(side["lengths"]) / len(side["lengths"]) for side in (candidate, baseline)]
    add("mean words", f"{means[0]:6.1f} {candidate['name']}, {means[1]:.1f} {baseline['name']}")
    if line["swap_consistency"] is not None:
        add("both orders", f"{line['swap_consistency']:6.1f} % of the rows get the same verdict in both")
    if line["first_wins"] is not None:
        add("first wins", f"{line['first_wins']:6.1f} % of the verdicts (50: no bias for the place)")
    if line["rows"] > total:
        missing = line["rows_undecided"] + line["rows_failed"]
        left_out = f", {missing} of them without a verdict left out" if missing else ""
        table.append(f"  {line['rows']} rows of {total} prompts: the rows of a prompt are averaged{left_out}.")
    if "rule" in line:
        table += textwrap.wrap(f"The rule: {line['rule']}", 100, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(table)


def format_row(row: Judged) -> str:
    """One row as `--verbose` prints it: the prompt's beginning, and the verdict in each order."""
    places = [f"{first} first: " for first in row.shown_first] or [""] * len(row.verdicts)
    verdicts = "; ".join(place + verdict for place, verdict in zip(places, row.verdicts, strict=True))
    return f"{' '.join(row.prompt.split())[-70:]!r}: {verdicts}"


def write_csv(path: str, rows: Sequence[Judged], candidate: Sequence[str], baseline: Sequence[str]) -> None:
    """One line for each row: the prompt, both responses, and verdict and words of the judge in each order."""
    orders = max(len(row.verdicts) for row in rows)
    per_order = [f"{name}_{order}" for order in range(1, orders + 1) for name in ("shown_first", "verdict", "answer")]
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "candidate", "baseline", "outcome", *per_order])
        for row, *responses in zip(rows, candidate, baseline, strict=True):
            cells = []
            for order, verdict in enumerate(row.verdicts):
                shown_first, answer = ("".join(texts[order : order + 1]) for texts in (row.shown_first, row.answers))
                cells += [shown_first, verdict, answer]
            writer.writerow([row.prompt, *responses, row_outcome(row.verdicts), *cells])
