"""mode=inspect shows the data; the data does not drive the terminal."""

from types import SimpleNamespace

import numpy as np

from launch.inspection import account_table, report

EVIL = "\x1b]0;owned\x07 \x9b2J\r"
SHOWN = r"\x1b]0;owned\x07 \x9b2J\r"
COUNTS = {"rows": 1, "used": 1, "examples": 1, "dropped": {f"no {EVIL}": 1}, "cut": {}}


class _Tokenizer:
    def decode(self, ids):
        return f"[{len(ids)}]\n\t{EVIL}"


def test_inspect_escapes_control_characters():
    """Prevents a data set that clears the screen, or hides the rows that somebody inspects it for."""
    response = SimpleNamespace(ids=np.arange(3), scored=np.array([False, True, True]), cut=False)
    row = SimpleNamespace(
        example=SimpleNamespace(dataset_name=f"set {EVIL}"),
        prompt=[1, 2],
        responses={"chosen": response},
        desirable=True,
        weight=1.0,
    )
    loader = SimpleNamespace(fixed_rows=lambda count: [row], most_shown=None)
    account = {f"name {EVIL}": {"train": COUNTS}}
    printed = report(loader, account, _Tokenizer())
    for text in (printed, account_table(account)):
        assert not set("\x1b\x07\x9b\r") & set(text)
        assert f"no {SHOWN}" in text and f"name {SHOWN}" in text
    assert f"--- set {SHOWN} desirable" in printed
    assert f"<chosen> [1]\n\t{SHOWN}[[[2]\n\t{SHOWN}]]" in printed
