"""A loss that is not finite is found before the optimizer sees it, and says which examples it is of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from dataloaders.batches import Row
from dataloaders.chat_format import MARKERS

if TYPE_CHECKING:
    from trainers.basic import BasicTrainer


class NonFiniteError(ValueError):
    """A loss or gradient that is not finite: the run stops before the optimizer sees it."""


def refuse_non_finite(trainer: BasicTrainer, losses: torch.Tensor, rows: Sequence[Row]) -> None:
    """NonFiniteError for losses of rows of which one is not finite; it names these rows."""
    if bool(torch.isfinite(losses).all()):
        return
    order = [index for group in trainer.loss_groups(rows) for index in group]
    if len(order) == len(losses):
        bad = [rows[index] for index, loss in zip(order, losses, strict=True) if not bool(torch.isfinite(loss))]
    else:
        bad = list(rows)
    raise NonFiniteError(
        "; ".join(describe(row) for row in bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    )


def describe(row: Row) -> str:
    """Which example a row is, for messages."""
    prompt = row.example.prompt if isinstance(row.example.prompt, str) else str(row.example.prompt)
    for marker in MARKERS:
        prompt = prompt.replace(marker, " ")
    return f"{row.example.dataset_name}: {' '.join(prompt.split())[:120]!r}"
