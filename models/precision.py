"""Compute in bfloat16 with float32 weights: cast once an optimizer step, gradients summed in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class WorkingCopy:
    """Low-precision parameters that stand in a model's place while it computes.

    Outside of `installed` the model is untouched: it is saved, hashed and given to the optimizer with its own weights.
    Each gradient of a copy is added to the float32 gradient of its weight as soon as it is there, and freed.

    Args:
        model: with float32 weights.
        dtype: of the copies.
    """

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype):
        self._weights: list[torch.nn.Parameter] = list(model.parameters())  # tied ones once
        self._copies = [torch.nn.Parameter(w.detach().to(dtype), requires_grad=w.requires_grad) for w in self._weights]
        copy_of = {id(weight): copy for weight, copy in zip(self._weights, self._copies, strict=True)}
        self._slots = [
            (module, name, weight, copy_of[id(weight)])
            for module in model.modules()
            for name, weight in module.named_parameters(recurse=False, remove_duplicate=False)
        ]
        for weight, copy in zip(self._weights, self._copies, strict=True):
            if copy.requires_grad:
                copy.register_post_accumulate_grad_hook(_adder(weight))

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


def _adder(weight: torch.nn.Parameter) -> Callable[[torch.Tensor], None]:
    def add(copy: torch.Tensor) -> None:
        if weight.grad is None:
            weight.grad = copy.grad.to(weight.dtype)
        else:
            weight.grad.add_(copy.grad)
        copy.grad = None

    return add
