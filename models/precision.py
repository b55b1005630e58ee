"""Compute in bfloat16 with float32 weights: cast once an optimizer step, gradients summed in float32."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_PART = 2**20  # numbers
_NATIVE = re.compile(r"^(?:flags|Features)\s*:.*\b(?:avx512_bf16|amx_bf16|bf16)\b", re.MULTILINE)


def fastest_dtype(device: torch.device, cpu_info: Path = Path("/proc/cpuinfo")) -> torch.dtype:
    """bfloat16 where a device has instructions for it (AVX512-BF16, AMX, Armv8.6, a GPU since Ampere), else float32.

    A processor without them computes bfloat16 more slowly than float32. Where it cannot be asked it is float32.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        known = device.type == "cpu" and cpu_info.exists()
        native = known and _NATIVE.search(cpu_info.read_text(encoding="utf-8", errors="replace")) is not None
    return torch.bfloat16 if native else torch.float32


def cast_weights(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Casts a model's weights in place, and no buffer: frequencies of rotary positions must stay in float32."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)


def add_in_parts(total: torch.Tensor, summand: torch.Tensor) -> torch.Tensor:
    """total += summand of a lower precision, a few MiB at a time: torch would make a whole copy of it first."""
    flat, parts = total.view(-1), summand.reshape(-1).split(_PART)
    for own, part in zip(flat.split(_PART), parts, strict=True):
        own.add_(part)
    return total


def summed_gradient(weight: torch.Tensor) -> torch.Tensor:
    """The gradient that a weight sums, or the weight that it is a working copy of: zeros where there was none yet.

    A backward pass that adds to it, and gives autograd nothing, spares a matrix of the vocabulary's size.
    """
    owner = getattr(weight, "copy_of", weight)
    if owner.grad is None:
        owner.grad = torch.zeros_like(weight, dtype=owner.dtype)
    return owner.grad


class WorkingCopy:
    """Low-precision parameters that stand in a model's place while it computes.

    Outside of `installed` the model is untouched: it is saved, hashed and given to the optimizer with its own weights.
    Each gradient of a copy is added to the float32 gradient of its weight as soon as it is there, and freed.

    Args:
        model: with float32 weights.
        dtype: of the copies.
    """

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype):
        # Tied ones once. Frozen weights of an adapter's base have the dtype already.
        self._weights: list[torch.nn.Parameter] = [w for w in model.parameters() if w.dtype != dtype]
        self._copies = [torch.nn.Parameter(w.detach().to(dtype), requires_grad=w.requires_grad) for w in self._weights]
        copy_of = {id(weight): copy for weight, copy in zip(self._weights, self._copies, strict=True)}
        self._slots = [
            (module, name, weight, copy_of[id(weight)])
            for module in model.modules()
            for name, weight in module.named_parameters(recurse=False, remove_duplicate=False)
            if id(weight) in copy_of
        ]
        for weight, copy in zip(self._weights, self._copies, strict=True):
            copy.copy_of = weight
            if copy.requires_grad:
                copy.register_post_accumulate_grad_hook(adder(weight))

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Inside, forward and backward passes use the copies, as the weights are now."""
        torch._foreach_copy_([copy.data for copy in self._copies], [weight.data for weight in self._weights])
        try:
            for module, name, _, copy in self._slots:
                module._parameters[name] = copy
            yield
        finally:
            for module, name, weight, _ in self._slots:
                module._parameters[name] = weight


def adder(weight: Any) -> Callable[[torch.Tensor], None]:
    """A hook for a copy of a weight that adds its gradient to the weight's (of `weight.dtype`), and frees it."""

    def add(copy: torch.Tensor) -> None:
        if copy.grad is None:  # it was added where it was made
            return
        if weight.grad is None:
            weight.grad = copy.grad.to(weight.dtype)
        else:
            add_in_parts(weight.grad, copy.grad)
        copy.grad = None

    return add
