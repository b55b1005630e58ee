"""Losses on the embedded data, each at several learning rates and seeds, ranked: the README's commands in one.

    python -m benchmarks.ranking [--folder .cache/ranking] [--jobs 2]

Trains, samples for all held-out questions, judges by a rule, and writes the record and both figures. What is done is
not done again. Everything is in float32, which every machine has: in bfloat16 the same rates go less far.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from benchmarks.commands import run
from benchmarks.speed import commit, machine
from scorers.rules import has_facts

ROOT = Path(__file__).resolve().parents[1]
LOSSES = ("sft", "dpo", "ipo", "kto", "slic", "simpo")
RATES = ("1e-6", "3e-6", "1e-5")
SEEDS = (1, 2, 3)
NAME = "exp_name=${model.name}_${loss.name}_lr-${lr}_seed-${seed}"
TRAINING = (
    "n_examples=128", "n_eval_examples=32", "eval_every=64", "model.batch_size=8", "scheduler=linear",
    "warmup_steps=2", "model.policy_dtype=float32", "model.reference_dtype=float32", "keep_optimizer=false",
)  # fmt: skip
SAMPLING = (
    "++mode=sample", "++n_samples=null", "++temperature=0", "++max_new_tokens=64", "++model.eval_batch_size=133",
)  # fmt: skip
BASELINE = "smollm2-135m"


def training(loss: str, seed: int, folder: Path) -> list[str]:
    """The arguments of train.py for a loss at all rates."""
    return ["-m", f"loss={loss}", f"lr={','.join(RATES)}", f"seed={seed}", *TRAINING, NAME, f"cache_dir={folder}"]


def sampled(name: str, folder: Path) -> Path:
    """The samples of a run, or of the model before training, drawn if they are not there."""
    file = folder / "samples" / f"{name}.json"
    if not file.exists():
        untrained = [f"model={name}", "model.policy_dtype=float32", f"cache_dir={folder}"]
        of = untrained if name == BASELINE else [f"--config-path={folder / name}"]
        run("eval.py", *of, *SAMPLING, f"++samples_dir={file.parent}/")
    return file


def of_responses(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean words, how many responses ended by themselves, and how many hold the right fact."""
    return {
        "mean_words": round(sum(len(one["policy"].split()) for one in samples) / len(samples), 1),
        "ended": sum(one["finish_reason"] == "stop" for one in samples),
        "right": sum(has_facts(one["policy"], one["facts"]) for one in samples),
    }


def record(files: Sequence[Path], judged: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """What is recorded of each run, in the order of their samples' files.

    Args:
        judged: the lines of compare.py's results file, one for each file.
        folder: has the runs' folders.
    """
    rows = []
    for file, line in zip(files, judged, strict=True):
        config = OmegaConf.load(folder / file.stem / "config.yaml")
        records = [json.loads(one) for one in (folder / file.stem / "metrics.jsonl").read_text().splitlines()]
        held_out = [one["loss/eval"] for one in records if one["split"] == "eval"]
        samples = json.loads(file.read_text(encoding="utf-8"))["samples"]
        rows.append({
            "loss": config.loss.name, "lr": config.lr, "seed": config.seed,
            "win_rate": round(line["win_rate"], 2), "wins": line["candidate"]["wins"],
            "losses": line["baseline"]["wins"], "ties": line["ties"],
            **of_responses(samples), "loss/eval": round(held_out[-1], 4),
        })  # fmt: skip
    return rows


def main() -> None:
    """Does what is not done yet, and writes the record and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=str(ROOT / ".cache" / "ranking"), help="of runs and samples (28 GB)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, with a thread each (2)")
    parser.add_argument("--output", default=str(ROOT / "benchmarks" / "ranking.json"), help="the record")
    parser.add_argument("--figures", default=str(ROOT / "docs"), help="the folder of ranking.png, ranking-curves.png")
    options = parser.parse_args()
    folder, figures = Path(options.folder).resolve(), Path(options.figures).resolve()
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    pairs = [(loss, seed) for seed in SEEDS for loss in LOSSES]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda pair: run("train.py", *training(*pair, folder)), pairs))
        names = sorted(f"{BASELINE}_{loss}_lr-{float(rate)}_seed-{seed}" for loss, seed in pairs for rate in RATES)
        baseline, *files = pool.map(lambda name: sampled(name, folder), [BASELINE, *names])
    results = folder / "ranking.jsonl"
    results.unlink(missing_ok=True)
    printed = run(
        "compare.py", "-f", *map(str, files), "-bf", str(baseline), "-bk", "policy", "-ck", "policy",
        "-r", str(results), "--offline", "direct_answer", "--plot", str(figures / "ranking.png"),
    )  # fmt: skip
    run(
        "-m", "reports.ranking_plots", *(str(folder / name) for name in names),
        "--output", str(figures / "ranking-curves.png"),
    )  # fmt: skip
    ranking = printed[printed.index("Ranking on") :].splitlines()
    judged = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    made = {
        "version": commit(), "machine": machine(), "jobs": options.jobs, "dtype": "float32",
        "judge": f"the rule direct_answer, against {BASELINE} before training", "prompts": judged[0]["total"],
        "before": of_responses(json.loads(baseline.read_text(encoding="utf-8"))["samples"]),
        "ranking": [line for line in ranking if line.startswith(("Ranking", " "))],
    }  # fmt: skip
    rows = ",\n  ".join(json.dumps(row) for row in record(files, judged, folder))
    body = json.dumps(made, indent=1).removesuffix("\n}")
    Path(options.output).write_text(f'{body},\n "runs": [\n  {rows}\n ]\n}}\n', encoding="utf-8")
    print("\n".join(made["ranking"]))


if __name__ == "__main__":
    main()
