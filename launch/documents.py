"""A file of scored documents while it is written: chunk by chunk, gone on with after a kill, complete or not there."""

from __future__ import annotations

import fcntl
import gzip
import json
import math
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dataloaders.corpus_texts import CorpusText
from models.files import told, write_whole
from scorers.scorer import ScoredText

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
PART, SUMMARY = ".part", ".summary.json"


class Totals:
    """What is known of all documents so far. `add` takes rows of the file, so that rows of before a kill count too."""

    def __init__(self) -> None:
        self.characters = self.segments = self.segments_without_score = 0
        self.flaws: Counter[str] = Counter()
        self.scores = array("d")

    def add(self, row: dict[str, Any]) -> None:
        """Counts a document in the documents format."""
        self.characters += len(row["text"])
        self.segments += len(row["segments"])
        self.segments_without_score += sum(score is None for score in row["scores"])
        if row["score"] is None:
            self.flaws[row["flaw"]] += 1
        else:
            self.scores.append(row["score"])

    def summary(self) -> dict[str, Any]:
        """The figures; of scores only what has one, `flaws` by reason."""
        known = sorted(self.scores)
        return {
            "documents": len(known) + self.flaws.total(),
            "scored": len(known),
            "flaws": dict(sorted(self.flaws.items())),
            "characters": self.characters,
            "segments": self.segments,
            "segments_without_score": self.segments_without_score,
            "mean_score": math.fsum(known) / len(known) if known else None,
            "quantiles": {str(q): _quantile(known, q) for q in QUANTILES} if known else {},
            "share_at_0": sum(score == 0 for score in known) / len(known) if known else None,
        }


def _quantile(ordered: Sequence[float], q: float) -> float:
    """By linear interpolation between the two nearest, as numpy does."""
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def document_row(document: CorpusText, scored: ScoredText, identity: str, direction: str) -> dict[str, Any]:
    """A document in the documents format: text, segments as [start, end), a score for each, and their mean."""
    return {
        "text": document.text,
        "segments": [[one.start, one.end] for one in scored.segments],
        "scores": [one.score for one in scored.segments],
        "score": scored.score,
        "scorer": identity,
        "direction": direction,
        "source": document.source,
        "flaw": scored.flaw,
    }


class DocumentsFile:
    """JSONL under `{path}.part` until it is complete, then under `path` (gzipped where that ends in .gz).

    Args:
        path: of the complete file.
        identity, direction: the scorer's; lines of another one are refused.
        anew: what was written of it before does not count.

    Raises:
        ValueError: another process writes this file, or its beginning is of another scorer.
    """

    def __init__(self, path: Path, identity: str, direction: str, anew: bool = False):
        self.path, self.totals = path, Totals()
        self.part = path.with_name(path.name + PART)
        self._identity, self._direction = identity, direction
        self._file = self.part.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(self._file.fileno(), self.part):
                raise BlockingIOError  # its writer has just finished, and this is the file that has another name now
        except BlockingIOError:
            self._file.close()
            raise ValueError(
                f"another process is writing {self.part}: wait for it, or choose another documents_path."
            ) from None
        if anew:
            self._file.truncate(0)
        self._file.seek(0)
        self._old = True

    def found(self, chunk: Sequence[CorpusText]) -> bool:
        """Whether the next lines are those of a chunk, from before a kill; if not, the file now ends before them.

        Raises:
            ValueError: they are of another scorer or of other texts.
        """
        if not self._old:
            return False
        start = self._file.tell()
        rows = []
        for document in chunk:
            line = self._file.readline()
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("a line without its end: the next one would stand in it")
                rows.append(json.loads(line))
                same = rows[-1]["scorer"] == self._identity and rows[-1]["source"] == document.source
                same = same and rows[-1]["text"] == document.text and rows[-1]["direction"] == self._direction
                if not rows[-1].keys() >= {"score", "flaw"} or len(rows[-1]["segments"]) != len(rows[-1]["scores"]):
                    raise ValueError("not what this would have written")
            except (
                ValueError,
                KeyError,
                TypeError,
                RecursionError,
            ):  # torn, not there, or of a time when they had no direction
                self._old = False
                self._file.truncate(start)
                return False
            if not same:
                raise ValueError(
                    f"{self.part} holds the beginning of other scores (another corpus, or by "
                    f"{rows[-1]['scorer']}): choose another documents_path, or begin anew by overwrite=true."
                )
        for row in rows:
            self.totals.add(row)
        return True

    def add(self, chunk: Sequence[CorpusText], scored: Sequence[ScoredText]) -> None:
        """Appends the lines of a chunk."""
        rows = [document_row(*both, self._identity, self._direction) for both in zip(chunk, scored, strict=True)]
        with told(self.part):
            self._file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
            self._file.flush()
        for row in rows:
            self.totals.add(row)

    def finish(self, about: dict[str, Any]) -> dict[str, Any]:
        """Puts the file under its name, with a summary beside it, which is returned.

        Args:
            about: what the summary says beside the figures.
        """
        if self._old:  # nothing was added, and what may stand behind the last chunk is none of this corpus
            self._file.truncate(self._file.tell())
        os.fsync(self._file.fileno())
        complete = self.part
        if self.path.suffix == ".gz":
            complete = self.path.with_name(self.path.name + ".tmp")
            with (
                told(complete),
                self.part.open("rb") as plain,
                complete.open("wb") as file,
                gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
            ):
                shutil.copyfileobj(plain, packed, 1 << 20)
        summary = about | self.totals.summary() | {"file_bytes": complete.stat().st_size}
        self.path.unlink(missing_ok=True)  # so that the new summary never stands beside the old file
        write_whole(summary_file(self.path), json.dumps(summary, indent=1) + "\n")
        os.replace(complete, self.path)
        if complete != self.part:
            self.part.unlink()
        self._file.close()
        return summary

    def close(self) -> None:
        """Gives the file free; what is written stays, to be gone on with."""
        with suppress(OSError):  # what could not be written is tried once more, and was told before
            self._file.close()


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one under a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def summary_file(path: Path) -> Path:
    """Where the summary of a documents file is."""
    return path.with_name(path.name + SUMMARY)
