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

    SIGUSR1 and SIGUSR2 are noted where somebody handles them already: a launcher that queues the job again (submitit).
    It gets them once the state is saved. Outside of the main thread, where Python handles no signals, nothing is noted.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGTERM, signal.SIGINT]
            numbers += [one for one in (signal.SIGUSR1, signal.SIGUSR2) if callable(signal.getsignal(one))]
            for number in numbers:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def hand_on(self) -> None:
        """Lets the launcher do what it does on the signal that was noted; it may end the process."""
        number = getattr(signal, self.name or "", None)
        if number in (signal.SIGUSR1, signal.SIGUSR2):
            self._before[number](number, None)

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
