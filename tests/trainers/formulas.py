"""The losses once more, from their papers, in 60 digits: what tests hold `trainers.losses` to.

Written from the papers without a look at the tensors' code, so that one slip is not on both sides of a comparison.
A formula takes numbers, one pair at a time: `chosen` and `rejected` are the policy's log-probabilities of the two
responses in nats, `ref_chosen` and `ref_rejected` the reference's, `chosen_len` and `rejected_len` numbers of tokens.
Where examples are coupled or have no partner it takes lists, and returns one. Hyperparameters bear their YAML's names.
Numbers are those of mpmath, which torch brings along.
"""

from __future__ import annotations

from mpmath import MPContext

exact = MPContext()  # a context of its own: nobody else's precision changes
exact.dps = 60
exp, log, real = exact.exp, exact.log, exact.mpf
ZERO, HALF, ONE = real(0), real("0.5"), real(1)


def sigmoid(x):
    return ONE / (ONE + exp(-real(x)))


def minus_log_sigmoid(x):
    return exact.log1p(exp(-real(x)))


def ratio(policy, reference):
    """log pi(y | x) / pi_ref(y | x)."""
    return real(policy) - real(reference)


def ratios(policy, reference):
    return [ratio(*both) for both in zip(policy, reference, strict=True)]


def margin(chosen, rejected, ref_chosen, ref_rejected):
    return ratio(chosen, ref_chosen) - ratio(rejected, ref_rejected)


# Pairs with a reference: the margin alone counts.


def dpo(chosen, rejected, ref_chosen, ref_rejected, *, beta):
    """2305.18290, equation 7."""
    return minus_log_sigmoid(beta * margin(chosen, rejected, ref_chosen, ref_rejected))


def cdpo(chosen, rejected, ref_chosen, ref_rejected, *, beta, epsilon):
    """Mitchell's note: the cross entropy with a label that is right with probability 1 - epsilon."""
    h = beta * margin(chosen, rejected, ref_chosen, ref_rejected)
    return (1 - real(epsilon)) * minus_log_sigmoid(h) + epsilon * minus_log_sigmoid(-h)


def robust(chosen, rejected, ref_chosen, ref_rejected, *, beta, epsilon):
    """2403.00409: the estimate of DPO's loss that flips of the labels do not bias."""
    h, epsilon = beta * margin(chosen, rejected, ref_chosen, ref_rejected), real(epsilon)
    return ((1 - epsilon) * minus_log_sigmoid(h) - epsilon * minus_log_sigmoid(-h)) / (1 - 2 * epsilon)


def exo_pair(chosen, rejected, ref_chosen, ref_rejected, *, beta, smoothing):
    """2402.00856, two responses: KL(model || labels), labels (1 - smoothing, smoothing)."""
    h, smoothing = beta * margin(chosen, rejected, ref_chosen, ref_rejected), real(smoothing)
    p, q = sigmoid(h), sigmoid(-h)
    return p * log(p / (1 - smoothing)) + q * log(q / smoothing)


def hinge(chosen, rejected, ref_chosen, ref_rejected, *, beta):
    """2309.06657: hinge-norm; gamma there is beta here."""
    return max(ZERO, 1 - beta * margin(chosen, rejected, ref_chosen, ref_rejected))


def ipo(chosen, rejected, ref_chosen, ref_rejected, chosen_len, rejected_len, *, tau, length_normalize):
    """2310.12036, equation 17; normalized, the log-ratios are means over tokens, as in TRL."""
    if not length_normalize:
        chosen_len = rejected_len = 1
    h = ratio(chosen, ref_chosen) / chosen_len - ratio(rejected, ref_rejected) / rejected_len
    return (h - 1 / (2 * real(tau))) ** 2


def discopop(chosen, rejected, ref_chosen, ref_rejected, *, beta, tau):
    """2406.08414, the log-ratio modulated loss."""
    h = beta * margin(chosen, rejected, ref_chosen, ref_rejected)
    share = sigmoid(h / tau)
    return (1 - share) * minus_log_sigmoid(h) + share * exp(-h)


def f_dpo(chosen, rejected, ref_chosen, ref_rejected, *, beta, divergence, divergence_alpha):
    """2309.16240: -log sigmoid(beta f'(u_w) - beta f'(u_l)), u = pi / pi_ref, f' as in its table of divergences."""

    def slope(u):
        if divergence == "reverse_kl":  # f = u log u
            return log(u) + 1
        if divergence == "forward_kl":  # f = -log u
            return -1 / u
        if divergence == "js":  # f = u log u - (u + 1) log((u + 1) / 2)
            return log(2 * u / (1 + u))
        alpha = real(divergence_alpha)  # f = (u^(1 - alpha) - (1 - alpha) u - alpha) / (alpha (alpha - 1))
        return (1 - u**-alpha) / alpha

    u_w, u_l = exp(ratio(chosen, ref_chosen)), exp(ratio(rejected, ref_rejected))
    return minus_log_sigmoid(beta * slope(u_w) - beta * slope(u_l))


# Pairs with a reference: each response has a place of its own.


def wpo(chosen, rejected, ref_chosen, ref_rejected, chosen_alignment, rejected_alignment, *, beta):
    """2406.11827, equation 2: DPO's loss times how likely the policy is to write the two."""
    weight = exp(real(chosen_alignment)) * exp(real(rejected_alignment))
    return weight * dpo(chosen, rejected, ref_chosen, ref_rejected, beta=beta)


def nca_pair(chosen, rejected, ref_chosen, ref_rejected, *, beta):
    """2402.05369 with two responses, of which the chosen one alone has a reward."""
    r_w, r_l = beta * ratio(chosen, ref_chosen), beta * ratio(rejected, ref_rejected)
    return minus_log_sigmoid(r_w) + HALF * minus_log_sigmoid(-r_w) + HALF * minus_log_sigmoid(-r_l)


def bco_pair(chosen, rejected, ref_chosen, ref_rejected, shift, *, beta):
    """2404.04656: the binary cross entropy of chosen as 1 and rejected as 0; shift is in units of reward."""
    r_w, r_l = beta * ratio(chosen, ref_chosen), beta * ratio(rejected, ref_rejected)
    return minus_log_sigmoid(r_w - shift) + minus_log_sigmoid(-(r_l - shift))


def sppo_hard(chosen, rejected, ref_chosen, ref_rejected, *, beta):
    """2405.00675 with wins of probability 1 and 0: log-ratios to eta (P - 1/2), eta = 1 / beta."""
    eta = 1 / real(beta)
    return (ratio(chosen, ref_chosen) - eta * (1 - HALF)) ** 2 + (ratio(rejected, ref_rejected) - eta * (0 - HALF)) ** 2


def apo_zero(chosen, rejected, ref_chosen, ref_rejected, *, beta):
    """2408.06266, APO-zero: -sigmoid(r_w) + sigmoid(r_l); 1 is added, so that it is never negative."""
    return 1 - sigmoid(beta * ratio(chosen, ref_chosen)) + sigmoid(beta * ratio(rejected, ref_rejected))


def apo_down(chosen, rejected, ref_chosen, ref_rejected, *, beta):
    """2408.06266, APO-down: sigmoid(r_w) - sigmoid(r_w - r_l); 1 is added."""
    h = beta * margin(chosen, rejected, ref_chosen, ref_rejected)
    return 1 + sigmoid(beta * ratio(chosen, ref_chosen)) - sigmoid(h)


def dpop(chosen, rejected, ref_chosen, ref_rejected, *, beta, lambda_coef):
    """2402.13228: the price max(0, log pi_ref(y_w) / pi(y_w)) is inside the sigmoid and inside beta."""
    price = lambda_coef * max(ZERO, ratio(ref_chosen, chosen))
    return minus_log_sigmoid(beta * (margin(chosen, rejected, ref_chosen, ref_rejected) - price))


# Pairs with a reference and lengths.


def sigmoid_norm(chosen, rejected, ref_chosen, ref_rejected, chosen_len, rejected_len, *, beta):
    """2411.15124 (Tulu 3), length-normalized DPO."""
    r_w, r_l = beta * ratio(chosen, ref_chosen) / chosen_len, beta * ratio(rejected, ref_rejected) / rejected_len
    return minus_log_sigmoid(r_w - r_l)


def r_dpo(chosen, rejected, ref_chosen, ref_rejected, chosen_len, rejected_len, *, beta, length_alpha):
    """2403.19159. The reward r - alpha |y| has the optimum pi, so r = beta log pi / pi_ref + alpha |y| + constant."""
    r_w = beta * ratio(chosen, ref_chosen) + real(length_alpha) * chosen_len
    r_l = beta * ratio(rejected, ref_rejected) + real(length_alpha) * rejected_len
    return minus_log_sigmoid(r_w - r_l)


def ld_dpo(chosen, rejected, ref_chosen, ref_rejected, *shared, beta, ld_alpha):
    """2409.06411: tokens beyond the shorter response's length count ld_alpha; `shared` are sums of those before."""
    whole = (chosen, rejected, ref_chosen, ref_rejected)
    counted = [real(before) + ld_alpha * ratio(total, before) for total, before in zip(whole, shared, strict=True)]
    return minus_log_sigmoid(beta * margin(*counted))


# Optimal transport: lists in, the losses of the ranks out, from the lowest.


def dominance(upper, lower, beta, epsilon):
    ranks = zip(sorted(upper), sorted(lower), strict=True)
    return [cdpo(high, low, 0, 0, beta=beta, epsilon=epsilon) for high, low in ranks]


def aot(chosen, rejected, ref_chosen, ref_rejected, *, beta, epsilon):
    """2406.05882, paired: the policy's margins against the reference's."""
    return dominance(ratios(chosen, rejected), ratios(ref_chosen, ref_rejected), beta, epsilon)


def aot_unpaired(chosen, rejected, ref_chosen, ref_rejected, *, beta, epsilon):
    """2406.05882, unpaired: log-ratios of chosen responses against those of rejected ones."""
    return dominance(ratios(chosen, ref_chosen), ratios(rejected, ref_rejected), beta, epsilon)


# Pairs without a reference.


def simpo(chosen, rejected, chosen_len, rejected_len, *, beta, gamma_beta_ratio):
    """2405.14734, equation 6."""
    gamma = real(gamma_beta_ratio) * beta
    return minus_log_sigmoid(real(beta) / chosen_len * chosen - real(beta) / rejected_len * rejected - gamma)


def slic(chosen, rejected, chosen_len, rejected_len, *, beta, lambda_coef, length_normalize):
    """2305.10425: max(0, delta - log P(y_w) + log P(y_l)) - lambda log P(y_w); delta there is beta here."""
    if not length_normalize:
        chosen_len = rejected_len = 1
    chosen, rejected = real(chosen) / chosen_len, real(rejected) / rejected_len
    return max(ZERO, beta - chosen + rejected) - lambda_coef * chosen


def orpo(chosen, rejected, chosen_len, rejected_len, *, OR_scale):
    """2403.07691: the mean NLL of the chosen response, and OR_scale times -log sigmoid of the log odds ratio."""
    p_w, p_l = exp(real(chosen) / chosen_len), exp(real(rejected) / rejected_len)
    return -log(p_w) + OR_scale * minus_log_sigmoid(log((p_w / (1 - p_w)) / (p_l / (1 - p_l))))


def cpo(chosen, rejected, chosen_len, *, beta, cpo_alpha, nll_reduction):
    """2401.08417: DPO with a uniform reference, and the NLL of the chosen response."""
    imitation = chosen_nll(chosen, chosen_len, nll_reduction=nll_reduction)
    return minus_log_sigmoid(beta * ratio(chosen, rejected)) + cpo_alpha * imitation


def chosen_nll(chosen, chosen_len, *, nll_reduction):
    return -real(chosen) / {"sum": 1, "mean": chosen_len}[nll_reduction]


# Labelled responses: lists of any two sizes in, the losses of desirable responses before those of undesirable ones out.


def clamped_mean(values):
    """max(0, mean); no values say nothing, so 0."""
    return max(ZERO, sum(values) / real(len(values))) if values else ZERO


def one_minus_sigmoid(x):
    return 1 - sigmoid(x)


def kto(
    chosen, rejected, kl, ref_chosen, ref_rejected, ref_kl, *,
    beta, desirable_weight=1, undesirable_weight=1, of_surplus=one_minus_sigmoid,
):  # fmt: skip
    """2402.01306: weight (1 - sigmoid(beta (r - z_0))), or r and z_0 exchanged; z_0 is that of mismatched `kl`."""
    z = clamped_mean(ratios(kl, ref_kl))
    return [desirable_weight * of_surplus(beta * (r - z)) for r in ratios(chosen, ref_chosen)] + [
        undesirable_weight * of_surplus(beta * (z - r)) for r in ratios(rejected, ref_rejected)
    ]


def kto_logsigmoid(*logps, **hyperparameters):
    """HALOs: -log sigmoid in the place of 1 - sigmoid."""
    return kto(*logps, **hyperparameters, of_surplus=minus_log_sigmoid)


def kto_simple(chosen, rejected, ref_chosen, ref_rejected, *, beta):
    """HALOs of December 2023: each response against max(0, mean log-ratio of the other class)."""
    good, bad = ratios(chosen, ref_chosen), ratios(rejected, ref_rejected)
    of_good, of_bad = clamped_mean(good), clamped_mean(bad)
    return [1 - sigmoid(beta * (r - of_bad)) for r in good] + [1 - sigmoid(beta * (of_good - r)) for r in bad]


def kto_zero(chosen, rejected, ref_chosen, ref_rejected, *, beta):
    """HALOs: KTO with z_0 = 0."""
    return kto(chosen, rejected, [], ref_chosen, ref_rejected, [], beta=beta)


def apo_zero_unpaired(chosen, rejected, ref_chosen, ref_rejected, *, beta, desirable_weight, undesirable_weight):
    """2408.06266: the two terms of APO-zero, each for itself: -sigmoid(r_w), to which 1 is added, and sigmoid(r_l)."""
    return [desirable_weight * (1 - sigmoid(beta * r)) for r in ratios(chosen, ref_chosen)] + [
        undesirable_weight * sigmoid(beta * r) for r in ratios(rejected, ref_rejected)
    ]


def bco(chosen, rejected, ref_chosen, ref_rejected, shift, *, beta, desirable_weight, undesirable_weight):
    """2404.04656: the two terms of `bco_pair`, each weighted; shift is in units of reward."""
    return [desirable_weight * minus_log_sigmoid(beta * r - shift) for r in ratios(chosen, ref_chosen)] + [
        undesirable_weight * minus_log_sigmoid(-(beta * r - shift)) for r in ratios(rejected, ref_rejected)
    ]


def sft(token_logp):
    """The negative log-likelihood of one token."""
    return -real(token_logp)


def csft(token_logp):
    """2302.08582: `sft` behind a control string, which is none of the tokens."""
    return sft(token_logp)


# Responses with scores: lists in and out, of tokens (PPO, GRPO) or responses (RRHF).


def clipped(q, advantage, how_far):
    """The least favourable of the surrogate and the clipped one."""
    return -min(q * advantage, min(max(q, 1 - real(how_far)), 1 + real(how_far)) * advantage)


def grpo(token, ref_token, advantage, *, beta, epsilon):
    """2402.03300, equations 3 and 4, the reference in the place of the old policy: one token."""
    d = ratio(ref_token, token)
    return clipped(exp(-d), real(advantage), epsilon) + beta * (exp(d) - d - 1)


def ppo(tokens, values, ref_tokens, lengths, rewards, *, cliprange, gamma, lam, critic_coef, KL_coef):
    """1707.06347, equations 7 and 9, 1506.02438, equation 16; whitening and last term are those of HALOs."""
    gamma, lam, values = real(gamma), real(lam), [real(value) for value in values]
    advantages, returns, start = [], [], 0
    for length, reward in zip(map(int, lengths), rewards, strict=True):
        own, start = [*values[start : start + length], ZERO], start + length
        surprises = [gamma * own[t + 1] - own[t] for t in range(length)]
        surprises[-1] += reward
        for t in range(length):
            advantages.append(sum((gamma * lam) ** k * surprise for k, surprise in enumerate(surprises[t:])))
            returns.append(gamma ** (length - 1 - t) * reward)
    center = sum(advantages) / len(advantages)
    spread = exact.sqrt(sum((one - center) ** 2 for one in advantages) / len(advantages) + real("1e-8"))
    return [
        clipped(exp(r), (one - center) / spread, cliprange) + critic_coef * (value - after) ** 2 / 2 + KL_coef * r
        for r, one, value, after in zip(ratios(tokens, ref_tokens), advantages, values, returns, strict=True)
    ]


def rrhf(responses, lengths, rewards, groups, *, rank_weight, length_penalty, sft_reduction):
    """2304.05302, equations 1 to 4, a prompt's sum taken apart: ranking at the worse response, imitation at the best.

    Each term is multiplied by responses per prompt, so that a mean over responses is one over prompts.
    """
    scores = [
        real(logp) / real(length) ** real(length_penalty) for logp, length in zip(responses, lengths, strict=True)
    ]
    losses = []
    for i, group in enumerate(groups):
        prompt = [j for j, other in enumerate(groups) if other == group]
        ranking = sum(max(ZERO, scores[i] - scores[j]) for j in prompt if rewards[i] < rewards[j])
        best = i == max(prompt, key=lambda j: rewards[j])  # the first of equals
        imitation = chosen_nll(responses[i], lengths[i], nll_reduction=sft_reduction) if best else ZERO
        losses.append((rank_weight * ranking + imitation) * len(groups) / len(set(groups)))
    return losses


# Documents: one token at a time; `s` is the score of its segment.


def mle(logp):
    """2302.08582."""
    return -real(logp)


filtering = conditional = mle


def unlikelihood(logp, s, *, mode, threshold, alpha):
    """2302.08582, after 1908.04319; 1 - p is at least 1e-20."""
    good = (ONE if real(s) <= threshold else ZERO) if mode == "threshold" else ONE - real(s)
    complement = max(ONE - exp(real(logp)), real("1e-20"))
    return -good * real(logp) - real(alpha) * (ONE - good) * log(complement)


def rwr(logp, s, *, beta, weight_max):
    """2302.08582: exponential weights of rewards -s."""
    return -min(exp(-real(s) / real(beta)), real(weight_max)) * real(logp)


def awr(logp, value, s, *, alpha, beta, weight_max):
    """2302.08582, after 1910.00177."""
    advantage = -real(s) - real(value)
    weight = min(exp(advantage / real(beta)), real(weight_max))
    return -real(alpha) * weight * real(logp) + (ONE - real(alpha)) * advantage**2
