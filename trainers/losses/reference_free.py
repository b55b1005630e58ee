"""Losses on pairs that use no reference model.

l(y) = log pi(y|x) in nats, |y| the number of scored tokens, y_w chosen, y_l rejected.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.losses.one_sided import chosen_nll
from trainers.losses.paired import Output, with_rewards

LARGEST_MEAN = -1e-6
"""In nats: of a response that is certain the odds are infinite, so its mean log-probability is held below 0."""


def simpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
    gamma_beta_ratio: float,
) -> Output:
    """Simple preference optimization (Meng et al. 2024, arXiv 2405.14734, equation 6).

        -log sigmoid(beta (l(y_w) / |y_w| - l(y_l) / |y_l| - gamma / beta))

    Use it where a reference model does not fit into memory, or likelihood and reward should agree when the model
    generates.

    Args:
        policy_chosen_logps, policy_rejected_logps: (B,) log-probabilities in nats.
        chosen_lengths, rejected_lengths: (B,) scored tokens of the responses.
        beta: scale of the reward; 2 to 10.
        gamma_beta_ratio: gamma / beta, the margin that is asked for in nats a token; 0 to 1.

    Returns:
        losses (B,); rewards beta l(y) / |y| of the chosen (B,) and rejected (B,) responses, detached.
    """
    chosen, rejected = policy_chosen_logps / chosen_lengths, policy_rejected_logps / rejected_lengths
    return with_rewards(-F.logsigmoid(beta * (chosen - rejected - gamma_beta_ratio)), chosen, rejected, beta)


def slic(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
    lambda_coef: float,
    length_normalize: bool,
) -> Output:
    """Sequence likelihood calibration, SLiC-HF (Zhao et al. 2023, arXiv 2305.10425).

        max(0, beta - l(y_w) + l(y_l)) - lambda l(y_w)

    Use it for a calibration that leaves pairs alone once they are beta apart, with imitation of y_w to hold it.
    The paper regularizes by a target of its own, usually that of supervised fine-tuning; here it is the chosen
    response, as in HALOs, whose later version adds the likelihood of single tokens to the hinge of whole responses.

    Args:
        policy_chosen_logps, policy_rejected_logps: (B,) log-probabilities in nats.
        chosen_lengths, rejected_lengths: (B,) scored tokens of the responses.
        beta: the margin, in nats; 0.1 to 10.
        lambda_coef: lambda, the weight of imitation; 0 to 1.
        length_normalize: true takes means over tokens in the place of l; false is the paper's formula.

    Returns:
        losses (B,); rewards l(y) of the chosen (B,) and rejected (B,) responses, detached.
    """
    chosen, rejected = policy_chosen_logps, policy_rejected_logps
    if length_normalize:
        chosen, rejected = chosen / chosen_lengths, rejected / rejected_lengths
    return with_rewards(F.relu(beta - chosen + rejected) - lambda_coef * chosen, chosen, rejected)


def orpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    OR_scale: float,
) -> Output:
    """Odds ratio preference optimization (Hong et al. 2024, arXiv 2403.07691, equations 6 and 7).

    With the mean p(y) = l(y) / |y| and log odds(y) = p(y) - log(1 - exp p(y)):

        -p(y_w) - lambda log sigmoid(log odds(y_w) - log odds(y_l))

    Use it to learn a format and a preference at once, from a base model, without a reference. The likelihood is that of
    the response alone, a mean for each; the authors' code and TRL take that of prompt and response, TRL over the
    tokens of a batch.

    Args:
        policy_chosen_logps, policy_rejected_logps: (B,) log-probabilities in nats.
        chosen_lengths, rejected_lengths: (B,) scored tokens of the responses.
        OR_scale: lambda, the weight of the odds ratio; 0.05 to 1 (0.1 to 0.25 in the paper; 0.25 in HALOs).

    Returns:
        losses (B,); rewards lambda p(y) of the chosen (B,) and rejected (B,) responses, detached.
    """
    chosen, rejected = policy_chosen_logps / chosen_lengths, policy_rejected_logps / rejected_lengths
    log_odds = _log_odds(chosen) - _log_odds(rejected)
    return with_rewards(-chosen - OR_scale * F.logsigmoid(log_odds), chosen, rejected, OR_scale)


def _log_odds(logps: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p (B,)."""
    logps = logps.clamp(max=LARGEST_MEAN)
    return logps - torch.log(-torch.expm1(logps))


def cpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    *,
    beta: float,
    cpo_alpha: float,
    nll_reduction: str,
) -> Output:
    """Contrastive preference optimization (Xu et al. 2024, arXiv 2401.08417).

        -log sigmoid(beta (l(y_w) - l(y_l))) - alpha l(y_w)

    Use it where both responses are good, the rejected one merely adequate (translations, say), and no reference model
    should be kept.
    The paper takes the likelihood of the whole response, TRL its mean over the tokens of the batch.

    Args:
        policy_chosen_logps, policy_rejected_logps: (B,) log-probabilities in nats.
        chosen_lengths: (B,) scored tokens of the chosen responses.
        beta: scale of the margin; 0.05 to 0.5.
        cpo_alpha: alpha, the weight of imitation; 1 in the paper.
        nll_reduction: sum (the paper's) or mean, over the tokens of a response.

    Returns:
        losses (B,); rewards beta l(y) of the chosen (B,) and rejected (B,) responses, detached.
    """
    margins = beta * (policy_chosen_logps - policy_rejected_logps)
    imitation = chosen_nll(policy_chosen_logps, chosen_lengths, nll_reduction=nll_reduction)
    losses = -F.logsigmoid(margins) + cpo_alpha * imitation
    return with_rewards(losses, policy_chosen_logps, policy_rejected_logps, beta)
