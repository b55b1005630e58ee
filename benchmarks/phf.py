"""Pretraining with human preferences on Python code: a small GPT from random weights by each of six objectives.

    python -m benchmarks.phf FOLDER_OF_CODE ... [--folder .cache/phf] [--tokens 6000000] [--jobs 2]

The .py files of the folders are scored line by line by pycodestyle and split by file; every objective is trained on as
many tokens of the same documents, sampled, and measured in bits per byte of held-out files. What is done is not done
again, and a training that was cut off goes on. Writes the record, with the hash of each file, and the figure.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.speed import commit, machine
from dataloaders.examples import in_test_split

ROOT = Path(__file__).resolve().parents[1]
OBJECTIVES = ("mle", "filtering", "conditional", "unlikelihood", "awr", "rwr")
TEST_FRACTION = 0.02
SETTINGS = [
    "task=pep8", "model=gpt2-tiny", "datasets=[local]", "lr=2e-3",
    "warmup=0.05", "model.batch_size=32", "model.tokens_per_microbatch=8192", "n_eval_examples=128",
    "task.shuffle_buffer=4096", "generation.every=null", "generation.batch_size=128",
    "generation.scenarios.unconditional.max_new_tokens=192",
]  # fmt: skip
"""What the small runs have in place of the paper's; the rest is of task=pep8 and its recipes."""


def run(*command: str, threads: int = 1) -> None:
    """One of our commands; what it prints goes through.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True)


def scored(folders: list[str], folder: Path) -> list[str]:
    """The files of scored documents, one for each folder of code."""
    files = []
    for number, corpus in enumerate(folders):
        path = folder / f"documents-{number}.jsonl"
        run(
            "eval.py", "++mode=score", "scorer=pep8", f"++corpus={corpus}", f"++documents_path={path}",
            f"cache_dir={folder}",
        )  # fmt: skip
        files.append(str(path))
    return files


def split(files: list[str], folder: Path) -> tuple[Path, Path]:
    """The documents to train on, in an order that has nothing to do with their names, and those that are held out."""
    lines: tuple[list[str], list[str]] = ([], [])
    for file in files:
        with open(file, encoding="utf-8") as opened:
            for line in opened:
                lines[in_test_split(json.loads(line)["source"], TEST_FRACTION)].append(line)
    paths = folder / "train.jsonl", folder / "held-out.jsonl"
    for path, some in zip(paths, lines, strict=True):
        some.sort(key=lambda line: hashlib.sha256(line.encode("utf-8", "surrogatepass")).digest())
        path.write_text("".join(some), encoding="utf-8", errors="surrogatepass")
    return paths


def listing(path: Path) -> list[list[Any]]:
    """[beginning of the text's sha256, characters] of every document of a file."""
    rows = []
    with open(path, encoding="utf-8") as opened:
        for line in opened:
            text = json.loads(line)["text"]
            digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
            rows.append([digest[:16], len(text)])
    return rows


def trained(objective: str, documents: Path, held_out: Path, options: argparse.Namespace) -> float:
    """Trains, samples and measures one objective; returns the seconds, of which there are few where it was done."""
    start, name = time.perf_counter(), f"pep8_{objective}"
    folder = Path(options.folder).resolve()
    run(
        "train.py", f"loss={objective}", *SETTINGS, f"datasets.local.path={documents}",
        f"datasets.local.test_path={held_out}", f"exp_name={name}",
        f"task.n_tokens={options.tokens}", f"generation.scenarios.unconditional.n_samples={options.samples}",
        f"cache_dir={folder}", *options.overrides,
    )  # fmt: skip
    run(
        "eval.py", f"--config-path={folder / name}", "mode=kl", f"++kl.documents={held_out}",
        "++kl.aligned_threshold=0.002361",
    )  # fmt: skip
    return time.perf_counter() - start


def figures(objective: str, folder: Path) -> dict[str, Any]:
    """What is recorded of one objective: figures of its samples with their intervals, bits per byte, held-out loss."""
    run_folder = folder / f"pep8_{objective}"
    alignment = json.loads((run_folder / "alignment.json").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    (summary,) = sorted((run_folder / "samples").glob("unconditional-*.json"))[-1:]
    training = [record for record in records if record["split"] == "train"]
    return {
        "objective": objective, "alignment": alignment, "samples": json.loads(summary.read_text(encoding="utf-8")),
        "seconds_of_steps": round(sum(record["seconds/all"] for record in training)),
        "tokens": training[-1]["counters/tokens"],
        "held_out_loss": [one["loss/eval"] for one in records if one["split"] == "eval"][-1],
    }  # fmt: skip


def main() -> None:
    """Does what is not done yet, and writes the record and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="+", help="folders of .py files")
    parser.add_argument("--folder", default=".cache/phf", help="of documents and runs")
    parser.add_argument("--tokens", type=int, default=6_000_000, help="that each objective is trained on (6 million)")
    parser.add_argument("--samples", type=int, default=2048, help="of each objective (2,048)")
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=OBJECTIVES)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, with a thread each (2)")
    parser.add_argument("--output", default=str(ROOT / "benchmarks" / "phf.json"))
    parser.add_argument("--figure", default=str(ROOT / "docs" / "phf-pep8.png"))
    parser.add_argument("--overrides", nargs="*", default=[], help="further overrides of the trainings")
    options = parser.parse_args()
    folder = Path(options.folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    documents, held_out = split(scored(options.corpus, folder), folder)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda one: trained(one, documents, held_out, options), options.objectives))
    rows = [figures(one, folder) for one in options.objectives]
    record = {
        "version": commit(), "machine": machine(), "jobs": options.jobs, "settings": [*SETTINGS, *options.overrides],
        "tokens": options.tokens, "samples": options.samples, "rows": rows,
        "trained_on": listing(documents), "held_out": listing(held_out),
    }  # fmt: skip
    Path(options.output).write_text(json.dumps(record) + "\n", encoding="utf-8")
    runs = [str(folder / f"pep8_{one}") for one in options.objectives]
    run("-m", "reports.pareto", *runs, "--axis", "bits_per_byte", "--output", options.figure)


if __name__ == "__main__":
    main()
