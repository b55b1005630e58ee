"""Imitation of demonstrations."""

from __future__ import annotations

import torch


def sft(policy_target_token_logps: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each token of the target (maximum likelihood).

    Args:
        policy_target_token_logps: (T,) log-probabilities, in nats, of all scored tokens.

    Returns:
        losses (T,), one per token.
    """
    return -policy_target_token_logps
