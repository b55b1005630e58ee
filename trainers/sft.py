"""Supervised fine-tuning."""

from __future__ import annotations

import torch

from trainers.basic import BasicTrainer
from trainers.losses.sft import sft


class SFTTrainer(BasicTrainer):
    """Maximum likelihood of the targets; the loss is a mean over tokens."""

    roles = ("target",)

    def loss(self, policy_target_token_logps: torch.Tensor) -> torch.Tensor:
        """See `trainers.losses.sft.sft`."""
        return sft(policy_target_token_logps)
