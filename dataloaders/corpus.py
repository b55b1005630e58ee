"""Documents one after another, read as they are needed: files, or a hub data set that streams. Each one is used, or
counted under the reason why it is not."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dataloaders.datasets.rows import local_rows
from dataloaders.examples import in_test_split

LONGEST_DOCUMENT = 8_000_000
"""Characters; a longer one is no text that anybody wrote, and would take a tokenizer minutes."""

NO_SCORES = "no scores"


@dataclass(frozen=True)
class Document:
    """A text, cut into segments that cover it.

    Attributes:
        number: its place among all documents of its corpus, from 0.
        ends: (S,) where each segment ends, in characters; one segment for a text without.
        scores: (S,) how bad each segment is; empty where nothing is known.
        score: how bad the whole is: what the row says, else the mean of its segments' scores; None where unknown.
    """

    number: int
    text: str
    ends: np.ndarray
    scores: np.ndarray
    score: float | None = None


@dataclass
class Corpus:
    """One split of the documents of one data set.

    Args:
        name: of the data set, for messages.
        split: train or test. Without files (or a hub split) of its own, the test split is the share of documents with
            the lowest hashes of `source`, or of `text` where rows have none: parts of one file stay together.
        hub: repository, in the place of `path`; its rows stream.
        path, test_path: files of rows (.jsonl, .json, .gz of both, .parquet).

    Rows have `text`, and as they like `segments` ([[start, end], ...], which cover the text), `scores` (one for each)
    and `score`; or `texts` (the segments themselves), `scores` and `avg_score`.

    Attributes:
        dropped: reason -> documents, of all passes that began at the beginning.
        rows: documents of this split that were read.
    """

    name: str
    split: str
    hub: str | None = None
    revision: str | None = None
    path: str | Sequence[str] | None = None
    test_path: str | Sequence[str] | None = None
    test_fraction: float = 0.05
    n_documents: int | None = None
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def documents(self, start: int = 0, scored: bool = False, count: bool = False) -> Iterator[Document]:
        """The documents that can be used, from a place on, in the order of the source.

        Args:
            start: the number of the first one.
            scored: without scores they cannot be used.
            count: adds what is read to `rows` and `dropped`.

        Raises:
            ValueError: for a row that is no document, or a file that cannot be read; naming file and line.
        """
        for number, (where, row) in enumerate(self._rows()):
            if self.n_documents is not None and number >= self.n_documents:
                return
            if number < start:
                continue
            document = read_document(number, where, row, scored)
            if count:
                self.rows += 1
                if isinstance(document, str):
                    self.dropped[document] += 1
            if isinstance(document, Document):
                yield document

    def _rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        own_test = self.test_path is not None
        files = self.test_path if self.split == "test" and own_test else self.path
        if files:
            rows: Iterator[tuple[str, Mapping[str, Any]]] = local_rows(files, self.name, lenient=True)
        elif self.hub:
            rows = _hub_rows(self.hub, self.revision, self.name)
        else:
            raise ValueError(f"data set {self.name} has no documents: give datasets.{self.name}.path=FILE.")
        for where, row in rows:
            key = row.get("source") or row.get("text") or "".join(map(str, row.get("texts") or ()))
            if own_test or in_test_split(key, self.test_fraction) == (self.split == "test"):
                yield where, row

    def digest(self) -> str:
        """Names the source: two corpora of one digest have the same documents."""
        files = self.test_path if self.split == "test" and self.test_path else self.path
        files = [files] if isinstance(files, str) else list(files or ())
        parts = [self.split, self.hub, self.revision, self.test_fraction, self.test_path is not None, self.n_documents]
        return hashlib.blake2b(json.dumps([*parts, *map(_file_digest, files)]).encode(), digest_size=16).hexdigest()

    def account(self) -> dict[str, Any]:
        """What data.json says of it: rows read so far, and why some were not used."""
        dropped = {reason: count for reason, count in sorted(self.dropped.items()) if count}
        return {
            "rows": self.rows, "used": self.rows - sum(dropped.values()), "dropped": dropped, "cut": {},
        }  # fmt: skip

    def words(self) -> str:
        """What was read so far and not used, in words."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()) if count)
        return (
            f"{self.rows} documents read, {self.rows - sum(self.dropped.values())} used ({reasons or 'none dropped'})"
        )


def _hub_rows(hub: str, revision: str | None, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import datasets

    repositories = [hub] if isinstance(hub, str) else hub
    for repository in repositories:
        try:
            rows = datasets.load_dataset(repository, split="train", revision=revision, streaming=True)
            for number, row in enumerate(rows, 1):
                yield f"{repository}:{number}", row
        except ValueError:
            raise
        except Exception as error:  # the hub's client raises a dozen unrelated types
            reason = (str(error).strip().splitlines() or [""])[0]
            raise ValueError(
                f"data set {name}: could not read {repository} from the hub: {type(error).__name__}: {reason} With the "
                f"same rows in local files, datasets.{name}.path=FILE reads these instead."
            ) from error


def _file_digest(file: str) -> list[Any]:
    """Size, beginning, middle and end of a file: enough to tell that it has changed, however large it is."""
    path, part = Path(file).expanduser(), 2**20
    digest, size = hashlib.blake2b(digest_size=16), path.stat().st_size
    with open(path, "rb") as opened:
        for place in (0, max(0, size // 2 - part // 2), max(0, size - part)):
            opened.seek(place)
            digest.update(opened.read(part))
    return [size, digest.hexdigest()]


def read_document(number: int, where: str, row: Mapping[str, Any], scored: bool) -> Document | str:
    """The document of a row, or the reason why it cannot be used.

    Raises:
        ValueError: the row is no document at all.
    """
    texts = row.get("texts")
    if texts is not None:
        text, sizes = "".join(map(str, texts)), [len(str(part)) for part in texts]
        segments: Any = [[end - size, end] for size, end in zip(sizes, np.cumsum(sizes).tolist(), strict=True)]
    else:
        text, segments = row.get("text"), row.get("segments")
    if not isinstance(text, str):
        raise ValueError(
            f"{where}: no document: a row needs `text` (or `texts`, its segments), and this one has "
            f"{', '.join(map(repr, row)) or 'no keys'}."
        )
    reason = _flaw(text) or (None if row.get("flaw") is None else f"flawed, by its scorer: {str(row['flaw'])[:60]}")
    if reason is not None:
        return reason
    scores, score = row.get("scores"), row.get("score", row.get("avg_score"))
    if segments is None:
        segments = [[0, len(text)]]
        scores = [score] if scores is None and score is not None else scores
    ends = _ends(segments, len(text))
    if ends is None:
        return "segments do not cover the text"
    if not scores:
        return NO_SCORES if scored else Document(number, text, ends, np.zeros(0), None)
    known = [one for one in scores if isinstance(one, int | float) and not isinstance(one, bool)]
    if len(known) < len(scores) or (score is None and "score" in row):
        return "a segment without a score"
    if not all(math.isfinite(one) for one in known) or not math.isfinite(score or 0.0):
        return "a score that is not finite"
    if len(known) != len(ends):
        return "not one score for each segment"
    values = np.asarray(known, dtype=np.float64)
    return Document(number, text, ends, values, float(values.mean() if score is None else score))


def _flaw(text: str) -> str | None:
    """Why a text cannot be used; None when it can."""
    if not text.strip():
        return "empty document"
    if len(text) > LONGEST_DOCUMENT:
        return f"longer than {LONGEST_DOCUMENT:,} characters"
    if "\0" in text:
        return "a NUL byte"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "half a surrogate pair"
    return None


def _ends(segments: Any, length: int) -> np.ndarray | None:
    """Where segments end; None unless they cover the text of this length, one after another."""
    try:
        places = np.asarray(segments, dtype=np.int64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):
        return None
    starts, ends = places[:, 0], places[:, 1]
    covers = len(places) and starts[0] == 0 and ends[-1] == length and bool((starts[1:] == ends[:-1]).all())
    return ends if covers and bool((starts <= ends).all()) else None
