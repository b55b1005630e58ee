"""Imitation of demonstrations."""

from __future__ import annotations

import torch


def sft(policy_target_token_logps: torch.Tensor) -> torch.Tensor:
    """Supervised fine-tuning: negative log-likelihood of each token of the target (maximum likelihood).

        -log pi(token | prompt, tokens before it)

    Use it on demonstrations, and to make the model that a loss with a reference starts from. The mean is over the
    tokens of the step.

    Args:
        policy_target_token_logps: (T,) log-probabilities, in nats, of all scored tokens.

    Returns:
        losses (T,), one per token.
    """
    return -policy_target_token_logps


def csft(policy_target_token_logps: torch.Tensor) -> torch.Tensor:
    """Conditional SFT: imitation of good and bad responses, each behind a control string c (Korbak et al. 2023, arXiv
    2302.08582; on feedback in HALOs, Ethayarajh et al. 2024, arXiv 2402.01306).

        -log pi(token | prompt, c, tokens before it)

    Use it where bad responses are worth learning from without pushing them away. (HALOs puts the string at the start of
    the response, where it is learned.) Sampling puts the control string of
    good responses at the end of each prompt, and so must whoever uses an exported model.

    Args:
        policy_target_token_logps: (T,) log-probabilities, in nats, of all scored tokens; c itself is not scored.

    Returns:
        losses (T,), one per token.
    """
    return sft(policy_target_token_logps)
