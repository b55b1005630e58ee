"""What a model takes of memory while it is trained, from its shape alone: nothing of its size is made for it."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from models.head import CHUNK_BYTES
from models.loading import turn_dropout_off
from models.logprobs import branch_logps
from models.probe import use_tree_rows
from models.shapes import config_from_shape
from models.tree_rows import Branch, TreeRow

_HEAD = 8  # size of an attention head in the copy that activations are counted on
_TOKENS = 64


@dataclass(frozen=True)
class Parts:
    """Weights of a model, in numbers.

    Attributes:
        block: of one of its blocks.
        blocks: how many there are.
        outside: embeddings, the head and the last norm.
        linear: of those in blocks, what linear layers have (LoRA's targets).
    """

    block: int
    blocks: int
    outside: int

    @property
    def all(self) -> int:
        """All of them."""
        return self.block * self.blocks + self.outside


def parts_of(shape: Mapping[str, Any]) -> Parts:
    """The weights inside and outside of a shape's blocks."""
    outside = int(shape["vocabulary"]) * int(shape["hidden_size"]) * (1 if shape["tied_embeddings"] else 2)
    outside += int(shape.get("position_embeddings") or 0) * int(shape["hidden_size"])
    layers = int(shape["layers"])
    return Parts((int(shape["parameters"]) - outside) // layers, layers, outside)


def adapter_size(shape: Mapping[str, Any], rank: int) -> int:
    """Numbers of a LoRA adapter on all linear layers of the blocks."""
    hidden, inner = int(shape["hidden_size"]), int(shape["intermediate_size"])
    queries = int(shape["attention_heads"]) * int(shape["head_size"])
    keys = int(shape["key_value_heads"]) * int(shape["head_size"])
    sides = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    sides += [(hidden, inner)] * (2 if shape["gated_mlp"] else 1) + [(inner, hidden)]
    return int(shape["layers"]) * rank * sum(a + b for a, b in sides)


def activation_bytes(shape: Mapping[str, Any], dtype: torch.dtype) -> tuple[float, float]:
    """Bytes that the backward pass needs of each token: of one block, and outside of the blocks.

    They are counted by running a copy with as many heads of eight numbers each, all widths reduced alike; widths are
    what they are proportional to.
    """
    known = json.dumps(dict(shape), sort_keys=True, default=str)
    return _activation_bytes(known, str(dtype))


@functools.cache
def _activation_bytes(known: str, dtype: str) -> tuple[float, float]:
    shape = json.loads(known)
    scale = max(1.0, int(shape["head_size"]) / _HEAD)
    small = shape | {
        "head_size": round(int(shape["head_size"]) / scale),
        "hidden_size": round(int(shape["hidden_size"]) / scale),
        "intermediate_size": round(int(shape["intermediate_size"]) / scale),
        "vocabulary": 64,
    }
    one, three = (_saved(small | {"layers": layers}, getattr(torch, dtype.removeprefix("torch."))) for layers in (1, 3))
    block = (three - one) / 2
    return scale * block / _TOKENS, scale * max(0.0, one - block) / _TOKENS


def _saved(shape: Mapping[str, Any], dtype: torch.dtype) -> int:
    """Bytes that autograd keeps of a forward pass over one row, weights left out."""
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config_from_shape(shape), dtype=dtype)
    turn_dropout_off(model)
    use_tree_rows(model)
    half = np.arange(_TOKENS // 2, dtype=np.int64) % 60
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        values = branch_logps(model, [TreeRow(half, [Branch(half, np.ones(len(half), dtype=bool))])])
    del values
    return sum(storage.nbytes() for storage in kept.values())


def transient_bytes(shape: Mapping[str, Any], tokens: int, dtype: torch.dtype, recomputed: bool) -> int:
    """What a forward and backward pass over so many tokens takes at its peak, beside weights and gradients.

    Args:
        recomputed: activation checkpointing keeps the input of each block, and one block's activations at a time.
    """
    size = torch.finfo(dtype).bits // 8
    block, outside = activation_bytes(shape, dtype)
    layers, hidden = int(shape["layers"]), int(shape["hidden_size"])
    kept = layers * hidden * size + block if recomputed else layers * block
    slopes = 4 * int(shape["intermediate_size"]) * size  # of one block at a time
    return round(tokens * (kept + outside + slopes)) + CHUNK_BYTES
