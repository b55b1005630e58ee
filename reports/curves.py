"""Training curves as PNG images in base64, each once for light and once for dark pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reports.inputs import Run, setting


@dataclass(frozen=True)
class Palette:
    """Colours of a theme; the two of a panel's series can be told apart by people with any colour vision."""

    background: str
    text: str
    grid: str
    series: tuple[str, ...]


LIGHT = Palette("#ffffff", "#3c4450", "#e3e6ea", ("#0b6e8a", "#c4501b"))
DARK = Palette("#1b2027", "#b8c0cc", "#323a45", ("#5cc4e0", "#f0935c"))


@dataclass(frozen=True)
class Panel:
    """One chart.

    Attributes:
        title: what is shown, with its unit.
        series: (name in the legend, key); `{split}` in a key stands for train and for eval.
        about: what to see in it.
        level: a dashed line, such as the value of a guess.
        from_zero: the axis starts at 0, below which the values cannot fall.
        percent: the values are shares, so that it ends at 100 %.
    """

    title: str
    series: tuple[tuple[str, str], ...]
    about: str
    level: float | None = None
    from_zero: bool = False
    percent: bool = False


PANELS = (
    Panel("Loss", (("loss", "loss/{split}"),), "What training minimizes."),
    Panel(
        "Rewards",
        (("chosen", "rewards_{split}/chosen"), ("rejected", "rewards_{split}/rejected")),
        "Implicit reward of good and of bad responses, β times the log-ratio to the model before; 0 at the start.",
        level=0.0,
    ),
    Panel(
        "Reward margin",
        (("margin", "rewards_{split}/margins"),),
        "Reward of chosen minus rejected responses.",
        level=0.0,
    ),
    Panel(
        "Pair accuracy",
        (("accuracy", "rewards_{split}/accuracies"),),
        "Share of pairs in which the chosen response has the higher reward; the dashed line is a coin. It begins after "
        "the start, where all rewards are 0 and a tie would count as wrong.",
        level=0.5,
        from_zero=True,
        percent=True,
    ),
    Panel(
        "Reference point of the loss, nats",
        (("KL", "rewards_{split}/KL_estimate"),),
        "KTO's KL estimate, on responses to other prompts, clamped at 0 (below it, it is 0). "
        "The KL in the table is another quantity: it is measured on the model's own responses.",
        from_zero=True,
    ),
    Panel("Gradient norm", (("norm", "grad_norm"),), "Of each step, before clipping.", from_zero=True),
)


@dataclass(frozen=True)
class Curve:
    """A drawn panel: PNG images in base64, and words for those who do not see them."""

    panel: Panel
    light: str
    dark: str
    alt: str


Points = list[tuple[float, float]]  # (training examples seen, value)


def draw_curves(run: Run) -> list[Curve]:
    """The panels for which the run has values."""
    curves = []
    steps = len(run.records("train"))
    for panel in PANELS:
        lines = {name: points(run, "train", key) for name, key in panel.series}
        # A few steps of KTO happen to hold both sides of a pair; their accuracies make no curve.
        lines = {name: line if 2 * len(line) >= steps else [] for name, line in lines.items()}
        dots = {name: points(run, "eval", key) for name, key in panel.series}
        if any([*lines.values(), *dots.values()]):
            images = (_draw(panel, lines, dots, palette) for palette in (LIGHT, DARK))
            curves.append(Curve(panel, *images, alt=_alt_text(panel, lines, dots)))
    return curves


def points(run: Run, split: str, key: str) -> Points:
    """The values of a metric over the examples seen.

    Accuracies of a policy that is still its reference are left out: all rewards are 0 but for rounding, no pair has an
    order, and a tie counts as wrong, so that a curve would begin at 0 %.
    """
    key = key.format(split=split)
    ranks = key.endswith("accuracies")
    return [
        (record.get("counters/examples", 0), record[key])
        for record in run.records(split)
        if key in record and not (ranks and _is_untrained(run, record, split))
    ]


def _is_untrained(run: Run, record: Mapping[str, Any], split: str) -> bool:
    """Whether a record is of a policy that is the reference of its rewards."""
    if record.get(f"rewards_{split}/margins") == 0:
        return True
    first = record.get("counters/updates") == (1 if split == "train" else 0)  # a step's record is of before the step
    return first and bool(setting(run.config, "loss.use_reference_model", False))


def _draw(panel: Panel, lines: dict[str, Points], dots: dict[str, Points], palette: Palette) -> str:
    from matplotlib import ticker
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.5, 2.3), dpi=240, facecolor=palette.background, layout="constrained")
    axes = figure.add_subplot(facecolor=palette.background)
    if panel.level is not None:
        axes.axhline(panel.level, color=palette.text, linewidth=0.8, linestyle=(0, (4, 4)), alpha=0.6)
    edge = {"markeredgecolor": palette.background, "markeredgewidth": 1.2, "zorder": 5, "clip_on": False}
    dotted = {"linestyle": (0, (1, 2)), "linewidth": 1.2, "marker": "o", "markersize": 7, **edge}
    for name, colour in zip(lines, palette.series, strict=False):
        for values, style in ((lines[name], {"linewidth": 1.8}), (dots[name], dotted)):
            if values:
                axes.plot(*zip(*values, strict=True), color=colour, **style)
        axes.plot([], [], color=colour, linewidth=3, label=name)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=palette.text, loc="best", handlelength=1)
    axes.set_xlabel("training examples seen", color=palette.text, fontsize=8.5)
    axes.tick_params(colors=palette.text, labelsize=8.5, length=0)
    axes.grid(color=palette.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(ticker.MaxNLocator(5))
    if panel.from_zero:
        axes.set_ylim(0, 1 if panel.percent else max(axes.get_ylim()[1], 0.1))
    if panel.percent:
        axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=palette.background, pil_kwargs={"optimize": True})
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _alt_text(panel: Panel, lines: dict[str, Points], dots: dict[str, Points]) -> str:
    parts = []
    for name in lines:
        for values, where in ((lines[name], "in training"), (dots[name], "on held-out data")):
            if values:
                first, last = _value(panel, values[0][1]), _value(panel, values[-1][1])
                parts.append(f"{name} {where}: " + (f"from {first} to {last}" if len(values) > 1 else last))
    return f"{panel.title} over training examples. " + "; ".join(parts) + "."


def _value(panel: Panel, value: float) -> str:
    return f"{value:.0%}" if panel.percent else f"{value:.3g}"
