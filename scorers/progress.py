"""The one place that makes progress bars: on a terminal a bar, in a log file a line now and then."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

Bar = tqdm
"""What `progress` returns: it has `update`, `close`, `n` and `total`, and is a context and an iterator."""
SECONDS = 30.0
"""At least so long between two lines of one bar in a log file; what takes less has none."""


class Lines(tqdm):
    """Progress for a log file: whole lines, each with what is done and the time that is left."""

    monitor_interval = 0  # its thread redraws bars
    _shown: float | None = None

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Writes a line, wherever a bar would stand."""
        self.fp.write(f"{self if msg is None else msg}\n")
        self.fp.flush()
        return True

    def clear(self, nolock: bool = False) -> None:
        """Nothing: a line that is written stays."""

    def refresh(self, nolock: bool = False, lock_args: tuple | None = None) -> bool:
        """Writes a line if one is due: this is called also when another line was written, or a postfix is set."""
        now = self._time()
        if self.disable or now < (self.start_t if self._shown is None else self._shown) + SECONDS:
            return False
        self._shown = now
        return super().refresh(nolock, lock_args)

    def close(self) -> None:
        """Writes the last line, where there were others."""
        last = not getattr(self, "disable", True) and self._shown is not None and self.leave
        self.sp = None  # tqdm's own way to end a bar is for a terminal
        super().close()
        if last:
            self.display()


def progress(iterable: Iterable | None = None, **options: Any) -> tqdm:
    """A bar on standard error, or where that is no terminal, at most a line every SECONDS.

    Args:
        iterable: what is gone through; None where `update` is called.
        options: tqdm's: total, initial, desc, unit, unit_scale, disable, leave.
    """
    if sys.stderr.isatty():
        return tqdm(iterable, file=sys.stderr, **options)
    return Lines(
        iterable, file=sys.stderr, mininterval=SECONDS, delay=SECONDS, miniters=1, ascii=True, **options
    )  # fmt: skip


def say(line: str) -> None:
    """Writes a line to standard error, above a bar that stands there; from any thread."""
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()
