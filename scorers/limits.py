"""A limit to the processor time that one text may take: a hostile text must not hang whoever scores it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TooSlow(BaseException):
    """The time is over. No Exception, so that a library that catches those does not swallow it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TooSlow inside after so many seconds of this process's processor time, inside of a regular expression too.

    The time is the processor's, so that a busy machine gives no other scores than an idle one. Python delivers signals
    to a process's main thread alone: in any other thread there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    running = True

    def stop(number: int, frame: FrameType | None) -> None:
        if running:
            raise TooSlow

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds, 0.1)  # again and again, should a library swallow the first
    try:
        try:
            yield
        finally:
            running = False
    finally:  # also where the signal came between the work's end and the line above
        running = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
