"""Humanline's clamp of token log-ratios, and a reference that follows the policy."""

import pytest
import torch

from dataloaders.paired import PairedPreferenceDataLoader
from launch.compose import compose
from launch.evaluate import run as evaluate
from launch.saved_config import compose_for_eval
from launch.train import run as train
from models.logprobs import plain_attention
from models.reference import Reference
from models.reference_cache import ReferenceCache
from tests import tiny
from tests.trainers.steps import CASES, LOSSES, ROW_BY_ROW, WHOLE, rows_of, step
from tests.trainers.test_step import plain_logps
from trainers.losses.paired import dpo
from trainers.paired import DPOTrainer

REFERENCED = [name for name in LOSSES if tiny.config(name).loss.use_reference_model]
LOW, HIGH = -0.5, 0.25


def test_humanline_is_the_formula_on_plain_forwards():
    """Prevents a clamp of sums, of the wrong side, or of the reference: each token's log-ratio, then the sum."""
    rows = rows_of("dpo", weights=True)
    policy, reference = (tiny.tiny_model(seed=seed, dtype=torch.float64) for seed in (0, 1))
    sums, clamped = [], 0
    for role in ("chosen", "rejected"):
        pairs = [(plain_logps(policy, row, role), plain_logps(reference, row, role).detach()) for row in rows]
        held = [(ours - theirs).clamp(LOW, HIGH) for ours, theirs in pairs]
        clamped += sum(int(((one == LOW) | (one == HIGH)).sum()) for one in held)
        sums.append(torch.stack([one.sum() for one in held]))
    assert 5 < clamped < sum(len(row.responses[role].ids) for row in rows for role in row.responses)
    zero = torch.zeros(len(rows), dtype=torch.float64)
    losses, *_ = dpo(*sums, zero, zero, beta=0.1)
    loss = (losses * torch.tensor([row.weight for row in rows])).sum() / len(rows)
    loss.backward()
    options = {"humanline": True, "log_epsilon_P": LOW, "log_epsilon_R": HIGH}
    gradient, metrics = step("dpo", rows, 200, **options)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert tiny.relative(tiny.gradients(policy), gradient) < 1e-6


@pytest.mark.parametrize("name", REFERENCED)
def test_humanline_goes_with_every_loss_that_has_a_reference(name: str):
    """Prevents a clamp that one of the two ways to a gradient forgets: packs change nothing, the clamp does."""
    rows = rows_of(CASES[name][1])
    options = {"humanline": True, "log_epsilon_P": LOW, "log_epsilon_R": HIGH}
    whole, metrics = step(name, rows, WHOLE, **options)
    apart, others = step(name, rows, ROW_BY_ROW, **options)
    assert tiny.relative(whole, apart) < 1e-6 and others == pytest.approx(metrics, rel=1e-6)
    assert metrics["loss"] != pytest.approx(step(name, rows)[1]["loss"], rel=1e-3)
    wide, loose = step(name, rows, WHOLE, humanline=True, log_epsilon_P=-1e3, log_epsilon_R=1e3)
    plain, unclamped = step(name, rows)
    assert tiny.relative(wide, plain) < 1e-6 and loose == pytest.approx(unclamped, rel=1e-6)


def weights(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])


@pytest.mark.parametrize("options", [{"loss__sync_reference": True}, {"humanline": True}])
def test_the_reference_is_one_step_behind(options: dict, tmp_path, monkeypatch):
    """Prevents a reference that follows too early (rewards of 0 for ever), too late, or with values of old weights."""
    made = tiny.loader(PairedPreferenceDataLoader, 6, batch_size=2)
    reference = Reference(lambda: tiny.tiny_model(seed=0), cache=ReferenceCache(tmp_path))
    trainer = tiny.trainer(DPOTrainer, "dpo", reference=reference, train_loader=made, lr=1e-2, **options)
    seen, gradients = [], trainer.computer.gradients

    def watched(rows):
        result = gradients(rows)
        for name, model in (("policy", trainer.policy), ("reference", reference.model)):
            with plain_attention(model):
                fresh = [plain_logps(model, row, "chosen").sum().item() for row in rows]
            assert result.tensors[f"{name}_chosen_logps"].tolist() == pytest.approx(fresh, rel=1e-4), name
        seen.append((weights(trainer.policy), weights(reference.model)))
        return result

    monkeypatch.setattr(trainer.computer, "gradients", watched)
    if "humanline" in options:  # so wide that it changes nothing
        trainer.computer._naming.clamp = (-1e3, 1e3)
    trainer.train()
    (first, before), (second, behind), (_, last) = seen
    assert torch.equal(before, weights(tiny.tiny_model(seed=0))) and torch.equal(first, before)
    assert torch.equal(behind, first) and not torch.equal(second, first)
    assert torch.equal(last, second)
    kept = len(ReferenceCache(tmp_path))
    assert kept == 4, "the values of the first step alone are those of the weights that the run began with"


def test_a_reference_that_stays_does_not_move():
    """Prevents that every run syncs."""
    made = tiny.loader(PairedPreferenceDataLoader, 6, batch_size=2)
    trainer = tiny.trainer(DPOTrainer, "dpo", reference_seed=0, train_loader=made, lr=1e-2)
    trainer.train()
    reference = trainer.computer.reference.model
    assert torch.equal(weights(reference), weights(tiny.tiny_model(seed=0)))
    assert not torch.equal(weights(reference), weights(trainer.policy))


def test_mode_eval_compares_with_the_reference_that_the_run_ended_with(tmp_path, caplog):
    """Prevents a reward margin by the weights of the start where the run measured itself by later ones."""
    settings = ["model=tiny", "n_examples=16", "n_eval_examples=6", "model.batch_size=4", "lr=1e-2"]
    config = compose(["loss=dpo", "loss.sync_reference=true", *settings, f"cache_dir={tmp_path}", "exp_name=run"])
    trained = train(config)
    config, folder = compose_for_eval([f"--config-path={tmp_path / 'run'}", "++mode=eval"])
    assert evaluate(config, folder)["loss/eval"] == pytest.approx(trained["loss/eval"], abs=2e-6)
    (folder / "LATEST" / "resume.pt").unlink()
    assert evaluate(config, folder)["loss/eval"] != pytest.approx(trained["loss/eval"], rel=1e-3)
    assert "compare with the weights that the run started from" in caplog.text
