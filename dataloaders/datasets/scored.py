"""From scores to feedback: pairs, thumbs and the SFT target of prompts whose responses have scores."""

from __future__ import annotations

from dataloaders.examples import Dataset, Example

SCORE_PAIRS = ("best_worst", "all")


def rank_by_score(dataset: Dataset, score_pairs: str = "best_worst", desirable_threshold: float | None = None) -> None:
    """Adds to every Example the pairs and desirable flags that its scores make, and its best response as SFT target.

    Args:
        score_pairs: "best_worst" makes one pair a prompt, "all" one of every two responses whose scores differ.
        desirable_threshold: at or above it a response is desirable, below it undesirable; None stands for the mean of
            the prompt's own scores, and a response that equals that mean is neither.
    """
    if score_pairs not in SCORE_PAIRS:
        raise ValueError(f"datasets.{dataset.name}.score_pairs must be best_worst or all, not {score_pairs!r}.")
    for example in dataset:
        known = [(score, index) for index, score in enumerate(example.scores) if score is not None]
        best_first = sorted(known, key=lambda scored: (-scored[0], scored[1]))
        if not best_first:
            continue
        example.sft_index = best_first[0][1]
        candidates = (
            [(best_first[0], best_first[-1])]
            if score_pairs == "best_worst"
            else [(first, second) for place, first in enumerate(best_first) for second in best_first[place + 1 :]]
        )
        example.pairs = [(first[1], second[1]) for first, second in candidates if first[0] > second[0]]
        _set_flags(example, desirable_threshold)


def _set_flags(example: Example, threshold: float | None) -> None:
    known = [score for score in example.scores if score is not None]
    mean = sum(known) / len(known)
    for index, score in enumerate(example.scores):
        if score is None:
            continue
        if threshold is not None:
            example.desirable[index] = score >= threshold
        elif score != mean and max(known) > min(known):
            example.desirable[index] = score > mean
