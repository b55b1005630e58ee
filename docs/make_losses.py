"""Writes docs/losses.md and its plots from the losses themselves: `make docs`.

What is said of a loss is the docstring of its function; its defaults and comments are its YAML's; curves are computed
by calling it.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from dataloaders.resolve import resolve
from docs.landscapes import CAPTIONS, draw
from trainers.mixture import MixtureTrainer

ROOT = Path(__file__).resolve().parents[1]
LOSSES = ROOT / "config" / "loss"
FAMILIES = {
    "PairedPreferenceDataLoader": "Pairs of a preferred and a dispreferred response",
    "UnpairedPreferenceDataLoader": "Single responses with a thumb up or down",
    "ScoredDataLoader": "Responses with a score (or thumbs and preferences, as +1 and -1)",
    "ConditionalSFTDataLoader": "Imitation",
    "SFTDataLoader": "Imitation",
    "PretrainingDataLoader": "Documents whose segments have scores",
    "FilteredPretrainingDataLoader": "Documents whose segments have scores",
    "ConditionalPretrainingDataLoader": "Documents whose segments have scores",
    "ScoredPretrainingDataLoader": "Documents whose segments have scores",
    "UnlikelihoodDataLoader": "Documents whose segments have scores",
}
COMMON = {"name", "trainer", "dataloader", "use_reference_model", "sync_reference"}
INTRODUCTION = """# Losses

Made by `make docs` from the docstrings of `trainers/losses/`, the YAMLs of `config/loss/` and the functions themselves;
a test makes it again and compares. `loss=NAME` chooses one.

Throughout, l(y) = log pi(y|x) in nats, r(y) = log pi(y|x) - log pi_ref(y|x), y_w is the chosen and y_l the rejected
response, m = r(y_w) - r(y_l), and |y| the number of scored tokens. Every loss with a reference also takes
`humanline=true` (Liu et al. 2025, arXiv 2509.24207, with the bounds and the order of HALOs: log-ratios of tokens are
held between `log_epsilon_P` = -1 and `log_epsilon_R` = 1.5, -1.5 and 1.5 in the paper, in every term of the loss, and
the reference follows the policy one optimizer step behind; the paper's follows every few steps) and
`loss.sync_reference=true` (it follows, and nothing is held). With a reference that follows, beta bounds how far a step
goes, not the distance from the start, and losses that ask for a margin (ipo, hinge, sppo_hard) ask for it anew.
"""


@dataclass(frozen=True)
class Loss:
    """A loss as it is described: its YAML, and the function or class whose docstring says what it is."""

    name: str
    config: DictConfig
    comments: dict[str, str]
    function: Callable

    @property
    def family(self) -> str:
        """The heading that it stands under."""
        return FAMILIES[self.config.dataloader]

    @property
    def paragraphs(self) -> list[str]:
        """Of the docstring, before Args."""
        text = inspect.cleandoc(self.function.__doc__)
        return re.split(r"\n\n(?=Args:|Returns:|Raises:)", text)[0].split("\n\n")

    @property
    def title(self) -> str:
        """Name and source, on one line."""
        return " ".join(self.paragraphs[0].split())

    @property
    def settings(self) -> dict[str, str]:
        """The hyperparameters that are its own, with what the docstring says of them, else the YAML's comment."""
        own = [key for key in self.config if key not in COMMON]
        described = dict(
            re.findall(r"^    (\w+): ((?:.+\n?)(?:        .+\n?)*)", _arguments(self.function), re.MULTILINE)
        )
        return {key: " ".join(described.get(key, self.comments.get(key, "")).split()).rstrip(".") for key in own}


def _arguments(function: Callable) -> str:
    match = re.search(r"Args:\n(.*?)(?=\n\n|\Z)", inspect.cleandoc(function.__doc__), re.DOTALL)
    return match[1] + "\n" if match else ""


def all_losses() -> list[Loss]:
    """Every YAML of config/loss, by family and name."""
    made = []
    for file in LOSSES.glob("*.yaml"):
        config = OmegaConf.load(file)
        comments = dict(re.findall(r"^(\w+):.*?# (.*)$", file.read_text(), re.MULTILINE))
        made.append(Loss(file.stem, config, comments, described_by(resolve(config.trainer, "trainers"))))
    order = list(dict.fromkeys(FAMILIES.values()))
    return sorted(made, key=lambda loss: (order.index(loss.family), loss.name))


def described_by(trainer: type) -> Callable:
    """The function that a trainer's loss is, or says to see; a mixture describes itself."""
    if trainer is MixtureTrainer:
        return trainer
    if hasattr(trainer.loss, "__wrapped__"):
        return trainer.loss.__wrapped__
    module, _, name = re.search(r"See `([\w.]+)`", trainer.loss.__doc__)[1].rpartition(".")
    return getattr(importlib.import_module(module), name)


# The page ------------------------------------------------------------------------------------------------------------


def page(losses: list[Loss]) -> str:
    """The text of losses.md."""
    lines = [INTRODUCTION]
    for family in dict.fromkeys(loss.family for loss in losses):
        members = [loss for loss in losses if loss.family == family]
        lines += [f"## {family}\n", f"![{family}: loss and slope]({plot_name(family)})\n"]
        lines += [" ".join(CAPTIONS[family.split()[0]].split()) + "\n"]
        lines += ["| loss | what | needs |", "|---|---|---|"]
        lines += [f"| [{loss.name}](#{loss.name}) | {loss.title} | {needs(loss)} |" for loss in members]
        lines.append("")
        for loss in members:
            lines += section(loss)
    return "\n".join(lines).rstrip() + "\n"


def needs(loss: Loss) -> str:
    """What a run of it needs beside the data."""
    trainer = resolve(loss.config.trainer, "trainers")
    kinds = {need.kind for need in trainer.requirements(loss.config)}
    parts = ["a reference" if loss.config.use_reference_model else "no reference"]
    parts += ["mismatched responses"] if any(n.role == "KL" for n in trainer.requirements(loss.config)) else []
    parts += ["a value head"] if "token_values" in kinds else []
    parts += ["a second forward pass (examples are coupled)"] if trainer.couples(loss.config) else []
    return ", ".join(parts)


def section(loss: Loss) -> list[str]:
    """What is said of one loss."""
    lines = [f"### {loss.name}\n"]
    for number, paragraph in enumerate(loss.paragraphs):
        if paragraph.startswith("    "):
            lines += ["```", *(line.removeprefix("    ") for line in paragraph.splitlines()), "```\n"]
        else:
            lines.append((f"**{loss.title}**" if number == 0 else " ".join(paragraph.split())) + "\n")
    settings = {key: text for key, text in loss.settings.items() if not isinstance(loss.config[key], DictConfig)}
    if settings:
        lines += ["| key | default | what |", "|---|---|---|"]
        lines += [f"| `loss.{key}` | {_shown(loss.config[key])} | {text} |" for key, text in settings.items()] + [""]
    for key in loss.config:
        if isinstance(loss.config[key], DictConfig):
            contents = OmegaConf.to_yaml(loss.config[key]).rstrip().splitlines()
            lines += ["```yaml", f"{key}:", *(f"  {line}" for line in contents), "```\n"]
    return lines


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def plot_name(family: str) -> str:
    """The file of a family's curves."""
    return f"losses-{family.split()[0].lower()}.png"


def main(folder: Path) -> None:
    """Writes the page and its plots into a folder."""
    losses = all_losses()
    (folder / "losses.md").write_text(page(losses))
    for family in dict.fromkeys(loss.family for loss in losses):
        draw([loss for loss in losses if loss.family == family], folder / plot_name(family))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
