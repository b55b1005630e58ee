"""Ends a torchrun that does not notice its process's end: `python hung_launcher.py PROCESS LAUNCHER SECONDS`.

torchrun asks the store of its rendezvous how the run goes, and where the store's host is gone, it waits for an answer
until TCP gives up, a quarter of an hour later, deaf to signals. A launcher at work takes note of its processes' ends
several times a second; one that has not in so many seconds hangs.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path


def unnoticed(process: int, launcher: int) -> bool:
    """Whether a process has ended (state Z of proc(5)) and this parent does not know it yet."""
    try:
        state, parent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return False
    return state == "Z" and int(parent) == launcher


def main(process: int, launcher: int, seconds: float) -> None:
    """Waits so long, and ends the launcher by SIGKILL if it hangs."""
    until = time.monotonic() + seconds
    time.sleep(0.5)
    while unnoticed(process, launcher) and time.monotonic() < until:
        time.sleep(0.2)
    if unnoticed(process, launcher):
        print(f"torchrun (process {launcher}) waits for a host that is gone: it is ended", file=sys.stderr, flush=True)
        with suppress(OSError):
            os.kill(launcher, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
