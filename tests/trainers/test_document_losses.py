"""Losses on documents: what they are in limits, their weights, and what a run says of them."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataloaders.pretraining import ScoredPretrainingDataLoader, UnlikelihoodDataLoader
from models.value_head import LinearValueHead
from tests import documents, tiny
from trainers.losses.pretraining import awr, mle, rwr, unlikelihood
from trainers.metrics import Averages
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
    """Prevents a value that learns to make weights small: its slope is that of its own error, -2 (1 - alpha) (R - V)."""
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


def metrics(kind: type, loss: str, **options: object) -> dict[str, float]:
    loader = UnlikelihoodDataLoader if kind is UnlikelihoodTrainer else ScoredPretrainingDataLoader
    rows = next(documents.loader(loader).after(0))
    trainer = tiny.trainer(kind, loss, reference_seed=None, **options)
    averages = Averages()
    trainer._collect(trainer.computer.gradients(rows), averages)
    return averages.means() | {"rows": rows}


def test_the_spread_of_weights_is_logged():
    """Prevents weights that nobody sees: their mean and deviation are those of the tokens' scores."""
    found = metrics(RWRTrainer, "rwr", loss__beta=0.5)
    scores = torch.cat([torch.from_numpy(row.token_scores) for row in found["rows"]]).double()
    weights = (-scores / 0.5).exp()
    assert found["weights"] == pytest.approx(weights.mean().item())
    assert found["weights/deviation"] == pytest.approx(weights.std(unbiased=False).item())
    assert found["scores"] == pytest.approx(scores.mean().item())
    assert 0.2 < found["scores"] < 0.8, "of both kinds"


@pytest.mark.parametrize(("kind", "loss", "options", "warns"), [
    (RWRTrainer, "rwr", {"loss__beta": 1000.0}, True),
    (RWRTrainer, "rwr", {"loss__beta": 0.5}, False),
    (AWRTrainer, "awr", {"loss__beta": 1000.0}, True),
    (UnlikelihoodTrainer, "unlikelihood", {"loss__threshold": 2.0}, True),
    (UnlikelihoodTrainer, "unlikelihood", {}, False),
])  # fmt: skip
def test_all_but_maximum_likelihood_is_said(kind: type, loss: str, options: dict, warns: bool, caplog):
    """Prevents a day of training that differs from mle in nothing, as a temperature far above all scores does."""
    with caplog.at_level(logging.WARNING):
        metrics(kind, loss, **options)
    assert (f"loss={loss} is all but loss=mle" in caplog.text) is warns


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
