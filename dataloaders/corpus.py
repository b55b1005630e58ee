"""Documents one after another, read as they are needed: files, or a hub data set that streams. Each one is used, or
counted under the reason why it is not."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dataloaders.datasets.rows import NoRow, local_rows
from dataloaders.examples import in_test_split
from scorers.printable import printable
from scorers.scorer import HIGHER_IS_WORSE

LONGEST_DOCUMENT = 8_000_000
"""Characters; a longer one is no text that anybody wrote, and would take a tokenizer minutes."""

LARGEST_SCORE = float(np.finfo(np.float32).max)
"""A larger one is infinite as a token has it."""

NO_SCORES = "no scores"
MOST_REASONS = 30
"""Why documents are left out; what rows themselves say of it may be as many texts as there are rows."""


@dataclass(frozen=True)
class Document:
    """A text, cut into segments that cover it.

    Attributes:
        number: its place among all documents of its corpus, from 0.
        ends: (S,) where each segment ends, in characters; one segment for a text without.
        scores: (S,) how bad each segment is; empty where nothing is known.
        score: how bad the whole is: what the row says, else the mean of its segments' scores; None where unknown.
        scorer: the identity of what scored it; None where the row does not say.
    """

    number: int
    text: str
    ends: np.ndarray
    scores: np.ndarray
    score: float | None = None
    scorer: str | None = None


@dataclass
class Corpus:
    """One split of the documents of one data set.

    Args:
        name: of the data set, for messages.
        split: train or test. Without files (or a hub split) of its own, the test split is the share of documents with
            the lowest hashes of `source`, or of `text` where rows have none: parts of one file stay together.
        hub: repositories, in the place of `path`; their rows stream, one after another.
        revision: of all of them, or a list of one for each; None: the newest.
        path, test_path: files of rows (.jsonl, .json, .gz of both, .parquet).

    Rows have `text`, and as they like `segments` ([[start, end], ...], which cover the text), `scores` (one for each)
    and `score`; or `texts` (the segments themselves), `scores` and `avg_score`. `scorer` is what scored them, and
    `direction` says of scores that high ones are good, as no loss takes them.

    Attributes:
        dropped: reason -> documents, of all passes that began at the beginning.
        first_dropped: reason -> where the first of them is that was read.
        rows: documents of this split that were read.
    """

    name: str
    split: str
    hub: str | Sequence[str] | None = None
    revision: str | Sequence[str] | None = None
    path: str | Sequence[str] | None = None
    test_path: str | Sequence[str] | None = None
    test_fraction: float = 0.05
    n_documents: int | None = None
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    first_dropped: dict[str, str] = field(default_factory=dict)

    def documents(self, start: int = 0, scored: bool = False, count: bool = False) -> Iterator[Document]:
        """The documents that can be used, from a place on, in the order of the source.

        Args:
            start: the number of the first one.
            scored: without scores they cannot be used.
            count: adds what is read to `rows` and `dropped`.

        Raises:
            ValueError: for a first row that is no document, scores of which high ones are good, or a file that cannot
                be read; naming file and line.
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
                    if document not in self.dropped and len(self.dropped) >= MOST_REASONS:
                        document = "other reasons"
                    self.dropped[document] += 1
                    self.first_dropped.setdefault(document, where)
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
            texts = row.get("texts")
            parts = "".join(map(str, texts)) if isinstance(texts, list) else texts
            key = row.get("source") or row.get("text") or parts or ""
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
        first = {reason: f", the first at {Path(where).name}" for reason, where in self.first_dropped.items()}
        known = sorted((reason, count) for reason, count in self.dropped.items() if count)
        reasons = printable(", ".join(f"{count} {reason}{first.get(reason, '')}" for reason, count in known))
        return (
            f"{self.rows} documents read, {self.rows - sum(self.dropped.values())} used ({reasons or 'none dropped'})"
        )


def _hub_rows(
    hub: str | Sequence[str], revision: str | Sequence[str] | None, name: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import datasets

    repositories = [hub] if isinstance(hub, str) else hub
    revisions = [revision] * len(repositories) if revision is None or isinstance(revision, str) else revision
    for repository, one in zip(repositories, revisions, strict=True):
        try:
            rows = datasets.load_dataset(repository, split="train", revision=one, streaming=True)
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
    """Size and hash of a file; of one above 1 GiB, the hash of 1,024 parts of a MiB that lie evenly over it."""
    path, part, parts = Path(file).expanduser(), 2**20, 2**10
    digest, size = hashlib.blake2b(digest_size=16), path.stat().st_size
    step = max(part, (size - part) / (parts - 1))
    with open(path, "rb") as opened:
        for number in range(parts):
            opened.seek(int(number * step))
            digest.update(opened.read(part))
    return [size, digest.hexdigest()]


def read_document(number: int, where: str, row: Mapping[str, Any], scored: bool) -> Document | str:
    """The document of a row, or the reason why it cannot be used.

    Raises:
        ValueError: the first row is no document at all, or scores are used and high ones are good.
    """
    if isinstance(row, NoRow):
        return row.reason
    if "text" not in row and "texts" not in row:
        if number:
            return "no text"
        raise ValueError(
            f"{where}: no document: a row needs `text` (or `texts`, its segments), and this one has "
            f"{', '.join(map(repr, row)) or 'no keys'}."
        )
    if scored and row.get("direction") not in (None, HIGHER_IS_WORSE):
        raise ValueError(
            f"{where}: its scores are {row['direction']}, and losses on documents take high scores for bad: write "
            f'-score for each score, and "direction": "{HIGHER_IS_WORSE}"; or choose loss=mle, which reads no scores.'
        )
    texts, text, segments = row.get("texts"), row.get("text"), row.get("segments")
    if texts is not None:
        if not isinstance(texts, list) or not all(isinstance(part, str) for part in texts):
            return "texts that are no list of texts"
        text, ends = "".join(texts), np.cumsum([len(part) for part in texts]).tolist()
        segments = list(zip([0, *ends], ends, strict=False))
    if not isinstance(text, str):
        return "a text that is none"
    reason = _flaw(text)
    if reason is None and row.get("flaw") is not None:
        reason = f"flawed, by its scorer: {printable(' '.join(str(row['flaw'])[:60].split()))}"
    if reason is not None:
        return reason
    scores, score = row.get("scores"), row.get("score", row.get("avg_score"))
    if segments is None:
        segments = [[0, len(text)]]
        scores = [score] if scores is None and score is not None else scores
    ends = _ends(segments, len(text))
    if ends is None:
        return "segments do not cover the text"
    if scores is None or scores == []:
        return NO_SCORES if scored else Document(number, text, ends, np.zeros(0), None)
    reason = _no_scores(scores, score) or ("a segment without a score" if score is None and "score" in row else None)
    if reason is not None:
        return reason
    if len(scores) != len(ends):
        return "not one score for each segment"
    values = np.asarray(scores, dtype=np.float64)
    scorer = None if row.get("scorer") is None else printable(row["scorer"])
    return Document(number, text, ends, values, float(values.mean() if score is None else score), scorer)


def _no_scores(scores: Any, score: Any) -> str | None:
    """Why the scores of segments, and that of the whole where it has one, cannot be used; None when they can."""
    if not isinstance(scores, list):
        return "scores that are no list"
    if None in scores:
        return "a segment without a score"
    known = scores if score is None else [*scores, score]
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in known):
        return "a score that is no number"
    if not all(abs(one) <= LARGEST_SCORE for one in known):  # nan is at most nothing
        return "a score that is not finite"
    return None


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
        places = np.asarray(segments)
    except ValueError:  # not two numbers each
        return None
    if places.dtype.kind != "i" or places.ndim != 2 or places.shape[1] != 2:
        return None
    starts, ends = places[:, 0], places[:, 1]
    covers = starts[0] == 0 and ends[-1] == length and bool((starts[1:] == ends[:-1]).all())
    return ends if covers and bool((starts <= ends).all()) else None
