"""Whether a score was won by blank and repeated lines: it without these, and how many of them good documents have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scorers.estimates import Estimate, mean_estimate
from scorers.pep8 import PEP8Scorer
from scorers.text_metrics import blank_lines, repeated_lines


def violations_elsewhere(texts: Sequence[str]) -> Estimate:
    """The mean over texts of violations a character, lines left out that are blank or that their text has had before
    (indentation aside); bootstrap. Texts of which nothing is left, or nothing could be checked, are left out."""
    scorer, rates = PEP8Scorer(), []
    for text in texts:
        code = scorer.check(text, strict=False)
        violations, characters, had = 0, 0, {""}
        for start, end, count in zip([0, *code.ends], code.ends, code.violations or (), strict=False):
            line = text[start:end].strip()
            if line not in had:
                had.add(line)
                violations, characters = violations + count, characters + end - start
        if characters:
            rates.append(violations / characters)
    return mean_estimate(rates)


def of_samples(run_folder: Path) -> dict[str, Any]:
    """`violations_elsewhere` of a run's last unconditional samples."""
    (file,) = sorted((run_folder / "samples").glob("unconditional-*.jsonl"), key=lambda one: one.stat().st_mtime)[-1:]
    texts = [json.loads(line)["completion"] for line in file.read_text(encoding="utf-8").split("\n") if line]
    return violations_elsewhere(texts).as_json()


def of_documents(path: Path, limits: Mapping[str, float], characters: int) -> dict[str, Any]:
    """Shares of blank and repeated lines in the beginnings, of so many characters, of all documents of a file and by
    name of those with a score of at most each limit; no shares where there are none."""
    with open(path, encoding="utf-8", errors="surrogatepass", newline="\n") as opened:
        documents = [json.loads(line) for line in opened]
    shares: dict[str, Any] = {"characters": characters}
    for name, limit in {"all": float("inf"), **limits}.items():
        known = [one for one in documents if one["score"] is not None]
        texts = [one["text"][:characters] for one in known if one["score"] <= limit]
        found = {"blank_lines": blank_lines(texts).mean, "repeated_lines": repeated_lines(texts).mean} if texts else {}
        shares[name] = {"documents": len(texts), **found}
    return shares
