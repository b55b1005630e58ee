"""Documents whose segments have scores: they stream into losses on documents, and are no prompts and responses."""

from __future__ import annotations

from typing import Any

from dataloaders.examples import Dataset


def get_documents(
    split: str,
    human_prefix: str,
    human_suffix: str,
    assistant_prefix: str,
    assistant_suffix: str,
    name: str = "NAME",
    **options: Any,
) -> Dataset:
    """Refuses losses on prompts and responses; `dataloaders.corpus` reads these data sets for the others.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        f"datasets=[{name}] holds documents: train on them with loss=mle, conditional or another loss on documents, or "
        f"choose other data sets for this loss (loss=sft takes documents by datasets=[local] datasets.local.path=FILE)."
    )
