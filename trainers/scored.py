"""Trainers for responses that are worth something."""

from __future__ import annotations

from trainers.basic import BasicTrainer
from trainers.losses.policy_gradient import grpo, ppo
from trainers.losses.ranked import rrhf
from trainers.requirements import formula


class ScoredTrainer(BasicTrainer):
    """The family of losses on single responses with a reward: the role is `target`."""

    roles = ("target",)


class GRPOTrainer(ScoredTrainer):
    """Group relative policy optimization, offline; its beta is the weight of a KL."""

    may_be_zero = ("beta",)
    loss = formula(grpo)


class RRHFTrainer(ScoredTrainer):
    """Rank responses to align human feedback; a prompt's responses are compared, so examples are coupled."""

    couples_examples = True
    loss = formula(rrhf)


class PPOTrainer(ScoredTrainer):
    """Proximal policy optimization, offline; advantages are whitened over a step, so examples are coupled."""

    couples_examples = True
    loss = formula(ppo)
