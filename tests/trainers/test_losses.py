"""The losses as formulas: by hand, by what must hold, against TRL 1.16, and their gradients by finite differences."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.losses.paired import dpo
from trainers.losses.sft import sft
from trainers.losses.unpaired import kto, kto_logsigmoid

RECORDED = json.loads(Path(__file__).with_name("trl_recorded.json").read_text())
LOGPS = st.lists(st.floats(-300, 0), min_size=1, max_size=6)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_sft_by_hand():
    """Prevents a wrong sign or a reduced loss: log-probabilities -1.5 and -0.25 cost 1.5 and 0.25, each by itself."""
    assert sft(tensor(-1.5, -0.25)).tolist() == [1.5, 0.25]


def test_dpo_by_hand():
    """Prevents a wrong sign, a missing beta or a reference on the wrong side.

    Ratios: chosen -10 - -12 = 2, rejected -20 - -15 = -5. With beta 0.1 the margin is 0.1 * (2 + 5) = 0.7, the loss
    -log sigmoid(0.7) = log(1 + exp(-0.7)) = 0.403186, the rewards are 0.2 and -0.5.
    """
    losses, chosen, rejected = dpo(tensor(-10), tensor(-20), tensor(-12), tensor(-15), beta=0.1)
    assert losses.tolist() == pytest.approx([0.4031860], abs=1e-7)
    assert (chosen.item(), rejected.item()) == pytest.approx((0.2, -0.5))


def test_kto_by_hand():
    """Prevents a KL of the wrong rows, a sum for a mean, a lambda on the wrong class.

    Ratios: desirable -10 - -12 = 2, undesirable -20 - -15 = -5; mismatched 3 and -1, so z = 1. With beta 0.5:
    desirable 1.2 * (1 - sigmoid(0.5 * (2 - 1))) = 1.2 * 0.377541 = 0.453049,
    undesirable 0.7 * (1 - sigmoid(0.5 * (1 + 5))) = 0.7 * 0.047426 = 0.033198.
    """
    losses, chosen, rejected, kl = kto(
        tensor(-10), tensor(-20), tensor(-2, -6), tensor(-12), tensor(-15), tensor(-5, -5),
        beta=0.5, desirable_weight=1.2, undesirable_weight=0.7,
    )  # fmt: skip
    assert losses.tolist() == pytest.approx([0.4530488, 0.0331981], abs=1e-7)
    assert (chosen.item(), rejected.item(), kl.item()) == pytest.approx((1.0, -2.5, 1.0))


def test_kto_clamps_the_estimate_at_zero():
    """Prevents a negative KL, which would make every desirable response look good: ratios -3 and 1 have the mean -1."""
    losses, *_, kl = kto(tensor(-1), tensor(-1), tensor(-5, -2), tensor(-1), tensor(-1), tensor(-2, -3), beta=0.1)
    assert kl.item() == 0
    assert losses.tolist() == [0.5, 0.5]


@given(LOGPS, st.floats(0.01, 2))
def test_policy_equal_to_reference_is_indifferent(values: list[float], beta: float):
    """Prevents a bias at the first step: DPO is log 2, KTO 1/2 of the weights, all rewards 0, without an estimate."""
    logps = tensor(*values)
    losses, chosen, rejected = dpo(logps, logps - 1, logps, logps - 1, beta=beta)
    assert torch.allclose(losses, torch.full_like(logps, math.log(2)))
    assert not chosen.any() and not rejected.any()
    losses, *_, kl = kto(logps, logps, logps, logps, logps, logps, beta=beta, desirable_weight=3, undesirable_weight=2)
    assert losses.tolist() == [1.5] * len(values) + [1.0] * len(values)
    assert kl.item() == 0


@given(st.floats(-30, 30), st.floats(-30, 30), st.floats(0.01, 1))
def test_swapped_responses_flip_the_margin(good: float, bad: float, beta: float):
    """Prevents an asymmetry between the two sides: exp(-loss) are the two probabilities of Bradley and Terry."""
    zero = tensor(0)
    first, *_ = dpo(tensor(good), tensor(bad), zero, zero, beta=beta)
    second, *_ = dpo(tensor(bad), tensor(good), zero, zero, beta=beta)
    assert (torch.exp(-first) + torch.exp(-second)).item() == pytest.approx(1)
    desirable, *_ = kto(tensor(good), tensor(bad), zero, zero, zero, zero, beta=beta)
    swapped, *_ = kto(tensor(-bad), tensor(-good), zero, zero, zero, zero, beta=beta)
    assert desirable.tolist() == pytest.approx(swapped.flip(0).tolist())


def test_limits():
    """Prevents overflow: far away DPO is linear, KTO saturates, and neither is inf or nan in float32."""
    far, zero = torch.tensor([1e4]), torch.zeros(1)
    assert dpo(-far, zero, zero, zero, beta=1.0)[0].item() == pytest.approx(1e4)
    assert dpo(far, zero, zero, zero, beta=1.0)[0].item() == 0
    losses, *_ = kto(far, far, zero, zero, zero, zero, beta=1.0)
    assert losses.tolist() == [0, 1]
    losses, *_ = kto(-far, -far, zero, zero, zero, zero, beta=1.0)
    assert losses.tolist() == [1, 0]


@given(LOGPS, st.floats(0.1, 10))
def test_only_beta_times_the_ratio_matters(values: list[float], scale: float):
    """Prevents a beta that is applied twice or to one side: ratios twice as large at half of beta are the same."""
    logps, zero = tensor(*values), torch.zeros(len(values), dtype=torch.float64)
    for loss in (
        lambda r, beta: dpo(r, -r, zero, zero, beta=beta)[0],
        lambda r, beta: kto(r, -r, r, zero, zero, zero, beta=beta)[0],
    ):
        assert torch.allclose(loss(logps, 0.1), loss(logps * scale, 0.1 / scale))


def test_an_empty_class_is_an_empty_part():
    """Prevents an error or a nan where a micro-batch or a process has one class or no row."""
    none, one = torch.zeros(0, dtype=torch.float64), tensor(-3)
    losses, chosen, rejected, _ = kto(none, one, one, none, one, one, beta=0.1)
    assert (len(losses), len(chosen), len(rejected)) == (1, 0, 1)
    losses, *_ = kto(none, none, one, none, none, one, beta=0.1)
    assert len(losses) == 0


def test_an_estimate_of_no_response_is_refused():
    """Prevents a loss of nan where a loader of one's own gives a step without mismatched responses."""
    none, one = torch.zeros(0, dtype=torch.float64), tensor(-3)
    weights = {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}
    for loss in (kto, kto_logsigmoid):
        with pytest.raises(ValueError, match=r"policy_KL_logps is empty.*loss=kto-zero"):
            loss(one, one, none, one, one, none, **weights)


@pytest.mark.parametrize("case", RECORDED["sft"])
def test_sft_is_trl(case: dict):
    """Prevents another normalization than TRL 1.16 has: the mean over all target tokens, and its slopes."""
    logps = tensor(*case["policy_target_token_logps"]).requires_grad_()
    loss = sft(logps).mean()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-12)
    assert torch.autograd.grad(loss, logps)[0].tolist() == pytest.approx(case["slopes"], rel=1e-12)


@pytest.mark.parametrize("case", RECORDED["dpo"])
def test_dpo_is_trl(case: dict):
    """Prevents any difference from TRL 1.16 in float64: loss, slopes, rewards."""
    names = ("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")
    values = {name: tensor(*case[name]) for name in names}
    leaves = [values[name].requires_grad_() for name in names[:2]]
    losses, chosen, rejected = dpo(**values, beta=case["beta"])
    slopes = torch.autograd.grad(losses.mean(), leaves)
    assert losses.mean().item() == pytest.approx(case["loss"], rel=1e-12)
    assert slopes[0].tolist() == pytest.approx(case["chosen_slopes"], rel=1e-9)
    assert slopes[1].tolist() == pytest.approx(case["rejected_slopes"], rel=1e-9)
    assert chosen.mean().item() == pytest.approx(case["rewards/chosen"])
    assert rejected.mean().item() == pytest.approx(case["rewards/rejected"])
    assert (chosen > rejected).double().mean().item() == pytest.approx(case["rewards/accuracies"])


@pytest.mark.parametrize("case", RECORDED["kto"])
def test_kto_is_trl(case: dict):
    """Prevents any difference from TRL 1.16 in float64: loss, slopes, rewards and the estimate, clamped or not."""
    values = {name: tensor(*value) for name, value in case.items() if name.endswith("_logps")}
    leaves = [values[name].requires_grad_() for name in ("policy_chosen_logps", "policy_rejected_logps")]
    weights = {name: case[name] for name in ("beta", "desirable_weight", "undesirable_weight")}
    losses, chosen, rejected, kl = kto(**values, **weights)
    slopes = torch.autograd.grad(losses.mean(), leaves)
    assert losses.mean().item() == pytest.approx(case["loss"], rel=1e-12)
    assert kl.item() == pytest.approx(case["kl"])
    assert slopes[0].tolist() == pytest.approx(case["chosen_slopes"], rel=1e-9, abs=1e-15)
    assert slopes[1].tolist() == pytest.approx(case["rejected_slopes"], rel=1e-9, abs=1e-15)
    assert chosen.mean().item() == pytest.approx(case["rewards/chosen"])
    assert rejected.mean().item() == pytest.approx(case["rewards/rejected"])


def test_the_record_covers_both_sides_of_the_clamp():
    """Prevents a record that would not notice a missing clamp."""
    assert RECORDED["trl"] == "1.16.0"
    assert {case["kl"] > 0 for case in RECORDED["kto"]} == {True, False}


@settings(max_examples=5)
@given(st.integers(0, 2**31))
def test_gradients_by_finite_differences(seed: int):
    """Prevents a detach too many or too few: gradcheck in float64, with the KL held as the constant that it is."""
    generator = torch.Generator().manual_seed(seed)
    logps = [(-5 * torch.rand(3, generator=generator, dtype=torch.float64)).requires_grad_() for _ in range(2)]
    fixed = [-5 * torch.rand(3, generator=generator, dtype=torch.float64) for _ in range(4)]
    assert torch.autograd.gradcheck(lambda c, r: dpo(c, r, *fixed[:2], beta=0.3)[0], logps)
    assert torch.autograd.gradcheck(
        lambda c, r: kto(c, r, fixed[2], fixed[0], fixed[1], fixed[3], beta=0.3, desirable_weight=2.0)[0], logps
    )
    assert torch.autograd.gradcheck(sft, logps[:1])


def test_no_gradient_flows_through_the_estimate_or_the_rewards():
    """Prevents KTO from lowering its loss by moving the KL rows, and rewards that keep the graph alive."""
    kl = tensor(-1.0, -2.0).requires_grad_()
    logps = tensor(-3.0).requires_grad_()
    losses, chosen, rejected, estimate = kto(logps, logps, kl, tensor(-4.0), tensor(-4.0), tensor(-5.0, -5.0), beta=0.1)
    losses.sum().backward()
    assert estimate.item() > 0
    assert kl.grad is None
    assert not any(value.requires_grad for value in (chosen, rejected, estimate))
