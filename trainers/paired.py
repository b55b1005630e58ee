"""Trainers for pairs of a preferred and a dispreferred response."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Self

import torch

from trainers.basic import BasicTrainer
from trainers.losses.lengths import ld_dpo, r_dpo, sigmoid_norm
from trainers.losses.one_sided import apo_down, apo_zero, bco_pair, dpop, nca_pair, sppo_hard
from trainers.losses.paired import cdpo, discopop, dpo, exo_pair, f_dpo, hinge, ipo, robust, wpo
from trainers.losses.reference_free import cpo, orpo, simpo, slic
from trainers.losses.transport import aot, aot_unpaired
from trainers.outputs import LossOutput
from trainers.requirements import formula
from trainers.reward_shift import RewardShift


class PairedPreferenceTrainer(BasicTrainer):
    """The family of losses on pairs: rows have the roles `chosen` and `rejected`."""

    roles = ("chosen", "rejected")

    @classmethod
    def part(cls, loss: Any) -> Self:
        """The loss alone, without policy and loop, to be a part of a mixture; `loss` is its section of the config."""
        alone = cls.__new__(cls)
        alone.config, alone.loss_state = SimpleNamespace(loss=loss), {}
        return alone

    def reward_counts(self, groups: Sequence[Sequence[Any]]) -> tuple[int, int]:
        """One for each side of a pair."""
        return len(groups[0]), len(groups[0])

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

    loss = formula(dpo)


class CDPOTrainer(PairedPreferenceTrainer):
    """Conservative DPO."""

    loss = formula(cdpo)


class RobustTrainer(PairedPreferenceTrainer):
    """Provably robust DPO."""

    loss = formula(robust)


class EXOTrainer(PairedPreferenceTrainer):
    """Efficient exact optimization on pairs."""

    loss = formula(exo_pair)


class HingeTrainer(PairedPreferenceTrainer):
    """The hinge loss on normalized likelihoods."""

    loss = formula(hinge)


class IPOTrainer(PairedPreferenceTrainer):
    """Identity preference optimization."""

    loss = formula(ipo)


class DiscoPOPTrainer(PairedPreferenceTrainer):
    """The log-ratio modulated loss of DiscoPOP."""

    loss = formula(discopop)


class FDPOTrainer(PairedPreferenceTrainer):
    """DPO under another divergence."""

    loss = formula(f_dpo)


class WPOTrainer(PairedPreferenceTrainer):
    """Weighted preference optimization."""

    loss = formula(wpo)


class NCATrainer(PairedPreferenceTrainer):
    """Noise contrastive alignment on pairs."""

    loss = formula(nca_pair)


class SPPOTrainer(PairedPreferenceTrainer):
    """Self-play preference optimization with certain wins."""

    loss = formula(sppo_hard)


class APOZeroTrainer(PairedPreferenceTrainer):
    """Anchored preference optimization, zero."""

    loss = formula(apo_zero)


class APODownTrainer(PairedPreferenceTrainer):
    """Anchored preference optimization, down."""

    loss = formula(apo_down)


class DPOPTrainer(PairedPreferenceTrainer):
    """DPO-positive."""

    loss = formula(dpop)


class SigmoidNormTrainer(PairedPreferenceTrainer):
    """Length-normalized DPO."""

    loss = formula(sigmoid_norm)


class RDPOTrainer(PairedPreferenceTrainer):
    """DPO with a price on length."""

    loss = formula(r_dpo)


class LDDPOTrainer(PairedPreferenceTrainer):
    """Length-desensitized DPO."""

    loss = formula(ld_dpo)


class AOTTrainer(PairedPreferenceTrainer):
    """Alignment by optimal transport on pairs."""

    couples_examples = True
    loss = formula(aot)


class AOTUnpairedTrainer(PairedPreferenceTrainer):
    """Alignment by optimal transport, unpaired."""

    couples_examples = True
    loss = formula(aot_unpaired)


class SimPOTrainer(PairedPreferenceTrainer):
    """Simple preference optimization."""

    loss = formula(simpo)


class SLiCTrainer(PairedPreferenceTrainer):
    """Sequence likelihood calibration."""

    loss = formula(slic)


class ORPOTrainer(PairedPreferenceTrainer):
    """Odds ratio preference optimization."""

    loss = formula(orpo)


class CPOTrainer(PairedPreferenceTrainer):
    """Contrastive preference optimization."""

    loss = formula(cpo)


class BCOPairTrainer(RewardShift, PairedPreferenceTrainer):
    """Binary classifier optimization on pairs."""

    def loss(
        self,
        policy_chosen_logps: torch.Tensor,
        policy_rejected_logps: torch.Tensor,
        reference_chosen_logps: torch.Tensor,
        reference_rejected_logps: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `trainers.losses.one_sided.bco_pair`."""
        return bco_pair(
            policy_chosen_logps,
            policy_rejected_logps,
            reference_chosen_logps,
            reference_rejected_logps,
            self.shift(policy_chosen_logps),
            beta=self.config.loss.beta,
        )
