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


class TokensOfBothTrainer(PairedPreferenceTrainer):
    """A loss on the tokens of two roles: likely tokens for chosen responses, unlikely ones for rejected ones."""

    def loss(self, policy_chosen_token_logps, policy_rejected_token_logps):
        """One value for each token, those of chosen responses first."""
        unlikely = -torch.log1p(-policy_rejected_token_logps.exp().clamp(max=0.99))
        return torch.cat([-policy_chosen_token_logps, 0.5 * unlikely])


class RunningMeanTrainer(PairedPreferenceTrainer):
    """A loss with a state: margins are measured from the mean of those of the steps before."""

    def loss(self, policy_chosen_logps, policy_rejected_logps):
        """Logistic in the margin above the running mean."""
        mean = self.loss_state.get("mean", torch.zeros(1)).to(policy_chosen_logps)
        return -torch.nn.functional.logsigmoid(0.1 * (policy_chosen_logps - policy_rejected_logps - mean))

    def remember(self, policy_chosen_logps, policy_rejected_logps):
        """The mean margin of all examples so far, and how many they are."""
        margins = (policy_chosen_logps - policy_rejected_logps).float().cpu()
        zero = {"mean": torch.zeros(1), "count": torch.zeros(1)}
        mean, count = (self.loss_state or zero).values()
        total = count + len(margins)
        self.loss_state = {"mean": (mean * count + margins.sum()) / total, "count": total}
