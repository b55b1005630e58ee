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
from models.sharding import Sharding, any_process, gathered, in_step, shard, shards_of
from models.tree_rows import NOTHING, Branch, TreeRow


class Reference:
    """Token log-probabilities under the weights that the policy started from.

    Args:
        load: gives the model; called at the first row that is not known yet.
        dtype: compute dtype.
        cache: where values are kept; by default in memory, for this run alone.
        sharding: how its model is sharded; None keeps it whole. All processes call everything together then.
    """

    def __init__(
        self,
        load: Callable[[], PreTrainedModel],
        dtype: torch.dtype = torch.float32,
        cache: ReferenceCache | None = None,
        sharding: Sharding | None = None,
    ):
        self._load = load
        self._within: Callable[[], AbstractContextManager[None]] = nullcontext
        self._model: PreTrainedModel | None = None
        self._dtype = dtype
        self._moved = False
        self._sharding = sharding
        self.cache = ReferenceCache() if cache is None else cache

    @property
    def sharded(self) -> bool:
        """Whether its model is sharded, or will be once it is loaded."""
        return self._sharding is not None

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
            if self._sharding is not None:
                shard(self._model, self._sharding)
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
        """What a checkpoint keeps: values that are not on disk, and weights that are no longer those of the start.

        `values` is a list, since each process knows others: this process's alone.
        """
        weights = dict(self.model.named_parameters()) if self._moved else {}
        shards = None if not weights else shards_of(self.model)
        kept = weights if shards is None else shards.whole_weights(weights)
        return {
            "values": [self.cache.state()],
            "weights": [one if one is None else one.detach() for one in kept.values()],
        }

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave; of values under one name the first ones stay."""
        if state["weights"]:
            shards = shards_of(self.model)
            for own, other in zip(self.model.parameters(), state["weights"], strict=True):
                own.copy_(other) if shards is None else shards.put(own, other)
            self.cache.forget()
            self._moved = True
        for values in state["values"]:
            self.cache.load_state(values)

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
        unknown = not self.cache.has(flat)
        if self._sharding is not None:
            unknown = any_process(unknown, self._sharding.device)
        if unknown:
            start, model, values = time.perf_counter(), self.model, {}
            with self._within(), gathered(model):
                for group in in_step(model, cut(model, rows, budget)):
                    if group is None:
                        branch_logps(model, [NOTHING])
                        continue
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
