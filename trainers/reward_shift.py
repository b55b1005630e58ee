"""The reward shift of binary classifier optimization: what a loss remembers of the rewards of earlier steps."""

from __future__ import annotations

from typing import Any

import torch


class RewardShift:
    """For trainers of BCO: delta = (mean reward of chosen + mean reward of rejected) / 2 over all steps so far.

    (Jung et al. 2024, arXiv 2404.04656, for delta; that it is estimated over all earlier steps alike, and is 0 in the
    first one, is ours.) `loss.reward_shift=none` keeps it at 0 always, which is TRL's `bco_pair`.
    """

    config: Any
    loss_state: dict[str, torch.Tensor]

    def shift(self, like: torch.Tensor) -> torch.Tensor:
        """delta (), on the device and in the dtype of `like`."""
        kind = self.config.loss.reward_shift
        if kind not in ("running_mean", "none"):
            raise ValueError(f"loss.reward_shift={kind}: choose running_mean or none.")
        seen = [self.loss_state.get(f"{side}_count", 0) for side in ("chosen", "rejected")]
        if kind == "none" or not all(seen):
            return like.new_zeros(())
        means = [self.loss_state[f"{side}_sum"] / self.loss_state[f"{side}_count"] for side in ("chosen", "rejected")]
        return (sum(means) / 2).to(like)

    def remember(
        self,
        policy_chosen_logps: torch.Tensor,
        policy_rejected_logps: torch.Tensor,
        reference_chosen_logps: torch.Tensor,
        reference_rejected_logps: torch.Tensor,
    ) -> None:
        """Adds the rewards of a step."""
        beta = self.config.loss.beta
        rewards = {
            "chosen": beta * (policy_chosen_logps - reference_chosen_logps),
            "rejected": beta * (policy_rejected_logps - reference_rejected_logps),
        }
        state = {}
        for side, values in rewards.items():
            for name, more in (("sum", values.double().sum().cpu()), ("count", torch.tensor(float(len(values))))):
                before = self.loss_state.get(f"{side}_{name}", torch.zeros((), dtype=torch.float64))
                state[f"{side}_{name}"] = before + more.double()
        self.loss_state = state
