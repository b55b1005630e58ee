"""Human preferences in pretraining, shown on a CPU: each objective on as many tokens of the same documents.

    python -m benchmarks.phf TASK [CORPUS ...] [--folder .cache/phf] [--tokens N] [--samples N] [--jobs 2]

TASK is pep8 (a small GPT from random weights; without a CORPUS on functions and classes of Python's standard library
and of packages, which are fetched) or pii or toxicity (finetuning of SmolLM2). A CORPUS is what mode=score reads;
FILE#KEY names the key of a row's text, FILE#KEY#N takes N of its documents. Documents are scored, split into those to
train on and those held out, and every objective is trained, sampled, and measured in bits per byte of the held-out
ones. What is done is not done again, and a training that was cut off goes on. Writes the record, with the hash of each
file, and the figure.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from benchmarks import phf_companions, phf_corpus, phf_ratios
from benchmarks.commands import run
from benchmarks.speed import commit, machine
from dataloaders.examples import in_test_split

ROOT = Path(__file__).resolve().parents[1]
OBJECTIVES = ("mle", "filtering", "conditional", "unlikelihood", "awr", "rwr")
COMPANIONS = ("length", "distinct-2-grams", "blank_lines", "repeated_lines", "parsable")
"""Metrics of samples by which a degenerate winner shows."""


@dataclass(frozen=True)
class Demonstration:
    """What the runs of a task have in place of the paper's settings; the rest is of its YAML and its recipes.

    Attributes:
        scorer: of documents and samples.
        aligned: the highest score of a held-out document that is measured by itself too.
        test_fraction: the share of the documents that is held out.
        objectives, tokens, samples: of each run, when the command does not say them.
        settings: of all runs.
        losses: settings of each, in the place of its recipe's. Where a bad line is sure to come and the bad token is
            banned, a model that has seen segments without tokens goes on without one: for samples there are none.
    """

    scorer: str
    aligned: float
    test_fraction: float
    objectives: tuple[str, ...]
    tokens: int
    samples: int
    settings: tuple[str, ...]
    losses: dict[str, tuple[str, ...]] = field(default_factory=dict)


FINETUNING = (
    "task.phase=finetune", "task.tokens_already_seen=0", "model=smollm2-135m", "model.max_length=128",
    "model.max_prompt_length=64", "datasets=[local]", "lr=5e-4", "warmup=0.1", "model.batch_size=1",
    "model.tokens_per_microbatch=2048", "n_eval_examples=32", "task.shuffle_buffer=1024", "eval_every=1000000",
    "save_every=128", "keep_last=1", "generation.every=null",
    "generation.batch_size=128", "generation.before='\n'", "generation.scenarios.unconditional.max_new_tokens=64",
)  # fmt: skip
"""Many small steps: AdamW moves an entry of a new token's embedding by lr an update at most. With 58 of four blocks of
256 tokens at 2e-4 a control token still cost 15 bits, with 234 of one 8, and samples were as bad as MLE's."""
DEMONSTRATIONS = {
    "pep8": Demonstration(
        "pep8", 0.000961, 0.02, OBJECTIVES, 2_500_000, 2048,
        (
            "model=gemma-1m", "datasets=[local]", "lr=5e-3", "beta2=0.95", "warmup=0.05", "model.batch_size=2",
            "model.tokens_per_microbatch=8192", "n_eval_examples=128", "task.shuffle_buffer=4096",
            "eval_every=2048", "save_every=1024", "keep_last=1", "generation.every=null", "generation.batch_size=128",
            "generation.before='\n'", "generation.scenarios.unconditional.max_new_tokens=96",
            "generation.scenarios.functions.n_samples=2048", "generation.scenarios.functions.max_new_tokens=96",
        ),
        {"filtering": ("loss.threshold=null", "loss.quantile=0.5"), "conditional": ("loss.drop_token_fraction=0",)},
    ),
    "pii": Demonstration(
        "pii", 0.0, 0.1, ("mle", "conditional", "unlikelihood"), 60_000, 512, FINETUNING,
        {"conditional": ("loss.embedding_noise=0.1",)},
    ),
    "toxicity": Demonstration(
        "profanity", 0.1, 0.1, ("mle", "conditional", "unlikelihood"), 60_000, 512, FINETUNING,
        {
            "conditional": ("loss.threshold=null", "loss.quantile=0.8", "loss.embedding_noise=0.1"),
            "unlikelihood": ("loss.threshold=null", "loss.quantile=0.8"),
        },
    ),
}  # fmt: skip


def scored(corpora: list[str], scorer: str, folder: Path) -> list[tuple[str, list[str]]]:
    """[corpus, lines of scored documents] for each corpus, in an order that has nothing to do with their names."""
    found = []
    for number, corpus in enumerate(corpora):
        file, key, limit = (*corpus.split("#"), "", "")[:3]
        path = folder / f"documents-{number}.jsonl"
        run(
            "eval.py", "++mode=score", f"scorer={scorer}", f"++corpus={file}", f"++text_key={key or 'text'}",
            f"++documents_path={path}", f"cache_dir={folder}",
        )  # fmt: skip
        with open(path, encoding="utf-8", errors="surrogatepass", newline="\n") as opened:
            lines = list(opened)
        lines.sort(key=lambda line: hashlib.sha256(line.encode("utf-8", "surrogatepass")).digest())
        found.append((Path(file).name, lines[: int(limit)] if limit else lines))
    return found


def split(corpora: list[tuple[str, list[str]]], fraction: float, folder: Path) -> tuple[Path, Path]:
    """The documents to train on, and those that are held out by their sources."""
    lines: tuple[list[str], list[str]] = ([], [])
    for _, some in corpora:
        for line in some:
            lines[in_test_split(phf_corpus.file_of(json.loads(line)["source"]), fraction)].append(line)
    paths = folder / "train.jsonl", folder / "held-out.jsonl"
    for path, chosen in zip(paths, lines, strict=True):
        chosen.sort(key=lambda line: hashlib.sha256(line.encode("utf-8", "surrogatepass")).digest())
        path.write_text("".join(chosen), encoding="utf-8", errors="surrogatepass")
    return paths


def listing(path: Path) -> list[list[Any]]:
    """[beginning of a sha256 of its documents' texts, documents, characters] of every file that documents are from."""
    files: dict[str, list[str]] = {}
    with open(path, encoding="utf-8", errors="surrogatepass", newline="\n") as opened:
        for line in opened:
            document = json.loads(line)
            files.setdefault(phf_corpus.file_of(document["source"]), []).append(document["text"])
    rows = []
    for _, texts in sorted(files.items()):
        digest = hashlib.sha256("".join(sorted(texts)).encode("utf-8", "surrogatepass")).hexdigest()
        rows.append([digest[:16], len(texts), sum(map(len, texts))])
    return rows


def trained(objective: str, documents: Path, held_out: Path, options: argparse.Namespace) -> None:
    """Trains, samples and measures one objective, as far as that is not done."""
    demonstration, name = DEMONSTRATIONS[options.task], f"{options.task}_{objective}"
    folder = Path(options.folder).resolve()
    run(
        "train.py", f"task={options.task}", f"loss={objective}", f"scorer={demonstration.scorer}",
        *settings(objective, options), f"datasets.local.path={documents}", f"datasets.local.test_path={held_out}",
        f"exp_name={name}", f"task.n_tokens={options.tokens}",
        f"generation.scenarios.unconditional.n_samples={options.samples}", f"cache_dir={folder}",
    )  # fmt: skip
    run(
        "eval.py", f"--config-path={folder / name}", "mode=kl", f"++kl.documents={held_out}",
        f"++kl.aligned_threshold={demonstration.aligned}",
    )  # fmt: skip


def settings(objective: str, options: argparse.Namespace) -> list[str]:
    """The overrides that an objective's training has beside names and paths."""
    demonstration = DEMONSTRATIONS[options.task]
    return [*demonstration.settings, *demonstration.losses.get(objective, ()), *options.overrides]


def figures(objective: str, options: argparse.Namespace) -> dict[str, Any]:
    """What is recorded of one objective: figures of its samples with their intervals, bits per byte, held-out loss."""
    run_folder = Path(options.folder).resolve() / f"{options.task}_{objective}"
    alignment = json.loads((run_folder / "alignment.json").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    alignment["held_out"]["documents"] = Path(alignment["held_out"]["documents"]).name
    training = [record for record in records if record["split"] == "train"]
    read = json.loads((run_folder / "data.json").read_text(encoding="utf-8"))["local"]["train"]
    return {
        "objective": objective, "overrides": settings(objective, options),
        "seconds_of_steps": round(sum(record["seconds/all"] for record in training)),
        "seconds_of_samples": round(sum(record.get("generation_seconds", 0) for record in records)),
        "tokens": training[-1]["counters/tokens"], "passes": read["passes"], "documents_read": read["rows"],
        "documents_used": read["used"],
        "held_out_loss": [one["loss/eval"] for one in records if one["split"] == "eval"][-1],
        **alignment,
        **({"score_elsewhere": phf_companions.of_samples(run_folder)} if options.task == "pep8" else {}),
    }  # fmt: skip


def over(own: dict[str, Any], first: dict[str, Any]) -> dict[str, Any] | None:
    """An estimate over another, as if of other samples, with its 95 % interval by the delta method on their logarithms;
    None where there is nothing to divide by."""
    if not first["mean"]:
        return None
    ratio = own["mean"] / first["mean"]
    if own is first or not ratio or own["low"] is None or first["low"] is None:
        return {"mean": ratio, "low": None, "high": None}
    half = math.hypot(*((one["high"] - one["low"]) / 2 / one["mean"] for one in (own, first)))
    return {"mean": ratio, "low": ratio * math.exp(-half), "high": ratio * math.exp(half)}


def beside(rows: list[dict[str, Any]], samples: list[dict[str, phf_ratios.Samples]]) -> list[dict[str, Any]]:
    """Each objective's figures over those of the first, which is MLE: for each scenario score and companions, of code
    also the score without blank and repeated lines, and bits per byte; these are of the same documents, so that no
    interval of two means is theirs.

    Args:
        samples: of each objective, by scenario.
    """
    ratios: list[dict[str, Any]] = []
    for row, own_samples in zip(rows, samples, strict=True):
        bits = [name for name in ("bits_per_byte", "bits_per_byte_with_control_tokens") if name in row]
        ratios.append({name: row[name]["mean"] / rows[0]["bits_per_byte"]["mean"] for name in bits})
        if "score_elsewhere" in row:
            ratios[-1]["score_elsewhere"] = over(row["score_elsewhere"], rows[0]["score_elsewhere"])
        for scenario, first in rows[0]["scenarios"].items():
            own = row["scenarios"][scenario]
            names = [name for name in ("score", *COMPANIONS) if name in first]
            ratios[-1][scenario] = {name: over(own[name], first[name]) for name in names}
            if row is not rows[0]:
                ratios[-1][scenario]["score"] = phf_ratios.over(own_samples[scenario], samples[0][scenario])
    return ratios


def table(rows: list[dict[str, Any]], over_mle: list[dict[str, Any]]) -> str:
    """The record for a terminal."""
    lines = []
    for scenario, first in rows[0]["scenarios"].items():
        names = ["score", *(name for name in COMPANIONS if name in first)]
        heads = "  ".join([*names, "bits_per_byte"])
        lines.append(f"{scenario:14}{'score':>9}  95 % interval        over {rows[0]['objective']}: {heads}")
        for row, ratio in zip(rows, over_mle, strict=True):
            score, found = row["scenarios"][scenario]["score"], [ratio[scenario][name] for name in names]
            values = [*(None if one is None else one["mean"] for one in found), ratio["bits_per_byte"]]
            cells = [
                f"{'-' if value is None else format(value, '.3f'):>{len(name)}}"
                for name, value in zip([*names, "bits_per_byte"], values, strict=True)
            ]
            interval = f"{score['low']:.5f} to {score['high']:.5f}"
            lines.append(f"{row['objective']:14}{score['mean']:9.5f}  {interval}  {'':11}{'  '.join(cells)}")
    return "\n".join(lines)


def main() -> None:
    """Does what is not done yet, and writes the record and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=DEMONSTRATIONS)
    parser.add_argument("corpus", nargs="*", help="what mode=score reads, FILE#KEY or FILE#KEY#N")
    parser.add_argument("--folder", help="of documents and runs (.cache/phf/TASK)")
    parser.add_argument(
        "--tokens", type=int, help="that each objective is trained on (pep8: 2.5 million, others: 60,000)"
    )
    parser.add_argument("--samples", type=int, help="of each objective (pep8: 2,048, others: 512)")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, help="mle among them")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, with a thread each (2)")
    parser.add_argument("--output", help="the record (benchmarks/phf-TASK.json)")
    parser.add_argument("--figure", help="the picture (docs/phf-TASK.png)")
    parser.add_argument("--overrides", nargs="*", default=[], help="further overrides of the trainings")
    options = parser.parse_args()
    demonstration = DEMONSTRATIONS[options.task]
    if not options.corpus and options.task != "pep8":
        parser.error(f"{options.task} needs a corpus: a .jsonl(.gz) file with the key text, or FILE#KEY")
    options.folder = options.folder or str(ROOT / ".cache" / "phf" / options.task)
    options.tokens, options.samples = options.tokens or demonstration.tokens, options.samples or demonstration.samples
    chosen = options.objectives or demonstration.objectives
    objectives = ["mle", *(one for one in OBJECTIVES if one in chosen and one != "mle")]
    folder = Path(options.folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    corpora = scored(options.corpus or [str(phf_corpus.write(folder))], demonstration.scorer, folder)
    documents, held_out = split(corpora, demonstration.test_fraction, folder)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda one: trained(one, documents, held_out, options), objectives))
    rows = [figures(one, options) for one in objectives]
    folders = [folder / f"{options.task}_{one}" for one in objectives]
    samples = [{name: phf_ratios.samples_of(one, name) for name in rows[0]["scenarios"]} for one in folders]
    record = {
        "version": commit(), "machine": machine(), "task": options.task, "jobs": options.jobs,
        "corpora": [[name, len(lines)] for name, lines in corpora], "tokens": options.tokens,
        "samples": options.samples, "rows": rows, "over_mle": beside(rows, samples),
        "train_files": listing(documents), "held_out_files": listing(held_out),
    }  # fmt: skip
    if options.task == "pep8":
        length = round(rows[0]["scenarios"]["unconditional"]["length"]["mean"])
        limits = {"aligned": demonstration.aligned}
        if "filtering" in objectives:
            config = OmegaConf.load(folders[objectives.index("filtering")] / "config.yaml")
            limits["filtering"] = config.loss.threshold
        record["documents"] = phf_companions.of_documents(documents, limits, length)
    output = options.output or str(ROOT / "benchmarks" / f"phf-{options.task}.json")
    Path(output).write_text(json.dumps(record) + "\n", encoding="utf-8")
    figure = options.figure or str(ROOT / "docs" / f"phf-{options.task}.png")
    run("-m", "reports.pareto", *map(str, folders), "--axis", "bits_per_byte", "--output", figure)
    print(table(rows, record["over_mle"]))


if __name__ == "__main__":
    main()
