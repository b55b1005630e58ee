"""One optimizer step: however it is cut into micro-batches, ordered or padded, its gradient and metrics stay."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from dataloaders.batches import trees
from dataloaders.paired import PairedPreferenceDataLoader
from models.logprobs import ScoredSequence, cut, plain_attention, token_logps
from models.tree_rows import Branch, TreeRow
from tests import tiny
from tests.trainers.couplings import RunningMeanTrainer
from tests.trainers.steps import BY_RANK, CASES, ROW_BY_ROW, WHOLE, rows_of, step
from trainers.losses.paired import dpo
from trainers.losses.unpaired import kto
from trainers.paired import DPOTrainer
from trainers.unpaired import KTOTrainer


def named(sequences_of: str, rows, seed: int):
    """Sums of log-probabilities of a role, each sequence by itself, in float64, with gradients."""
    model = tiny.tiny_model(seed=seed, dtype=torch.float64)
    return model, torch.stack([plain_logps(model, row, sequences_of).sum() for row in rows])


def plain_logps(model, row, role):
    """Log-probabilities of a response, token by token from the full logits of one unpadded sequence."""
    ids = torch.tensor(np.concatenate([row.prompt, row.responses[role].ids]), dtype=torch.long)
    logps = torch.log_softmax(model(ids[None]).logits[0].double(), dim=-1)
    places = range(len(row.prompt), len(ids))
    return torch.stack([logps[place - 1, ids[place]] for place in places])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("weights", [False, True])
def test_micro_batches_change_nothing(name: str, weights: bool):
    """Prevents means of means: the step in one pass, in passes of a few rows and row by row gives one gradient."""
    rows = rows_of(CASES[name][1], weights=weights)
    whole, metrics = step(name, rows)
    assert whole.norm() > 1e-3
    for budget in (ROW_BY_ROW, 200):
        gradient, other = step(name, rows, budget)
        assert tiny.relative(whole, gradient) < 1e-6
        assert other == pytest.approx(metrics, rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_order_of_rows_changes_nothing(name: str):
    """Prevents a loss, weight or log-probability that is matched with another row than its own."""
    rows = rows_of(CASES[name][1], weights=name not in BY_RANK)
    whole, metrics = step(name, rows)
    for order in (rows[::-1], [rows[index] for index in np.random.default_rng(0).permutation(len(rows))]):
        gradient, other = step(name, order, 200)
        assert tiny.relative(whole, gradient) < 1e-6
        assert other == pytest.approx(metrics, rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_single_precision_is_close(name: str):
    """Prevents a hidden low-precision step: float32 agrees with float64 to single precision."""
    rows = rows_of(CASES[name][1])
    assert tiny.relative(step(name, rows)[0], step(name, rows, ROW_BY_ROW, dtype=torch.float32)[0]) < 1e-4


def test_sft_is_the_mean_over_tokens():
    """Prevents a mean of row means: against log_softmax of every sequence by itself."""
    rows = rows_of("sft")
    model = tiny.tiny_model(dtype=torch.float64)
    loss = -torch.cat([plain_logps(model, row, "target") for row in rows]).mean()
    loss.backward()
    gradient, metrics = step("sft", rows, 200)
    assert tiny.relative(tiny.gradients(model), gradient) < 1e-6
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_tokens_of_two_roles_are_the_formula_on_plain_forwards():
    """Prevents weights of the wrong tokens, and a count of one role alone, in a loss on the tokens of two roles."""
    rows = rows_of("dpo", weights=True)
    model = tiny.tiny_model(dtype=torch.float64)
    chosen, rejected = ([plain_logps(model, row, role) for row in rows] for role in ("chosen", "rejected"))
    total = sum(row.weight * -logps.sum() for row, logps in zip(rows, chosen, strict=True))
    total += sum(
        row.weight * -0.5 * torch.log1p(-logps.exp().clamp(max=0.99)).sum()
        for row, logps in zip(rows, rejected, strict=True)
    )
    loss = total / sum(map(len, chosen + rejected))
    loss.backward()
    gradient, metrics = step("tokens", rows, 200)
    assert tiny.relative(tiny.gradients(model), gradient) < 1e-6
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_a_loss_remembers_whole_steps():
    """Prevents a state of a micro-batch, one that an evaluation changes, and one that counts a step twice."""
    made = tiny.loader(PairedPreferenceDataLoader, 6, batch_size=4)
    states = []
    for budget in (ROW_BY_ROW, WHOLE):
        trainer = tiny.trainer(
            RunningMeanTrainer, "dpo", reference_seed=None, train_loader=made, eval_rows=made.fixed_rows(4),
            dtype=torch.float64, model__tokens_per_microbatch=budget, lr=0.0,
        )  # fmt: skip
        assert trainer.evaluate() == trainer.evaluate() and trainer.loss_state == {}
        trainer.train()
        states.append(trainer.loss_state)
    rows = [row for rows in made.epoch(0) for row in rows]
    model = tiny.tiny_model(dtype=torch.float64)
    expected = [(plain_logps(model, r, "chosen").sum() - plain_logps(model, r, "rejected").sum()).item() for r in rows]
    for state in states:
        assert state["count"].item() == 6
        assert state["mean"].item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_dpo_is_the_formula_on_plain_forwards():
    """Prevents chosen and rejected, or policy and reference, from being mixed up on the way to the loss."""
    rows = rows_of("dpo", weights=True)
    model, chosen = named("chosen", rows, seed=0)
    rejected = torch.stack([plain_logps(model, row, "rejected").sum() for row in rows])
    reference_chosen, reference_rejected = (named(role, rows, seed=1)[1] for role in ("chosen", "rejected"))
    losses, rewards, others = dpo(chosen, rejected, reference_chosen, reference_rejected, beta=0.1)
    loss = (losses * torch.tensor([row.weight for row in rows])).sum() / len(rows)
    loss.backward()
    gradient, metrics = step("dpo", rows, 200)
    assert tiny.relative(tiny.gradients(model), gradient) < 1e-6
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert metrics["rewards/chosen"] == pytest.approx(rewards.mean().item(), rel=1e-5)
    assert metrics["rewards/margins"] == pytest.approx((rewards - others).mean().item(), rel=1e-5)
    assert metrics["rewards/accuracies"] == pytest.approx((rewards > others).double().mean().item())
    assert metrics["logps/rejected"] == pytest.approx(rejected.mean().item(), rel=1e-6)


def test_kto_is_the_formula_on_plain_forwards():
    """Prevents a KL of a micro-batch: it is the mean over all rows of the step, and no gradient flows through it."""
    rows = rows_of("kto", weights=True)
    model, target = named("target", rows, seed=0)
    _, reference = named("target", rows, seed=1)
    mismatched, mismatched_reference = (named("KL", rows, seed=seed)[1] for seed in (0, 1))
    labels = torch.tensor([row.desirable for row in rows])
    losses, chosen, rejected, kl = kto(
        target[labels], target[~labels], mismatched, reference[labels], reference[~labels], mismatched_reference,
        beta=0.1,
    )  # fmt: skip
    weights = torch.tensor([row.weight for row in rows])
    loss = (losses * torch.cat([weights[labels], weights[~labels]])).sum() / len(rows)
    loss.backward()
    for budget in (ROW_BY_ROW, WHOLE):
        gradient, metrics = step("kto", rows, budget)
        assert tiny.relative(tiny.gradients(model), gradient) < 1e-6
        assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)
        assert metrics["rewards/KL_estimate"] == pytest.approx(kl.item(), rel=1e-5, abs=1e-7)
        assert metrics["rewards/margins"] == pytest.approx((chosen.mean() - rejected.mean()).item(), rel=1e-5)


@pytest.mark.parametrize("seeds", [(0, 1), (1, 0)])
def test_the_estimate_is_clamped_in_a_step(seeds: tuple[int, int]):
    """Prevents a negative KL: with policy and reference exchanged the estimate changes sign: one of the two is 0."""
    rows = rows_of("kto")
    policy = tiny.tiny_model(seed=seeds[0], dtype=torch.float64)
    _, metrics = step("kto", rows, reference_seed=seeds[1], policy=policy)
    estimate = (named("KL", rows, seeds[0])[1] - named("KL", rows, seeds[1])[1]).mean().item()
    assert metrics["rewards/KL_estimate"] == pytest.approx(max(0.0, estimate), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", ["sft", "dpo", "kto", "simple_kto"])
def test_weight_two_is_the_row_twice(name: str):
    """Prevents weights that are normalized away or applied twice.

    A weight of 2 gives the summed gradient of the row twice, and so the same gradient up to the count it is divided by.
    SimpleKTO's batch means do not know of weights, so there every row is heavy, or twice; KTO's estimate is a mean over
    rows, so there policy and reference are the same and it is 0.
    """
    rows = rows_of(CASES[name][1], 3)
    heavy = [replace(rows[0], weight=2.0), *rows[1:]]
    twice = [rows[0], *rows]
    if name == "simple_kto":
        heavy, twice = [replace(row, weight=2.0) for row in rows], [*rows, *rows]

    def tokens(some):
        return sum(len(row.responses["target"].ids) for row in some)

    counts = (tokens(heavy), tokens(twice)) if name == "sft" else (len(heavy), len(twice))
    options = {"reference_seed": 0} if name == "kto" else {}
    first, second = (step(name, some, 200, **options)[0] * n for some, n in zip((heavy, twice), counts, strict=True))
    assert tiny.relative(first, second) < 1e-6


@pytest.mark.parametrize("name", ["sft", "dpo", "kto"])
def test_weight_zero_has_no_gradient(name: str):
    """Prevents a row of weight 0 from being trained on: it changes the count and, in KTO, the estimate, no more."""
    rows = rows_of(CASES[name][1], 3)
    silent = [replace(row, weight=0.0) for row in rows]
    gradient, metrics = step(name, silent)
    assert gradient.norm() == 0
    assert metrics["loss"] == 0
    one, _ = step(name, [rows[0], *silent[1:]])
    assert one.norm() > 0


def test_the_reference_is_computed_once():
    """Prevents a reference forward in every epoch: the second time every value is looked up."""
    rows = rows_of("kto")
    trainer = tiny.trainer(KTOTrainer, "kto")
    trainer.computer.gradients(rows)
    reference = trainer.computer.reference
    misses = reference.cache.misses
    first = trainer.computer.evaluate(rows).output.losses
    assert reference.cache.misses == misses > 0
    assert torch.allclose(first, trainer.computer.evaluate(rows[::-1]).output.losses[reverse_of(rows)])


def reverse_of(rows):
    """Where the losses of `rows` stand among those of the reversed rows (desirable ones first in both)."""
    chosen = sum(row.desirable for row in rows)
    return [*range(chosen - 1, -1, -1), *range(len(rows) - 1, chosen - 1, -1)]


def test_the_reference_distinguishes_prompt_response_and_scores():
    """Prevents a look-up of another sequence's values where the same tokens are cut elsewhere or scored otherwise."""
    reference = tiny.trainer(DPOTrainer, "dpo").computer.reference
    ids, all_scored = np.arange(5, 11, dtype=np.int32), np.ones(6, dtype=bool)
    cases = [
        (ids[:2], Branch(ids[2:], all_scored[2:])),
        (ids[:3], Branch(ids[3:], all_scored[3:])),
        (ids[:2], Branch(ids[2:], np.array([True, False, True, True]))),
    ]
    for _ in range(2):
        values = reference.logps([TreeRow(prompt, [branch]) for prompt, branch in cases], WHOLE)
        for (prompt, branch), (value,) in zip(cases, values, strict=True):
            (plain,) = token_logps(reference.model, [ScoredSequence(prompt, *branch)])
            assert torch.allclose(value, plain, atol=1e-6)
    assert (reference.cache.misses, reference.cache.hits) == (3, 3)


@pytest.mark.parametrize("padded", [False, True])
def test_forward_passes_hold_every_response_once_within_the_budget(padded: bool):
    """Prevents lost or doubled responses, halves of a pair, and passes larger than the budget but for a single tree."""
    rows = rows_of("dpo", 20)
    rows = [*rows, *(replace(row, responses=dict(row.responses)) for row in rows[:7])]  # some prompts come twice
    model = tiny.trainer(DPOTrainer, "dpo").policy
    with plain_attention(model) if padded else nullcontext():
        for budget in (1, 50, 120, 400, WHOLE):
            made, places = trees(rows, ("chosen", "rejected"), budget)
            groups = cut(model, made, budget)
            seen = [place for group in groups for number in group for place in places[number]]
            assert sorted(seen) == [(index, role) for index in range(len(rows)) for role in ("chosen", "rejected")]
            for row, of in zip(made, places, strict=True):
                assert all(np.array_equal(rows[index].prompt, row.prompt) for index, _ in of)
                assert len(row) <= budget or len(of) == 2
            for group in groups:
                paths = [len(made[n].prompt) + len(branch.ids) for n in group for branch in made[n].branches]
                size = len(paths) * max(paths) if padded else sum(len(made[number]) for number in group)
                assert size <= budget or len(group) == 1
    assert len(trees(rows, ("chosen",), WHOLE)[0]) == 20


def test_true_pairs_are_told_from_the_others():
    """Prevents a pair accuracy over responses to different prompts: 5 pairs, and 25 combinations under another name."""
    rows = rows_of("kto")
    trainer = tiny.trainer(KTOTrainer, "kto", eval_rows=rows)
    metrics = trainer.evaluate()
    target, reference = (named("target", rows, seed)[1] for seed in (0, 1))
    ratio = {(row.pair, row.desirable): 0.1 * (t - r).item() for row, t, r in zip(rows, target, reference, strict=True)}
    true = [ratio[pair, True] > ratio[pair, False] for pair in {row.pair for row in rows}]
    every = [a > b for (_, up), a in ratio.items() if up for (_, other), b in ratio.items() if not other]
    assert (len(true), len(every)) == (5, 25)
    assert metrics["rewards_eval/accuracies"] == pytest.approx(sum(true) / 5)
    assert metrics["rewards_eval/unpaired_accuracies"] == pytest.approx(sum(every) / 25)
