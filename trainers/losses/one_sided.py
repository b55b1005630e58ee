"""Losses on pairs in which each response is judged by itself, or held to something beside the margin.

As in `trainers.losses.paired`: r(y) = log pi(y|x) - log pi_ref(y|x) in nats, y_w chosen, y_l rejected,
m = r(y_w) - r(y_l).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.losses.paired import Output, ratios, with_rewards


def nca_pair(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
) -> Output:
    """Noise contrastive alignment on pairs (Chen et al. 2024, arXiv 2402.05369, the pairwise case of NCA).

        -log sigmoid(beta r(y_w)) - 1/2 log sigmoid(-beta r(y_w)) - 1/2 log sigmoid(-beta r(y_l))

    Use it where DPO lowers the likelihood of chosen responses: here r(y_w) is drawn to log 2 / beta, and held there.

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: (B,)
            log-probabilities in nats.
        beta: strength of the pull towards the reference; 0.01 to 0.5.

    Returns:
        losses (B,); rewards beta r(y) of the chosen (B,) and rejected (B,) responses, detached.
    """
    chosen, rejected = ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    losses = -F.logsigmoid(beta * chosen) - 0.5 * F.logsigmoid(-beta * chosen) - 0.5 * F.logsigmoid(-beta * rejected)
    return with_rewards(losses, chosen, rejected, beta)


def bco_pair(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    shift: Tensor,
    *,
    beta: float,
) -> Output:
    """Binary classifier optimization on pairs (Jung et al. 2024, arXiv 2404.04656).

    With the reward shift delta = (mean reward of chosen + mean reward of rejected) / 2:

        -log sigmoid(beta r(y_w) - delta) - log sigmoid(-(beta r(y_l) - delta))

    Use it on pairs where the chosen response should become likelier and the rejected one less likely, not only their
    difference. (TRL 1.16 has no shift in its `bco_pair`: that is delta = 0.)

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: (B,)
            log-probabilities in nats.
        shift: () delta, a constant.
        beta: strength of the pull towards the reference; 0.01 to 0.5.

    Returns:
        losses (B,); rewards beta r(y) of the chosen (B,) and rejected (B,) responses, detached.
    """
    chosen, rejected = ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    losses = -F.logsigmoid(beta * chosen - shift) - F.logsigmoid(shift - beta * rejected)
    return with_rewards(losses, chosen, rejected, beta)


def sppo_hard(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
) -> Output:
    """Self-play preference optimization with certain wins (Wu et al. 2024, arXiv 2405.00675, equation 4.7).

        (r(y_w) - 1 / (2 beta))^2 + (r(y_l) + 1 / (2 beta))^2

    where the paper's eta is 1 / beta, and its P is 1 for the winner and 0 for the loser. Use it on pairs of the
    policy's own samples, in rounds.

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: (B,)
            log-probabilities in nats.
        beta: the inverse of eta; 0.001 (the paper's) to 0.5.

    Returns:
        losses (B,); rewards beta r(y) of the chosen (B,) and rejected (B,) responses, detached.
    """
    chosen, rejected = ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    half = 1 / (2 * beta)
    return with_rewards((chosen - half) ** 2 + (rejected + half) ** 2, chosen, rejected, beta)


def apo_zero(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
) -> Output:
    """Anchored preference optimization, zero (D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 7).

        1 - sigmoid(beta r(y_w)) + sigmoid(beta r(y_l))

    Use it where chosen responses are better than what the model writes: their likelihood rises, the others' falls.

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: (B,)
            log-probabilities in nats.
        beta: strength of the pull towards the reference; 0.01 to 0.5.

    Returns:
        losses (B,); rewards beta r(y) of the chosen (B,) and rejected (B,) responses, detached.
    """
    chosen, rejected = ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    return with_rewards(torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected), chosen, rejected, beta)


def apo_down(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
) -> Output:
    """Anchored preference optimization, down (D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 8).

        sigmoid(beta r(y_w)) + 1 - sigmoid(beta m)

    Use it where even chosen responses are worse than what the model writes: both fall, the rejected ones further.

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: (B,)
            log-probabilities in nats.
        beta: strength of the pull towards the reference; 0.01 to 0.5.

    Returns:
        losses (B,); rewards beta r(y) of the chosen (B,) and rejected (B,) responses, detached.
    """
    chosen, rejected = ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    losses = torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))
    return with_rewards(losses, chosen, rejected, beta)


def dpop(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
    lambda_coef: float,
) -> Output:
    """DPO-positive (Pal et al. 2024, "Smaug", arXiv 2402.13228).

        -log sigmoid(beta (m - lambda max(0, -r(y_w))))

    Use it where pairs differ in a few tokens, and DPO would make both less likely. Beta multiplies the penalty too.

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: (B,)
            log-probabilities in nats.
        beta: strength of the pull towards the reference; 0.01 to 0.5.
        lambda_coef: lambda, the price of a chosen response that became less likely; 0 (which is DPO) to 50 (in the
            paper).

    Returns:
        losses (B,); rewards beta r(y) of the chosen (B,) and rejected (B,) responses, detached.
    """
    chosen, rejected = ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    margins = chosen - rejected - lambda_coef * F.relu(-chosen)
    return with_rewards(-F.logsigmoid(beta * margins), chosen, rejected, beta)


def chosen_nll(policy_chosen_logps: Tensor, chosen_lengths: Tensor, *, nll_reduction: str) -> Tensor:
    """Negative log-likelihood of the chosen response, to be mixed with losses of preference.

        -log pi(y_w|x), or its mean over the tokens of y_w

    Args:
        policy_chosen_logps: (B,) log-probabilities in nats.
        chosen_lengths: (B,) scored tokens.
        nll_reduction: sum or mean, over the tokens of a response.

    Returns:
        losses (B,).

    Raises:
        ValueError: for another reduction.
    """
    if nll_reduction not in ("sum", "mean"):
        raise ValueError(f"nll_reduction={nll_reduction}: choose sum or mean.")
    return -policy_chosen_logps / (chosen_lengths if nll_reduction == "mean" else 1)
