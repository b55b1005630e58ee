"""Records what TRL computes for the losses of `trainers/losses`, in float64, into trl_recorded.json.

TRL is no dependency of this project: run this in an environment of its own with torch 2.13.0 and trl 1.16.0,

    python tests/trainers/record_trl.py

TRL's own `_compute_loss` (`get_batch_loss_metrics` of CPO and ORPO) is run, on a stand-in for the model that answers
with given token log-probabilities. The record has a list of cases for each name of `config/loss`, and for TRL's
options without a file there: `mixture` (several losses with weights) and `wpo` (weights of WPO on the DPO loss).
A slope is the derivative of the mean loss by the log-probability of a response's first token, where no other is named.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
import trl
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

LENGTHS = (3, 7, 1, 5)  # tokens of the responses of one side
REJECTED_LENGTHS = (5, 2, 4, 5)  # tokens of the other side, for the losses of NAMED_BETAS: longer, shorter, equal
BETAS = (0.01, 0.1, 0.5, 2.0)
NAMED_BETAS = (0.1, 0.3, 1.0)
SINGLE_PRECISION = 1e-5  # relative; where TRL itself computes in float32


def stand_in(token_logps: torch.Tensor, log_sum_sq_probs: torch.Tensor | None) -> SimpleNamespace:
    """What TRL's patched forward returns for shifted positions; what has zeros here is for metrics alone."""
    zeros = torch.zeros_like(token_logps).detach()
    return SimpleNamespace(
        log_probs=token_logps, log_sum_sq_probs=log_sum_sq_probs,
        entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), aux_loss=None,
    )  # fmt: skip


def trainer(policy: torch.Tensor, reference: torch.Tensor, **settings: object) -> SimpleNamespace:
    """The attributes of a TRL trainer that its `_compute_loss` reads, for one process."""
    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    defaults = {
        "accelerator": accelerator,
        "args": SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=settings.pop("discopop_tau", None)),
        "aux_loss_enabled": False,
        "precompute_ref_logps": False,
        "ld_alpha": None,
        "use_weighting": False,
        "label_smoothing": 0.0,
        "f_divergence_type": "reverse_kl",
        "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
        "model": Model(policy, settings.pop("log_sum_sq_probs", None)),
        "ref_model": Model(reference),
    }
    return SimpleNamespace(**defaults | settings)


class Model(torch.nn.Module):
    """Answers every batch with the same token log-probabilities (B, L), and log sum p^2 of the tokens if given."""

    is_gradient_checkpointing = False

    def __init__(self, token_logps: torch.Tensor, log_sum_sq_probs: torch.Tensor | None = None):
        super().__init__()
        self.token_logps = token_logps
        self.log_sum_sq_probs = log_sum_sq_probs

    def forward(self, **_: object) -> SimpleNamespace:
        return stand_in(self.token_logps, self.log_sum_sq_probs)


class LogitsModel(torch.nn.Module):
    """Answers with logits (B, L + 1, 2) of a vocabulary of two: token 0 has the given log-probabilities (B, L)."""

    def __init__(self, token_logps: torch.Tensor, mask: torch.Tensor):
        super().__init__()
        self.token_logps = token_logps.masked_fill(mask == 0, -1.0)  # log(1 - p) must be finite behind the responses

    def forward(self, *_: object, **__: object) -> SimpleNamespace:
        logits = torch.stack([self.token_logps, torch.log(-torch.expm1(self.token_logps))], dim=-1)
        return SimpleNamespace(logits=torch.nn.functional.pad(logits, (0, 0, 0, 1)))


def batch(
    lengths: tuple[int, ...], generator: torch.Generator, magnitude: float = 3.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Completion mask (rows, L + 1) behind a prompt of one token, and log-probabilities (rows, L)."""
    rows = len(lengths)
    mask = (torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]).long()
    logps = -magnitude * torch.rand(rows, max(lengths), generator=generator, dtype=torch.float64) * mask
    return torch.cat([torch.zeros(rows, 1, dtype=torch.long), mask], dim=1), logps


def inputs(mask: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}


def paired(loss_type: str, beta: float, seed: int) -> dict[str, object]:
    """DPOTrainer on 4 pairs."""
    generator = torch.Generator().manual_seed(seed)
    mask, policy = batch(LENGTHS * 2, generator)
    _, reference = batch(LENGTHS * 2, generator)
    policy.requires_grad_()
    this = trainer(policy, reference, beta=beta, loss_types=[loss_type], loss_weights=[1.0])
    loss = DPOTrainer._compute_loss(this, this.model, inputs(mask), return_outputs=False)
    (slope,) = torch.autograd.grad(loss, policy)
    sums, slopes = policy.detach().sum(1), (slope * mask[:, 1:])
    case = {"loss_type": loss_type, "beta": beta, "loss": loss.item()}
    if loss_type == "sft":
        kept = mask[:4, 1:].bool()
        return case | {
            "policy_target_token_logps": policy.detach()[:4][kept].tolist(),
            "slopes": slopes[:4][kept].tolist(),
        }
    metrics = this._metrics["train"]
    return case | {
        "policy_chosen_logps": sums[:4].tolist(),
        "policy_rejected_logps": sums[4:].tolist(),
        "reference_chosen_logps": reference.sum(1)[:4].tolist(),
        "reference_rejected_logps": reference.sum(1)[4:].tolist(),
        "chosen_slopes": slopes[:4, 0].tolist(),
        "rejected_slopes": slopes[4:, 0].tolist(),
        "rewards/chosen": metrics["rewards/chosen"][0],
        "rewards/rejected": metrics["rewards/rejected"][0],
        "rewards/accuracies": metrics["rewards/accuracies"][0],
    }


def pair_settings() -> Iterator[tuple[str, float, dict[str, object], dict[str, object]]]:
    """For DPOTrainer: our name, a magnitude that spreads the margins over -3 to 3, our settings, TRL's attributes."""
    for beta in NAMED_BETAS:
        wide, plain = 1.5 / beta, {"beta": beta}
        yield "hinge", 2 * wide, plain, plain | {"loss_types": ["hinge"]}
        for name in ("nca_pair", "sppo_hard", "apo_zero", "apo_down"):
            yield name, wide, plain, plain | {"loss_types": [name]}
        yield "bco_pair", wide, plain | {"reward_shift": "none"}, plain | {"loss_types": ["bco_pair"]}
        yield "ipo", 2 * wide, {"tau": beta, "length_normalize": True}, plain | {"loss_types": ["ipo"]}
        yield "sigmoid_norm", 0.8 / beta, {"beta": 5 * beta}, {"beta": 5 * beta, "loss_types": ["sigmoid_norm"]}
        losses = {"dpo": 0.8, "bco_pair": 0.2, "sft": 1.0}
        mixed = {"loss_types": ["sigmoid", "bco_pair", "sft"], "loss_weights": [*losses.values()]}
        yield "mixture", wide, plain | {"losses": losses}, plain | mixed
        yield "wpo", min(wide, 3.0), plain, plain | {"use_weighting": True}
    for epsilon, beta in ((0.0, 0.1), (0.1, 0.3), (0.3, 1.0), (0.3, 0.1)):
        yield "robust", 1.5 / beta, {"beta": beta, "epsilon": epsilon}, smoothed("robust", beta, epsilon)
    for epsilon, beta in ((0.0, 0.1), (0.1, 0.3), (0.1, 1.0), (0.0, 1.0)):
        for name in ("aot", "aot_unpaired"):
            yield name, 1.5 / beta, {"beta": beta, "epsilon": epsilon}, smoothed(name, beta, epsilon)
    for smoothing, beta in ((1e-3, 0.1), (0.1, 0.3), (1e-3, 1.0), (0.1, 1.0)):
        yield "exo_pair", 1.5 / beta, {"beta": beta, "smoothing": smoothing}, smoothed("exo_pair", beta, smoothing)
    for tau, beta, spread in ((0.05, 0.1, 1.5), (0.05, 0.3, 0.1), (0.05, 1.0, 0.1), (0.3, 1.0, 1.5)):
        attributes = {"beta": beta, "loss_types": ["discopop"], "discopop_tau": tau}
        yield "discopop", spread / beta, {"beta": beta, "tau": tau}, attributes
    for ld_alpha, beta in ((0.0, 0.1), (0.3, 0.3), (1.0, 1.0), (0.3, 1.0)):
        settings = {"beta": beta, "ld_alpha": ld_alpha}
        yield "ld_dpo", 1.5 / beta, settings, settings
    for beta in (0.1, 0.5, 1.5):
        for ours, theirs, magnitude in (("forward_kl", "forward_kl", 1.0), ("js", "js_divergence", 3.0)):
            settings = {"beta": beta, "divergence": ours, "divergence_alpha": 0.5}
            yield "f_dpo", magnitude, settings, {"beta": beta, "f_divergence_type": theirs}
    for alpha, beta in ((0.1, 0.5), (0.3, 0.1), (0.5, 0.5), (0.5, 1.5), (0.9, 1.0)):
        settings = {"beta": beta, "divergence": "alpha", "divergence_alpha": alpha}
        attributes = {"beta": beta, "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1 - alpha}
        yield "f_dpo", 1 / max(alpha, 1 / 3), settings, attributes


def smoothed(loss_type: str, beta: float, label_smoothing: float) -> dict[str, object]:
    return {"beta": beta, "loss_types": [loss_type], "label_smoothing": label_smoothing}


def named_pair(
    name: str, magnitude: float, settings: dict[str, object], attributes: dict[str, object], seed: int
) -> dict[str, object]:
    """DPOTrainer on 4 pairs of different lengths, under our names."""
    generator = torch.Generator().manual_seed(seed)
    mask, policy = batch(LENGTHS + REJECTED_LENGTHS, generator, magnitude)
    _, reference = batch(LENGTHS + REJECTED_LENGTHS, generator, magnitude)
    # p <= sqrt(sum p^2) and sum p^2 <= 1, so log sum p^2 lies between 2 log p and 0
    log_sum_sq_probs = 2 * policy * torch.rand(policy.shape, generator=generator, dtype=torch.float64)
    single = "f_alpha_divergence_coef" in attributes  # TRL's alpha-divergence refuses float64
    if single:
        policy, reference = policy.float(), reference.float()
    policy.requires_grad_()
    defaults = {"loss_types": ["sigmoid"], "loss_weights": [1.0], "log_sum_sq_probs": log_sum_sq_probs}
    this = trainer(policy, reference, **defaults | attributes)
    loss = DPOTrainer._compute_loss(this, this.model, inputs(mask), return_outputs=False)
    (slopes,) = torch.autograd.grad(loss, policy)
    policy, mask = policy.detach(), mask[:, 1:]
    case = {"settings": settings} | ({"precision": SINGLE_PRECISION} if single else {})
    case |= sides("policy_{}_logps", policy.sum(1)) | sides("reference_{}_logps", reference.sum(1))
    case |= sides("{}_lengths", mask.sum(1))
    if name == "ld_dpo":
        shared = torch.minimum(*mask.sum(1).chunk(2)).repeat(2)
        case |= sides("policy_{}_shared_logps", before(policy, shared))
        case |= sides("reference_{}_shared_logps", before(reference, shared))
        last = slopes.gather(1, mask.sum(1, keepdim=True) - 1)[:, 0]
        tails = [slope if tail else None for slope, tail in zip(last.tolist(), mask.sum(1) > shared, strict=True)]
        case |= {"chosen_tail_slopes": tails[:4], "rejected_tail_slopes": tails[4:]}
    if name == "mixture":
        case["policy_target_token_logps"] = policy[:4][mask[:4].bool()].tolist()
    if name == "wpo":
        case |= tokens("policy_{}_token_logps", policy, mask)
        case |= tokens("policy_{}_token_log_sum_sq_probs", log_sum_sq_probs, mask)
    return case | {"loss": loss.item()} | sides("{}_slopes", slopes[:, 0]) | rewards(this._metrics["train"])


def before(token_logps: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Sums of the log-probabilities (B, L) of the first tokens, as many as `lengths` (B) says."""
    return (token_logps * (torch.arange(token_logps.shape[1]) < lengths[:, None])).sum(1)


def sides(name: str, values: torch.Tensor) -> dict[str, list[float]]:
    chosen, rejected = values.chunk(2)
    return {name.format("chosen"): chosen.tolist(), name.format("rejected"): rejected.tolist()}


def tokens(name: str, values: torch.Tensor, mask: torch.Tensor) -> dict[str, list[list[float]]]:
    """The values (B, L) of each response by itself, without the padding."""
    rows = [row[kept.bool()].tolist() for row, kept in zip(values, mask, strict=True)]
    return {name.format("chosen"): rows[:4], name.format("rejected"): rows[4:]}


def rewards(metrics: dict[str, object]) -> dict[str, float]:
    """The metrics of rewards, which DPOTrainer keeps in lists and CPOTrainer does not."""
    names = ("rewards/chosen", "rewards/rejected", "rewards/accuracies")
    return {name: metrics[name][0] if isinstance(metrics[name], list) else metrics[name] for name in names}


def reference_free_settings() -> Iterator[tuple[str, type, float, dict[str, object], dict[str, object]]]:
    """Our name, TRL's trainer, the magnitude, our settings and TRL's attributes."""
    for beta, ratio in ((2.0, 0.5), (2.5, 0.0), (10.0, 0.3)):
        settings = {"beta": beta, "gamma_beta_ratio": ratio}
        attributes = {"beta": beta, "loss_type": "simpo", "simpo_gamma": ratio * beta, "cpo_alpha": 0.0}
        yield "simpo", CPOTrainer, 4 / beta, settings, attributes
    for beta in NAMED_BETAS:
        attributes = {"beta": beta, "loss_type": "sigmoid", "cpo_alpha": 1.0}
        settings = {"beta": beta, "cpo_alpha": 0.0, "nll_reduction": "mean"}
        yield "cpo", CPOTrainer, 1.5 / beta, settings, attributes
    for scale, magnitude in ((0.1, 3.0), (0.5, 1.0), (1.0, 5.0)):
        yield "orpo", ORPOTrainer, magnitude, {"OR_scale": scale}, {"beta": scale}


def reference_free(
    kind: type, magnitude: float, settings: dict[str, object], attributes: dict[str, object], seed: int
) -> dict[str, object]:
    """CPOTrainer or ORPOTrainer on 4 pairs: `loss` and slopes without the imitation, which is added as `nll`."""
    generator = torch.Generator().manual_seed(seed)
    mask, policy = batch(LENGTHS + REJECTED_LENGTHS, generator, magnitude)
    policy.requires_grad_()
    this = object.__new__(kind)  # its constructor wants a dataset and a real model
    accelerator = SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x)
    fixed = {"is_encoder_decoder": False, "aux_loss_enabled": False, "pad_token_id": 0, "padding_value": 0}
    this.__dict__.update(fixed, accelerator=accelerator, alpha=0.0, label_smoothing=0.0, **attributes)
    ids = torch.zeros_like(mask)
    attention = mask.clone()
    attention[:, 0] = 1
    columns = {"input_ids": ids, "attention_mask": attention, "labels": ids.masked_fill(mask == 0, -100)}
    pairs = {f"chosen_{name}": value[:4] for name, value in columns.items()}
    pairs |= {f"rejected_{name}": value[4:] for name, value in columns.items()}
    model = LogitsModel(policy, mask[:, 1:])
    total, metrics = this.get_batch_loss_metrics(model, pairs)
    nll = this.concatenated_forward(model, pairs)[4]  # its weight is 1 where it is not 0
    (slopes,) = torch.autograd.grad(total - nll, policy)
    case = {"settings": settings} | ({"precision": SINGLE_PRECISION} if kind is ORPOTrainer else {})
    case |= sides("policy_{}_logps", policy.detach().sum(1)) | sides("{}_lengths", mask.sum(1))
    case |= {"loss": (total - nll).item()} | sides("{}_slopes", slopes[:, 0]) | rewards(metrics)
    return case | ({} if attributes.get("cpo_alpha") == 0 else {"nll": nll.item(), "loss_with_nll": total.item()})


def unpaired(
    beta: float, weights: tuple[float, float], shift: float, seed: int, loss_type: str = "kto", magnitude: float = 3.0
) -> dict[str, object]:
    """KTOTrainer on 7 rows, of which 4 are desirable; `shift` moves the KL rows, so that K is clamped or not."""
    generator = torch.Generator().manual_seed(seed)
    mask, policy = batch((LENGTHS * 2)[:7], generator, magnitude)
    _, reference = batch((LENGTHS * 2)[:7], generator, magnitude)
    _, kl_policy = batch((LENGTHS * 2)[:7], generator)
    _, kl_reference = batch((LENGTHS * 2)[:7], generator)
    kl_policy, kl_reference = kl_policy.sum(1) + shift, kl_reference.sum(1)
    policy.requires_grad_()
    labels = torch.tensor([True, False, True, True, False, True, False])
    this = trainer(
        policy, reference, beta=beta, loss_type=loss_type, calculate_KL=loss_type == "kto",
        desirable_weight=weights[0], undesirable_weight=weights[1],
    )  # fmt: skip
    this._compute_kl_logps = lambda model, _: kl_policy if model is this.model else kl_reference
    loss = KTOTrainer._compute_loss(this, this.model, inputs(mask) | {"label": labels}, return_outputs=False)
    (slope,) = torch.autograd.grad(loss, policy)
    sums, metrics = policy.detach().sum(1), this._metrics["train"]
    return {
        "beta": beta,
        "desirable_weight": weights[0],
        "undesirable_weight": weights[1],
        "loss": loss.item(),
        "kl": metrics["kl"][0],
        "policy_chosen_logps": sums[labels].tolist(),
        "policy_rejected_logps": sums[~labels].tolist(),
        "policy_KL_logps": kl_policy.tolist(),
        "reference_chosen_logps": reference.sum(1)[labels].tolist(),
        "reference_rejected_logps": reference.sum(1)[~labels].tolist(),
        "reference_KL_logps": kl_reference.tolist(),
        "chosen_slopes": slope[labels, 0].tolist(),
        "rejected_slopes": slope[~labels, 0].tolist(),
        "rewards/chosen": metrics["rewards/chosen"][0],
        "rewards/rejected": metrics["rewards/rejected"][0],
    }


def anchored(beta: float, weights: tuple[float, float], seed: int) -> dict[str, object]:
    """KTOTrainer's apo_zero_unpaired, which has no KL."""
    case = unpaired(beta, weights, 0.0, seed, "apo_zero_unpaired", 1.5 / beta)
    settings = {name: case.pop(name) for name in ("beta", "desirable_weight", "undesirable_weight")}
    return {"settings": settings} | {name: value for name, value in case.items() if "kl" not in name.lower()}


def main() -> None:
    torch.set_default_dtype(torch.float64)  # TRL's exo_pair takes its label smoothing in the default type
    record = {
        "trl": trl.__version__,
        "torch": torch.__version__,
        "sft": [paired("sft", 0.1, seed) for seed in range(3)],
        "dpo": [paired("sigmoid", beta, seed) for seed, beta in enumerate(BETAS)],
        "kto": [
            unpaired(beta, weights, shift, seed)
            for seed, beta in enumerate(BETAS)
            for weights in ((1.0, 1.0), (1.33, 0.5))
            for shift in (-20.0, 20.0)
        ],
    }
    for name, *arguments in pair_settings():
        cases = record.setdefault(name, [])
        cases.append(named_pair(name, *arguments, seed=len(cases)))
    for name, *arguments in reference_free_settings():
        cases = record.setdefault(name, [])
        cases.append(reference_free(*arguments, seed=len(cases)))
    record["apo_zero_unpaired"] = [
        anchored(beta, weights, seed)
        for seed, (beta, weights) in enumerate(zip(NAMED_BETAS, ((1.0, 1.0), (1.33, 0.5), (0.7, 1.5)), strict=True))
    ]
    path = Path(__file__).with_name("trl_recorded.json")
    path.write_text(json.dumps(record).replace("}, {", "},\n{") + "\n")
    counts = {name: len(cases) for name, cases in record.items() if isinstance(cases, list)}
    print(f"{path}: {', '.join(f'{count} cases of {name}' for name, count in counts.items())}")


if __name__ == "__main__":
    main()
