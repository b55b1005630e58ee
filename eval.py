"""Samples, evaluates or exports a run or any other model: `python eval.py --config-path=.cache/NAME`."""

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
        from launch.evaluate import run

        run(config, folder)


if __name__ == "__main__":
    main()
