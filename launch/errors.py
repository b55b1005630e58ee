"""What a user sees of an error: one line and exit code 2 for a mistake of theirs, the traceback for one of ours."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def one_line_errors(script: str) -> Iterator[None]:
    """Ends the process with code 2 and `script: message` on a ValueError, with code 1 and a traceback on another error.

    AUREOLE_TRACEBACK=1 shows the traceback of a ValueError as well. It catches inside what Hydra runs, because Hydra
    would put a shortened traceback and advice of its own in the message's place.
    """
    try:
        yield
    except ValueError as error:
        if os.environ.get("AUREOLE_TRACEBACK", "0") not in ("", "0"):
            traceback.print_exc()
        hint = "" if _is_ours(error) else " (AUREOLE_TRACEBACK=1 shows where)"
        print(f"{script}: {error}{hint}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{script}: interrupted.", file=sys.stderr)
        sys.exit(130)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _is_ours(error: BaseException) -> bool:
    """Whether the code that raised it is this project's: its messages were written to be read alone."""
    frames = traceback.extract_tb(error.__traceback__)
    file = Path(frames[-1].filename) if frames else ROOT
    return file.is_relative_to(ROOT) and "site-packages" not in file.parts
