"""Lean layers compute what the layers of transformers do, and their gradients, and keep less for the backward pass."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from models import tree_attention
from models.head import Head
from models.lean import slim
from models.logprobs import attention_of, packed_logps
from models.precision import WorkingCopy
from models.tree_rows import Branch, Pack, TreeRow
from tests import tiny


class Gated(torch.nn.Module):
    """The feed-forward layer of Llama and its kin."""

    def __init__(self, activation: str, bias: bool):
        super().__init__()
        self.gate_proj, self.up_proj = torch.nn.Linear(6, 10, bias), torch.nn.Linear(6, 10, bias)
        self.down_proj, self.act_fn = torch.nn.Linear(10, 6, bias), ACT2FN[activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def values_and_slopes(module: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.detach().requires_grad_(x.is_floating_point())
    module.zero_grad()
    values = module(x)
    (values * torch.linspace(-1, 2, values.numel(), dtype=values.dtype).view(values.shape)).sum().backward()
    slopes = [weight.grad.clone() for weight in module.parameters()]
    return [values.detach(), *slopes, *([x.grad] if x.is_floating_point() else [])]


def compare(module: torch.nn.Module, x: torch.Tensor, tolerance: float = 1e-10) -> None:
    """In float64 both agree to rounding."""
    module.double()
    plain = values_and_slopes(module, x)
    assert slim(module) == 1
    for one, other in zip(plain, values_and_slopes(module, x), strict=True):
        assert torch.allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["silu", "swish", "gelu_pytorch_tanh"])
def test_gated_layers(activation: str, bias: bool, monkeypatch):
    """Prevents a wrong slope of the activation, gate and up exchanged, a bias that is forgotten, and a slice lost."""
    monkeypatch.setattr("models.lean._SLICE_BYTES", 4 * 10 * 2)  # two rows at a time
    torch.manual_seed(0)
    compare(Gated(activation, bias), torch.randn(2, 7, 6, dtype=torch.float64))


@pytest.mark.parametrize("kind", [LlamaRMSNorm, GemmaRMSNorm])
def test_norms(kind: type):
    """Prevents a norm by w where it is by 1 + w, and a slope without the share of the row's own length."""
    torch.manual_seed(0)
    norm = kind(8)
    norm.weight.data.normal_()
    compare(norm, 3 * torch.randn(2, 5, 8, dtype=torch.float64), 1e-5)  # theirs computes in float32 at most


def test_a_norm_with_large_weights_is_not_mistaken():
    """Prevents 1 + w taken for w where w is so large that the two are nearly the same."""
    norm = GemmaRMSNorm(8)
    norm.weight.data.uniform_(25, 40)
    compare(norm, torch.randn(2, 5, 8, dtype=torch.float64), 1e-4)


def test_gradients_reach_the_weight_when_saved_tensors_are_copies():
    """Prevents a gradient that is added to a copy and lost where tensors are offloaded, or recomputed in a layer."""
    layer = torch.nn.Embedding(9, 4)
    slim(layer)
    with torch.autograd.graph.saved_tensors_hooks(lambda one: one.clone(), lambda one: one):
        layer(torch.tensor([3, 3])).sum().backward()
        head = Head(torch.nn.Parameter(torch.randn(9, 4)))
        head.logps(torch.randn(2, 4, requires_grad=True), torch.tensor([1, 2])).sum().backward()
    assert layer.weight.grad[3].tolist() == [2.0] * 4 and head.weight.grad.abs().sum() > 0


def test_embeddings_add_to_the_gradient_that_is_there():
    """Prevents a token that occurs twice and counts once, a padding token that is trained, and a gradient replaced."""
    torch.manual_seed(0)
    layer = torch.nn.Embedding(9, 4, padding_idx=2).double()
    ids = torch.tensor([[1, 2, 1, 5]])
    compare(layer, ids)
    once = layer.weight.grad.clone()
    layer(ids).square().sum().backward()
    assert torch.allclose(layer.weight.grad - once, torch.autograd.functional.jacobian(
        lambda weight: torch.nn.functional.embedding(ids, weight, 2).square().sum(), layer.weight.detach()
    ))  # fmt: skip


class Odd(torch.nn.Module):
    """Layers that look like those above and are not."""

    def __init__(self):
        super().__init__()
        self.gelu = Gated("gelu", False)
        self.scaled = torch.nn.Embedding(5, 3, scale_grad_by_freq=True)
        self.extra = Gated("silu", False)
        self.extra.norm = torch.nn.LayerNorm(6)
        self.squared = type("SquaredRMSNorm", (LlamaRMSNorm,), {"forward": lambda self, x: self.weight * x * x})(6)


def test_what_is_not_recognized_is_left_alone():
    """Prevents another layer's function that is silently replaced."""
    assert slim(Odd()) == 0


def rows() -> list[TreeRow]:
    branches = [Branch(np.arange(n, n + 6), np.ones(6, dtype=bool)) for n in (3, 9)]
    return [TreeRow(np.arange(5, 15), branches)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_whole_models(family: str, dtype: torch.dtype):
    """Prevents lean layers that are wrong in a model: tied embeddings, gradients of a working copy, checkpointing."""
    model = tiny.tiny_model(family)
    lean = copy.deepcopy(model)
    assert slim(lean) > 4
    results = []
    for one in (model, lean):
        if family == "llama":  # gemma2 has dropout in training
            one.train()
            one.activation_checkpointing_enable({"use_reentrant": False})
        computing = nullcontext() if dtype == torch.float32 else WorkingCopy(one, dtype).installed()
        with attention_of(one, tree_attention.NAME), computing:
            for _ in range(2):  # a second pass adds to the first
                values = torch.cat(packed_logps(one, Pack.of(rows())))
                (values * torch.linspace(-1, 2, len(values))).sum().backward()
        results.append((values.detach(), tiny.gradients(one)))
    (plain, slopes), (ours, own) = results
    exact = dtype == torch.float32
    assert torch.allclose(plain, ours, atol=1e-5 if exact else 0.05)
    assert tiny.relative(slopes, own) < (1e-5 if exact else 0.05)


def test_what_is_kept_for_the_backward_pass():
    """Prevents layers that are called lean and are not: in this shape they keep 0.67 of what autograd keeps."""
    kept = []
    for prepare in (lambda model: 0, slim):
        model = tiny.tiny_model("llama")
        prepare(model)
        storages = {}

        def note(one: torch.Tensor, storages: dict = storages) -> torch.Tensor:
            storages[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
            return one

        weights = {weight.data_ptr() for weight in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(note, lambda one: one):
            output = model.base_model(input_ids=torch.arange(3, 60)[None]).last_hidden_state
        kept.append(sum(size for place, size in storages.items() if place not in weights))
        assert output.requires_grad
    assert kept[1] < 0.7 * kept[0], kept
