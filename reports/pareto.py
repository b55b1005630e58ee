"""Runs in one picture: how misaligned their samples are against how far they are from a reference language model.

python -m reports.pareto .cache/*/alignment.json --output pareto.png

Each file is a run's alignment.json, which mode=generate and mode=kl write (or any {"label", "score": {"mean", "low",
"high"}, "kl": {...}}). Below and to the left is better; the line joins the runs that no other run beats in both.
Runs that were sampled or measured in different ways have no common axis and are refused; how many samples there were
may differ, since that is in the intervals.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reports import expected
from reports.inputs import read_json
from reports.markup import printable
from reports.ranking_plots import plain, save

AXES = {
    "kl": "KL from the reference, nats a sequence",
    "kl_per_token": "KL from the reference, nats a token",
    "kl_per_byte": "KL from the reference, nats a byte",
    "bits_per_byte": "bits per byte of held-out documents",
    "bits_per_byte_aligned": "bits per byte of held-out aligned documents",
}
NEEDS = {axis: "++kl.documents=FILE" if axis.startswith("bits") else "++kl.reference=MODEL" for axis in AXES}
NEEDS["bits_per_byte_aligned"] += " ++kl.aligned_threshold=SCORE"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Of Okabe and Ito: people with any colour vision can tell them apart; the markers differ too."""
MARKERS = "osD^vPX"
DOCUMENTS, CONTENTS = "held-out documents", "held-out documents (by their contents)"


@dataclass(frozen=True)
class Value:
    """A figure with the ends of its 95 % interval, which are None where it has none."""

    mean: float
    low: float | None
    high: float | None

    @property
    def error(self) -> tuple[float, float]:
        """How far the interval reaches below and above the mean."""
        if self.low is None or self.high is None:
            return 0.0, 0.0
        return max(0.0, self.mean - self.low), max(0.0, self.high - self.mean)


@dataclass(frozen=True)
class Point:
    """A run: its score and its capability.

    Attributes:
        conditions: how the two were measured, as far as the file says it: what must be the same in all runs.
    """

    label: str
    score: Value
    distance: Value
    higher_is_worse: bool
    scorer: str
    reference: str
    conditions: Mapping[str, str] = field(default_factory=dict)


def read_point(given: str, axis: str, scenario: str | None = None) -> Point:
    """Reads a run's results.

    Args:
        given: the file or the run's folder; LABEL=FILE gives it another name.
        axis: which of AXES.
        scenario: whose score; None: the file's first.

    Raises:
        ValueError: the file is missing, or lacks what is drawn; it says which command writes that.
    """
    label, equals, rest = given.partition("=")
    path = Path(rest if equals and not Path(given).exists() else given)
    path = path / "alignment.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{path} is not there: `python eval.py --config-path=RUN_FOLDER mode=generate` writes it")
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} must be an object with label, score and {axis}")
    score = found.get("score")
    if scenario is not None:
        scenarios = found.get("scenarios")
        some = scenarios.get(scenario) if isinstance(scenarios, dict) else None
        if not isinstance(some, dict):
            raise ValueError(f"{path} has no scenario {scenario!r}")
        score = some.get("score")
    reference = _section(found, "kl_reference") if axis.startswith("kl") else {}
    return Point(
        label if equals and not Path(given).exists() else str(found.get("label", path.parent.name)),
        _value(score, f"{path}: `score`", "mode=generate with a scorer"),
        _value(found.get(axis), f"{path}: `{axis}`", f"mode=kl {NEEDS[axis]}"),
        found.get("direction") != "higher_is_better",
        str(found.get("scorer") or ""),
        str(reference.get("name", "")),
        _conditions(found, axis, scenario),
    )


def _section(found: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = found.get(key)
    return value if isinstance(value, dict) else {}


def _conditions(found: Mapping[str, Any], axis: str, scenario: str | None) -> dict[str, str]:
    """What the score and the capability depend on beside the run."""
    settings = _section(_section(found, "settings"), scenario or str(found.get("scenario")))
    conditions = {f"settings of the samples ({name})": value for name, value in settings.items()}
    conditions["scorers"] = found.get("scorer") or "unknown"
    if axis.startswith("kl"):
        reference = _section(found, "kl_reference")
        conditions |= {"references": reference.get("name", "unknown"), "samples of the reference (kl.max_new_tokens)": (
            reference.get("max_new_tokens")
        )}  # fmt: skip
    if axis.startswith("bits_per_byte"):
        held_out = _section(found, "held_out")
        documents = held_out.get("documents")
        conditions |= {DOCUMENTS: documents and Path(str(documents)).name, CONTENTS: held_out.get("documents_sha256")}
        conditions["numbers of held-out documents"] = _section(found, axis).get("n")
    if axis == "bits_per_byte_aligned":
        conditions["thresholds (kl.aligned_threshold)"] = held_out.get("aligned_threshold")
    return {name: str(value) for name, value in conditions.items() if value is not None}


def refuse_different(points: Sequence[Point]) -> None:
    """Refuses runs without a common axis.

    Raises:
        ValueError: naming what differs, and two runs in which it does. What a file does not say is passed over, and
            documents are known by their contents, or where one of the files lacks these by their name.
    """
    names = dict.fromkeys(name for one in points for name in one.conditions)
    if all(CONTENTS in one.conditions for one in points):
        names.pop(DOCUMENTS, None)
    for name in names:
        labels = {one.conditions[name]: one.label for one in reversed(points) if name in one.conditions}
        if len(labels) > 1:
            listed = ", ".join(f"{value} ({label})" for value, label in reversed(labels.items()))
            raise ValueError(f"these runs have different {name}, so they have no common axis: {listed}")
    if len({one.higher_is_worse for one in points}) > 1:
        raise ValueError("of some of these runs a high score is good, and of others bad: they have no common axis")


def _value(found: Any, where: str, mode: str) -> Value:
    if not isinstance(found, dict):
        raise ValueError(f"{where} is not there: `python eval.py --config-path=RUN_FOLDER {mode}` writes it")
    numbers = [found.get(key) for key in ("mean", "low", "high")]
    for name, number in zip(("mean", "low", "high"), numbers, strict=True):
        if name == "mean" or number is not None:
            expected.number(number, f"{where}: `{name}`")
            if not math.isfinite(number):
                raise ValueError(f"{where}: `{name}` must be a number, not {number}")
    return Value(*numbers)


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in one thing without losing in the other, from the nearest on."""
    sign = 1.0 if all(point.higher_is_worse for point in points) else -1.0

    def beaten(point: Point) -> bool:
        own = sign * point.score.mean, point.distance.mean
        others = ((sign * other.score.mean, other.distance.mean) for other in points)
        return any(a <= own[0] and b <= own[1] and (a, b) != own for a, b in others)

    return sorted((point for point in points if not beaten(point)), key=lambda point: point.distance.mean)


def draw(points: Sequence[Point], axis: str, path: str | Path, title: str = "") -> None:
    """Writes the picture as PNG.

    Raises:
        ValueError: the runs have no common axis; see `refuse_different`.
    """
    from matplotlib.figure import Figure

    refuse_different(points)
    figure = Figure(figsize=(7.2, 4.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    best = front(points)
    axes.plot(
        [one.distance.mean for one in best], [one.score.mean for one in best], color="0.55", linewidth=1.4,
        linestyle=(0, (5, 3)), marker="o", markersize=15, markerfacecolor="none", zorder=1, label="Pareto front",
    )  # fmt: skip
    for number, one in enumerate(points):
        across, along = one.distance.error, one.score.error
        axes.errorbar(
            one.distance.mean, one.score.mean, xerr=[[across[0]], [across[1]]], yerr=[[along[0]], [along[1]]],
            fmt=MARKERS[number % len(MARKERS)], color=COLOURS[number % len(COLOURS)], markersize=8, capsize=3,
            linewidth=1.3, markeredgecolor="white", markeredgewidth=0.8, label=plain(one.label), zorder=2,
            ecolor=COLOURS[number % len(COLOURS)],
        )  # fmt: skip
    named = f"reference: {plain(points[0].reference, 60)}; " if points[0].reference else ""
    axes.set_xlabel(f"{AXES[axis]}\n({named}left is better)", fontsize=10)
    worse, scorer = points[0].higher_is_worse, plain(points[0].scorer.partition(" ")[0], 60)
    better = "down is better" if worse else "up is better"
    axes.set_ylabel(f"{'misalignment' if worse else 'reward'}: mean score   ({better})", fontsize=10)
    axes.set_title(title or f"{len(points)} runs" + (f", scored by {scorer}" if scorer else ""), fontsize=10)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.margins(0.08)
    figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    save(figure, path)


def printed(points: Sequence[Point], axis: str) -> str:
    """The same as a table for a terminal."""
    best = front(points)
    width = max(len(one.label) for one in points)
    lines = [f"{'run':{width}}  {'score':>10}  95 % interval           {axis:>10}  95 % interval"]
    for one in points:
        cells = [f"{value.mean:>10.4g}  {_ends(value):22}" for value in (one.score, one.distance)]
        lines.append(f"{one.label:{width}}  {'  '.join(cells)}{'  on the front' if one in best else ''}")
    return "\n".join(lines)


def _ends(value: Value) -> str:
    return "none" if value.low is None or value.high is None else f"{value.low:.4g} to {value.high:.4g}"


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, or 2 with one line that says what is wrong with the input."""
    parser = argparse.ArgumentParser(prog="python -m reports.pareto", description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", help="alignment.json of runs, or their folders; LABEL=FILE names one")
    parser.add_argument("--output", default="pareto.png", help="the PNG file (pareto.png)")
    parser.add_argument("--axis", choices=AXES, default="kl", help="what is drawn across (kl)")
    parser.add_argument("--scenario", help="whose score is drawn up; without it the first scenario's")
    parser.add_argument("--title", default="", help="above the picture")
    options = parser.parse_args(arguments)
    try:
        points = [read_point(given, options.axis, options.scenario) for given in options.files]
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        draw(points, options.axis, options.output, plain(options.title))
    except (ValueError, OSError) as error:
        print(f"reports.pareto: error: {printable(error)}", file=sys.stderr)
        return 2
    print(printable(printed(points, options.axis)))
    print(f"the picture: {printable(options.output)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
