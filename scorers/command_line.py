"""What the command line of compare.py may say: numbers in their range, and files that do not spoil each other."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path

DAY = 86_400  # seconds; nobody means to wait longer


def boolean(text: str) -> bool:
    """`-v`, `-v true` and `-v false` mean what they say."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def number(kind: type, low: float, high: float = float("inf"), null: bool = False) -> Callable[[str], float | None]:
    """An argument type: a number from `low` to `high`; `null` as well, if allowed."""

    def convert(text: str) -> float | None:
        value = None if null and text.lower() in ("null", "none") else kind(text)
        if value is not None and not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low} to {high}")
        return value

    convert.__name__ = kind.__name__  # argparse names it in its message
    return convert


def check_different(files: Mapping[str, str]) -> None:
    """Sees that no two flags name one file, also by a link: what is written there would spoil what is read.

    Args:
        files: paths by their flag; those that are empty are not used.

    Raises:
        ValueError: two are the same, with the names of their flags.
    """
    paths = {flag: Path(name) for flag, name in files.items() if name}
    for (flag, path), (other_flag, other) in combinations(paths.items(), 2):
        if path.resolve() == other.resolve() or (path.exists() and other.exists() and path.samefile(other)):
            raise ValueError(f"{flag} and {other_flag} are the same file, {path}; name two different ones")
