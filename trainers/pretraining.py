"""Trainers for documents whose segments have scores: pretraining with human preferences."""

from __future__ import annotations

import functools
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
    log_complements,
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
LEAST_WEIGHT = 1e-3
"""On average; below it there is hardly a gradient."""
LOOKS = 5
"""Records of the training that say whether weights spread: in the first steps bad tokens may be missing."""


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

    def log(self, averages: Averages, extra: dict[str, float], split: str) -> dict[str, float]:
        """Writes a record, and warns once if the weights of the first ones do not spread: scores that differ by far
        less than beta, or no token that is bad."""
        metrics = super().log(averages, extra, split)
        if len(self._spreads) == LOOKS or "weights_train/deviation" not in metrics:
            return metrics
        self._spreads.append((metrics["weights/train"], metrics["weights_train/deviation"]))
        if len(self._spreads) < LOOKS or distributed.rank() > 0:
            return metrics
        mean = sum(value for value, _ in self._spreads) / LOOKS
        deviation = math.sqrt(sum(value**2 for _, value in self._spreads) / LOOKS)
        if mean < LEAST_WEIGHT:
            log.warning(
                "in the first %d records the weights of tokens are %.2g on average, next to nothing is learned: "
                "scores are far from what loss.beta or loss.threshold is for", LOOKS, mean,
            )  # fmt: skip
        elif deviation < LEAST_SPREAD * abs(mean):
            log.warning(
                "in the first %d records the weights of tokens are %.4g on average and deviate by %.2g: with these "
                "scores and hyperparameters loss=%s is all but loss=mle", LOOKS, mean, deviation, self.config.loss.name,
            )  # fmt: skip
        return metrics

    @functools.cached_property
    def _spreads(self) -> list[tuple[float, float]]:
        """Mean and deviation of the weights, as the first records have them."""
        return []


def _deviation(parts: Sequence[Sequence[float]]) -> Tensors:
    """The standard deviation of weights, from each process's number of them, sum and sum of squares."""
    count, total, squares = (sum(values) for values in zip(*parts, strict=True))
    variance = max(0.0, squares / count - (total / count) ** 2) if count else math.nan
    return {"weights/deviation": torch.tensor([math.sqrt(variance)])}


def _correlation(parts: Sequence[Sequence[float]]) -> Tensors:
    """Pearson's correlation of values and rewards, from each process's number of tokens, sums, sums of squares and
    sum of products; nothing where one of the two is the same for all tokens."""
    count, values, rewards, *squares, products = (sum(sums) for sums in zip(*parts, strict=True))
    if not count:
        return {}
    means = values / count, rewards / count
    variances = [square / count - mean**2 for square, mean in zip(squares, means, strict=True)]
    # What is smaller than that is rounding of float32.
    if any(variance <= 1e-12 * square / count for variance, square in zip(variances, squares, strict=True)):
        return {}
    correlation = (products / count - means[0] * means[1]) / math.sqrt(variances[0] * variances[1])
    return {"values/correlation": torch.tensor([correlation], dtype=torch.float64)}


class UnlikelihoodTrainer(WeighingTrainer):
    """Likelihood of good tokens, unlikelihood of bad ones."""

    loss = formula(unlikelihood)

    def weigh(self, tensors: Tensors) -> Tensor:
        """How good each token is."""
        loss = self.config.loss
        return goodness(tensors["target_token_scores"], loss.mode, loss.threshold)

    def _collect(self, result: StepResult, averages: Averages) -> None:
        """Also the two terms: mean log p of good tokens, and mean log(1 - p) of bad ones."""
        super()._collect(result, averages)
        logps, good = result.tensors["policy_target_token_logps"], self.weigh(result.tensors)
        averages.add_weighted("logps/good", logps, good)
        averages.add_weighted("unlikelihood_logps/bad", log_complements(logps), 1 - good)


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

    def _collect(self, result: StepResult, averages: Averages) -> None:
        """Also how well the value is learned: its squared error, and its correlation with the reward."""
        super()._collect(result, averages)
        values = result.tensors["policy_target_token_values"].double()
        rewards = -result.tensors["target_token_scores"].double()
        averages.add("values/error", (rewards - values) ** 2)
        moments = values, rewards, values**2, rewards**2, values * rewards
        averages.add_together(_correlation, [len(values), *(float(one.sum()) for one in moments)])
