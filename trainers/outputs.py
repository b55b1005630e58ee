"""What a loss returns, and what is known of a step once it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dataloaders.batches import Row

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class LossOutput:
    """What a loss returned: losses (N,), rewards of the chosen (C,) and rejected (R,), what else it shows."""

    losses: torch.Tensor
    chosen_rewards: torch.Tensor | None = None
    rejected_rewards: torch.Tensor | None = None
    extra: tuple[torch.Tensor, ...] = ()

    @classmethod
    def of(cls, returned: torch.Tensor | tuple[torch.Tensor, ...]) -> LossOutput:
        """From a tensor of losses, or from (losses, chosen_rewards, rejected_rewards, ...)."""
        if isinstance(returned, torch.Tensor):
            return cls(returned)
        if not isinstance(returned, tuple) or len(returned) < 3 or not all(map(torch.is_tensor, returned)):
            raise ValueError(
                "a loss returns a tensor of losses, or a tuple of tensors (losses, chosen_rewards, rejected_rewards, "
                f"...); this one returned {_described(returned)}."
            )
        losses, chosen_rewards, rejected_rewards, *extra = returned
        if chosen_rewards.ndim != 1 or rejected_rewards.ndim != 1:
            raise ValueError("a loss returns one reward for each response: rewards must have one dimension.")
        if torch.bool in (chosen_rewards.dtype, rejected_rewards.dtype):
            raise ValueError("a loss returns rewards that are true or false: make numbers of them with .float().")
        return cls(losses, chosen_rewards, rejected_rewards, tuple(extra))

    def refuse_reward_counts(self, name: str, counts: tuple[int, int] | None) -> None:
        """Refuses rewards that are not one for each response; a single one would count as everybody's.

        Args:
            name: of the trainer, for the message.
            counts: of chosen and rejected responses; None: nobody knows.
        """
        for side, rewards, count in zip(
            ("chosen", "rejected"), (self.chosen_rewards, self.rejected_rewards), counts or (), strict=False
        ):
            if rewards is not None and len(rewards) != count:
                raise ValueError(
                    f"{name}.loss returned {len(rewards)} rewards of {side} responses; one for each is needed, here "
                    f"{count}."
                )

    @classmethod
    def join(cls, outputs: Sequence[LossOutput]) -> LossOutput:
        """The output of a step from those of its processes, whose `extra` is the same."""
        names = ("losses", "chosen_rewards", "rejected_rewards")
        joined = {name: torch.cat([getattr(output, name) for output in outputs]) for name in names}
        return cls(**joined, extra=outputs[0].extra)

    def to(self, device: torch.device | str) -> LossOutput:
        """The same values, detached, on another device."""
        names = ("losses", "chosen_rewards", "rejected_rewards")
        moved = {n: None if getattr(self, n) is None else getattr(self, n).detach().to(device) for n in names}
        return LossOutput(**moved, extra=tuple(value.detach().to(device) for value in self.extra))


@dataclass(frozen=True)
class StepResult:
    """A step as it is logged: the named tensors, the loss's output and the weight of each loss, all detached."""

    rows: Sequence[Row]
    tensors: Tensors
    output: LossOutput
    weights: torch.Tensor


def _described(returned: object) -> str:
    if isinstance(returned, tuple):
        return f"a tuple of {', '.join(type(one).__name__ for one in returned)}"
    return type(returned).__name__
