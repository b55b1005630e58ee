"""Adapters: what they add, what stays as it was, and what is kept of them."""

import copy
import functools

import pytest
import torch

from models.byte_tokenizer import byte_tokenizer
from models.checkpoints import Checkpoint, read_policy
from models.loading import load_model
from models.logprobs import plain_attention
from models.lora import Adapter, Base, adapter_weights, add_adapter, without_adapter
from models.reference import Reference
from models.reference_cache import weights_digest
from tests import tiny
from tests.trainers.steps import LOADERS
from trainers.paired import DPOTrainer
from trainers.unpaired import KTOTrainer

SHAPE = dict(tiny.config("sft").model.shape)
ADAPTER = Adapter(rank=2, alpha=6.0)
load = functools.partial(load_model, "random", shape=SHAPE)


def adapted(model=None, adapter: Adapter = ADAPTER, dtype=torch.float32, moved: bool = True, **base):
    """A model with an adapter, by default one that does something already."""
    model = load(seed=3) if model is None else model
    named = Base(**{"name_or_path": "random", "load_from": None, "seed": 3} | base, digest=weights_digest(model))
    add_adapter(model, adapter, named, dtype, seed=0)
    if moved:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            for weight in adapter_weights(model).values():
                weight.data.normal_(std=0.1)
    return model


def logits(model) -> torch.Tensor:
    with torch.no_grad(), plain_attention(model):
        return model(torch.arange(20, 60)[None]).logits


def by_hand(model, adapter: Adapter):
    """The model with W + (alpha / rank) B A in the place of W, from the matrices alone."""
    merged = load(seed=3)
    weights = dict(model.named_parameters())
    for name, own in merged.named_parameters():
        layer = name.removesuffix(".weight")
        if f"{layer}.lora_A.default.weight" in weights:
            a, b = (weights[f"{layer}.lora_{which}.default.weight"] for which in "AB")
            own.data += adapter.alpha / adapter.rank * b.data @ a.data
    return merged


@pytest.mark.parametrize("targets", [None, ["q_proj", "down_proj"]])
def test_an_adapter_is_what_the_paper_says(targets):
    """Prevents another scale, layers that are left out, and an adapter that does something before it is trained."""
    adapter = Adapter(rank=2, alpha=6.0, targets=targets)
    base = logits(load(seed=3))
    assert torch.equal(logits(adapted(adapter=adapter, moved=False)), base)
    model = adapted(adapter=adapter)
    assert (logits(model) - base).abs().max() > 0.01
    assert torch.allclose(logits(model), logits(by_hand(model, adapter)), atol=1e-4)
    with without_adapter(model):
        assert torch.equal(logits(model), base)
    per_layer = 7 if targets is None else 2  # q, k, v, o, gate, up, down; not the head
    assert len(adapter_weights(model)) == 2 * per_layer * SHAPE["layers"]
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == set(adapter_weights(model))


@pytest.mark.parametrize("kind", [DPOTrainer, KTOTrainer])
def test_a_step_is_that_of_the_merged_weights(kind):
    """Prevents gradients that miss the scale: dL/dB = (alpha / rank) dL/dW A', and dL/dA = (alpha / rank) B' dL/dW."""
    loss = "dpo" if kind is DPOTrainer else "kto"
    rows = next(tiny.loader(LOADERS[loss], 5, batch_size=100).epoch(0))
    model = adapted(load(seed=3).double(), dtype=torch.float64)
    for weight in adapter_weights(model).values():
        weight.data = weight.data.double()
    merged = by_hand(copy.deepcopy(model), ADAPTER).double()
    with torch.no_grad():  # the sum in double precision
        for name, own in merged.named_parameters():
            layer = name.removesuffix(".weight")
            parts = dict(model.named_parameters())
            if f"{layer}.lora_A.default.weight" in parts:
                a, b = (parts[f"{layer}.lora_{which}.default.weight"] for which in "AB")
                own.copy_(parts[f"{layer}.base_layer.weight"] + 3.0 * b @ a)
    for one in (model, merged):
        tiny.trainer(kind, loss, policy=one, dtype=torch.float64).computer.gradients(rows)
    whole = {name.removesuffix(".weight"): weight.grad for name, weight in merged.named_parameters()}
    parts = dict(model.named_parameters())
    for name, weight in adapter_weights(model).items():
        layer, _, matrix = name.removesuffix(".default.weight").rpartition(".lora_")
        a, b = (parts[f"{layer}.lora_{which}.default.weight"].data for which in "AB")
        wanted = 3.0 * whole[layer] @ a.T if matrix == "B" else 3.0 * b.T @ whole[layer]
        assert tiny.relative(wanted, weight.grad) < 1e-6
    assert all(weight.grad is None for name, weight in parts.items() if "lora_" not in name)


def test_round_trip(tmp_path):
    """Prevents a file as large as the model, and a model that is another one when it is loaded again."""
    model = adapted()
    Checkpoint(model, byte_tokenizer(), step_idx=7, metrics={}).write(tmp_path)
    contents = read_policy(tmp_path / "policy.pt")
    assert contents["step_idx"] == 7 and contents["state"].keys() == adapter_weights(model).keys()
    assert contents["adapter"]["base"]["digest"] == weights_digest(load(seed=3))
    whole = sum(weight.numel() for weight in load().parameters())
    assert sum(weight.numel() for weight in contents["state"].values()) < whole / 4
    # A seed that the caller gives is that of sampling: it does not change what the adapter was made for.
    for loaded in (load(load_from=str(tmp_path), seed=8), load_model(str(tmp_path / "policy.pt"), shape=SHAPE)):
        assert type(loaded) is type(load()) and not adapter_weights(loaded)
        assert torch.allclose(logits(loaded), logits(model), atol=1e-4)
        assert all(weight.requires_grad for weight in loaded.parameters())
        loaded.save_pretrained(tmp_path / "whole")
    assert torch.equal(logits(load_model(str(tmp_path / "whole"))), logits(loaded))


def test_adapters_on_adapters(tmp_path):
    """Prevents a second adapter that forgets the first: what it was trained on is the first one's merged model."""
    Checkpoint(adapted(), byte_tokenizer(), step_idx=1, metrics={}).write(_folder(tmp_path / "a"))
    merged = load(load_from="a", cache_dir=tmp_path)
    before = logits(merged)
    second = adapted(merged, load_from="a")
    Checkpoint(second, byte_tokenizer(), step_idx=1, metrics={}).write(_folder(tmp_path / "b"))
    loaded = load(load_from="b", cache_dir=tmp_path)
    assert torch.allclose(logits(loaded), logits(second), atol=1e-4)
    assert (logits(loaded) - before).abs().max() > 0.01


def _folder(path):
    path.mkdir(parents=True, exist_ok=True)
    return path


def test_another_base_is_refused(tmp_path):
    """Prevents an adapter on weights that it was not trained on: the result would be nonsense without an error."""
    Checkpoint(adapted(), byte_tokenizer(), step_idx=1, metrics={}).write(tmp_path)
    contents = read_policy(tmp_path / "policy.pt")
    other = copy.deepcopy(contents)
    other["adapter"]["base"]["seed"] = 4
    torch.save(other, _folder(tmp_path / "other") / "policy.pt")
    with pytest.raises(ValueError, match=r"has other weights.*\+\+model.name_or_path"):
        load(load_from=str(tmp_path / "other"))
    damaged = copy.deepcopy(contents)
    damaged["state"].popitem()
    torch.save(damaged, _folder(tmp_path / "damaged") / "policy.pt")
    with pytest.raises(ValueError, match="damaged"):
        load(load_from=str(tmp_path / "damaged"))
    circle = copy.deepcopy(contents)
    circle["adapter"]["base"]["load_from"] = str(tmp_path / "circle")
    torch.save(circle, _folder(tmp_path / "circle") / "policy.pt")
    with pytest.raises(ValueError, match="names itself"):
        load(load_from=str(tmp_path / "circle"))
    torch.save({**contents, "adapter": {"rank": 2}}, _folder(tmp_path / "strange") / "policy.pt")
    with pytest.raises(ValueError, match="does not understand"):
        load(load_from=str(tmp_path / "strange"))


def test_targets_that_no_layer_has_are_named():
    """Prevents a run that trains nothing."""
    with pytest.raises(ValueError, match=r"q_projj.*down_proj.*q_proj"):
        adapted(adapter=Adapter(2, 4.0, targets=["q_projj"]))


def test_the_reference_is_the_model_with_its_adapter_off():
    """Prevents a second copy of the weights, and a reference that moves with the adapter."""
    rows = next(tiny.loader(LOADERS["kto"], 5, batch_size=100).epoch(0))
    model = adapted()
    shared, own = (Reference(lambda: load(seed=3)) for _ in range(2))
    shared.borrow(model, lambda: without_adapter(model))
    values = []
    for reference in (shared, own):
        trainer = tiny.trainer(KTOTrainer, "kto", policy=model, reference=reference)
        values.append(trainer.computer.gradients(rows))
    assert shared.model is model
    for name, tensor in values[0].tensors.items():
        assert torch.allclose(tensor, values[1].tensors[name], atol=1e-5)
    assert not torch.allclose(values[0].tensors["policy_KL_logps"], values[0].tensors["reference_KL_logps"], atol=1e-2)
    assert all(weight.requires_grad for weight in adapter_weights(model).values())


def test_half_of_the_memory_for_frozen_weights():
    """Prevents a float32 copy of weights that never change, and adapters whose small updates round to nothing."""
    rows = next(tiny.loader(LOADERS["dpo"], 5, batch_size=100).epoch(0))
    model = adapted(dtype=torch.bfloat16)
    trainer = tiny.trainer(DPOTrainer, "dpo", policy=model, model__policy_dtype="bfloat16")
    trainer.computer.gradients(rows)
    for name, weight in model.named_parameters():
        assert weight.dtype == (torch.float32 if "lora_" in name else torch.bfloat16)
    assert all(weight.grad.dtype == torch.float32 for weight in adapter_weights(model).values())
    exact = adapted()
    tiny.trainer(DPOTrainer, "dpo", policy=exact).computer.gradients(rows)
    gradients = [
        torch.cat([weight.grad.reshape(-1) for weight in adapter_weights(one).values()]) for one in (exact, model)
    ]
    assert tiny.relative(*gradients) < 0.1


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_an_adapter_on_the_head_is_refused(name: str):
    """Prevents an adapter that is trained, saved and merged, and that no log-probability ever saw."""
    with pytest.raises(ValueError, match="name layers inside the blocks"):
        adapted(adapter=Adapter(2, 4.0, targets=["q_proj", name]))
