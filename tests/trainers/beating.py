"""A process with a heartbeat and nothing else: `python -m tests.trainers.beating FOLDER RANK COUNT SECONDS DEED`.

The deed is what it does before it takes leave: `sleep:5`, `work:5` (Python's own, all the time), `fail:1` (ends after a
second without leave), `wait` (for a verdict, as one whose exchange failed).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from trainers.heartbeat import Heartbeat


class Files:
    """A store of files, as far as a heartbeat uses one."""

    def __init__(self, folder: Path):
        self._folder = folder

    def set_timeout(self, _: object) -> None:
        """Waits for as long as the tests do."""

    def set(self, key: str, value: str) -> None:
        """Keeps a value, whole at any moment."""
        part = self._folder / f"{key}.part"
        part.write_text(value)
        part.rename(self._folder / key)

    def get(self, key: str) -> str:
        """The value, once there is one."""
        while not (self._folder / key).exists():
            time.sleep(0.02)
        return (self._folder / key).read_text()


def do(deed: str, heartbeat: Heartbeat) -> None:
    """See above."""
    what, _, seconds = deed.partition(":")
    until = time.monotonic() + float(seconds or 0)
    if what == "wait":
        heartbeat.wait_for_verdict(20)
    elif what == "work":
        while time.monotonic() < until:
            sum(range(10_000))
    else:
        time.sleep(float(seconds))
    if what == "fail":
        sys.exit(3)


if __name__ == "__main__":
    folder, rank, count, seconds, deed = sys.argv[1:6]
    arrival = float(sys.argv[6]) if len(sys.argv) > 6 else 60.0
    beating = Heartbeat(Files(Path(folder)), int(rank), int(count), float(seconds), arrival)
    (Path(folder) / f"here{rank}").touch()
    do(deed, beating)
    beating.stop()
