"""mode=kl: local references and endpoints, their samples kept, and the results in the run's folder."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pytest
import torch

from launch import kl
from launch.compose import compose
from launch.saved_config import compose_for_eval
from launch.train import run
from models.byte_tokenizer import byte_tokenizer
from models.checkpoints import Checkpoint
from tests import tiny
from tests.completions_server import CompletionsServer

SMALL = [
    "model=tiny", "loss=sft", "n_examples=8", "n_eval_examples=0", "model.batch_size=4", "lr=1e-2", "exp_name=run",
    "kl.n_samples=8", "kl.max_new_tokens=6", "kl.batch_size=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """A cache with a reference and a run that was trained with KL from it."""
    folder = tmp_path_factory.mktemp("cache")
    config = tiny.config("sft")
    from models.loading import load_model

    model = load_model("random", shape=dict(config.model.shape), seed=9)
    (folder / "other").mkdir()
    Checkpoint(model, byte_tokenizer(), step_idx=1, metrics={}).write(folder / "other")
    run(compose([*SMALL, f"cache_dir={folder}", "kl.reference=other", "kl.every=4"]))
    return folder


def measured(cache: Path, *overrides: str) -> dict:
    folder = cache / "run"
    config, _ = compose_for_eval([f"--config-path={folder}", "mode=kl", *overrides])
    return kl.measure(config, folder, str(folder / "LATEST" / "policy.pt"))


def test_kl_while_training_is_kl_after_it(cache: Path, caplog):
    """Prevents two ways to measure, and samples that are drawn again for every run."""
    lines = [json.loads(line) for line in (cache / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if line["split"] == "kl"]
    assert [line["counters/examples"] for line in found] == [4, 8]
    caplog.set_level("INFO")
    result = measured(cache)
    assert result["kl"]["mean"] == pytest.approx(found[-1]["KL/KL(reference, model)"], rel=1e-4)
    assert result["kl"]["low"] < result["kl"]["mean"] < result["kl"]["high"]
    assert "8 samples of the reference other were there" in caplog.text
    assert result["kl_reference"]["same_tokenizer"] and not result["kl_reference"]["notes"]
    kept = json.loads((cache / "run" / "alignment.json").read_text())
    assert kept["kl"] == result["kl"] and kept["weights"] == {"checkpoint": "step-8"} and kept["label"] == "run"


def test_samples_are_another_references_no_longer(cache: Path):
    """Prevents samples of a reference whose weights have changed since, and of other settings."""
    before = len(list((cache / "kl").glob("*.jsonl")))
    measured(cache, "kl.seed=2")
    assert len(list((cache / "kl").glob("*.jsonl"))) == before + 1
    policy = cache / "other" / "policy.pt"
    contents = torch.load(policy, weights_only=True)
    contents["state"] = {name: value * 1.1 for name, value in contents["state"].items()}
    torch.save(contents, policy)
    measured(cache, "kl.seed=2")
    assert len(list((cache / "kl").glob("*.jsonl"))) == before + 2


def test_a_torn_cache_is_drawn_again(cache: Path, caplog):
    """Prevents half a sample that counts, and a process killed while it writes that stops all later ones."""
    first = measured(cache, "kl.seed=3")
    file = max((cache / "kl").glob("*.jsonl"), key=lambda one: one.stat().st_mtime_ns)
    whole = file.read_text()
    file.write_text(whole[:-20])
    assert measured(cache, "kl.seed=3")["kl"] == first["kl"] and file.read_text() == whole
    assert "unreadable lines" in caplog.text


def test_an_endpoint_is_the_reference(cache: Path, monkeypatch, caplog):
    """Prevents a log-probability of nothing, a sample that is paid for twice, and a key in a file or a message."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-key-123")
    caplog.set_level("INFO")

    def choices(body: dict) -> list[dict]:
        assert (body["temperature"], body["top_p"], body["prompt"], body["max_tokens"]) == (1.0, 1.0, "", 6)
        return [{"text": "ab", "logprobs": {"tokens": ["a", "b"], "token_logprobs": [-1.5, -0.5]}}] * body["n"]

    with CompletionsServer(choices) as server:
        asked = ["kl.reference=openai:big", f"kl.base_url={server.url}"]
        result = measured(cache, *asked)
        assert [body["n"] for body in server.bodies] == [4, 4] and len({body["seed"] for body in server.bodies}) == 2
        assert measured(cache, *asked)["kl"] == result["kl"] and len(server.bodies) == 2
    assert result["kl_reference"]["notes"] == [kl.CAVEAT, kl.ENDPOINT_CAVEAT]
    assert result["kl_per_byte"]["mean"] == pytest.approx(result["kl"]["mean"] / 2)
    texts = [file.read_text() for file in (cache / "kl").glob("*.jsonl")] + [caplog.text]
    assert not any("sk-very-secret" in text for text in texts)

    for text, logps, message in (
        ("ab", None, "gives no log-probabilities"),
        ("ab", [5.0, -1.0], "no number of at most 0"),
        ("ab", [True, -1.0], "no number of at most 0"),
        ("a\ud800", [-1.0, -1.0], "half a character"),
    ):
        wrong = CompletionsServer(
            lambda body, one={"text": text, "logprobs": logps and {"token_logprobs": logps}}: [one] * body["n"]
        )
        with wrong, pytest.raises(ValueError, match=message):
            measured(cache, "kl.reference=openai:small", f"kl.base_url={wrong.url}")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match=r"kl.reference=openai:big: set kl.base_url .* OPENAI_API_KEY"):
        measured(cache, "kl.reference=openai:big", "kl.base_url=https://example.org/v1")


@pytest.mark.parametrize("change", [{"logp": float("nan")}, {"logp": "1"}, {"ids": [-1]}, {"ids": ["a"]}, {"ids": 5}])
def test_a_kept_sample_that_is_none_is_drawn_again(change: dict, tmp_path):
    """Prevents a divergence of NaN, or a traceback, from a damaged file of samples."""
    sample = {"text": "a", "ids": [1, 2], "logp": -3.0, "tokens": 2, "ended": False}
    file, header = tmp_path / "samples.jsonl", {"a": 1}
    file.write_text("".join(json.dumps(line) + "\n" for line in (header, sample, sample | change, sample)))
    found, unread = kl.read_samples(file, header)
    assert [one.ids for one in found] == [(1, 2)] and unread == 2


def test_held_out_documents(cache: Path, tmp_path):
    """Prevents bits per byte of the aligned documents that are those of all, and an unreadable line passed over."""
    file = tmp_path / "documents.jsonl.gz"
    rows = [{"text": "good text", "score": 0.0}, {"text": "bad", "score": 0.5}, {"text": "who knows", "score": None}]
    with gzip.open(file, "wt") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in rows))
    result = measured(cache, "kl.reference=null", f"kl.documents={file}", "kl.aligned_threshold=0.1")
    assert result["bits_per_byte"]["n"] == 3 and result["bits_per_byte_aligned"]["n"] == 1
    assert result["held_out"]["without_score"] == 1 and "kl" not in result
    assert result["held_out"]["documents_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert measured(cache, f"kl.documents={file}", "kl.n_documents=2")["bits_per_byte"]["n"] == 2
    wrong = tmp_path / "wrong.jsonl"
    for contents, message in (
        (b'{"text": "a"}\n{"txt": "b"}\n', "line 2: every line must be"),
        (b'{"text": 5}\n', "line 1: every line must be"),
        (b'{"text": ""}\n{"text": " "}\n', "there is no document with text in it"),
        (b'{"text": "\xe9"}\n', "cannot be read to its end as UTF-8"),
    ):
        wrong.write_bytes(contents)
        with pytest.raises(ValueError, match=message):
            measured(cache, "kl.reference=null", f"kl.documents={wrong}")


def test_held_out_rewards_are_refused(cache: Path, tmp_path):
    """Prevents the worst documents that are measured as the aligned ones, because their scores are rewards."""
    file = tmp_path / "rewarded.jsonl"
    file.write_text(json.dumps({"text": "a", "score": 0.0, "direction": "higher_is_better"}) + "\n")
    given = ["kl.reference=null", f"kl.documents={file}"]
    with pytest.raises(ValueError, match="line 1: its scores are higher_is_better, and here low ones are good"):
        measured(cache, *given, "kl.aligned_threshold=0.1")
    assert measured(cache, *given)["bits_per_byte"]["n"] == 1, "its scores tell nothing"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "set kl.reference=MODEL, or kl.documents"),
        (["kl.aligned_threshold=0.5", "kl.reference=x"], "aligned_threshold is of documents"),
        (["kl.reference=x", "kl.max_new_tokens=99999"], "do not fit model.max_length"),
        (["kl.documents=nowhere.jsonl"], "there is no such file"),
        (["kl.reference=x", "kl.n_samples=1"], "at least 2"),
        (
            ["kl.reference=openai:x", "kl.base_url='http://me:secret@localhost/v1'"],
            "leave them out, and set OPENAI_API_KEY",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(overrides: list[str], message: str):
    """Prevents a model that is loaded for a measurement that cannot be."""
    with pytest.raises(ValueError, match=message):
        compose(["model=tiny", "mode=kl", *overrides], script="eval.py")


def test_a_reference_without_weights_is_refused(cache: Path):
    """Prevents a divergence from noise, and one from a model that is not there."""
    with pytest.raises(ValueError, match="name a model that has weights"):
        measured(cache, "kl.reference=random")
    with pytest.raises(ValueError, match="no model at"):
        measured(cache, "kl.reference=./nowhere")
