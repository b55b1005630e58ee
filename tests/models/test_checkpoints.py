"""policy.pt and its folder: a round trip, nothing executed, nothing half written."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from models.byte_tokenizer import byte_tokenizer
from models.checkpoints import Checkpoint, read_policy, repair_folder, write_folder
from models.loading import load_tokenizer
from tests import tiny


class Evil:
    """What a malicious checkpoint contains: unpickled, it makes a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (os.mkdir, (self.marker,))


def saved(folder, **changes):
    model = tiny.tiny_model()
    write_folder(folder, Checkpoint(model, byte_tokenizer(), 7, {"loss/eval": 0.5} | changes).write)
    return model


def test_a_round_trip(tmp_path):
    """Prevents lost weights, another layout than {step_idx, state, metrics}, and a folder without its tokenizer."""
    model = saved(tmp_path / "LATEST")
    contents = read_policy(tmp_path / "LATEST" / "policy.pt")
    assert set(contents) == {"step_idx", "state", "metrics"}
    assert (contents["step_idx"], contents["metrics"]) == (7, {"loss/eval": 0.5})
    assert all(torch.equal(contents["state"][name], value) for name, value in model.state_dict().items())
    assert json.loads((tmp_path / "LATEST" / "metrics.json").read_text()) == {"loss/eval": 0.5}
    tokenizer = load_tokenizer(str(tmp_path / "LATEST"))
    text = "Zoë <|im_end|> 7\n"
    assert tokenizer(text).input_ids == byte_tokenizer()(text).input_ids
    assert tokenizer.chat_template == byte_tokenizer().chat_template


@pytest.mark.parametrize("how", ["zip", "legacy", "plain pickle"])
def test_a_malicious_pickle_is_refused_and_not_executed(how: str, tmp_path):
    """Prevents remote code execution by a policy.pt, in any format that torch.load reads."""
    marker, path = tmp_path / "executed", tmp_path / "policy.pt"
    contents = {"step_idx": 0, "state": {"x": Evil(marker)}, "metrics": {}}
    if how == "plain pickle":
        path.write_bytes(pickle.dumps(contents))
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(ValueError, match=r"policy\.pt"):
        read_policy(path)
    assert not marker.exists()
    if how == "zip":
        with pytest.raises(ValueError, match=r"would execute code.*it asks for posix\.mkdir") as refused:
            read_policy(path)
        assert "weights_only" not in str(refused.value), "torch's advice to load it after all is not passed on"
        torch.load(path, weights_only=False)
        assert marker.exists(), "the test's own pickle does nothing"


def test_torn_and_foreign_files_are_named(tmp_path):
    """Prevents a traceback of zipfile for a file that a full disk has torn, or that is something else."""
    saved(tmp_path / "LATEST")
    whole = (tmp_path / "LATEST" / "policy.pt").read_bytes()
    for number, contents in enumerate((whole[: len(whole) // 2], whole[:10], b"", b"no checkpoint")):
        path = tmp_path / f"torn{number}.pt"
        path.write_bytes(contents)
        with pytest.raises(ValueError, match=f"torn{number}.pt") as refused:
            read_policy(path)
        why = str(refused.value.__cause__)
        assert len(why) < 200 or f"({why.split('. ')[0]}). Is it" in str(refused.value), "a sentence is not cut"
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="no weights under 'state'"):
        read_policy(tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"missing\.pt"):
        read_policy(tmp_path / "missing.pt")


def test_a_failed_write_leaves_the_old_folder(tmp_path):
    """Prevents a half written folder under its final name, and leftovers beside it."""
    target = tmp_path / "LATEST"
    write_folder(target, lambda folder: (folder / "a").write_text("old"))

    def fail(folder):
        (folder / "a").write_text("new")
        raise RuntimeError("disk full")

    with pytest.raises(OSError, match=r"LATEST could not be written \(disk full\)\. .* GiB are free"):
        write_folder(target, fail)
    assert (target / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["LATEST"]
    write_folder(target, lambda folder: (folder / "b").write_text("new"))
    assert [path.name for path in target.iterdir()] == ["b"], "a replaced folder keeps nothing of the old one"


KILLED = """
import os, signal, sys
from pathlib import Path
from models import checkpoints
calls, wanted, original = 0, int(sys.argv[2]), os.replace
def replace(source, target):
    global calls
    calls += 1
    if calls == wanted:
        os.kill(os.getpid(), signal.SIGKILL)
    original(source, target)
checkpoints.os.replace = replace
checkpoints.write_folder(Path(sys.argv[1]), lambda folder: (folder / "a").write_text("new"))
"""


@pytest.mark.parametrize("rename", [1, 2])
def test_a_kill_between_two_renames_loses_nothing(rename: int, tmp_path):
    """Prevents a run without any LATEST: killed before either rename, the old folder is there or is put back."""
    target = tmp_path / "LATEST"
    write_folder(target, lambda folder: (folder / "a").write_text("old"))
    command = [sys.executable, "-c", KILLED, str(target), str(rename)]
    assert subprocess.run(command, cwd=tiny.ROOT).returncode == -signal.SIGKILL
    assert target.exists() == (rename == 1)
    repair_folder(target)
    assert (target / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["LATEST"]


def test_repair_leaves_a_complete_folder_alone(tmp_path):
    """Prevents the old folder from taking the place of the new one after a kill in the clean-up."""
    target = tmp_path / "LATEST"
    write_folder(target, lambda folder: (folder / "a").write_text("new"))
    shutil.copytree(target, tmp_path / ".LATEST.old")
    (tmp_path / ".LATEST.old" / "a").write_text("old")
    repair_folder(target)
    assert (target / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["LATEST"]
