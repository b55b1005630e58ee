"""Losses on single responses with a thumb up or down."""

from __future__ import annotations

import torch


def kto(
    policy_chosen_logps: torch.Tensor,
    policy_rejected_logps: torch.Tensor,
    policy_KL_logps: torch.Tensor,
    reference_chosen_logps: torch.Tensor,
    reference_rejected_logps: torch.Tensor,
    reference_KL_logps: torch.Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv 2402.01306, equation 8; 7 in its first version).

    With r = log pi(y|x) - log pi_ref(y|x) and z = max(0, mean over mismatched pairs of r(x, y')), detached:

        desirable    lambda_D (1 - sigmoid(beta (r - z)))
        undesirable  lambda_U (1 - sigmoid(beta (z - r)))

    which is lambda_y - v(x, y) with the value function v of the paper.

    Args:
        policy_chosen_logps, reference_chosen_logps: (D,) log-probabilities, in nats, of the desirable responses.
        policy_rejected_logps, reference_rejected_logps: (U,) of the undesirable ones.
        policy_KL_logps, reference_KL_logps: (K,) of responses to other prompts, over the whole optimizer step.
        beta: how fast the value saturates.
        desirable_weight, undesirable_weight: lambda_D and lambda_U.

    Returns:
        losses (D + U,), desirable ones first; rewards beta * r of the desirable (D,) and undesirable (U,) responses,
        detached; the estimate z (), detached.
    """
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    kl = (policy_KL_logps - reference_KL_logps).mean().clamp(min=0).detach()
    losses = torch.cat(
        [
            desirable_weight * torch.sigmoid(-beta * (chosen - kl)),
            undesirable_weight * torch.sigmoid(-beta * (kl - rejected)),
        ]
    )
    return losses, beta * chosen.detach(), beta * rejected.detach(), kl
