"""Frozen weights in 4 bits: what they stand for, that nothing but the linear layers changes, and that it is kept."""

import functools
import importlib.util
import json

import pytest
import torch

from launch.compose import compose
from launch.train import run as train
from models import lora, quantization
from models.byte_tokenizer import byte_tokenizer
from models.checkpoints import Checkpoint, read_policy
from models.loading import load_model
from models.logprobs import plain_attention
from models.reference import Reference
from models.reference_cache import weights_digest
from tests import tiny
from tests.test_end_to_end import SMALL, evaluated, trained
from tests.trainers.steps import LOADERS
from trainers.paired import DPOTrainer

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="requirements-bitsandbytes.txt is not installed"
)
SHAPE = dict(tiny.config("sft").model.shape)
LEVELS = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
"""NF4, appendix E of the paper."""

load = functools.partial(load_model, "random", shape=SHAPE)


def quantized(seed: int = 3):
    model = load(seed=seed)
    quantization.quantize(model)
    return model


def adapted(model, quantize: str | None = "nf4", dtype=torch.float32):
    """The model with an adapter that does something."""
    base = lora.Base("random", None, 3, weights_digest(model), quantize)
    lora.add_adapter(model, lora.Adapter(rank=2, alpha=6.0), base, dtype, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for weight in lora.adapter_weights(model).values():
            weight.data.normal_(std=0.1)
    return model


def logits(model) -> torch.Tensor:
    with torch.no_grad(), plain_attention(model):
        return model(torch.arange(20, 60)[None]).logits


def dpo_rows():
    return next(tiny.loader(LOADERS["dpo"], 5, batch_size=100).epoch(0))


@needs_bitsandbytes
def test_weights_are_levels_times_scales():
    """Prevents other levels, other blocks, or scales that lose more than their 8 bits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weight = torch.randn(96, 128)
    layer = torch.nn.Linear(128, 96)
    layer.weight.data = weight.clone()
    blocks = weight.reshape(-1, 64)
    scales = blocks.abs().amax(1, keepdim=True)
    levels = torch.tensor(LEVELS)
    nearest = levels[((blocks / scales)[..., None] - levels).abs().argmin(-1)] * scales
    found = quantization.FourBitLinear(layer)
    assert torch.equal(layer.weight, weight)
    assert (found.dequantized(torch.float32).reshape(-1, 64) - nearest).abs().max() < 0.02 * scales.max()
    assert found.size() * 8 / weight.numel() < 4.2, "bits a weight"


@needs_bitsandbytes
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float64, 1e-6)])
@pytest.mark.parametrize("shape", [(24, 16), (16, 20), (128, 128)])
def test_a_layer_computes_with_what_its_codes_stand_for(dtype, tolerance, shape):
    """Prevents a product or gradient of other weights, also after evaluating, where bitsandbytes' layer changes."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        plain = torch.nn.Linear(shape[1], shape[0])
        input = torch.randn(2, 5, shape[1])
    layer = quantization.FourBitLinear(plain)
    plain.weight.data = layer.dequantized(torch.float32)
    plain, layer = plain.requires_grad_(False), layer.requires_grad_(False)
    wanted, ours = (input.clone().requires_grad_(True) for _ in range(2))
    expected = plain(wanted)
    expected.square().sum().backward()
    layer.to(dtype).eval()
    with torch.no_grad():
        assert tiny.relative(expected, layer(input.to(dtype)).float()) < tolerance
    found = layer.train()(ours.to(dtype))
    found.square().sum().backward()
    assert found.dtype == dtype
    assert tiny.relative(expected.detach(), found.detach().float()) < tolerance
    assert tiny.relative(wanted.grad, ours.grad) < 2 * tolerance


@needs_bitsandbytes
def test_only_the_inner_linear_layers_change():
    """Prevents a quantized head, norm or embedding, and a cast of the model that turns codes into numbers."""
    model, whole = quantized(), load(seed=3)
    four_bit = {name for name, one in model.named_modules() if isinstance(one, quantization.FourBitLinear)}
    assert len(four_bit) == 7 * SHAPE["layers"] and "lm_head" not in four_bit
    kept = dict(model.named_parameters())
    for name, weight in whole.named_parameters():
        assert (name.removesuffix(".weight") in four_bit) or torch.equal(kept[name], weight)
    before = logits(model)
    assert 1e-3 < (before - logits(whole)).abs().max() < 1
    lora.cast_weights(model, torch.bfloat16)
    assert {model.get_submodule(name).weight.dtype for name in four_bit} == {torch.uint8}
    lora.cast_weights(model, torch.float32)
    quantization.dequantize(model)
    assert {type(one) for one in model.modules()} == {type(one) for one in whole.modules()}
    dequantized = quantized()
    quantization.dequantize(dequantized)
    assert torch.allclose(before, logits(dequantized), atol=1e-5)


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_is_that_of_the_dequantized_weights(dtype):
    """Prevents gradients of an adapter that are those of other frozen weights, in tree rows or in bfloat16."""
    base = quantized()
    quantization.dequantize(base)
    gradients = []
    for model, kind in ((quantized(), "nf4"), (base, None)):
        model = adapted(model, kind, getattr(torch, dtype))
        tiny.trainer(DPOTrainer, "dpo", policy=model, model__policy_dtype=dtype).computer.gradients(dpo_rows())
        weights = lora.adapter_weights(model).values()
        gradients.append(torch.cat([weight.grad.reshape(-1) for weight in weights]))
    assert tiny.relative(*gradients) < (1e-5 if dtype == "float32" else 0.1)


@needs_bitsandbytes
def test_the_reference_is_the_quantized_base():
    """Prevents rewards that are not 0 before the first step, and cached reference values of unquantized weights."""
    model = adapted(quantized())
    shared, own = (Reference(quantized) for _ in range(2))
    shared.borrow(model, lambda: lora.without_adapter(model))
    values = [
        tiny.trainer(DPOTrainer, "dpo", policy=model, reference=one).computer.gradients(dpo_rows()).tensors
        for one in (shared, own)
    ]
    for name, tensor in values[0].items():
        assert torch.allclose(tensor, values[1][name], atol=1e-5)
    digests = {weights_digest(quantized()), weights_digest(load(seed=3)), weights_digest(quantized(seed=4))}
    assert len(digests) == 3 and weights_digest(quantized()) in digests


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_loaded_is_what_was_trained(tmp_path, dtype):
    """Prevents an adapter that is put on other weights than it was trained on: those before they were quantized."""
    model = adapted(quantized(), dtype=dtype)
    Checkpoint(model, byte_tokenizer(), step_idx=1, metrics={}).write(tmp_path)
    contents = read_policy(tmp_path / "policy.pt")
    assert contents["adapter"]["base"]["quantize"] == "nf4" and len(contents["state"]) == 2 * 7 * SHAPE["layers"]
    loaded = load(load_from=str(tmp_path))
    assert {type(one) for one in loaded.modules()} == {type(one) for one in load().modules()}
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in loaded.parameters())
    if dtype == torch.float32:
        probabilities = [logits(one).log_softmax(-1) for one in (loaded, model)]
        assert torch.allclose(*probabilities, atol=1e-5)
    contents["adapter"]["base"]["quantize"] = None
    torch.save(contents, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="has other weights"):
        load(load_from=str(tmp_path / "other.pt"))


@needs_bitsandbytes
def test_a_run_with_few_bits(tmp_path):
    """Prevents a command that fails on the way: training, evaluating, sampling, exporting, another run from there."""
    few = ["model.lora.rank=4", "model.lora.quantize=nf4", "optimizer=AdamW8bit", "lr=1e-2"]
    first = trained(tmp_path, "loss=sft", "exp_name=first", *few)
    second = trained(tmp_path, "loss=dpo", "exp_name=second", "model.load_from=first/LATEST/policy.pt", *few)
    records = [json.loads(line) for line in (second / "metrics.jsonl").open()]
    assert records[0]["rewards_eval/margins"] == 0 != records[-1]["rewards_eval/margins"]
    assert evaluated(second, "++mode=eval")["loss/eval"] == pytest.approx(records[-1]["loss/eval"], abs=1e-5)
    sampling = ["mode=sample", "n_samples=2", "max_new_tokens=3", f"samples_dir={tmp_path}/s", "sample_reference=true"]
    evaluated(second, *sampling)
    assert json.loads((tmp_path / "s" / "second.json").read_text())["samples"][0]["policy_logp"] < 0
    exported = load_model(str(evaluated(second, "++mode=export")))
    merged = load(load_from="second/LATEST", cache_dir=tmp_path)
    assert torch.equal(logits(exported), logits(merged))
    assert first.exists()


@needs_bitsandbytes
def test_models_and_weights_that_cannot_be_quantized_are_named():
    """Prevents a run in full precision that says 4 bits, and scales that are nan."""
    with pytest.raises(ValueError, match="no linear layer in GPT2LMHeadModel"):
        quantization.quantize(tiny.tiny_model("gpt2"))
    model = load(seed=3)
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj.*not finite"):
        quantization.quantize(model)
    with pytest.raises(ValueError, match="'int3' are unknown"):
        quantization.quantize(load(seed=3), "int3")


def test_a_missing_library_is_named_before_anything_is_loaded(tmp_path, monkeypatch):
    """Prevents an ImportError after minutes of loading, or a run that only another machine can do."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else found(name, *rest)
    )
    settings = ["model.lora.rank=2", "model.lora.quantize=nf4"]
    for overrides in (settings, ["optimizer=AdamW8bit"]):
        with pytest.raises(ValueError, match=r"needs bitsandbytes.*pip install -r requirements-bitsandbytes\.txt"):
            compose([*SMALL, *overrides])
    with pytest.raises(ValueError, match="pip install"):
        quantization.quantize(load(seed=3))
    monkeypatch.undo()
    monkeypatch.setattr("launch.combinations.need_bitsandbytes", lambda setting: None)
    monkeypatch.setattr("launch.build.build_device", lambda name: torch.device("mps"))
    with pytest.raises(ValueError, match="not on mps: use device=cpu"):
        train(compose([*SMALL, *settings, f"cache_dir={tmp_path}"]))
