"""Several runs in one picture: their win rates with intervals, and what their losses did while they were trained.

python -m reports.ranking_plots .cache/*seed* --output curves.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reports.curves import points
from reports.inputs import Run, read_run
from reports.methods import flatten, labels, settings_of
from reports.ranking import Place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRICS = ("loss", "rewards/margins", "rewards/accuracies")
"""What is drawn by default, under the names of metrics.jsonl without `_train` and `_eval`."""
STYLES = {
    "train": {"linewidth": 0.8, "alpha": 0.35},
    "eval": {"linewidth": 1.6, "marker": "o", "markersize": 3},
}
"""Of the lines in a panel."""
KINDS = {"train": "training steps, each on its own examples", "eval": "held-out data, of each seed its own"}
"""What the legend says of them."""
WIDEST = 120
"""Characters of a method's name in a plot."""


def draw_ranking(places: Sequence[Place], prompts: int, baseline: str, path: str | Path) -> None:
    """A row for each method, the best on top: its win rate in per cent and its 95 % interval."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(7.5, 1.5 + 0.3 * len(places)), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    colors = {"first, or within noise of it": "C0", "behind the first": "C7"}
    for number, one in enumerate(places):
        color = [*colors.values()][not (number == 0 or one.within_noise)]
        if one.interval is not None:
            axes.plot(one.interval, (number, number), color=color, linewidth=2)
        axes.plot([one.win_rate], [number], "o", color=color)
    axes.axvline(50, color="0.6", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(places)), [plain(one.label) for one in places], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"win rate against {plain(baseline)} in %, {prompts} prompts; dotted: 50 %", fontsize=8)
    axes.grid(axis="x", color="0.9")
    handles = {
        "win rate": Line2D([], [], color="0.2", marker="o", linestyle=""),
        "95 % interval": Line2D([], [], color="0.2", linewidth=2),
        **{name: Line2D([], [], color=color, marker="o", linewidth=2) for name, color in colors.items()},
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    save(figure, path)


def draw_training(runs: Sequence[Run], metrics: Sequence[str], path: str | Path) -> int:
    """A row for each metric, a column for each loss, a color for each of its other settings; seeds lie over each other.

    Losses have scales of their own, and so have their panels; accuracies go from 0 to 100 %, and begin after the start,
    where a policy that is its reference ranks nothing (see `reports.curves.points`).

    Returns:
        How many panels have a curve.

    Raises:
        ValueError: no run has any of these metrics.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    groups = _grouped(runs)
    figure = Figure(figsize=(2.6 * len(groups) + 0.6, 2.1 * len(metrics) + 0.8), dpi=100, layout="constrained")
    panels = figure.subplots(len(metrics), len(groups), squeeze=False)
    drawn = 0
    for column, (loss, methods) in enumerate(groups.items()):
        for row, metric in enumerate(metrics):
            has_curve = _panel(panels[row][column], methods, metric)
            drawn += has_curve
            title = f"{plain(loss)}: {metric}" if has_curve else f"{plain(loss)} has no {metric}"
            panels[row][column].set_title(title, fontsize=8)
            panels[row][column].axis("on" if has_curve else "off")
        panels[-1][column].set_xlabel("training examples", fontsize=7)
    if not drawn:
        raise ValueError(f"none of these runs has any of {', '.join(metrics)}")
    legends = [zip(*panel.get_legend_handles_labels(), strict=True) for panel in panels[0]]
    handles = {name: handle for legend in legends for handle, name in legend}
    handles = handles if len(handles) > 1 else {}
    handles |= {KINDS[split]: Line2D([], [], color="0.2", **style) for split, style in STYLES.items()}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=5, fontsize=8, frameon=False)
    save(figure, path)
    return drawn


def _grouped(runs: Sequence[Run]) -> dict[str, dict[str, list[Run]]]:
    """loss -> what else a method differs in -> its runs."""
    keys = [settings_of(flatten(run.config)) for run in runs]
    distinct = list(dict.fromkeys(keys))
    names = dict(zip(distinct, labels(distinct), strict=True))
    groups: dict[str, dict[str, list[Run]]] = {}
    for key, run in zip(keys, runs, strict=True):
        loss = str(flatten(run.config).get("loss.name"))
        rest = " ".join(part for part in names[key].split(" ") if not part.startswith("loss=")) or "all"
        groups.setdefault(loss, {}).setdefault(rest, []).append(run)
    return groups


def _panel(axes: Axes, methods: dict[str, list[Run]], metric: str) -> bool:
    group, _, rest = metric.partition("/")
    key = f"{group}_{{split}}/{rest}" if rest else f"{group}/{{split}}"
    drawn = False
    for number, (name, runs) in enumerate(sorted(methods.items(), key=_by_number)):
        for run in runs:
            for split, style in STYLES.items():
                if values := points(run, split, key):
                    axes.plot(*zip(*values, strict=True), color=f"C{number}", **style)
                    drawn = True
        axes.plot([], [], color=f"C{number}", label=plain(name))
    axes.tick_params(labelsize=6)
    axes.grid(color="0.92")
    axes.set_xlim(left=0)
    if metric.endswith("accuracies"):
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    return drawn


def _by_number(item: tuple[str, list[Run]]) -> tuple[list[float], str]:
    """Orders `lr=3e-06` before `lr=1e-05`."""
    values = []
    for part in item[0].split():
        try:
            values.append(float(part.rpartition("=")[2]))
        except ValueError:
            values.append(0.0)
    return values, item[0]


def plain(text: str, widest: int = WIDEST) -> str:
    """A name as a plot shows it: one line of at most so many characters, no mathtext."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split()).replace("$", r"\$")
    return text if len(text) <= widest else text[: widest - 3] + "..."


def save(figure: Figure, path: str | Path) -> None:
    """Writes a PNG that does not say when it was made."""
    figure.savefig(path, format="png", metadata={"Software": None})


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, or 2 where there is nothing to draw."""
    parser = argparse.ArgumentParser(
        prog="python -m reports.ranking_plots", description=draw_training.__doc__.partition("\n\n    Returns:")[0]
    )
    parser.add_argument("runs", nargs="+", help="folders of runs, {cache_dir}/{exp_name}")
    parser.add_argument("--metrics", nargs="+", default=METRICS, help=f"what to draw ({' '.join(METRICS)})")
    parser.add_argument("--output", default="curves.png", help="the PNG file (curves.png)")
    options = parser.parse_args(arguments)
    try:
        runs = [read_run(Path(folder)) for folder in options.runs]
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        panels = draw_training(runs, options.metrics, options.output)
    except (ValueError, OSError) as error:
        print(f"reports.ranking_plots: error: {error}", file=sys.stderr)
        return 2
    print(f"{len(runs)} runs, {panels} panels: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
