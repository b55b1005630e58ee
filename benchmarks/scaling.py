"""How a training scales: SmolLM2 by DPO in float32 on 1 and 2 processes, replicas and shards.

    python -m benchmarks.scaling [--rounds 2] [--output benchmarks/scaling.json]

Each process has one thread; one process with two threads is what two processes compete with on two cores. The settings
take turns, and all find the reference values that a run before them has left. The first step, which makes the
optimizer's state, is left out of the rates. `communication_share` is the time in torch's Work.wait alone: a lower bound
of what communication costs (copies into and out of buffers are not in it), and waiting for slower processes is in it.
`peak_gb` is of the whole process, some 0.5 GiB of libraries among it, and with shards on the first one the last
checkpoint, which is gathered; nothing is saved in the background. `reckoned_gb` is what mode=memory says of the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.speed import commit, machine

ROOT = Path(__file__).resolve().parents[1]
SETTINGS: dict[str, tuple[int, int, str]] = {
    "1 process, 1 thread": (1, 1, "ddp"),
    "1 process, 2 threads": (1, 2, "ddp"),
    "2 processes, replicas": (2, 1, "ddp"),
    "2 processes, shards": (2, 1, "fsdp"),
}
"""Processes, threads of each, and how the model is distributed."""
TRAINING = [
    "loss=dpo", "n_examples=80", "n_eval_examples=0", "model.batch_size=16", "model.tokens_per_microbatch=1024",
    "shuffle=false", "model.policy_dtype=float32", "model.reference_dtype=float32", "exp_name=run", "overwrite=true",
    "minimum_log_interval_secs=0", "save_in_background=false",
]  # fmt: skip
"""Five steps of 16 pairs."""


def worker(arguments: list[str]) -> None:
    """What one process does: the training, with a clock around each wait for the others."""
    from torch.distributed.distributed_c10d import Work

    from launch.compose import compose
    from launch.train import run
    from trainers import distributed
    from trainers.basic import BasicTrainer
    from trainers.metrics import peak_memory_gb

    waited, steps, wait, step = [0.0], [], Work.wait, BasicTrainer.step

    def timed_wait(*some: Any, **more: Any) -> Any:
        start = time.perf_counter()
        try:
            return wait(*some, **more)
        finally:
            waited[0] += time.perf_counter() - start

    def timed_step(*some: Any, **more: Any) -> Any:
        before, start = waited[0], time.perf_counter()
        try:
            return step(*some, **more)
        finally:
            steps.append((time.perf_counter() - start, waited[0] - before))

    Work.wait, BasicTrainer.step = timed_wait, timed_step
    import torch

    config = compose(arguments)
    run(config)
    found = {"steps": steps, "peak_gb": peak_memory_gb(torch.device("cpu"))}
    everybody = distributed.gather_objects(found)
    if distributed.rank() == 0:
        (Path(config.cache_dir) / "scaling.json").write_text(json.dumps(everybody))
    distributed.leave()


def measure(cache: str, setting: str, more: list[str]) -> dict[str, Any]:
    """One training: tokens a second, what of the time was communication, and each process's peak memory."""
    processes, threads, kind = SETTINGS[setting]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = [sys.executable, *(launcher if processes > 1 else []), "-m", "benchmarks.scaling", "--worker"]
    options = [*TRAINING, f"cache_dir={cache}", f"distributed={kind}", *more]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([*start, *options], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{setting}: {done.stderr[-3000:]}")
    lines = (Path(cache) / "run" / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record["split"] == "train"][1:]
    everybody = json.loads((Path(cache) / "scaling.json").read_text())
    seconds = sum(record["seconds/all"] for record in records)
    tokens = sum(record["tokens_per_second"] * record["seconds/all"] for record in records)
    shares = [sum(wait for _, wait in one["steps"][1:]) / sum(all for all, _ in one["steps"][1:]) for one in everybody]
    return {
        "setting": setting, "tokens_per_second": round(tokens / seconds, 1),
        "seconds_of_steps": [round(record["seconds/all"], 2) for record in records],
        "communication_share": [round(share, 3) for share in shares],
        "peak_gb": [round(one["peak_gb"], 2) for one in everybody],
        "losses": [record["loss/train"] for record in records],
    }  # fmt: skip


def reckoned(cache: str, setting: str, more: list[str]) -> float:
    """GiB of a process by mode=memory, the reference left out, whose values are cached."""
    processes, _, kind = SETTINGS[setting]
    options = [f"cache_dir={cache}", f"distributed={kind}", f"distributed.processes={processes}", "mode=memory"]
    command = [sys.executable, str(ROOT / "train.py"), *TRAINING, *more, *options]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (total,) = re.findall(r"([\d.]+)  in all", printed)
    reference = re.findall(r"([\d.]+)  the reference", printed)
    return round(float(total) - sum(map(float, reference)), 2)


def main() -> None:
    """Measures all settings in turn and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each setting (2)")
    parser.add_argument("--output", default=str(ROOT / "benchmarks" / "scaling.json"))
    parser.add_argument("overrides", nargs="*", help="key=value of train.py, for a try: model=tiny")
    options = parser.parse_args()
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SETTINGS}
    with tempfile.TemporaryDirectory() as cache:
        measure(cache, "1 process, 2 threads", options.overrides)  # computes the reference values; it does not count
        for _ in range(options.rounds):
            for name, some in rows.items():
                some.append(measure(cache, name, options.overrides))
                some[-1]["reckoned_gb"] = reckoned(cache, name, options.overrides)
                print(json.dumps(some[-1]), flush=True)
    base = statistics.median(row["tokens_per_second"] for row in rows["1 process, 1 thread"])
    for some in rows.values():
        for row in some:
            row["speedup"] = round(row["tokens_per_second"] / base, 2)
    lines = [f"  {json.dumps(row)}" for some in rows.values() for row in some]
    head = f'{{"version": {json.dumps(commit())}, "machine": {json.dumps(machine())}, "rows": [\n'
    Path(options.output).write_text(head + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2:])
    else:
        main()
