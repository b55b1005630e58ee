"""What rows say beside their responses, and the kinds of a loss's tensors that hold it; no numpy or torch here."""

from __future__ import annotations

FACTS = {"rewards": "reward", "groups": "group", "token_advantages": "advantage", "token_scores": "token_scores"}
"""Kind of a tensor, the last part of its name -> the attribute of `dataloaders.batches.Row` that it is made of."""
