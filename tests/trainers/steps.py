"""Steps of the losses on a tiny model: the rows of one, and its gradient and metrics."""

import functools
from dataclasses import replace

import torch

from dataloaders.resolve import resolve
from tests import tiny
from tests.trainers.couplings import SimpleKTOTrainer, SortedTrainer, TokensOfBothTrainer
from trainers.metrics import Averages

LOSSES = sorted(file.stem for file in (tiny.CONFIG / "loss").glob("*.yaml"))
"""Every loss that there is, by its YAML."""
CONTROL = {"chosen": "<|good|>", "rejected": "<|bad|>"}
LOADERS = {name: resolve(tiny.config(name).loss.dataloader, "dataloaders") for name in LOSSES}
LOADERS["csft"] = functools.partial(LOADERS["csft"], control_tokens=CONTROL)
CASES = {
    **{name: (resolve(tiny.config(name).loss.trainer, "trainers"), name) for name in LOSSES},
    "simple_kto": (SimpleKTOTrainer, "kto"),
    "sorted": (SortedTrainer, "dpo"),
    "tokens": (TokensOfBothTrainer, "dpo"),
}
BY_RANK = {"sorted", "aot", "aot_unpaired"}
"""Losses of ranks: weights are matched with ranks, not with rows."""
WHOLE, ROW_BY_ROW = 10**6, 1


def rows_of(loss: str, count: int = 5, weights: bool = False):
    """The rows of one step, with prompts and responses of many lengths, and unequal weights when asked."""
    made = tiny.loader(LOADERS[loss], count, batch_size=100)
    rows = next(made.epoch(0))
    if weights:
        rows = [replace(row, weight=0.25 * (1 + number % 4)) for number, row in enumerate(rows)]
    return rows


def step(name: str, rows, budget: int = WHOLE, *, dtype=torch.float64, reference_seed: int | None = 1, **options):
    """(gradient, metrics) of one step."""
    kind, loss = CASES[name]
    without = name in ("sorted", "tokens") or not tiny.config(loss).loss.use_reference_model
    seed = None if without else reference_seed
    trainer = tiny.trainer(kind, loss, reference_seed=seed, dtype=dtype, model__tokens_per_microbatch=budget, **options)
    averages = Averages()
    trainer._collect(trainer.computer.gradients(rows), averages)
    return tiny.gradients(trainer.policy), averages.means()
