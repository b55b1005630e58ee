"""Losses on pairs, compared with a reference model, that take the lengths of responses into account.

As in `trainers.losses.paired`: r(y) = log pi(y|x) - log pi_ref(y|x) in nats, y_w chosen, y_l rejected,
m = r(y_w) - r(y_l); |y| is the number of scored tokens.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from trainers.losses.paired import Output, dpo, ratios, with_rewards


def sigmoid_norm(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
) -> Output:
    """Length-normalized DPO (Lambert et al. 2024, "Tulu 3", arXiv 2411.15124, equation 6; TRL's `sigmoid_norm`).

        -log sigmoid(beta (r(y_w) / |y_w| - r(y_l) / |y_l|))

    Use it where DPO teaches long answers.

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: (B,)
            log-probabilities in nats.
        chosen_lengths, rejected_lengths: (B,) scored tokens of the responses.
        beta: strength of the pull towards the reference, for each token; 1 to 10 (5 in the paper).

    Returns:
        losses (B,); rewards beta r(y) / |y| of the chosen (B,) and rejected (B,) responses, detached.
    """
    chosen, rejected = ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    chosen, rejected = chosen / chosen_lengths, rejected / rejected_lengths
    return with_rewards(-F.logsigmoid(beta * (chosen - rejected)), chosen, rejected, beta)


def r_dpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
    length_alpha: float,
) -> Output:
    """DPO with a price on length (Park et al. 2024, "Disentangling length from quality", arXiv 2403.19159).

        -log sigmoid(beta m + alpha (|y_w| - |y_l|))

    It is DPO for the reward minus alpha |y|: a longer chosen response is explained by its length in part.
    Use it where DPO teaches long answers.

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: (B,)
            log-probabilities in nats.
        chosen_lengths, rejected_lengths: (B,) scored tokens of the responses.
        beta: strength of the pull towards the reference; 0.01 to 0.5.
        length_alpha: alpha, the price of a token, in units of reward; 0 (which is DPO) to 0.1.

    Returns:
        losses (B,); rewards beta r(y) of the chosen (B,) and rejected (B,) responses, detached.
    """
    chosen, rejected = ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    margins = beta * (chosen - rejected) + length_alpha * (chosen_lengths - rejected_lengths)
    return with_rewards(-F.logsigmoid(margins), chosen, rejected, beta)


def ld_dpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    policy_chosen_shared_logps: Tensor,
    policy_rejected_shared_logps: Tensor,
    reference_chosen_shared_logps: Tensor,
    reference_rejected_shared_logps: Tensor,
    *,
    beta: float,
    ld_alpha: float,
) -> Output:
    """Length-desensitized DPO (Liu et al. 2024, arXiv 2409.06411).

    Of each response, log-probabilities beyond the length of the shorter one count alpha times:

        -log sigmoid(beta m'),  r'(y) = r(y's first min(|y_w|, |y_l|) tokens) + alpha r(the rest)

    Use it where DPO teaches long answers, and what is wrong with a response is not at its end. The rest is discounted
    in policy and reference alike, as in TRL (LLaMA-Factory leaves the reference as it is).

    Args:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: (B,)
            log-probabilities in nats.
        policy_chosen_shared_logps, policy_rejected_shared_logps, reference_chosen_shared_logps,
            reference_rejected_shared_logps: (B,) those of the first min(|y_w|, |y_l|) scored tokens.
        beta: strength of the pull towards the reference; 0.01 to 0.5.
        ld_alpha: alpha, what the rest counts; 0 (not at all) to 1 (which is DPO).

    Returns:
        losses (B,); rewards beta r'(y) of the chosen (B,) and rejected (B,) responses, detached.
    """
    pairs = (
        (policy_chosen_logps, policy_chosen_shared_logps),
        (policy_rejected_logps, policy_rejected_shared_logps),
        (reference_chosen_logps, reference_chosen_shared_logps),
        (reference_rejected_logps, reference_rejected_shared_logps),
    )
    return dpo(*(ld_alpha * whole + (1 - ld_alpha) * shared for whole, shared in pairs), beta=beta)
