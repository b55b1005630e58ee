"""Prompts and responses as HTML: escaped, the facts marked, before and after side by side.

What models and data sets wrote may be anything, so every text goes through `escape`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from reports.facts import fact_spans
from reports.inputs import Sample

FIRST = 12  # rows of the table of examples; the others are folded away
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_OUTCOMES = {"won": "after wins", "tie": "tie", "lost": "before wins"}


def escape(text: object) -> str:
    """Text for HTML, also within quoted attributes; what no page may hold (control characters) becomes U+FFFD."""
    return html.escape(_UNPRINTABLE.sub("\ufffd", str(text)), quote=True)


def marked(text: str, facts: Sequence[str]) -> str:
    """The text as HTML with the first mention of each fact marked."""
    parts, end = [], 0
    for start, stop in sorted(span for span in fact_spans(text, facts) if span is not None):
        if start >= end:  # two facts may be said by overlapping words
            parts += [escape(text[end:start]), f"<mark>{escape(text[start:stop])}</mark>"]
            end = stop
    return "".join([*parts, escape(text[end:])])


def response(text: str, facts: Sequence[str], whole: bool | None) -> str:
    """One response: the words, and whether it was cut off."""
    if not text.strip():
        return '<div class="text empty">(empty)</div>'
    cut = ' <span class="chip cut">cut off</span>' if whole is False else ""
    return f'<div class="text" dir="auto">{marked(text, facts)}{cut}</div>'


def outcome_chip(outcome: str | None) -> str:
    """Who won, as a chip; empty where it is not known."""
    if outcome is None:
        return ""
    kind = outcome if outcome in ("won", "tie", "lost", "undecided", "failed") else "tie"
    return f'<span class="chip {kind}">{escape(_OUTCOMES.get(outcome, outcome))}</span>'


def side_by_side(samples: Sequence[Sample], outcomes: Sequence[str | None]) -> str:
    """The first prompt of each topic, in the file's order: before and after next to each other."""
    firsts: dict[str, int] = {}
    for index, sample in enumerate(samples):
        if sample.topic:
            firsts.setdefault(sample.topic, index)
    return "\n".join(_pair(samples[index], outcomes[index]) for index in firsts.values())


def _pair(sample: Sample, outcome: str | None) -> str:
    return f"""<article class="card pair">
<p class="small">{escape(sample.topic)} {outcome_chip(outcome)}{_facts_note(sample)}</p>
<h3 class="text" dir="auto">{escape(sample.prompt)}</h3>
<div class="sides">
<div class="before"><span class="label">Before</span>{response(sample.before, sample.facts, sample.before_whole)}</div>
<div class="after"><span class="label">After</span>{response(sample.after, sample.facts, sample.after_whole)}</div>
</div></article>"""


def _facts_note(sample: Sample) -> str:
    facts = "; ".join(" or ".join(part.strip() for part in fact.split("|")) for fact in sample.facts)
    return f" a right answer says: {escape(facts)}" if facts else ""


def example_table(samples: Sequence[Sample], outcomes: Sequence[str | None]) -> str:
    """The first prompts of the file as a table, and all the others in one that is folded away."""
    table = _table(samples[:FIRST], outcomes[:FIRST])
    if len(samples) <= FIRST:
        return table
    rest = len(samples) - FIRST
    summary = f"<summary>The other {rest} prompts, in the same order</summary>"
    return f"{table}\n<details>{summary}\n{_table(samples[FIRST:], outcomes[FIRST:])}</details>"


def _table(samples: Sequence[Sample], outcomes: Sequence[str | None]) -> str:
    lines = []
    for sample, outcome in zip(samples, outcomes, strict=True):
        before = response(sample.before, sample.facts, sample.before_whole)
        after = response(sample.after, sample.facts, sample.after_whole)
        lines.append(
            f'<tr><th scope="row"><div class="text" dir="auto">{escape(sample.prompt)}</div></th>'
            f'<td data-label="Before">{before}</td><td data-label="After">{after}</td><td>{outcome_chip(outcome)}</td></tr>'
        )
    head = '<tr><th scope="col">Prompt</th><th scope="col">Before</th><th scope="col">After</th><th scope="col">Outcome</th></tr>'
    columns = '<colgroup><col style="width:24%"><col style="width:37%"><col><col style="width:7rem"></colgroup>'
    body = "\n".join(lines)
    return f'<div class="card wide"><table class="stack examples">{columns}<thead>{head}</thead><tbody>\n{body}\n</tbody></table></div>'
