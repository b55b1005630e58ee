"""Policy gradients on responses that somebody else wrote: the reference stands for the policy that wrote them.

q = pi(token) / pi_ref(token), token by token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainers.losses.paired import LARGEST_EXPONENT


def grpo(
    policy_target_token_logps: Tensor,
    reference_target_token_logps: Tensor,
    target_token_advantages: Tensor,
    *,
    beta: float,
    epsilon: float,
) -> Tensor:
    """Group relative policy optimization, offline (Shao et al. 2024, "DeepSeekMath", arXiv 2402.03300, equations 3, 4).

    With q = pi / pi_ref of a token, d = -log q, and the advantage A = (score - mean of the prompt's scores) / (their
    deviation + 0.01), the deviation over the prompt's scores and the 0.01 as in HALOs:

        -min(q A, clip(q, 1 - epsilon, 1 + epsilon) A) + beta (exp(d) - d - 1)

    Use it on prompts with several scored responses; the reference is taken to be the policy that wrote them. The mean
    is over the tokens of the step, as in HALOs, where the paper's is first over those of a response.

    Args:
        policy_target_token_logps, reference_target_token_logps: (T,) log-probabilities, in nats, of all scored tokens.
        target_token_advantages: (T,) A of each token's response.
        beta: weight of the KL from the reference; 0 to 0.1 (0.04 in the paper, 0.01 in HALOs).
        epsilon: how far q may move and still have a slope; 0.01 (in HALOs) to 0.3.

    Returns:
        losses (T,), one per token.
    """
    moved = (policy_target_token_logps - reference_target_token_logps).clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT)
    return _clipped(moved.exp(), target_token_advantages, epsilon) + beta * (torch.expm1(-moved) + moved)


def ppo(
    policy_target_token_logps: Tensor,
    policy_target_token_values: Tensor,
    reference_target_token_logps: Tensor,
    target_lengths: Tensor,
    target_rewards: Tensor,
    *,
    cliprange: float,
    gamma: float,
    lam: float,
    critic_coef: float,
    KL_coef: float,
) -> Tensor:
    """Proximal policy optimization, offline and of one step (Schulman et al. 2017, arXiv 1707.06347, equations 7 and 9;
    Ethayarajh et al. 2024, arXiv 2402.01306, for the offline form).

    With q = pi / pi_ref of a token, a response's reward at its last token, advantages A by generalized advantage
    estimation (Schulman et al. 2015, arXiv 1506.02438, equation 16) from the values V, whitened over the tokens of the
    step, and discounted returns G:

        max(-q A, -clip(q, 1 - c, 1 + c) A) + critic_coef (V - G)^2 / 2 + KL_coef (log pi - log pi_ref)

    Use it to learn from rewards of responses that are there already. One epoch over the data is one of PPO's: more are
    `n_epochs`, and the reference is taken to be the policy that wrote the responses. q is held in [1 - c, 1 + c], as in
    today's HALOs (in [c, 1 / c] before that, and [1/4, 4] in the appendix of KTO's paper). The last term is HALOs'; on
    responses that the policy did not write it estimates no KL, and lowers all their likelihoods alike.

    Args:
        policy_target_token_logps, reference_target_token_logps: (T,) log-probabilities, in nats, of all scored tokens.
        policy_target_token_values: (T,) V before each token, in units of reward.
        target_lengths: (N,) how many of the tokens each response has.
        target_rewards: (N,) what the responses are worth.
        cliprange: c, how far q may move and still have a slope; 0.1 to 0.5.
        gamma: discount of later rewards, a token; 0.9 to 1.
        lam: lambda of the estimation, from one-step (0) to whole returns (1); 0.9 to 1.
        critic_coef: weight of the value's error; 0.01 to 1.
        KL_coef: weight of the last term; 0 to 0.2.

    Returns:
        losses (T,), one per token.
    """
    counts = target_lengths.long().tolist()
    parts = policy_target_token_values.detach().split(counts)
    pairs = [_estimates(values, reward, gamma, lam) for values, reward in zip(parts, target_rewards, strict=True)]
    advantages, returns = (torch.cat(some) for some in zip(*pairs, strict=True))
    advantages = (advantages - advantages.mean()) * (advantages.var(unbiased=False) + 1e-8).rsqrt()
    critic = 0.5 * (policy_target_token_values - returns) ** 2
    moved = policy_target_token_logps - reference_target_token_logps
    ratio = moved.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT).exp()
    return _clipped(ratio, advantages, cliprange) + critic_coef * critic + KL_coef * moved


def _estimates(values: Tensor, reward: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages (t,) and discounted returns (t,) of a response from its values (t,) and its reward at the end."""
    after = torch.cat([values[1:], values.new_zeros(1)])
    surprises = gamma * after - values
    surprises[-1] += reward
    back = torch.arange(len(values) - 1, -1, -1, device=values.device, dtype=values.dtype)
    ahead = (back[:, None] - back[None, :]).clamp(min=0)  # how many tokens from a line's to a column's
    decay = torch.triu((gamma * lam) ** ahead)
    return decay @ surprises, reward * gamma**back


def _clipped(ratio: Tensor, advantages: Tensor, cliprange: float) -> Tensor:
    """max(-q A, -clip(q) A), token by token."""
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - cliprange, 1 + cliprange) * advantages)
