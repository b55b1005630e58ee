"""A run that is killed and started again by the same command ends in the bits of one that was not."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from launch.compose import compose
from launch.train import run
from tests import documents, warm
from tests.readme import ROOT
from trainers.metrics import MetricsLog

TRAINING = [
    "model=tiny", "n_epochs=2", "model.batch_size=2",
    "model.gradient_accumulation_steps=2", "model.tokens_per_microbatch=128", "n_eval_examples=6", "eval_every=12",
    "save_every=8", "log_every=3", "keep_last=2", "keep_best=loss/eval", "lr=1e-3", "scheduler=cosine",
]  # fmt: skip
"""Two epochs of five steps of four examples, several passes each; what is due is due at different steps."""
FAMILIES = {
    "dpo": ["loss=dpo"],
    "kto": ["loss=kto"],
    "sft": ["loss=sft"],
    "bco": ["loss=bco"],
    "ppo": ["loss=ppo"],
    "moving": ["loss=dpo", "loss.sync_reference=true"],
    "lora": ["loss=kto", "model.lora.rank=4", "model.lora.targets=[q_proj]", "cache_reference=false"],
    "awr": ["loss=awr"],
    "conditional": ["loss=conditional"],
}
DATA = {family: ["datasets.everyday.n_examples=20"] for family in FAMILIES} | {
    family: [*documents.command(), "n_examples=40"] for family in ("awr", "conditional")
}
"""One loss of each way to keep a state: none, KL rows, a running mean, a value head, other weights, an adapter, a
place in documents that stream, and tokens that were added."""
VOLATILE = ("seconds", "per_second", "memory")


def command(folder: Path, family: str, *more: str) -> list[str]:
    """The arguments of a run named `run` in a folder."""
    return [*FAMILIES[family], *DATA[family], *TRAINING, f"cache_dir={folder}", "exp_name=run", *more]


def train(
    folder: Path, family: str, *more: str, expect: int = 0, kill: str | None = None, run: Callable[..., Any] = warm.run
) -> str:
    """Runs it in a process of its own, or lets it signal itself at an event; returns what it printed."""
    start = [str(ROOT / "train.py")] if kill is None else ["-m", "tests.killing", kill]
    whole = [sys.executable, *start, *command(folder, family, *more)]
    environment = os.environ | {"KILLED_AT": str(killed_at(folder))}
    done = run(whole, cwd=ROOT, env=environment, timeout=240)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def killed_at(folder: Path) -> Path:
    """Where it is written at which place a run in a folder was killed last."""
    return folder.with_name(f"{folder.name}-killed-at.json")


def records(folder: Path) -> list[dict]:
    """metrics.jsonl without what a clock says."""
    found = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if not any(word in k for word in VOLATILE)} for record in found]


def contents(folder: Path) -> dict[str, Any]:
    """Everything that a run leaves: the links, and all tensors of all checkpoints."""
    folder = folder / "run"
    links = {name: (folder / name).resolve().name for name in ("LATEST", "BEST")}
    files = sorted(folder.glob("step-*/*.pt")) + sorted(folder.glob("step-*/*.safetensors"))
    names = [str(file.relative_to(folder)) for file in files]
    tensors = {name: flat(read(file)) for name, file in zip(names, files, strict=True)}
    return {"links": links, "files": tensors}


def read(file: Path) -> Any:
    """A file of tensors."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    found = torch.load(file, weights_only=True)
    if file.name == "resume.pt":
        del found["metrics_bytes"], found["config"]  # clocks have more or fewer digits; the folder is another one
    return found


def flat(value: Any) -> Any:
    """Tensors as bytes, so that == compares bits."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: flat(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [flat(one) for one in value]
    return value


def assert_same(folder: Path, whole: Path) -> None:
    """Two folders of runs hold the same to the bit."""
    assert records(folder) == records(whole)
    one, other = contents(folder), contents(whole)
    assert one["links"] == other["links"] and one["files"].keys() == other["files"].keys()
    assert [name for name in one["files"] if one["files"][name] != other["files"][name]] == []


@pytest.mark.parametrize(
    ("family", "kills"),
    [
        ("dpo", {"write:4": "step-12 resume.pt", "evaluate:2": "evaluate", "gradients:2": "step"}),
        ("kto", {"reference:3": "add", "rename:2": "write_folder step-12", "log:3": "_log"}),
        ("moving", {"step:4": "_step", "remove:1": "_tidy step-"}),
    ],
)
def test_a_killed_run_ends_in_the_same_bits(family: str, kills: dict[str, str], tmp_path):
    """Prevents a resume that loses or repeats a step, an average, a record or a reference value: some kills of a run.

    Those of DPO are inside resume.pt, in an evaluation, and in a step after a resume; of KTO inside a record of
    reference values, before a folder appears, and inside a line of metrics.jsonl. `kills` says where it was.
    """
    train(tmp_path / "whole", family)
    for kill, words in kills.items():
        train(tmp_path / "killed", family, kill=kill, expect=-signal.SIGKILL)
        place = json.loads(killed_at(tmp_path / "killed").read_text())
        for word in words.split():
            assert word in place["inside"] or any(word in file for file in place["files"]), (kill, place)
    printed = train(tmp_path / "killed", family)
    assert "goes on after" in printed
    assert_same(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize(("name", "event", "code"), [("SIGTERM", "gradients:5", 75), ("SIGINT", "evaluate:2", 130)])
def test_a_run_that_is_told_to_stop_saves_first(name: str, event: str, code: int, tmp_path):
    """Prevents the loss of what a cluster's notice of preemption, or a Ctrl-C, leaves time to save."""
    once = ("save_every=null", "keep_best=null")
    printed = train(tmp_path / "stopped", "sft", *once, kill=f"{event}:{name}", expect=code)
    assert f"stopped by {name} after" in printed and "the same command goes on from there" in printed
    assert len(list((tmp_path / "stopped" / "run").glob("step-*"))) == 1
    assert "goes on after" in train(tmp_path / "stopped", "sft", *once)
    train(tmp_path / "whole", "sft", *once)
    assert records(tmp_path / "stopped") == records(tmp_path / "whole")
    one, other = (contents(tmp_path / where)["files"]["step-40/resume.pt"] for where in ("stopped", "whole"))
    assert one == other


def test_the_second_interrupt_stops_at_once(tmp_path):
    """Prevents a Ctrl-C that waits for the end of a long step although it was pressed twice."""
    printed = train(tmp_path, "sft", kill="gradients:6:SIGINT+SIGINT", expect=130)
    assert "Ctrl-C again stops at once" in printed and "train.py: interrupted." in printed
    assert "stopped by SIGINT" not in printed
    assert (tmp_path / "run" / "LATEST").resolve().name == "step-16", "the step under way is not saved"
    assert "goes on after 16 examples, from step-16" in train(tmp_path, "sft")


def here(folder: Path, family: str, *more: str) -> None:
    """The same run in this process."""
    run(compose(command(folder, family, "keep_best=null", *more)))


def test_what_may_change_and_what_may_not(tmp_path, caplog):
    """Prevents a run that goes on with another learning rate, and one that a longer training would begin anew."""
    caplog.set_level("INFO")
    constant = ["scheduler=constant", "warmup_steps=2"]
    here(tmp_path, "dpo", *constant, "n_examples=12")
    longer = [*constant, "n_examples=24", "log_every=1", "eval_every=8"]
    with pytest.raises(ValueError, match=r"another config \(lr: 0.001 there, 0.1 here\)"):
        here(tmp_path, "dpo", *longer, "lr=0.1")
    here(tmp_path, "dpo", *longer)
    assert "goes on after 12 examples, from step-12" in caplog.text and "n_examples: 12 there, 24 here" in caplog.text
    assert [r["counters/examples"] for r in records(tmp_path) if r["split"] == "eval"] == [0, 12, 16, 24]
    here(tmp_path, "dpo", *longer)
    assert "nothing to do" in caplog.text
    with pytest.raises(ValueError, match=r"after \d+ steps with 24 examples, .* end the run after \d+ steps with 8: "):
        here(tmp_path, "dpo", *longer, "n_examples=8")
    caplog.clear()
    here(tmp_path, "dpo", *longer)
    assert "nothing to do" in caplog.text, "what is refused leaves a finished run finished"
    here(tmp_path / "at once", "dpo", *longer)
    one, other = (contents(folder)["files"]["step-24/policy.pt"] for folder in (tmp_path, tmp_path / "at once"))
    assert one["state"] == other["state"], "with a constant rate the longer run is the same one"


def test_checkpoints_that_cannot_be_gone_on_from(tmp_path, caplog):
    """Prevents a run that begins anew over what it cannot read, and a message that does not say what to do."""
    caplog.set_level("INFO")
    here(tmp_path, "sft", "keep_last=3")
    folder, three = tmp_path / "run", "keep_last=3"
    latest = folder / "step-40" / "resume.pt"
    (folder / "finished.json").unlink()
    before = flat(read(latest))
    latest.write_bytes(latest.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"resume.pt cannot be read.*resume=FOLDER.*resume=never"):
        here(tmp_path, "sft", three)
    torch.save({"format": 0}, latest)
    with pytest.raises(ValueError, match="has format 0"):
        here(tmp_path, "sft", three)
    here(tmp_path, "sft", three, f"resume={folder}/step-32")
    assert "goes on after 32 examples" in caplog.text and "step-40 is removed" in caplog.text
    assert flat(read(latest)) == before
    caplog.clear()
    here(tmp_path, "sft", f"resume={folder}/step-32", "exp_name=fork")
    assert "goes on after 32 examples" in caplog.text and (folder / "step-40").exists()
    here(tmp_path, "sft", f"resume={folder}", "exp_name=whole", "n_epochs=3")
    assert "goes on after 40 examples" in caplog.text, "a run's folder stands for its last checkpoint"
    assert "the run has 15 steps now and had 10" in caplog.text
    with pytest.raises(ValueError, match=r"another config .*n_examples: 20 there, 16 here.*model.load_from="):
        here(tmp_path, "sft", "datasets.everyday.n_examples=16", "exp_name=other", f"resume={folder}/step-32")
    with pytest.raises(ValueError, match=r"there is no .*step-99: resume is auto"):
        here(tmp_path, "sft", "exp_name=other", f"resume={folder}/step-99")
    caplog.clear()
    here(tmp_path, "sft", "resume=never", "exp_name=fork", "n_epochs=1")
    assert "goes on" not in caplog.text


def test_data_that_changed_are_noticed(tmp_path):
    """Prevents a run that goes on with other rows under the same file name, and a refusal that un-finishes it."""
    file = tmp_path / "data.jsonl"
    rows = [{"prompt": f"{n}?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    local = ["datasets=[local]", f"datasets.local.path={file}", "n_eval_examples=0", "exp_name=run"]
    settings = [one for one in TRAINING if "n_eval" not in one and "keep_best" not in one]
    run(compose(["loss=dpo", *settings, f"cache_dir={tmp_path}", *local, "n_examples=8"]))
    file.write_text(file.read_text().replace("good 3", "good 4"))
    with pytest.raises(ValueError, match="was trained on other data"):
        run(compose(["loss=dpo", *settings, f"cache_dir={tmp_path}", *local, "n_examples=16"]))
    assert (tmp_path / "run" / "finished.json").exists()
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").n_examples == 8


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path, monkeypatch):
    """Prevents a full disk that costs the run: it stops with what to do, and then goes on from the last whole one."""
    save, calls = torch.save, iter(range(100))

    def full(contents: object, file: Path) -> None:
        if next(calls) >= 2:  # the first checkpoint has two files
            raise RuntimeError("PytorchStreamWriter failed writing file data/7: file write failed")
        save(contents, file)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        with pytest.raises(OSError, match=r"step-16 could not be written .* GiB are free there.*same command goes on"):
            here(tmp_path / "full", "sft")
    assert (tmp_path / "full" / "run" / "LATEST").resolve().name == "step-8"
    here(tmp_path / "full", "sft")
    here(tmp_path / "whole", "sft")
    assert records(tmp_path / "full") == records(tmp_path / "whole")
    assert contents(tmp_path / "full") == contents(tmp_path / "whole")


@pytest.mark.parametrize(("when", "name"), [("step-16", "step-16"), ("LATEST", "LATEST")])
def test_permission_lost_in_the_middle_leaves_the_last_one(when: str, name: str, tmp_path, monkeypatch):
    """Prevents a folder that nobody may write to any more from costing the run, and a message that gives no way out."""
    replace = os.replace

    def refuse(source: object, target: Path) -> None:
        if Path(target).name == when and (tmp_path / "lost" / "run" / "LATEST").exists():
            raise PermissionError(errno.EACCES, "Permission denied", str(target))
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        with pytest.raises(
            OSError, match=rf"{name} could not be written .*Permission denied.* give this user the perm"
        ):
            here(tmp_path / "lost", "sft")
    assert (tmp_path / "lost" / "run" / "LATEST").resolve().name == "step-8"
    assert not list((tmp_path / "lost" / "run").glob(".step-*"))
    here(tmp_path / "lost", "sft")
    here(tmp_path / "whole", "sft")
    assert contents(tmp_path / "lost") == contents(tmp_path / "whole")


def test_a_metric_that_cannot_be_written_says_what_to_do(tmp_path, monkeypatch):
    """Prevents a bare error number where the disk fills up between two checkpoints."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    log = MetricsLog(tmp_path)
    log.close()
    monkeypatch.setattr(log, "_file", open("/dev/full", "wb"))  # noqa: SIM115
    with pytest.raises(OSError, match=r"could not be written .*No space left.* make room .*same command goes on"):
        log.write({"loss/train": 1.0}, 4, "train")
    with pytest.raises(OSError, match=r"could not be written .*No space left.* make room"):
        log.close()  # what could not be written is tried once more, and its error takes the other one's place


def test_wandb_goes_on_in_the_same_run(tmp_path, monkeypatch):
    """Prevents a run that was cut off from becoming two in wandb."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for examples in (12, 24):
        here(tmp_path, "sft", "wandb.enabled=true", f"n_examples={examples}", "scheduler=constant")
    folders = (tmp_path / "run").glob("wandb/offline-run-*")
    names = [path.name.split("-")[3] for path in folders]  # two of one second differ by a number behind the name
    assert len(names) == 2 and len(set(names)) == 1, names


def test_without_the_optimizers_state_a_run_is_smaller(tmp_path):
    """Prevents a key without effect, and a finished run that is trained anew because it cannot be made longer."""
    here(tmp_path, "sft", "keep_optimizer=false", "n_examples=12")
    assert not list((tmp_path / "run").glob("*/resume.pt")) and (tmp_path / "run" / "LATEST" / "policy.pt").exists()
    with pytest.raises(ValueError, match=r"LATEST has no resume.pt, so no run can go on from it"):
        here(tmp_path, "sft", "keep_optimizer=false", "n_examples=24")
