"""Log-probabilities from hidden states, a chunk at a time: logits of the whole vocabulary are never kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from models.precision import summed_gradient

CHUNK_BYTES = 48 * 2**20
"""What the logits of a chunk may take, in the compute dtype."""
CACHE_BYTES = 2 * 2**20
"""What of them, as float32, is looked at together on a CPU."""
LEAST_ROWS = 16
_PRODUCT_ROWS = 4096


@dataclass(frozen=True)
class Head:
    """A language-model head: logits = softcap * tanh(scale * (hidden W' + b) / softcap).

    Attributes:
        weight: (V, H).
        bias: (V,) or None.
        scale: what the logits are multiplied by.
        softcap: None for none.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Head:
        """A model's head, with what transformers' families do to logits (`models.probe` sees whether that is all)."""
        layer, config = model.get_output_embeddings(), model.config.get_text_config()
        scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        return cls(layer.weight, getattr(layer, "bias", None), scale, getattr(config, "final_logit_softcapping", None))

    def logps(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """log p of `targets` (N,) given hidden states (N, H): float32 (float64 of float64), in nats."""
        return _TargetLogps.apply(hidden, self, self.weight, self.bias, targets)

    @torch.no_grad()
    def squares(self, hidden: torch.Tensor, logits: torch.Tensor | None = None) -> torch.Tensor:
        """log of the sum over the vocabulary of p squared, (N,), given hidden states (N, H): float32 at least.

        Given logits (N, V), in float32 at least, it is of these: a model may do more to them than its head.
        """
        if logits is not None:
            return _log_squares(logits.clone())
        rows, few = _sizes(self.weight)
        buffer = self.weight.new_empty(min(rows, len(hidden)), len(self.weight))
        values = [hidden.new_zeros(0, dtype=torch.promote_types(hidden.dtype, torch.float32))]
        for part in hidden.to(self.weight.dtype).split(rows):
            for some in _products(part, self.weight, self.bias, buffer).split(few):
                values.append(_log_squares(self.finish(some)[0]))
        return torch.cat(values)

    def finish(self, products: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits in float32 at least from hidden W' + b, and the tanh of soft-capping."""
        logits = products.to(torch.promote_types(products.dtype, torch.float32))
        if self.scale != 1:
            logits = logits * self.scale
        if self.softcap is None:
            return logits, None
        tanh = torch.tanh(logits / self.softcap)
        return self.softcap * tanh, tanh

    def slope(
        self, products: torch.Tensor, normalizers: torch.Tensor, slopes: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """Of the log-probabilities of `targets` in hidden W' + b: (one-hot(target) - p) through scale and soft-cap."""
        logits, tanh = self.finish(products)
        gradient = (logits - normalizers[:, None]).exp_().mul_(-slopes[:, None])
        gradient.scatter_add_(1, targets[:, None], slopes[:, None].to(gradient.dtype))
        if tanh is not None:
            gradient.mul_(1 - tanh.square())
        return gradient.mul_(self.scale) if self.scale != 1 else gradient


def _log_squares(logits: torch.Tensor) -> torch.Tensor:
    """log of the sum of p squared (N,) of logits (N, V), which are overwritten."""
    normalizers = logits.logsumexp(dim=-1)
    return logits.mul_(2).logsumexp(dim=-1) - 2 * normalizers


class _TargetLogps(torch.autograd.Function):
    """Keeps the normalizers of the softmax, and computes the logits of a chunk once more in backward.

    The weight must be a leaf: its gradient is added to what it has. On a CPU a chunk is one matrix product into a
    buffer that all chunks share, and what follows goes through it a few rows at a time, which stay in the processor's
    cache.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head: Head,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        rows, few = _sizes(weight)
        buffer = weight.new_empty(min(rows, len(hidden)), len(weight))
        normalizers, values = [], []
        for part, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
            products = _products(part, weight, bias, buffer)
            for some, own in zip(products.split(few), wanted.split(few), strict=True):
                logits, _ = head.finish(some)
                normalizers.append(logits.logsumexp(dim=-1))
                values.append(logits.gather(1, own[:, None])[:, 0] - normalizers[-1])
        ctx.head, ctx.owner = head, weight  # itself: a saved tensor may come back as another one
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(normalizers))
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, targets, normalizers = ctx.saved_tensors
        rows, few = _sizes(weight)
        wants_hidden, wants_weight, wants_bias = (ctx.needs_input_grad[place] for place in (0, 2, 3))
        buffer = weight.new_empty(min(rows, len(hidden)), len(weight))
        to_hidden = torch.empty_like(hidden) if wants_hidden else None
        to_bias = torch.zeros_like(bias, dtype=normalizers.dtype) if wants_bias else None
        for start in range(0, len(hidden), rows):
            here = slice(start, start + rows)
            gradient = _products(hidden[here], weight, bias, buffer)
            parts = (one[here].split(few) for one in (normalizers, slopes, targets))
            for some, normalizer, slope, own in zip(gradient.split(few), *parts, strict=True):
                some.copy_(ctx.head.slope(some, normalizer, slope, own))
            if to_hidden is not None:
                torch.mm(gradient, weight, out=to_hidden[here])
            if wants_weight:
                _add_product(summed_gradient(ctx.owner), gradient.t(), hidden[here])
            if to_bias is not None:
                to_bias += gradient.sum(dim=0, dtype=to_bias.dtype)
        return to_hidden, None, None, None if to_bias is None else to_bias.to(bias.dtype), None


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """total += left @ right, the product of a lower precision a few of its rows at a time."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
        return
    for own, some in zip(total.split(_PRODUCT_ROWS), left.split(_PRODUCT_ROWS), strict=True):
        own.add_(some @ right)


def _sizes(weight: torch.Tensor) -> tuple[int, int]:
    """Rows of a chunk, and how many of them are looked at together."""
    rows = max(LEAST_ROWS, CHUNK_BYTES // (weight.element_size() * weight.shape[0]))
    return rows, rows if weight.is_cuda else max(1, CACHE_BYTES // (4 * weight.shape[0]))


def _products(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, buffer: torch.Tensor
) -> torch.Tensor:
    """hidden W' + b, in the buffer."""
    out = buffer[: len(hidden)]
    return torch.mm(hidden, weight.t(), out=out) if bias is None else torch.addmm(bias, hidden, weight.t(), out=out)
