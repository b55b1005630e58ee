"""bitsandbytes, which only some runs need: asked for before anything expensive starts, imported where it is used."""

from __future__ import annotations

import importlib.util
import logging
from types import ModuleType


def need_bitsandbytes(setting: str) -> None:
    """Imports nothing.

    Args:
        setting: what needs it, as it was set.

    Raises:
        ValueError: when bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            f"{setting} needs bitsandbytes, which is not installed: run "
            "`pip install -r requirements-bitsandbytes.txt`, or leave it out."
        )


def bitsandbytes(setting: str) -> ModuleType:
    """The library; ValueError when it is not installed."""
    need_bitsandbytes(setting)
    hush_bitsandbytes()
    import bitsandbytes

    return bitsandbytes


def hush_bitsandbytes() -> None:
    """On some processors it advises installing one more library, for a matrix product that is not used here; so it does
    when peft imports it."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
