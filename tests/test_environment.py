"""One list of pins in three files."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def pins(text: str) -> set[str]:
    return set(re.findall(r"^[\s-]*([A-Za-z0-9_.-]+(?:\[[a-z,]+\])?==[^\s#]+)", text, re.MULTILINE))


def test_conda_users_get_the_same_pins():
    """Prevents two environments that drift apart."""
    pip = pins((ROOT / "requirements.txt").read_text()) | pins((ROOT / "requirements-dev.txt").read_text())
    conda = pins((ROOT / "environment.yml").read_text())
    assert conda == pip
    assert "torch==2.13.0" in pip


def test_everything_is_pinned():
    """Prevents an install that works today and not tomorrow."""
    for name in (
        "requirements.txt",
        "requirements-dev.txt",
        "requirements-model.txt",
        "requirements-bitsandbytes.txt",
        "requirements-scorers.txt",
    ):
        lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith(("#", "-r"))]
        assert lines and all("==" in line for line in lines), name
