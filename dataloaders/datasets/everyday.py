"""The embedded data set: everyday questions with a short direct answer (chosen) and an evasive ramble (rejected).

Row: {"topic", "prompt", "chosen", "rejected", "facts": [...]}; the data card stands beside the files in `data/`.
"""

from __future__ import annotations

from pathlib import Path

from dataloaders.datasets.conversation import TurnStrings, join_turns
from dataloaders.datasets.rows import field, load_rows
from dataloaders.examples import Dataset

DATA = Path(__file__).resolve().parents[2] / "data"


def get_everyday(
    split: str,
    human_prefix: str,
    human_suffix: str,
    assistant_prefix: str,
    assistant_suffix: str,
    *,
    name: str = "everyday",
    path: str | list[str] | None = None,
    test_path: str | list[str] | None = None,
) -> Dataset:
    """Pairs and single feedback at once; `facts` and `topic` go to the metadata. `path=None` is the embedded files."""
    strings = TurnStrings(human_prefix, human_suffix, assistant_prefix, assistant_suffix)
    if path is None:
        path = str(DATA / "everyday_train.jsonl")
        test_path = test_path or str(DATA / "everyday_test.jsonl")
    dataset = Dataset(name)
    for where, row in load_rows(split, name=name, path=path, test_path=test_path):
        question, chosen, rejected = (field(row, key, where).strip() for key in ("prompt", "chosen", "rejected"))
        dataset.read(question)
        if not question:
            dataset.drop("empty prompt")
            continue
        prompt = join_turns([{"role": "user", "content": question}], strings)
        example = dataset.add_pair(prompt, chosen, rejected)
        if example is not None:
            example.add(chosen, desirable=True)
            example.add(rejected, desirable=False)
            example.metadata = {"facts": list(field(row, "facts", where, list)), "topic": field(row, "topic", where)}
    return dataset
