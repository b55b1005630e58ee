"""Weighted sums of losses: each part as it is by itself, its state and its coupling too."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from dataloaders.paired import PairedPreferenceDataLoader
from tests import tiny
from tests.trainers.steps import ROW_BY_ROW, WHOLE, rows_of
from trainers.mixture import MixtureTrainer
from trainers.paired import BCOPairTrainer, DPOTrainer

RECORDED = json.loads((Path(__file__).parent / "trl_recorded.json").read_text())["mixture"]


def mixture(parts: dict, **options):
    """A trainer of a mixture of these parts."""
    config = tiny.config("mpo")
    OmegaConf.set_struct(config, False)
    config.loss.losses = parts
    options = {"dtype": torch.float64, **options}
    budget = options.pop("budget", WHOLE)
    trainer = MixtureTrainer(
        config,
        None,
        tiny.tiny_model(dtype=torch.float64),
        tiny.trainer(DPOTrainer, "dpo", **options).computer.reference,
    )
    trainer.computer.budget = budget
    return trainer


def gradient(trainer, rows) -> torch.Tensor:
    trainer.computer.gradients(rows)
    return tiny.gradients(trainer.policy)


DPO = {"trainer": "DPOTrainer", "weight": 0.8, "beta": 0.1}
IPO = {"trainer": "IPOTrainer", "weight": 0.5, "tau": 0.1, "length_normalize": True}
AOT = {"trainer": "AOTTrainer", "weight": 0.3, "beta": 0.2, "epsilon": 0.1}


WPO = {"trainer": "WPOTrainer", "weight": 0.7, "beta": 0.1}


@pytest.mark.parametrize("parts", [{"a": DPO, "b": IPO}, {"a": DPO, "b": AOT}, {"a": IPO}, {"a": WPO, "b": AOT}])
def test_a_mixture_is_the_weighted_sum_of_its_parts(parts: dict):
    """Prevents a weight on the wrong part, a part that is left out, and a coupled part that packs change."""
    rows = rows_of("dpo")
    whole = gradient(mixture(parts), rows)
    apart = sum(gradient(mixture({name: part}), rows) for name, part in parts.items())
    assert tiny.relative(whole, apart) < 1e-9
    assert tiny.relative(whole, gradient(mixture(parts, budget=ROW_BY_ROW), rows)) < 1e-6
    assert MixtureTrainer.couples(OmegaConf.create({"losses": parts})) == (AOT in parts.values())


def test_a_part_of_weight_one_is_the_loss():
    """Prevents a part that computes something else than its trainer."""
    rows = rows_of("dpo")
    alone = tiny.trainer(DPOTrainer, "dpo", dtype=torch.float64)
    assert tiny.relative(gradient(mixture({"only": DPO | {"weight": 1.0}}), rows), gradient(alone, rows)) < 1e-9


def test_a_part_remembers():
    """Prevents a reward shift that stays 0 in a mixture, or is not part of the checkpoint."""
    made = tiny.loader(PairedPreferenceDataLoader, 6, batch_size=2)
    alone = tiny.trainer(BCOPairTrainer, "bco_pair", train_loader=made, dtype=torch.float64, lr=1e-3)
    alone.train()
    part = {"trainer": "BCOPairTrainer", "weight": 1.0, "beta": 0.1, "reward_shift": "running_mean"}
    mixed = mixture({"quality": part})
    mixed.train_loader, mixed.config.lr = made, 1e-3
    mixed.train()
    assert {f"quality/{key}": value for key, value in alone.loss_state.items()} == mixed.loss_state
    assert abs(alone.shift(torch.zeros(()))) > 1e-3
    assert tiny.relative(tiny.gradients(alone.policy), tiny.gradients(mixed.policy)) < 1e-6


@pytest.mark.parametrize("case", RECORDED)
def test_mpo_is_trls(case: dict):
    """Prevents other weights than TRL's; its imitation, a mean over a batch's tokens, is added by hand."""
    parts = {
        "preference": DPO | {"beta": case["settings"]["beta"]},
        "quality": {
            "trainer": "BCOPairTrainer", "weight": 0.2, "beta": case["settings"]["beta"], "reward_shift": "none",
        },
    }  # fmt: skip
    trainer = mixture(parts)
    names = [need.parameter for need in trainer.needs]
    losses, *_ = trainer.loss(**{name: torch.tensor(case[name], dtype=torch.float64) for name in names})
    imitation = -torch.tensor(case["policy_target_token_logps"], dtype=torch.float64).mean()
    assert (losses.mean() + imitation).item() == pytest.approx(case["loss"], rel=1e-9)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "empty"),
        ({"a": {"trainer": "KTOTrainer", "weight": 1.0}}, "losses.a.trainer=KTOTrainer is no loss on pairs"),
        ({"a": {"trainer": "MixtureTrainer", "weight": 1.0}}, "is no loss on pairs"),
        ({"a": {"trainer": "DPOTraner", "weight": 1.0}}, "did you mean"),
    ],
)
def test_a_part_that_does_not_fit_is_refused(parts: dict, message: str):
    """Prevents an error from the depths of a step for a slip in a YAML."""
    with pytest.raises(ValueError, match=message):
        MixtureTrainer.requirements(OmegaConf.create({"losses": parts}))


def test_a_key_that_a_part_lacks_is_named():
    """Prevents a KeyError in the first step."""
    trainer = mixture({"a": {"trainer": "DPOTrainer", "weight": 1.0}})
    with pytest.raises(ValueError, match="needs beta"):
        trainer.computer.gradients(rows_of("dpo"))
