"""Whole texts, one after the other, from where a corpus lies: files, a folder, a samples file or the hub.

A text that cannot be read is not left out: it comes with its flaw.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import io
import json
import os
import tokenize
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataloaders.resolve import did_you_mean
from scorers.samples import read_samples

HUB = "hub:"
TEXT_FILES = (".py", ".txt")
ROW_FILES = (".jsonl", ".jsonl.gz")
RESPONSES = "policy"
"""The key of a samples file that is read where the text's key is the default one."""
DEFAULT_KEY = "text"

UNDECODABLE, NOT_JSON, NO_TEXT, UNREADABLE = "undecodable bytes", "not JSON", "no text", "unreadable file"


@dataclass(frozen=True)
class CorpusText:
    """A text of a corpus.

    Attributes:
        text: what could be read of it; undecodable bytes are U+FFFD.
        source: the file, with the row's number (from 1) where the file has rows.
        flaw: why it could not be read as it is; None where it could.
    """

    text: str
    source: str
    flaw: str | None = None


def check_corpus(corpus: str) -> None:
    """Whether there is a corpus of that name; a hub is not asked.

    Raises:
        ValueError: naming what can be given.
    """
    if corpus.startswith(HUB):
        _hub_parts(corpus)
        return
    path = Path(corpus).expanduser()
    if path.is_dir():
        if next(_files(path), None) is None:
            raise ValueError(f"corpus={corpus}: no file in this folder ends in {' or '.join(TEXT_FILES)}.")
        return
    if not path.is_file():
        siblings = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
        near = did_you_mean(path.name, siblings)
        raise ValueError(f"corpus={corpus}: there is no such file or folder{near}; a hub data set is hub:ORG/NAME.")
    if not path.name.endswith((*ROW_FILES, ".json", *TEXT_FILES)):
        kinds = ", ".join((*ROW_FILES, *TEXT_FILES))
        raise ValueError(f"corpus={corpus}: expected a file that ends in {kinds}, a .json of samples, or a folder.")


def read_corpus(corpus: str, text_key: str = DEFAULT_KEY) -> Iterator[CorpusText]:
    """The texts of a corpus, in an order that stays: rows as they come, files by their paths.

    Args:
        corpus: a .jsonl(.gz) file of objects; a .py or .txt file; a folder, searched for these at any depth; a .json
            file of samples, whose responses (`policy`) are the texts; or hub:ORG/NAME, hub:ORG/NAME:SPLIT.
        text_key: the key of a row's text.

    Raises:
        ValueError: there is no such corpus, it cannot be read to its end, or its first row has no such key.
    """
    check_corpus(corpus)
    if corpus.startswith(HUB):
        yield from _hub_texts(corpus, text_key)
        return
    path = Path(corpus).expanduser()
    if path.is_dir():
        for file in _files(path):
            yield _file_text(file, file.relative_to(path).as_posix())
    elif path.name.endswith(ROW_FILES):
        yield from _row_texts(path, text_key)
    elif path.suffix == ".json":
        key = RESPONSES if text_key == DEFAULT_KEY else text_key
        for number, row in enumerate(read_samples(str(path), (key,), "prompt").rows, 1):
            yield CorpusText(row[key], f"{path.name}:{number}")
    else:
        yield _file_text(path, path.name)


def count_texts(corpus: str) -> int | None:
    """How many texts there are, as far as that can be told without reading them; for a progress bar."""
    path = Path(corpus).expanduser()
    if corpus.startswith(HUB):
        return None
    if path.is_dir():
        return sum(1 for _ in _files(path))
    if path.name.endswith(".jsonl"):
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    return 1 if path.suffix in TEXT_FILES else None


def fingerprint(corpus: str) -> str:
    """Changes when a file of the corpus does: of names, sizes and times. A hub data set has its name alone."""
    path = Path(corpus).expanduser()
    if corpus.startswith(HUB):
        return corpus
    files = _files(path) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        try:
            about = file.stat()
            facts = f"{file.resolve()}\0{about.st_size}\0{about.st_mtime_ns}\0"
        except OSError:  # a link to nothing, or to itself
            facts = f"{file}\0{UNREADABLE}\0"
        digest.update(facts.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """The text files in a folder at any depth, sorted; links to folders are not followed."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(place, name) for name in sorted(names) if name.endswith(TEXT_FILES))


def _file_text(file: Path, source: str) -> CorpusText:
    source = source.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    try:
        if not file.is_file():  # a pipe would be waited for without end, and a device read without end
            return CorpusText("", source, UNREADABLE)
        contents = file.read_bytes()
    except OSError:
        return CorpusText("", source, UNREADABLE)
    encoding = "utf-8-sig"
    try:
        if file.suffix == ".py":  # a coding line may say another one
            encoding = tokenize.detect_encoding(io.BytesIO(contents).readline)[0]
        return CorpusText(contents.decode(encoding), source)
    except (SyntaxError, UnicodeError, LookupError):
        return CorpusText(contents.decode("utf-8", "replace"), source, UNDECODABLE)


def _row_texts(path: Path, text_key: str) -> Iterator[CorpusText]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                yield _row_text(line, f"{path.name}:{number}", text_key, first=number == 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: the file is damaged behind row {number} ({error}).") from error


def _row_text(line: bytes, source: str, text_key: str, first: bool) -> CorpusText:
    flaw = None
    try:
        decoded = line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError:
        decoded, flaw = line.decode("utf-8", "replace"), UNDECODABLE
    try:
        row = json.loads(decoded)
    except (ValueError, RecursionError):
        return CorpusText("", source, flaw or NOT_JSON)
    return _text_of(row, source, text_key, first, flaw)


def _text_of(row: Any, source: str, text_key: str, first: bool, flaw: str | None = None) -> CorpusText:
    text = row.get(text_key) if isinstance(row, dict) else None
    if isinstance(text, str):
        return CorpusText(text, source, flaw)
    if first and isinstance(row, dict) and text_key not in row:
        near = difflib.get_close_matches(text_key, row, n=1)
        hint = f"set text_key={near[0] if near else 'KEY'}"
        raise ValueError(f"{source}: no key {text_key!r}; the row has {', '.join(map(repr, row)) or 'none'}: {hint}.")
    return CorpusText("", source, flaw or NO_TEXT)


def _hub_parts(corpus: str) -> tuple[str, str]:
    name, _, split = corpus.removeprefix(HUB).partition(":")
    if not name:
        raise ValueError(f"corpus={corpus}: expected hub:ORG/NAME, or hub:ORG/NAME:SPLIT for another split than train.")
    return name, split or "train"


def _hub_texts(corpus: str, text_key: str) -> Iterator[CorpusText]:
    import datasets

    name, split = _hub_parts(corpus)
    try:
        rows = datasets.load_dataset(name, split=split, streaming=True)
    except Exception as error:  # the hub's client raises a dozen unrelated types
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"corpus={corpus}: could not be read from the hub: {type(error).__name__}: {reason} With the rows in a "
            "local .jsonl file, corpus=FILE reads that instead."
        ) from error
    for number, row in enumerate(rows, 1):
        yield _text_of(row, f"{name}[{split}]:{number}", text_key, first=number == 1)
