"""AlpacaEval's instructions (tatsu-lab/alpaca_eval) with the reference model's answers: a test set and nothing else.

Row: instruction, output, generator, dataset.
"""

from __future__ import annotations

from typing import Any

from dataloaders.datasets.conversation import TurnStrings, join_turns
from dataloaders.datasets.rows import field, load_rows
from dataloaders.examples import Dataset, unusable


def get_alpacaeval(
    split: str,
    human_prefix: str,
    human_suffix: str,
    assistant_prefix: str,
    assistant_suffix: str,
    *,
    name: str = "alpacaeval",
    hub: str = "tatsu-lab/alpaca_eval",
    data_files: str | None = "alpaca_eval.json",
    **source: Any,
) -> Dataset:
    """The reference answer is the only generation, so that sampling can compare with it.

    The repository holds a loading script, which the hub's client refuses: its file is read by itself.
    """
    if split != "test":
        raise ValueError(f"Data set {name} is for testing only and has no {split} split; train on another one.")
    strings = TurnStrings(human_prefix, human_suffix, assistant_prefix, assistant_suffix)
    dataset = Dataset(name, split_by_prompt=False)
    for where, row in load_rows(split, name=name, hub=hub, data_files=data_files, **source):
        instruction, output = (field(row, key, where).strip() for key in ("instruction", "output"))
        dataset.read(instruction)
        if reason := unusable(instruction, output):
            dataset.drop(reason)
            continue
        example = dataset.example(join_turns([{"role": "user", "content": instruction}], strings))
        if example.generations:
            dataset.drop("same instruction again", example=example)
            continue
        example.sft_index = example.add(output)
        example.metadata["dataset"] = field(row, "dataset", where)
    return dataset
