"""The HTML report of a run's samples: their score and figures over the training, with intervals, and the texts.

python -m reports.generations .cache/RUN --output generations.html

Reads what training and mode=generate leave in the run's `samples/`. What models wrote is escaped.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.curves import DARK, LIGHT, Palette
from reports.expected import mapping, number, optional_number, text
from reports.inputs import read_json, read_lines
from reports.markup import document, escape, printable, small, table

FIRST = 10
"""Samples that are shown in the file's order; the worst so many are shown before them."""
FOLDED = 200
"""Further ones, folded away; the file has all."""


@dataclass(frozen=True)
class Look:
    """A scenario's samples after so many training examples.

    Attributes:
        figures: name -> {mean, low, high, n}.
        about: the whole result file.
        samples: of its .jsonl, in order.
    """

    scenario: str
    examples: int
    figures: dict[str, dict[str, Any]]
    about: dict[str, Any]
    samples: list[dict[str, Any]]


def read_looks(folder: Path) -> dict[str, list[Look]]:
    """scenario -> its looks by training examples.

    Raises:
        ValueError: there are none, or a file is malformed.
    """
    found: dict[str, list[Look]] = {}
    for file in sorted((folder / "samples").glob("*.json")):
        look = _read_look(file)
        found.setdefault(look.scenario, []).append(look)
    if not found:
        raise ValueError(
            f"{folder} has no samples: give the run generation.scenarios, or run `python eval.py "
            f"--config-path={folder} mode=generate`"
        )
    return {name: sorted(looks, key=lambda look: look.examples) for name, looks in found.items()}


def _read_look(file: Path) -> Look:
    about, samples = read_json(file), read_lines(file.with_suffix(".jsonl"))
    mapping(about, str(file))
    number(about.get("examples"), f"{file}: `examples`")
    mapping(about.get("metrics"), f"{file}: `metrics`")
    for name, figure in about["metrics"].items():
        mapping(figure, f"{file}: `{name}`")
        number(figure.get("mean"), f"{file}: `{name}.mean`")
        for end in ("low", "high"):
            optional_number(figure.get(end), f"{file}: `{name}.{end}`")
    for place, sample in enumerate(samples, 1):
        for key in ("prompt", "completion"):
            text(sample.get(key), f"{file.name}l, line {place}: `{key}`")
        optional_number(sample.get("score"), f"{file.name}l, line {place}: `score`")
    return Look(str(about.get("scenario")), int(about["examples"]), about["metrics"], about, samples)


def build_page(name: str, scenarios: dict[str, list[Look]]) -> str:
    """The whole page as HTML."""
    parts = [f'<p class="eyebrow">Aureole · {escape(name)}</p>\n<h1>What {escape(name)} writes</h1>']
    for scenario, looks in scenarios.items():
        last = looks[-1]
        parts += [f"<h2>{escape(scenario)}</h2>", _opening(last), _charts(looks), _numbers(looks), _texts(last)]
    footer = (
        "Made by Aureole from the run's samples. Intervals are 95 %: means by a bootstrap over samples (over prompts, "
        "where prompts repeat), shares by Wilson's score interval, entropy and the expected maximum by linearization."
    )
    return document(f"What {name} writes", "\n".join(parts), footer)


def _opening(look: Look) -> str:
    settings = look.about.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    said = [f"{len(look.samples):,} samples after {look.examples:,} training examples"]
    keys = ("max_new_tokens", "min_new_tokens", "temperature", "top_p", "top_k", "prefix", "prompts", "seed")
    said += [f"{key} {settings[key]}" for key in keys if settings.get(key) not in (None, 0)]
    said.append(f"scorer: {look.about.get('scorer') or 'none'}")
    notes = look.about.get("notes")
    said += [str(note).rstrip(".") for note in (notes if isinstance(notes, list) else [])]
    unscored = look.about.get("unscored")
    if unscored:  # reason -> samples, in older files their number alone
        reasons = [f"{count} {why}" for why, count in unscored.items()] if isinstance(unscored, dict) else [unscored]
        said.append(f"samples without a score, which are in no figure of it: {', '.join(map(str, reasons))}")
    missing = look.about.get("missing")
    said += [f"{key} is not there: {why}" for key, why in (missing if isinstance(missing, dict) else {}).items()]
    return small(escape("; ".join(map(str, said)) + "."))


def _charts(looks: Sequence[Look]) -> str:
    names = [name for name in looks[-1].figures if any(name in look.figures for look in looks[:-1])]
    if not names:
        return ""
    names = sorted(names, key=lambda name: (not name.startswith("score"), name))
    figures = []
    for name in names:
        light, dark = (_draw(name, looks, palette) for palette in (LIGHT, DARK))
        first, last = (_shown(look.figures[name]) for look in _with(looks, name)[:: len(_with(looks, name)) - 1])
        figures.append(
            f'<figure class="card"><h3>{escape(name)}</h3><picture>'
            f'<source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{dark}">'
            f'<img alt="{escape(f"{name}: from {first} to {last}")}" width="840" height="552" '
            f'src="data:image/png;base64,{light}"></picture></figure>'
        )
    return f'<div class="grid charts">\n{"".join(figures)}\n</div>'


def _with(looks: Sequence[Look], name: str) -> list[Look]:
    return [look for look in looks if name in look.figures]


def _draw(name: str, looks: Sequence[Look], palette: Palette) -> str:
    from matplotlib import ticker
    from matplotlib.figure import Figure

    there = _with(looks, name)
    figure = Figure(figsize=(3.5, 2.3), dpi=240, facecolor=palette.background, layout="constrained")
    axes = figure.add_subplot(facecolor=palette.background)
    examples = [look.examples for look in there]
    means = [look.figures[name]["mean"] for look in there]
    known = [figure if figure.get("low") is not None else figure | {"low": mean, "high": mean}
             for figure, mean in ((look.figures[name], look.figures[name]["mean"]) for look in there)]  # fmt: skip
    ends = [[figure[end] for figure in known] for end in ("low", "high")]
    axes.fill_between(examples, *ends, color=palette.series[0], alpha=0.25, linewidth=0)
    axes.plot(examples, means, color=palette.series[0], linewidth=1.8, marker="o", markersize=5)
    axes.set_xlabel("training examples seen", color=palette.text, fontsize=8.5)
    axes.tick_params(colors=palette.text, labelsize=8.5, length=0)
    axes.grid(color=palette.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(ticker.MaxNLocator(5))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=palette.background, pil_kwargs={"optimize": True})
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _numbers(looks: Sequence[Look]) -> str:
    shown = [looks[0], looks[-1]] if len(looks) > 1 else [looks[-1]]
    columns = [(look, what) for look in shown for what in ("Figure", "95 % interval")]
    names = ["", *(f"{what} after {look.examples:,} examples" for look, what in columns)]
    lines = [
        [escape(name), *(cell for look in shown for cell in _cells(look.figures.get(name)))]
        for name in shown[-1].figures
    ]
    return table("stack numbers", names, lines)


def _cells(figure: dict[str, Any] | None) -> tuple[str, str]:
    if figure is None:
        return "", ""
    low, high = figure.get("low"), figure.get("high")
    return escape(_shown(figure)), "none" if low is None or high is None else escape(f"{low:.4g} to {high:.4g}")


def _shown(figure: dict[str, Any]) -> str:
    return f"{figure['mean']:.4g}"


def _texts(look: Look) -> str:
    sign = -1.0 if look.about.get("direction") != "higher_is_better" else 1.0
    scored = [sample for sample in look.samples if sample.get("score") is not None]
    worst = sorted(scored, key=lambda sample: sign * sample["score"])[:FIRST]
    parts = []
    if worst:
        parts += ["<h3>The worst scores</h3>", _table(worst)]
    parts += [f"<h3>In the order in which they were drawn, good or bad</h3>\n{_table(look.samples[:FIRST])}"]
    more = look.samples[FIRST : FIRST + FOLDED]
    if more:
        parts.append(f"<details><summary>{len(more)} further ones</summary>\n{_table(more)}</details>")
    left = len(look.samples) - FIRST - len(more)
    if left > 0:
        parts.append(small(f"{left:,} more are in the run's samples/."))
    return "\n".join(parts)


def _table(samples: Sequence[dict[str, Any]]) -> str:
    lines = [
        [
            f'<div class="text" dir="auto">{escape(sample["prompt"])}</div>' if sample["prompt"] else "",
            f'<div class="text" dir="auto">{escape(sample["completion"])}</div>'
            if sample["completion"]
            else '<span class="empty">nothing</span>',
            "not scored" if sample.get("score") is None else f"{sample['score']:.4g}",
        ]
        for sample in samples
    ]
    return table("stack examples", ("Prompt", "Sample", "Score"), lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 2 with one line that says what is wrong with the input."""
    parser = argparse.ArgumentParser(prog="python -m reports.generations", description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="the run's folder, {cache_dir}/{exp_name}")
    default = Path("generations.html")
    parser.add_argument("--output", type=Path, default=default, help="the HTML file (generations.html)")
    options = parser.parse_args(arguments)
    try:
        scenarios = read_looks(options.run)
        page = build_page(options.run.resolve().name, scenarios)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        temporary = options.output.with_name(f".{options.output.name}.{os.getpid()}.part")
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, options.output)
    except (ValueError, OSError) as error:
        print(f"reports.generations: error: {printable(error)}", file=sys.stderr)
        return 2
    for name, looks in scenarios.items():
        print(printable(f"{name}: {len(looks[-1].samples)} samples after {looks[-1].examples} training examples"))
    print(printable(f"the page: {options.output}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
