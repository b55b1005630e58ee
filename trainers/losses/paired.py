"""Losses of the margin between a preferred and a dispreferred response, each compared with a reference model.

Throughout, r(y) = log pi(y|x) - log pi_ref(y|x) in nats, y_w is the preferred (chosen) and y_l the dispreferred
(rejected) response, and m = r(y_w) - r(y_l).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

Output = tuple[Tensor, Tensor, Tensor]
"""losses (B,), and the rewards beta r(y) of the chosen (B,) and the rejected (B,) responses, detached."""

LARGEST_EXPONENT = 80.0
"""Near where exp leaves float32 (88.7), and the value that TRL takes: what grows so fast is flat from there on."""


def ratios(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
) -> tuple[Tensor, Tensor]:
    """r(y_w) and r(y_l), each (B,), in nats."""
    return policy_chosen_logps - reference_chosen_logps, policy_rejected_logps - reference_rejected_logps


def with_rewards(losses: Tensor, chosen: Tensor, rejected: Tensor, beta: float = 1.0) -> Output:
    """Losses (B,) with the rewards beta r of both responses, detached."""
    return losses, beta * chosen.detach(), beta * rejected.detach()


def dpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
) -> Output:
    """Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290, equation 7).

        -log sigmoid(beta m)

    Use it as the first thing to try on pairs.

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: (B,)
            log-probabilities, in nats, of the preferred (chosen) and dispreferred (rejected) responses.
        beta: strength of the pull towards the reference; 0.01 to 0.5.

    Returns:
        losses (B,); rewards beta r(y) of the chosen (B,) and rejected (B,) responses, detached.
    """
    chosen, rejected = ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    return with_rewards(-F.logsigmoid(beta * (chosen - rejected)), chosen, rejected, beta)


def cdpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
    epsilon: float,
) -> Output:
    """Conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences and relationship to IPO", equation 3).

        -(1 - epsilon) log sigmoid(beta m) - epsilon log sigmoid(-beta m)

    Use it where a share epsilon of the preferences is wrong: m then stops at log((1 - epsilon) / epsilon) / beta.
    (TRL 1.x takes `label_smoothing` for its sigmoid loss and does nothing with it.)

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: (B,); see `dpo`.
        beta: strength of the pull towards the reference; 0.01 to 0.5.
        epsilon: share of preferences that are wrong; 0 (which is DPO) to below 0.5.

    Returns:
        as `dpo`.
    """
    chosen, rejected = ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    margins = beta * (chosen - rejected)
    losses = -(1 - epsilon) * F.logsigmoid(margins) - epsilon * F.logsigmoid(-margins)
    return with_rewards(losses, chosen, rejected, beta)


def robust(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
    epsilon: float,
) -> Output:
    """Provably robust DPO (Chowdhury et al. 2024, arXiv 2403.00409, the loss of rDPO).

        (-(1 - epsilon) log sigmoid(beta m) + epsilon log sigmoid(-beta m)) / (1 - 2 epsilon)

    Use it where labels are flipped at random at a known rate: in expectation over the flips it is DPO on clean labels.
    It has no lower bound, so watch the margins.

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: (B,); see `dpo`.
        beta: strength of the pull towards the reference; 0.01 to 0.5.
        epsilon: probability that a label is flipped; 0 (which is DPO) to below 0.5.

    Returns:
        as `dpo`.
    """
    chosen, rejected = ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    margins = beta * (chosen - rejected)
    losses = (epsilon * F.logsigmoid(-margins) - (1 - epsilon) * F.logsigmoid(margins)) / (1 - 2 * epsilon)
    return with_rewards(losses, chosen, rejected, beta)


def exo_pair(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
    smoothing: float,
) -> Output:
    """Efficient exact optimization on pairs (Ji et al. 2024, arXiv 2402.00856, equation 16).

    The divergence KL(p || q) of p = (sigmoid(beta m), sigmoid(-beta m)) from q = (1 - smoothing, smoothing):

        p_w (log p_w - log(1 - smoothing)) + p_l (log p_l - log smoothing)

    Use it where DPO's mass-covering forward KL spreads the policy too wide: this one seeks modes. Its slope vanishes
    for pairs that are far on the wrong side.

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: (B,); see `dpo`.
        beta: strength of the pull towards the reference; 0.01 to 0.5.
        smoothing: what the labels leave to the rejected response; above 0, 1e-3 in the paper.

    Returns:
        as `dpo`.
    """
    chosen, rejected = ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    margins = beta * (chosen - rejected)
    log_p, log_q = F.logsigmoid(margins), F.logsigmoid(-margins)
    losses = log_p.exp() * (log_p - math.log1p(-smoothing)) + log_q.exp() * (log_q - math.log(smoothing))
    return with_rewards(losses, chosen, rejected, beta)


def hinge(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
) -> Output:
    """Hinge loss on normalized likelihoods (Liu et al. 2023, arXiv 2309.06657: SLiC's hinge in RSO's terms).

        max(0, 1 - beta m)

    Use it where pairs that are told apart already should be left alone: beyond a margin of 1 / beta there is no slope.

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: (B,); see `dpo`.
        beta: the inverse of the margin that is asked for, in 1 / nats; 0.01 to 1.

    Returns:
        as `dpo`.
    """
    chosen, rejected = ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    return with_rewards(F.relu(1 - beta * (chosen - rejected)), chosen, rejected, beta)


def ipo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    tau: float,
    length_normalize: bool,
) -> Output:
    """Identity preference optimization (Azar et al. 2023, arXiv 2310.12036, equation 17).

        (m - 1 / (2 tau))^2

    Use it where preferences are almost deterministic, and DPO's margins grow without end. The paper sums log-ratios
    over a response, and so does OpenRLHF; TRL, HALOs and LLaMA-Factory take their mean over its tokens, which asks of
    every token what the paper asks of the response: choose tau accordingly. (TRL says that the paper's authors took the
    mean as well.)

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: (B,); see `dpo`.
        chosen_lengths, rejected_lengths: (B,) scored tokens of the responses.
        tau: strength of the pull towards the reference; 0.01 to 1.
        length_normalize: true divides each r(y) by the number of tokens of y; false is the paper's formula.

    Returns:
        losses (B,); rewards tau r(y) of the chosen (B,) and rejected (B,) responses, detached.
    """
    chosen, rejected = ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    if length_normalize:
        chosen, rejected = chosen / chosen_lengths, rejected / rejected_lengths
    return with_rewards((chosen - rejected - 1 / (2 * tau)) ** 2, chosen, rejected, tau)


def discopop(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
    tau: float,
) -> Output:
    """Log-ratio modulated loss of DiscoPOP (Lu et al. 2024, arXiv 2406.08414, equation 5).

    With g = sigmoid(beta m / tau), a blend of the logistic and the exponential loss:

        -(1 - g) log sigmoid(beta m) + g exp(-beta m)

    Use it to try a loss that was found by search. It is not convex: where policy and reference are the same it rises
    with the margin, up to a small bump, and falls behind it; with a small beta the policy may stay before the bump.

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: (B,); see `dpo`.
        beta: strength of the pull towards the reference; 0.025 to 0.5 (0.05 where it was found).
        tau: how wide the blend is; 0.01 to 1, 0.05 in the paper.

    Returns:
        as `dpo`.
    """
    chosen, rejected = ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    margins = beta * (chosen - rejected)
    # g exp(-beta m) as one exponential: for very negative margins g is 0 where exp(-beta m) alone is infinite.
    exponential = torch.exp(F.logsigmoid(margins / tau) - margins)
    losses = exponential - torch.sigmoid(-margins / tau) * F.logsigmoid(margins)
    return with_rewards(losses, chosen, rejected, beta)


def wpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    policy_chosen_alignments: Tensor,
    policy_rejected_alignments: Tensor,
    *,
    beta: float,
) -> Output:
    """Weighted preference optimization (Zhou et al. 2024, arXiv 2406.11827, equations 1 and 2, with
    sampled alignment).

    With the weight w(y) = exp(mean over the tokens of y of log(pi(token) / sum over the vocabulary of pi^2)), detached:

        -w(y_w) w(y_l) log sigmoid(beta m)

    Use it on pairs that another model wrote: those that the policy could have written count more. (TRL before 1.16 held
    the product of the weights below 1; the paper does not.)

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: (B,); see `dpo`.
        policy_chosen_alignments, policy_rejected_alignments: (B,) log w(y), constants.
        beta: strength of the pull towards the reference; 0.01 (in the paper) to 0.5.

    Returns:
        as `dpo`.
    """
    losses, *rewards = dpo(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta=beta
    )
    return losses * (policy_chosen_alignments + policy_rejected_alignments).detach().exp(), *rewards


def f_dpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
    divergence: str,
    divergence_alpha: float,
) -> Output:
    """DPO under another divergence from the reference (Wang et al. 2023, arXiv 2309.16240).

    With u = exp(r(y)), which is pi / pi_ref:

        -log sigmoid(beta (f'(u_w) - f'(u_l)))

    where f'(u), up to a constant, is log u (reverse_kl, which is DPO), -1 / u (forward_kl), log(2 u / (1 + u)) (js)
    or (1 - u^-alpha) / alpha (alpha, between reverse KL at 0 and forward KL at 1).

    Use it to trade diversity for reward: forward KL keeps the most, reverse KL the least.
    (TRL's `f_alpha_divergence_coef` is 1 - alpha.)

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: (B,); see `dpo`.
        beta: strength of the pull towards the reference; 0.01 to 0.5.
        divergence: reverse_kl, forward_kl, js or alpha.
        divergence_alpha: of the alpha-divergence; above 0 and below 1.

    Returns:
        losses (B,); rewards beta f'(u) of the chosen (B,) and rejected (B,) responses, detached.

    Raises:
        ValueError: for a divergence of another name.
    """
    chosen, rejected = (
        _slope_of_divergence(r, divergence, divergence_alpha)
        for r in ratios(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    )
    return with_rewards(-F.logsigmoid(beta * (chosen - rejected)), chosen, rejected, beta)


def _slope_of_divergence(ratio: Tensor, divergence: str, alpha: float) -> Tensor:
    """f'(u) of log u (B,), shifted so that it is 0 where policy and reference are the same."""
    if divergence == "reverse_kl":
        return ratio
    if divergence == "js":
        return math.log(2) + F.logsigmoid(ratio)
    if divergence not in ("forward_kl", "alpha"):
        raise ValueError(f"loss.divergence={divergence}: choose reverse_kl, forward_kl, js or alpha.")
    power = 1.0 if divergence == "forward_kl" else alpha
    return -torch.expm1((-power * ratio).clamp(max=LARGEST_EXPONENT)) / power
