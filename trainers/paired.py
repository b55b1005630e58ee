"""Trainers for pairs of a preferred and a dispreferred response."""

from __future__ import annotations

import torch

from trainers.basic import BasicTrainer
from trainers.losses.paired import dpo
from trainers.outputs import LossOutput


class PairedPreferenceTrainer(BasicTrainer):
    """The family of losses on pairs: rows have the roles `chosen` and `rejected`."""

    roles = ("chosen", "rejected")

    def reward_metrics(self, output: LossOutput) -> dict[str, torch.Tensor]:
        """Adds the share of pairs whose chosen response has the higher reward, and by how much."""
        margins = output.chosen_rewards - output.rejected_rewards
        return {
            **super().reward_metrics(output),
            "rewards/margins": margins,
            "rewards/accuracies": (margins > 0).float(),
        }


class DPOTrainer(PairedPreferenceTrainer):
    """Direct preference optimization."""

    def loss(
        self,
        policy_chosen_logps: torch.Tensor,
        policy_rejected_logps: torch.Tensor,
        reference_chosen_logps: torch.Tensor,
        reference_rejected_logps: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `trainers.losses.paired.dpo`."""
        return dpo(
            policy_chosen_logps,
            policy_rejected_logps,
            reference_chosen_logps,
            reference_rejected_logps,
            beta=self.config.loss.beta,
        )
