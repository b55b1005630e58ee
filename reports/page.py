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
from reports.markup import document, escape, printable, scale, small, table
from reports.responses import example_table, side_by_side

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
    ("Sampled split", "split"),
    ("Temperature", "temperature"),
    ("Top-p", "top_p"),
    ("Longest response, tokens", "max_new_tokens"),
    ("Seed of sampling", "seed"),
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
    sections = [
        _opening(run, headline, about),
        _numbers(headline, samples),
        _charts(curves),
        _examples(samples, outcomes, headline),
        _settings(run, samples),
    ]
    footer = (
        "Made by Aureole from the run's own files: metrics.jsonl, config.yaml, data.json, its samples\n"
        f"({escape(samples.sampled_at) or 'no date'}) and the results of compare.py. Intervals are 95 %; their unit is "
        "the\nprompt."
    )
    return document(_title(run), "\n".join(sections), footer)


def _title(run: Run) -> str:
    return f"{setting(run.config, 'model.name', 'A model')} before and after {_loss_name(run)}"


def _loss_name(run: Run) -> str:
    return str(setting(run.config, "loss.name", "training")).upper()


def _examples_seen(run: Run) -> int:
    return int(max((record.get("counters/examples", 0) for record in run.metrics), default=0))


# What happened -------------------------------------------------------------------------------------------------------


def _opening(run: Run, headline: Headline, about: str) -> str:
    data = ", ".join(setting(run.config, "datasets", {})) or "its data"
    sentences = [
        f"The model {setting(run.config, 'model.name', '')} was trained by {_loss_name(run)} on "
        f"{_examples_seen(run):,} examples of the data set {data}{_duration(run)}.",
        about.strip(),
        f"Then the model before and the model after answered the same {headline.responses} held-out prompts.",
        *_findings(headline),
    ]
    words = escape(" ".join(filter(None, sentences)))
    name = escape(setting(run.config, "exp_name", ""))
    tiles = "\n".join(_tile(row) for row in rows(headline) if row.large)
    head = f'<p class="eyebrow">Aureole · {name}</p>\n<h1>{escape(_title(run))}</h1>\n<p class="lead">{words}</p>'
    return f'{head}\n<div class="grid tiles">\n{tiles}\n</div>'


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
        said = _by_interval(low - 50, high - 50, "is preferred", "is not preferred", "cannot be told from the other")
        found.append(
            f"Judged by {_in_a_sentence(verdict)}, the model after {said}: its win rate is {verdict.win_rate:.1f} %, "
            f"with a 95 % interval from {span(low, high)} %."
        )
    if (facts := headline.facts) is not None:
        low, high = (100 * end for end in facts.interval)
        said = _by_interval(
            low,
            high,
            "It says the fact more often",
            "It says the fact less often",
            "It says the fact about as often",
        )
        counts = f"{facts.after} of {facts.count} answers hold the fact, {facts.before} did before"
        found.append(f"{said}: {counts} (change {span(low, high, '{:+.1f}')} points).")
    return found


def _by_interval(low: float, high: float, above: str, below: str, unclear: str) -> str:
    return above if low > 0 else below if high < 0 else unclear


def _in_a_sentence(verdict: Verdict) -> str:
    return f"the rule “{judge_name(verdict.judge)}”" if verdict.rule else verdict.judge


def _tile(row: Row) -> str:
    before, after = (escape(part.partition(" (")[0]) for part in (row.before, row.after))
    value = f"<small>{before} →</small> {after}" if before else after
    return (
        f'<div class="card tile"><span class="label">{escape(row.name)}</span><span class="value">{value}</span>'
        f'<span class="small">{escape(row.interval)}</span><span class="small">{escape(row.counted)}</span></div>'
    )


# Numbers -------------------------------------------------------------------------------------------------------------


def _numbers(headline: Headline, samples: Samples) -> str:
    shares = [(f"Win rate: {judge_name(v.judge)}", v.win_rate, v.interval) for v in headline.verdicts if v.interval]
    if (accuracy := headline.pair_accuracy) is not None and accuracy.interval is not None:
        low, high = accuracy.interval
        shares.append(("Pair accuracy", 100 * accuracy.value, (100 * low, 100 * high)))
    names = ("", "Before", "After", "95 % interval", "Counted over")
    cells = [(row.name, row.before, row.after, row.interval, row.counted) for row in rows(headline)]
    parts = [
        "<h2>The numbers</h2>",
        scale(shares),
        *(_rule(verdict) for verdict in headline.verdicts if verdict.rule),
        table("stack numbers", names, [[escape(cell) for cell in line] for line in cells]),
        *(small(escape(note)) for note in _notes(headline, samples)),
    ]
    return "\n".join(parts)


def _rule(verdict: Verdict) -> str:
    name = escape(judge_name(verdict.judge).capitalize())
    return f"<blockquote><strong>{name}.</strong> {escape(verdict.rule)}</blockquote>"


def _notes(headline: Headline, samples: Samples) -> list[str]:
    notes = [
        "Win rate: a tie counts half. Win rates and pair accuracy have Wilson's score interval; changes of a share "
        "Newcombe's interval for paired proportions, of after minus before on the same prompts; medians an interval "
        "between order statistics; KL Student's t over prompts."
    ]
    if headline.divergence is not None:
        note = (
            "KL from the model before: the mean, over responses of the model after, of how much more likely it makes "
            "them, as a difference of log-probabilities."
        )
        temperature, top_p = (setting(samples.config, key, 1.0) for key in ("temperature", "top_p"))
        if temperature == 0:
            note += " They are its likeliest responses, token by token, not samples; for samples it would be another."
        elif (temperature, top_p) != (1.0, 1.0):
            note += (
                f" They were sampled at temperature {temperature} and top-p {top_p}, which favours likely responses."
            )
        notes.append(note)
    if samples.repeated:
        notes.append(f"{samples.repeated} further rows of the samples file repeat a prompt and are left out.")
    return notes


# Curves, examples, settings ------------------------------------------------------------------------------------------


def _charts(curves: Sequence[Curve]) -> str:
    figures = "\n".join(
        f'<figure class="card"><h3>{escape(curve.panel.title)}</h3><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{curve.dark}">'
        f'<img alt="{escape(curve.alt)}" width="840" height="552" src="data:image/png;base64,{curve.light}"></picture>'
        f"<figcaption>{escape(curve.panel.about)}</figcaption></figure>"
        for curve in curves
    )
    note = "Lines: each optimizer step, on its examples before it learns from them. Dots: the fixed held-out set."
    return f'<h2>Training</h2>\n{small(note)}\n<div class="grid charts">\n{figures}\n</div>'


def _examples(samples: Samples, outcomes: Sequence[str | None], headline: Headline) -> str:
    by = f" The outcome is by {escape(_in_a_sentence(headline.verdicts[0]))}." if any(outcomes) else ""
    marks = " Facts of the right answer are <mark>marked</mark>." if samples.with_facts() else ""
    parts = []
    if pairs := side_by_side(samples.samples, outcomes):
        note = small(f"The first prompt of each topic, in the file's order.{by}{marks}")
        parts.append(f"<h2>Side by side</h2>\n{note}\n{pairs}")
    note = small(f"Not chosen: the first prompts in the order of the samples file, good or bad.{by}{marks}")
    parts.append(f"<h2>Examples in order</h2>\n{note}\n{example_table(samples.samples, outcomes)}")
    return "\n".join(parts)


def _settings(run: Run, samples: Samples) -> str:
    pairs = [(name, setting(run.config, key)) for name, key in _SETTINGS]
    pairs.append(("Examples trained on", f"{_examples_seen(run):,}"))
    pairs += [(name, setting(samples.config, key)) for name, key in _SAMPLING_SETTINGS]
    lines = [(escape(name), escape(value)) for name, value in pairs if value is not None]
    whole = f"<details><summary>The whole config of the run</summary><pre>{escape(_yaml(run.config))}</pre></details>"
    return f"<h2>Settings</h2>\n{table('settings', (), lines)}\n{whole}\n<h2>Data</h2>\n{_account(run.account)}"


def _yaml(config: dict[str, Any]) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(config))


def _account(account: dict[str, dict[str, Any]]) -> str:
    if not account:
        return small("The run has no data.json.")
    lines = []
    for name, splits in account.items():
        for split, counts in splits.items():
            reasons = [
                "; ".join(f"{count:,} {what}" for what, count in counts.get(key, {}).items() if count) or "none"
                for key in ("dropped", "cut")
            ]
            rows_used = (f"{counts['rows']:,}", f"{counts['used']:,}")
            lines.append([escape(cell) for cell in (name, split, *rows_used, *reasons, f"{counts['examples']:,}")])
    names = ("Data set", "Split", "Rows", "Used", "Dropped", "Cut", "Examples")
    note = "Examples are what the loss counts: a pair makes two of single feedback. A run may end before it saw all."
    return f"{table('stack numbers', names, lines)}\n{small(note)}"


# The command ---------------------------------------------------------------------------------------------------------


def write_report(options: argparse.Namespace) -> str:
    """Writes the page; returns the printed table."""
    run, samples = read_run(options.run), read_samples(options.samples)
    headline = summarize(run, samples, read_results(options.results, samples))
    outcomes = read_outcomes(options.judgments, samples)
    page = build_page(run, samples, headline, draw_curves(run), outcomes, options.about)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = options.output.with_name(f".{options.output.name}.{os.getpid()}.part")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, options.output)
    title = f"{setting(run.config, 'exp_name', 'run')}: {_title(run)}"
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
        print(printable(write_report(parser.parse_args(arguments))))
    except (ValueError, OSError) as error:
        print(f"reports.page: error: {printable(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
