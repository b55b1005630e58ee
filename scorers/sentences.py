"""Prose cut into sentences by rules: punctuation, blank lines and a list of abbreviations; no model, linear in time."""

from __future__ import annotations

import re

_END = re.compile(r"(?:[.!?\u2026]+[\"')\]\u00bb\u201d\u2019*]*|[\u3002\uff01\uff1f]+)(\s*)|\n(\s*)")
"""What may end a sentence, with the whitespace behind it. It matches all of a run of dots, so that no run is read
twice."""

_WORD = re.compile(r"[^\W\d_][\w.]*\Z")
_ABBREVIATIONS = frozenset(
    (
        *("mr", "mrs", "ms", "dr", "prof", "rev", "hon", "sr", "jr", "st", "mt", "ft", "gen", "col", "sgt"),
        *("capt", "lt", "cmdr", "gov", "sen", "rep", "pres", "vs", "etc", "cf", "approx", "dept", "inc"),
        *("ltd", "corp", "vol", "fig", "figs", "eq", "ch", "pp", "ed", "eds", "jan", "feb", "apr", "aug"),
        *("sept", "oct", "nov", "dec", "e.g", "i.e", "a.m", "p.m", "u.s", "u.k", "ph.d"),
    )
)
_OPENING = "\"'(\u00ab\u201c\u2018[*-\u2013\u2014"
_LONGEST_WORD = 20


def sentences(text: str) -> list[tuple[int, int]]:
    """[start, end) of each sentence, in characters. They cover the text, each with the whitespace that follows it.

    A sentence ends at `.`, `!`, `?` or an ellipsis before whitespace and what may begin a sentence, at a full stop of
    Chinese or Japanese, and at a blank line. A name's initial, an abbreviation (Dr., e.g.) and a number do not end one.
    """
    spans: list[tuple[int, int]] = []
    start = 0
    for found in _END.finditer(text):
        end = found.end()
        if end < len(text) and _ends(text, found) and not text[start:end].isspace():
            spans.append((start, end))
            start = end
    if start < len(text):
        spans.append((start, len(text)))
    return spans


def _ends(text: str, found: re.Match[str]) -> bool:
    mark, space = found.group(), found.group(1)
    if space is None:
        return "\n" in found.group(2)  # a blank line
    if mark[0] in "\u3002\uff01\uff1f":
        return True
    if not space:
        return False
    if "\n" in space.partition("\n")[2]:
        return True
    following = text[found.end()]
    if following.islower() or not (following.isalnum() or following in _OPENING):
        return False
    if mark.rstrip() != ".":
        return True
    word = _WORD.search(text, max(0, found.start() - _LONGEST_WORD), found.start())
    if word is None:
        return True
    return word[0].lower() not in _ABBREVIATIONS and not (len(word[0]) == 1 and word[0].isupper() and word[0] != "I")
