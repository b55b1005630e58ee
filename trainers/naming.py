"""From the log-probabilities of a step's responses to the tensors that a loss names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from dataloaders.batches import Row
from trainers.outputs import Tensors
from trainers.requirements import Requirement

if TYPE_CHECKING:
    from trainers.basic import BasicTrainer

# (policy or reference, role of a row) -> for each row, the log-probabilities of its scored tokens; under
# ("values", role) what else is made of the hidden states that predict them
Logps = dict[tuple[str, str], list[torch.Tensor]]


ROW_KINDS = {"rewards": "reward", "groups": "group"}
"""Kinds of tensors that hold what rows say, and the attribute that says it."""


class Naming:
    """Makes the tensors of a loss: sums, token by token, or numbers of tokens.

    Args:
        trainer: gives `needs` and `select`.
        trained_roles: those on which gradients are taken; of the others a loss sees the whole step's.
        clamp: None, or between which bounds, in nats, the log-ratio of a policy's token to the reference's is held
            (humanline; Liu et al. 2025, arXiv 2509.24207; HALOs' clamp).
    """

    def __init__(
        self, trainer: BasicTrainer, trained_roles: Sequence[str], clamp: tuple[float, float] | None, device: str
    ):
        self.trainer = trainer
        self.trained_roles = trained_roles
        self.clamp = clamp
        self.device = device

    def tensors(self, rows: Sequence[Row], logps: Logps) -> Tensors:
        """All tensors that the loss names, of these rows."""
        made = {}
        for need in self.trainer.needs:
            role, indices = self.trainer.select(need.role, rows)
            if role not in self.trained_roles:
                indices = range(len(logps[need.model, role]))
            parts = [self.value(need, role, rows, logps, index) for index in indices]
            if not parts:
                made[need.parameter] = torch.zeros(0, device=self.device)
            else:
                made[need.parameter] = torch.cat(parts) if need.kind.startswith("token_") else torch.stack(parts)
        return made

    def value(self, need: Requirement, role: str, rows: Sequence[Row], logps: Logps, index: int) -> torch.Tensor:
        """What one response gives to a tensor: (), or (scored tokens,) where it is token by token."""
        if need.kind in ROW_KINDS:
            return logps["policy", role][index].new_tensor(getattr(rows[index], ROW_KINDS[need.kind]))
        if need.kind == "token_scores":
            return logps["policy", role][index].new_tensor(rows[index].token_scores)
        if need.kind == "token_advantages":
            return torch.full_like(logps["policy", role][index], rows[index].advantage)
        if need.kind == "lengths":
            tokens = logps["policy", role][index]
            return tokens.new_full((), max(1, len(tokens)))  # means are taken by it: of none it is 0
        if need.kind == "alignments":
            tokens = logps["policy", role][index].detach() - logps["values", role][index]
            return tokens.sum() / max(1, len(tokens))
        if need.kind == "token_values":
            return logps["values", role][index]
        values = self._tokens(need.model, role, logps, index)
        if need.kind == "token_logps":
            return values
        if need.kind == "shared_logps":
            values = values[: min(len(logps["policy", one][index]) for one in self.trained_roles)]
        return values.sum()

    def _tokens(self, model: str, role: str, logps: Logps, index: int) -> torch.Tensor:
        values = logps[model, role][index]
        if self.clamp is None or model == "reference" or ("reference", role) not in logps:
            return values
        reference = logps["reference", role][index]
        return reference + (values - reference).clamp(*self.clamp)
