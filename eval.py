"""Samples, evaluates, exports or attacks a run or any other model; scores a corpus. `--help` says more."""

from __future__ import annotations

import logging
import sys

from launch.errors import one_line_errors
from launch.hub import go_offline_when_unreachable
from launch.saved_config import compose_for_eval


def main() -> None:
    """Composes and checks the config, without torch, and runs it."""
    with one_line_errors("eval.py"):
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
        config, folder = compose_for_eval(sys.argv[1:])
        go_offline_when_unreachable(config)
        if config.mode == "score":
            from launch.score import run as score

            score(config)
            return
        from launch.evaluate import run

        done = run(config, folder)
        if config.mode == "red_team" and done is not None:
            from reports.red_team import write

            print(write([done], done.with_name("red_team.png")))


if __name__ == "__main__":
    main()
