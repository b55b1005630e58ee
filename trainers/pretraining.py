"""Trainers for documents whose segments have scores: pretraining with human preferences."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.value_head import LinearValueHead
from trainers import distributed
from trainers.basic import BasicTrainer
from trainers.losses.pretraining import (
    awr,
    conditional,
    exponential_weights,
    filtering,
    goodness,
    mle,
    rwr,
    unlikelihood,
)
from trainers.metrics import Averages
from trainers.outputs import StepResult, Tensors
from trainers.requirements import formula

log = logging.getLogger(__name__)

LEAST_SPREAD = 0.01
"""Of weights, as a share of their mean: below it an objective is all but mle."""


class PretrainingTrainer(BasicTrainer):
    """The family of losses on blocks of documents: the role is `target`, all of a block but its first token."""

    roles = ("target",)

    def counters(self) -> dict[str, float]:
        """Beside what every trainer counts, the tokens of all blocks so far."""
        return super().counters() | {"counters/tokens": self.examples * self.config.model.max_length}


class MLETrainer(PretrainingTrainer):
    """Maximum likelihood."""

    loss = formula(mle)


class FilteringTrainer(PretrainingTrainer):
    """Maximum likelihood of documents that are good enough; the DataLoader leaves the others out."""

    loss = formula(filtering)


class ConditionalTrainer(PretrainingTrainer):
    """Maximum likelihood behind control tokens, which the DataLoader puts before segments."""

    loss = formula(conditional)


class WeighingTrainer(PretrainingTrainer):
    """Losses that weigh tokens by their scores: the spread of the weights is logged, since without one it is mle."""

    def weigh(self, tensors: Tensors) -> Tensor:
        """The weights (T,) of the likelihoods of tokens, from the tensors that the loss names."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it weighs")

    def _collect(self, result: StepResult, averages: Averages) -> None:
        super()._collect(result, averages)
        weights = self.weigh(result.tensors).double()
        averages.add("weights", weights)
        averages.add("scores", result.tensors["target_token_scores"])
        averages.add_together(_deviation, [len(weights), float(weights.sum()), float(weights.square().sum())])
        if self.step_idx == 0:
            self._warn_of_no_spread(weights)

    def _warn_of_no_spread(self, weights: Tensor) -> None:
        """Once, at the first look: scores that differ by far less than beta, or no token that is bad."""
        if self._told or len(weights) < 2 or distributed.rank() > 0:
            return
        self._told = True
        if weights.std() < LEAST_SPREAD * weights.mean().abs():
            log.warning(
                "the weights of %d tokens are %.4g on average and deviate by %.2g: with these scores and "
                "hyperparameters loss=%s is all but loss=mle",
                len(weights), float(weights.mean()), float(weights.std()), self.config.loss.name,
            )  # fmt: skip

    _told = False


def _deviation(parts: Sequence[tuple[int, float, float]]) -> Tensors:
    """The standard deviation of weights, from each process's number of them, sum and sum of squares."""
    count, total, squares = (sum(values) for values in zip(*parts, strict=True))
    variance = max(0.0, squares / count - (total / count) ** 2) if count else math.nan
    return {"weights/deviation": torch.tensor([math.sqrt(variance)])}


class UnlikelihoodTrainer(WeighingTrainer):
    """Likelihood of good tokens, unlikelihood of bad ones."""

    loss = formula(unlikelihood)

    def weigh(self, tensors: Tensors) -> Tensor:
        """How good each token is."""
        loss = self.config.loss
        return goodness(tensors["target_token_scores"], loss.mode, loss.threshold)


class RWRTrainer(WeighingTrainer):
    """Reward-weighted regression."""

    loss = formula(rwr)

    def weigh(self, tensors: Tensors) -> Tensor:
        """The weights of the regression."""
        loss = self.config.loss
        return exponential_weights(-tensors["target_token_scores"], loss.beta, loss.weight_max)


class AWRTrainer(WeighingTrainer):
    """Advantage-weighted regression, with a value head that is one linear layer."""

    loss = formula(awr)

    def make_value_head(self, hidden_size: int) -> nn.Module:
        """The head that begins at a value of 0, or with `value_sigmoid` of -1/2, everywhere."""
        loss = self.config.loss
        return LinearValueHead(hidden_size, loss.value_sigmoid, loss.value_detached)

    def weigh(self, tensors: Tensors) -> Tensor:
        """The weights of the regression."""
        loss, values = self.config.loss, tensors["policy_target_token_values"]
        return exponential_weights(-tensors["target_token_scores"] - values, loss.beta, loss.weight_max)
