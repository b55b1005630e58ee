"""Optimizers by name, the learning-rate schedule, and the true global gradient norm."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from models.optional import bitsandbytes

OPTIMIZER_BYTES = {"AdamW": 8, "Adam": 8, "AdamW8bit": 2, "PagedAdamW8bit": 2, "RMSprop": 4, "SGD": 0}
"""Of each optimizer's state, for each trained weight."""


def make_optimizer(
    name: str,
    parameters: Iterable[torch.nn.Parameter],
    *,
    lr: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> torch.optim.Optimizer:
    """An optimizer of torch.optim by its class name, or of bitsandbytes where that ends in 8bit.

    It gets those of the settings that it knows.

    Weight decay acts on matrices, not on biases and norms.
    """
    module = bitsandbytes(f"optimizer={name}").optim if name.endswith("8bit") else torch.optim
    kind = getattr(module, name, None)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise ValueError(f"optimizer={name} is not a class of {module.__name__} (AdamW, Adam, RMSprop, SGD, ...).")
    settings = {"lr": lr, "betas": (beta1, beta2), "eps": eps, "fused": True}  # one pass over memory, no temporaries
    known = inspect.signature(kind).parameters
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return kind(
        [group for group in groups if group["params"]],
        **{key: value for key, value in settings.items() if key in known},
    )


def optimization(
    config: Any, parameters: Iterable[torch.nn.Parameter], steps: int
) -> tuple[torch.optim.Optimizer, Callable[[int], float]]:
    """The optimizer of a config, and its learning rate at each of so many steps (counted from 0)."""
    optimizer = make_optimizer(
        config.optimizer, parameters, lr=config.lr, weight_decay=config.weight_decay, beta1=config.beta1,
        beta2=config.beta2, eps=config.eps,
    )  # fmt: skip
    warmup = config.warmup_steps if config.warmup_steps is not None else math.ceil(config.warmup * steps)
    factor = schedule(config.scheduler, steps, warmup)
    return optimizer, lambda step: config.lr * factor(step)


def schedule(name: str, steps: int, warmup_steps: int) -> Callable[[int], float]:
    """The factor on the learning rate at an optimizer step (counted from 0).

    It rises in a line over `warmup_steps`, then stays (`constant`) or falls to 0 at the end (`linear`, `cosine`).
    """
    after = max(1, steps - warmup_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / after)
        if name == "linear":
            return 1 - progress
        if name == "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        return 1.0

    return factor


def clip_gradients(
    parameters: list[torch.nn.Parameter], max_norm: float | None, total: Callable[[float], float] | None = None
) -> float:
    """Clips to the global norm over all parameters and returns that norm as it was before.

    Args:
        total: where these are parts of the parameters, gives the sum of a number over the processes with the others.
    """
    limit = math.inf if max_norm is None else max_norm
    if total is None:
        return float(torch.nn.utils.clip_grad_norm_(parameters, limit))
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = math.sqrt(total(float(torch.nn.utils.get_total_norm(gradients)) ** 2))
    torch.nn.utils.clip_grads_with_norm_(parameters, limit, torch.tensor(norm))
    return norm
