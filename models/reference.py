"""The reference model: frozen, loaded only when it is asked for something new, every value computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from models.logprobs import ScoredSequence, token_logps


class Reference:
    """Token log-probabilities under the weights that the policy started from.

    Args:
        load: gives the model; called at the first sequence that is not known yet.
        dtype: compute dtype.
    """

    def __init__(self, load: Callable[[], PreTrainedModel], dtype: torch.dtype = torch.float32):
        self._load = load
        self._model: PreTrainedModel | None = None
        self._dtype = dtype
        self._known: dict[bytes, torch.Tensor] = {}
        self.hits = 0
        self.misses = 0

    @property
    def model(self) -> PreTrainedModel:
        """The reference model itself, without gradients."""
        if self._model is None:
            self._model = self._load().requires_grad_(False).eval()
        return self._model

    def known(self, sequence: ScoredSequence) -> bool:
        """Whether the values of a sequence are there already."""
        return _key(sequence) in self._known

    @torch.no_grad()
    def compute(self, sequences: Sequence[ScoredSequence]) -> None:
        """Computes, in one forward pass, and keeps the values of sequences."""
        self.misses += len(sequences)
        parts = token_logps(self.model, sequences, self._dtype)
        for sequence, part in zip(sequences, parts, strict=True):
            self._known[_key(sequence)] = part.cpu().clone()

    def look_up(self, sequences: Sequence[ScoredSequence], device: torch.device | str) -> list[torch.Tensor]:
        """The values of sequences that were all computed before, one tensor for each."""
        self.hits += len(sequences)
        return [self._known[_key(sequence)].to(device) for sequence in sequences]


def _key(sequence: ScoredSequence) -> bytes:
    digest = hashlib.blake2b(len(sequence.prompt).to_bytes(8, "little"), digest_size=16)
    for part in sequence:
        digest.update(part.tobytes())
    return digest.digest()
