"""Writes the files that a report is made of: a small run with samples, results and verdicts."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from reports.win_rates import result_line, summarize

CONFIG = """
exp_name: demo
lr: 1e-05
n_eval_examples: 64
seed: 1
model: {name: tiny, name_or_path: random, batch_size: 16}
loss: {name: kto, beta: 0.1, dataloader: UnpairedPreferenceDataLoader}
datasets: {everyday: {weight: 1.0}}
"""
COUNTS = {"rows": 133, "used": 133, "dropped": {}, "cut": {"prompts": 0, "responses": 2}, "examples": 266}


def records(accuracy: float = 30 / 32) -> list[dict[str, Any]]:
    """Two evaluations, one before training, and three steps."""
    first = {"split": "eval", "loss/eval": 0.5, "rewards_eval/margins": 0.0, "rewards_eval/accuracies": 0.0}
    last = {"split": "eval", "loss/eval": 0.4, "rewards_eval/margins": 1.1, "rewards_eval/accuracies": accuracy}
    steps = [
        {
            "split": "train",
            "loss/train": 0.5 - step / 50,
            "rewards_train/chosen": step / 9,
            "rewards_train/rejected": -step,
        }
        | {
            "rewards_train/KL_estimate": 0.0,
            "grad_norm": float("nan"),
            "seconds/all": 20.0,
            "counters/examples": 16 * step,
        }
        for step in (1, 2, 3)
    ]
    return [first | {"counters/examples": 0}, *steps, last | {"counters/examples": 48, "eval_seconds": 60.0}]


def sample(number: int, **changes: Any) -> dict[str, Any]:
    """A sample whose answer holds the fact after training and, for even numbers, before."""
    return {
        "prompt": f"Question {number}?",
        "chosen": "It is milk.",
        "facts": ["milk|cream"],
        "topic": f"topic {number % 3}",
        "policy": "It is milk.",
        "finish_reason": "stop",
        "reference": "One may wonder for long, and then " + ("say milk" if number % 2 == 0 else "say nothing"),
        "reference_finish_reason": "length" if number % 4 == 0 else "stop",
        "policy_logp": -3.0 - number / 10,
        "policy_reference_logp": -5.0,
        "policy_tokens": 4,
        **changes,
    }


class Judged:
    """A row as compare.py judges it."""

    shown_first = ()
    answers = ()

    def __init__(self, prompt: str, verdict: str):
        self.prompt, self.verdicts = prompt, (verdict,)


def write_files(
    folder: Path, samples: list[dict[str, Any]] | None = None, verdicts: list[str] | None = None
) -> list[str]:
    """Writes everything into `folder`; returns the arguments of the report's command."""
    samples = samples or [sample(number) for number in range(20)]
    run = folder / "run"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(CONFIG, encoding="utf-8")
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records()), encoding="utf-8")
    (run / "data.json").write_text(json.dumps({"everyday": {"train": COUNTS, "test": COUNTS}}), encoding="utf-8")
    content = {"sampled_at": "2026-01-01", "config": {"exp_name": "demo", "temperature": 0.7}, "samples": samples}
    (folder / "demo.json").write_text(json.dumps(content), encoding="utf-8")
    write_results(folder, samples, verdicts or ["candidate"] * (len(samples) - 4) + ["baseline"] * 3 + ["tie"])
    names = {"run": run, "samples": "demo.json", "results": "results.jsonl", "judgments": "judgments.csv"}
    arguments = [part for name, path in names.items() for part in (f"--{name}", str(folder / path))]
    return [*arguments, "--output", str(folder / "out" / "report.html")]


def write_results(folder: Path, samples: list[dict[str, Any]], verdicts: list[str]) -> None:
    """The result lines of the two rules, and who won each prompt by the first."""
    prompts = [str(row["prompt"]) for row in samples]
    lengths = [[len(row[key].split()) for row in samples] for key in ("policy", "reference")]
    with open(folder / "results.jsonl", "w", encoding="utf-8") as file:
        for judge, won in (("shorter", ["candidate"] * len(samples)), ("direct_answer", verdicts)):
            summary = summarize([Judged(prompt, verdict) for prompt, verdict in zip(prompts, won, strict=True)])
            names = {"candidate": ("policy", lengths[0]), "baseline": ("reference", lengths[1])}
            line = result_line(
                summary, seed=0, exp_name="demo", judge=judge, orders=1, rule=f"Words of {judge}.", **names
            )
            file.write(json.dumps(line) + "\n")
    scores = {"candidate": 1.0, "baseline": 0.0, "tie": 0.5}
    with open(folder / "judgments.csv", "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "candidate", "baseline", "outcome"])
        for row, verdict in zip(samples, verdicts, strict=True):
            writer.writerow([row["prompt"], row["policy"], row["reference"], scores[verdict]])
