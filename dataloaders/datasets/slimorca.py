"""SlimOrca (Open-Orca/SlimOrca-Dedup, or Open-Orca/SlimOrca): demonstrations, each with a system message of its own.

Row: {"conversations": [{"from": "system" | "human" | "gpt", "value": text}, ...]}.
"""

from __future__ import annotations

from typing import Any

from dataloaders.datasets.conversation import TurnStrings, demonstration, describe, parse_turns
from dataloaders.datasets.rows import field, load_rows
from dataloaders.examples import Dataset

_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


def get_slimorca(
    split: str,
    human_prefix: str,
    human_suffix: str,
    assistant_prefix: str,
    assistant_suffix: str,
    *,
    name: str = "slimorca",
    hub: str = "Open-Orca/SlimOrca-Dedup",
    path: str | list[str] | None = None,
    test_path: str | list[str] | None = None,
    **source: Any,
) -> Dataset:
    """Demonstrations for supervised fine-tuning. The hub has one split: it is split by a hash of the prompt."""
    strings = TurnStrings(human_prefix, human_suffix, assistant_prefix, assistant_suffix)
    dataset = Dataset(name, split_by_prompt=None if path or test_path else True)
    rows = load_rows(split, name=name, hub=hub, hub_split="train", path=path, test_path=test_path, **source)
    for where, row in rows:
        messages = [_message(said, where) for said in field(row, "conversations", where, list)]
        shown = demonstration(*parse_turns(messages, where, "conversations"), strings)
        dataset.read(shown.key)
        if shown.flaw:
            dataset.drop(shown.flaw)
        else:
            dataset.add_demonstration(shown.prompt, shown.generation, system=shown.system)
    return dataset


def _message(said: Any, where: str) -> dict[str, Any]:
    if not isinstance(said, dict) or said.get("from") not in _ROLES:
        raise ValueError(
            f'{where}: each of `conversations` must be {{"from": "system", "human" or "gpt", "value": text}}, '
            f"not {describe(said)}."
        )
    return {"role": _ROLES[said["from"]], "content": said.get("value")}
