"""Pieces of HTML: escaped text, tables that fold on a phone, and intervals drawn on a scale.

What models and data sets wrote may be anything, so every text goes through `escape` before it becomes HTML.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

from reports.intervals import Interval

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # a hostile text could run and load nothing


def document(title: str, body: str, footer: str) -> str:
    """A whole page that needs no other file.

    Args:
        title: as text.
        body, footer: as HTML.
    """
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
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
{body}
</main>
<footer>{footer}</footer>
</body>
</html>
"""


def escape(text: object) -> str:
    """Text for HTML, also within quoted attributes; what no page may hold (control characters) becomes U+FFFD."""
    return html.escape(_UNPRINTABLE.sub("\ufffd", str(text)), quote=True)


def printable(text: object) -> str:
    r"""Text for a terminal, which would obey control characters: newline and tab aside they become `\x1b` and so on.

    `scorers.printable` does the same for compare.py; a test holds the two together.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def table(kind: str, names: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in a card. The first cell of a line is its heading; on a phone each cell stands below the next.

    Args:
        kind: its classes in page.css.
        names: of the columns, as text; without any the table has no head.
        lines: cells as HTML.
    """
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    head = f"<thead><tr>{heads}</tr></thead>" if names else ""
    labels = [f' data-label="{escape(name)}"' for name in names[1:]]
    body = []
    for first, *rest in lines:
        cells = zip(labels or [""] * len(rest), rest, strict=True)
        cells_html = "".join(f"<td{label}>{cell}</td>" for label, cell in cells)
        body.append(f'<tr><th scope="row">{first}</th>{cells_html}</tr>')
    rows = "\n".join(body)
    return f'<div class="card wide"><table class="{kind}">{head}<tbody>\n{rows}\n</tbody></table></div>'


def scale(shares: Sequence[tuple[str, float, Interval]]) -> str:
    """(name, percent, interval)s below each other on one scale from 0 to 100 %, with a line at 50 %; "" without any."""
    if not shares:
        return ""
    lines = "".join(f"<div>{escape(name)}</div>{_drawn(name, value, *ends)}" for name, value, ends in shares)
    ticks = "".join(
        f'<text x="{place}%" y="12" text-anchor="{anchor}">{place} %</text>'
        for place, anchor in ((0, "start"), (50, "middle"), (100, "end"))
    )
    axis = f'<div class="corner"></div><svg class="axis" aria-hidden="true">{ticks}</svg>'
    return f'<div class="card scale">{lines}{axis}</div>'


def _drawn(name: str, value: float, low: float, high: float) -> str:
    words = escape(f"{name}: {value:.1f} %, 95 % interval {low:.1f} to {high:.1f} %; the middle line is 50 %")
    return (
        f'<svg role="img" aria-label="{words}"><title>{words}</title>'
        '<line class="track" x1="0%" x2="100%" y1="50%" y2="50%"/>'
        '<line class="middle" x1="50%" x2="50%" y1="0" y2="100%"/>'
        f'<line class="ends" x1="{low:.2f}%" x2="{high:.2f}%" y1="50%" y2="50%"/>'
        f'<circle cx="{value:.2f}%" cy="50%" r="6"/></svg>'
    )


def small(note: str) -> str:
    """A paragraph of small print; `note` is HTML."""
    return f'<p class="small">{note}</p>'
