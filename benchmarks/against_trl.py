"""DPO and KTO on real pairs beside TRL: same text, weights, batches and optimizer; speed, memory, losses.

    python benchmarks/against_trl.py --data hh_harmless_base.jsonl.gz --peer trl_baseline.py --peer-python PYTHON

`--peer` is a script that trains by TRL on the first pairs of the same file and prints one JSON line; `--peer-python` is
an interpreter that has trl (requirements-bench.txt). The two take turns, `--repeats` times each, one process at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dataloaders.base import DataLoader, Source  # noqa: E402 (after the path to this repository is known)
from dataloaders.batches import Row  # noqa: E402
from dataloaders.chat_format import MARKERS, chat_format  # noqa: E402
from dataloaders.datasets import load_dataset  # noqa: E402
from dataloaders.paired import PairedPreferenceDataLoader  # noqa: E402
from dataloaders.tokenization import ExampleTokenizer  # noqa: E402
from dataloaders.unpaired import UnpairedPreferenceDataLoader  # noqa: E402

# The raw text of the file: our data set strips the space after a colon, so it is part of these strings.
STRINGS = ("\n\nHuman: ", "", "\n\nAssistant: ", "")


class InFileOrder(UnpairedPreferenceDataLoader):
    """TRL's order and pairing: chosen and rejected in turn, mismatched with the row before in the batch."""

    def arrange(self, indices: np.ndarray) -> list[np.ndarray]:
        """Steps in file order, whatever their classes."""
        return DataLoader.arrange(self, indices)

    def finish(self, order: np.ndarray, start: int, stop: int) -> list[Row]:
        """Rotates the responses of a step by one."""
        rows = [self.data[index] for index in order[start:stop]]
        return [
            Row(
                row.prompt,
                {**row.responses, "KL": rows[place - 1].responses["target"]},
                row.example,
                1.0,
                row.desirable,
            )
            for place, row in enumerate(rows)
        ]


def ours(options: argparse.Namespace) -> dict:
    """Trains here and returns what the peer's script returns."""
    import torch
    from omegaconf import OmegaConf

    from models.loading import load_model, load_tokenizer
    from models.reference import Reference
    from trainers.metrics import MetricsLog, peak_memory_gb
    from trainers.paired import DPOTrainer
    from trainers.unpaired import KTOTrainer

    model_config = OmegaConf.load(ROOT / "config/model/smollm2-135m.yaml")
    name = model_config.name_or_path
    tokenizer = load_tokenizer(name)
    tokenize = ExampleTokenizer(tokenizer, chat_format(tokenizer, *STRINGS), 1024, 512)
    dataset = load_dataset("hh", "train", "get_hh", MARKERS, {"path": options.data, "test_path": options.data})
    rows_per_pair = {"dpo": 1, "kto": 2}[options.method]
    kind = {"dpo": PairedPreferenceDataLoader, "kto": InFileOrder}[options.method]
    loader = kind(
        [Source(dataset)], tokenize, batch_size=options.batch * options.accum * rows_per_pair,
        n_examples=options.pairs * rows_per_pair, shuffle=False,
    )  # fmt: skip
    texts = check_same_text(loader, options, tokenizer)
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[options.dtype]
    config = OmegaConf.merge(
        OmegaConf.load(ROOT / "config/config.yaml"),
        {
            "model": OmegaConf.merge(OmegaConf.load(ROOT / "config/model/base_model.yaml"), model_config),
            "loss": OmegaConf.load(ROOT / f"config/loss/{options.method}.yaml"),
            "lr": options.lr, "warmup": 0.0, "weight_decay": 0.0, "eval_every": 10**9, "do_first_eval": False,
        },
    )  # fmt: skip
    config.model.policy_dtype = config.model.reference_dtype = dtype
    config.model.tokens_per_microbatch = options.tokens_per_microbatch
    trainer_kind = {"dpo": DPOTrainer, "kto": KTOTrainer}[options.method]
    reference = Reference(lambda: load_model(name), getattr(torch, dtype))
    _ = reference.model  # loaded before the clock starts, as the peer's
    with tempfile.TemporaryDirectory() as folder:
        log = MetricsLog(Path(folder), 1e9)
        trainer = trainer_kind(config, tokenizer, load_model(name), reference, loader, (), None, log)
        before = peak_memory_gb(torch.device("cpu"))
        trainer.train()
        log.close()
        records = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        peak = peak_memory_gb(torch.device("cpu"))
    steps = [record["seconds/all"] for record in records]
    return {
        "seconds": sum(steps), "steps": steps, "losses": [record["loss/train"] for record in records], "pairs": texts,
        "rss_before_mb": before * 1024, "rss_peak_mb": peak * 1024,
    }  # fmt: skip


def check_same_text(loader: DataLoader, options: argparse.Namespace, tokenizer: object) -> int:
    """The text that is trained on is the file's own, to the character; returns the number of pairs."""
    raw = list(raw_pairs(options.data, options.pairs))
    rows = [row for step in loader for row in step]
    sides = ("chosen", "rejected") if options.method == "dpo" else ("target",)
    seen = [tokenizer.decode(np.concatenate([row.prompt, row.responses[side].ids])) for row in rows for side in sides]
    wanted = [prompt + side + tokenizer.eos_token for prompt, *both in raw for side in both]
    different = [index for index, (ours, theirs) in enumerate(zip(seen, wanted, strict=True)) if ours != theirs]
    if different:
        print(f"note: {len(different)} of {len(seen)} texts differ from the file's: {different}", file=sys.stderr)
    return len(raw)


def raw_pairs(path: str, n: int) -> Iterator[tuple[str, str, str]]:
    """The first pairs of a file of HH rows that share their prompt and differ, cut at the last assistant marker."""
    import gzip

    mark, found = "\n\nAssistant:", 0
    with gzip.open(path, "rt") as lines:
        for line in lines:
            row = json.loads(line)
            cut = row["chosen"].rfind(mark) + len(mark)
            prompt, chosen, rejected = row["chosen"][:cut], row["chosen"][cut:], row["rejected"][cut:]
            if row["rejected"][:cut] == prompt and chosen.strip() and rejected.strip() and chosen != rejected:
                yield prompt, chosen, rejected
                found += 1
            if found == n:
                return


def arguments_of(method: str, options: argparse.Namespace) -> list[str]:
    """The arguments that both sides understand."""
    names = ("dtype", "batch", "accum", "pairs", "lr")
    return ["--method", method, *(part for name in names for part in (f"--{name}", str(getattr(options, name))))]


def run(command: list[str]) -> dict:
    """Runs one side in a process of its own; its last line is JSON."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(method: str, options: argparse.Namespace) -> dict:
    """Both sides in turn; the table's row."""
    mine = [sys.executable, __file__, "--side", "ours", "--data", options.data, *arguments_of(method, options)]
    mine += ["--tokens-per-microbatch", str(options.tokens_per_microbatch)]
    theirs = [options.peer_python, options.peer, *arguments_of(method, options)]
    results = {"aureole": [], "trl": []}
    for _ in range(options.repeats):
        results["trl"].append(run(theirs))
        results["aureole"].append(run(mine))
    tokens = results["trl"][0]["tokens"]
    row = {"method": method, "dtype": options.dtype, "batch": options.batch, "accum": options.accum, "tokens": tokens,
           "peer": results["trl"][0]["peer"]}  # fmt: skip
    for name, runs in results.items():
        speeds = [tokens / one["seconds"] for one in runs]
        row[name] = {
            "tokens_per_second": round(statistics.median(speeds), 1),
            "spread": [round(min(speeds), 1), round(max(speeds), 1)],
            "added_mb": round(statistics.median(one["rss_peak_mb"] - one["rss_before_mb"] for one in runs)),
            "losses": [round(loss, 6) for loss in runs[0]["losses"]],
        }
    row["ratio"] = round(row["aureole"]["tokens_per_second"] / row["trl"]["tokens_per_second"], 2)
    row["largest_loss_difference"] = max(
        abs(a - b) for a, b in zip(row["aureole"]["losses"], row["trl"]["losses"], strict=True)
    )
    return row


def main() -> None:
    """One side, or the comparison of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", choices=["ours", "both"], default="both")
    parser.add_argument("--method", choices=["dpo", "kto", "both"], default="both")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--batch", type=int, default=4, help="pairs of a forward pass of the peer's")
    parser.add_argument("--accum", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens-per-microbatch", type=int, default=1024)
    parser.add_argument("--data", required=True, help="hh_harmless_base.jsonl.gz")
    parser.add_argument("--peer", help="the peer's script")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--output", help="where the table goes, as JSON")
    options = parser.parse_args()
    if options.side == "ours":
        print(json.dumps(ours(options)))
        return
    methods = ["dpo", "kto"] if options.method == "both" else [options.method]
    rows = [compare(method, options) for method in methods]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    versions = {name: version(name) for name in ("torch", "transformers")}
    table = {"machine": machine, "versions": versions, "repeats": options.repeats, "rows": rows}
    print(json.dumps(table, indent=1))
    if options.output:
        Path(options.output).write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
