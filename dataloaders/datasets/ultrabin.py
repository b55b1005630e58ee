"""UltraFeedback, binarized (HuggingFaceH4/ultrafeedback_binarized): pairs that differ in the last reply.

Row: chosen and rejected (lists of {"role", "content"}), score_chosen, score_rejected and much that is not needed.
"""

from __future__ import annotations

from typing import Any

from dataloaders.datasets.conversation import TurnStrings, flaw, join_turns, parse_turns, split_key
from dataloaders.datasets.rows import field, load_rows, number
from dataloaders.examples import Dataset


def get_ultrabin(
    split: str,
    human_prefix: str,
    human_suffix: str,
    assistant_prefix: str,
    assistant_suffix: str,
    *,
    name: str = "ultrabin",
    hub: str = "HuggingFaceH4/ultrafeedback_binarized",
    **source: Any,
) -> Dataset:
    """Pairs with scores (1 to 10); the SFT target is the chosen reply. `source` goes to `load_rows`."""
    strings = TurnStrings(human_prefix, human_suffix, assistant_prefix, assistant_suffix)
    dataset = Dataset(name)
    for where, row in load_rows(split, name=name, hub=hub, hub_split=f"{split}_prefs", **source):
        sides = [parse_turns(field(row, key, where, list), where, key) for key in ("chosen", "rejected")]
        scores = [number(row, key, where) for key in ("score_chosen", "score_rejected")]
        (system, chosen), (rejected_system, rejected) = sides
        dataset.read(split_key(chosen[:-1], system))
        if chosen[:-1] != rejected[:-1] or system != rejected_system:
            dataset.drop("prompts of chosen and rejected differ")
        elif not chosen or chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
            dataset.drop("conversation does not end with the assistant")
        elif reason := flaw(chosen[:-1]):
            dataset.drop(reason)
        else:
            replies = [chosen[-1]["content"], rejected[-1]["content"]]
            example = dataset.add_pair(join_turns(chosen[:-1], strings), *replies, system=system)
            if example is not None:
                for reply, score in zip(replies, scores, strict=True):
                    example.add(reply, score=score)
    return dataset
