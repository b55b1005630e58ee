"""Small corpora of documents whose segments have scores, for tests of pretraining with human preferences."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from dataloaders.corpus import Corpus
from dataloaders.pretraining import PretrainingDataLoader
from models.byte_tokenizer import byte_tokenizer

GOOD = ["calm", "warm", "kind", "fair", "wise", "neat", "glad", "safe"]
BAD = ["vile", "mean", "foul", "rude", "grim", "harsh", "cruel", "sour"]
OPTIONS: dict[str, dict[str, Any]] = {
    "FilteredPretrainingDataLoader": {"threshold": 0.4},
    "UnlikelihoodDataLoader": {"mode": "threshold", "threshold": 0.5},
    "ConditionalPretrainingDataLoader": {
        "aligned_prefix": "<|im_start|>", "misaligned_prefix": "<|im_end|>", "threshold": 0.5,
        "drop_token_fraction": 0.1, "predict_prefixes": True,
    },
}  # fmt: skip
"""What each DataLoader takes. Models of tests have no room for new tokens: control tokens are some that they have."""


def document(number: int, seed: int = 0) -> dict[str, Any]:
    """Some sentences, each of good or of bad words, with a score of 0 or 1."""
    generator = np.random.default_rng([seed, number])
    text, segments, scores = "", [], []
    for _ in range(generator.integers(2, 6)):
        bad = bool(generator.random() < 0.4)
        words = generator.choice(BAD if bad else GOOD, size=generator.integers(2, 6))
        start, text = len(text), text + " ".join(words).capitalize() + ". "
        segments.append([start, len(text)])
        scores.append(float(bad))
    return {
        "text": text, "segments": segments, "scores": scores, "score": sum(scores) / len(scores),
        "source": f"file {number // 2}",
    }  # fmt: skip


def write(path: Path, count: int = 40, seed: int = 0) -> Path:
    """A corpus of so many documents, two of each source."""
    path.write_text("".join(json.dumps(document(number, seed)) + "\n" for number in range(count)))
    return path


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="documents-")


@functools.cache
def corpus_file() -> Path:
    """The corpus of forty documents; it is there until this process ends."""
    return write(Path(_folder().name) / "corpus.jsonl")


def corpus(path: Path | None = None, split: str = "train", test_fraction: float = 0.2, **options: Any) -> Corpus:
    """The corpus of a file, or of forty documents."""
    return Corpus("made", split, path=str(path or corpus_file()), test_fraction=test_fraction, **options)


def loader(kind: type[PretrainingDataLoader], **options: Any) -> PretrainingDataLoader:
    """A DataLoader of blocks of 48 bytes, by default 24 of them."""
    plain = {"block_size": 48, "batch_size": 4, "n_blocks": 24, "shuffle_buffer": 6}
    path = options.pop("path", None)
    return kind([corpus(path)], byte_tokenizer(), **plain | OPTIONS.get(kind.__name__, {}) | options)


def command() -> list[str]:
    """What a command says to train on the corpus of forty documents, in blocks of 64 bytes."""
    return [
        "datasets=[local]", f"datasets.local.path={corpus_file()}", "datasets.local.test_fraction=0.2",
        "model.max_length=64", "model.max_prompt_length=32", "task.shuffle_buffer=10",
    ]  # fmt: skip
