"""What others wrote, made fit for a terminal."""

from __future__ import annotations

import re

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    r"""The text with its control characters in words, newline and tab aside: an escape character becomes `\x1b`.

    A terminal obeys control characters: they hide what is printed, rewrite it, turn its direction or rename the window.
    Halves of surrogate pairs, which cannot be printed, are escaped as well.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))
