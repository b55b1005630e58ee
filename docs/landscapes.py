"""Each loss and its slope against the reward margin, by calling it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from omegaconf import OmegaConf

from dataloaders.resolve import resolve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from docs.make_losses import Loss

TOKENS = 20
"""Of each response in a plot; its log-probability is -1 nat a token where nothing has moved."""
LARGEST = 1e4
"""A curve that goes higher is cut."""
HIGHEST = 10.0
"""Where it is cut."""
RANGE = 40.0
"""The margin goes from minus this to this, in nats."""
CAPTIONS = {
    "Pairs": f"""Both responses have {TOKENS} tokens and log-probabilities of -{TOKENS} nats under the reference. The
margin m = r(y_w) - r(y_l) is made of both alike, r(y_w) = m / 2 and r(y_l) = -m / 2; a loss with two kinds of terms
(dpop, apo, nca_pair) would look different where one response alone moves. cpo, orpo, simpo and slic have no reference
and are drawn over l(y_w) - l(y_l), with l(y_w) = -{TOKENS} + half of it and l(y_l) = -{TOKENS} - half of it: at the
left end of orpo the rejected response has a probability near 1, and its odds are infinite. f_dpo is cut, since it has
exp(-r(y_w)) in it (forward KL); what it comes to stands in its panel.""",
    "Single": """One response moves by r from the reference, and all others stay where the reference is: the estimate of
KTO's reference point is 0 then, and so are the means of kto-simple and the shift of bco.""",
    "Responses": """grpo and ppo: one token of a response with an advantage of +1 (better) or -1 (worse), against its
log-ratio. rrhf: two responses of a prompt, one worth more than the other.""",
    "Imitation": "One token.",
    "Documents": """One token of a good segment (score 0) and one of a bad one (score 1); the threshold is 1/2, and the
value of awr -1/2, where its head begins.""",
}
"""How the plots of a family are made, by the first word of its heading."""


def curves(loss: Loss) -> tuple[str, torch.Tensor, dict[str, torch.Tensor]]:
    """What is on the x-axis, where (N,), and each curve of the loss (N,), with its graph.

    What moves, and what stays where it is, is said in `CAPTIONS`.
    """
    trainer = resolve(loss.config.trainer, "trainers")
    needs = [need.parameter for need in trainer.requirements(loss.config)]
    alone = trainer.__new__(trainer)
    alone.config, alone.loss_state = _Config(loss.config), {}
    if hasattr(trainer, "part") and loss.config.get("losses"):
        parts = loss.config.losses.items()
        alone._parts = {name: resolve(part.trainer, "trainers").part(part) for name, part in parts}
    if loss.family.startswith("Documents"):
        return _of_documents(alone, needs)
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
    if loss.config.dataloader == "UnpairedPreferenceDataLoader":
        moves = {"desirable": (1.0, 0.0), "undesirable": (0.0, 1.0)}
        label = "log-ratio r, nats"
    else:
        moves = {"loss": (0.5, -0.5)}
        label = "m = r(y_w) - r(y_l), nats" if loss.config.use_reference_model else "l(y_w) - l(y_l), nats"
    places = {"loss": 0, "desirable": 0, "undesirable": 1}
    return (
        label,
        x,
        {
            name: torch.stack([_loss_at(alone, needs, at * share[0], at * share[1])[places[name]] for at in x])
            for name, share in moves.items()
        },
    )


class _Config:
    def __init__(self, loss: object):
        self.loss = loss


def _loss_at(alone: object, needs: list[str], chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """The losses where two responses have these log-ratios: of a pair, or of a desirable and an undesirable one."""
    zero = torch.zeros(1, dtype=torch.float64)
    sides, given = {"chosen": chosen, "rejected": rejected}, {}
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


def _of_documents(alone: object, needs: list[str]) -> tuple[str, torch.Tensor, dict[str, torch.Tensor]]:
    x = torch.linspace(-5, -0.05, 100, dtype=torch.float64, requires_grad=True)
    label, settings = "log-probability of a token, nats", dict(alone.config.loss)
    if "threshold" in settings:
        alone.config = _Config(OmegaConf.create(settings | {"threshold": 0.5}))
    if "target_token_scores" not in needs:
        return label, x, {"loss": alone.loss(x)}
    drawn = {}
    for name, score in (("good", 0.0), ("bad", 1.0)):
        given = {"policy_target_token_logps": x, "target_token_scores": torch.full_like(x, score).detach()}
        if "policy_target_token_values" in needs:
            given["policy_target_token_values"] = torch.full_like(x, -0.5).detach()
        drawn[name] = alone.loss(**given)
    return label, x, drawn


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
    """A plot for each loss: value and slope, as far as the function is finite."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(3, len(losses))
    rows = -(-len(losses) // columns)
    size = (4.4 * columns, 3.3 * rows + 0.6)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(losses) :]:
        axis.axis("off")
    for axis, loss in zip(axes.flat, losses, strict=False):
        _panel(axis, loss)
    figure.suptitle("loss (solid, left axis) and its slope (dotted, right axis),\nby the YAML's defaults", fontsize=12)
    figure.savefig(path, dpi=80, metadata={"Software": None})
    pyplot.close(figure)


def _panel(axis: Axes, loss: Loss) -> None:
    label, x, drawn = curves(loss)
    right = axis.twinx()
    for number, (name, values) in enumerate(drawn.items()):
        (slopes,) = torch.autograd.grad(values.sum(), x, retain_graph=True)
        axis.plot(x.detach(), values.detach(), color=f"C{number}", label=name)
        right.plot(x.detach(), slopes, color=f"C{number}", linestyle=":", linewidth=1.4)
    highest = max(float(values.detach().max()) for values in drawn.values())
    if highest > LARGEST:  # of an exponential nothing else would be seen
        axis.set_ylim(-0.5, HIGHEST)
        right.set_ylim(-3, 0.15)
        axis.text(0.5, 0.7, f"cut at {HIGHEST:.0f}:\nit goes to {highest:.0e}", transform=axis.transAxes, fontsize=10)
    axis.set_title(loss.name, fontsize=12)
    axis.set_xlabel(label, fontsize=10)
    for one in (axis, right):
        one.tick_params(labelsize=9)
    if len(drawn) > 1:
        axis.legend(fontsize=9)
