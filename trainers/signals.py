"""Being told to stop: the step under way is finished and saved first; where there is none the process ends at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

TERMINATED = 75  # EX_TEMPFAIL of sysexits.h: try again later
INTERRUPTED = 130


class ToldToStop(Exception):
    """Ends an evaluation that is under way, since a process was told to stop."""


class Stopped(SystemExit):
    """The training stopped because it was told to, with its state saved: not an error, but not the end either."""


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """SIGTERM ends the process at once inside, with a line that says so and code 75, wherever no StopSignals notes it.

    Nothing is done where somebody handles SIGTERM already (submitit, which gets a second signal), or outside of the
    main thread, where Python handles none.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, partial(_stop_at_once, os.getpid()))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stop_at_once(process: int, number: int, _: FrameType | None) -> None:
    if os.getpid() != process:  # one that was forked: its pool ends it by this signal
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    if os.environ.get("RANK", "0") == "0":
        # Not print: the signal may have come while something was being printed.
        os.write(
            2,
            b"\nstopped by SIGTERM, with no training step under way: nothing is lost; the same command goes on from "
            b"the last checkpoint, and begins anew where there is none\n",
        )
    raise Stopped(TERMINATED)


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
