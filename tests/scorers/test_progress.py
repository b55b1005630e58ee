"""Progress: a bar on a terminal, a line now and then in a log file."""

import ast
import io
import sys

import pytest

from scorers import progress as module
from scorers.progress import Lines, progress, say
from tests.readme import ROOT


class Terminal(io.StringIO):
    """What says that it is a terminal."""

    def isatty(self) -> bool:
        """It does."""
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def test_a_log_file_gets_a_line_now_and_then(clock, monkeypatch):
    """Prevents a log file that is one line of a thousand bars, and one that is silent for an hour.

    Lines that others write, and postfixes, bring no more of them.
    """
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress(total=200, desc="training", unit="ex") as bar:
        for number in range(200):
            clock[0] += 1
            bar.update()
            bar.set_postfix(failed=number)
            if number % 50 == 9:
                say(f"loss {number}")
    lines = log.getvalue().splitlines()
    assert "\r" not in log.getvalue() and "" not in lines
    assert [line.split()[1] for line in lines if line.startswith("loss")] == ["9", "59", "109", "159"]
    bars = [line for line in lines if line.startswith("training: ")]
    assert len(bars) + 4 == len(lines)
    assert [line.split("| ")[1].split()[0] for line in bars] == [
        "30/200",
        "60/200",
        "90/200",
        "120/200",
        "150/200",
        "180/200",
        "200/200",
    ]
    assert "[00:30<02:50,  1.00ex/s" in bars[0]


def test_what_is_done_soon_is_not_told(clock, monkeypatch):
    """Prevents two lines in a log for each of a hundred short batches."""
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    for _ in progress(range(20), desc="sampling"):
        clock[0] += 1
    assert log.getvalue() == ""
    for _ in progress(range(40), desc="scores", leave=False):
        clock[0] += 1
    assert len(log.getvalue().splitlines()) == 1 and log.getvalue().startswith("scores: ")


def test_a_terminal_keeps_its_bar(monkeypatch):
    """Prevents a user who waits half a minute to see that anything happens."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress(total=3, desc="training") as bar:
        assert not isinstance(bar, Lines)
        bar.update(3)
    assert terminal.getvalue().startswith("\rtraining:   0%") and "100%" in terminal.getvalue()


def test_there_is_one_place_that_makes_bars():
    """Prevents the bar that fills a log file because somebody has made it by hand."""
    here = ROOT / "scorers" / "progress.py"
    assert here.samefile(module.__file__)
    folders = ("scorers", "models", "dataloaders", "trainers", "launch", "reports", "benchmarks")
    files = [*ROOT.glob("*.py"), *(file for folder in folders for file in (ROOT / folder).rglob("*.py"))]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            source = getattr(node, "module", None) or ""
            assert file == here or "tqdm" not in (*names, source.split(".")[0]), f"{file} imports tqdm"
