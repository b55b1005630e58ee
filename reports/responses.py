"""Prompts and responses as HTML: the facts marked, before and after side by side, who won."""

from __future__ import annotations

from collections.abc import Sequence

from reports.facts import fact_spans, says_all
from reports.inputs import Sample
from reports.markup import escape, table

FIRST = 12  # rows of the table of examples; the others are folded away
_OUTCOMES = {"won": "after wins", "tie": "tie", "lost": "before wins"}
_SAID = {
    (True, True): "both say the fact",
    (True, False): "only before says the fact",
    (False, True): "only after says the fact",
    (False, False): "neither says the fact",
}
_NAMES = ("Prompt", "Before", "After", "Outcome")


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
    return f'<div class="text" dir="auto"><bdi>{marked(text, facts)}</bdi>{cut}</div>'


def outcome_chip(outcome: str | None, sample: Sample) -> str:
    """Who won, as a chip, and which of the two said the facts; empty where it is not known who won."""
    if outcome is None:
        return ""
    kind = outcome if outcome in _OUTCOMES else "tie"
    chip = f'<span class="chip {kind}">{escape(_OUTCOMES.get(outcome, outcome))}</span>'
    if not sample.facts:
        return chip
    said = says_all(sample.before, sample.facts), says_all(sample.after, sample.facts)
    return f'{chip} <span class="small">{_SAID[said]}</span>'


def side_by_side(samples: Sequence[Sample], outcomes: Sequence[str | None]) -> str:
    """The first prompt of each topic, in the file's order; empty where there are no topics."""
    firsts: dict[str, int] = {}
    for index, sample in enumerate(samples):
        if sample.topic:
            firsts.setdefault(sample.topic, index)
    return "\n".join(_pair(samples[index], outcomes[index]) for index in firsts.values())


def _pair(sample: Sample, outcome: str | None) -> str:
    sides = "".join(
        f'<div class="{name.lower()}"><span class="label">{name}</span>{words}</div>\n'
        for name, words in zip(("Before", "After"), _both(sample), strict=True)
    )
    about = f"{escape(sample.topic)} {outcome_chip(outcome, sample)}{_asked(sample)}"
    return (
        f'<article class="card pair">\n<p class="small">{about}</p>\n'
        f'<h3 class="text" dir="auto">{escape(sample.prompt)}</h3>\n<div class="sides">\n{sides}</div></article>'
    )


def _both(sample: Sample) -> tuple[str, str]:
    before = response(sample.before, sample.facts, sample.before_whole)
    return before, response(sample.after, sample.facts, sample.after_whole)


def _asked(sample: Sample) -> str:
    facts = "; ".join(" or ".join(part.strip() for part in fact.split("|")) for fact in sample.facts)
    return f" a right answer says: {escape(facts)}" if facts else ""


def example_table(samples: Sequence[Sample], outcomes: Sequence[str | None]) -> str:
    """The first prompts of the file as a table, and all the others in one that is folded away."""
    lines = [
        (f'<div class="text" dir="auto">{escape(sample.prompt)}</div>', *_both(sample), outcome_chip(outcome, sample))
        for sample, outcome in zip(samples, outcomes, strict=True)
    ]
    shown = table("stack examples", _NAMES, lines[:FIRST])
    if len(lines) <= FIRST:
        return shown
    summary = f"<summary>The other {len(lines) - FIRST} prompts, in the same order</summary>"
    return f"{shown}\n<details>{summary}\n{table('stack examples', _NAMES, lines[FIRST:])}</details>"
