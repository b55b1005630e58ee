"""Frozen linear layers in 4 bits, as in QLoRA (Dettmers et al. 2023, arXiv 2305.14314).

A weight is one of 16 levels, NF4, times the largest magnitude in its block of 64; these scales are kept in 8 bits. A
layer computes with what this stands for, in its input's dtype. The conversions are those of bitsandbytes, its linear
layer is not used: on a CPU with AVX512-BF16 that one computes something else, or fails, once it has evaluated.
"""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

import torch

from models.optional import bitsandbytes
from models.reference_cache import weights_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

NF4 = "nf4"
_SETTING = f"model.lora.quantize={NF4}"
_NATIVE = (torch.float32, torch.bfloat16, torch.float16)  # dtypes that the conversion gives by itself


class FourBitLinear(torch.nn.Linear):
    """A frozen linear layer whose `weight` is a buffer with two 4-bit codes a byte; moved and cast without harm.

    Args:
        layer: its weights, which are left as they are; its bias is shared.
    """

    def __init__(self, layer: torch.nn.Linear):
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        functional = bitsandbytes(_SETTING).functional
        # On the CPU, whatever the device, so that the same weights always give the same codes.
        weight = layer.weight.detach().to("cpu", torch.float32).contiguous()
        codes, self._scales = functional.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type=NF4)
        del self.weight
        self.register_buffer("weight", codes)
        self.bias = layer.bias
        self.to(layer.weight.device)

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The weights that the codes stand for, (out_features, in_features)."""
        scales = copy.copy(self._scales)
        scales.dtype = dtype if dtype in _NATIVE else torch.float32
        return bitsandbytes(_SETTING).functional.dequantize_4bit(self.weight, scales).to(dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features), in the dtype of the input."""
        product = _Product.apply(input, self)
        return product if self.bias is None else product + self.bias

    def size(self) -> int:
        """The bytes of codes and scales."""
        scales = (self._scales.absmax, self._scales.state2.absmax)
        return sum(one.numel() * one.element_size() for one in (self.weight, *scales))

    def _apply(self, fn: Any, recurse: bool = True) -> FourBitLinear:
        super()._apply(fn, recurse)
        if self.weight.device != self._scales.absmax.device:
            self._scales = copy.deepcopy(self._scales)
            self._scales.to(self.weight.device)
        return self


class _Product(torch.autograd.Function):
    """x W'. For its gradient it remembers the codes: the dequantized weights of all layers would be the whole model."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, layer: FourBitLinear) -> torch.Tensor:
        ctx.layer = layer
        return torch.nn.functional.linear(input, layer.dequantized(input.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient @ ctx.layer.dequantized(gradient.dtype), None


def quantize(model: PreTrainedModel, kind: str = NF4) -> None:
    """Replaces the linear layers of a model by 4-bit ones, all but the head, in place.

    `weights_digest` of it is from then on one of `kind` and of the weights that it had.

    Raises:
        ValueError: when there is nothing to replace, weights are not finite, or bitsandbytes is not installed.
    """
    if kind != NF4:
        raise ValueError(f"weights quantized as {kind!r} are unknown to this version; it knows {NF4}.")
    digest, head = weights_digest(model), model.get_output_embeddings()
    layers = [(name, one) for name, one in model.named_modules() if type(one) is torch.nn.Linear and one is not head]
    if not layers:
        raise ValueError(f"{_SETTING} finds no linear layer in {type(model).__name__}: leave it out for this model.")
    for name, layer in layers:
        if not bool(torch.isfinite(layer.weight).all()):
            raise ValueError(f"{name} has weights that are not finite (nan or inf): the checkpoint is damaged.")
        model.set_submodule(name, FourBitLinear(layer))
    model.quantized_from = f"{kind} {digest}"
    kept = sum(layer.size() for layer in model.modules() if isinstance(layer, FourBitLinear)) / 2**20
    log.info("%d linear layers are kept in 4 bits, %.0f MiB", len(layers), kept)


def dequantize(model: PreTrainedModel) -> None:
    """The reverse of `quantize`, in place: float32 weights that compute what the 4-bit ones did."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, FourBitLinear):
            plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            plain.weight = torch.nn.Parameter(layer.dequantized(torch.float32))
            plain.bias = layer.bias
            model.set_submodule(name, plain.train(layer.training))
    del model.quantized_from


def refuse_device(device: torch.device) -> None:
    """ValueError for a device on which 4-bit weights were not tried."""
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{_SETTING} works on a CPU and on a GPU with CUDA, not on {device.type}: use device=cpu.")
