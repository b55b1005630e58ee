"""Supervised fine-tuning."""

from __future__ import annotations

from trainers.basic import BasicTrainer
from trainers.losses.sft import csft, sft
from trainers.requirements import formula


class SFTTrainer(BasicTrainer):
    """Maximum likelihood of the targets; the loss is a mean over tokens."""

    roles = ("target",)

    loss = formula(sft)


class ConditionalSFTTrainer(SFTTrainer):
    """Maximum likelihood of good and bad responses, each behind its control string."""

    loss = formula(csft)
