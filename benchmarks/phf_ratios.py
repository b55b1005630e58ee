"""Mean scores of samples of one run over those of another, with intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

DRAWS = 4000
"""Of the bootstrap."""

Samples = Sequence[tuple[str, float]]
"""(prompt, score) of those that have a score; the prompt is "" where there is none."""


def samples_of(run_folder: Path, scenario: str) -> Samples:
    """The last ones of a run."""
    files = (run_folder / "samples").glob(f"{scenario}-*.jsonl")
    file = max(files, key=lambda one: int(one.stem.rpartition("-")[2]))
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    return [(row["prompt"], row["score"]) for row in rows if row["score"] is not None]


def over(own: Samples, first: Samples) -> dict[str, Any] | None:
    """The ratio of two mean scores and its 95 % bootstrap interval (percentiles): of prompts, which both share, or of
    the samples of each where there are none. None where there is nothing to divide by; a bound that is none is None."""
    means = [float(np.mean([score for _, score in some])) for some in (own, first)]
    if not means[1]:
        return None
    generator = np.random.default_rng(0)
    if all(prompt for prompt, _ in (*own, *first)):
        prompts = sorted({prompt for prompt, _ in (*own, *first)})
        sums = np.array([[_sums(some, prompt) for prompt in prompts] for some in (own, first)])
        weights = generator.multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), DRAWS)
        drawn = [weights @ one[:, 0] / (weights @ one[:, 1]) for one in sums]
    else:
        drawn = []
        for some in (own, first):
            scores = np.array([score for _, score in some])
            drawn.append(generator.multinomial(len(scores), np.full(len(scores), 1 / len(scores)), DRAWS) @ scores)
            drawn[-1] = drawn[-1] / len(scores)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = np.nanquantile(drawn[0] / drawn[1], [0.025, 0.975])
    return {
        "mean": means[0] / means[1], "low": float(low) if np.isfinite(low) else None,
        "high": float(high) if np.isfinite(high) else None,
    }  # fmt: skip


def _sums(samples: Samples, prompt: str) -> tuple[float, int]:
    scores = [score for own, score in samples if own == prompt]
    return sum(scores), len(scores)
