"""Losses on responses that are worth something: PPO, GRPO and RRHF by hand, by identities, against plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.checkpoints import read_loss_state
from tests import tiny
from tests.trainers.steps import LOADERS, rows_of
from trainers.losses.policy_gradient import _estimates, grpo, ppo
from trainers.losses.ranked import rrhf
from trainers.scored import PPOTrainer

PPO = {"cliprange": 0.5, "gamma": 1.0, "lam": 0.95, "critic_coef": 0.01, "KL_coef": 0.1}


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# PPO -----------------------------------------------------------------------------------------------------------------


def test_advantages_by_hand():
    """Prevents an estimation that is off by one, or bootstraps after the end.

    gamma 1, lambda 0.95, V = (0.2, 0.4, 0.6), reward 0.97 at the end: surprises 0.2, 0.2, 0.37;
    A_3 = 0.37, A_2 = 0.2 + 0.95 * 0.37 = 0.5515, A_1 = 0.2 + 0.95 * 0.5515 = 0.723925. All returns are 0.97.
    """
    advantages, returns = _estimates(tensor(0.2, 0.4, 0.6), tensor(0.97)[0], 1.0, 0.95)
    assert advantages.tolist() == pytest.approx([0.723925, 0.5515, 0.37])
    assert returns.tolist() == pytest.approx([0.97] * 3)
    advantages, returns = _estimates(tensor(0.0, 0.0), tensor(2.0)[0], 0.5, 1.0)
    assert advantages.tolist() == pytest.approx([1.0, 2.0]) and returns.tolist() == pytest.approx([1.0, 2.0])


@settings(max_examples=30)
@given(st.lists(st.floats(-2, 2), min_size=1, max_size=9), st.floats(-2, 2), st.floats(0.5, 1), st.floats(0, 1))
def test_advantages_are_the_recursion(values: list[float], reward: float, gamma: float, lam: float):
    """Prevents a wrong decay in the matrix form: against the recursion of the paper, from the end."""
    expected, carried, after = [], 0.0, 0.0
    for place in range(len(values) - 1, -1, -1):
        surprise = (reward if place == len(values) - 1 else 0.0) + gamma * after - values[place]
        carried = surprise + gamma * lam * carried
        after = values[place]
        expected.insert(0, carried)
    advantages, returns = _estimates(tensor(*values), tensor(reward)[0], gamma, lam)
    assert advantages.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert returns.tolist() == pytest.approx([reward * gamma**n for n in range(len(values) - 1, -1, -1)], abs=1e-12)


def ppo_in_numpy(logps, values, reference, lengths, rewards, *, cliprange, gamma, lam, critic_coef, KL_coef):
    """The formula in loops."""
    advantages, returns, at = [], [], 0
    for length, reward in zip(lengths, rewards, strict=True):
        own, carried = [], 0.0
        for place in range(length - 1, -1, -1):
            last = place == length - 1
            surprise = (reward if last else gamma * values[at + place + 1]) - values[at + place]
            carried = surprise + gamma * lam * carried
            own.insert(0, carried)
        advantages += own
        returns += [reward * gamma ** (length - 1 - place) for place in range(length)]
        at += length
    advantages = (np.array(advantages) - np.mean(advantages)) / math.sqrt(np.var(advantages) + 1e-8)
    losses = []
    for logp, value, ref, a, g in zip(logps, values, reference, advantages, returns, strict=True):
        q = math.exp(logp - ref)
        clipped = min(max(q, 1 - cliprange), 1 + cliprange)
        losses.append(max(-q * a, -clipped * a) + critic_coef * 0.5 * (value - g) ** 2 + KL_coef * (logp - ref))
    return losses


@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_ppo_is_the_formula_in_numpy(seed: int):
    """Prevents a sign, a clip on the wrong side, and whitening of a response by itself."""
    generator = np.random.default_rng(seed)
    lengths, rewards = [3, 1, 5], generator.choice([-1.0, 1.0], size=3)
    logps, reference = -3 * generator.random(9), -3 * generator.random(9)
    values = generator.normal(size=9)
    options = PPO | {"gamma": 0.9}
    arrays = (logps, values, reference, np.array(lengths), rewards)
    ours = ppo(*(torch.tensor(array, dtype=torch.float64) for array in arrays), **options)
    assert ours.tolist() == pytest.approx(ppo_in_numpy(logps, values, reference, lengths, rewards, **options), rel=1e-9)


def test_ppo_learns_values_apart_from_the_policy():
    """Prevents a policy that is moved by the critic, or advantages that carry a gradient."""
    logps, values = tensor(-1.0, -2.0, -0.5).requires_grad_(), tensor(0.1, 0.2, 0.3).requires_grad_()
    arguments = (logps, values, tensor(-1.0, -2.0, -0.5), tensor(2, 1), tensor(1.0, -1.0))
    policy, critic = torch.autograd.grad(ppo(*arguments, **PPO | {"KL_coef": 0.0}).sum(), (logps, values))
    assert critic.tolist() == pytest.approx([0.01 * (0.1 - 1), 0.01 * (0.2 - 1), 0.01 * (0.3 + 1)])
    advantages = torch.cat([_estimates(tensor(0.1, 0.2), tensor(1.0)[0], 1.0, 0.95)[0], tensor(-1.3)])
    white = (advantages - advantages.mean()) / advantages.std(unbiased=False)
    assert policy.tolist() == pytest.approx((-white).tolist(), rel=1e-6), "where q is 1 the slope is -A"


def test_the_value_head_is_trained_clipped_and_kept(tmp_path):
    """Prevents values that stay random, a head that mode=eval makes anew, and a gradient beyond its own limit."""
    made = tiny.loader(LOADERS["ppo"], 8, batch_size=8)
    trainer = tiny.trainer(
        PPOTrainer, "ppo", train_loader=made, eval_rows=made.fixed_rows(8), folder=tmp_path, lr=1e-2,
        optimizer="SGD", model__v_head_max_grad_norm=0.05,
    )  # fmt: skip
    before = {name: value.clone() for name, value in trainer.value_head.state_dict().items()}
    trainer.train()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in trainer.value_head.parameters()))
    assert 0 < norm <= 0.05 * (1 + 1e-4)
    assert any(not torch.equal(value, before[name]) for name, value in trainer.value_head.state_dict().items())
    again = tiny.trainer(PPOTrainer, "ppo", policy=trainer.policy, eval_rows=made.fixed_rows(8))
    fresh = again.evaluate()
    again.load_state_of_loss(read_loss_state(tmp_path / "LATEST" / "policy.pt"))
    assert again.evaluate() == pytest.approx(trainer.evaluate(), rel=1e-6) != pytest.approx(fresh, rel=1e-6)


# GRPO ----------------------------------------------------------------------------------------------------------------


def test_grpo_by_hand():
    """Prevents a clip on the wrong side and a KL of the wrong direction.

    Token 1: log q = log 1.5, A = 2: min(3, 1.2 * 2) = 2.4; d = -log 1.5: k3 = 1 / 1.5 - 1 + log 1.5 = 0.0721318.
    Token 2: log q = log 1.5, A = -2: min(-3, -2.4) = -3: no clip where it would help the policy. Beta 0.1.
    """
    logps = tensor(math.log(1.5) - 1, math.log(1.5) - 1)
    losses = grpo(logps, tensor(-1, -1), tensor(2.0, -2.0), beta=0.1, epsilon=0.2)
    assert losses.tolist() == pytest.approx([-2.4 + 0.00721318, 3 + 0.00721318], abs=1e-7)


def test_grpo_starts_at_minus_the_advantage():
    """Prevents a bias at the first step: where policy is reference the loss is -A, and its slope too."""
    logps = tensor(-1.0, -2.0).requires_grad_()
    losses = grpo(logps, logps.detach(), tensor(0.7, -0.7), beta=0.3, epsilon=0.2)
    assert losses.tolist() == pytest.approx([-0.7, 0.7])
    assert torch.autograd.grad(losses.sum(), logps)[0].tolist() == pytest.approx([-0.7, 0.7])
    far = torch.tensor([-80.0, -1e4]).requires_grad_()
    losses = grpo(far, torch.zeros(2), torch.ones(2), beta=0.1, epsilon=0.2)
    assert not losses.isnan().any()


# RRHF ----------------------------------------------------------------------------------------------------------------

ONE = {"rank_weight": 1.0, "length_penalty": 1.0, "sft_reduction": "sum"}


def test_rrhf_by_hand():
    """Prevents a ranking in the wrong direction, or an imitation of another response than the best.

    p = (-0.5, -0.2, -0.9) with rewards 2, 1, 0: only the second is above one that is better, by 0.3. The best one's
    log-probability is -0.5 * 4 = -2. In all 0.3 + 2 = 2.3.
    """
    lengths = tensor(4, 5, 10)
    losses = rrhf(tensor(-0.5, -0.2, -0.9) * lengths, lengths, tensor(2, 1, 0), tensor(7, 7, 7), **ONE)
    assert losses.mean().item() == pytest.approx(2.3)
    assert losses.tolist() == pytest.approx([2.0 * 3, 0.3 * 3, 0.0])
    mean = rrhf(
        tensor(-0.5, -0.2, -0.9) * lengths, lengths, tensor(2, 1, 0), tensor(7, 7, 7), **ONE | {"sft_reduction": "mean"}
    )
    assert mean.mean().item() == pytest.approx(0.8)


def rrhf_in_loops(logps, lengths, rewards, groups, rank_weight, length_penalty, sft_reduction) -> float:
    total = 0.0
    for group in set(groups):
        members = [n for n, one in enumerate(groups) if one == group]
        score = {n: logps[n] / lengths[n] ** length_penalty for n in members}
        for i in members:
            for j in members:
                if rewards[i] < rewards[j]:
                    total += rank_weight * max(0.0, score[i] - score[j])
        best = max(members, key=lambda n: (rewards[n], -n))
        total -= logps[best] / (lengths[best] if sft_reduction == "mean" else 1)
    return total / len(set(groups))


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.floats(0, 2), st.floats(0, 1), st.sampled_from(["sum", "mean"]))
def test_rrhf_is_the_mean_over_prompts_of_the_formula(seed: int, rank_weight: float, penalty: float, reduction: str):
    """Prevents pairs across prompts, ties that are ranked, and a mean over responses."""
    generator = np.random.default_rng(seed)
    groups = sorted(generator.integers(0, 4, size=9).tolist())
    lengths, rewards = generator.integers(1, 20, size=9), generator.integers(0, 4, size=9).astype(float)
    logps = -3 * generator.random(9) * lengths
    tensors = (torch.tensor(one, dtype=torch.float64) for one in (logps, lengths, rewards, groups))
    ours = rrhf(*tensors, rank_weight=rank_weight, length_penalty=penalty, sft_reduction=reduction).mean().item()
    assert ours == pytest.approx(
        rrhf_in_loops(logps, lengths, rewards, groups, rank_weight, penalty, reduction), rel=1e-9
    )


def test_rrhf_of_one_response_is_imitation():
    """Prevents a loss of nothing where a prompt has one response in the step."""
    assert rrhf(tensor(-3.0), tensor(4), tensor(0.5), tensor(0), **ONE).tolist() == [3.0]


def test_gradients_by_finite_differences():
    """Prevents a detach too many or too few, in float64."""
    generator = torch.Generator().manual_seed(0)
    logps, reference = ((-3 * torch.rand(4, generator=generator, dtype=torch.float64)) for _ in range(2))
    logps.requires_grad_()
    advantages = tensor(1.0, -1.0, 0.5, -0.5)
    assert torch.autograd.gradcheck(lambda x: grpo(x, reference, advantages, beta=0.3, epsilon=0.2), (logps,))
    groups, lengths, rewards = tensor(0, 0, 1, 1), tensor(3, 4, 5, 6), tensor(1, 0, 0, 1)
    assert torch.autograd.gradcheck(lambda x: rrhf(x, lengths, rewards, groups, **ONE), (logps,))
    fixed = tensor(0.1, 0.3, -0.2, 0.5)
    assert torch.autograd.gradcheck(lambda x: ppo(x, fixed, reference, tensor(2, 2), tensor(1, -1), **PPO), (logps,))


# Rows ----------------------------------------------------------------------------------------------------------------


def test_pairs_are_worth_one_and_minus_one():
    """Prevents rewards of the wrong side, and advantages that are not over the prompt's own responses."""
    rows = rows_of("grpo", 3)
    assert [row.reward for row in rows] == [1.0, -1.0] * 3 or sorted(row.reward for row in rows) == [-1.0] * 3 + [
        1.0
    ] * 3
    for row in rows:
        assert row.advantage == pytest.approx(row.reward / 1.01)
        assert (row.example.generations[0 if row.reward > 0 else 1]).startswith("a" if row.reward > 0 else "b")
    assert len({row.group for row in rows}) == 3
