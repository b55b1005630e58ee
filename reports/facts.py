"""Where a response says the facts of a right answer, so that the report can mark and count them.

`scorers.rules` decides by the same reading who wins. This package imports none of ours, so the reading stands here
once more, and tests/reports/test_facts.py holds the two together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Span = tuple[int, int]


def fact_spans(text: str, facts: Sequence[str]) -> list[Span | None]:
    """For each fact the first place where it is said, in characters; None where it is not.

    A fact lists alternatives between "|". They match as whole words, whatever their case; a number does not match
    inside another one (5 is not said by "1.5" or "5,000").
    """
    return [_first_span(text, fact) for fact in facts]


def _first_span(text: str, fact: str) -> Span | None:
    matches = []
    for alternative in filter(None, map(str.strip, fact.split("|"))):
        words = r"\s+".join(map(re.escape, alternative.split()))
        before = r"(?<!\d[.,])" if alternative[0].isdigit() else ""
        after = r"(?![.,]\d)" if alternative[-1].isdigit() else ""
        match = re.search(rf"(?<![^\W_]){before}{words}(?![^\W_]){after}", text, re.IGNORECASE)
        if match:
            matches.append(match.span())
    return min(matches, key=lambda span: span[1], default=None)


def says_all(text: str, facts: Sequence[str]) -> bool:
    """Whether the text says all the facts."""
    return None not in fact_spans(text, facts)
