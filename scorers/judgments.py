"""Lines of JSON that are appended to a file and never lost, and the judge's answers kept in such a file."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def append_line(path: str | Path, record: dict[str, Any]) -> None:
    """Appends the record as one line and returns when it is on the disk."""
    append_lines(path, [record])


def append_lines(path: str | Path, records: Sequence[dict[str, Any]], *, durable: bool = True) -> list[tuple[int, int]]:
    """Appends each record as a line and returns, for each, where it begins in the file and its length in bytes.

    Several threads and processes may append to the same file: each holds the file's lock while it writes. What an
    interrupted writer left without a line end is closed first, so that it spoils no line but its own.

    Args:
        durable: returns when the lines are on the disk, so that not even a power cut loses them.
    """
    lines = [json.dumps(record).encode() + b"\n" for record in records]
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        torn = size and os.pread(descriptor, 1, size - 1) != b"\n"
        begin = size + bool(torn)
        left = memoryview(b"\n" * bool(torn) + b"".join(lines))
        while left:  # a write may take only a part
            left = left[os.write(descriptor, left) :]
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)  # which also gives the lock back
    starts = itertools.accumulate(map(len, lines), initial=begin)
    return [(start, len(line)) for start, line in zip(starts, lines, strict=False)]


def check_appendable(path: str | Path) -> None:
    """Makes the file's folder and sees that the file can be written, before anything is paid for.

    Raises:
        ValueError: it cannot.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder of {path}: {error.strerror}") from None
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"cannot write {path}: no permission")


def check_results_file(path: str | Path) -> None:
    """Refuses a file that is no results file, so that no line is appended to anything else.

    Raises:
        ValueError: its last line that is not blank is no JSON object.
    """
    if not Path(path).is_file():
        return
    last = b"{}"
    with open(path, "rb") as file:
        for line in file:
            last = line if line.strip() else last
    try:
        record = json.loads(last)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise ValueError(
            f"{path} is no results file: its last line is no JSON object; name another one by -r (or remove that line, "
            "if its writing was interrupted)"
        )


@dataclass(frozen=True)
class Answer:
    """A judge's answer as it came.

    Attributes:
        text: the words; never edited.
        finish_reason: why they ended ("stop", "length").
        usage: tokens that were counted, where the endpoint says.
    """

    text: str
    finish_reason: str | None = None
    usage: dict[str, int] | None = None


class JudgmentCache:
    """The answers that have been paid for, by the hash of what was asked.

    One JSONL file that only grows. A line that does not parse (its writer was killed) is passed over and counted
    in `torn_lines`; its question will be asked again.
    """

    def __init__(self, path: str | Path):
        check_appendable(path)
        self.path = Path(path)
        self.torn_lines = 0
        self._answers: dict[str, Answer] = {}
        if self.path.exists():
            for line in self.path.read_bytes().split(b"\n"):
                if line.strip():
                    self._read(line)

    def _read(self, line: bytes) -> None:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not all(isinstance(record.get(name), str) for name in ("key", "text")):
            self.torn_lines += 1
            return
        self._answers[record["key"]] = Answer(record["text"], record.get("finish_reason"), record.get("usage"))

    def get(self, key: str) -> Answer | None:
        """The answer to the question with that hash, if it is known."""
        return self._answers.get(key)

    def add(self, key: str, answer: Answer, **about: Any) -> None:
        """Keeps an answer; on the disk when this returns. `about` is for people who read the file."""
        append_line(self.path, {"key": key, **about, **vars(answer)})
        self._answers[key] = answer
