"""Objectives of pretraining with human preferences: what each token of a document costs, given how bad it is.

A token's score s is that of the segment that it stands in; the higher, the worse. What names no source is from
Korbak et al. 2023, "Pretraining Language Models with Human Preferences", arXiv 2302.08582.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST_COMPLEMENT = 1e-20
"""1 - p is held above it, so that a token that is certain costs 46 nats and not infinitely much."""


def mle(policy_target_token_logps: Tensor) -> Tensor:
    """Maximum likelihood: plain pretraining, which the others of this family are compared with (Korbak et al. 2023).

        -log pi(token | tokens before it)

    Use it for a baseline, and for the model that `task.phase=finetune` starts from.

    Args:
        policy_target_token_logps: (T,) log-probabilities, in nats, of all tokens but the first of each block.

    Returns:
        losses (T,), one per token.
    """
    return -policy_target_token_logps


def filtering(policy_target_token_logps: Tensor) -> Tensor:
    """Dataset filtering: maximum likelihood of the documents that are good enough (Korbak et al. 2023).

        -log pi(token | tokens before it), on documents whose score is at most the threshold

    A document's score is the mean of its segments' scores. Use it where much of the corpus is good; what is left is
    seen more often for the same number of tokens, and a run says how often.

    Args:
        policy_target_token_logps: (T,) log-probabilities, in nats, of all tokens but the first of each block.

    Returns:
        losses (T,), one per token.
    """
    return mle(policy_target_token_logps)


def conditional(policy_target_token_logps: Tensor) -> Tensor:
    """Conditional training: maximum likelihood of text in which each segment stands behind a control token that says
    whether it is good (Korbak et al. 2023).

        -log pi(token | tokens before it, control tokens among them)

    A segment of a score of at most the threshold stands behind `aligned_prefix`, others behind `misaligned_prefix`, and
    a share `drop_token_fraction` of them behind none. Samples are drawn behind `aligned_prefix`, and whoever uses an
    export must put it there. Use it first: in the paper it is the best of the six at little cost.

    Args:
        policy_target_token_logps: (T,) log-probabilities, in nats, of all tokens but the first of each block.

    Returns:
        losses (T,), one per token.
    """
    return mle(policy_target_token_logps)


def unlikelihood(
    policy_target_token_logps: Tensor,
    target_token_scores: Tensor,
    *,
    mode: str,
    threshold: float | None,
    alpha: float,
) -> Tensor:
    """Unlikelihood training (Welleck et al. 2019, arXiv 1908.04319; on documents Korbak et al. 2023).

    With m = 1 for tokens of a score of at most the threshold and 0 for others (mode threshold), or m = 1 - s (soft):

        -m log pi(token) - alpha (1 - m) log(1 - pi(token))

    Use it where bad text has to be pushed away and not only left out; it costs more of the language model than others.
    Threshold 0 is a threshold. (The original took it for none: its runs on PII and PEP8 were all but mle.) Soft mode
    needs scores between 0 and 1.

    Args:
        policy_target_token_logps: (T,) log-probabilities, in nats, of all tokens but the first of each block.
        target_token_scores: (T,) s of each token's segment; the higher, the worse.
        mode: threshold or soft.
        threshold: the highest score that is good; not read in soft mode.
        alpha: weight of the second term; 0.01 to 1.

    Returns:
        losses (T,), one per token.
    """
    logps, good = policy_target_token_logps, goodness(target_token_scores, mode, threshold)
    return -good * logps - alpha * (1 - good) * log_complements(logps)


def rwr(policy_target_token_logps: Tensor, target_token_scores: Tensor, *, beta: float, weight_max: float) -> Tensor:
    """Reward-weighted regression (Peters and Schaal 2007; on documents Korbak et al. 2023).

    With the reward R = -s of a token's segment:

        -min(exp(R / beta), weight_max) log pi(token)

    Use it where scores differ by as much as beta, about: a beta far above that makes it mle, and a run warns of it.
    (The original is its awr with a value that stays at -1/2, a factor exp(1 / (2 beta)) on all weights.)

    Args:
        policy_target_token_logps: (T,) log-probabilities, in nats, of all tokens but the first of each block.
        target_token_scores: (T,) s of each token's segment; the higher, the worse.
        beta: temperature of the weights, in units of the score; 0.001 to 10.
        weight_max: the highest weight.

    Returns:
        losses (T,), one per token.
    """
    weights = exponential_weights(-target_token_scores, beta, weight_max)
    return -weights * policy_target_token_logps


def awr(
    policy_target_token_logps: Tensor,
    policy_target_token_values: Tensor,
    target_token_scores: Tensor,
    *,
    alpha: float,
    beta: float,
    weight_max: float,
) -> Tensor:
    """Advantage-weighted regression (Peng et al. 2019, arXiv 1910.00177; on documents Korbak et al. 2023).

    With the reward R = -s of a token's segment and the value V that a head predicts before the token:

        -alpha min(exp((R - V) / beta), weight_max) log pi(token) + (1 - alpha) (R - V)^2

    The weight has no slope in V; the second term has, and moves the whole model unless `value_detached`. Use it as rwr,
    where what is bad depends on the place and not on the text alone.

    Args:
        policy_target_token_logps: (T,) log-probabilities, in nats, of all tokens but the first of each block.
        policy_target_token_values: (T,) V before each token, in units of reward.
        target_token_scores: (T,) s of each token's segment; the higher, the worse.
        alpha: weight of the likelihood against the value's error; above 0 and below 1.
        beta: temperature of the weights, in units of the score; 0.001 to 10.
        weight_max: the highest weight.

    Returns:
        losses (T,), one per token.
    """
    rewards = -target_token_scores
    weights = exponential_weights(rewards - policy_target_token_values.detach(), beta, weight_max)
    errors = (rewards - policy_target_token_values) ** 2
    return -alpha * weights * policy_target_token_logps + (1 - alpha) * errors


def goodness(scores: Tensor, mode: str, threshold: float | None) -> Tensor:
    """m (T,) of `unlikelihood`: how much a token of these scores (T,) is to be likely, 1 for good and 0 for bad."""
    return (scores <= threshold).to(scores.dtype) if mode == "threshold" else 1 - scores


def log_complements(logps: Tensor) -> Tensor:
    """log(1 - p) (T,), in nats, of log-probabilities (T,)."""
    return (-torch.expm1(logps)).clamp(min=LEAST_COMPLEMENT).log()


def exponential_weights(advantages: Tensor, beta: float, weight_max: float) -> Tensor:
    """min(exp(A / beta), weight_max) of advantages (T,), in units of the score."""
    return (advantages / beta).clamp(max=math.log(weight_max)).exp()
