"""Trainers for single responses with a thumb up (chosen) or down (rejected)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dataloaders.batches import Pair, Row
from trainers.basic import BasicTrainer
from trainers.losses.unpaired import apo_zero_unpaired, bco, kto, kto_logsigmoid, kto_simple, kto_zero
from trainers.outputs import LossOutput
from trainers.requirements import Requirement, formula
from trainers.reward_shift import RewardShift


class UnpairedPreferenceTrainer(BasicTrainer):
    """The family of losses on labelled responses: `chosen` are the desirable rows, `rejected` the undesirable ones.

    The role `KL` is a response to another prompt; what a loss is given of it is the whole optimizer step's.
    """

    roles = ("target",)
    reads = ("desirable",)

    @classmethod
    def requirements(cls, loss: Any) -> list[Requirement]:
        """As of any trainer, but responses are named by their labels, as losses are ordered.

        Raises:
            ValueError: for a tensor of `target`, which would be in the order of rows.
        """
        needs = super().requirements(loss)
        for need in needs:
            if need.role == "target" and cls.loss_groups is UnpairedPreferenceTrainer.loss_groups:
                both = " and ".join(need.parameter.replace("target", side, 1) for side in ("chosen", "rejected"))
                raise ValueError(
                    f"{cls.__name__}.loss asks for {need.parameter}: in this family losses come desirable rows first, "
                    f"so that responses are named by their labels. Take {both}, and return "
                    "torch.cat([those of chosen, those of rejected])."
                )
        return needs

    @classmethod
    def select(cls, name: str, rows: Sequence[Row]) -> tuple[str, list[int]]:
        """`chosen` and `rejected` are the `target`s of desirable and undesirable rows."""
        if name in ("chosen", "rejected"):
            return "target", [index for index, row in enumerate(rows) if row.desirable == (name == "chosen")]
        return super().select(name, rows)

    def loss_groups(self, rows: Sequence[Row]) -> list[list[int]]:
        """Losses come desirable rows first, undesirable ones after them."""
        return [self.select(name, rows)[1] for name in ("chosen", "rejected")]

    def reward_counts(self, groups: Sequence[Sequence[Any]]) -> tuple[int, int]:
        """One for each desirable row, and one for each undesirable one."""
        return len(groups[0]), len(groups[1])

    def reward_metrics(self, output: LossOutput) -> dict[str, torch.Tensor]:
        """Adds the share of (desirable, undesirable) combinations in the step that are ranked right, and by how much.

        The two of a combination answer different prompts as a rule, so this is not a pair accuracy. A loss that
        estimates a KL shows it.
        """
        margins = (output.chosen_rewards[:, None] - output.rejected_rewards[None, :]).flatten()
        metrics = {
            **super().reward_metrics(output),
            "rewards/margins": margins,
            "rewards/unpaired_accuracies": (margins > 0).float(),
        }
        if output.extra and output.extra[0].numel() != 1:
            raise ValueError(
                f"{type(self).__name__}.loss returned a fourth value of shape {tuple(output.extra[0].shape)}; that is "
                "the estimate of a KL, one number for the whole step: take its mean, or leave it out."
            )
        if output.extra:
            metrics["rewards/KL_estimate"] = output.extra[0].reshape(1)
        return metrics

    def pair_metrics(self, pairs: Sequence[Sequence[Pair | None]], output: LossOutput) -> dict[str, torch.Tensor]:
        """True pair accuracy, where both sides of a pair are among the rows."""
        desirable, undesirable = pairs
        chosen = {pair: place for place, pair in enumerate(desirable) if pair is not None}
        both = [(chosen[pair], place) for place, pair in enumerate(undesirable) if pair in chosen]
        if not both:
            return {}
        first, second = (torch.tensor(places) for places in zip(*both, strict=True))
        margins = output.chosen_rewards[first] - output.rejected_rewards[second]
        return {"rewards/accuracies": (margins > 0).float(), "rewards/pair_margins": margins}


class KTOTrainer(UnpairedPreferenceTrainer):
    """Kahneman-Tversky optimization."""

    loss = formula(kto)


class KTOLogSigmoidTrainer(UnpairedPreferenceTrainer):
    """KTO with the logarithm of the sigmoid."""

    loss = formula(kto_logsigmoid)


class KTOSimpleTrainer(UnpairedPreferenceTrainer):
    """KTO as it was first released."""

    couples_examples = True
    loss = formula(kto_simple)


class KTOZeroTrainer(UnpairedPreferenceTrainer):
    """KTO with an estimate of 0."""

    loss = formula(kto_zero)


class APOZeroUnpairedTrainer(UnpairedPreferenceTrainer):
    """Anchored preference optimization, zero, on single responses."""

    loss = formula(apo_zero_unpaired)


class BCOTrainer(RewardShift, UnpairedPreferenceTrainer):
    """Binary classifier optimization."""

    def loss(
        self,
        policy_chosen_logps: torch.Tensor,
        policy_rejected_logps: torch.Tensor,
        reference_chosen_logps: torch.Tensor,
        reference_rejected_logps: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `trainers.losses.unpaired.bco`."""
        return bco(
            policy_chosen_logps,
            policy_rejected_logps,
            reference_chosen_logps,
            reference_rejected_logps,
            self.shift(policy_chosen_logps),
            beta=self.config.loss.beta,
            desirable_weight=self.config.loss.desirable_weight,
            undesirable_weight=self.config.loss.undesirable_weight,
        )
