"""Losses that couple the examples of a step: SimpleKTO as HALOs published it first (December 2023)."""

import torch

from trainers.paired import PairedPreferenceTrainer
from trainers.unpaired import UnpairedPreferenceTrainer


def simple_kto(
    policy_chosen_logps: torch.Tensor,
    policy_rejected_logps: torch.Tensor,
    reference_chosen_logps: torch.Tensor,
    reference_rejected_logps: torch.Tensor,
    beta: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """With r the log ratios, a class is measured by the clamped mean of the other; gradients flow through it."""
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    chosen_mean, rejected_mean = chosen.mean().clamp(min=0), rejected.mean().clamp(min=0)
    losses = torch.cat(
        [1 - torch.sigmoid(beta * (chosen - rejected_mean)), 1 - torch.sigmoid(beta * (chosen_mean - rejected))]
    )
    return losses, beta * chosen.detach(), beta * rejected.detach()


class UndeclaredSimpleKTOTrainer(UnpairedPreferenceTrainer):
    """SimpleKTO by somebody who does not know what `couples_examples` is for."""

    def loss(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
        """See `simple_kto`."""
        beta = self.config.loss.beta
        return simple_kto(
            policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
        )


class SimpleKTOTrainer(UndeclaredSimpleKTOTrainer):
    """SimpleKTO, declared."""

    couples_examples = True


class SortedTrainer(PairedPreferenceTrainer):
    """A coupled loss on pairs: margins sorted as in AOT, without a reference."""

    couples_examples = True

    def loss(self, policy_chosen_logps, policy_rejected_logps):
        """The k-th best chosen response against the k-th best rejected one."""
        chosen, rejected = policy_chosen_logps.sort().values, policy_rejected_logps.sort().values
        losses = -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected))
        return losses, policy_chosen_logps.detach(), policy_rejected_logps.detach()
