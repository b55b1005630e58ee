"""`make bench`: speed and memory beside TRL on the same pairs, how they grow, what options cost, where the time goes.

    python -m benchmarks.speed --data hh_harmless_base.jsonl.gz --peer trl_baseline.py --peer-python PYTHON

`--peer` is a script that trains by TRL on the first pairs of the same file and prints one JSON line; `--peer-python`
is an interpreter that has trl (requirements-bench.txt). Each measurement is a process of its own; the two take turns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import operator
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from scorers.progress import progress

HERE = Path(__file__).resolve().parent
OURS = [sys.executable, "-m", "benchmarks.work"]
PEER_SETTINGS = {"batch 1 x accumulation 4": ["--batch", "1", "--accum", "4"], "batch 4": ["--batch", "4"]}
BUDGETS = {"fp32": 448, "bf16": 1024}
"""Tokens of a forward pass: ours at its best here. More is faster in bfloat16 and takes more memory."""
GROWTH = [
    *({"prompt": p, "response": r, "responses": 2} for p, r in ((64, 256), (128, 128), (256, 64))),
    *({"prompt": 128, "response": 64, "responses": n} for n in (2, 4, 8, 16)),
    *({"prompt": 64 * n, "response": 64 * n, "responses": 2} for n in (1, 2, 4)),
]

OPTIONS = {
    "as it is": [],
    "model.activation_checkpointing=true": ["--checkpointing"],
    "model.compile=true": ["--compile"],
    "optimizer=AdamW8bit": ["--optimizer", "AdamW8bit"],
    "model.lora.rank=16": ["--lora", "16"],
    "model.lora.rank=16 model.lora.quantize=nf4": ["--lora", "16", "--quantize", "nf4"],
}


def run(command: list[str]) -> dict[str, Any]:
    """Runs one measurement; its last line is JSON."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def machine() -> str:
    """What the figures were taken on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next((line.split(":")[1].strip() for line in info.open() if line.startswith("model name")), model)
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {version('torch')}"


def commit() -> str:
    """The version of this code, with a plus when it was changed since."""
    done = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, cwd=HERE)
    return done.stdout.strip() or "unknown"


def ours(options: argparse.Namespace, method: str, dtype: str, cache: str | None) -> dict[str, Any]:
    """One run of ours."""
    command = [*OURS, "--method", method, "--dtype", dtype, "--data", options.data]
    command += ["--pairs", str(options.pairs), "--tokens-per-microbatch", str(BUDGETS[dtype])]
    return run(command + (["--cache", cache] if cache else []))


def theirs(options: argparse.Namespace, method: str, dtype: str, setting: list[str]) -> dict[str, Any]:
    """One run of the peer's."""
    command = [options.peer_python, str(HERE / "peer.py"), options.peer, "--method", method, "--dtype", dtype]
    return run([*command, "--pairs", str(options.pairs), *setting])


def beside(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All settings of both sides, in turn; after that ours again, and the peer's `--peer-repeats` times in all."""
    runs: dict[tuple[str, str, str, str, bool], list[dict[str, Any]]] = {}
    kinds = [(method, dtype) for method in options.methods for dtype in options.dtypes]
    total = len(kinds) * (options.repeats * 2 + options.peer_repeats * len(PEER_SETTINGS))
    bar = progress(total=total, desc="measuring", unit="run")
    # The first run ever converts the weights, which would count as memory that was there before the training.
    run([*OURS, "--pairs", "1", "--step", "1"])
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(options.repeats):
            for method, dtype in kinds:
                cache = f"{folder}/{repeat}-{method}-{dtype}"
                setting = f"packs of {BUDGETS[dtype]} tokens"
                for name, arguments in PEER_SETTINGS.items():
                    cached = name != next(iter(PEER_SETTINGS))  # ours without and with cached references, in between
                    if repeat < options.peer_repeats:
                        result = theirs(options, method, dtype, arguments)
                        runs.setdefault(("trl", method, dtype, name, False), []).append(result)
                        bar.update()
                    result = ours(options, method, dtype, cache)
                    if result["cached"] != cached:
                        sys.exit("the reference cache did not do what this measurement takes for granted")
                    runs.setdefault(("aureole", method, dtype, setting, cached), []).append(result)
                    bar.update()
    bar.close()
    tokens = {(method, dtype): some[0]["tokens"] for (who, method, dtype, *_), some in runs.items() if who == "trl"}
    return [record(key, some, tokens[key[1], key[2]]) for key, some in runs.items()]


def alone(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Ours without and with cached references in turn, without the peer: what references cost, and achieved rates."""
    runs: dict[tuple[str, str, str, str, bool], list[dict[str, Any]]] = {}
    kinds = [(method, dtype) for method in options.methods for dtype in options.dtypes]
    run([*OURS, "--pairs", "1", "--step", "1"])  # see `beside`
    with tempfile.TemporaryDirectory() as folder, progress(total=2 * options.repeats * len(kinds), unit="run") as bar:
        for repeat, (method, dtype) in itertools.product(range(options.repeats), kinds):
            for cached in (False, True):
                result = ours(options, method, dtype, f"{folder}/{repeat}-{method}-{dtype}")
                setting = f"packs of {BUDGETS[dtype]} tokens"
                runs.setdefault(("aureole", method, dtype, setting, cached), []).append(result)
                bar.update()
    return [record(key, some, some[0]["tokens"]) for key, some in runs.items()]


def record(key: tuple[str, str, str, str, bool], runs: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    """One row of speed.json. `tokens` are the peer's count: each prompt with each of its responses."""
    implementation, method, dtype, setting, cached = key
    speeds = [tokens / one["seconds"] for one in runs]
    made = {
        "implementation": implementation,
        "version": commit() if implementation == "aureole" else runs[0]["peer"].split()[-1],
        "method": method, "dtype": dtype, "setting": setting, "cached": cached,
        "tokens_per_second": round(statistics.median(speeds), 1),
        "spread": [round(min(speeds), 1), round(max(speeds), 1)],
        "seconds": round(statistics.median(one["seconds"] for one in runs), 2),
        "seconds_of_steps": [[round(step, 2) for step in one["steps"]] for one in runs],
        "tokens": tokens,
        "added_mb": round(statistics.median(one["rss_peak_mb"] - one["rss_before_mb"] for one in runs)),
        "peak_mb": round(statistics.median(one["rss_peak_mb"] for one in runs)),
        "losses": [round(loss, 6) for loss in runs[0]["losses"]],
        "machine": machine(),
    }  # fmt: skip
    if implementation == "aureole":
        work = [one for each in runs for one in each["gigaflops"]]
        steps = [one for each in runs for one in each["steps"]]
        each_step = [gigaflops / seconds for gigaflops, seconds in zip(work, steps, strict=True)]
        around = [statistics.mean(pair) for one in runs for pair in pairwise(one["matmul_gflops_per_second"])]
        shares = [own / rate for own, rate in zip(each_step, around, strict=True)]
        made |= {
            "gflops_per_second": round(sum(work) / sum(steps), 1),
            "gflops_per_second_of_the_median_step": round(statistics.median(each_step), 1),
            "matmul_gflops_per_second": [rate for one in runs for rate in one["matmul_gflops_per_second"]],
            "share_of_matmul_rate": round(sum(work) / sum(map(operator.mul, steps, around)), 3),
            "share_of_the_median_step": round(statistics.median(shares), 3),
            "unique_share": round(runs[0]["tokens/unique_share"], 3),
        }
    return made


def growth() -> list[dict[str, Any]]:
    """Tokens a second and added memory of DPO in float32 for prompts and responses of other lengths and numbers."""
    rows = []
    for point in progress(GROWTH, desc="growth", unit="run"):
        command = [*OURS, "--pairs", "8", "--step", "2"]
        command += [part for name, value in point.items() for part in (_OPTION[name], str(value))]
        result = run(command)
        later = sum(result["tokens_of_steps"][1:]) / sum(result["steps"][1:])  # the first step makes Adam's state
        rows.append({
            **point,
            "tokens_per_second": round(later, 1),
            "added_mb": round(result["rss_peak_mb"] - result["rss_before_mb"]),
            "unique_share": round(result["tokens/unique_share"], 3),
        })  # fmt: skip
    return rows


def profiles(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Of a step in steady state, which share of the time each operation takes; the profiler itself costs time."""
    rows = []
    kinds = [(method, dtype) for method in options.methods for dtype in options.dtypes]
    for method, dtype in progress(kinds, desc="profiles", unit="run"):
        command = [*OURS, "--method", method, "--dtype", dtype, "--data", options.data, "--pairs", "16", "--profile"]
        result = run([*command, "--tokens-per-microbatch", str(BUDGETS[dtype])])
        rows.append({"method": method, "dtype": dtype, "share_of_time": result["profile"]})
    return rows


def options_beside(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What each option costs and gains in DPO; not counting the first step, which compiles."""
    rows = []
    with progress(total=len(OPTIONS) * len(options.dtypes), desc="options", unit="run") as bar:
        for dtype in options.dtypes:
            for name, arguments in OPTIONS.items():
                command = [*OURS, "--data", options.data, "--pairs", "16", "--dtype", dtype, *arguments]
                result = run([*command, "--tokens-per-microbatch", str(BUDGETS[dtype])])
                later = sum(result["tokens_of_steps"][1:]) / sum(result["steps"][1:])
                rows.append({
                    "option": name, "dtype": dtype, "tokens_per_second": round(later, 1),
                    "seconds_of_steps": [round(step, 2) for step in result["steps"]],
                    "added_mb": round(result["rss_peak_mb"] - result["rss_before_mb"]),
                    "peak_mb": round(result["rss_peak_mb"]), "losses": [round(loss, 4) for loss in result["losses"]],
                })  # fmt: skip
                bar.update()
    return rows


_OPTION = {"prompt": "--prompt-length", "response": "--response-length", "responses": "--responses"}


def table(records: list[dict[str, Any]]) -> str:
    """The comparison as Markdown; ratios are to the peer's fastest, and memory to the peer's least."""
    lines = [
        "| | setting | tokens/s | of TRL's best | peak memory, GiB | added by training, GiB | of TRL's least | "
        "share of matmul rate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in records:
        same = [r for r in records if (r["method"], r["dtype"]) == (one["method"], one["dtype"])]
        peer = [r for r in same if r["implementation"] == "trl"]
        speed = one["tokens_per_second"] / max(r["tokens_per_second"] for r in peer)
        memory = one["added_mb"] / min(r["added_mb"] for r in peer)
        share = ""
        if "share_of_matmul_rate" in one:
            share = f"{one['share_of_matmul_rate']:.2f}, median step {one['share_of_the_median_step']:.2f}"
        name = f"{one['method'].upper()} {one['dtype']} {'TRL' if one['implementation'] == 'trl' else 'Aureole'}"
        setting = one["setting"] + (", cached reference" if one["cached"] else "")
        low, high = one["spread"]
        lines.append(
            f"| {name} | {setting} | {one['tokens_per_second']:.0f} ({low:.0f}-{high:.0f}) | {speed:.2f} "
            f"| {one['peak_mb'] / 1024:.1f} | {one['added_mb'] / 1024:.1f} | {memory:.2f} | {share} |"
        )
    return "\n".join(lines)


def largest_difference(records: list[dict[str, Any]]) -> float:
    """Between the losses of any two runs of the same method in float32, at any step.

    Not of TRL's KTO with accumulation, which estimates the KL of each of its batches of two by itself.
    """
    found = 0.0
    for method in {one["method"] for one in records}:
        same = [one for one in records if one["method"] == method and one["dtype"] == "fp32"]
        of = [one["losses"] for one in same if not (method == "kto" and "accumulation" in one["setting"])]
        found = max([found, *(max(step) - min(step) for step in zip(*of, strict=True))])
    return found


def main() -> None:
    """Measures, prints the tables, and keeps them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="hh_harmless_base.jsonl.gz")
    parser.add_argument("--peer", required=True, help="the peer's script")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--methods", nargs="+", default=["dpo", "kto"])
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2, help="runs of ours")
    parser.add_argument("--peer-repeats", type=int, default=1, help="of them beside the peer's, which take longest")
    parser.add_argument("--only", choices=["beside", "alone", "growth", "options", "profile"])
    options = parser.parse_args()
    options.data, options.peer = (os.path.abspath(path) for path in (options.data, options.peer))
    if os.sep in options.peer_python:
        options.peer_python = os.path.abspath(options.peer_python)
    if options.only in (None, "beside"):
        records = beside(options)
        (HERE / "speed.json").write_text(json.dumps(records, indent=1) + "\n")
        print(table(records))
        print(f"largest difference of a step's loss in float32: {largest_difference(records):.1e}")
    if options.only == "alone":
        (HERE / "rates.json").write_text(json.dumps(alone(options), indent=1) + "\n")
    others = {"growth": growth, "options": lambda: options_beside(options), "profile": lambda: profiles(options)}
    for name, measured in others.items():
        if options.only in (None, name):
            kept = {"version": commit(), "machine": machine(), "rows": measured()}
            (HERE / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
            print(json.dumps(kept["rows"], indent=1))


if __name__ == "__main__":
    main()
