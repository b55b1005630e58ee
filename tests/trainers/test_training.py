"""The loop: learns, logs every step under HALOs' names, evaluates a fixed set, saves, stops at what is not finite."""

import json
import math
import threading
from types import SimpleNamespace

import pytest
import torch

from dataloaders.paired import PairedPreferenceDataLoader
from dataloaders.sft import SFTDataLoader
from dataloaders.unpaired import UnpairedPreferenceDataLoader
from models.checkpoints import read_loss_state, read_policy
from models.logprobs import plain_attention
from tests import tiny
from tests.trainers.couplings import RunningMeanTrainer
from trainers import loop
from trainers.checkpointing import Checkpointing
from trainers.finite import NonFiniteError
from trainers.metrics import Averages, MetricsLog
from trainers.paired import DPOTrainer, PairedPreferenceTrainer
from trainers.sft import SFTTrainer
from trainers.unpaired import KTOTrainer

LOSSES = {
    "sft": (SFTTrainer, SFTDataLoader),
    "dpo": (DPOTrainer, PairedPreferenceDataLoader),
    "kto": (KTOTrainer, UnpairedPreferenceDataLoader),
}
COUNTERS = {"counters/examples", "counters/updates"}
TRAIN_ONLY = {"grad_norm", "counters/lr", "examples_per_second", "tokens_per_second", "peak_memory_gb", "seconds/all"}
TRAIN_ONLY |= {"tokens/unique_share", "tokens/real_share"}
TRAIN_ONLY |= {f"seconds/{part}" for part in ("data", "forward", "backward", "optimizer")}
REWARDS = {"rewards_{}/chosen", "rewards_{}/rejected", "rewards_{}/margins"}
NAMES = {
    "sft": {"loss/{}", "logps_{}/target"},
    "dpo": {"loss/{}", "logps_{}/chosen", "logps_{}/rejected", "rewards_{}/accuracies", *REWARDS},
    "kto": {
        "loss/{}", "logps_{}/chosen", "logps_{}/rejected", "logps_{}/KL", "rewards_{}/unpaired_accuracies",
        "rewards_{}/KL_estimate", "rewards_{}/accuracies", "rewards_{}/pair_margins", *REWARDS,
    },
}  # fmt: skip


class Run:
    """A training in a folder, with its log."""

    def __init__(self, folder, loss: str = "dpo", *, kind=None, count: int = 12, batch_size: int = 4, **options):
        default, loader = LOSSES[loss]
        made = tiny.loader(loader, count, batch_size=batch_size, n_epochs=options.pop("n_epochs", 1))
        log = MetricsLog(folder, console_interval=1e9)
        reference = None if loss == "sft" else 0
        self.folder = folder
        self.trainer = tiny.trainer(
            kind or default, loss, reference_seed=reference, train_loader=made, eval_rows=made.fixed_rows(8),
            folder=folder, metrics_log=log, **{"lr": 1e-2, "warmup": 0.0} | options,
        )  # fmt: skip

    def records(self, split: str) -> list[dict]:
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["split"] == split]


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_goes_down_and_every_step_is_logged(loss: str, tmp_path):
    """Prevents ascent, a step without a record, and names that HALOs' plots do not know."""
    run = Run(tmp_path, loss, n_epochs=3)
    metrics = run.trainer.train()
    steps = len(run.trainer.train_loader.sizes())
    train, evaluations = run.records("train"), run.records("eval")
    assert len(train) == steps == run.trainer.step_idx
    assert [record["counters/updates"] for record in train] == list(range(1, steps + 1))
    assert train[-1]["counters/examples"] == sum(run.trainer.train_loader.sizes())
    assert evaluations[-1]["loss/eval"] < evaluations[0]["loss/eval"] * 0.9
    assert metrics["loss/eval"] == evaluations[-1]["loss/eval"]
    expected = {name.format("eval") for name in NAMES[loss]} | COUNTERS | {"split", "eval_seconds"}
    assert set(evaluations[0]) == expected
    expected = {name.format("train") for name in NAMES[loss]} | COUNTERS | TRAIN_ONLY | {"split"}
    expected |= set() if loss == "sft" else {"seconds/reference"}
    pairs_alone = {"rewards_train/accuracies", "rewards_train/pair_margins"} if loss == "kto" else set()
    assert all(expected - pairs_alone <= set(record) <= expected for record in train)
    assert all(record["tokens/real_share"] == 1 for record in train), "nothing is padded"
    assert all((record["tokens/unique_share"] < 1) == (loss == "dpo") or loss == "kto" for record in train)
    if loss != "sft":
        assert evaluations[0]["loss/eval"] == pytest.approx(math.log(2) if loss == "dpo" else 0.5, rel=1e-5)
        assert evaluations[0]["rewards_eval/margins"] == pytest.approx(0, abs=1e-5)
        assert evaluations[-1]["rewards_eval/margins"] > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_the_same_training_twice_is_the_same_to_the_bit(loss: str, tmp_path):
    """Prevents anything that depends on global random state or on the time."""
    results = []
    for name in ("one", "two"):
        torch.manual_seed(len(results))
        (tmp_path / name).mkdir()
        run = Run(tmp_path / name, loss)
        run.trainer.train()
        results.append(torch.cat([p.detach().reshape(-1) for p in run.trainer.policy.parameters()]))
    assert torch.equal(*results)


def test_evaluations_come_every_so_many_examples(tmp_path):
    """Prevents counting steps for examples: 12 examples, 4 a step, every 5: before, after 8 (past 5), after 12."""
    run = Run(tmp_path, eval_every=5, intermediate_checkpoints=True)
    run.trainer.train()
    assert [record["counters/examples"] for record in run.records("eval")] == [0, 8, 12]
    assert {folder.name for folder in tmp_path.iterdir() if folder.is_dir()} == {"step-8", "step-12", "LATEST"}
    contents = read_policy(tmp_path / "step-8" / "policy.pt")
    assert set(contents) == {"step_idx", "state", "metrics"}
    assert (contents["step_idx"], contents["metrics"]["counters/examples"]) == (2, 8)


def test_no_first_evaluation(tmp_path):
    """Prevents a key that has no effect, as in HALOs."""
    run = Run(tmp_path, do_first_eval=False)
    run.trainer.train()
    assert [record["counters/examples"] for record in run.records("eval")] == [12]


def test_evaluating_changes_nothing(tmp_path):
    """Prevents an evaluation set that is drawn anew, dropout in evaluations, and gradients that they leave behind."""
    run = Run(tmp_path, "kto")
    before = run.trainer.evaluate()
    assert run.trainer.evaluate() == before
    assert all(parameter.grad is None for parameter in run.trainer.policy.parameters())


def test_keep_best_keeps_the_best(tmp_path):
    """Prevents keeping the last checkpoint, or the first: of 3 (before training), 2, 1 and 1.5 the third is best."""
    run = Run(tmp_path, eval_every=4, keep_best="loss/eval")
    losses = iter([3.0, 2.0, 1.0, 1.5])
    run.trainer.evaluate = lambda: {"loss/eval": next(losses)}
    run.trainer.train()
    assert read_policy(tmp_path / "BEST" / "policy.pt")["step_idx"] == 2
    assert json.loads((tmp_path / "BEST" / "metrics.json").read_text())["loss/eval"] == 1.0
    assert read_policy(tmp_path / "LATEST" / "policy.pt")["step_idx"] == 3


@pytest.mark.parametrize(("name", "sequence", "best"), [
    ("rewards_eval/margins", [1.0, 3.0, 2.0], 3.0),
    ("-logps_eval/chosen", [1.0, 3.0, 0.5], 0.5),
    ("loss/eval", [math.nan, 0.7, 0.6], 0.6),
])  # fmt: skip
def test_which_metric_is_better(name: str, sequence: list[float], best: float):
    """Prevents the wrong direction, and a nan that stays the best for ever."""
    trainer = tiny.trainer(DPOTrainer, "dpo", keep_best=name)
    kept = [value for value in sequence if trainer.checkpoints.is_best({name.lstrip("-"): value}, 0)]
    assert kept[-1] == best


def test_the_shares_of_tokens_are_counted(tmp_path):
    """Prevents shares that are always one: of pairs the prompt is computed once, and padding counts where it is."""
    run = Run(tmp_path)
    rows = [row for step in run.trainer.train_loader for row in step]
    prompts, responses = (
        sum(len(row.prompt) for row in rows),
        sum(len(one.ids) for row in rows for one in row.responses.values()),
    )
    run.trainer.computer.gradients(rows)
    expected = (prompts + responses) / (2 * prompts + responses)
    assert run.trainer.computer.token_shares()["tokens/unique_share"] == pytest.approx(expected)
    with plain_attention(run.trainer.policy):
        run.trainer.computer.gradients(rows)
    shares = run.trainer.computer.token_shares()
    longest = max(len(row.prompt) + len(one.ids) for row in rows for one in row.responses.values())
    assert shares["tokens/real_share"] == pytest.approx((2 * prompts + responses) / (24 * longest))


def test_an_unknown_best_metric_stops_the_run_before_it_trains(tmp_path):
    """Prevents a training that is lost at its end to a misspelled name."""
    run = Run(tmp_path, keep_best="reward/margin")
    with pytest.raises(ValueError, match=r"keep_best=reward/margin.*rewards_eval/margins"):
        run.trainer.train()
    assert run.trainer.step_idx == 0


def test_a_best_of_no_evaluation_stops_the_run_before_it_trains(tmp_path):
    """Prevents a training that is lost at its end because keep_best has no evaluation set to choose by."""
    run = Run(tmp_path, keep_best="loss/eval")
    run.trainer.eval_rows = []
    with pytest.raises(ValueError, match=r"keep_best=loss/eval.*no evaluation set"):
        run.trainer.train()
    assert run.trainer.step_idx == 0


def test_a_misspelled_best_metric_found_at_the_end_costs_no_weights(tmp_path):
    """Prevents the loss of a trained policy where, without a first evaluation, only the last one can find the name."""
    run = Run(tmp_path, keep_best="reward/margin", do_first_eval=False)
    with pytest.raises(ValueError, match="keep_best=reward/margin"):
        run.trainer.train()
    assert read_policy(tmp_path / "LATEST" / "policy.pt")["step_idx"] == 3


def test_a_checkpoint_is_copied_when_the_one_before_is_written(tmp_path, monkeypatch):
    """Prevents two copies of weights and optimizer beside each other where checkpoints are written in the background.

    A write goes on for as long as nobody waits for it.
    """
    run = Run(tmp_path, save_every=4, save_in_background=True)
    checkpoints, awaited, written = run.trainer.checkpoints, threading.Event(), []
    join, write = Checkpointing.join, Checkpointing._write

    def tell(*_) -> None:
        awaited.set()
        join(checkpoints)
        awaited.clear()

    def slow(*some) -> None:
        awaited.wait()
        write(*some)
        written.append(True)

    def at_once(*some):
        assert len(written) == run.trainer.step_idx - 1, "the one before is still in memory"
        return pack(*some)

    pack = loop.pack
    monkeypatch.setattr(Checkpointing, "join", tell)
    monkeypatch.setattr(Checkpointing, "_write", slow)
    monkeypatch.setattr(loop, "pack", at_once)
    run.trainer.train()
    assert len(written) == 3


def test_what_a_loss_remembers_is_saved(tmp_path):
    """Prevents a checkpoint whose loss is another one because it begins without its running mean."""
    run = Run(tmp_path, kind=RunningMeanTrainer)
    run.trainer.train()
    state = read_loss_state(tmp_path / "LATEST" / "policy.pt")
    assert state["count"].item() == 12 and state["mean"] == run.trainer.loss_state["mean"]
    assert read_loss_state(tmp_path / "LATEST") == state
    assert set(read_policy(tmp_path / "LATEST" / "policy.pt")) == {"step_idx", "state", "metrics"}


class ExplodesAtTheThirdStep(PairedPreferenceTrainer):
    """A loss that is not finite for one example of the third step."""

    def loss(self, policy_chosen_logps, policy_rejected_logps):
        """The margin, and inf for the first row at the third step."""
        losses = policy_rejected_logps - policy_chosen_logps
        if self.step_idx == 2 and len(losses) == 1:
            losses = losses / torch.zeros_like(losses)
        return losses


def test_a_loss_that_is_not_finite_stops_before_the_optimizer(tmp_path):
    """Prevents nan weights: the step and the example are named, and the weights are those before the step."""
    run = Run(tmp_path, kind=ExplodesAtTheThirdStep, model__tokens_per_microbatch=1, lr=1e-4)
    weights, step = {}, run.trainer.step

    def watched(*args):
        weights.update({name: value.clone() for name, value in run.trainer.policy.state_dict().items()})
        return step(*args)

    run.trainer.step = watched
    with pytest.raises(NonFiniteError, match=r"not finite at optimizer step 3 \(after 8 examples\).*words: '.*\?'"):
        run.trainer.train()
    assert run.trainer.step_idx == 2
    assert all(torch.equal(value, weights[name]) for name, value in run.trainer.policy.state_dict().items())
    assert not (tmp_path / "LATEST").exists()


def test_a_gradient_that_is_not_finite_stops_before_the_optimizer(tmp_path):
    """Prevents nan weights where the loss is finite and only its slope is not (sqrt at 0)."""

    class Cusp(PairedPreferenceTrainer):
        def loss(self, policy_chosen_logps, policy_rejected_logps):
            return torch.sqrt(policy_chosen_logps - policy_chosen_logps.detach())

    run = Run(tmp_path, kind=Cusp)
    before = {name: value.clone() for name, value in run.trainer.policy.state_dict().items()}
    with pytest.raises(NonFiniteError, match=r"gradient is not finite at optimizer step 1.*words: "):
        run.trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in run.trainer.policy.state_dict().items())


def test_the_logged_norm_is_the_gradients(tmp_path):
    """Prevents a norm after clipping, or of the last micro-batch alone."""
    run = Run(tmp_path, model__max_grad_norm=0.01, model__tokens_per_microbatch=1)
    rows = next(iter(run.trainer.train_loader))
    run.trainer.computer.gradients(rows)
    expected = tiny.gradients(run.trainer.policy).norm().item()
    run.trainer.policy.zero_grad()
    run.trainer.train()
    assert run.records("train")[0]["grad_norm"] == pytest.approx(expected, rel=1e-5) and expected > 0.1


def test_the_batch_is_that_of_the_config_however_it_is_cut(tmp_path):
    """Prevents a step per micro-batch: 12 examples, 4 a step, one row a pass, make 3 steps and a partial one none."""
    run = Run(tmp_path, model__tokens_per_microbatch=1, count=10)
    run.trainer.train()
    assert [record["counters/examples"] for record in run.records("train")] == [4, 8, 10]


def test_means_are_of_sums_and_counts():
    """Prevents means of means: 1, 2, 3 in two parts have the mean 2, weights multiply the sum alone."""
    averages = Averages()
    averages.add("x", torch.tensor([1.0, 2.0]))
    averages.add("x", torch.tensor([3.0]))
    averages.add("y", torch.tensor([4.0, 6.0]), torch.tensor([0.5, 1.0]))
    averages.add("z", torch.zeros(0))
    averages.add_together(lambda parts: {"t": torch.tensor([sum(parts)])}, 5.0)
    assert averages.means() == {"x": 2.0, "y": 4.0, "t": 5.0}


def test_without_an_evaluation_set(tmp_path):
    """Prevents a run that needs held-out data: it trains, saves, and logs no evaluation."""
    run = Run(tmp_path)
    run.trainer.eval_rows = []
    assert run.trainer.train() == {}
    assert run.records("eval") == []
    assert (tmp_path / "LATEST" / "policy.pt").exists()


class RemembersAFloat(RunningMeanTrainer):
    """A state that no checkpoint can hold."""

    def remember(self, **tensors):
        """See the class."""
        self.loss_state = {"mean": 0.5}


class RemembersOneTensorTwice(RunningMeanTrainer):
    """Two names for one tensor, which safetensors alone would refuse."""

    def remember(self, **tensors):
        """See the class."""
        mean = torch.zeros(1)
        self.loss_state = {"mean": mean, "again": mean}


def test_a_state_that_cannot_be_saved_stops_the_run_at_its_first_step(tmp_path):
    """Prevents the loss of a whole training at its only checkpoint."""
    with pytest.raises(ValueError, match=r"loss_state\['mean'\].*no tensor"):
        Run(tmp_path, kind=RemembersAFloat).trainer.train()
    Run(tmp_path, kind=RemembersOneTensorTwice).trainer.train()
    assert set(read_loss_state(tmp_path / "LATEST")) == {"mean", "again"}


def test_a_run_without_a_step_is_an_error(tmp_path, monkeypatch):
    """Prevents a run that trained nothing from being called done."""
    run = Run(tmp_path)
    monkeypatch.setattr(run.trainer.train_loader, "sizes", lambda: [])
    with pytest.raises(ValueError, match="no optimizer step"):
        run.trainer.train()


def test_a_disk_too_small_for_the_checkpoints_stops_the_run_before_it_trains(tmp_path, monkeypatch):
    """Prevents a training that is lost because its checkpoint could not be written: five policies, and one AdamW."""
    run = Run(tmp_path, intermediate_checkpoints=True, eval_every=4)
    size = sum(4 * weight.numel() for weight in run.trainer.policy.parameters())
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=7 * size - 1))
    with pytest.raises(ValueError, match=r"5 checkpoints.*make room"):
        run.trainer.train()
    assert run.trainer.step_idx == 0
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=7 * size))
    run.trainer.train()


def test_a_short_run_shows_its_loss(tmp_path, capsys):
    """Prevents a run of seconds that shows no training at all, and an evaluation whose last step is not shown."""
    log = MetricsLog(tmp_path, console_interval=1e9)
    log.write({"loss/eval": 9.0}, 0, "eval")
    for step in range(1, 6):
        log.write({"loss/train": float(step)}, step, "train")
    log.write({"loss/eval": 8.0}, 5, "eval")
    for step in range(6, 9):
        log.write({"loss/train": float(step)}, step, "train")
    log.close()
    shown = [line.split()[:5] for line in capsys.readouterr().err.splitlines()]
    assert [(line[0], line[1], line[4]) for line in shown] == [
        ("eval", "0", "9.0000"), ("train", "1", "1.0000"), ("train", "5", "5.0000"), ("eval", "5", "8.0000"),
        ("train", "8", "8.0000"),
    ]  # fmt: skip
