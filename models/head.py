"""Log-probabilities from hidden states, a chunk at a time: logits of the whole vocabulary are never kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

CHUNK_BYTES = 64 * 2**20
"""What the float32 logits of a chunk may take."""
LEAST_ROWS = 16


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
        rows = max(LEAST_ROWS, CHUNK_BYTES // (4 * self.weight.shape[0]))
        return _TargetLogps.apply(hidden, self.weight, self.bias, targets, self.scale, self.softcap, rows)


class _TargetLogps(torch.autograd.Function):
    """Keeps the normalizers of the softmax, and computes the logits of a chunk once more in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        scale: float,
        softcap: float | None,
        rows: int,
    ) -> torch.Tensor:
        normalizers, values = [], []
        for part, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
            logits, _ = _logits(part, weight, bias, scale, softcap)
            normalizers.append(logits.logsumexp(dim=-1))
            values.append(logits.gather(1, wanted[:, None])[:, 0] - normalizers[-1])
        ctx.settings = scale, softcap, rows
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(normalizers))
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, targets, normalizers = ctx.saved_tensors
        scale, softcap, rows = ctx.settings
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        to_hidden = torch.empty_like(hidden) if wants_hidden else None
        # Summed over chunks in float32, whatever the compute dtype is.
        to_weight = torch.zeros_like(weight, dtype=normalizers.dtype) if wants_weight else None
        to_bias = torch.zeros_like(bias, dtype=normalizers.dtype) if wants_bias else None
        for start in range(0, len(hidden), rows):
            here = slice(start, start + rows)
            logits, tanh = _logits(hidden[here], weight, bias, scale, softcap)
            slope = slopes[here, None]
            # d log p(target) / d logits = one-hot(target) - p
            gradient = logits.sub_(normalizers[here, None]).exp_().mul_(-slope)
            gradient.scatter_add_(1, targets[here, None], slope.to(gradient.dtype))
            if tanh is not None:
                gradient.mul_(1 - tanh.square())
            gradient = gradient.mul_(scale).to(weight.dtype) if scale != 1 else gradient.to(weight.dtype)
            if to_hidden is not None:
                torch.mm(gradient, weight, out=to_hidden[here])
            if to_weight is not None:
                if to_weight.dtype == weight.dtype:
                    to_weight.addmm_(gradient.t(), hidden[here])
                else:
                    to_weight += gradient.t() @ hidden[here]
            if to_bias is not None:
                to_bias += gradient.sum(dim=0)
        as_weight = None if to_weight is None else to_weight.to(weight.dtype)
        as_bias = None if to_bias is None else to_bias.to(bias.dtype)
        return to_hidden, as_weight, as_bias, None, None, None, None


def _logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, scale: float, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits in float32 at least, and the tanh of soft-capping."""
    logits = torch.nn.functional.linear(hidden, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if scale != 1:
        logits = logits * scale
    if softcap is None:
        return logits, None
    tanh = torch.tanh(logits / softcap)
    return softcap * tanh, tanh
