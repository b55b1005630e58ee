"""Losses on single responses with a thumb up (desirable, "chosen") or down (undesirable, "rejected").

r(y) = log pi(y|x) - log pi_ref(y|x) in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

WithEstimate = tuple[Tensor, Tensor, Tensor, Tensor]
"""losses (D + U,), rewards of the desirable (D,) and the undesirable (U,) responses, and the estimate z ()."""


def kto(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    policy_KL_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    reference_KL_logps: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> WithEstimate:
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv 2402.01306, equation 8; 7 in its first version).

    With z = max(0, mean over mismatched pairs of r(x, y')), detached:

        desirable    lambda_D (1 - sigmoid(beta (r - z)))
        undesirable  lambda_U (1 - sigmoid(beta (z - r)))

    which is lambda_y - v(x, y) with the value function v of the paper. z is over the whole optimizer step (TRL takes
    means of micro-batches). Use it wherever feedback is a thumb and not a pair, or pairs are noisy; on clean pairs DPO
    may be better.

    Args:
        policy_chosen_logps, reference_chosen_logps: (D,) log-probabilities, in nats, of the desirable responses.
        policy_rejected_logps, reference_rejected_logps: (U,) of the undesirable ones.
        policy_KL_logps, reference_KL_logps: (K,) of responses to other prompts, over the whole optimizer step.
        beta: how fast the value saturates; 0.01 to 0.5.
        desirable_weight: lambda_D; with n_D desirable and n_U undesirable responses, lambda_D n_D between 1 and 3/2
            times lambda_U n_U (4/3 in the paper's first version).
        undesirable_weight: lambda_U.

    Returns:
        losses (D + U,), desirable ones first; rewards beta r of the desirable (D,) and undesirable (U,) responses,
        detached; the estimate z (), detached.
    """
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    kl = _estimate(policy_KL_logps, reference_KL_logps)
    losses = torch.cat(
        [
            desirable_weight * torch.sigmoid(-beta * (chosen - kl)),
            undesirable_weight * torch.sigmoid(-beta * (kl - rejected)),
        ]
    )
    return losses, beta * chosen.detach(), beta * rejected.detach(), kl


def kto_logsigmoid(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    policy_KL_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    reference_KL_logps: Tensor,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> WithEstimate:
    """KTO with the logarithm of the sigmoid (of HALOs' legacy branch; Ethayarajh et al. 2024 for z).

        desirable    -lambda_D log sigmoid(beta (r - z))
        undesirable  -lambda_U log sigmoid(beta (z - r))

    with z = max(0, mean over mismatched pairs of r(x, y')). The slope does not vanish for responses that are far on the
    wrong side. Use it to see whether KTO's saturation, by which it ignores what looks like noise, helps: in the paper
    it did.

    Args:
        policy_chosen_logps, reference_chosen_logps: (D,) log-probabilities, in nats, of the desirable responses.
        policy_rejected_logps, reference_rejected_logps: (U,) of the undesirable ones.
        policy_KL_logps, reference_KL_logps: (K,) of responses to other prompts, over the whole optimizer step.
        beta: scale of the rewards; 0.01 to 0.5.
        desirable_weight: lambda_D.
        undesirable_weight: lambda_U.

    Returns:
        as `kto`.
    """
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    kl = _estimate(policy_KL_logps, reference_KL_logps)
    losses = torch.cat(
        [
            -desirable_weight * F.logsigmoid(beta * (chosen - kl)),
            -undesirable_weight * F.logsigmoid(beta * (kl - rejected)),
        ]
    )
    return losses, beta * chosen.detach(), beta * rejected.detach(), kl


def kto_simple(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """KTO as it was first released (Ethayarajh et al. 2023, technical report of HALOs, December 2023).

    With K_D = max(0, mean of r over the desirable responses of the step) and K_U that over the undesirable ones, both
    with their gradients:

        desirable    1 - sigmoid(beta (r - K_U))
        undesirable  1 - sigmoid(beta (K_D - r))

    The two means couple the examples of a step. (The example of a loss in a later README of HALOs exchanges
    them.)
    Use it to compare with the first release, which took the two means over each GPU's part of a step; `kto` is the more
    stable one.

    Args:
        policy_chosen_logps, reference_chosen_logps: (D,) log-probabilities, in nats, of the step's desirable responses.
        policy_rejected_logps, reference_rejected_logps: (U,) of its undesirable ones.
        beta: how fast the value saturates; 0.01 to 0.5.

    Returns:
        losses (D + U,), desirable ones first; rewards beta r of the desirable (D,) and undesirable (U,) responses,
        detached.
    """
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    of_chosen, of_rejected = (_mean(one).clamp(min=0) for one in (chosen, rejected))
    losses = torch.cat([torch.sigmoid(-beta * (chosen - of_rejected)), torch.sigmoid(-beta * (of_chosen - rejected))])
    return losses, beta * chosen.detach(), beta * rejected.detach()


def kto_zero(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """KTO with an estimate of 0 (of HALOs; it is also APO-zero on single responses, arXiv 2408.06266).

        desirable    1 - sigmoid(beta r)
        undesirable  sigmoid(beta r)

    Use it right after SFT on the same data, or where mismatched responses are too dear: it takes two forward passes
    less than KTO, whose paper found it worse.

    Args:
        policy_chosen_logps, reference_chosen_logps: (D,) log-probabilities, in nats, of the desirable responses.
        policy_rejected_logps, reference_rejected_logps: (U,) of the undesirable ones.
        beta: how fast the value saturates; 0.01 to 0.5.

    Returns:
        losses (D + U,), desirable ones first; rewards beta r of the desirable (D,) and undesirable (U,) responses,
        detached.
    """
    return apo_zero_unpaired(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps,
        beta=beta, desirable_weight=1.0, undesirable_weight=1.0,
    )  # fmt: skip


def apo_zero_unpaired(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Anchored preference optimization, zero, on single responses (D'Oosterlinck et al. 2024, arXiv 2408.06266).

    Their zero loss with one response at a time, as in TRL:

        desirable    lambda_D (1 - sigmoid(beta r))
        undesirable  lambda_U sigmoid(beta r)

    Use it where desirable responses are better than what the model writes.

    Args:
        policy_chosen_logps, reference_chosen_logps: (D,) log-probabilities, in nats, of the desirable responses.
        policy_rejected_logps, reference_rejected_logps: (U,) of the undesirable ones.
        beta: strength of the pull towards the reference; 0.01 to 0.5.
        desirable_weight: lambda_D.
        undesirable_weight: lambda_U.

    Returns:
        losses (D + U,), desirable ones first; rewards beta r of the desirable (D,) and undesirable (U,) responses,
        detached.
    """
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    losses = torch.cat(
        [desirable_weight * torch.sigmoid(-beta * chosen), undesirable_weight * torch.sigmoid(beta * rejected)]
    )
    return losses, beta * chosen.detach(), beta * rejected.detach()


def bco(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    shift: Tensor,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Binary classifier optimization (Jung et al. 2024, arXiv 2404.04656).

    With the reward shift delta = (mean reward of desirable + mean reward of undesirable) / 2:

        desirable    -lambda_D log sigmoid(beta r - delta)
        undesirable  -lambda_U log sigmoid(-(beta r - delta))

    Use it on thumbs where KTO saturates too early. The underlying distribution matching of the paper's first version is
    a weight for each response, which data may bring (`weight`).

    Args:
        policy_chosen_logps, reference_chosen_logps: (D,) log-probabilities, in nats, of the desirable responses.
        policy_rejected_logps, reference_rejected_logps: (U,) of the undesirable ones.
        shift: () delta, a constant.
        beta: strength of the pull towards the reference; 0.01 to 0.5.
        desirable_weight: lambda_D.
        undesirable_weight: lambda_U.

    Returns:
        losses (D + U,), desirable ones first; rewards beta r of the desirable (D,) and undesirable (U,) responses,
        detached.
    """
    chosen = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected = beta * (policy_rejected_logps - reference_rejected_logps)
    losses = torch.cat(
        [-desirable_weight * F.logsigmoid(chosen - shift), -undesirable_weight * F.logsigmoid(shift - rejected)]
    )
    return losses, chosen.detach(), rejected.detach()


def _estimate(policy_KL_logps: Tensor, reference_KL_logps: Tensor) -> Tensor:
    """z (), detached: the mean log-ratio of mismatched responses (K,), not below 0.

    Raises:
        ValueError: there are none, and a mean of nothing is no number.
    """
    if not len(policy_KL_logps):
        raise ValueError(
            "policy_KL_logps is empty: z is a mean over responses to other prompts, and the step has none. Give some, "
            "by a DataLoader whose rows have the role KL, or use loss=kto-zero, whose z is 0."
        )
    return (policy_KL_logps - reference_KL_logps).mean().clamp(min=0).detach()


def _mean(values: Tensor) -> Tensor:
    """The mean; 0 of none."""
    return values.sum() / max(1, len(values))
