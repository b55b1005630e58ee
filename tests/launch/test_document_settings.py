"""What a config says of documents: thresholds by quantile, how many blocks, what scored them, which revisions."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from launch.compose import compose
from launch.pretraining import blocks, settle_threshold, tell_scorers
from launch.train import run as train
from tests import documents
from tests.launch.test_build_scorer import OWN

SMALL = ["model=tiny", "n_examples=2", "model.batch_size=2", "n_eval_examples=0", "device=cpu"]


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def composed(path: Path, *overrides: str):
    return compose(["datasets=[local]", f"datasets.local.path={path}", "datasets.local.test_fraction=1e-9", *overrides])


@pytest.mark.parametrize(("loss", "threshold"), [("filtering", 0.3), ("conditional", 0.0), ("unlikelihood", 0.0)])
def test_a_quantile_is_of_documents_or_of_segments(loss: str, threshold: float, tmp_path):
    """Prevents half of the segments where half of the documents was meant, or the reverse."""
    four = {"text": "abcd", "segments": [[0, 1], [1, 2], [2, 3], [3, 4]], "scores": [0.0, 0.0, 0.0, 0.8], "score": 0.2}
    rows = [four, *({"text": text, "scores": [score]} for text, score in (("e", 0.3), ("f", 0.9)))]
    config = composed(write(tmp_path / "rows.jsonl", *rows), f"loss={loss}", "loss.quantile=0.5")
    settle_threshold(config)
    assert config.loss.threshold == threshold, "the median of 0.2 0.3 0.9, or of 0 0 0 0.3 0.8 0.9"


def test_soft_scores_have_no_threshold(monkeypatch):
    """Prevents a pass over all documents for a threshold that loss.mode=soft never reads."""
    config = composed(documents.corpus_file(), "loss=unlikelihood", "loss.mode=soft")
    monkeypatch.setattr("launch.pretraining.build_corpora", None)
    settle_threshold(config)
    assert config.loss.threshold is None


@pytest.mark.parametrize(("overrides", "expected"), [
    (["task.n_tokens=1000"], 15),
    (["task.n_tokens=1000", "task.tokens_already_seen=400"], 9),
    (["task.n_tokens=1000", "task.tokens_already_seen=400", "n_examples=4"], 4),
    (["task.n_tokens=1000", "task.tokens_already_seen=400", "n_examples=40"], 9),
    (["task.tokens_already_seen=400"], None),
])  # fmt: skip
def test_tokens_that_were_seen_count(overrides: list[str], expected: int | None):
    """Prevents a finetuning that takes the tokens of the whole budget once more."""
    assert blocks(compose([*documents.command(), "loss=mle", *overrides])) == expected


def test_what_was_seen_is_passed_over_before_a_run_begins(tmp_path):
    """Prevents a run that is emptied for one that cannot begin: too few documents are said first."""
    config = compose(
        ["loss=mle", *SMALL, *documents.command(), f"cache_dir={tmp_path}", "task.tokens_already_seen=1000000"]
    )
    with pytest.raises(ValueError, match=r"task.tokens_already_seen=1,000,000, and the documents have"):
        train(config)
    assert not list(tmp_path.glob("*/data.json")), "which a run that has begun writes"


def by(path: Path, *scorers: str) -> Path:
    """The corpus of forty documents, scored by each of these in turn."""
    rows = [documents.document(number) for number in range(40)]
    return write(path, *({**row, "scorer": scorers[place % len(scorers)]} for place, row in enumerate(rows)))


def test_documents_of_several_scorers_are_said(tmp_path, caplog):
    """Prevents one threshold over scores that mean different things, without a word."""
    from dataloaders.pretraining import FilteredPretrainingDataLoader, PretrainingDataLoader

    both, one = by(tmp_path / "both.jsonl", "a 1", "a 2"), by(tmp_path / "one.jsonl", "a 1")
    tell_scorers([documents.loader(PretrainingDataLoader, path=both)], [])
    tell_scorers([documents.loader(FilteredPretrainingDataLoader, path=one)] * 2, [])
    tell_scorers([documents.loader(FilteredPretrainingDataLoader)], [])
    assert not caplog.messages
    tell_scorers([documents.loader(FilteredPretrainingDataLoader, path=both)] * 2, [])
    assert caplog.messages == ["documents were scored by different scorers, whose scores may differ: a 1 | a 2"]


def test_samples_of_another_scorer_are_said(tmp_path, caplog):
    """Prevents a run whose samples are scored otherwise than its documents were, another version of it included."""
    caplog.set_level(logging.WARNING, "launch.pretraining")
    scenario = ["+generation.scenarios.free.n_samples=1", "+generation.scenarios.free.max_new_tokens=2"]
    common = ["loss=filtering", "loss.quantile=0.5", *SMALL, *scenario, f"scorer.kind='{OWN}'", "generation.metrics=[]"]
    said = {}
    for version in ("capitals 1.0", "capitals 0.9"):
        path = by(tmp_path / "documents.jsonl", version)
        where = [f"datasets.local.path={path}", f"cache_dir={tmp_path}", f"exp_name=run{version[-1]}"]
        caplog.clear()
        train(compose([*common, *documents.command(), *where]))
        said[version] = [record.getMessage() for record in caplog.records if record.name == "launch.pretraining"]
    assert said["capitals 1.0"] == []
    assert said["capitals 0.9"] == [
        "samples are scored by another scorer than documents were, and scores may differ: capitals 1.0 | capitals 0.9"
    ]
