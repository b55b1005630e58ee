"""Stanford Human Preferences (stanfordnlp/SHP): pairs of Reddit replies, preferred by their votes.

Row: history, human_ref_A, human_ref_B, labels (1: A is preferred), score_A, score_B and much that is not needed.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

from dataloaders.datasets.conversation import TurnStrings, join_turns
from dataloaders.datasets.rows import field, load_rows, number
from dataloaders.examples import Dataset, Example


class VotedPair(NamedTuple):
    """One row: the preferred reply, the other one, and their scores (votes)."""

    chosen: str
    rejected: str
    chosen_score: float
    rejected_score: float

    def ratio_is(self, at_least: float) -> bool:
        """Whether the scores are at least so many times apart (without dividing by a score of 0)."""
        low, high = sorted((self.chosen_score, self.rejected_score))
        return high >= at_least * low


def get_shp(
    split: str,
    human_prefix: str,
    human_suffix: str,
    assistant_prefix: str,
    assistant_suffix: str,
    *,
    name: str = "shp",
    hub: str = "stanfordnlp/SHP",
    minimum_ratio: float = 2.0,
    max_pairs: int = 5,
    **source: Any,
) -> Dataset:
    """Pairs by prompt (the post). The SFT target is the preferred reply with the best score.

    Args:
        minimum_ratio: a training pair is kept when its scores are at least this many times apart. Test: all pairs.
        max_pairs: a training prompt keeps at most so many pairs, those first in the order of a hash of their texts.
        source: goes to `load_rows`.
    """
    strings = TurnStrings(human_prefix, human_suffix, assistant_prefix, assistant_suffix)
    dataset = Dataset(name)
    posts: dict[str, list[VotedPair]] = {}
    for where, row in load_rows(split, name=name, hub=hub, **source):
        posts.setdefault(field(row, "history", where).strip(), []).append(_pair(row, where))
    for post, pairs in posts.items():
        prompt = join_turns([{"role": "user", "content": post}], strings) if post else ""
        apart = [pair for pair in pairs if split != "train" or pair.ratio_is(minimum_ratio)]
        kept = sorted(apart, key=_order)[:max_pairs] if split == "train" else apart
        for pair in pairs:
            dataset.read(post)
            if pair not in apart:
                dataset.drop("scores too close", by_design=True)
            elif pair not in kept:
                dataset.drop("more pairs of one prompt than max_pairs", by_design=True)
            elif example := dataset.add_pair(prompt, pair.chosen, pair.rejected):
                _note_scores(example, pair)
    return dataset


def _pair(row: dict[str, Any], where: str) -> VotedPair:
    reply_a, reply_b = (field(row, key, where).strip() for key in ("human_ref_A", "human_ref_B"))
    score_a, score_b = (number(row, key, where) for key in ("score_A", "score_B"))
    label = field(row, "labels", where, int)
    if label not in (0, 1):
        raise ValueError(f"{where}: field 'labels' must be 1 (A is preferred) or 0, not {label}.")
    if label == 1:
        return VotedPair(reply_a, reply_b, score_a, score_b)
    return VotedPair(reply_b, reply_a, score_b, score_a)


def _order(pair: VotedPair) -> str:
    """A choice that neither a seed nor the order of the rows changes."""
    return hashlib.sha256("\0".join(pair[:2]).encode("utf-8", "surrogatepass")).hexdigest()


def _note_scores(example: Example, pair: VotedPair) -> None:
    chosen = example.add(pair.chosen, score=pair.chosen_score)
    example.add(pair.rejected, score=pair.rejected_score)
    best = example.scores[example.sft_index] if example.sft_index is not None else None
    if best is None or pair.chosen_score > best:
        example.sft_index = chosen
