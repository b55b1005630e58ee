"""The shapes in config/model/*.yaml: nothing about a model's size needs the hub, so they have to be exact."""

from pathlib import Path

import pytest
import yaml

MODELS = Path(__file__).resolve().parents[2] / "config" / "model"
NAMES = sorted(file.stem for file in MODELS.glob("*.yaml") if file.stem != "base_model")
SHAPE_KEYS = {
    "model_type",
    "layers",
    "hidden_size",
    "intermediate_size",
    "attention_heads",
    "key_value_heads",
    "head_size",
    "vocabulary",
    "tied_embeddings",
    "gated_mlp",
    "attention_bias",
    "position_embeddings",
    "parameters",
}
HALOS = {"llama7b", "llama13b", "llama30b", "llama65b", "pythia1-4b", "pythia2-8b", "pythia6-9b", "pythia12-0b"}
HALOS |= {"mistral7b", "mistral7b_instruct", "mistral7b_sft_beta", "zephyr-sft-beta"}


def read(name: str) -> dict:
    return yaml.safe_load((MODELS / f"{name}.yaml").read_text(encoding="utf-8"))


def test_every_family_and_every_model_of_halos_is_there():
    """Prevents a documented `model=...` that no file answers to."""
    families = ("llama", "pythia", "mistral", "qwen", "gemma", "gpt2", "vicuna", "smollm", "tiny")
    assert all(any(name.startswith(family) for name in NAMES) for family in families)
    assert set(NAMES) >= HALOS


@pytest.mark.parametrize("name", NAMES)
def test_shape_is_the_models_own(name: str):
    """Prevents a shape with a wrong number: transformers builds it, its parameters are counted, its modules named."""
    import torch
    from transformers import AutoModelForCausalLM

    from models.shapes import config_from_shape

    values = read(name)
    shape = values["shape"]
    assert values["name"] == name, "`name` is the file's name"
    assert values["defaults"] == ["base_model", "_self_"]
    assert set(shape) - {"initializer_range"} == SHAPE_KEYS
    config = config_from_shape(shape)
    assert config.initializer_range == shape.get("initializer_range", 0.02)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert model.num_parameters() == shape["parameters"]
    names = [module_name for module_name, _ in model.named_modules()]
    assert values["block_name"] in {type(module).__name__ for module in model.modules()}
    assert any("gate_proj" in one for one in names) == shape["gated_mlp"]
    biases = [
        one
        for one, _ in model.named_parameters()
        if one.endswith(("q_proj.bias", "c_attn.bias", "query_key_value.bias"))
    ]
    assert bool(biases) == shape["attention_bias"]
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == shape["tied_embeddings"]
    positions = dict(model.named_parameters()).get("transformer.wpe.weight")
    assert (0 if positions is None else len(positions)) == shape["position_embeddings"]
