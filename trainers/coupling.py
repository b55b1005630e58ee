"""A loss that couples the examples of a step, and does not say so, is found out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from dataloaders.batches import Row
from trainers.naming import Logps, Naming
from trainers.outputs import LossOutput

if TYPE_CHECKING:
    from trainers.basic import BasicTrainer


def refuse_undeclared_coupling(
    trainer: BasicTrainer, naming: Naming, rows: Sequence[Row], logps: Logps, owners: Sequence[int]
) -> None:
    """The loss of a part of the step must be that part of the loss of the step.

    It is looked at beside the step: where policy and reference are the same, as at the beginning, a coupling may be
    there in the gradient alone, and where all log-ratios have one sign it may not be there at all.

    Args:
        owners: the row of each loss, in the order of the loss's output.

    Raises:
        ValueError: when it is not.
    """
    compared = list(_compared(trainer, naming, rows, logps, owners))
    if all(_same(losses, wanted) for losses, wanted, _ in compared):
        return
    name, by_token = type(trainer).__name__, any(need.kind == "token_logps" for need in trainer.needs)
    if all(_same(losses * len(losses), wanted * count) for losses, wanted, count in compared):
        of = "tokens" if by_token else "examples"
        raise ValueError(
            f"{name}.loss divides by the number of {of}, and the loop does so too: return losses undivided."
        )
    ordered = len(trainer.loss_groups(rows)) > 1
    hint = " (if not, losses are in the wrong order: desirable rows come first)" if ordered else ""
    fix = "A loss of tokens cannot do that: take ..._logps in place of ..._token_logps, and say so by"
    raise ValueError(
        f"{name}.loss couples the examples of a step: the loss of an example depends on which others are with it{hint}"
        f". {fix if by_token and len(trainer.roles) > 1 else 'Set'} `couples_examples = True` in the class, and the "
        "result no longer depends on micro-batches and processes."
    )


def _compared(
    trainer: BasicTrainer, naming: Naming, rows: Sequence[Row], logps: Logps, owners: Sequence[int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    """The losses of a part of the step, those of the same rows in the whole step, and how many the whole step has."""
    for lead in (1.0, -1.0):
        beside = _beside(naming, logps, lead)
        whole = LossOutput.of(trainer.loss(**naming.tensors(rows, beside))).losses
        for half in _parts(trainer.loss_groups(rows)):
            part = {k: [v[i] for i in half] if k[1] in naming.trained_roles else v for k, v in beside.items()}
            losses = LossOutput.of(trainer.loss(**naming.tensors([rows[index] for index in half], part))).losses
            yield losses, whole[torch.tensor([index in half for index in owners], device=whole.device)], len(whole)


def _same(losses: torch.Tensor, wanted: torch.Tensor) -> bool:
    close = losses.shape == wanted.shape and torch.allclose(losses, wanted, rtol=1e-4, atol=1e-5, equal_nan=True)
    return bool(close)


def _parts(groups: Sequence[Sequence[int]]) -> list[list[int]]:
    """Some of the rows: two halves, and half of one class with all of the others, so that no ratio of counts stays."""
    parts = [[index for group in groups for index in group[first::2]] for first in (0, 1)]
    if len(groups) > 1:
        halved = max(range(len(groups)), key=lambda number: len(groups[number]))
        parts.append(
            [index for number, group in enumerate(groups) for index in (group[::2] if number == halved else group)]
        )
    return [sorted(part) for part in parts if part]


def _beside(naming: Naming, logps: Logps, lead: float) -> Logps:
    """Values of trained roles near the policy's, with log-ratios between -2 and 2 around `lead`, all different."""
    generator = np.random.default_rng(0)
    beside = dict(logps)
    known = sorted(key for key in logps if key[0] != "values" and key[1] in naming.trained_roles)
    for model, role in known:
        more = max(0.0, lead if model == "reference" else -lead)
        beside[model, role] = [
            value - (more + generator.uniform(0.1, 2.1)) / max(1, len(value)) for value in logps["policy", role]
        ]
    return beside
