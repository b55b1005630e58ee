"""Anthropic's helpful and harmless dialogues (Anthropic/hh-rlhf): pairs of whole dialogues that differ in the end.

Row: {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": the same}.
"""

from __future__ import annotations

import re
from typing import Any

from dataloaders.datasets.conversation import Turn, TurnStrings, flaw, join_turns, split_key
from dataloaders.datasets.rows import field, load_rows
from dataloaders.examples import Dataset

HUB = "Anthropic/hh-rlhf"
_MARKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def get_hh(
    split: str,
    human_prefix: str,
    human_suffix: str,
    assistant_prefix: str,
    assistant_suffix: str,
    *,
    name: str = "hh",
    hub: str = HUB,
    data_dir: str | None = None,
    **source: Any,
) -> Dataset:
    """All of hh-rlhf, or the folder `data_dir` of it; `source` goes to `load_rows`. The SFT target is the chosen reply.

    A row is dropped when its two prompts differ, its turns do not alternate, or one of its replies is empty.
    """
    strings = TurnStrings(human_prefix, human_suffix, assistant_prefix, assistant_suffix)
    dataset = Dataset(name)
    for where, row in load_rows(split, name=name, hub=hub, data_dir=data_dir, **source):
        chosen, rejected = (parse_dialogue(field(row, key, where)) for key in ("chosen", "rejected"))
        dataset.read(split_key(chosen[:-1]))
        reason = _flaw(chosen, rejected)
        if reason:
            dataset.drop(reason)
        else:
            prompt = join_turns(chosen[:-1], strings)
            dataset.add_pair(prompt, chosen[-1]["content"], rejected[-1]["content"])
    return dataset


def get_hh_helpful(*arguments: str, **options: Any) -> Dataset:
    """The helpful-base folder of hh-rlhf; takes what `get_hh` takes."""
    return get_hh(*arguments, **{"name": "hh_helpful", "data_dir": "helpful-base", **options})


def get_hh_harmless(*arguments: str, **options: Any) -> Dataset:
    """The harmless-base folder of hh-rlhf; takes what `get_hh` takes."""
    return get_hh(*arguments, **{"name": "hh_harmless", "data_dir": "harmless-base", **options})


def get_hh_online(*arguments: str, **options: Any) -> Dataset:
    """The helpful-online folder of hh-rlhf; takes what `get_hh` takes."""
    return get_hh(*arguments, **{"name": "hh_online", "data_dir": "helpful-online", **options})


def get_hh_rejection_sampled(*arguments: str, **options: Any) -> Dataset:
    """The helpful-rejection-sampled folder of hh-rlhf; takes what `get_hh` takes."""
    return get_hh(*arguments, **{"name": "hh_rejection_sampled", "data_dir": "helpful-rejection-sampled", **options})


def parse_dialogue(text: str) -> list[Turn]:
    r"""The turns of a dialogue whose marks are "\n\nHuman:" and "\n\nAssistant:"; [] when it begins with no mark.

    A mark anywhere else (a reply that begins with "Human:", say) is text: the data have such replies.
    """
    before, *parts = _MARKER.split(text)
    if before.strip():
        return []
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[mark], "content": content.strip()} for mark, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def _flaw(chosen: list[Turn], rejected: list[Turn]) -> str | None:
    if not chosen or not rejected:
        return "dialogue does not begin with Human or Assistant"
    if chosen[:-1] != rejected[:-1]:
        return "prompts of chosen and rejected differ"
    if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        return "dialogue does not end with Assistant"
    return flaw(chosen[:-1])
