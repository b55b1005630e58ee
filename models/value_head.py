"""What a policy's hidden states say a response will be worth."""

from __future__ import annotations

import torch
from torch import nn


class ValueHead(nn.Module):
    """Two hidden layers on detached hidden states, in float32: a policy is not moved by how its value is learned.

    Args:
        hidden_size: of the policy.
        seed: of the weights.
    """

    def __init__(self, hidden_size: int, seed: int):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, hidden_size), nn.ReLU(),
                nn.Linear(hidden_size, 1),
            )  # fmt: skip

    def forward(self, hidden: torch.Tensor, logits: torch.Tensor | None = None) -> torch.Tensor:
        """(N, hidden_size) to values (N,), in units of reward; logits say nothing of it."""
        return self.layers(hidden.detach().to(self.layers[0].weight.dtype))[:, 0]
