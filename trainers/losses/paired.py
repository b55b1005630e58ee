"""Losses on pairs of a preferred and a dispreferred response."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def dpo(
    policy_chosen_logps: torch.Tensor,
    policy_rejected_logps: torch.Tensor,
    reference_chosen_logps: torch.Tensor,
    reference_rejected_logps: torch.Tensor,
    *,
    beta: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290, equation 7).

    -log sigmoid(beta ((log pi(y_w|x) - log pi_ref(y_w|x)) - (log pi(y_l|x) - log pi_ref(y_l|x))))

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: (B,)
            log-probabilities, in nats, of the preferred (chosen) and dispreferred (rejected) responses.
        beta: strength of the pull towards the reference.

    Returns:
        losses (B,); rewards beta * (log pi - log pi_ref) of the chosen (B,) and rejected (B,) responses, detached.
    """
    chosen = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected = beta * (policy_rejected_logps - reference_rejected_logps)
    return -F.logsigmoid(chosen - rejected), chosen.detach(), rejected.detach()
