"""What a run says of itself, and what it says when it is told to stop before it has anything to save."""

import json
import multiprocessing
import re
import time
from multiprocessing.synchronize import Event

import pytest

from tests.test_resume import here, killed_at, train
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
