"""The HTML report of a run: one file with everything in it, and the headline numbers as a printed table.

python -m reports.page --run .cache/demo --samples demo/demo.json --results demo/results.jsonl --output demo/report.html
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports.curves import Curve, draw_curves
from reports.headline import Headline, Row, Verdict, judge_name, printed_table, rows, span, summarize
from reports.inputs import Run, Samples, read_outcomes, read_results, read_run, read_samples, setting
from reports.responses import escape, example_table, side_by_side

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # a hostile text could run and load nothing
_SETTINGS = (
    ("Model", "model.name"),
    ("Weights", "model.name_or_path"),
    ("Loss", "loss.name"),
    ("β", "loss.beta"),
    ("Weight of desirable responses", "loss.desirable_weight"),
    ("Weight of undesirable responses", "loss.undesirable_weight"),
    ("Learning rate", "lr"),
    ("Schedule", "scheduler"),
    ("Optimizer", "optimizer"),
    ("Examples of a step", "model.batch_size"),
    ("Gradient accumulation steps", "model.gradient_accumulation_steps"),
    ("Seed", "seed"),
)
_SAMPLING_SETTINGS = (
    ("Temperature", "temperature"),
    ("Top-p", "top_p"),
    ("Longest response, tokens", "max_new_tokens"),
    ("Seed of sampling", "seed"),
    ("Split", "split"),
)


def build_page(
    run: Run,
    samples: Samples,
    headline: Headline,
    curves: Sequence[Curve],
    outcomes: Sequence[str | None],
    about: str = "",
) -> str:
    """The whole page as HTML.

    Args:
        outcomes: who won each sample by the first judge, None where that is not known.
        about: what the data teaches, in a sentence of the caller's.
    """
    title = f"{setting(run.config, 'model.name', 'A model')} before and after {_loss_name(run)}"
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    sections = [
        _opening(run, samples, headline, title, about),
        _numbers(headline, samples),
        _charts(run, curves),
        _examples(samples, outcomes, headline),
        _settings(run, samples),
    ]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
{chr(10).join(sections)}
</main>
<footer>Made by Aureole from the run's own files: metrics.jsonl, config.yaml, data.json, its samples
({escape(samples.sampled_at) or "no date"}) and the results of compare.py. Intervals are 95 %; their unit is the prompt.</footer>
</body>
</html>
"""


def _loss_name(run: Run) -> str:
    return str(setting(run.config, "loss.name", "training")).upper()


def _examples_seen(run: Run) -> int:
    return int(max((record.get("counters/examples", 0) for record in run.metrics), default=0))


# What happened -------------------------------------------------------------------------------------------------------


def _opening(run: Run, samples: Samples, headline: Headline, title: str, about: str) -> str:
    data = ", ".join(setting(run.config, "datasets", {})) or "its data"
    sentences = [
        f"The model {setting(run.config, 'model.name', '')} was trained by {_loss_name(run)} on {_examples_seen(run):,} "
        f"examples of the data set {data}{_duration(run)}.",
        about.strip(),
        f"Then the model before and the model after answered the same {headline.responses} held-out prompts.",
        *_findings(headline),
    ]
    words = escape(" ".join(filter(None, sentences)))
    tiles = "\n".join(_tile(row) for row in rows(headline) if row.large)
    name = escape(setting(run.config, "exp_name", ""))
    return f'<p class="eyebrow">Aureole · {name}</p>\n<h1>{escape(title)}</h1>\n<p class="lead">{words}</p>\n<div class="grid tiles">\n{tiles}\n</div>'


def _duration(run: Run) -> str:
    steps = [record["seconds/all"] for record in run.records("train") if "seconds/all" in record]
    seconds = sum(steps) + sum(record.get("eval_seconds", 0) for record in run.records("eval"))
    return f" in {seconds / 60:.1f} minutes, evaluations included" if steps else ""


def _findings(headline: Headline) -> list[str]:
    """What the numbers say in words, and no more than the intervals allow."""
    found = []
    verdict = headline.verdicts[0]
    if verdict.interval is not None:
        low, high = verdict.interval
        said = (
            "is preferred" if low > 50 else "is not preferred" if high < 50 else "cannot be told from the model before"
        )
        found.append(
            f"Judged by {_in_a_sentence(verdict)}, the model after {said}: its win rate is {verdict.win_rate:.1f} %, with a "
            f"95 % interval from {span(low, high)} %."
        )
    if headline.facts is not None:
        low, high = headline.facts.interval
        said = (
            "It knows more facts"
            if low > 0
            else "It knows fewer facts"
            if high < 0
            else "What it knows has not clearly changed"
        )
        counts = f"{headline.facts.after} of {headline.facts.count} answers hold the fact, {headline.facts.before} did before"
        found.append(f"{said}: {counts} (change {span(100 * low, 100 * high, '{:+.1f}')} points).")
    return found


def _in_a_sentence(verdict: Verdict) -> str:
    return f"the rule “{judge_name(verdict.judge)}”" if verdict.rule else verdict.judge


def _tile(row: Row) -> str:
    return (
        f'<div class="card tile"><span class="label">{escape(row.name)}</span><span class="value">{_large(row)}</span>'
        f'<span class="small">{escape(row.interval)}</span><span class="small">{escape(row.counted)}</span></div>'
    )


def _large(row: Row) -> str:
    before, after = (part.partition(" (")[0] for part in (row.before, row.after))
    return f"<small>{escape(before)} →</small> {escape(after)}" if before else escape(after)


# Numbers -------------------------------------------------------------------------------------------------------------


def _numbers(headline: Headline, samples: Samples) -> str:
    lines = [
        f'<tr><th scope="row">{escape(row.name)}</th><td data-label="Before">{escape(row.before)}</td>'
        f'<td data-label="After">{escape(row.after)}</td><td data-label="95 % interval">{escape(row.interval)}</td>'
        f'<td data-label="Counted over">{escape(row.counted)}</td></tr>'
        for row in rows(headline)
    ]
    names = ("", "Before", "After", "95 % interval", "Counted over")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    rules = "\n".join(_rule(verdict) for verdict in headline.verdicts)
    notes = "\n".join(f'<p class="small">{escape(note)}</p>' for note in _notes(headline, samples))
    table = f'<table class="stack numbers"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    return f'<h2>The numbers</h2>\n{_scale(headline)}\n{rules}\n<div class="card wide">{table}</div>\n{notes}'


def _rule(verdict: Verdict) -> str:
    if not verdict.rule:
        return ""
    return f"<blockquote><strong>{escape(judge_name(verdict.judge).capitalize())}.</strong> {escape(verdict.rule)}</blockquote>"


def _notes(headline: Headline, samples: Samples) -> list[str]:
    notes = [
        "Win rates, pair accuracy: Wilson score intervals. Changes of a share: Newcombe's interval for paired proportions, of "
        "after minus before on the same prompts. Medians: between order statistics. KL: Student's t over prompts."
    ]
    if headline.divergence is not None:
        note = "KL: mean of log p(after) − log p(before) over the responses of the model after."
        temperature, top_p = (setting(samples.config, key, 1.0) for key in ("temperature", "top_p"))
        if (temperature, top_p) != (1.0, 1.0):
            note += f" They were sampled at temperature {temperature} and top-p {top_p}, so it is an estimate for likely responses."
        notes.append(note)
    if samples.repeated:
        notes.append(f"{samples.repeated} further rows of the samples file repeat a prompt and are left out.")
    return notes


def _scale(headline: Headline) -> str:
    """Shares with their intervals on one scale from 0 to 100 %, with a line at 50 %."""
    shares = [(f"Win rate: {judge_name(v.judge)}", v.win_rate, v.interval) for v in headline.verdicts]
    accuracy = headline.pair_accuracy
    if accuracy is not None and accuracy.interval is not None:
        shares.append(("Pair accuracy", 100 * accuracy.value, tuple(100 * end for end in accuracy.interval)))
    lines = [
        f"<div>{escape(name)}</div>{_interval_drawing(name, value, *interval)}"
        for name, value, interval in shares
        if value is not None and interval is not None
    ]
    ticks = "".join(
        f'<text x="{x}%" y="12" text-anchor="{anchor}">{x} %</text>'
        for x, anchor in ((0, "start"), (50, "middle"), (100, "end"))
    )
    axis = f'<div class="corner"></div><svg class="axis" aria-hidden="true">{ticks}</svg>'
    return f'<div class="card scale">{"".join(lines)}{axis}</div>' if lines else ""


def _interval_drawing(name: str, value: float, low: float, high: float) -> str:
    words = escape(f"{name}: {value:.1f} %, 95 % interval {span(low, high)} %; the middle line is 50 %")
    return (
        f'<svg role="img" aria-label="{words}"><title>{words}</title>'
        '<line x1="0%" x2="100%" y1="50%" y2="50%" stroke="var(--line)" stroke-width="2"/>'
        '<line x1="50%" x2="50%" y1="0" y2="100%" stroke="var(--soft)" stroke-dasharray="3 3"/>'
        f'<line x1="{low:.2f}%" x2="{high:.2f}%" y1="50%" y2="50%" stroke="var(--accent)" stroke-width="8" stroke-opacity="0.45"/>'
        f'<circle cx="{value:.2f}%" cy="50%" r="6" fill="var(--accent)"/></svg>'
    )


# Curves, examples, settings ------------------------------------------------------------------------------------------


def _charts(run: Run, curves: Sequence[Curve]) -> str:
    figures = "\n".join(
        f'<figure class="card"><h3>{escape(curve.panel.title)}</h3><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{curve.dark}">'
        f'<img alt="{escape(curve.alt)}" width="836" height="494" src="data:image/png;base64,{curve.light}"></picture>'
        f"<figcaption>{escape(curve.panel.about)}</figcaption></figure>"
        for curve in curves
    )
    note = "Lines: each optimizer step, on examples just before they are learned from. Dots: the fixed held-out set."
    return f'<h2>Training</h2>\n<p class="small">{note}</p>\n<div class="grid charts">\n{figures}\n</div>'


def _examples(samples: Samples, outcomes: Sequence[str | None], headline: Headline) -> str:
    judge = _in_a_sentence(headline.verdicts[0])
    by = f" The outcome is by {escape(judge)}." if any(outcomes) else ""
    marks = " Facts of the right answer are <mark>marked</mark>." if samples.with_facts() else ""
    pairs, parts = side_by_side(samples.samples, outcomes), []
    if pairs:
        note = f"The first prompt of each topic, in the file's order.{by}{marks}"
        parts.append(f'<h2>Side by side</h2>\n<p class="small">{note}</p>\n{pairs}')
    note = f"Not chosen: the first prompts in the order of the samples file, good or bad.{by}{marks}"
    parts.append(f'<h2>Examples</h2>\n<p class="small">{note}</p>\n{example_table(samples.samples, outcomes)}')
    return "\n".join(parts)


def _settings(run: Run, samples: Samples) -> str:
    pairs = [(name, setting(run.config, key)) for name, key in _SETTINGS]
    pairs += [(name, setting(samples.config, key)) for name, key in _SAMPLING_SETTINGS]
    pairs.append(("Examples trained on", f"{_examples_seen(run):,}"))
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in pairs
        if value is not None
    )
    return (
        f'<h2>Settings</h2>\n<div class="card wide"><table class="settings"><tbody>{lines}</tbody></table></div>\n'
        f"<details><summary>The whole config of the run</summary><pre>{escape(_yaml(run.config))}</pre></details>\n"
        f"<h2>Data</h2>\n{_account(run.account)}"
    )


def _yaml(config: dict[str, Any]) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(config))


def _account(account: dict[str, dict[str, Any]]) -> str:
    if not account:
        return '<p class="small">The run has no data.json.</p>'
    names = ("Data set", "Split", "Rows", "Used", "Dropped", "Cut", "Examples")
    lines = []
    for name, splits in account.items():
        for split, counts in splits.items():
            dropped, cut = (
                "; ".join(f"{count:,} {what}" for what, count in counts.get(key, {}).items() if count) or "none"
                for key in ("dropped", "cut")
            )
            cells = (name, split, f"{counts['rows']:,}", f"{counts['used']:,}", dropped, cut, f"{counts['examples']:,}")
            labelled = zip(names, cells, strict=True)
            lines.append(
                "<tr>" + "".join(f'<td data-label="{label}">{escape(cell)}</td>' for label, cell in labelled) + "</tr>"
            )
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    note = (
        "Examples are what the loss counts: of a pair, single feedback makes two. A run may end before it has seen all."
    )
    return (
        f'<div class="card wide"><table class="stack numbers"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>\n'
        f'<p class="small">{note}</p>'
    )


# The command ---------------------------------------------------------------------------------------------------------


def write_report(options: argparse.Namespace) -> str:
    """Writes the page; returns the printed table."""
    run, samples = read_run(options.run), read_samples(options.samples)
    headline = summarize(run, samples, read_results(options.results, samples))
    page = build_page(
        run, samples, headline, draw_curves(run), read_outcomes(options.judgments, samples), options.about
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = options.output.with_suffix(".tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, options.output)
    name = setting(run.config, "exp_name", "run")
    title = f"{name}: {setting(run.config, 'model.name', 'model')} before and after {_loss_name(run)}"
    return printed_table(headline, title, str(options.output))


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 2 with one line that says what is wrong with the input."""
    parser = argparse.ArgumentParser(prog="python -m reports.page", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--run", type=Path, required=True, help="the run's folder, {cache_dir}/{exp_name}")
    add("--samples", type=Path, required=True, help="its samples, with the reference's (++sample_reference=true)")
    add("--results", type=Path, required=True, nargs="+", help="results of compare.py, policy against reference")
    add("--judgments", type=Path, help="the first judge's `compare.py -csv` file: who won each prompt")
    add("--about", default="", help="what the data teaches, in a sentence")
    add("--output", type=Path, required=True, help="the HTML file to write")
    try:
        print(write_report(parser.parse_args(arguments)))
    except (ValueError, OSError) as error:
        print(f"reports.page: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
