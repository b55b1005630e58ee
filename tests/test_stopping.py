"""What a run says of itself, and what it says when it is told to stop before it has anything to save."""

import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from tests.readme import ROOT
from tests.test_resume import assert_same, command, here, killed_at, records, train
from trainers.resume import read_resume
from trainers.signals import stopping_at_once

SHORT = ("n_examples=8", "save_every=4")


@pytest.mark.parametrize(("event", "inside"), [("flush:1", "claim"), ("evaluate:1", "evaluate_and_log")])
def test_a_run_that_is_told_to_stop_before_its_first_step_ends_at_once(event: str, inside: str, tmp_path):
    """Prevents a notice of preemption that ends a run without a word, or with a code that no cluster starts again.

    It comes when the folder is taken and no model is loaded, and in the first evaluation.
    """
    printed = train(tmp_path, "dpo", *SHORT, kill=f"{event}:SIGTERM", expect=75)
    place = json.loads(killed_at(tmp_path).read_text())
    assert inside in place["inside"] and not place["step"], place
    assert printed.count("stopped by SIGTERM, with no training step under way: nothing is lost") == 1, printed
    assert "this step is finished" not in printed and "Traceback" not in printed
    assert not list((tmp_path / "run").glob("step-*"))


def sleep(began: Event) -> None:
    """Work that takes a minute."""
    began.set()
    time.sleep(60)


def test_a_process_of_a_pool_ends_as_it_would(capfd):
    """Prevents a pool whose processes say, when it is closed, that the run was stopped."""
    with stopping_at_once():
        context = multiprocessing.get_context("fork")
        began = context.Event()
        process = context.Process(target=sleep, args=(began,))
        process.start()
        assert began.wait(60)
        process.terminate()
        process.join()
    assert process.exitcode == -15 and "stopped by" not in capfd.readouterr().err


def test_a_run_says_what_runs_where_and_what_was_saved(tmp_path, capfd):
    """Prevents a log that does not say when and where it was made, or up to which example nothing is lost."""
    here(tmp_path, "sft", *SHORT)
    said = capfd.readouterr().err
    first = said.splitlines()[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+: cpu on \S+, 1 process of \d+ threads?", first), first
    saved = re.findall(r"^saved (\S+) at \d\d:\d\d:\d\d$", said, re.MULTILINE)
    assert saved == ["step-4", "step-8"] and "\r" not in said


def test_what_is_removed_is_named(tmp_path, caplog):
    """Prevents a finished run that is gone without a word, and one that is said to go on and then refused."""
    caplog.set_level("INFO")
    here(tmp_path, "sft", *SHORT)
    with pytest.raises(ValueError, match="raise them"):
        here(tmp_path, "sft", "n_examples=4", "save_every=4")
    assert "goes on after" not in caplog.text
    longer = ("n_examples=12", "save_every=4")
    here(tmp_path, "sft", *longer, "resume=never")
    told = (
        "(finished, with step-8, step-4) is removed: resume=never begins anew; resume=auto would have gone on with it"
    )
    assert told in caplog.text and "overwrite=true" not in caplog.text
    here(tmp_path, "sft", *SHORT, "overwrite=true")
    assert "(finished, with step-12, step-8) is removed: overwrite=true" in caplog.text


SAMPLES = [
    "+generation.scenarios.free.n_samples=6", "+generation.scenarios.free.max_new_tokens=8",
    "+generation.scenarios.other.n_samples=4", "+generation.scenarios.other.max_new_tokens=8",
    "generation.batch_size=2", "generation.every=16", "keep_best=null", "save_every=null", "keep_last=1",
]  # fmt: skip
"""Three batches and two, after 16, 32 and 40 examples, and no checkpoint but the last."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run with samples that was not stopped."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, "conditional", *SAMPLES)
    return folder


@pytest.mark.parametrize(
    ("event", "examples", "files"),
    [("sample:2", 16, 0), ("sample:14", 40, 5), ("gradients@9", 40, 4)],
    ids=["in the first samples", "in the last ones", "in the last step"],
)
def test_samples_do_not_keep_a_run_from_stopping(event: str, examples: int, files: int, whole: Path, tmp_path):
    """Prevents a notice of preemption that is heeded only once all samples are drawn, and the loss of all steps since
    the last checkpoint where the cluster does not wait so long.

    The third batch of the last samples is the last one of its scenario, which is saved.
    """
    stopped = tmp_path / "stopped"
    printed = train(stopped, "conditional", *SAMPLES, kill=f"{event}:SIGTERM", expect=75)
    assert f"stopped by SIGTERM after {examples} of 40 examples" in printed
    folder = stopped / "run"
    assert [one.name for one in folder.glob("step-*")] == [f"step-{examples}"]
    assert len(list(folder.glob("samples/*.jsonl"))) == files
    if files == 5:  # what is made up for is cut off again
        train(stopped, "conditional", *SAMPLES, kill="sample:4:SIGTERM", expect=75)
    assert f"goes on after {examples} examples" in train(stopped, "conditional", *SAMPLES)
    assert_same(stopped, whole)
    made = [sorted((one / "run" / "samples").iterdir()) for one in (stopped, whole)]
    assert [one.name for one in made[0]] == [one.name for one in made[1]] and len(made[0]) == 12
    assert [one.read_text() for one in made[0]] == [one.read_text() for one in made[1]]


@pytest.mark.timeout(300)
def test_two_processes_stop_in_their_samples_together(tmp_path):
    """Prevents a process that waits for one that has stopped: one is told, in a batch that the other one has not."""
    arguments = command(tmp_path, "conditional", *SAMPLES, "distributed.heartbeat_seconds=20")
    at = {"OMP_NUM_THREADS": "1", "KILLED_RANK": "0", "KILLED_AT": str(killed_at(tmp_path))}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    whole = [*torchrun, "-m", "tests.killing", "sample:2:SIGTERM", *arguments]
    done = subprocess.run(whole, cwd=ROOT, env=os.environ | at, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1 and "stopped by SIGTERM after 16 of 40" in done.stderr, done.stderr
    resume = read_resume(tmp_path / "run" / "LATEST")
    assert (resume.examples, resume.owed_since) == (16, 12)
    assert [record["split"] for record in records(tmp_path)][-1] != "generation"
