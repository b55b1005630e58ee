"""Weighted sums of losses on pairs."""

from __future__ import annotations

from typing import Any

import torch

from dataloaders.resolve import resolve
from trainers.losses.one_sided import chosen_nll
from trainers.outputs import LossOutput
from trainers.paired import PairedPreferenceTrainer
from trainers.requirements import Requirement, formula, requirements


class ChosenNLLTrainer(PairedPreferenceTrainer):
    """Imitation of the chosen response: a part of mixtures."""

    loss = formula(chosen_nll)


class MixtureTrainer(PairedPreferenceTrainer):
    """Mixed preference optimization: sum over parts of weight x loss (Wang et al. 2024, arXiv 2411.10442).

    `loss.losses` names the parts; each has a `trainer` (of losses on pairs), a `weight`, and the keys of its loss. The
    rewards that are logged are those of the first part that has any.

    Use it to hold a preference loss by another one, or by imitation of the chosen response.
    """

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        self._parts = {name: _kind(name, part).part(part) for name, part in config.loss.losses.items()}
        super().__init__(config, *args, **kwargs)

    @classmethod
    def requirements(cls, loss: Any) -> list[Requirement]:
        """What any of the parts takes.

        Raises:
            ValueError: for a part that is no loss on pairs, or no part at all.
        """
        needs: dict[str, Requirement] = {}
        for name, part in loss.losses.items():
            needs |= {need.parameter: need for need in _kind(name, part).requirements(part)}
        if not needs:
            raise ValueError("loss.losses is empty: name at least one part of the mixture.")
        return list(needs.values())

    @classmethod
    def couples(cls, loss: Any) -> bool:
        """Whether any of the parts does."""
        return any(_kind(name, part).couples(part) for name, part in loss.losses.items())

    def loss(self, **tensors: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The weighted sum, and the rewards of the first part that has some."""
        total, rewards = torch.zeros(()), None
        for name, part in self._parts.items():
            before = f"{name}/"
            part.loss_state = {
                key.removeprefix(before): value for key, value in self.loss_state.items() if key.startswith(before)
            }
            output = LossOutput.of(part.loss(**_taken_by(part, tensors)))
            total = total + self.config.loss.losses[name].weight * output.losses
            if rewards is None and output.chosen_rewards is not None:
                rewards = output.chosen_rewards, output.rejected_rewards
        return total if rewards is None else (total, *rewards)

    def remember(self, **tensors: torch.Tensor) -> None:
        """Lets each part remember."""
        for name, part in self._parts.items():
            part.remember(**_taken_by(part, tensors))
            self.loss_state |= {f"{name}/{key}": value for key, value in part.loss_state.items()}


def _taken_by(part: PairedPreferenceTrainer, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {need.parameter: tensors[need.parameter] for need in requirements(part.loss)}


def _kind(name: str, part: Any) -> type[PairedPreferenceTrainer]:
    """The trainer of a part."""
    kind = resolve(part.trainer, "trainers")
    fits = isinstance(kind, type) and issubclass(kind, PairedPreferenceTrainer) and kind is not MixtureTrainer
    if not fits or any(need.kind == "token_logps" for need in requirements(kind.loss)):
        raise ValueError(
            f"loss.losses.{name}.trainer={part.trainer} is no loss on pairs with one value for each: name "
            "a subclass of trainers.paired.PairedPreferenceTrainer."
        )
    return kind
