"""A loss is tried on made-up values before there is a model: a slip is one line that says what to write."""

import random

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests import tiny
from tests.trainers.couplings import RunningMeanTrainer
from tests.trainers.steps import CASES
from trainers.basic import BasicTrainer
from trainers.paired import PairedPreferenceTrainer
from trainers.rehearsal import refuse_signatures, rehearse, rehearse_class
from trainers.requirements import formula
from trainers.sft import SFTTrainer
from trainers.unpaired import UnpairedPreferenceTrainer

CPU = torch.device("cpu")


def config_of(kind: type[BasicTrainer]):
    families = {UnpairedPreferenceTrainer: "kto", SFTTrainer: "sft"}
    return tiny.config(next((loss for family, loss in families.items() if issubclass(kind, family)), "dpo"))


@pytest.mark.parametrize("name", CASES)
def test_every_loss_of_ours_passes(name: str, caplog):
    """Prevents a rehearsal that refuses what trains, does not come to the loss at all, or warns of its sign."""
    kind, loss = CASES[name]
    called = []

    class Counted(kind):
        def loss(self, **tensors):
            called.append(tensors)
            return super().loss(**tensors)

        @classmethod
        def requirements(cls, loss):
            return kind.requirements(loss)

    refuse_signatures(kind, tiny.config(loss).loss)
    rehearse_class(kind, tiny.config(loss))
    rehearse(tiny.trainer(Counted, loss), CPU)
    assert called and all(len(one) for one in called[0].values())
    assert not caplog.records


def test_a_rehearsal_leaves_no_trace():
    """Prevents a run whose order, dropout or state depends on its having been rehearsed."""

    class Drawing(RunningMeanTrainer):
        def loss(self, policy_chosen_logps, policy_rejected_logps):
            self.drawn = torch.rand(1), np.random.rand(), random.random()
            return super().loss(policy_chosen_logps, policy_rejected_logps)

    def draw():
        return torch.rand(1).item(), np.random.rand(), random.random()

    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    expected = draw()
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
    trainer = tiny.trainer(Drawing, "dpo", reference_seed=None)
    trainer.loss_state = {"mean": torch.ones(1), "count": torch.ones(1)}
    rehearse(trainer, CPU)
    assert draw() == expected
    assert not hasattr(trainer, "drawn") and type(trainer.loss_state) is dict and trainer.loss_state["mean"] == 1


def margin(policy_chosen_logps, policy_rejected_logps):
    return -torch.nn.functional.logsigmoid(policy_chosen_logps - policy_rejected_logps)


def shifted(policy_chosen_logps, policy_rejected_logps, beta=0.1):
    return beta * margin(policy_chosen_logps, policy_rejected_logps)


class Slip(PairedPreferenceTrainer):
    """Losses that are right; each subclass below makes one mistake."""

    def loss(self, policy_chosen_logps, policy_rejected_logps):
        """See the class."""
        return margin(policy_chosen_logps, policy_rejected_logps)


class ReadsNoKey(Slip):
    def loss(self, policy_chosen_logps, policy_rejected_logps):
        return self.config.loss.betta * margin(policy_chosen_logps, policy_rejected_logps)


class ReadsNoItem(Slip):
    def loss(self, policy_chosen_logps, policy_rejected_logps):
        return self.config.loss["betta"] * margin(policy_chosen_logps, policy_rejected_logps)


class ReadsNoState(Slip):
    def loss(self, policy_chosen_logps, policy_rejected_logps):
        return margin(policy_chosen_logps - self.loss_state["mean"], policy_rejected_logps)


class ChangesItsInputs(Slip):
    def loss(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
        policy_chosen_logps -= reference_chosen_logps
        policy_rejected_logps -= reference_rejected_logps
        return margin(policy_chosen_logps, policy_rejected_logps)


class ChangesAReference(Slip):
    def loss(self, policy_chosen_logps, reference_chosen_logps):
        reference_chosen_logps[0] = 0
        return reference_chosen_logps - policy_chosen_logps


class Reduces(Slip):
    def loss(self, policy_chosen_logps, policy_rejected_logps):
        return margin(policy_chosen_logps, policy_rejected_logps).mean()


class Divides(Slip):
    def loss(self, policy_chosen_logps, policy_rejected_logps):
        return margin(policy_chosen_logps, policy_rejected_logps) / len(policy_chosen_logps)


class OneRewardForAll(Slip):
    def loss(self, policy_chosen_logps, policy_rejected_logps):
        mean = policy_chosen_logps.mean().reshape(1).detach()
        return margin(policy_chosen_logps, policy_rejected_logps), mean, policy_rejected_logps.detach()


class RewardsOfBoth(Slip):
    def loss(self, policy_chosen_logps, policy_rejected_logps):
        both = torch.cat([policy_chosen_logps, policy_rejected_logps]).detach()
        return margin(policy_chosen_logps, policy_rejected_logps), both, both


class TrueOrFalse(Slip):
    def loss(self, policy_chosen_logps, policy_rejected_logps):
        better = policy_chosen_logps > policy_rejected_logps
        return margin(policy_chosen_logps, policy_rejected_logps), better, ~better


class AddsAText(Slip):
    def loss(self, policy_chosen_logps, policy_rejected_logps):
        return margin(policy_chosen_logps, policy_rejected_logps) + "0.1"


class NamesNothing(Slip):
    def loss(self, policy_chosen_logps, policy_rejected_logps):
        return torch.nn.functional.logsigmoidd(policy_chosen_logps)


class FourthOfMany(UnpairedPreferenceTrainer):
    def loss(self, policy_chosen_logps, policy_rejected_logps):
        chosen, rejected = policy_chosen_logps.detach(), policy_rejected_logps.detach()
        return torch.cat([-policy_chosen_logps, policy_rejected_logps]), chosen, rejected, chosen


class WrongOrder(UnpairedPreferenceTrainer):
    def loss(self, policy_chosen_logps, policy_rejected_logps):
        return torch.cat([policy_rejected_logps, -policy_chosen_logps])


SLIPS = {
    ReadsNoKey: r"^ReadsNoKey\.loss reads config\.loss\.betta, .* \(did you mean 'beta'\?\): add it there\.$",
    ReadsNoItem: r"^ReadsNoItem\.loss reads config\.loss\.betta, .* \(did you mean 'beta'\?\): add it there\.$",
    ReadsNoState: r"self\.loss_state\['mean'\] before `remember` has set it: write self\.loss_state\.get\('mean', ",
    ChangesItsInputs: r"changes policy_chosen_logps in place, .*: write policy_chosen_logps = policy_chosen_logps - ",
    ChangesAReference: r"changes reference_chosen_logps in place",
    Reduces: r"Losses never reduce",
    Divides: r"^Divides\.loss divides by the number of examples, and the loop does so too: return losses undivided\.$",
    OneRewardForAll: r"returned 1 rewards of chosen responses; one for each is needed, here 8\.$",
    RewardsOfBoth: r"returned 16 rewards of chosen responses; one for each is needed, here 8\.$",
    TrueOrFalse: r"rewards that are true or false: make numbers of them with \.float\(\)\.$",
    AddsAText: r"AddsAText\.loss fails on made-up values: TypeError: .*test_rehearsal\.py:\d+; AUREOLE_TRACEBACK=1",
    NamesNothing: r"NamesNothing\.loss fails on made-up values: AttributeError: .*logsigmoidd.*test_rehearsal\.py:\d+",
    FourthOfMany: r"a fourth value of shape \(5,\).*one number for the whole step: take its mean, or leave it out\.$",
    WrongOrder: r"if not, losses are in the wrong order: desirable rows come first",
}


@pytest.mark.parametrize("kind", SLIPS)
def test_a_slip_is_found_before_there_is_a_model(kind):
    """Prevents a traceback of the first step, or a run that learns the wrong thing, after an old run is gone."""
    with pytest.raises(ValueError, match=SLIPS[kind]) as error:
        rehearse_class(kind, config_of(kind))
    assert "\n" not in str(error.value)


class MadeOfMore(Slip):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.more = self.config.loss.beta

    def loss(self, policy_chosen_logps, policy_rejected_logps):
        return (self.more * margin(policy_chosen_logps, policy_rejected_logps)).mean()


def test_a_trainer_that_makes_more_of_itself_is_rehearsed_once_it_is_made():
    """Prevents that a class with its own __init__ is refused for what it does not have yet, or never looked at."""
    rehearse_class(MadeOfMore, config_of(MadeOfMore))
    with pytest.raises(ValueError, match="Losses never reduce"):
        rehearse(tiny.trainer(MadeOfMore, "dpo", reference_seed=None), CPU)


class Unlearns(Slip):
    def loss(self, policy_chosen_logps, policy_rejected_logps):
        return margin(policy_rejected_logps, policy_chosen_logps)


class UnlearnsOneSide(Slip):
    def loss(self, policy_chosen_logps, policy_rejected_logps):
        return policy_chosen_logps + 0 * policy_rejected_logps


class UnlearnsThumbs(UnpairedPreferenceTrainer):
    def loss(self, policy_chosen_logps, policy_rejected_logps):
        return torch.cat([policy_chosen_logps, -policy_rejected_logps])


class UnlearnsTexts(SFTTrainer):
    def loss(self, policy_target_token_logps):
        return policy_target_token_logps


BOTH = r"rises with log-probabilities of chosen responses and falls with log-probabilities of rejected responses, on "
WRONG_SIGNS = {
    Unlearns: BOTH,
    UnlearnsThumbs: BOTH,
    UnlearnsOneSide: "UnlearnsOneSide.loss rises with log-probabilities of chosen responses, on made-up",
    UnlearnsTexts: "rises with log-probabilities of target responses, on made-up",
}


@pytest.mark.parametrize("kind", WRONG_SIGNS)
def test_a_wrong_sign_is_said_once_and_no_error(kind, caplog):
    """Prevents a run of hours that makes chosen responses unlikely because a minus is missing."""
    rehearse_class(kind, config_of(kind))
    rehearse(tiny.trainer(kind, config_of(kind).loss.name, reference_seed=None), CPU)
    (record,) = caplog.records
    assert WRONG_SIGNS[kind] in record.getMessage() and "\n" not in record.getMessage()


class PushesTheRejected(Slip):
    def loss(self, policy_chosen_logps, policy_rejected_logps):
        return policy_rejected_logps + 0.5 * policy_chosen_logps


def test_one_side_against_its_direction_is_no_wrong_sign(caplog):
    """Prevents a warning of losses that let both sides fall, as DPO's variants may."""
    rehearse_class(PushesTheRejected, config_of(PushesTheRejected))
    assert not caplog.records


class NeedsManyRows(Slip):
    def loss(self, policy_chosen_logps, policy_rejected_logps):
        return margin(policy_chosen_logps, policy_rejected_logps).topk(64).values


class ReadsTheModel(Slip):
    def loss(self, policy_chosen_logps, policy_rejected_logps):
        return margin(policy_chosen_logps, policy_rejected_logps) * float(self.policy.training)


class AsksForItsState(Slip):
    def loss(self, policy_chosen_logps, policy_rejected_logps):
        try:
            mean = self.loss_state["mean"]
        except KeyError:
            mean = 0.0
        return margin(policy_chosen_logps - mean, policy_rejected_logps)


@pytest.mark.parametrize("kind", [NeedsManyRows, ReadsTheModel, AsksForItsState])
def test_what_fails_on_made_up_values_alone_is_let_pass(kind):
    """Prevents that a loss is refused that trains on the rows it is for."""
    rehearse_class(kind, config_of(kind))
    rehearse(tiny.trainer(kind, "dpo", reference_seed=None), CPU)


class PlainFunction(PairedPreferenceTrainer):
    loss = margin


class Positional(PairedPreferenceTrainer):
    loss = formula(shifted)


class WithoutSelf(PairedPreferenceTrainer):
    def loss(policy_chosen_logps, policy_rejected_logps):
        return margin(policy_chosen_logps, policy_rejected_logps)


class Hyperparameter(PairedPreferenceTrainer):
    def loss(self, policy_chosen_logps, beta):
        return -beta * policy_chosen_logps


class Keywords(PairedPreferenceTrainer):
    def loss(self, policy_chosen_logps, **kwargs):
        return -policy_chosen_logps


class Anything(PairedPreferenceTrainer):
    def loss(self, *args):
        return -args[0]


class Nothing(PairedPreferenceTrainer):
    pass


class Misspelled(PairedPreferenceTrainer):
    def loss(self, policy_choosen_logp):
        return -policy_choosen_logp


class RowOrder(UnpairedPreferenceTrainer):
    def loss(self, policy_target_logps):
        return -policy_target_logps


class OwnInit(Slip):
    def __init__(self, config):
        super().__init__(config)


class RemembersHalf(Slip):
    def remember(self, policy_chosen_logps):
        self.loss_state = {"mean": policy_chosen_logps.mean()}


SIGNATURES = {
    PlainFunction: r"^PlainFunction\.loss is margin, which takes no self: write `loss = formula\(margin\)`\.$",
    Positional: r"hyperparameters come after a star, `def shifted\(\.\.\., \*, beta\)`",
    WithoutSelf: r"takes no self: write self as its first parameter\.$",
    Hyperparameter: r"'beta', which is no tensor: a hyperparameter is read as self\.config\.loss\.beta",
    Keywords: r"takes \*\*kwargs, .*name each tensor",
    Anything: r"takes \*args, .*name each tensor",
    Nothing: r"^Nothing defines no loss: write `def loss\(self, ",
    Misspelled: r"asks for 'policy_choosen_logp'\. A loss takes tensors named ",
    RowOrder: r"policy_target_logps: .*desirable rows first.* Take policy_chosen_logps and policy_rejected_logps",
    OwnInit: r"^OwnInit\.__init__ .*: write `def __init__\(self, \*args, \*\*kwargs\)`",
    RemembersHalf: r"^RemembersHalf\.remember is given what loss names \(policy_chosen_logps, policy_rejected_logps\)",
}


@pytest.mark.parametrize("kind", SIGNATURES)
def test_a_signature_that_does_not_fit_says_what_to_write(kind):
    """Prevents messages that name the wrong fix, or none, for the likeliest slips in a class."""
    with pytest.raises(ValueError, match=SIGNATURES[kind]) as error:
        refuse_signatures(kind, config_of(kind).loss)
    assert "\n" not in str(error.value)


def test_a_key_outside_of_the_loss_is_named_as_it_is():
    """Prevents the advice to add to the loss's YAML what is a key of the whole config."""

    class Elsewhere(Slip):
        def loss(self, policy_chosen_logps, policy_rejected_logps):
            return self.config.betta * margin(policy_chosen_logps, policy_rejected_logps)

    config = config_of(Elsewhere)
    OmegaConf.set_struct(config, True)
    with pytest.raises(ValueError, match=r"Elsewhere\.loss: .*betta") as error:
        rehearse_class(Elsewhere, config)
    assert "\n" not in str(error.value)
