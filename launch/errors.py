"""What a user sees of an error: a line for a mistake of theirs (code 2) or a machine that fails (1), a bug whole."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scorers.printable import printable

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def one_line_errors(script: str) -> Iterator[None]:
    """Ends the process with `script: message` and code 2 on a ValueError, 1 on an OSError; else with a traceback and 1.

    AUREOLE_TRACEBACK=1 shows the traceback of those two as well. It catches inside what Hydra runs, because Hydra
    would put a shortened traceback and advice of its own in the message's place.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("AUREOLE_TRACEBACK", "0") not in ("", "0"):
            traceback.print_exc()
        hint = "" if _is_ours(error) else " (AUREOLE_TRACEBACK=1 shows where)"
        print(printable(f"{script}: {error}{hint}"), file=sys.stderr)  # it may quote data
        sys.exit(2 if isinstance(error, ValueError) else 1)
    except KeyboardInterrupt:
        print(f"{script}: interrupted.", file=sys.stderr)
        sys.exit(130)
    except Exception:
        if (exchange := sys.modules.get("trainers.distributed")) is not None:
            exchange.wait_for_verdict()  # another process's end shows as an error of whatever was being exchanged
        traceback.print_exc()
        sys.exit(1)


def _is_ours(error: BaseException) -> bool:
    """Whether the code that raised it is this project's: its messages were written to be read alone."""
    frames = traceback.extract_tb(error.__traceback__)
    file = Path(frames[-1].filename) if frames else ROOT
    return file.is_relative_to(ROOT) and "site-packages" not in file.parts
