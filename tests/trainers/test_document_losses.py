"""Losses on documents: what they are in limits, their weights, and what a run says of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataloaders.pretraining import ScoredPretrainingDataLoader, UnlikelihoodDataLoader
from models.value_head import LinearValueHead
from tests import documents, tiny
from trainers import distributed, pretraining
from trainers.losses.pretraining import awr, mle, rwr, unlikelihood
from trainers.metrics import Averages
from trainers.outputs import StepResult
from trainers.pretraining import AWRTrainer, RWRTrainer, UnlikelihoodTrainer

TOKENS = st.lists(st.tuples(st.floats(-30, 0), st.floats(0, 1)), min_size=1, max_size=8)


def columns(tokens: list[tuple[float, float]]) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.tensor(values, dtype=torch.float64) for values in zip(*tokens, strict=True))


@given(TOKENS)
def test_without_a_difference_all_are_maximum_likelihood(tokens: list[tuple[float, float]]):
    """Prevents a factor that a weight of 1 still has: no bad token, no temperature, no score."""
    logps, scores = columns(tokens)
    wanted = mle(logps)
    none = torch.zeros_like(scores)
    assert torch.equal(unlikelihood(logps, scores, mode="threshold", threshold=1.0, alpha=0.7), wanted)
    assert torch.equal(unlikelihood(logps, none, mode="soft", threshold=None, alpha=0.7), wanted)
    assert torch.allclose(rwr(logps, scores, beta=1e9, weight_max=1000.0), wanted, rtol=1e-8)
    assert torch.equal(rwr(logps, none, beta=0.1, weight_max=1000.0), wanted)
    assert torch.allclose(awr(logps, -scores, scores, alpha=0.5, beta=0.1, weight_max=10.0), 0.5 * wanted)


@given(TOKENS, st.floats(0.05, 5))
def test_awr_without_value_is_rwr(tokens: list[tuple[float, float]], beta: float):
    """Prevents an advantage of the wrong sign: with V = 0 and alpha 1 the two are one."""
    logps, scores = columns(tokens)
    both = [
        awr(logps, torch.zeros_like(scores), scores, alpha=1.0, beta=beta, weight_max=1000.0),
        rwr(logps, scores, beta=beta, weight_max=1000.0),
    ]
    assert torch.equal(*both)


@given(TOKENS, st.floats(0.05, 0.95))
def test_the_weight_of_awr_has_no_slope_in_the_value(tokens: list[tuple[float, float]], alpha: float):
    """Prevents a value that learns to make weights small: its slope is that of its error, -2 (1 - alpha) (R - V)."""
    logps, scores = columns(tokens)
    values = torch.full_like(scores, -0.3, requires_grad=True)
    losses = awr(logps, values, scores, alpha=alpha, beta=0.5, weight_max=1000.0)
    (slopes,) = torch.autograd.grad(losses.sum(), values)
    assert torch.allclose(slopes, -2 * (1 - alpha) * (-scores - values.detach()), rtol=1e-9, atol=1e-12)


def test_threshold_zero_is_a_threshold():
    """Prevents the original's slip, by which threshold 0 was none and bad tokens were learned."""
    logps, scores = torch.tensor([-0.5, -0.5]), torch.tensor([0.0, 1e-6])
    losses = unlikelihood(logps, scores, mode="threshold", threshold=0.0, alpha=1.0)
    assert losses.tolist() == pytest.approx([0.5, -math.log(1 - math.exp(-0.5))])


def test_a_certain_bad_token_is_finite():
    """Prevents inf or nan where the model is sure of what it must not say, and a slope of nan."""
    logps = torch.tensor([0.0, -1e-8, -200.0], requires_grad=True)
    losses = unlikelihood(logps, torch.ones(3), mode="threshold", threshold=0.5, alpha=1.0)
    (slopes,) = torch.autograd.grad(losses.sum(), logps)
    assert losses.isfinite().all() and slopes.isfinite().all()
    assert losses[0].item() == pytest.approx(46.0517, abs=1e-3) and losses[2].item() == pytest.approx(0, abs=1e-6)


def test_the_linear_head_begins_at_nothing():
    """Prevents a value that is not the original's at the first step, and a policy that its value does not move."""
    hidden = torch.randn(5, 16, requires_grad=True)
    assert LinearValueHead(16, sigmoid=True, detached=False)(hidden).tolist() == [-0.5] * 5
    assert LinearValueHead(16, sigmoid=False, detached=False)(hidden).tolist() == [0.0] * 5
    for detached in (True, False):
        head = LinearValueHead(16, sigmoid=False, detached=detached)
        torch.nn.init.ones_(head.layer.weight)
        values = head(hidden)
        assert values.requires_grad
        if detached:
            assert torch.autograd.grad(values.sum(), hidden, allow_unused=True) == (None,)
        else:
            assert torch.autograd.grad(values.sum(), hidden)[0].tolist() == [[1.0] * 16] * 5


def collected(kind: type, loss: str, part: slice = slice(None), **options: object) -> tuple[Averages, StepResult]:
    """What a trainer collects of some rows of a first step, and the step; a value head has random weights."""
    loader = UnlikelihoodDataLoader if kind is UnlikelihoodTrainer else ScoredPretrainingDataLoader
    rows = next(documents.loader(loader).after(0))[part]
    trainer = tiny.trainer(kind, loss, reference_seed=None, **options)
    if trainer.value_head is not None:
        torch.manual_seed(0)
        torch.nn.init.normal_(trainer.value_head.layer.weight)
    averages = Averages()
    step = trainer.computer.gradients(rows)
    trainer._collect(step, averages)
    return averages, step


def test_the_spread_of_weights_is_logged():
    """Prevents weights that nobody sees: their mean and deviation are those of the tokens' scores."""
    averages, step = collected(RWRTrainer, "rwr", loss__beta=0.5)
    found = averages.means()
    scores = torch.cat([torch.from_numpy(row.token_scores) for row in step.rows]).double()
    weights = (-scores / 0.5).exp()
    assert found["weights"] == pytest.approx(weights.mean().item())
    assert found["weights/deviation"] == pytest.approx(weights.std(unbiased=False).item())
    assert found["scores"] == pytest.approx(scores.mean().item())
    assert 0.2 < found["scores"] < 0.8, "of both kinds"


def test_how_well_the_value_is_learned_is_logged():
    """Prevents weights of awr by another advantage than R - V, and a value of which nobody sees what it predicts."""
    averages, step = collected(AWRTrainer, "awr", loss__beta=2.0)
    found = averages.means()
    values = step.tensors["policy_target_token_values"].double()
    rewards = -step.tensors["target_token_scores"].double()
    weights = ((rewards - values) / 2).exp()
    assert found["weights"] == pytest.approx(weights.mean().item(), rel=1e-5)
    assert found["weights/deviation"] == pytest.approx(weights.std(unbiased=False).item(), rel=1e-5)
    assert found["values/target"] == pytest.approx(values.mean().item()) != 0
    assert found["values/error"] == pytest.approx(((rewards - values) ** 2).mean().item())
    correlation = torch.corrcoef(torch.stack([values, rewards]))[0, 1].item()
    assert found["values/correlation"] == pytest.approx(correlation, abs=1e-9) and abs(correlation) > 1e-3


def test_a_value_that_is_the_same_everywhere_has_no_correlation():
    """Prevents a correlation made of rounding, or nan, at the first step."""
    parts = [[3, 0.3, -1.0, 0.03 + 1e-17, 0.5, -0.1], [0] * 6]
    assert not pretraining._correlation(parts) and not pretraining._correlation([[0] * 6])


def test_both_terms_of_unlikelihood_are_logged():
    """Prevents a loss that falls because good text is learned while bad text is not unlearned, or the reverse."""
    averages, step = collected(UnlikelihoodTrainer, "unlikelihood")
    found = averages.means()
    logps, scores = (step.tensors[name] for name in ("policy_target_token_logps", "target_token_scores"))
    good = scores <= 0.5
    assert good.any() and not good.all()
    assert found["logps/good"] == pytest.approx(logps[good].mean().item(), rel=1e-5)
    bad = torch.log1p(-logps[~good].double().exp()).mean().item()
    assert found["unlikelihood_logps/bad"] == pytest.approx(bad, rel=1e-4)


@pytest.mark.parametrize(("kind", "loss"), [(AWRTrainer, "awr"), (UnlikelihoodTrainer, "unlikelihood")])
def test_metrics_are_of_the_whole_step(kind: type, loss: str, monkeypatch):
    """Prevents means of means: micro-batches and unequal shares of processes change no metric."""
    whole = collected(kind, loss)[0].means()
    small = collected(kind, loss, model__tokens_per_microbatch=48)[0].means()
    shares: list[object] = []
    monkeypatch.setattr(distributed, "gather_objects", lambda own: [shares.append(own), own][1:])
    collected(kind, loss, slice(1, None))[0].means()
    monkeypatch.undo()
    first = collected(kind, loss, slice(1))[0]
    monkeypatch.setattr(distributed, "gather_objects", lambda own: [own, shares[-1]])
    assert first.means() == pytest.approx(whole, rel=1e-4) == small


@pytest.mark.parametrize(("kind", "loss", "options", "warns"), [
    (RWRTrainer, "rwr", {"loss__beta": 1000.0}, True),
    (RWRTrainer, "rwr", {"loss__beta": 0.5}, False),
    (AWRTrainer, "awr", {"loss__beta": 1000.0}, True),
    (UnlikelihoodTrainer, "unlikelihood", {"loss__threshold": 2.0}, True),
    (UnlikelihoodTrainer, "unlikelihood", {}, False),
])  # fmt: skip
def test_all_but_maximum_likelihood_is_said(kind: type, loss: str, options: dict, warns: bool, caplog):
    """Prevents a day of training that differs from mle in nothing, as a temperature far above all scores does."""
    assert (f"loss={loss} is all but loss=mle" in told(kind, loss, caplog, options)) is warns


def told(
    kind: type, loss: str, caplog, options: dict, scores: Sequence[float] | None = None, others: float = 0.0
) -> str:
    """What a training warns of, whose records are all of one step, or of the given scores of a token and all others."""
    trainer = tiny.trainer(kind, loss, reference_seed=None, **options)
    _, step = collected(kind, loss, **options)
    with caplog.at_level(logging.WARNING):
        for number in range(pretraining.LOOKS + 2):
            averages = Averages()
            if scores is not None:
                step.tensors["target_token_scores"][:] = others
                step.tensors["target_token_scores"][0] = scores[number]
            trainer._collect(step, averages)
            assert number >= pretraining.LOOKS or not caplog.text
            trainer.log(averages, {}, "train")
    assert caplog.text.count("all but") <= 1
    return caplog.text


def test_weights_of_nothing_are_said(caplog):
    """Prevents a day of training in which nothing is learned, because all scores are far above the temperature."""
    scores = [1.0] * (pretraining.LOOKS + 2)
    assert "next to nothing is learned" not in told(RWRTrainer, "rwr", caplog, {"loss__beta": 0.01}, scores)
    assert "next to nothing is learned" in told(RWRTrainer, "rwr", caplog, {"loss__beta": 0.01}, scores, others=1.0)


def test_bad_tokens_that_come_later_are_waited_for(caplog):
    """Prevents a false alarm at a first step that happens to hold no bad token, or whose value is the same for all."""
    late = [0.0] * 4 + [1.0] * 3
    assert "all but" not in told(UnlikelihoodTrainer, "unlikelihood", caplog, {}, late)
    assert "all but" in told(UnlikelihoodTrainer, "unlikelihood", caplog, {}, [0.0] * (pretraining.LOOKS + 2))


def test_the_value_is_learned():
    """Prevents a head without a gradient: one step on it lowers its error, and moves the policy unless detached."""
    rows = next(documents.loader(ScoredPretrainingDataLoader).after(0))
    moved = {}
    for detached in (True, False):
        trainer = tiny.trainer(AWRTrainer, "awr", reference_seed=None, loss__alpha=1e-9, loss__value_detached=detached)
        torch.nn.init.normal_(trainer.value_head.layer.weight)
        trainer.computer.gradients(rows)
        assert trainer.value_head.layer.weight.grad.abs().sum() > 0
        moved[detached] = float(tiny.gradients(trainer.policy).norm())
    assert moved[False] > 1e3 * moved[True]
