"""What a training takes of memory, reckoned from a shape: against what is counted, and what was measured."""

import json

import pytest
import torch

from launch.compose import compose
from models import footprint
from tests.readme import ROOT

SHAPE = {
    "model_type": "llama", "layers": 4, "hidden_size": 128, "intermediate_size": 320, "attention_heads": 4,
    "key_value_heads": 2, "head_size": 32, "vocabulary": 96, "tied_embeddings": True, "gated_mlp": True,
    "attention_bias": False, "position_embeddings": 0, "parameters": 0,
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_a_reduced_copy_tells_what_the_whole_keeps(family: str, dtype: torch.dtype):
    """Prevents a count on a small copy that is not proportional to the widths: the model itself keeps as much."""
    shape = SHAPE | {"model_type": family}
    if family != "llama":
        shape |= {"key_value_heads": 4, "position_embeddings": 128}
    block, outside = footprint.activation_bytes(shape, dtype)
    counted = footprint._saved(shape, dtype)
    assert footprint._TOKENS * (4 * block + outside) == pytest.approx(counted, rel=0.08)


def test_parameters_are_divided_rightly():
    """Prevents a block's size that is off: blocks and what is outside of them make the whole model."""
    for name in ("smollm2-135m", "llama7b", "gpt2", "qwen3-8b"):
        shape = compose([f"model={name}"]).model.shape
        parts = footprint.parts_of(shape)
        assert parts.all == pytest.approx(shape.parameters, rel=1e-6)
        assert parts.outside >= shape.vocabulary * shape.hidden_size
    # 32 layers of 7 matrices: 4 of 4096 x 4096, and 3 of 4096 x 11008
    assert footprint.adapter_size(compose(["model=llama7b"]).model.shape, 16) == 32 * 16 * (4 * 8192 + 3 * 15104)


@pytest.mark.parametrize(("option", "recomputed"), [("as it is", False), ("model.activation_checkpointing=true", True)])
def test_it_is_what_was_measured(option: str, recomputed: bool):
    """Prevents a table that nobody has checked: SmolLM2 by DPO in bfloat16, in packs of 1024, took so much more for
    gradients, AdamW and activations (benchmarks/options.json)."""
    rows = json.loads((ROOT / "benchmarks" / "options.json").read_text())["rows"]
    (measured,) = [row["added_mb"] for row in rows if row["option"] == option]
    shape = compose(["model=smollm2-135m"]).model.shape
    passes = footprint.transient_bytes(shape, 1024, torch.bfloat16, recomputed)
    assert (12 * shape.parameters + passes) / 2**20 == pytest.approx(measured, rel=0.1)
