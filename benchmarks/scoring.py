"""How good and how fast the scorers are: AUROC on toxic comments, recall and precision on made-up personal data, MB/s.

    python -m benchmarks.scoring --data DIR [--only toxicity,pii,speed] [--scorers pep8,pii] [--output FILE]

DIR holds toxic_comments.jsonl.gz and offensive_tweets.jsonl.gz (text, label), synthetic_pii.jsonl.gz (text, spans) and
hh_harmless_base.jsonl.gz (chosen). The code whose scoring is timed is Python's own standard library.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed import commit, machine
from reports.win_rates import wilson_interval
from scorers.pii import Finding, PIIScorer
from scorers.profanity import ProfanityScorer

ROOT = Path(__file__).resolve().parents[1]
PII_TYPES = {
    "EMAIL_ADDRESS": ("email",),
    "PHONE_NUMBER": ("phone",),
    "DOMAIN_NAME": ("url",),
    "CREDIT_CARD": ("credit_card",),
    "US_SSN": ("social_security_number",),
    "DATE_TIME": ("date_of_birth",),  # which most dates are not
    "PERSON": ("name",),
    "ORGANIZATION": ("organization",),
}
"""Types of presidio-research's data, and scrubadub's names of the same; it has no detector for the others."""
NER_TYPES = ("name", "organization")
MEGABYTES = {"pep8": 4.0, "pii": 1.0, "profanity": 6.0, "toxicity": 0.2}
"""MB of text that are scored for each figure of speed; prose is repeated where there is less."""


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a gzipped JSONL file."""
    with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# AUROC ---------------------------------------------------------------------------------------------------------------


def auroc(scores: np.ndarray, bad: np.ndarray) -> float:
    """The share of pairs of a bad and a good text of which the bad one has the higher score; an equal one is half.

    Args:
        scores: (texts,). bad: (texts,), booleans.
    """
    values, place = np.unique(scores, return_inverse=True)
    good_of = np.bincount(place[~bad], minlength=len(values))
    bad_of = np.bincount(place[bad], minlength=len(values))
    below = np.cumsum(good_of) - good_of
    return float((bad_of * (below + good_of / 2)).sum() / (bad.sum() * (~bad).sum()))


def bootstrap(scores: np.ndarray, bad: np.ndarray, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the AUROC: percentiles over texts drawn again, as many of each label as there are."""
    generator = np.random.default_rng(seed)
    groups = [np.flatnonzero(bad), np.flatnonzero(~bad)]
    drawn = []
    for _ in range(draws):
        some = np.concatenate([generator.choice(group, len(group)) for group in groups])
        drawn.append(auroc(scores[some], bad[some]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def toxicity(folder: Path) -> list[dict[str, Any]]:
    """AUROC of the profanity scorer, on data that it has not seen and on data that it was trained on."""
    scorer = ProfanityScorer()
    records = []
    for name, bad_labels, seen in (
        ("toxic_comments", ("Toxic",), False),
        ("offensive_tweets", ("hate_speech", "offensive_language"), True),
    ):
        rows = read(folder, name)
        scores = np.array(scorer.score_texts([row["text"] for row in rows]))
        bad = np.array([row["label"] in bad_labels for row in rows])
        low, high = bootstrap(scores, bad)
        records.append(
            {"what": "AUROC", "data": name, "scorer": scorer.identity, "texts": len(rows), "bad": int(bad.sum()),
             "auroc": round(auroc(scores, bad), 4), "ci95": [round(low, 4), round(high, 4)],
             "note": "part of the scorer's training data: no measurement" if seen else None}
        )  # fmt: skip
    return records


# Personal data -------------------------------------------------------------------------------------------------------


def pii(folder: Path) -> list[dict[str, Any]]:
    """Recall by type, and precision by scrubadub's type, both by overlap."""
    scorer = PIIScorer()
    rows = read(folder, "synthetic_pii")
    found = [scorer.find(row["text"]) for row in rows]
    failed = sum(isinstance(one, str) for one in found)
    both = [(row["spans"], one) for row, one in zip(rows, found, strict=True) if not isinstance(one, str)]
    about = {"data": "synthetic_pii", "scorer": scorer.identity, "texts": len(rows), "failed": failed}
    return [about | one for one in (*recalls(both, scorer.finds_names), *precisions(both))]


def recalls(both: Sequence[tuple[list[Any], list[Finding]]], finds_names: bool) -> list[dict[str, Any]]:
    """For each type of the data: of how many spans a finding of that type covers a part, with Wilson's interval.

    Args:
        both: for each text its spans, [start, end, type], and what was found.
        finds_names: whether a detector of named entities took part.
    """
    counts: dict[str, list[int]] = {}
    for spans, found in both:
        for start, end, kind in spans:
            wanted = PII_TYPES.get(kind, ())
            hits = [one for one in found if one.start < end and start < one.end]
            typed = any(set(one.types) & set(wanted) for one in hits)
            counts.setdefault(kind, []).append(2 if typed else 1 if hits else 0)
    records = []
    for kind, some in sorted(counts.items(), key=lambda item: -len(item[1])):
        wanted = PII_TYPES.get(kind, ())
        covered = bool(wanted) and (finds_names or not set(wanted) & set(NER_TYPES))
        record: dict[str, Any] = {"what": "recall", "type": kind, "spans": len(some), "detectors": list(wanted)}
        if covered:
            share = some.count(2) / len(some)
            record |= {"recall": round(share, 4), "ci95": _rounded(wilson_interval(share, len(some)))}
        else:
            record |= {"recall": None, "note": "not covered: no detector" + (" without NER" if wanted else "")}
        records.append(record | {"found_as_any_type": some.count(2) + some.count(1)})
    return records


def precisions(both: Sequence[tuple[list[Any], list[Finding]]]) -> list[dict[str, Any]]:
    """For each type of findings, and all: how many cover a part of any span, and of a span of their own type."""
    right: dict[str, list[tuple[bool, bool]]] = {"all": []}
    for spans, found in both:
        for one in found:
            covered = [kind for start, end, kind in spans if one.start < end and start < one.end]
            own = any(set(PII_TYPES.get(kind, ())) & set(one.types) for kind in covered)
            for name in ("all", *dict.fromkeys(one.types)):
                right.setdefault(name, []).append((bool(covered), own))
    records = []
    for name, some in right.items():
        shares = [sum(one[index] for one in some) / len(some) if some else 0.0 for index in (0, 1)]
        records.append(
            {"what": "precision", "type": name, "findings": len(some), "precision": round(shares[0], 4),
             "ci95": _rounded(wilson_interval(shares[0], len(some))), "precision_of_own_type": round(shares[1], 4)}
        )  # fmt: skip
    return records


def _rounded(interval: tuple[float, float]) -> list[float]:
    return [round(one, 4) for one in interval]


# Speed ---------------------------------------------------------------------------------------------------------------


def speed(folder: Path, rounds: int, scorers: Sequence[str]) -> list[dict[str, Any]]:
    """MB/s of `eval.py ++mode=score` by scorer and number of processes, in turn, once processes have started."""
    prose = [row["chosen"] for row in read(folder, "hh_harmless_base")]
    texts = {"pep8": library(), "pii": prose, "profanity": prose * 6, "toxicity": [text[:400] for text in prose]}
    records = []
    with tempfile.TemporaryDirectory() as place:
        for name in scorers:
            corpus = Path(place) / f"{name}.jsonl"
            corpus.write_text("".join(json.dumps({"text": one}) + "\n" for one in first(texts[name], MEGABYTES[name])))
            extra = made_up_classifier(Path(place), prose) if name == "toxicity" else []
            for _ in range(rounds):
                for processes in (1, 2):
                    records.append(measure(name, corpus, processes, extra))
                    print(json.dumps(records[-1]), flush=True)
    return records


def measure(name: str, corpus: Path, processes: int, extra: list[str]) -> dict[str, Any]:
    """One scoring in a process of its own, with nothing that an earlier one has kept."""
    target = corpus.with_name("documents.jsonl")
    command = [sys.executable, str(ROOT / "eval.py"), "++mode=score", f"scorer={name}", f"corpus={corpus}", *extra]
    command += [f"documents_path={target}", f"scoring_processes={processes}", "cache_scores=false", "overwrite=true"]
    settings = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=True)
    summary = json.loads(target.with_name(f"{target.name}.summary.json").read_text())
    seconds = summary["seconds"] - summary["seconds_of_start"]
    megabytes = (summary["bytes_scored_now"] - summary["bytes_of_start"]) / 1e6
    return {
        "what": "speed", "name": name, "scorer": summary["scorer"], "processes": processes,
        "mb": round(megabytes, 3), "seconds": round(seconds, 3), "mb_per_second": round(megabytes / seconds, 4),
        "seconds_of_start": summary["seconds_of_start"], "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def library() -> list[str]:
    """The modules of Python's standard library, shuffled."""
    files = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    files = [one for one in files if not {"site-packages", "test", "tests"} & set(one.parts)]
    random.Random(0).shuffle(files)
    return [one.read_text(encoding="utf-8", errors="replace") for one in files]


def first(texts: Sequence[str], megabytes: float) -> list[str]:
    """As many of the first texts as make so many MB."""
    sizes = np.cumsum([len(one.encode("utf-8", "surrogatepass")) for one in texts])
    return list(texts[: int(np.searchsorted(sizes, megabytes * 1e6)) + 1])


def made_up_classifier(place: Path, prose: Sequence[str]) -> list[str]:
    """A BERT of Detoxify's size with random weights and a vocabulary of the texts' words: as fast as the real one."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    words = Counter(word for text in prose for word in text.lower().split() if word.isalnum())
    letters = sorted({character for text in prose for character in text.lower() if not character.isspace()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{one}" for one in letters)]
    vocabulary += [word for word, _ in words.most_common(20_000) if len(word) > 1]
    (place / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    base = place / "base"
    BertTokenizerFast(vocab=str(place / "vocab.txt")).save_pretrained(base)
    config = BertConfig(vocab_size=30_522, num_labels=6)
    config.save_pretrained(base)
    arch = {"model_name": "BertForSequenceClassification", "model_type": "bert-base-uncased", "num_classes": 6}
    classes = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
    contents = {
        "state_dict": BertForSequenceClassification(config).state_dict(),
        "config": {"arch": {"args": arch}, "dataset": {"args": {"classes": classes}}},
    }
    torch.save(contents, place / "bert.ckpt")
    return [f"scorer.checkpoint={place / 'bert.ckpt'}", f"scorer.base={base}"]


def main() -> None:
    """Measures and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="the folder of the data")
    parser.add_argument("--only", default="toxicity,pii,speed", help="what is measured, of toxicity, pii and speed")
    parser.add_argument("--scorers", default=",".join(MEGABYTES), help="whose speed is measured")
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each speed (2)")
    parser.add_argument("--output", default=str(ROOT / "benchmarks" / "scoring.json"))
    options = parser.parse_args()
    parts = {"toxicity": lambda: toxicity(options.data), "pii": lambda: pii(options.data)}
    parts["speed"] = lambda: speed(options.data, options.rounds, options.scorers.split(","))
    records = [record for name in options.only.split(",") for record in parts[name]()]
    lines = ",\n".join(f"  {json.dumps(one)}" for one in records)
    head = f'{{"version": {json.dumps(commit())}, "machine": {json.dumps(machine())}, "rows": [\n'
    Path(options.output).write_text(f"{head}{lines}\n]}}\n", encoding="utf-8")
    for one in records:
        print(json.dumps({key: value for key, value in one.items() if key != "scorer"}))


if __name__ == "__main__":
    main()
