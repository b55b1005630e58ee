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


class LinearValueHead(nn.Module):
    """One linear layer without bias that begins at zero, in float32 (the head of Korbak et al. 2023, arXiv 2302.08582).

    Args:
        hidden_size: of the policy.
        sigmoid: values are -sigmoid of the layer, between -1 and 0, as rewards are whose scores are probabilities.
        detached: the policy is not moved by how its value is learned.
    """

    def __init__(self, hidden_size: int, sigmoid: bool, detached: bool):
        super().__init__()
        self.layer = nn.Linear(hidden_size, 1, bias=False)
        nn.init.zeros_(self.layer.weight)
        self.sigmoid, self.detached = sigmoid, detached

    def forward(self, hidden: torch.Tensor, logits: torch.Tensor | None = None) -> torch.Tensor:
        """(N, hidden_size) to values (N,), in units of reward; logits say nothing of it."""
        hidden = (hidden.detach() if self.detached else hidden).to(self.layer.weight.dtype)
        values = self.layer(hidden)[:, 0]
        return -values.sigmoid() if self.sigmoid else values
