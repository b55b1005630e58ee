"""The single door through which rows come in: the hub, or local JSONL, JSON and Parquet files."""

from __future__ import annotations

import difflib
import gzip
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dataloaders.chat_format import MARKERS
from dataloaders.datasets.conversation import describe

Row = tuple[str, dict[str, Any]]  # ("file:line", the row)


class NoRow(dict[str, Any]):
    """What stands in the place of a line that is no row; `reason` says why it is none."""

    def __init__(self, reason: str):
        super().__init__()
        self.reason = reason


class _NoRowError(ValueError):
    """A line or an element that is none; `reason` says it without its place."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


def load_rows(
    split: str,
    *,
    hub: str | None = None,
    hub_config: str | None = None,
    hub_split: str | None = None,
    data_dir: str | None = None,
    data_files: str | None = None,
    revision: str | None = None,
    path: str | Sequence[str] | None = None,
    test_path: str | Sequence[str] | None = None,
    name: str = "NAME",
) -> Iterator[Row]:
    """Yields (location, row) for each row of a source.

    Args:
        split: "train" or "test". With a `path` and no `test_path` both are the same rows: `load_dataset` splits them.
        hub, hub_config, hub_split, data_dir, revision: the hub's repository, its configuration, its name for the split
            (`split` itself by default), the folder inside it and its revision.
        data_files: a JSON file of the repository, read by itself (for repositories that hold a loading script).
        path, test_path: local files (.jsonl, .json, both also .gz, .parquet) in place of the hub; one or several.
        name: the data set's name, for error messages.

    Raises:
        ValueError: naming the file and line and the fix, for whatever cannot be read.
    """
    files = test_path if split == "test" and test_path else path
    if files:
        return _without_markers(local_rows(files, name))
    if hub is None:
        raise ValueError(f"Data set {name} has no source for its {split} split: give datasets.{name}.path=FILE.")
    rows = _hub_rows(
        hub,
        name,
        hub_config=hub_config,
        split=hub_split or split,
        data_dir=data_dir,
        data_files=data_files,
        revision=revision,
    )
    return _without_markers(rows)


def _without_markers(rows: Iterator[Row]) -> Iterator[Row]:
    """Refuses a text that holds one of our own turn markers: it would forge a turn."""
    for where, row in rows:
        text = json.dumps(row, ensure_ascii=False, default=str)
        marker = next((one for one in MARKERS if one in text), None)
        if marker is not None:
            raise ValueError(
                f"{where}: a text contains {marker.encode('unicode_escape').decode()}, by which turns are told apart "
                "here; take these private-use characters out."
            )
        yield where, row


def field(row: dict[str, Any], key: str, where: str, kind: type | tuple[type, ...] = str) -> Any:
    """The value under `key`, of the given type; ValueError naming file, line and the row's own keys otherwise."""
    if key not in row:
        near = difflib.get_close_matches(key, row, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{where}: no field {key!r}{hint}; the row has {', '.join(map(repr, row)) or 'no fields'}.")
    value = row[key]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(one.__name__ for one in kinds)
        raise ValueError(f"{where}: field {key!r} must be {wanted}, not {describe(value)}.")
    return value


def number(row: dict[str, Any], key: str, where: str) -> float:
    """The finite number under `key`; ValueError naming file and line otherwise."""
    value = float(field(row, key, where, (int, float)))
    if not math.isfinite(value):
        raise ValueError(f"{where}: field {key!r} must be a finite number, not {value}.")
    return value


def _hub_rows(
    hub: str,
    name: str,
    *,
    hub_config: str | None,
    split: str,
    data_dir: str | None,
    data_files: str | None,
    revision: str | None,
) -> Iterator[Row]:
    import datasets

    try:
        if data_files:
            at = f"@{revision}" if revision else ""
            source = f"hf://datasets/{hub}{at}/{data_files}"
            rows = datasets.load_dataset("json", data_files=source, split="train")
        else:
            rows = datasets.load_dataset(hub, hub_config, data_dir=data_dir, split=split, revision=revision)
    except Exception as error:  # the hub's client raises a dozen unrelated types
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"Data set {name}: could not load {hub} (split {split}) from the hub: {type(error).__name__}: {reason} "
            f"With the same rows in a local file, datasets.{name}.path=FILE reads that instead."
        ) from error
    if not len(rows):
        raise ValueError(f"Data set {name}: {hub} (split {split}) has no rows.")
    return ((f"{hub}[{split}]:{number}", row) for number, row in enumerate(rows, 1))


def local_rows(files: str | Sequence[str], name: str, lenient: bool = False) -> Iterator[Row]:
    """Yields (location, row) for each row of local files, as they are read.

    Args:
        name: the data set's name, for error messages.
        lenient: lets through a text with half a surrogate pair, and after the first row what is no row, as a NoRow;
            the caller has to look at them.

    Raises:
        ValueError: naming the file and line and the fix, for whatever cannot be read.
    """
    found = [_existing(file, name) for file in ([files] if isinstance(files, str) else files)]
    for place, file in enumerate(found):
        rows = _file_rows(file, lenient, begun=place > 0)
        first = next(rows, None)
        if first is None:
            raise ValueError(f"{file}: the file has no rows; every line must be one JSON object.")
        yield first
        yield from rows


def _existing(file: str, name: str) -> Path:
    path = Path(file).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        inside = sorted(str(entry) for entry in path.iterdir() if entry.is_file())[:5]
        listing = f": {', '.join(inside)} ..." if inside else ""
        raise ValueError(f"Data set {name}: {file} is a folder; name the files in it{listing}")
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f" Did you mean {path.parent / near[0]}?" if near else f" (Looked from {Path.cwd()}.)"
    raise ValueError(f"Data set {name}: there is no file {file}.{hint}")


def _file_rows(file: Path, lenient: bool, begun: bool) -> Iterator[Row]:
    """Those of one file; `begun`: there were others before."""
    endings = [ending.lower() for ending in file.suffixes]
    packed = endings[-1:] == [".gz"]
    kind = (endings[:-1] if packed else endings)[-1:]
    if kind == [".parquet"] and not packed:
        return _parquet_rows(file)
    if kind in ([".jsonl"], [".json"], [".ndjson"]):
        return _json_rows(file, packed, lenient, begun)
    raise ValueError(
        f"{file}: rows are read from .jsonl, .json (both also .gz) and .parquet files; convert or rename it."
    )


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}:{number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file}: not a readable Parquet file ({error}).") from error


def _json_rows(file: Path, packed: bool, lenient: bool, begun: bool) -> Iterator[Row]:
    number, first = 0, True
    try:
        with gzip.open(file) if packed else open(file, "rb") as lines:
            for number, line in enumerate(lines, 1):
                where, text, is_array = f"{file}:{number}", "", False
                try:
                    text = _decoded(line, where, first=number == 1).strip()
                    is_array = first and text.startswith("[")
                    row = _parsed(text, where, lenient) if text and not is_array else None
                except _NoRowError as error:
                    if not (lenient and begun):
                        raise
                    row = NoRow(error.reason)
                if is_array:
                    yield from _array_rows(file, number, text, lines, lenient, begun)
                    return
                if row is not None:
                    begun, first = True, False
                    yield where, row
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{file}:{number + 1}: not a complete gzip file ({error}); copy or pack it again.") from error


def _array_rows(file: Path, first: int, text: str, lines: Iterable[bytes], lenient: bool, begun: bool) -> Iterator[Row]:
    """The elements of a file that is one JSON array; their location is the element's number."""
    rest = [_decoded(line, f"{file}:{number}") for number, line in enumerate(lines, first + 1)]
    try:
        elements = json.loads("".join([text, "\n", *rest]))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}:{first + error.lineno - 1}: malformed JSON array ({error.msg}).") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}:{first}: not readable JSON ({error}); mend the line.") from None
    for number, element in enumerate(elements, 1):
        try:
            row = _checked(element, f"{file}:{number}", lenient)
        except _NoRowError as error:
            if not lenient or (number == 1 and not begun):
                raise
            row = NoRow(error.reason)
        yield f"{file}:{number}", row


def _decoded(line: bytes, where: str, first: bool = False) -> str:
    try:
        return line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        message = f"{where}: not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8."
        raise _NoRowError(message, "not UTF-8") from None


def _parsed(text: str, where: str, lenient: bool) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise _NoRowError(
            f"{where}: malformed JSON ({error.msg} at column {error.colno}); each line must be one whole JSON object.",
            "malformed JSON",
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets
        raise _NoRowError(f"{where}: not readable JSON ({error}); mend the line.", "malformed JSON") from None
    return _checked(row, where, lenient)


def _checked(row: Any, where: str, lenient: bool) -> dict[str, Any]:
    if not isinstance(row, dict):
        message = f'{where}: a row must be a JSON object such as {{"prompt": "..."}}, not {describe(row)}.'
        raise _NoRowError(message, "no JSON object")
    if lenient:
        return row
    try:
        # An escape such as \ud83d alone is half a character: it would fail only later, in the tokenizer.
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(
            f"{where}: a text has half a surrogate pair (an escape like \\ud83d alone); mend it."
        ) from None
    return row
