"""A command that names a checkpoint is run again like any other: it goes on from where it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import train
from launch.compose import compose
from launch.run_folder import release, run_folder
from trainers.step import StepComputer

SMALL = [
    "model=tiny", "loss=sft", "model.batch_size=4", "datasets.everyday.n_examples=20", "n_eval_examples=0",
    "save_every=8", "keep_last=3", "device=cpu",
]  # fmt: skip
"""Five steps of four examples; checkpoints after 8, 16 and 20."""


class Cut(Exception):
    """Stands for the end of a process."""


@pytest.fixture
def run(tmp_path, monkeypatch) -> Callable[..., None]:
    """Runs a command by name, or lets it end in its step number `cut`."""

    def command(name: str, *more: str, cut: int | None = None) -> None:
        gradients, calls = StepComputer.gradients, iter(range(1, 100))

        def counted(*arguments: object) -> object:
            if next(calls) == cut:
                raise Cut
            return gradients(*arguments)

        config = compose([*SMALL, f"cache_dir={tmp_path}", f"exp_name={name}", *more])
        with monkeypatch.context() as patched:
            patched.setattr(StepComputer, "gradients", counted)
            try:
                train.run(config)
            except Cut:
                assert cut is not None
            finally:
                release(run_folder(config))

    return command


def examples(folder: Path) -> list[int]:
    """Of the records of a run's training."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record["counters/examples"] for record in records if record["split"] == "train"]


def test_a_run_begun_from_anothers_checkpoint_goes_on(run, tmp_path, caplog):
    """Prevents a command that cannot be run again, and an auto that forgets the weights that the run began with."""
    caplog.set_level("INFO")
    run("other", "n_examples=12")
    named = f"resume={tmp_path}/other/step-8"
    run("run", named, cut=1)
    for again, cut, place in (("auto", 1, 8), (named, 3, 8), (named, None, 16)):
        caplog.clear()
        run("run", again if again == named else "resume=auto", cut=cut)
        assert f"run goes on after {place} examples, from step-{place}" in caplog.text
    assert examples(tmp_path / "run") == [12, 16, 20]
    with pytest.raises(ValueError, match=r"of another run than .*which has begun already"):
        run("run", f"resume={tmp_path}/other/step-12", "n_epochs=2")


def test_a_run_goes_back_once(run, tmp_path, caplog, monkeypatch):
    """Prevents a command that throws the same steps away at each restart, is refused once they are displaced, or does
    not go back where it was killed before it did."""
    caplog.set_level("INFO")
    run("run", cut=5)
    back = f"resume={tmp_path}/run/step-8"

    def cut(*_: object) -> None:
        raise Cut

    with monkeypatch.context() as patched:
        patched.setattr("trainers.loop.take_up", cut)
        run("run", back, cut=0)
    run("run", back, cut=1)
    assert [path.name for path in (tmp_path / "run").glob("step-*")] == ["step-8"]
    run("run", "keep_last=1", back, cut=3)
    assert [path.name for path in (tmp_path / "run").glob("step-*")] == ["step-16"]
    caplog.clear()
    run("run", "keep_last=1", back)
    assert "was taken up when" in caplog.text and "goes on after 16 examples" in caplog.text
    assert examples(tmp_path / "run") == [4, 8, 12, 16, 20]


def test_what_is_not_there_is_said(run, tmp_path):
    """Prevents a run that begins anew because its checkpoint was put aside, and removes that one as its own."""
    run("some")
    with pytest.raises(
        ValueError, match=r"there is no .*step-99: resume is auto, never, .*are step-20, step-16, step-8"
    ):
        run("other", f"resume={tmp_path}/some/step-99")
    with pytest.raises(ValueError, match=r"policy.pt is a file: resume takes the folder that it is in, .*step-8\."):
        run("other", f"resume={tmp_path}/some/step-8/policy.pt")
    (tmp_path / "some" / "finished.json").unlink()
    for number in (8, 16, 20):
        (tmp_path / "some" / f"step-{number}").rename(tmp_path / "some" / f"step-{number}.aside")
    with pytest.raises(
        ValueError, match=r"LATEST leads to step-20, which is not there: put it back, or .*resume=never"
    ):
        run("some")
    run("some", "resume=never", "keep_optimizer=false")
    assert (tmp_path / "some" / "step-20.aside" / "resume.pt").is_file()
    assert sorted(path.name for path in (tmp_path / "some").glob("*.aside")) == [
        "step-16.aside", "step-20.aside", "step-8.aside",
    ]  # fmt: skip
