"""Embeddings, norms and gated feed-forward layers that need less memory in the backward pass than autograd's.

The models of transformers compute them operation by operation, and each operation keeps what it needs. Here a norm
keeps its input, and a gated layer keeps gate and up; what is elementwise is computed once more in the backward pass.
An embedding's gradient goes where it is summed.
`slim` recognizes layers by how they are built, and `models.probe` tries it on a small model of the same class first.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch.nn import functional as F

from models.precision import summed_gradient

_ACTIVATIONS = {
    "SiLUActivation": (F.silu, torch.ops.aten.silu_backward.default),
    "GELUTanh": (
        partial(F.gelu, approximate="tanh"),
        partial(torch.ops.aten.gelu_backward.default, approximate="tanh"),
    ),
}
"""By transformers' names for them: activations, and their slopes from (slope of the value, argument)."""
_ACTIVATIONS["SiLU"] = _ACTIVATIONS["SiLUActivation"]
_SLICE_BYTES = 2**20
"""What a slice of rows may take in float32 on a CPU, so that several of them stay in the processor's cache."""


def slim(model: torch.nn.Module) -> int:
    """Replaces the forward passes of layers that are recognized, in place; weights and names stay as they are.

    Returns:
        How many layers were recognized.
    """
    count = 0
    for module in model.modules():
        if type(module) is torch.nn.Embedding and module.max_norm is None and not module.scale_grad_by_freq:
            module.forward = MethodType(_embedding_forward, module)
        elif _is_gated(module):
            module.forward = MethodType(_gated_forward, module)
        elif (offset := _offset_of_norm(module)) is not None:
            module.norm_offset = offset
            module.forward = MethodType(_norm_forward, module)
        else:
            continue
        count += 1
    return count


def _is_gated(module: torch.nn.Module) -> bool:
    """Whether it is down(act(gate(x)) * up(x)), by its parts."""
    parts = dict(module.named_children())
    known = type(parts.get("act_fn")).__name__ in _ACTIVATIONS
    return known and parts.keys() == {"gate_proj", "up_proj", "down_proj", "act_fn"}


def _offset_of_norm(module: torch.nn.Module) -> float | None:
    """0 for a norm that multiplies by its weight, 1 for one that multiplies by 1 + weight, None for what is neither."""
    weights = dict(module.named_parameters())
    if not type(module).__name__.endswith("RMSNorm") or weights.keys() != {"weight"} or _epsilon(module) is None:
        return None
    own = weights["weight"]  # maybe without values, or a part of them: others are tried in their place
    device = "cpu" if own.is_meta else own.device
    weight = torch.linspace(0.5, 1.5, len(own), device=device).to(own.dtype)
    tried = torch.linspace(-1, 2, 2 * len(own), device=device, dtype=torch.float32).view(2, -1)
    with torch.no_grad():
        given = torch.func.functional_call(module, {"weight": weight}, (tried.to(own.dtype),)).float()
    errors = {}
    for offset in (0.0, 1.0):
        ours = F.rms_norm(tried, weight.shape, weight.float() + offset, _epsilon(module))
        errors[offset] = float((given - ours).norm() / ours.norm().clamp(min=1e-30))
    offset = min(errors, key=errors.__getitem__)
    return offset if errors[offset] < 0.02 else None


def _epsilon(module: torch.nn.Module) -> float | None:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _embedding_forward(self: torch.nn.Embedding, input: torch.Tensor) -> torch.Tensor:
    return _Lookup.apply(self.weight, input, self.padding_idx)


def _norm_forward(self: torch.nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    return _RMSNorm.apply(hidden_states, self.weight, _epsilon(self), self.norm_offset)


def _gated_forward(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    gate, up, down, kind = self.gate_proj(x), self.up_proj(x), self.down_proj, type(self.act_fn).__name__
    if type(down) is torch.nn.Linear:
        return _GatedDown.apply(gate, up, down.weight, down.bias, kind)
    return down(_GatedDown.apply(gate, up, None, None, kind))  # with an adapter, or its weights in 4 bits


class _Lookup(torch.autograd.Function):
    """Rows of a matrix, whose slopes are added to the gradient that it has, and not to a matrix of their own."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, ids: torch.Tensor, padding: int | None) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.owner, ctx.padding = weight, padding  # itself: a saved tensor may come back as another one
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, slopes: torch.Tensor) -> tuple[None, ...]:
        total, ids = summed_gradient(ctx.owner), ctx.saved_tensors[0].flatten()
        flat = slopes.reshape(len(ids), -1).to(total.dtype)
        if ctx.padding is not None:
            flat = flat * (ids != ctx.padding)[:, None]
        total.index_add_(0, ids, flat)
        return None, None, None


class _RMSNorm(torch.autograd.Function):
    """w x / sqrt(mean(x^2) + epsilon) over the last dimension (Zhang and Sennrich 2019, equation 4, and epsilon)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float, offset: float) -> torch.Tensor:
        rows = _at_least_float(x.reshape(-1, x.shape[-1]))
        inverse = rows.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        ctx.offset = offset
        return (rows * inverse).mul_(_shifted(weight, offset)).to(x.dtype).view(x.shape)

    @staticmethod
    def backward(ctx: Any, slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        normed = _at_least_float(x.reshape(-1, x.shape[-1])) * inverse
        slopes = _at_least_float(slopes.reshape(-1, x.shape[-1]))
        scale = _shifted(weight, ctx.offset)
        products = slopes * normed
        to_weight = products.sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, to_weight, None, None
        shared = (products @ scale).div_(x.shape[-1])  # what each row has of the slope of its own length
        to_x = (slopes * scale).sub_(normed.mul_(shared[:, None])).mul_(inverse)
        return to_x.to(x.dtype).view(x.shape), to_weight, None, None


class _GatedDown(torch.autograd.Function):
    """(act(gate) * up) W' + b (SwiGLU, and GEGLU with the tanh for GELU; Shazeer 2020, equation 6).

    Without W it is the product alone.
    """

    @staticmethod
    def forward(
        ctx: Any,
        gate: torch.Tensor,
        up: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        activation: str,
    ) -> torch.Tensor:
        act, _ = _ACTIVATIONS[activation]
        inner = _like(gate)
        for own, one, other in _slices(inner, gate, up):
            torch.mul(act(one), other, out=own)
        ctx.save_for_backward(gate, up, weight)
        ctx.activation = activation
        return inner if weight is None else F.linear(inner, weight, bias)

    @staticmethod
    def backward(ctx: Any, slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        act, slope_of_act = _ACTIVATIONS[ctx.activation]
        to_inner = slopes if weight is None else slopes @ weight
        to_gate, to_up = _like(gate), _like(gate)
        inner = _like(gate) if ctx.needs_input_grad[2] else to_up  # a frozen weight needs none: it is overwritten
        for product, left, right, slope, one, other in _slices(inner, to_gate, to_up, to_inner, gate, up):
            active = act(one)
            if inner is not to_up:
                torch.mul(active, other, out=product)
            torch.mul(slope, active, out=right)
            left.copy_(slope_of_act(slope * other, one))
        to_weight = to_bias = None
        flat = slopes.reshape(-1, slopes.shape[-1])
        if ctx.needs_input_grad[2]:
            to_weight = flat.t() @ inner.reshape(-1, inner.shape[-1])
        if ctx.needs_input_grad[3]:
            to_bias = flat.sum(0)
        return to_gate, to_up, to_weight, to_bias, None


def _like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _slices(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """The same few rows of each tensor in turn; all of them at once where there is no cache to stay in."""
    flat = [tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]
    rows = len(flat[0]) if flat[0].is_cuda else max(1, _SLICE_BYTES // (4 * flat[0].shape[1]))
    return zip(*(one.split(rows) for one in flat), strict=True)


def _at_least_float(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _shifted(weight: torch.Tensor, offset: float) -> torch.Tensor:
    weight = _at_least_float(weight)
    return weight + offset if offset else weight
