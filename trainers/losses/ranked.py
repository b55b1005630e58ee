"""Losses on any number of ranked responses to a prompt."""

from __future__ import annotations

import torch
from torch import Tensor


def rrhf(
    policy_target_logps: Tensor,
    target_lengths: Tensor,
    target_rewards: Tensor,
    target_groups: Tensor,
    *,
    rank_weight: float,
    length_penalty: float,
    sft_reduction: str,
) -> Tensor:
    """Rank responses to align human feedback, RRHF (Yuan et al. 2023, arXiv 2304.05302, equations 1 to 5).

    With p_i = log pi(y_i|x) / |y_i|, and for each prompt the best response b:

        rank_weight * (sum over r_i < r_j of max(0, p_i - p_j)) - log pi(y_b|x)

    Use it on prompts with several scored responses of any origin; it needs no reference.
    The paper sums the log-likelihood of the best response and adds the two parts without a weight; its released code
    takes a mean over the tokens of the padded row, and weighs the ranking by 100 unless told otherwise.

    Args:
        policy_target_logps: (N,) log-probabilities, in nats, of all responses of the step.
        target_lengths: (N,) their scored tokens.
        target_rewards: (N,) what they are worth.
        target_groups: (N,) alike for the responses to one prompt.
        rank_weight: weight of the ranking; 1 in the paper.
        length_penalty: the power of |y| that log-probabilities are divided by; 0 to 1, 1 in the paper.
        sft_reduction: sum (the paper's) or mean, over the tokens of the best response.

    Returns:
        losses (N,): a prompt's ranking terms stand at the worse of the two, its imitation at the best response. They
        are scaled so that their mean over the responses is the mean over the prompts.

    Raises:
        ValueError: for another reduction.
    """
    if sft_reduction not in ("sum", "mean"):
        raise ValueError(f"loss.sft_reduction={sft_reduction}: choose sum or mean.")
    scores = policy_target_logps / target_lengths**length_penalty
    together = target_groups[:, None] == target_groups[None, :]
    worse = together & (target_rewards[:, None] < target_rewards[None, :])
    ranking = torch.where(worse, (scores[:, None] - scores[None, :]).clamp(min=0), 0.0).sum(dim=1)
    numbers = torch.arange(len(scores), device=scores.device)
    better = worse | (together & (target_rewards[:, None] == target_rewards[None, :]) & (numbers[:, None] > numbers))
    best = ~better.any(dim=1)
    imitation = -policy_target_logps / (target_lengths if sft_reduction == "mean" else 1)
    losses = rank_weight * ranking + torch.where(best, imitation, 0.0)
    return losses * (len(scores) / max(1, int(best.sum())))
