"""Pretraining with human preferences from a folder of code to a figure, small: what it is for shows in the end."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import phf, phf_ratios

SMALL = [
    "model.tokenizer_name_or_path=corpus:320", "model.shape.vocabulary=320", "model.shape.layers=2",
    "model.shape.hidden_size=64", "model.shape.intermediate_size=192", "model.shape.attention_heads=2",
    "model.shape.key_value_heads=2", "model.shape.head_size=32", "model.shape.parameters=117000",
    "model.max_length=128", "model.max_prompt_length=64", "model.batch_size=4", "lr=5e-3", "n_eval_examples=8",
    "generation.scenarios.unconditional.max_new_tokens=48", "generation.scenarios.functions=null",
]  # fmt: skip


def write_code(folder: Path, files: int = 120, seed: int = 0) -> None:
    """Files of assignments, whose lines have blanks around the sign or, every other one, have not."""
    generator = random.Random(seed)
    folder.mkdir()
    for number in range(files):
        lines = []
        for _ in range(40):
            name, value = generator.choice("abcd"), generator.randrange(4)
            lines.append(generator.choice([f"{name} = {value}\n", f"{name}={value}\n"]))
        (folder / f"values_{number}.py").write_text("".join(lines))


def run_here(script: str, *arguments: str) -> None:
    """What `benchmarks.phf.run` starts in a process of its own; here in this one, which has imported everything."""
    if script == "train.py":
        from launch.compose import compose
        from launch.train import run

        run(compose(arguments))
    elif script == "eval.py":
        from launch import evaluate, score
        from launch.saved_config import compose_for_eval

        config, folder = compose_for_eval(list(arguments))
        score.run(config) if config.mode == "score" else evaluate.run(config, folder)
    else:
        from reports.pareto import main

        assert (script, arguments[0]) == ("-m", "reports.pareto") and main(list(arguments[1:])) == 0


def test_a_ratio_and_its_interval():
    """Prevents a ratio without an interval, and one too narrow or too wide: 95 % of the simulated hold the truth."""
    drawn = np.random.default_rng(0).normal([[[2.0], [4.0]]], 1.0, (400, 2, 50))
    means, halves = drawn.mean(axis=2), 1.96 * drawn.std(axis=2, ddof=1) / 50**0.5
    found = []
    for mean, half in zip(means, halves, strict=True):
        own, first = ({"mean": m, "low": m - h, "high": m + h} for m, h in zip(mean, half, strict=True))
        found.append(phf.over(own, first))
    assert 370 <= sum(one["low"] <= 0.5 <= one["high"] for one in found) <= 390
    assert phf.over(first, first) == {"mean": 1.0, "low": None, "high": None}
    assert phf.over(own, first | {"mean": 0.0}) is None


def test_a_ratio_of_scores_and_its_interval():
    """Prevents an interval that takes prompts which two runs share for others, and one that misses rare events."""
    generator = np.random.default_rng(1)
    prompts = [f"p{number}" for number in range(40)]
    hard = generator.exponential(1.0, 40)
    own, first = ([(p, factor * h) for p, h in zip(prompts, hard, strict=True)] for factor in (0.5, 1.0))
    paired = phf_ratios.over(own, first)
    assert (paired["low"], paired["mean"], paired["high"]) == pytest.approx((0.5, 0.5, 0.5))
    alone = phf_ratios.over([("", score) for _, score in own], [("", score) for _, score in first])
    assert alone["mean"] == pytest.approx(0.5) and alone["low"] < 0.4 and alone["high"] > 0.6
    assert phf_ratios.over(own, [("", 0.0)]) is None
    rare = phf_ratios.over([("", 1.0)] + [("", 0.0)] * 99, [("", 1.0)] * 10 + [("", 0.0)] * 90)
    assert rare["mean"] == pytest.approx(0.1) and rare["low"] == 0 and 0.25 < rare["high"] < 0.6
    held = 0
    for _ in range(200):
        ones, others = (generator.exponential(scale, 60) for scale in (1.0, 2.0))
        found = phf_ratios.over([("", one) for one in ones], [("", one) for one in others])
        held += found["low"] <= 0.5 <= found["high"]
    assert 180 <= held <= 198


def test_conditional_is_below_mle(tmp_path, monkeypatch, capsys):
    """Prevents control tokens without effect: the interval of its samples' violations lies far below MLE's.

    Also the benchmark: its record has all documents by hash, figures of both runs and one over the other.
    """
    write_code(tmp_path / "code")
    monkeypatch.setattr(phf, "run", run_here)
    command = [
        "pep8", str(tmp_path / "code"), "--folder", str(tmp_path / "runs"), "--jobs", "1",
        "--tokens", "60000", "--samples", "64", "--objectives", "mle", "conditional",
        "--output", str(tmp_path / "record.json"), "--figure", str(tmp_path / "figure.png"), "--overrides", *SMALL,
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["benchmarks.phf", *command])
    phf.main()
    written = (tmp_path / "record.json").read_text()
    record = json.loads(written)
    assert str(tmp_path) not in written, "where it was made is no part of a record"
    mle, conditional = record["rows"]
    assert (mle["objective"], conditional["objective"]) == ("mle", "conditional")
    assert mle["score"]["n"] == conditional["score"]["n"] == 64
    assert conditional["score"]["high"] < 0.5 * mle["score"]["low"]
    ratios = record["over_mle"][1] | record["over_mle"][1]["unconditional"]
    assert ratios["score"]["mean"] == pytest.approx(conditional["score"]["mean"] / mle["score"]["mean"])
    assert ratios["bits_per_byte"] < 1.05
    assert ratios["length"]["mean"] == pytest.approx(6 / 5, rel=0.1), "good lines are longer"
    assert ratios["score_elsewhere"]["mean"] < 0.5, "the lines that it repeats are not where it is better"
    assert record["documents"]["all"]["documents"] == len(record["train_files"]) == mle["documents_read"]
    assert mle["overrides"][0] == "model=gemma-1m" and mle["passes"] > 1
    assert ratios["blank_lines"] is None, "neither writes any, and a share of nothing is no number"
    (samples,) = (tmp_path / "runs" / "pep8_mle" / "samples").glob("unconditional-*.jsonl")
    worst = sorted(json.loads(line)["score"] for line in samples.read_text().splitlines())
    subsets = sum(score * math.comb(rank, 24) for rank, score in enumerate(worst)) / math.comb(64, 25)
    assert mle["scenarios"]["unconditional"]["score_max@25"]["mean"] == pytest.approx(subsets)
    assert len(record["train_files"]) + len(record["held_out_files"]) == 120 and len(record["held_out_files"]) > 0
    assert (tmp_path / "figure.png").stat().st_size > 5000
    assert "conditional" in capsys.readouterr().out.splitlines()[-1]
