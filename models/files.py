"""Files that are there whole or not at all, and what to say when one could not be written."""

from __future__ import annotations

import errno
import os
import shutil
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Writes a text file, in UTF-8, so that it is there whole or not at all; its folder is made.

    Raises:
        OSError: it could not be written, with what to do.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    with told(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def told(target: Path) -> Iterator[None]:
    """An OSError inside becomes one that names the file, and what to do."""
    try:
        yield
    except OSError as error:
        raise unwritten(target, error) from error


def unwritten(target: Path, error: Exception) -> OSError:
    """What to raise when something of a run could not be written: what to do, and that nothing else is lost."""
    if getattr(error, "errno", None) in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "give this user the permission to write there"
    else:
        there = next(folder for folder in target.absolute().parents if folder.exists())
        advice = f"make room ({shutil.disk_usage(there).free / 2**30:.2f} GiB are free there)"
    return OSError(
        f"{target} could not be written ({first_sentence(error)}). What was there before is as it was: {advice}, and "
        "the same command goes on from it."
    )


def first_sentence(error: Exception) -> str:
    """Of an error's message; of a long one its first words."""
    lines = str(error).strip().splitlines()
    sentence = lines[0].split(". ")[0].removesuffix(".") if lines else type(error).__name__
    return textwrap.shorten(sentence, 200, placeholder=" ...")
