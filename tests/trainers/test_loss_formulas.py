"""Every loss of config/loss against its paper: a case by hand, and `formulas` on drawn inputs."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

import trainers.losses
from tests.trainers import formulas
from trainers.losses.lengths import ld_dpo, r_dpo, sigmoid_norm
from trainers.losses.one_sided import apo_down, apo_zero, bco_pair, chosen_nll, dpop, nca_pair, sppo_hard
from trainers.losses.paired import cdpo, discopop, dpo, exo_pair, f_dpo, hinge, ipo, robust, wpo
from trainers.losses.policy_gradient import grpo, ppo
from trainers.losses.pretraining import awr, conditional, filtering, mle, rwr, unlikelihood
from trainers.losses.ranked import rrhf
from trainers.losses.reference_free import cpo, orpo, simpo, slic
from trainers.losses.sft import csft, sft
from trainers.losses.transport import aot, aot_unpaired
from trainers.losses.unpaired import apo_zero_unpaired, bco, kto, kto_logsigmoid, kto_simple, kto_zero

CONFIG = Path(__file__).parents[2] / "config" / "loss"
NOT_COVERED = {"mpo"}
"""YAMLs whose loss is no pure function of `trainers.losses`: mpo is a sum of others."""


@dataclass(frozen=True)
class Hand:
    """One case worked out by hand: positional inputs, and what has to come of them."""

    inputs: tuple[Any, ...]
    hyperparameters: dict[str, Any]
    losses: list[float]
    chosen_rewards: list[float] = field(default_factory=list)
    rejected_rewards: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Loss:
    """A loss, its cases by hand, and settings to try beside its YAML's. `in_lists`: its formula takes lists."""

    function: Callable
    hand: list[Hand]
    others: tuple[dict[str, Any], ...]
    in_lists: bool = False

    @property
    def formula(self) -> Callable:
        return getattr(formulas, self.function.__name__)


PAIR = ([-10.0], [-20.0], [-12.0], [-15.0])
"""Ratios 2 (chosen) and -5 (rejected), so m = 7. With beta 0.1: rewards 0.2 and -0.5, beta m = 0.7.
log(1 + exp(-0.7)) = 0.4031860 and log(1 + exp(0.7)) = 0.7 + 0.4031860 = 1.1031860. Lengths below are 4 and 10."""
ONE_MORE = ([-1.0], [-3.0], [-2.0], [-3.0])
LENGTHS = ([4.0], [10.0])
LOG_2 = math.log(2)
WITH_KL = ([-10.0], [-20.0], [-2.0, -6.0], [-12.0], [-15.0], [-5.0, -5.0])
"""As PAIR, with mismatched ratios 3 and -1, so z = 1."""
TWO_PAIRS = ([-10.0, -5.0], [-20.0, -6.0], [-12.0, -4.0], [-15.0, -9.0])
BOTH_WEIGHTS = {"desirable_weight": 1.2, "undesirable_weight": 0.7}

TABLE = {
    # log(1 + exp(-0.7))
    "dpo": Loss(dpo, [Hand(PAIR, {"beta": 0.1}, [0.4031860], [0.2], [-0.5])], ({"beta": 0.9},)),
    # 0.8 * 0.4031860 + 0.2 * 1.1031860 = 0.3225488 + 0.2206372 = 0.5431860
    "cdpo": Loss(cdpo, [Hand(PAIR, {"beta": 0.1, "epsilon": 0.2}, [0.5431860], [0.2], [-0.5])],
        ({"beta": 0.9, "epsilon": 0.45}, {"epsilon": 0.0})),
    # (0.9 * 0.4031860 - 0.1 * 1.1031860) / 0.8 = (0.3628674 - 0.1103186) / 0.8
    "robust": Loss(robust, [Hand(PAIR, {"beta": 0.1, "epsilon": 0.1}, [0.3156860], [0.2], [-0.5])],
        ({"beta": 0.9, "epsilon": 0.4}, {"epsilon": 0.0})),
    # p = 1 / (1 + exp(-0.7)) = 0.6681878: p (log p - log 0.9) + (1 - p) (log(1 - p) - log 0.1)
    # = 0.6681878 * (-0.4031860 + 0.1053605) + 0.3318122 * (-1.1031860 + 2.3025851) = -0.1990034 + 0.3979753
    "exo_pair": Loss(exo_pair, [Hand(PAIR, {"beta": 0.1, "smoothing": 0.1}, [0.1989719], [0.2], [-0.5])],
        ({"beta": 0.9, "smoothing": 0.3},)),
    # 1 - 0.7; beyond a margin of 5 nats, 1 - 0.2 * 7 < 0 is 0
    "hinge": Loss(hinge, [
        Hand(PAIR, {"beta": 0.1}, [0.3], [0.2], [-0.5]), Hand(PAIR, {"beta": 0.2}, [0.0], [0.4], [-1.0]),
    ], ({"beta": 0.9},)),
    # (7 - 1 / 0.2)^2 = 4; means over tokens: 2 / 4 + 5 / 10 = 1, (1 - 5)^2 = 16
    "ipo": Loss(ipo, [
        Hand((*PAIR, *LENGTHS), {"tau": 0.1, "length_normalize": False}, [4.0], [0.2], [-0.5]),
        Hand((*PAIR, *LENGTHS), {"tau": 0.1, "length_normalize": True}, [16.0], [0.05], [-0.05]),
    ], ({"tau": 0.7}, {"length_normalize": True})),
    # g = sigmoid(0.7 / 0.7) = 0.7310586: 0.2689414 * 0.4031860 + 0.7310586 * exp(-0.7) (0.4965853)
    # = 0.1084334 + 0.3630329 = 0.4714664
    "discopop": Loss(discopop, [Hand(PAIR, {"beta": 0.1, "tau": 0.7}, [0.4714664], [0.2], [-0.5])],
        ({"beta": 0.9, "tau": 0.8},)),
    # Ratios 1 and 0, so u = e and 1, and f'(1) = 0 in the rewards. beta f'(e) = 0.5 f'(e): reverse KL 0.5 * 1,
    # forward KL 0.5 (1 - 1 / e) = 0.3160603, js 0.5 (log 2 - log(1 + 1 / e)) = 0.5 (0.6931472 - 0.3132617) = 0.1899427,
    # alpha 0.5: 0.5 (1 - exp(-0.5)) / 0.5 = 0.3934693; then log(1 + exp(-x))
    "f_dpo": Loss(f_dpo, [
        Hand(ONE_MORE, {"beta": 0.5, "divergence": name, "divergence_alpha": 0.5}, *expected)
        for name, expected in {
            "reverse_kl": ([0.4740770], [0.5], [0.0]), "forward_kl": ([0.5475522], [0.3160603], [0.0]),
            "js": ([0.6026788], [0.1899427], [0.0]), "alpha": ([0.5156412], [0.3934693], [0.0]),
        }.items()
    ], ({"beta": 0.9}, *({"divergence": name} for name in ("reverse_kl", "js", "alpha")),
        {"divergence": "alpha", "divergence_alpha": 0.9})),
    # exp(-0.5 - 1) = 0.2231302, times 0.4031860
    "wpo": Loss(wpo, [Hand((*PAIR, [-0.5], [-1.0]), {"beta": 0.1}, [0.0899630], [0.2], [-0.5])], ({"beta": 0.9},)),
    # log(1 + exp(-0.2)) + 1/2 log(1 + exp(0.2)) + 1/2 log(1 + exp(-0.5)) = 0.5981389 + 0.7981389 / 2 + 0.4740770 / 2
    "nca_pair": Loss(nca_pair, [Hand(PAIR, {"beta": 0.1}, [1.2342468], [0.2], [-0.5])], ({"beta": 0.9},)),
    # log(1 + exp(-(0.2 - 0.1))) + log(1 + exp(-0.5 - 0.1)) = 0.6443967 + 0.4374880
    "bco_pair": Loss(bco_pair, [Hand((*PAIR, 0.1), {"beta": 0.1}, [1.0818846], [0.2], [-0.5])], ({"beta": 0.9},)),
    # (2 - 5)^2 + (-5 + 5)^2
    "sppo_hard": Loss(sppo_hard, [Hand(PAIR, {"beta": 0.1}, [9.0], [0.2], [-0.5])], ({"beta": 0.9},)),
    # 1 - sigmoid(0.2) + sigmoid(-0.5) = 0.4501660 + 0.3775407
    "apo_zero": Loss(apo_zero, [Hand(PAIR, {"beta": 0.1}, [0.8277067], [0.2], [-0.5])], ({"beta": 0.9},)),
    # sigmoid(0.2) + 1 - sigmoid(0.7) = 0.5498340 + 0.3318122
    "apo_down": Loss(apo_down, [Hand(PAIR, {"beta": 0.1}, [0.8816462], [0.2], [-0.5])], ({"beta": 0.9},)),
    # Of PAIR r(y_w) > 0, so it is DPO. Ratios -2 and -5: 0.1 (3 - 2 * 2) = -0.1, log(1 + exp(0.1))
    "dpop": Loss(dpop, [
        Hand(PAIR, {"beta": 0.1, "lambda_coef": 2.0}, [0.4031860], [0.2], [-0.5]),
        Hand(([-12.0], [-20.0], [-10.0], [-15.0]), {"beta": 0.1, "lambda_coef": 2.0}, [0.7443967], [-0.2], [-0.5]),
    ], ({"beta": 0.9, "lambda_coef": 0.5},)),
    # 0.7 (2 / 4 + 5 / 10) = 0.7
    "sigmoid_norm": Loss(sigmoid_norm, [Hand((*PAIR, *LENGTHS), {"beta": 0.7}, [0.4031860], [0.35], [-0.35])],
        ({"beta": 0.9},)),
    # 0.7 + 0.05 (4 - 10) = 0.4, log(1 + exp(-0.4))
    "r_dpo": Loss(r_dpo, [Hand((*PAIR, *LENGTHS), {"beta": 0.1, "length_alpha": 0.05}, [0.5130153], [0.2], [-0.5])],
        ({"beta": 0.9, "length_alpha": 0.3},)),
    # The chosen response is the shorter. Rejected: -8 + 0.5 (-20 + 8) = -14, reference -7 + 0.5 (-15 + 7) = -11.
    # 0.1 (2 - (-14 + 11)) = 0.5, log(1 + exp(-0.5))
    "ld_dpo": Loss(ld_dpo, [
        Hand((*PAIR, [-10.0], [-8.0], [-12.0], [-7.0]), {"beta": 0.1, "ld_alpha": 0.5}, [0.4740770], [0.2], [-0.3]),
    ], ({"beta": 0.9, "ld_alpha": 0.2}, {"ld_alpha": 0.0})),
    # Margins: policy 10 and 1, reference 3 and 5. Sorted: (1, 10) - (3, 5) = (-2, 5), times 0.1:
    # 0.8 log(1 + exp(0.2)) + 0.2 log(1 + exp(-0.2)) = 0.8 * 0.7981389 + 0.2 * 0.5981389,
    # 0.8 log(1 + exp(-0.5)) + 0.2 log(1 + exp(0.5)) = 0.8 * 0.4740770 + 0.2 * 0.9740770
    "aot": Loss(aot, [Hand(TWO_PAIRS, {"beta": 0.1, "epsilon": 0.2}, [0.7581389, 0.5740770], [0.2, -0.1], [-0.5, 0.3])],
        ({"beta": 0.9, "epsilon": 0.3},), in_lists=True),
    # Ratios: chosen 2 and -1, rejected -5 and 3. Sorted: (-1, 2) - (-5, 3) = (4, -1), times 0.1:
    # 0.8 log(1 + exp(-0.4)) + 0.2 log(1 + exp(0.4)) = 0.8 * 0.5130153 + 0.2 * 0.9130153,
    # 0.8 log(1 + exp(0.1)) + 0.2 log(1 + exp(-0.1)) = 0.8 * 0.7443967 + 0.2 * 0.6443967
    "aot_unpaired": Loss(aot_unpaired, [
        Hand(TWO_PAIRS, {"beta": 0.1, "epsilon": 0.2}, [0.5930153, 0.7243967], [0.2, -0.1], [-0.5, 0.3]),
    ], ({"beta": 0.9, "epsilon": 0.3},), in_lists=True),
    # 2 (-4 / 4 + 20 / 10 - 0.5) = 1, log(1 + exp(-1))
    "simpo": Loss(simpo, [
        Hand(([-4.0], [-20.0], *LENGTHS), {"beta": 2.0, "gamma_beta_ratio": 0.5}, [0.3132617], [-2.0], [-4.0]),
    ], ({"beta": 0.7, "gamma_beta_ratio": 1.5},)),
    # max(0, 12 + 10 - 20) + 0.1 * 10 = 3; beta 1: 0 + 0.1 * 10; means -2.5 and -2: 1 + 2.5 - 2 + 0.1 * 2.5
    "slic": Loss(slic, [
        Hand(([-10.0], [-20.0], *LENGTHS), {"lambda_coef": 0.1, **rest}, *expected)
        for rest, expected in [
            ({"beta": 12.0, "length_normalize": False}, ([3.0], [-10.0], [-20.0])),
            ({"beta": 1.0, "length_normalize": False}, ([1.0], [-10.0], [-20.0])),
            ({"beta": 1.0, "length_normalize": True}, ([1.75], [-2.5], [-2.0])),
        ]
    ], ({"beta": 3.0, "lambda_coef": 0.7}, {"length_normalize": True})),
    # A token of the chosen response has probability 1/2, odds 1; of the rejected 1/4, odds 1/3; sigmoid(log 3) = 3/4:
    # log 2 + 0.1 log(4/3) = 0.6931472 + 0.0287682. Rewards 0.1 log(1/2), 0.1 log(1/4)
    "orpo": Loss(orpo, [
        Hand(([-4 * LOG_2], [-20 * LOG_2], *LENGTHS), {"OR_scale": 0.1}, [0.7219154], [-0.0693147], [-0.1386294]),
    ], ({"OR_scale": 0.8},)),
    # 0.1 (-10 + 20) = 1: log(1 + exp(-1)) + 10; with a mean over 4 tokens and weight 0.5, + 0.5 * 2.5
    "cpo": Loss(cpo, [
        Hand(([-10.0], [-20.0], [4.0]), {"beta": 0.1, "cpo_alpha": alpha, "nll_reduction": kind}, [x], [-1.0], [-2.0])
        for alpha, kind, x in [(1.0, "sum", 10.3132617), (0.5, "mean", 1.5632617)]
    ], ({"beta": 0.9, "cpo_alpha": 0.3}, {"nll_reduction": "mean"})),
    # 1.2 (1 - sigmoid(0.5 (2 - 1))) = 1.2 * 0.3775407, 0.7 (1 - sigmoid(0.5 (1 + 5))) = 0.7 * 0.0474259
    "kto": Loss(kto, [Hand(WITH_KL, {"beta": 0.5, **BOTH_WEIGHTS}, [0.4530488, 0.0331981], [1.0], [-2.5])],
        ({"beta": 0.9, **BOTH_WEIGHTS},), in_lists=True),
    # 1.2 log(1 + exp(-0.5)) = 1.2 * 0.4740770, 0.7 log(1 + exp(-3)) = 0.7 * 0.0485874
    "kto-logsigmoid": Loss(kto_logsigmoid, [
        Hand(WITH_KL, {"beta": 0.5, **BOTH_WEIGHTS}, [0.5688924, 0.0340111], [1.0], [-2.5]),
    ], ({"beta": 0.9, **BOTH_WEIGHTS},), in_lists=True),
    # Desirable ratios 4 and 0, so K_D = 2; undesirable 1, so K_U = 1. Of 0.5 (4 - 1), 0.5 (0 - 1) and 0.5 (2 - 1),
    # 1 - sigmoid: sigmoid(-1.5), sigmoid(0.5), sigmoid(-0.5)
    # Of PAIR K_D = 2, K_U = max(0, -5) = 0: 1 - sigmoid(0.2), 1 - sigmoid(0.1 (2 + 5))
    "kto-simple": Loss(kto_simple, [
        Hand(([-8.0, -3.0], [-2.0], [-12.0, -3.0], [-3.0]), {"beta": 0.5},
             [0.1824255, 0.6224593, 0.3775407], [2.0, 0.0], [0.5]),
        Hand(PAIR, {"beta": 0.1}, [0.4501660, 0.3318122], [0.2], [-0.5]),
    ], ({"beta": 0.9},), in_lists=True),
    # 1 - sigmoid(0.2), 1 - sigmoid(0.5)
    "kto-zero": Loss(kto_zero, [Hand(PAIR, {"beta": 0.1}, [0.4501660, 0.3775407], [0.2], [-0.5])],
        ({"beta": 0.9},), in_lists=True),
    # 1.2 (1 - sigmoid(0.2)), 0.7 sigmoid(-0.5)
    "apo_zero_unpaired": Loss(apo_zero_unpaired, [
        Hand(PAIR, {"beta": 0.1, **BOTH_WEIGHTS}, [0.5401992, 0.2642785], [0.2], [-0.5]),
    ], ({"beta": 0.9, **BOTH_WEIGHTS},), in_lists=True),
    # 1.2 log(1 + exp(-0.1)) = 1.2 * 0.6443967, 0.7 log(1 + exp(-0.6)) = 0.7 * 0.4374880
    "bco": Loss(bco, [Hand((*PAIR, 0.1), {"beta": 0.1, **BOTH_WEIGHTS}, [0.7732760, 0.3062416], [0.2], [-0.5])],
        ({"beta": 0.9, **BOTH_WEIGHTS},), in_lists=True),
    "sft": Loss(sft, [Hand(([-1.5, -0.25],), {}, [1.5, 0.25])], ()),
    "csft": Loss(csft, [Hand(([-3.0],), {}, [3.0])], ()),
    # q = 2, 1/2 and 2, all outside of 0.8 to 1.2, A = 1, 1, -1: -min(2, 1.2), -min(0.5, 0.8), -min(-2, -1.2).
    # k3: 1/2 - 1 + log 2 = 0.1931472 where q = 2, and 2 - 1 - log 2 = 0.3068528 where q = 1/2; beta 0.1
    "mle": Loss(mle, [Hand(([-1.5, -0.25],), {}, [1.5, 0.25])], ()),
    "filtering": Loss(filtering, [Hand(([-1.5, -0.25],), {}, [1.5, 0.25])], ()),
    "conditional": Loss(conditional, [Hand(([-1.5, -0.25],), {}, [1.5, 0.25])], ()),
    # p = 1/4: log p = -1.3862944, log(1 - p) = -0.2876821. Threshold 0: the token of score 0 is good, that of 0.2 is
    # bad: 1.3862944 and 0.5 * 0.2876821 = 0.1438410. Soft: m = 0.8: 0.8 * 1.3862944 + 0.5 * 0.2 * 0.2876821 = 1.1378037
    "unlikelihood": Loss(unlikelihood, [
        Hand(([-math.log(4)] * 2, [0.0, 0.2]), {"mode": "threshold", "threshold": 0.0, "alpha": 0.5},
            [1.3862944, 0.1438410]),
        Hand(([-math.log(4)] * 2, [0.0, 0.2]), {"mode": "soft", "threshold": None, "alpha": 0.5},
            [1.3862944, 1.1378037]),
    ], ({"mode": "soft", "threshold": None}, {"threshold": 0.0, "alpha": 0.01})),
    # exp(-0.2 / 0.1) = 0.1353353, times 2; exp(3 / 1) = 20.0855369, held at 10, times 0.5
    "rwr": Loss(rwr, [
        Hand(([-2.0], [0.2]), {"beta": 0.1, "weight_max": 1000.0}, [0.2706706]),
        Hand(([-0.5], [-3.0]), {"beta": 1.0, "weight_max": 10.0}, [5.0]),
    ], ({"beta": 0.05}, {"beta": 10.0, "weight_max": 0.9})),
    # R = -0.2, V = -0.5, A = 0.3: exp(0.3 / 0.1) = 20.0855369; 0.25 * 20.0855369 * 2 + 0.75 * 0.09 = 10.1102685
    "awr": Loss(awr, [
        Hand(([-2.0], [-0.5], [0.2]), {"alpha": 0.25, "beta": 0.1, "weight_max": 1000.0}, [10.1102685]),
    ], ({"alpha": 0.05}, {"beta": 0.1, "weight_max": 2.0})),
    "grpo": Loss(grpo, [
        Hand(([-1.0, -1.0 - LOG_2, -1.0], [-1.0 - LOG_2, -1.0, -1.0 - LOG_2], [1.0, 1.0, -1.0]),
             {"beta": 0.1, "epsilon": 0.2}, [-1.1806853, -0.4693147, 2.0193147]),
    ], ({"beta": 0.5, "epsilon": 0.01},)),
    # Responses of 1 token, V = 0, reward -1: A = G = -1; of 2 tokens, V = (1, 1), reward 3, gamma = lambda = 1/2:
    # surprises 1/2 - 1 and 3 - 1; A = (-1/2 + 1/4 * 2, 2) = (0, 2), G = (3/2, 3). Mean 1/3, variance 14/9, so white
    # -1.0690450, -0.2672612, 1.3363062. q = 1, 1 and 2, clipped to 1.5: -A q = 1.0690450, 0.2672612, -2.0044594.
    # Critic: 0.1 / 2 * ((0 + 1)^2, (1 - 3/2)^2, (1 - 3)^2) = 0.05, 0.0125, 0.2; KL: 0.1 log 2 at the last token
    "ppo": Loss(ppo, [
        Hand(([-2.0, -2.0, -1.0], [0.0, 1.0, 1.0], [-2.0, -2.0, -1.0 - LOG_2], [1.0, 2.0], [-1.0, 3.0]),
             {"cliprange": 0.5, "gamma": 0.5, "lam": 0.5, "critic_coef": 0.1, "KL_coef": 0.1},
             [1.1190450, 0.2797612, -1.7351446]),
    ], ({"cliprange": 0.2, "gamma": 0.8, "lam": 0.5, "critic_coef": 1.0, "KL_coef": 0.0},), in_lists=True),
    # Means -1, -1/2, -3/4 with rewards 2, 0, 1; a prompt of one. The second is above the first by 1/2 and above the
    # third by 1/4, the third above the first by 1/4: 2 * 3/4 and 2 * 1/4 at their places. Imitation 4 at the first and
    # 6 at the last. All times 4 responses / 2 prompts
    "rrhf": Loss(rrhf, [
        Hand(([-4.0, -2.0, -3.0, -6.0], [4.0, 4.0, 4.0, 3.0], [2.0, 0.0, 1.0, 0.0], [5.0, 5.0, 5.0, 7.0]),
             {"rank_weight": 2.0, "length_penalty": 1.0, "sft_reduction": "sum"}, [8.0, 3.0, 1.0, 12.0]),
    ], ({"rank_weight": 0.3, "length_penalty": 0.5, "sft_reduction": "mean"},), in_lists=True),
}  # fmt: skip
"""By the names of config/loss. Seven digits behind the point are rounded; what has fewer is exact."""

# 10, and 10 / 4
CHOSEN_NLL = Loss(
    chosen_nll, [Hand(([-10.0], [4.0]), {"nll_reduction": name}, [x]) for name, x in (("sum", 10.0), ("mean", 2.5))], ()
)
SETTINGS = [
    *((name, loss, number) for name, loss in TABLE.items() for number in range(1 + len(loss.others))),
    *(("chosen_nll", CHOSEN_NLL, number) for number in range(2)),
]
GRID = st.integers(-320, -1).map(lambda n: n / 16)
"""Log-probabilities whose differences are exact, so that a formula is not blamed for what its inputs lost."""
OTHER_DRAWS = {
    "shift": st.floats(-3, 3), "target_groups": st.just([2.0, 2.0, 2.0, 1.0, 1.0, 4.0]),
    "target_rewards": st.lists(st.sampled_from([-1.0, 0.0, 0.5]), min_size=6, max_size=6),
    "target_token_scores": st.lists(st.integers(0, 16).map(lambda n: n / 16), min_size=6, max_size=6),
    **dict.fromkeys(
        ("policy_target_token_values", "target_token_advantages"),
        st.lists(st.integers(-32, 32).map(lambda n: n / 16), min_size=6, max_size=6),
    ),
}  # fmt: skip


def parameters(function: Callable, kind: Any = inspect.Parameter.POSITIONAL_OR_KEYWORD) -> list[str]:
    return [name for name, one in inspect.signature(function).parameters.items() if one.kind is kind]


def ids_of(cases: list[tuple[str, Loss, int]]) -> list[str]:
    return [f"{name}-{number}" for name, _, number in cases]


@functools.cache
def config_of(name: str) -> dict[str, Any]:
    return dict(OmegaConf.load(CONFIG / f"{name}.yaml"))


def hyperparameters(name: str, loss: Loss, number: int) -> dict[str, Any]:
    """Setting 0 is the YAML's, the others change it."""
    if loss is CHOSEN_NLL:
        return loss.hand[number].hyperparameters
    own = {key: config_of(name)[key] for key in parameters(loss.function, inspect.Parameter.KEYWORD_ONLY)}
    if "threshold" in own:  # the YAML leaves it to the scores
        own["threshold"] = 0.5
    return {**own, **({} if number == 0 else loss.others[number - 1])}


def tensors(inputs: Any, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    return [torch.tensor(values, dtype=dtype) for values in inputs]


def outputs(loss: Loss, inputs: list[torch.Tensor], setting: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """What the function returns, in a tuple also where it is the losses alone."""
    made = loss.function(*inputs, **setting)
    return made if isinstance(made, tuple) else (made,)


def by_formula(loss: Loss, inputs: list[Any], setting: dict[str, Any]) -> list[float]:
    if loss.in_lists:
        return [float(value) for value in loss.formula(*inputs, **setting)]
    columns = (values if isinstance(values, list) else repeat(values) for values in inputs)
    return [float(loss.formula(*row, **setting)) for row in zip(*columns, strict=False)]


@st.composite
def drawn(draw: st.DrawFn, loss: Loss) -> list[Any]:
    """Positional inputs of a loss; a class of single responses may be empty."""
    single = loss.function.__module__.endswith("unpaired")
    chosen = draw(st.integers(0 if single else 1, 4))
    sizes = {"chosen": chosen, "rejected": draw(st.integers(0, 4)) if single else chosen, "KL": 3, "target": 6}
    made: list[Any] = []
    for name in parameters(loss.function):
        if loss.function is ppo and name in ("target_lengths", "target_rewards"):
            made.append(draw(st.permutations([1.0, 2.0, 3.0])))
        elif name in OTHER_DRAWS:
            made.append(draw(OTHER_DRAWS[name]))
        else:
            size = next(size for role, size in sizes.items() if role in name)
            values = st.integers(1, 40).map(float) if name.endswith("_lengths") else GRID
            made.append(draw(st.lists(values, min_size=size, max_size=size)))
    return made


def test_the_table_is_complete():
    """Prevents a loss that nobody holds to its paper: a new YAML or function of `trainers.losses` needs a row."""
    stems = {path.stem for path in CONFIG.glob("*.yaml")}
    assert set(TABLE) == stems - NOT_COVERED and stems >= NOT_COVERED
    pure = set()
    for found in pkgutil.iter_modules(trainers.losses.__path__, "trainers.losses."):
        own = [one for one in vars(importlib.import_module(found.name)).values() if inspect.isfunction(one)]
        pure |= {one.__name__ for one in own if one.__module__ == found.name and one.__name__[0] != "_"}
    assert pure - {"ratios", "with_rewards", "goodness", "log_complements", "exponential_weights"} == {
        loss.function.__name__ for _, loss, _ in SETTINGS
    }
    assert not pure & {name.replace("-", "_") for name in NOT_COVERED}


@pytest.mark.parametrize(("name", "loss"), [*TABLE.items(), ("chosen_nll", CHOSEN_NLL)])
def test_by_hand(name: str, loss: Loss):
    """Prevents a slip that the function and `formulas` share: signs, sides, factors, and the scale of the rewards."""
    for hand in loss.hand:
        losses, *rewards = outputs(loss, tensors(hand.inputs), hand.hyperparameters)
        assert losses.tolist() == pytest.approx(hand.losses, abs=6e-8)
        for values, expected in zip(rewards, (hand.chosen_rewards, hand.rejected_rewards), strict=False):
            assert values.tolist() == pytest.approx(expected, abs=6e-8)


@pytest.mark.parametrize(("name", "loss", "number"), SETTINGS, ids=ids_of(SETTINGS))
@given(data=st.data())
def test_agrees_with_the_paper(name: str, loss: Loss, number: int, data: st.DataObject):
    """Prevents a formula that is right at the case by hand alone, under the YAML's hyperparameters and under others."""
    inputs, setting = data.draw(drawn(loss)), hyperparameters(name, loss, number)
    losses, *rest = outputs(loss, tensors(inputs), setting)
    assert losses.tolist() == pytest.approx(by_formula(loss, inputs, setting), rel=1e-9, abs=1e-13)
    if len(rest) == 3:
        estimate = formulas.clamped_mean(formulas.ratios(inputs[2], inputs[5]))
        assert rest[-1].item() == pytest.approx(float(estimate), rel=1e-9)
