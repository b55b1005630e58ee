"""Losses of one's own: what they may return, what they may name, and what the loop says of a slip."""

from dataclasses import replace

import pytest
import torch

from dataloaders.paired import PairedPreferenceDataLoader
from dataloaders.unpaired import UnpairedPreferenceDataLoader
from tests import tiny
from tests.trainers.couplings import (
    SimpleKTOTrainer,
    SortedTrainer,
    TokensOfBothTrainer,
    UndeclaredSimpleKTOTrainer,
)
from tests.trainers.steps import rows_of
from trainers.metrics import Averages
from trainers.paired import DPOTrainer, PairedPreferenceTrainer
from trainers.sft import SFTTrainer
from trainers.unpaired import UnpairedPreferenceTrainer


@pytest.mark.parametrize("reference_seed", [0, 1])
def test_an_undeclared_coupling_is_refused(reference_seed: int):
    """Prevents a gradient that depends on micro-batches, also at the first step, where policy is reference."""
    trainer = tiny.trainer(UndeclaredSimpleKTOTrainer, "kto", reference_seed=reference_seed)
    with pytest.raises(ValueError, match=r"couples_examples = True"):
        trainer.computer.gradients(rows_of("kto"))


@pytest.mark.parametrize("labels", ["TTFFTF", "TFFTTF", "FFTTFT", "TTFTFFTF", "TFTFTFTFTF", "TTTTTTTTTTFFFFFFFFFF"])
@pytest.mark.parametrize("reference_seed", [0, 1])
def test_an_undeclared_coupling_is_refused_in_any_order_of_labels(labels: str, reference_seed: int):
    """Prevents a look at the loss in which all log-ratios have one sign, or whose halves have the same means."""
    made = tiny.loader(UnpairedPreferenceDataLoader, len(labels), batch_size=100)
    rows = [
        replace(row, desirable=label == "T")
        for row, label in zip(next(made.epoch(0))[: len(labels)], labels, strict=True)
    ]
    trainer = tiny.trainer(UndeclaredSimpleKTOTrainer, "kto", reference_seed=reference_seed)
    with pytest.raises(ValueError, match=r"couples_examples = True"):
        trainer.computer.gradients(rows)


class ByCounts(UnpairedPreferenceTrainer):
    """A loss that weighs desirable responses by how many others there are for each."""

    def loss(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
        """See the class."""
        more = len(policy_rejected_logps) / max(1, len(policy_chosen_logps))
        chosen = (reference_chosen_logps - policy_chosen_logps) * more
        return torch.cat([chosen, policy_rejected_logps - reference_rejected_logps])


@pytest.mark.parametrize("labels", ["TFTF", "TTFF", "TTFFTFTF", "TTTF"])
def test_an_undeclared_coupling_by_counts_is_refused(labels: str):
    """Prevents a look at parts in which each class has the same share as in the whole."""
    made = tiny.loader(UnpairedPreferenceDataLoader, len(labels), batch_size=100)
    rows = [replace(row, desirable=one == "T") for row, one in zip(next(made.epoch(0)), labels, strict=False)]
    trainer = tiny.trainer(ByCounts, "kto")
    with pytest.raises(ValueError, match=r"couples_examples = True"):
        trainer.computer.gradients(rows)


class RemembersInItsLoss(PairedPreferenceTrainer):
    """A loss that changes its state wherever it is called."""

    couples_examples = True

    def loss(self, policy_chosen_logps, policy_rejected_logps):
        """See the class."""
        margins = policy_chosen_logps - policy_rejected_logps
        self.loss_state["mean"] = margins.detach().mean()
        return self.loss_state["mean"] - margins


def test_a_state_that_a_loss_changes_is_refused():
    """Prevents an evaluation that changes the training."""
    trainer = tiny.trainer(RemembersInItsLoss, "dpo")
    with pytest.raises(ValueError, match=r"changes self.loss_state.*in `remember`"):
        trainer.computer.evaluate(rows_of("dpo"))


class MeanMargin(PairedPreferenceTrainer):
    """A loss that compares each margin with the mean margin."""

    def loss(self, policy_chosen_logps, policy_rejected_logps):
        """See the class."""
        margins = policy_chosen_logps - policy_rejected_logps
        return -torch.nn.functional.logsigmoid(margins - margins.mean())


@pytest.mark.parametrize("count", [2, 3, 10, 20])
def test_an_undeclared_coupling_by_the_mean_margin_is_refused(count: int):
    """Prevents shifts that are the same for both sides, and so for every margin."""
    rows = next(tiny.loader(PairedPreferenceDataLoader, count, batch_size=100).epoch(0))
    with pytest.raises(ValueError, match=r"couples_examples = True"):
        tiny.trainer(MeanMargin, "dpo", reference_seed=None).computer.gradients(rows)


class MeanOverTokens(SFTTrainer):
    """A loss of tokens that divides by how many there are."""

    def loss(self, policy_target_token_logps):
        """See the class."""
        return -policy_target_token_logps / policy_target_token_logps.numel()


def test_an_undeclared_coupling_of_tokens_is_refused():
    """Prevents a loss of tokens whose result depends on micro-batches."""
    with pytest.raises(ValueError, match=r"divides by the number of tokens, and the loop does so too: return losses"):
        tiny.trainer(MeanOverTokens, "sft", reference_seed=None).computer.gradients(rows_of("sft"))


def test_a_loss_that_reduces_is_refused():
    """Prevents a mean inside a loss, which the loop would divide once more."""

    class Reducing(PairedPreferenceTrainer):
        def loss(self, policy_chosen_logps, policy_rejected_logps):
            return (policy_rejected_logps - policy_chosen_logps).mean()

    with pytest.raises(ValueError, match="Losses never reduce"):
        tiny.trainer(Reducing, "dpo").computer.gradients(rows_of("dpo"))


class WithoutRewards(SortedTrainer):
    """A coupled loss that returns its losses and nothing else."""

    def loss(self, policy_chosen_logps, policy_rejected_logps):
        """See `SortedTrainer`."""
        return super().loss(policy_chosen_logps, policy_rejected_logps)[0]


class WithAnEstimate(SimpleKTOTrainer):
    """A coupled loss that shows one more value."""

    def loss(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
        """See `SimpleKTOTrainer`; the fourth value is logged as the estimate."""
        chosen = policy_chosen_logps - reference_chosen_logps
        four = policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
        return *super().loss(*four), chosen.mean()


@pytest.mark.parametrize("kind", [WithoutRewards, WithAnEstimate])
def test_a_coupled_loss_may_return_what_any_loss_may(kind):
    """Prevents an error without rewards, and an estimate that is lost, where two passes are made."""
    loss = "dpo" if kind is WithoutRewards else "kto"
    rows = rows_of(loss)
    trainer = tiny.trainer(kind, loss, reference_seed=None if kind is WithoutRewards else 1)
    averages = Averages()
    trainer._collect(trainer.computer.gradients(rows), averages)
    metrics = averages.means()
    assert tiny.gradients(trainer.policy).norm() > 0
    evaluated = trainer.computer.evaluate(rows)
    assert metrics["loss"] == pytest.approx(evaluated.output.losses.mean().item(), rel=1e-5)
    assert ("rewards/chosen" in metrics) == ("rewards/KL_estimate" in metrics) == (kind is WithAnEstimate)
    if kind is WithAnEstimate:
        assert metrics["rewards/KL_estimate"] == pytest.approx(evaluated.output.extra[0].item(), rel=1e-5)


class OddsRatio(PairedPreferenceTrainer):
    """ORPO's odds ratio: not defined for probabilities above one."""

    def loss(self, policy_chosen_logps, policy_rejected_logps):
        """See the class."""
        odds = [logps - torch.log1p(-torch.exp(logps)) for logps in (policy_chosen_logps, policy_rejected_logps)]
        return -torch.nn.functional.logsigmoid(odds[0] - odds[1])


def test_an_uncoupled_loss_of_likely_responses_is_not_called_coupled():
    """Prevents a look at the loss where it is not defined: log-probabilities just below 0 must not become positive."""
    trainer = tiny.trainer(OddsRatio, "dpo", reference_seed=None)
    with torch.no_grad():
        head = trainer.policy.get_output_embeddings()
        head.weight *= 0
        head.bias = torch.nn.Parameter(torch.full((tiny.VOCABULARY,), -20.0))
        head.bias[ord("a")] = 0.0
    rows = rows_of("dpo")
    likely = [
        replace(row, responses={role: tiny.response([ord("a")] * (1 + n)) for role in row.responses})
        for n, row in enumerate(rows)
    ]
    values = trainer.computer.gradients(likely)
    assert values.tensors["policy_chosen_logps"].max() > -1e-3
    with pytest.raises(ValueError, match="couples_examples = True"):
        tiny.trainer(UndeclaredSimpleKTOTrainer, "kto").computer.gradients(rows_of("kto"))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda one: (one, one), "a tuple of Tensor, Tensor"),
        (lambda one: None, "NoneType"),
        (lambda one: [one, one, one], "returned list"),
        (lambda one: (one, one.mean(), one.mean()), "one dimension"),
        (lambda one: one.detach(), "without a gradient"),
        (lambda one: one > 0, "without a gradient"),
    ],
)
def test_what_a_loss_may_not_return_is_said(returned, message: str):
    """Prevents a traceback of the loop for a slip in a loss of one's own."""

    class Slip(PairedPreferenceTrainer):
        def loss(self, policy_chosen_logps, policy_rejected_logps):
            return returned(policy_rejected_logps - policy_chosen_logps)

    with pytest.raises(ValueError, match=message):
        tiny.trainer(Slip, "dpo", reference_seed=None).computer.gradients(rows_of("dpo"))


def test_a_coupled_loss_of_the_tokens_of_two_roles_is_refused():
    """Prevents weights of the wrong tokens: which of them is whose is known for one role alone."""

    class Coupled(TokensOfBothTrainer):
        couples_examples = True

    with pytest.raises(ValueError, match="couples examples of several roles"):
        tiny.trainer(Coupled, "dpo")


class DeclaredMeanOverTokens(MeanOverTokens):
    """The same, declared."""

    couples_examples = True


def test_a_coupled_loss_of_tokens_does_not_depend_on_packs():
    """Prevents slopes of the wrong tokens where a coupled loss is one of tokens."""
    rows = rows_of("sft", weights=True)
    gradients = []
    for budget in (10**6, 1):
        trainer = tiny.trainer(
            DeclaredMeanOverTokens, "sft", reference_seed=None, dtype=torch.float64,
            model__tokens_per_microbatch=budget,
        )  # fmt: skip
        trainer.computer.gradients(rows)
        gradients.append(tiny.gradients(trainer.policy))
    plain = tiny.trainer(SFTTrainer, "sft", reference_seed=None, dtype=torch.float64)
    result = plain.computer.gradients(rows)
    assert tiny.relative(*gradients) < 1e-9
    assert tiny.relative(gradients[0] * len(result.weights), tiny.gradients(plain.policy)) < 1e-9


def test_an_unknown_parameter_is_named():
    """Prevents a misspelled parameter of a loss from being an error deep in the loop."""

    class Misspelled(PairedPreferenceTrainer):
        def loss(self, policy_choosen_logp):
            return policy_choosen_logp

    with pytest.raises(ValueError, match="policy_choosen_logp"):
        tiny.trainer(Misspelled, "dpo")


def test_a_reference_is_needed_only_where_it_is_named():
    """Prevents a loss that silently runs without its reference."""
    with pytest.raises(ValueError, match="use_reference_model"):
        tiny.trainer(DPOTrainer, "dpo", reference_seed=None)


@pytest.mark.parametrize(("count", "coupled"), [(1, False), (3, False), (12, True)])
def test_rewards_of_another_number_are_refused(count: int, coupled: bool):
    """Prevents one reward that counts as everybody's, in averages that nobody can tell from right ones."""

    class Miscounted(PairedPreferenceTrainer):
        couples_examples = coupled

        def loss(self, policy_chosen_logps, policy_rejected_logps):
            rewards = policy_chosen_logps.detach()
            return policy_rejected_logps - policy_chosen_logps, rewards.mean().expand(count), rewards

    rows = rows_of("dpo")
    trainer = tiny.trainer(Miscounted, "dpo", reference_seed=None, eval_rows=rows)
    with pytest.raises(ValueError, match=rf"returned {count} rewards of chosen responses; .*, here {len(rows)}"):
        trainer.evaluate()


class Imitation(UnpairedPreferenceTrainer):
    """Imitates what is desirable, and pushes the rest away half as hard."""

    def loss(self, policy_chosen_logps, policy_rejected_logps):
        """Desirable rows first."""
        return torch.cat([-policy_chosen_logps, 0.5 * policy_rejected_logps])


class DeclaredImitation(Imitation):
    """The same, declared to couple examples."""

    couples_examples = True


@pytest.mark.parametrize("kind", [Imitation, DeclaredImitation])
@pytest.mark.parametrize("budget", [1, 10**6])
def test_a_weight_is_that_of_its_row_in_any_order_of_labels(kind, budget: int):
    """Prevents weights in the order of rows where losses come desirable ones first."""
    made = tiny.loader(UnpairedPreferenceDataLoader, 6, batch_size=100)
    labels, weights = (False, True, True, False, False, True), (0.25, 4.0, 1.0, 0.0, 2.0, 0.5)
    rows = [
        replace(row, desirable=label, weight=weight)
        for row, label, weight in zip(next(made.epoch(0))[:6], labels, weights, strict=True)
    ]
    options = {"reference_seed": None, "dtype": torch.float64}
    trainer = tiny.trainer(kind, "kto", model__tokens_per_microbatch=budget, **options)
    trainer.computer.gradients(rows)
    expected = 0.0
    for row in rows:

        class OfOne(PairedPreferenceTrainer):
            roles = ("target",)

            def loss(self, policy_target_logps):
                return -policy_target_logps

        one = tiny.trainer(OfOne, "kto", **options)
        one.computer.gradients([row])
        expected = expected + tiny.gradients(one.policy) * (1.0 if row.desirable else -0.5) / len(rows)
    assert tiny.relative(tiny.gradients(trainer.policy), expected) < 1e-6


class Sqrt(PairedPreferenceTrainer):
    """A loss that is not finite where the policy is the less sure."""

    def loss(self, policy_chosen_logps, policy_rejected_logps):
        """nan, always."""
        return (policy_chosen_logps - policy_chosen_logps.detach() - 1).sqrt()


def test_at_the_first_step_it_is_not_lr():
    """Prevents the advice to lower lr where lr has done nothing yet."""
    rows = rows_of("dpo")
    trainer = tiny.trainer(Sqrt, "dpo", reference_seed=None, loss__beta=1e300)
    with pytest.raises(ValueError, match=r"Before the first step it cannot be lr: look at loss\.beta=1e\+300 and at"):
        trainer.step(torch.optim.SGD(trainer.policy.parameters()), rows, Averages())
    trainer.step_idx = 1
    with pytest.raises(ValueError, match=r"Lower lr, or look at these examples with mode=inspect"):
        trainer.step(torch.optim.SGD(trainer.policy.parameters()), rows, Averages())


@pytest.mark.parametrize(
    ("divide", "message"),
    [
        (lambda one: one / len(one), r"divides by the number of examples, and the loop does so too"),
        (lambda one: one.mean().expand(len(one)), r"couples .*Set `couples_examples = True`"),
    ],
)
def test_a_division_is_told_from_a_coupling(divide, message: str):
    """Prevents the advice to declare a coupling, by which a loss that divides by the count is divided twice."""

    class Dividing(PairedPreferenceTrainer):
        def loss(self, policy_chosen_logps, policy_rejected_logps):
            return divide(policy_rejected_logps - policy_chosen_logps)

    with pytest.raises(ValueError, match=message):
        tiny.trainer(Dividing, "dpo", reference_seed=None).computer.gradients(rows_of("dpo"))
