"""What must hold between losses, where one becomes another, their slopes, and what they do far away in float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.trainers.test_loss_formulas import (
    GRID,
    LOG_2,
    SETTINGS,
    Loss,
    hyperparameters,
    ids_of,
    outputs,
    parameters,
    tensors,
)
from trainers.losses.lengths import ld_dpo, r_dpo, sigmoid_norm
from trainers.losses.one_sided import apo_zero, bco_pair, dpop, nca_pair
from trainers.losses.paired import cdpo, discopop, dpo, exo_pair, f_dpo, hinge, ipo, robust
from trainers.losses.policy_gradient import ppo
from trainers.losses.reference_free import cpo, orpo, simpo, slic
from trainers.losses.transport import aot, aot_unpaired
from trainers.losses.unpaired import apo_zero_unpaired, bco, kto, kto_logsigmoid, kto_simple, kto_zero

Four = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
SIZES = st.integers(1, 5)
FOUR = SIZES.flatmap(lambda size: st.tuples(*[st.lists(GRID, min_size=size, max_size=size)] * 4)).map(tensors)
ONE_PAIR = st.tuples(*[st.lists(GRID, min_size=1, max_size=1)] * 4).map(tensors)
BETA = st.floats(0.01, 2)
ONES = {"desirable_weight": 1.0, "undesirable_weight": 1.0}


def same(first: torch.Tensor, second: torch.Tensor, **tolerance: float) -> bool:
    """Equal losses of equal shapes, to the last digits unless said otherwise."""
    return first.shape == second.shape and torch.allclose(first, second, **{"rtol": 1e-10, "atol": 1e-12, **tolerance})


def swapped(four: Four) -> Four:
    """Chosen and rejected responses exchanged."""
    return four[1], four[0], four[3], four[2]


def zeros_like(four: Four) -> Four:
    """The two policies of four, against a reference of 0."""
    return four[0], four[1], torch.zeros_like(four[0]), torch.zeros_like(four[1])


def kl_of(*values: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mismatched log-probabilities of the policy and the reference, whose ratios are `values`."""
    reference = torch.full((len(values),), -9.0, dtype=torch.float64)
    return reference + torch.tensor(values, dtype=torch.float64), reference


def kto_with(loss: Callable, four: Four, kl: tuple[torch.Tensor, torch.Tensor], **setting: Any) -> torch.Tensor:
    return loss(four[0], four[1], kl[0], four[2], four[3], kl[1], **setting)[0]


# Policy and reference are the same -------------------------------------------------------------------------------

WHERE_EQUAL: dict[str, Callable[[dict[str, Any]], tuple[float, float]]] = {
    **dict.fromkeys(
        ("dpo", "cdpo", "robust", "f_dpo", "wpo", "dpop", "sigmoid_norm", "ld_dpo", "aot", "aot_unpaired"),
        lambda setting: (LOG_2, LOG_2),
    ),
    "r_dpo": lambda setting: (LOG_2, LOG_2),  # responses of one length
    "exo_pair": lambda setting: (-LOG_2 - math.log((1 - setting["smoothing"]) * setting["smoothing"]) / 2,) * 2,
    "hinge": lambda setting: (1.0, 1.0),
    "ipo": lambda setting: (1 / (4 * setting["tau"] ** 2),) * 2,
    "discopop": lambda setting: (LOG_2 / 2 + 1 / 2,) * 2,
    "nca_pair": lambda setting: (2 * LOG_2,) * 2,
    "bco_pair": lambda setting: (2 * LOG_2,) * 2,  # without a shift
    "sppo_hard": lambda setting: (1 / (2 * setting["beta"] ** 2),) * 2,
    "apo_zero": lambda setting: (1.0, 1.0),
    "apo_down": lambda setting: (1.0, 1.0),
    "kto": lambda setting: (setting["desirable_weight"] / 2, setting["undesirable_weight"] / 2),
    "apo_zero_unpaired": lambda setting: (setting["desirable_weight"] / 2, setting["undesirable_weight"] / 2),
    "kto-simple": lambda setting: (1 / 2, 1 / 2),
    "kto-zero": lambda setting: (1 / 2, 1 / 2),
    "kto-logsigmoid": lambda setting: (setting["desirable_weight"] * LOG_2, setting["undesirable_weight"] * LOG_2),
    "bco": lambda setting: (setting["desirable_weight"] * LOG_2, setting["undesirable_weight"] * LOG_2),
}
"""The losses of the two responses of a pair, or of a desirable and an undesirable one, at the first step."""
COMPARING = [one for one in SETTINGS if "reference_chosen_logps" in parameters(one[1].function)]


def test_every_loss_with_a_reference_has_a_value_at_the_first_step():
    """Prevents a new loss that starts with a bias nobody looked at."""
    assert {name for name, *_ in COMPARING} == set(WHERE_EQUAL)


@pytest.mark.parametrize(("name", "loss", "number"), COMPARING, ids=ids_of(COMPARING))
def test_policy_equal_to_reference(name: str, loss: Loss, number: int):
    """Prevents a bias at the first step: the loss is a constant whatever the responses are, and rewards are 0."""
    setting = hyperparameters(name, loss, number)
    logps = torch.tensor([-0.3, -7.0, -45.0], dtype=torch.float64)
    inputs = [
        torch.zeros((), dtype=torch.float64) if one == "shift"
        else torch.full_like(logps, 7.0) if one.endswith("_lengths")
        else torch.zeros_like(logps) if one.endswith("_alignments")
        else (logps - 1 if "rejected" in one else logps) / (2 if "shared" in one else 1)
        for one in parameters(loss.function)
    ]  # fmt: skip
    losses, chosen, rejected, *_ = outputs(loss, inputs, setting)
    good, bad = WHERE_EQUAL[name](setting)
    expected = [good] * 3 + [bad] * 3 if len(losses) == 6 else [good] * 3
    assert losses.tolist() == pytest.approx(expected, rel=1e-12)
    assert not chosen.any() and not rejected.any()


# Exchanged responses ---------------------------------------------------------------------------------------------


@given(FOUR, BETA)
def test_swapped_responses_have_the_other_probability(four: Four, beta: float):
    """Prevents an asymmetry of the sides: exp(-loss) are the two probabilities of Bradley and Terry, and add to 1."""
    lengths = tensors([[3.0] * len(four[0]), [5.0] * len(four[0])])
    shared = [one / 2 for one in four]
    for loss in (
        lambda four, lengths, shared: dpo(*four, beta=beta),
        lambda four, lengths, shared: f_dpo(*four, beta=beta, divergence="js", divergence_alpha=0.5),
        lambda four, lengths, shared: sigmoid_norm(*four, *lengths, beta=beta),
        lambda four, lengths, shared: r_dpo(*four, *lengths, beta=beta, length_alpha=0.1),
        lambda four, lengths, shared: ld_dpo(*four, *shared, beta=beta, ld_alpha=0.3),
        lambda four, lengths, shared: simpo(*four[:2], *lengths, beta=beta, gamma_beta_ratio=0.0),
        lambda four, lengths, shared: cpo(*four[:2], lengths[0], beta=beta, cpo_alpha=0.0, nll_reduction="sum"),
    ):
        first, chosen, rejected = loss(four, lengths, shared)
        second, swapped_chosen, swapped_rejected = loss(swapped(four), lengths[::-1], swapped(shared))
        assert same(torch.exp(-first) + torch.exp(-second), torch.ones_like(first))
        assert torch.equal(chosen, swapped_rejected) and torch.equal(rejected, swapped_chosen)


@given(FOUR, BETA, st.floats(0.01, 0.49))
def test_swapped_responses_are_a_label_that_is_wrong(four: Four, beta: float, share: float):
    """Prevents a share of wrong labels on the wrong side: swapped responses with 1 - epsilon are the same loss."""
    for loss, name in ((cdpo, "epsilon"), (robust, "epsilon"), (exo_pair, "smoothing")):
        first = loss(*four, beta=beta, **{name: share})[0]
        assert same(first, loss(*swapped(four), beta=beta, **{name: 1 - share})[0])
    for loss in (aot, aot_unpaired):
        first = loss(*four, beta=beta, epsilon=share)[0]
        second = loss(*swapped(four), beta=beta, epsilon=1 - share)[0]
        assert same(first, second if loss is aot_unpaired else second.flip(0))


@given(FOUR, BETA)
def test_swapped_responses_of_losses_without_probabilities(four: Four, beta: float):
    """Prevents an asymmetry of the sides where a loss is no probability."""
    (chosen, rejected, ref_chosen, ref_rejected), other = four, swapped(four)
    margins = chosen - ref_chosen - rejected + ref_rejected
    sums = apo_zero(*four, beta=beta)[0] + apo_zero(*other, beta=beta)[0]
    assert same(sums, torch.full_like(sums, 2.0))
    lengths = [torch.ones_like(chosen)] * 2
    first, second = (ipo(*one, *lengths, tau=beta, length_normalize=False)[0] for one in (four, other))
    assert same(second - first, 2 * margins / beta, atol=1e-7)
    assert same(torch.maximum(hinge(*four, beta=beta)[0], hinge(*other, beta=beta)[0]), 1 + beta * margins.abs())
    negative = [-one for one in other]
    for loss in (kto, kto_logsigmoid):
        weights, exchanged = (
            {"desirable_weight": 1.3, "undesirable_weight": 0.6}, {"desirable_weight": 0.6, "undesirable_weight": 1.3}
        )  # fmt: skip
        here = kto_with(loss, four, kl_of(0.0), beta=beta, **weights)
        there = kto_with(loss, negative, kl_of(0.0), beta=beta, **exchanged)
        assert same(here, torch.cat(there.chunk(2)[::-1]))


# One loss is another ---------------------------------------------------------------------------------------------


@given(FOUR, BETA)
def test_what_is_dpo(four: Four, beta: float):
    """Prevents a hyperparameter at its neutral value that still changes something."""
    expected, ones = dpo(*four, beta=beta)[0], [torch.ones_like(four[0])] * 2
    lengths = [torch.full_like(four[0], 3.0), torch.full_like(four[0], 8.0)]
    assert same(cdpo(*four, beta=beta, epsilon=0.0)[0], expected)
    assert same(robust(*four, beta=beta, epsilon=0.0)[0], expected)
    assert same(dpop(*four, beta=beta, lambda_coef=0.0)[0], expected)
    assert same(r_dpo(*four, *lengths, beta=beta, length_alpha=0.0)[0], expected)
    assert same(ld_dpo(*four, *(one / 3 for one in four), beta=beta, ld_alpha=1.0)[0], expected)
    assert same(ld_dpo(*four, *four, beta=beta, ld_alpha=0.3)[0], expected)
    assert same(f_dpo(*four, beta=beta, divergence="reverse_kl", divergence_alpha=0.3)[0], expected)
    assert same(sigmoid_norm(*four, *ones, beta=beta)[0], expected)
    above = [torch.maximum(four[0], four[2]), four[1], four[2], four[3]]
    assert same(dpop(*above, beta=beta, lambda_coef=50.0)[0], dpo(*above, beta=beta)[0])
    free = dpo(*zeros_like(four), beta=beta)[0]
    assert same(cpo(*four[:2], lengths[0], beta=beta, cpo_alpha=0.0, nll_reduction="mean")[0], free)
    assert same(simpo(*four[:2], *ones, beta=beta, gamma_beta_ratio=0.0)[0], free)


@given(FOUR, BETA, st.floats(0.0, 0.49))
def test_noise_in_the_labels(four: Four, beta: float, epsilon: float):
    """Prevents an estimate of DPO that flips of the labels bias, which is all that robust DPO is for."""
    right, flipped = (robust(*one, beta=beta, epsilon=epsilon)[0] for one in (four, swapped(four)))
    assert same((1 - epsilon) * right + epsilon * flipped, dpo(*four, beta=beta)[0], rtol=1e-8)


@given(FOUR)
def test_the_ends_of_the_alpha_divergence(four: Four):
    """Prevents an alpha from the other end: it is the reverse KL (DPO) near 0 and the forward KL near 1."""
    near = [one / 8 for one in four]
    low, high = (f_dpo(*near, beta=0.3, divergence="alpha", divergence_alpha=a)[0] for a in (1e-6, 1 - 1e-6))
    assert same(low, dpo(*near, beta=0.3)[0], rtol=1e-4)
    assert same(high, f_dpo(*near, beta=0.3, divergence="forward_kl", divergence_alpha=0.5)[0], rtol=1e-4, atol=1e-5)


def test_the_ends_of_discopop():
    """Prevents a blend the wrong way round: logistic far below a margin of 0, exponential far above."""
    margins, zero = torch.tensor([-40.0, -9.0, 9.0, 40.0], dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    losses = discopop(margins, zero, zero, zero, beta=1.0, tau=0.05)[0]
    assert same(losses[:2], dpo(margins, zero, zero, zero, beta=1.0)[0][:2])
    assert same(losses[2:], torch.exp(-margins[2:]), rtol=1e-12, atol=0.0)


@given(ONE_PAIR, BETA, st.floats(0.0, 0.49))
def test_transport_of_one_pair_is_cdpo(four: Four, beta: float, epsilon: float):
    """Prevents a difference of quantiles with the reference on the wrong side."""
    expected = cdpo(*four, beta=beta, epsilon=epsilon)[0]
    assert same(aot(*four, beta=beta, epsilon=epsilon)[0], expected)
    assert same(aot_unpaired(*four, beta=beta, epsilon=epsilon)[0], expected)


@given(FOUR, BETA)
def test_what_is_kto_zero(four: Four, beta: float):
    """Prevents two of these losses from drifting apart: an estimate of 0 is no estimate, APO's parts are the same."""
    expected = kto_zero(*four, beta=beta)[0]
    for kl in (kl_of(0.0), kl_of(-3.0, 3.0), kl_of(-5.0, 1.0)):
        assert same(kto_with(kto, four, kl, beta=beta, **ONES), expected)
    assert same(apo_zero_unpaired(*four, beta=beta, **ONES)[0], expected)
    assert same(apo_zero(*four, beta=beta)[0], sum(expected.chunk(2)))
    below = [torch.minimum(four[0], four[2]), torch.minimum(four[1], four[3]), four[2], four[3]]
    assert same(kto_simple(*below, beta=beta)[0], kto_zero(*below, beta=beta)[0])


@given(FOUR, BETA, st.floats(0, 5))
def test_what_is_bco(four: Four, beta: float, estimate: float):
    """Prevents a shift in other units or on one side: KTO's logarithm with its estimate z is BCO with beta z."""
    shift = torch.tensor(beta * estimate, dtype=torch.float64)
    parts = bco(*four, shift, beta=beta, **ONES)[0]
    assert same(bco_pair(*four, shift, beta=beta)[0], sum(parts.chunk(2)))
    assert same(kto_with(kto_logsigmoid, four, kl_of(estimate), beta=beta, **ONES), parts)
    none = bco_pair(*four, torch.zeros_like(shift), beta=beta)[0]
    chosen = beta * (four[0] - four[2])
    rejected = torch.nn.functional.logsigmoid(-beta * (four[1] - four[3]))
    assert same(nca_pair(*four, beta=beta)[0], none + torch.nn.functional.softplus(chosen) / 2 + rejected / 2)


@given(FOUR, BETA)
def test_what_is_ipo_and_hinge(four: Four, beta: float):
    """Prevents a length that enters the paper's formula, and a margin that is another for SLiC than for the hinge."""
    ones, lengths = [torch.ones_like(four[0])] * 2, [torch.full_like(four[0], 3.0), torch.full_like(four[0], 8.0)]
    summed = ipo(*four, *lengths, tau=beta, length_normalize=False)[0]
    assert same(ipo(*four, *ones, tau=beta, length_normalize=True)[0], summed)
    calibration = slic(*four[:2], *lengths, beta=1 / beta, lambda_coef=0.0, length_normalize=False)[0]
    assert same(calibration, hinge(*zeros_like(four), beta=beta)[0] / beta)
    assert same(slic(*four[:2], *ones, beta=1 / beta, lambda_coef=0.0, length_normalize=True)[0], calibration)


# Slopes ----------------------------------------------------------------------------------------------------------


@given(st.floats(0.05, 2), st.floats(0.01, 0.49))
def test_where_losses_are_least(beta: float, share: float):
    """Prevents a share of wrong labels that moves the optimum elsewhere than to log((1 - share) / share) / beta."""
    best, zero = math.log((1 - share) / share) / beta, torch.zeros(3, dtype=torch.float64)
    margins = (best + torch.tensor([-0.1, 0.0, 0.1], dtype=torch.float64)).requires_grad_()
    for loss, name in ((cdpo, "epsilon"), (exo_pair, "smoothing")):
        losses = loss(margins, zero, zero, zero, beta=beta, **{name: share})[0]
        slopes = torch.autograd.grad(losses.sum(), margins)[0]
        assert slopes[0] < 0 < slopes[2] and abs(slopes[1].item()) < 1e-12
        assert loss is cdpo or abs(losses[1].item()) < 1e-12


def test_no_slope_beyond_the_margin():
    """Prevents the hinge and SLiC from pulling at pairs that are told apart already."""
    apart = torch.tensor([9.9, 10.1], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(2, dtype=torch.float64)
    for losses in (
        hinge(apart, zero, zero, zero, beta=0.1)[0],
        slic(apart, zero, zero, zero, beta=10.0, lambda_coef=0.0, length_normalize=False)[0] / 10,
    ):
        assert torch.autograd.grad(losses.sum(), apart)[0].tolist() == pytest.approx([-0.1, 0.0])


def test_orpo_of_equal_responses():
    """Prevents odds of whole responses: two of equal means but other lengths are as likely, so it is NLL + log 2."""
    whole, lengths = tensors([[-6.0], [-15.0]]), tensors([[4.0], [10.0]])
    assert orpo(*whole, *lengths, OR_scale=0.5)[0].item() == pytest.approx(1.5 + 0.5 * LOG_2)


SLOPES = {
    "policy_chosen": [-3.1, -2.2, -5.3], "policy_rejected": [-4.7, -1.9, -2.6], "policy_KL": [-2.0, -1.0, -0.5],
    "reference_chosen": [-3.6, -1.4, -4.1], "reference_rejected": [-4.0, -2.9, -3.3], "reference_KL": [-2.2, -3.0, -1],
    "policy_target": [-0.1, -2.0, -7.0], "reference_target": [-0.8, -1.9, -6.0], "shift": 0.3,
    "chosen_lengths": [3.0, 5.0, 2.0], "rejected_lengths": [4.0, 1.0, 6.0], "target_lengths": [1.0, 4.0, 3.0],
    "target_rewards": [0.0, 2.0, 1.0], "target_groups": [1.0, 1.0, 1.0], "target_token_advantages": [1.0, -1.0, 0.5],
    "target_token_scores": [0.1, 0.7, 0.9], "policy_target_token_values": [0.2, -0.1, 0.4],
    "policy_chosen_alignments": [-0.4, -0.2, 0.1],
    "policy_rejected_alignments": [-0.3, 0.0, -0.6],
}  # fmt: skip
"""Both sides of every kink, and none of them near: r is 0.5, -0.8, -1.2 of chosen and -0.7, 1, 0.7 of rejected ones, m
is 1.2, -1.8, -1.9, the means -0.5 and 1/3, the margins of the policy alone 1.6, -0.3, -2.7; no two values to sort are
the same; q is 2.0, 0.9 and 0.4."""
TRAINED = {"policy_chosen", "policy_rejected", "policy_target"}
CONSTANTS = ("policy_KL_logps", "_alignments")


@pytest.mark.parametrize(("name", "loss", "number"), SETTINGS, ids=ids_of(SETTINGS))
def test_gradient_by_finite_differences(name: str, loss: Loss, number: int):
    """Prevents a detach too many or too few: the estimate of KTO and the weights of WPO are constants."""
    setting, inputs = hyperparameters(name, loss, number), {}
    for parameter in parameters(loss.function):
        key = parameter.removesuffix("_logps").removesuffix("_token").removesuffix("_shared")
        inputs[parameter] = torch.tensor(SLOPES[key], dtype=torch.float64, requires_grad=key in TRAINED)
    if loss.function is ppo:
        inputs |= {"target_lengths": torch.tensor([1.0, 2.0]), "target_rewards": torch.tensor([1.0, -0.5])}
    trained = [one for one in inputs.values() if one.requires_grad]
    assert trained and torch.autograd.gradcheck(lambda *_: outputs(loss, list(inputs.values()), setting)[0], trained)
    constants = [one.requires_grad_() for key, one in inputs.items() if key.endswith(CONSTANTS)]
    if constants:
        losses = outputs(loss, list(inputs.values()), setting)[0]
        assert not any(slope is not None for slope in torch.autograd.grad(losses.sum(), constants, allow_unused=True))


# Far away, in float32 --------------------------------------------------------------------------------------------

FAR = [(good, bad) for good, bad in product((-1e4, -80.0, 0.0, 80.0, 1e4), repeat=2)]
"""Log-ratios of chosen and rejected responses."""
OTHERS = {
    "shift": 0.0,
    "alignments": -0.5,
    "lengths": 1.0,
    "rewards": 1.0,
    "groups": 0.0,
    "advantages": -1.0,
    "values": 0.5,
}


def far_inputs(loss: Loss, pairs: list[tuple[float, float]], certain: bool = False) -> dict[str, torch.Tensor]:
    """Responses of one token with these log-ratios; `certain`: the likelier of the two models is sure of them."""
    made, top = {}, 0.0 if certain else -0.5
    for name in parameters(loss.function):
        if (kind := name.rpartition("_")[2]) in OTHERS:
            made[name] = torch.tensor(OTHERS[kind]) if name == "shift" else torch.full((len(pairs),), OTHERS[kind])
            continue
        ratios, policy = [pair["rejected" in name] for pair in pairs], name.startswith("policy")
        values = [top + (min(ratio, 0.0) if policy else -max(ratio, 0.0)) for ratio in ratios]
        made[name] = torch.tensor(values, dtype=torch.float32, requires_grad=policy and "KL" not in name)
    return made


def check(loss: Loss, inputs: dict[str, torch.Tensor], setting: dict[str, Any], count: int) -> None:
    """One finite float32 number per example, finite slopes, and rewards that hold no graph."""
    losses, *rest = outputs(loss, list(inputs.values()), setting)
    assert losses.dtype == torch.float32 and losses.shape == (count,)
    assert losses.isfinite().all(), losses
    slopes = torch.autograd.grad(losses.sum(), [one for one in inputs.values() if one.requires_grad])
    assert all(one.isfinite().all() for one in slopes), slopes
    assert all(one.dtype == torch.float32 and one.isfinite().all() and not one.requires_grad for one in rest)
    if rest:
        assert sum(map(len, rest[:2])) == (count if single(loss) else 2 * count)


def single(loss: Loss) -> bool:
    """Whether its two sides are no pairs."""
    return loss.function.__module__.endswith("unpaired")


@pytest.mark.parametrize(("name", "loss", "number"), SETTINGS, ids=ids_of(SETTINGS))
def test_far_away(name: str, loss: Loss, number: int):
    """Prevents inf and nan in float32: policies that are 80 and 10000 nats from the reference on either side, equal
    ones, and certain ones, each alone and all in a batch. Forward KL and alpha may become huge, not infinite."""
    setting = hyperparameters(name, loss, number)
    for pairs in (FAR, *([pair] for pair in FAR)):
        for certain in (False, True):
            check(loss, far_inputs(loss, pairs, certain), setting, len(pairs) * (2 if single(loss) else 1))


MAY_BE_EMPTY = [one for one in SETTINGS if one[1].function is not ppo]
"""PPO is given the tokens of all processes, of which there are some."""


@pytest.mark.parametrize(("name", "loss", "number"), MAY_BE_EMPTY, ids=ids_of(MAY_BE_EMPTY))
def test_nothing_and_half_of_it(name: str, loss: Loss, number: int):
    """Prevents an error or a nan in a micro-batch without rows, or without one of the two classes."""
    for good, bad in [(0, 0), *([(0, 2), (2, 0)] if single(loss) else [])]:
        inputs = far_inputs(loss, [(80.0, -80.0), (-1.0, 2.0)])
        for key, value in inputs.items():
            if value.dim() and "KL" not in key:
                kept = value.detach()[: bad if "rejected" in key else good]
                inputs[key] = kept.requires_grad_(value.requires_grad)
        check(loss, inputs, hyperparameters(name, loss, number), good + bad)
