"""Pretraining with human preferences from a folder of code to a figure, small: what it is for shows in the end."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

from tests.readme import ROOT

SMALL = [
    "model.tokenizer_name_or_path=corpus:320", "model.shape.vocabulary=320", "model.shape.layers=2",
    "model.shape.hidden_size=128", "model.shape.intermediate_size=512", "model.shape.attention_heads=4",
    "model.shape.key_value_heads=4", "model.shape.head_size=32", "model.shape.parameters=450000",
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


def test_conditional_is_below_mle(tmp_path):
    """Prevents control tokens without effect: the interval of its samples' violations lies below MLE's.

    Also the benchmark: its record has all documents by hash, figures of both runs and one over the other.
    """
    write_code(tmp_path / "code")
    command = [
        sys.executable, "-m", "benchmarks.phf", "pep8", str(tmp_path / "code"), "--folder", str(tmp_path / "runs"),
        "--tokens", "150000", "--samples", "128", "--objectives", "mle", "conditional",
        "--output", str(tmp_path / "record.json"), "--figure", str(tmp_path / "figure.png"), "--overrides", *SMALL,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "record.json").read_text())
    mle, conditional = record["rows"]
    assert (mle["objective"], conditional["objective"]) == ("mle", "conditional")
    assert mle["score"]["n"] == conditional["score"]["n"] == 128
    assert conditional["score"]["high"] < mle["score"]["low"] and record["over_mle"][1]["score"] < 0.5
    assert record["over_mle"][1]["score"] == conditional["score"]["mean"] / mle["score"]["mean"]
    assert len(record["trained_on"]) + len(record["held_out"]) == 120 and len(record["held_out"]) > 0
    assert (tmp_path / "figure.png").stat().st_size > 5000
    assert "conditional" in done.stdout.splitlines()[-1]
