"""The reference model: frozen, loaded only when it is asked for something new, every value computed once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import PreTrainedModel

from models.logprobs import branch_logps, cut
from models.precision import cast_weights
from models.probe import use_tree_rows
from models.reference_cache import ReferenceCache
from models.tree_rows import Branch, TreeRow


class Reference:
    """Token log-probabilities under the weights that the policy started from.

    Args:
        load: gives the model; called at the first row that is not known yet.
        dtype: compute dtype.
        cache: where values are kept; by default in memory, for this run alone.
    """

    def __init__(
        self,
        load: Callable[[], PreTrainedModel],
        dtype: torch.dtype = torch.float32,
        cache: ReferenceCache | None = None,
    ):
        self._load = load
        self._within: Callable[[], AbstractContextManager[None]] = nullcontext
        self._model: PreTrainedModel | None = None
        self._dtype = dtype
        self._moved = False
        self.cache = ReferenceCache() if cache is None else cache

    def borrow(self, model: PreTrainedModel, within: Callable[[], AbstractContextManager[None]]) -> None:
        """Uses a model that is there already: inside `within()` it computes what the reference does."""
        self._model, self._within = model, within
        use_tree_rows(model)

    @property
    def model(self) -> PreTrainedModel:
        """The reference model itself, without gradients."""
        if self._model is None:
            self._model = self._load().requires_grad_(False).eval()
            if self._dtype == torch.bfloat16:
                cast_weights(self._model, self._dtype)
            use_tree_rows(self._model)
        return self._model

    @torch.no_grad()
    def follow(self, policy: PreTrainedModel) -> None:
        """Takes over the policy's weights as they are now; what was known under the old ones is forgotten."""
        for own, other in zip(self.model.parameters(), policy.parameters(), strict=True):
            own.copy_(other)
        self.cache.forget()
        self._moved = True

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: values that are not on disk, and weights that are no longer those of the start."""
        weights = list(self.model.parameters()) if self._moved else []
        return {"values": self.cache.state(), "weights": [weight.detach() for weight in weights]}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        if state["weights"]:
            for own, other in zip(self.model.parameters(), state["weights"], strict=True):
                own.copy_(other)
            self.cache.forget()
            self._moved = True
        self.cache.load_state(state["values"])

    @torch.no_grad()
    def logps(self, rows: Sequence[TreeRow], budget: int) -> list[list[torch.Tensor]]:
        """For each row the log-probabilities of its branches' scored tokens, float32, on the CPU.

        When one of them is not known, all are computed anew and kept together, as far as they are new: so the forward
        passes, and with them the last bits, do not depend on what was known before.

        Args:
            budget: tokens of a forward pass.
        """
        keys = [[key_of(row, branch) for branch in row.branches] for row in rows]
        flat = [key for some in keys for key in some]
        if not self.cache.has(flat):
            start, model, values = time.perf_counter(), self.model, {}
            with self._within():
                for group in cut(model, rows, budget):
                    parts = branch_logps(model, [rows[index] for index in group])
                    names = [key for index in group for key in keys[index]]
                    values |= {key: part.cpu() for key, part in zip(names, parts, strict=True)}
            self.cache.add(values, time.perf_counter() - start)
        else:
            self.cache.count_hits(flat)
        return [[self.cache[key] for key in some] for some in keys]


def key_of(row: TreeRow, branch: Branch) -> bytes:
    """Names the values of a branch: the tokens of prompt and response, and which of them are scored."""
    digest = hashlib.blake2b(len(row.prompt).to_bytes(8, "little"), digest_size=16)
    for part in (row.prompt.astype("<i8"), branch.ids.astype("<i8"), branch.scored.astype("?")):
        digest.update(part.tobytes())
    return digest.digest()
