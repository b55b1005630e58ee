"""What checkpoints cost: SmolLM2 by DPO in bfloat16, six steps of 16 pairs, a checkpoint at the end or after each step.

    python -m benchmarks.saving [--rounds 2] [--output benchmarks/saving.json]

The settings take turns, and all find the reference values that a run before them has left. `peak_gb` is of the whole
process, up to its end: the last checkpoint is in it.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.speed import commit, machine

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    "one at the end": ["save_every=null"],
    "six, in the background": ["save_every=16"],
    "six, between the steps": ["save_every=16", "save_in_background=false"],
}
TRAINING = [
    "loss=dpo", "n_examples=96", "n_eval_examples=0", "model.batch_size=16", "shuffle=false",
    "model.policy_dtype=bfloat16", "model.reference_dtype=bfloat16", "exp_name=run", "overwrite=true",
]  # fmt: skip
ACCOUNT = re.compile(r"checkpoints: (\d+) written in ([\d.]+) s; the training waited ([\d.]+) s")


def worker(arguments: list[str]) -> None:
    """The training, and then its peak memory in GiB."""
    import torch

    from launch.compose import compose
    from launch.train import run
    from trainers.metrics import peak_memory_gb

    logging.basicConfig(level=logging.INFO)
    run(compose(arguments))
    print(f"peak: {peak_memory_gb(torch.device('cpu')):.3f}")


def measure(cache: str, settings: list[str]) -> dict[str, Any]:
    """One training: the seconds of its steps, how long it waited for checkpoints, and its peak memory."""
    start = [sys.executable, "-m", "benchmarks.saving", "--worker"]
    command = [*start, *TRAINING, *settings, f"cache_dir={cache}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    written, took, waited = ACCOUNT.search(done.stdout + done.stderr).groups()
    peak = re.search(r"^peak: ([\d.]+)$", done.stdout, re.MULTILINE)[1]
    records = [json.loads(line) for line in (Path(cache) / "run" / "metrics.jsonl").read_text().splitlines()]
    size = sum(file.stat().st_size for file in (Path(cache) / "run" / "LATEST").iterdir())
    return {
        "seconds_of_steps": [round(record["seconds/all"], 2) for record in records if record["split"] == "train"],
        "checkpoints": int(written), "written_seconds": float(took), "waited_seconds": float(waited),
        "peak_gb": round(float(peak), 2), "checkpoint_mb": round(size / 2**20),
    }  # fmt: skip


def main() -> None:
    """Measures all settings in turn and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each setting (2)")
    parser.add_argument("--output", default=str(ROOT / "benchmarks" / "saving.json"))
    options = parser.parse_args()
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SETTINGS}
    with tempfile.TemporaryDirectory() as cache:
        measure(cache, SETTINGS["one at the end"])  # computes the reference values; it does not count
        for _ in range(options.rounds):
            for name, settings in SETTINGS.items():
                rows[name].append(measure(cache, settings))
                print(name, json.dumps(rows[name][-1]), flush=True)
    lines = [f"  {json.dumps({'setting': name, **one})}" for name, some in rows.items() for one in some]
    head = f'{{"version": {json.dumps(commit())}, "machine": {json.dumps(machine())}, "rows": [\n'
    Path(options.output).write_text(head + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2:])
    else:
        main()
