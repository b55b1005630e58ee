"""Losses that compare the distributions of rewards in a step, not pair by pair: they couple its examples.

As in `trainers.losses.paired`: r(y) = log pi(y|x) - log pi_ref(y|x) in nats, y_w chosen, y_l rejected.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from trainers.losses.paired import Output, ratios, with_rewards


def aot(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
    epsilon: float,
) -> Output:
    """Alignment by optimal transport on pairs (Melnyk et al. 2024, arXiv 2406.05882, the paired case).

    The margins of the policy are to dominate those of the reference: with both sorted over the step, and d their
    difference rank by rank,

        -(1 - epsilon) log sigmoid(beta d) - epsilon log sigmoid(-beta d)

    Use it where single pairs are noisy and the distribution of margins is what should move. The loss of a rank is that
    of no single pair, so weights of examples are matched with ranks: leave them at 1.

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: (B,)
            log-probabilities, in nats, of all examples of the step.
        beta: strength of the pull towards the reference; 0.01 to 0.5.
        epsilon: share of preferences that are wrong; 0 to below 0.5.

    Returns:
        losses (B,), by rank; rewards beta r(y) of the chosen (B,) and rejected (B,) responses, detached.
    """
    chosen, rejected = ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    policy_margins = (policy_chosen_logps - policy_rejected_logps).sort().values
    reference_margins = (reference_chosen_logps - reference_rejected_logps).sort().values
    losses = _dominance(beta * (policy_margins - reference_margins), epsilon)
    return with_rewards(losses, chosen, rejected, beta)


def aot_unpaired(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
    epsilon: float,
) -> Output:
    """Alignment by optimal transport, unpaired (Melnyk et al. 2024, arXiv 2406.05882, the unpaired case).

    The rewards of chosen responses are to dominate those of rejected ones: with both sorted over the step, and d the
    difference of r(y_w) and r(y_l) rank by rank,

        -(1 - epsilon) log sigmoid(beta d) - epsilon log sigmoid(-beta d)

    Use it where which response belongs to which does not matter. Leave weights of examples at 1: see `aot`.

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: (B,)
            log-probabilities, in nats, of all examples of the step.
        beta: strength of the pull towards the reference; 0.01 to 0.5.
        epsilon: share of preferences that are wrong; 0 to below 0.5.

    Returns:
        losses (B,), by rank; rewards beta r(y) of the chosen (B,) and rejected (B,) responses, detached.
    """
    chosen, rejected = ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    losses = _dominance(beta * (chosen.sort().values - rejected.sort().values), epsilon)
    return with_rewards(losses, chosen, rejected, beta)


def _dominance(differences: Tensor, epsilon: float) -> Tensor:
    return -(1 - epsilon) * F.logsigmoid(differences) - epsilon * F.logsigmoid(-differences)
