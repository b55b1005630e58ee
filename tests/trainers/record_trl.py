"""Records what TRL computes for the losses of `trainers/losses`, in float64, into trl_recorded.json.

TRL is no dependency of this project: run this in an environment of its own with torch 2.13.0 and trl 1.16.0,

    python tests/trainers/record_trl.py

TRL's own `_compute_loss` is run, on a stand-in for the model that answers with given token log-probabilities.
"""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch
import trl
from trl import DPOTrainer, KTOTrainer

LENGTHS = (3, 7, 1, 5)  # tokens of the responses of one side
BETAS = (0.01, 0.1, 0.5, 2.0)


def stand_in(token_logps: torch.Tensor) -> SimpleNamespace:
    """What TRL's patched forward returns: log-probabilities of shifted positions; the rest is for metrics alone."""
    zeros = torch.zeros_like(token_logps).detach()
    return SimpleNamespace(log_probs=token_logps, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), aux_loss=None)


def trainer(policy: torch.Tensor, reference: torch.Tensor, **settings: object) -> SimpleNamespace:
    """The attributes of a TRL trainer that its `_compute_loss` reads, for one process."""
    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    defaults = {
        "accelerator": accelerator,
        "args": SimpleNamespace(gradient_checkpointing_kwargs=None),
        "aux_loss_enabled": False,
        "precompute_ref_logps": False,
        "ld_alpha": None,
        "use_weighting": False,
        "label_smoothing": 0.0,
        "f_divergence_type": "reverse_kl",
        "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
        "model": Model(policy),
        "ref_model": Model(reference),
    }
    return SimpleNamespace(**defaults | settings)


class Model(torch.nn.Module):
    """Answers every batch with the same token log-probabilities (B, L)."""

    is_gradient_checkpointing = False

    def __init__(self, token_logps: torch.Tensor):
        super().__init__()
        self.token_logps = token_logps

    def forward(self, **_: object) -> SimpleNamespace:
        return stand_in(self.token_logps)


def batch(rows: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Completion mask (rows, L + 1) behind a prompt of one token, and log-probabilities (rows, L)."""
    lengths = torch.tensor((LENGTHS * rows)[:rows])
    mask = (torch.arange(max(LENGTHS))[None, :] < lengths[:, None]).long()
    logps = -3 * torch.rand(rows, max(LENGTHS), generator=generator, dtype=torch.float64) * mask
    return torch.cat([torch.zeros(rows, 1, dtype=torch.long), mask], dim=1), logps


def inputs(mask: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}


def paired(loss_type: str, beta: float, seed: int) -> dict[str, object]:
    """DPOTrainer on 4 pairs."""
    generator = torch.Generator().manual_seed(seed)
    mask, policy = batch(8, generator)
    _, reference = batch(8, generator)
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


def unpaired(beta: float, weights: tuple[float, float], shift: float, seed: int) -> dict[str, object]:
    """KTOTrainer on 7 rows, of which 4 are desirable; `shift` moves the KL rows, so that K is clamped or not."""
    generator = torch.Generator().manual_seed(seed)
    mask, policy = batch(7, generator)
    _, reference = batch(7, generator)
    _, kl_policy = batch(7, generator)
    _, kl_reference = batch(7, generator)
    kl_policy, kl_reference = kl_policy.sum(1) + shift, kl_reference.sum(1)
    policy.requires_grad_()
    labels = torch.tensor([True, False, True, True, False, True, False])
    this = trainer(
        policy, reference, beta=beta, loss_type="kto", calculate_KL=True,
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


def main() -> None:
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
    path = Path(__file__).with_name("trl_recorded.json")
    path.write_text(json.dumps(record).replace("}, {", "},\n{") + "\n")
    print(f"{path}: {', '.join(f'{len(record[name])} cases of {name}' for name in ('sft', 'dpo', 'kto'))}")


if __name__ == "__main__":
    main()
