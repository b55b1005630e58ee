"""Scores kept on the disk by what was scored, so that no text is scored twice by the same scorer."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scorers.judgments import append_lines, check_appendable
from scorers.scorer import TOO_SLOW, ScoredText, Scorer, Segment


class ScoreCache:
    """Records by a key, in one JSONL file that only grows.

    In memory are only the places of the records. Several processes may share the file; each knows what was there when
    it opened it, and what it added. A line that does not parse (its writer was killed) is passed over and counted in
    `torn_lines`.
    """

    def __init__(self, path: str | Path):
        check_appendable(path)
        self.path = Path(path)
        self.torn_lines = 0
        self._places: dict[bytes, tuple[int, int]] = {}
        if self.path.exists():
            start = 0
            with self.path.open("rb") as file:
                for line in file:
                    self._read(line, start)
                    start += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def _read(self, line: bytes, start: int) -> None:
        try:
            key = bytes.fromhex(json.loads(line)["key"])
        except (ValueError, KeyError, TypeError, RecursionError):
            self.torn_lines += bool(line.strip())
            return
        self._places[key] = (start, len(line))

    def get(self, key: bytes) -> dict[str, Any] | None:
        """The record, or None."""
        place = self._places.get(key)
        if place is None:
            return None
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            return json.loads(os.pread(descriptor, place[1], place[0]))
        finally:
            os.close(descriptor)

    def add(self, records: dict[bytes, dict[str, Any]]) -> None:
        """Keeps records. They are not forced to the disk: after a power cut they may have to be computed again."""
        lines = [{"key": key.hex(), **record} for key, record in records.items()]
        self._places |= zip(records, append_lines(self.path, lines, durable=False), strict=True)


class CachedScorer(Scorer):
    """A scorer that looks its scores up where it has scored the same text before.

    Args:
        scorer: what scores.
        path: of the cache's file. The scorer's identity is part of each key, so that scorers may share one.
    """

    def __init__(self, scorer: Scorer, path: str | Path):
        self.scorer = scorer
        self.cache = ScoreCache(path)
        self.computed = self.looked_up = 0
        for name in ("name", "direction", "bounds", "reads_prompt", "max_characters", "notes"):
            setattr(self, name, getattr(scorer, name))

    @property
    def identity(self) -> str:
        return self.scorer.identity

    def score_texts(self, texts: Sequence[str]) -> list[float | None]:
        """The scorer's own, or those that it gave before."""

        def compute(new: list[str]) -> list[dict[str, Any]]:
            return [{"score": score} for score in self.scorer.checked_scores(new)]

        return [record["score"] for record in self._records("text", texts, compute)]

    def score_documents(self, texts: Sequence[str]) -> list[ScoredText]:
        """The scorer's own, or those that it gave before."""

        def compute(new: list[str]) -> list[dict[str, Any]]:
            return [
                {"segments": [[one.start, one.end, one.score] for one in scored.segments], "flaw": scored.flaw}
                for scored in self.scorer.score_documents(new)
            ]

        records = self._records("document", texts, compute)
        return [ScoredText(tuple(Segment(*one) for one in record["segments"]), record["flaw"]) for record in records]

    def _records(
        self, kind: str, texts: Sequence[str], compute: Callable[[list[str]], list[dict[str, Any]]]
    ) -> list[dict[str, Any]]:
        """A record for each text: from the file, else computed, one for all texts that are equal, and kept."""
        keys = [self._key(kind, text) for text in texts]
        known = {key: record for key in keys if (record := self.cache.get(key)) is not None}
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if new:
            computed = dict(zip(new, compute(list(new.values())), strict=True))
            self.cache.add({key: record for key, record in computed.items() if _stays(record)})
            known |= computed
        self.computed += len(new)
        self.looked_up += len(texts) - len(new)
        return [known[key] for key in keys]

    def _key(self, kind: str, text: str) -> bytes:
        about = f"{self.identity}\0{kind}\0".encode()
        return hashlib.sha256(about + text.encode("utf-8", "surrogatepass")).digest()


def _stays(record: dict[str, Any]) -> bool:
    """Whether a record is the same on every machine: a text without a score may only have been too slow on this one."""
    return record.get("flaw") != TOO_SLOW and record.get("score", 0) is not None
