"""The lines of a text, as Python's own reading of files cuts them: at LF, CRLF and CR, and at nothing else."""

from __future__ import annotations

import re

_LINE_END = re.compile(r"\r\n|\n|\r")


def line_ends(text: str) -> list[int]:
    """Where each line ends, its line end included, in characters; the last one need not have any."""
    ends = [found.end() for found in _LINE_END.finditer(text)]
    if text and (not ends or ends[-1] < len(text)):
        ends.append(len(text))
    return ends


def with_newlines(text: str, ends: list[int]) -> list[str]:
    """The lines, each line end as LF."""
    return [_LINE_END.sub("\n", text[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
