"""Each loss and its slope against the reward margin, by calling it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dataloaders.resolve import resolve

if TYPE_CHECKING:
    from docs.make_losses import Loss

TOKENS = 20
"""Of each response in a plot; a response without a reference has a log-probability of -1 nat a token where m is 0."""
LARGEST = 1e4
"""A curve that goes higher is cut."""
RANGE = 40.0
"""The margin goes from minus this to this, in nats."""


def curves(loss: Loss) -> tuple[str, torch.Tensor, dict[str, torch.Tensor]]:
    """What is on the x-axis, where (N,), and each curve of the loss (N,), with its graph.

    Pairs: m is split evenly over both responses. Single responses: their own log-ratio. Scored ones: for each of two
    responses, one worth more than the other.
    """
    trainer = resolve(loss.config.trainer, "trainers")
    needs = [need.parameter for need in trainer.requirements(loss.config)]
    alone = trainer.__new__(trainer)
    alone.config, alone.loss_state = _Config(loss.config), {}
    if hasattr(trainer, "part") and loss.config.get("losses"):
        parts = loss.config.losses.items()
        alone._parts = {name: resolve(part.trainer, "trainers").part(part) for name, part in parts}
    x = torch.linspace(-RANGE, RANGE, 401, dtype=torch.float64, requires_grad=True)
    if (
        "policy_target_token_logps" in needs
        and "target_token_advantages" not in needs
        and "target_lengths" not in needs
    ):
        x = torch.linspace(-5, 0, 101, dtype=torch.float64, requires_grad=True)
        return "log-probability of a token, nats", x, {"loss": alone.loss(x)}
    if loss.config.dataloader == "ScoredDataLoader":
        return _scored(alone, needs, x)
    values = [_loss_at(alone, needs, x[number]) for number in range(len(x))]
    names = ("desirable", "undesirable") if loss.config.dataloader == "UnpairedPreferenceDataLoader" else ("loss",)
    label = "log-ratio r, nats" if len(names) == 2 else "margin m, nats"
    return label, x, {name: torch.stack([value[place] for value in values]) for place, name in enumerate(names)}


class _Config:
    def __init__(self, loss: object):
        self.loss = loss


def _loss_at(alone: object, needs: list[str], at: torch.Tensor) -> torch.Tensor:
    """The losses at one margin: of a pair, or of a desirable and an undesirable response."""
    zero = torch.zeros(1, dtype=torch.float64)
    pair = "chosen_lengths" in needs or type(alone).roles == ("chosen", "rejected")
    sides = {"chosen": at / 2, "rejected": -at / 2} if pair else {"chosen": at, "rejected": at}
    given = {}
    for name in needs:
        model, *_ = name.split("_")
        side = next((side for side in sides if side in name), None)
        if name.endswith("alignments"):
            given[name] = zero  # a weight of 1
        elif name.endswith("lengths"):
            given[name] = torch.full((1,), float(TOKENS), dtype=torch.float64)
        elif model == "policy" and side is not None:
            given[name] = (sides[side] - TOKENS).reshape(1)
        else:
            given[name] = zero - TOKENS
    output = alone.loss(**given)
    return output if torch.is_tensor(output) else output[0]


def _scored(alone: object, needs: list[str], x: torch.Tensor) -> tuple[str, torch.Tensor, dict[str, torch.Tensor]]:
    if "policy_target_logps" in needs:  # two responses of a prompt, the first of them worth more
        values = []
        for at in x:
            logps = torch.stack([at / 2 - TOKENS, -at / 2 - TOKENS])
            of = {"lengths": [TOKENS, TOKENS], "rewards": [1.0, -1.0], "groups": [0.0, 0.0]}
            rows = {f"target_{name}": torch.tensor(some, dtype=torch.float64) for name, some in of.items()}
            values.append(alone.loss(policy_target_logps=logps, **rows).mean())
        return "log-probability of the better response less that of the worse, nats", x, {"loss": torch.stack(values)}
    x = torch.linspace(-1.5, 1.5, 301, dtype=torch.float64, requires_grad=True)
    zero, curves = torch.zeros_like(x), {}
    for name, sign in (("better", 1.0), ("worse", -1.0)):
        given = {"policy_target_token_logps": x, "reference_target_token_logps": zero}
        if "target_token_advantages" in needs:
            given["target_token_advantages"] = zero + sign
            curves[name] = alone.loss(**given)
            continue
        both = {
            key: torch.cat([value, zero]) for key, value in given.items()
        }  # the other class, so that A is +1 and -1
        ones = {"target_lengths": zero + 1, "target_rewards": zero + sign}
        both |= {key: torch.cat([value, value if key == "target_lengths" else -value]) for key, value in ones.items()}
        curves[name] = alone.loss(policy_target_token_values=torch.cat([zero, zero]), **both)[: len(x)]
    return "log-ratio of a token, nats", x, curves


def draw(losses: list[Loss], path: Path) -> None:
    """A small plot for each loss: value and slope, as far as the function is finite."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(4, len(losses))
    rows = -(-len(losses) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(3.4 * columns, 2.7 * rows), squeeze=False)
    for axis in axes.flat[len(losses) :]:
        axis.axis("off")
    for axis, loss in zip(axes.flat, losses, strict=False):
        label, x, drawn = curves(loss)
        right = axis.twinx()
        for number, (name, values) in enumerate(drawn.items()):
            (slopes,) = torch.autograd.grad(values.sum(), x, retain_graph=True)
            color = f"C{number}"
            axis.plot(x.detach(), values.detach(), color=color, label=name)
            right.plot(x.detach(), slopes, color=color, linestyle=":", linewidth=1)
        cut = max(float(values.detach().max()) for values in drawn.values()) > LARGEST
        if cut:  # of an exponential nothing else would be seen
            axis.set_ylim(-0.5, 10)
            right.set_ylim(-3, 0.15)
        axis.set_title(loss.name + " (cut)" * cut, fontsize=9)
        axis.set_xlabel(label, fontsize=7)
        for one in (axis, right):
            one.tick_params(labelsize=6)
        if len(drawn) > 1:
            axis.legend(fontsize=6)
    figure.suptitle("loss (solid, left axis) and its slope (dotted, right axis), with the YAML's defaults", fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.99 if rows > 2 else 0.96))
    figure.savefig(path, dpi=80, metadata={"Software": None})
    pyplot.close(figure)
