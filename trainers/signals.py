"""Being told to stop: the step under way is finished and saved first."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

TERMINATED = 75  # EX_TEMPFAIL of sysexits.h: try again later
INTERRUPTED = 130


class Stopped(SystemExit):
    """The training stopped because it was told to, with its state saved: not an error, but not the end either."""


class StopSignals:
    """Notes SIGTERM (a cluster's notice) and the first Ctrl-C; the second Ctrl-C stops at once.

    Outside of the main thread, where Python handles no signals, it notes nothing.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        first, self.name = self.name is None, signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if first:
            again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            # Not print: the signal may have come while something was being printed.
            os.write(2, f"\n{self.name}: this step is finished and saved first{again}\n".encode())


def exit_code(name: str) -> int:
    """Of a process that stopped because of the signal."""
    return INTERRUPTED if name == "SIGINT" else TERMINATED
