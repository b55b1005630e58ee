"""Every loss that TRL 1.16 has too, against what TRL's own code computed: see record_trl.py."""

import inspect
import json
import re
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.trainers.steps import CASES
from trainers.losses.one_sided import bco_pair

RECORDED = json.loads(Path(__file__).with_name("trl_recorded.json").read_text())
ELSEWHERE = {"trl", "torch", "sft", "dpo", "kto", "mixture"}
NAMES = sorted(set(RECORDED) - ELSEWHERE)
OWN_REWARDS = {"ipo", "sigmoid_norm", "f_dpo"}
"""Where TRL logs beta times the log-ratio, whatever its loss does with it."""


def function_of(name: str):
    """The pure function of a loss."""
    return bco_pair if name == "bco_pair" else CASES[name][0].loss.__wrapped__


def computed(name: str, case: dict):
    """Losses and rewards, and the policy's tensors that slopes are taken of."""
    function = function_of(name)
    given = {
        key: torch.tensor(case[key], dtype=torch.float64)
        for key in case
        if key.endswith(("logps", "lengths")) and not key.endswith("token_logps")
    }
    for side in ("chosen", "rejected") if name == "wpo" else ():
        kinds = (f"policy_{side}_token_logps", f"policy_{side}_token_log_sum_sq_probs")
        tokens = [[torch.tensor(one, dtype=torch.float64) for one in case[kind]] for kind in kinds]
        means = [(logps - squares).mean() for logps, squares in zip(*tokens, strict=True)]
        given[f"policy_{side}_alignments"] = torch.stack(means)
    given["shift"] = torch.zeros((), dtype=torch.float64)
    parameters = inspect.signature(function).parameters.values()
    tensors = {one.name: given[one.name] for one in parameters if one.kind is not one.KEYWORD_ONLY}
    settings = {one.name: case["settings"][one.name] for one in parameters if one.kind is one.KEYWORD_ONLY}
    leaves = {key: tensors[key].requires_grad_() for key in tensors if re.fullmatch("policy_.*_logps", key)}
    return function(**tensors, **settings), leaves, tensors


@pytest.mark.parametrize(("name", "number"), [(name, n) for name in NAMES for n in range(len(RECORDED[name]))])
def test_a_loss_is_trls(name: str, number: int):
    """Prevents any difference from TRL 1.16: the loss and its slopes, shared and tail tokens apart, and rewards."""
    case = RECORDED[name][number]
    within = case.get("precision", 1e-9)
    (losses, chosen, rejected, *_), leaves, tensors = computed(name, case)
    if name == "orpo":  # TRL's imitation is a mean over the tokens of a batch; what is recorded is the odds ratio
        losses = losses + tensors["policy_chosen_logps"] / tensors["chosen_lengths"]
    assert losses.mean().item() == pytest.approx(case["loss"], rel=within)
    slopes = dict(zip(leaves, torch.autograd.grad(losses.mean(), list(leaves.values())), strict=True))
    for side in ("chosen", "rejected"):
        whole, shared = slopes[f"policy_{side}_logps"], slopes.get(f"policy_{side}_shared_logps", torch.zeros(()))
        assert (whole + shared).tolist() == pytest.approx(case[f"{side}_slopes"], rel=within * 10, abs=within)
        for slope, tail in zip(whole.tolist(), case.get(f"{side}_tail_slopes", []), strict=False):
            assert tail is None or slope == pytest.approx(tail, rel=within * 10, abs=within)
    if name not in OWN_REWARDS:
        assert chosen.mean().item() == pytest.approx(case["rewards/chosen"], rel=within, abs=within)
        assert rejected.mean().item() == pytest.approx(case["rewards/rejected"], rel=within, abs=within)


def test_the_record_covers_what_trl_has():
    """Prevents a loss that is left out of the record, and a record of one setting."""
    assert RECORDED["trl"] == "1.16.0"
    paired = {"hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"}
    paired |= {"apo_zero", "apo_down", "discopop", "sigmoid_norm", "ld_dpo", "f_dpo", "wpo", "simpo", "cpo", "orpo"}
    assert set(NAMES) == paired | {"apo_zero_unpaired"}
    for name in NAMES:
        assert len(RECORDED[name]) >= 3
        assert len({json.dumps(case["settings"], sort_keys=True) for case in RECORDED[name]}) >= 3, name
        assert set(RECORDED[name][0]["settings"]) <= set(tiny.config(name).loss), name
    kinds = {case["settings"]["divergence"] for case in RECORDED["f_dpo"]}
    assert kinds == {"forward_kl", "js", "alpha"}
    assert any(slope == 0 for case in RECORDED["hinge"] for slope in case["chosen_slopes"]), "both sides of the kink"
