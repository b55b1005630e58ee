"""The limit to the time that one text takes."""

import re
import signal
import threading
import time

import pytest

from scorers.limits import TooSlow, time_limit


def test_a_catastrophic_expression_is_stopped():
    """Prevents a scoring that hangs for years in one regular expression, and a library that swallows the exception."""
    begun = time.process_time()
    with pytest.raises(TooSlow), time_limit(0.3):
        for _ in range(10):
            try:
                re.match(r"(a+)+$", "a" * 60 + "b")
            except Exception:
                continue
    assert time.process_time() - begun < 5


def test_nothing_is_left_behind():
    """Prevents a timer that goes off later, in other code, and a signal handler that is not given back."""
    before = signal.getsignal(signal.SIGPROF)
    with time_limit(0.05):
        pass
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGPROF) == before
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass


def test_other_threads_have_no_limit_but_work():
    """Prevents a scorer that cannot be used in a thread: only the main one gets signals."""
    done = []

    def work():
        with time_limit(0.01):
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
