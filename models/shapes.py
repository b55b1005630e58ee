"""A model's shape, as its YAML states it: enough to build it, or to reason about it without the hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# What transformers calls each entry of a shape. GPT-2 and GPT-NeoX have names of their own.
_NAMES = {
    "layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "attention_heads": "num_attention_heads",
    "key_value_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "vocabulary": "vocab_size",
    "tied_embeddings": "tie_word_embeddings",
    "attention_bias": "attention_bias",
    "position_embeddings": "max_position_embeddings",
    "initializer_range": "initializer_range",
}
_GPT2_NAMES = _NAMES | {
    "layers": "n_layer",
    "hidden_size": "n_embd",
    "attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "position_embeddings": "n_positions",
}


def config_from_shape(shape: Mapping[str, Any]) -> PretrainedConfig:
    """The transformers config of a model of this shape; what the shape does not say keeps the family's default.

    Args:
        shape: the `shape:` entry of a model YAML.

    Raises:
        ValueError: when `model_type` is not a family that transformers knows.
    """
    from transformers import AutoConfig

    names = _GPT2_NAMES if shape["model_type"] == "gpt2" else _NAMES
    # A shape without learned positions states 0, which is no limit on the length: the family's default stands.
    values = {
        names[key]: value
        for key, value in shape.items()
        if key in names and not (key == "position_embeddings" and not value)
    }
    if shape["model_type"] == "gpt2":  # the family's own mean nothing in another vocabulary
        values |= {"bos_token_id": None, "eos_token_id": None}
    return AutoConfig.for_model(shape["model_type"], **values)


def describe(shape: Mapping[str, Any]) -> str:
    """One line about a shape for logs: parameters, and the memory that full training takes with AdamW in float32."""
    parameters = int(shape["parameters"])
    training = 16 * parameters / 2**30  # weights, gradients and two moments, 4 bytes each
    return (
        f"{parameters / 1e6:,.1f}M parameters, {shape['layers']} layers of {shape['hidden_size']}; "
        f"full training with AdamW keeps {training:,.1f} GiB beside the activations"
    )
