"""A ranking of methods, each trained with several seeds: what is noise is called so."""

import numpy as np
import pytest

from reports.ranking import Judged, format_ranking, labels, place, rank, settings_of


def run(loss: str, seed: int | None, scores, *, lr: float = 1e-5, name: str | None = None, **others) -> Judged:
    config = {"loss": {"name": loss, **others}, "lr": lr, "seed": seed, "exp_name": f"{loss}-{lr}-{seed}"}
    return Judged(name or config["exp_name"], config, {f"prompt {n}": float(one) for n, one in enumerate(scores)})


def test_seeds_are_one_method():
    """Prevents a method that is ranked once for each seed, and a mean of the wrong runs."""
    runs = [
        run("dpo", 1, [1, 1, 0, 0]), run("kto", 1, [1, 1, 1, 0]), run("dpo", 2, [1, 0, 0, 0]), run("kto", 2, [1] * 4),
    ]  # fmt: skip
    places, prompts = rank(runs)
    assert prompts == 4
    assert [(one.label, one.seeds, one.win_rate) for one in places] == [("loss=kto", 2, 87.5), ("loss=dpo", 2, 37.5)]
    assert places[1].behind == 50 and places[0].behind == 0 and places[0].within_noise


def test_an_interval_by_hand():
    """Prevents a variance that counts the rest twice, and one that forgets the seeds.

    Scores (2 seeds, 2 prompts): 1 0.5 / 0.5 0. Means of seeds 0.75 and 0.25: their variance 0.125, halved 0.0625; of
    prompts likewise; no rest. So V = 0.125, with 0.125^2 / (2 * 0.0625^2) = 2 degrees of freedom: t = 4.3027, and the
    half width 4.3027 * 0.353553 = 1.521216.
    """
    table = np.array([[1, 0.5], [0.5, 0.0]])
    made = place("x", table, table)
    assert made.interval == pytest.approx((50 - 152.1216, 50 + 152.1216), abs=0.01)
    one = place("x", table[:1], table[:1])  # t of one degree: 12.7062 * sqrt(0.125 / 2)
    assert one.interval == pytest.approx((75 - 100 * 12.7062 * 0.25, 75 + 100 * 12.7062 * 0.25), abs=0.1)
    assert place("x", table[:1, :1], table[:1, :1]).interval is None


def simulated(generator, truth: float, seeds: int, prompts: np.ndarray, spread: float) -> np.ndarray:
    """Scores with a part of seeds, of prompts and of both."""
    parts = generator.normal(size=(seeds, 1)) * spread + prompts + 0.3 * generator.normal(size=(seeds, len(prompts)))
    return truth + parts


@pytest.mark.parametrize(("seeds", "spread"), [(3, 0.0), (3, 0.05), (5, 0.1)])
def test_the_interval_covers_what_it_says(seeds: int, spread: float):
    """Prevents intervals that take seeds for certain: over 400 made-up experiments at least 92 % hold the truth."""
    generator = np.random.default_rng(0)
    held = apart = 0
    for _ in range(400):
        prompts = 0.2 * generator.normal(size=60)
        first = simulated(generator, 0.6, seeds, prompts, spread)
        second = simulated(generator, 0.5, seeds, prompts + 0.1 * generator.normal(size=60), spread)
        low, high = place("first", first, first).interval
        held += low <= 60 <= high
        low, high = place("second", second, first).behind_interval
        apart += low <= 10 <= high
    assert held / 400 >= 0.92 and apart / 400 >= 0.92
    assert held / 400 < 0.999 or spread == 0.0


def test_noise_is_called_noise():
    """Prevents a ranking that sounds certain: a small lead over few prompts is within noise, a large one is not."""
    generator = np.random.default_rng(1)
    good, same, bad = (
        [run(name, seed, generator.random(80) < rate) for seed in (1, 2, 3)]
        for name, rate in (("kto", 0.6), ("dpo", 0.57), ("sft", 0.1))
    )
    places, prompts = rank([*good, *same, *bad])
    assert [one.label for one in places][2] == "loss=sft"
    assert places[1].within_noise and not places[2].within_noise
    text = format_ranking(places, prompts)
    first, second, third = text.splitlines()[1:4]
    assert "noise" not in first and second.endswith("within noise of the first") and "noise" not in third
    assert "80 prompts" in text and "3 seeds" in text
    assert "one seed" in format_ranking(*rank([good[0], bad[0]]))


def test_prompts_that_a_file_lacks_are_left_out():
    """Prevents a comparison on other prompts: only those that all files have a verdict on count."""
    whole, part = run("dpo", 1, [1, 0, 1, 0]), run("kto", 1, [1, 1])
    places, prompts = rank([whole, part])
    assert prompts == 2 and {one.label: one.win_rate for one in places} == {"loss=kto": 100.0, "loss=dpo": 50.0}
    with pytest.raises(ValueError, match="no prompt has a verdict in all"):
        rank([whole, Judged("x", {}, {"another": 1.0})])
    with pytest.raises(ValueError, match="of the same run"):
        rank([whole, whole])


def test_labels_say_what_differs():
    """Prevents labels of all keys, and of keys that another loss brings along."""
    runs = [
        run("dpo", 1, [1], beta=0.1), run("dpo", 1, [1], beta=0.5), run("simpo", 1, [1], beta=2.0, gamma=0.5),
    ]  # fmt: skip
    from reports.ranking import flatten

    assert labels([settings_of(flatten(one.config)) for one in runs]) == [
        "loss=dpo loss.beta=0.1", "loss=dpo loss.beta=0.5", "loss=simpo loss.beta=2.0",
    ]  # fmt: skip
    runs = [run("dpo", 1, [1]), run("dpo", 1, [1], lr=1e-4), run("ipo", 1, [1], tau=0.1)]
    assert labels([settings_of(flatten(one.config)) for one in runs]) == [
        "loss=dpo lr=1e-05", "loss=dpo lr=0.0001", "loss=ipo lr=1e-05",
    ]  # fmt: skip
    assert [one.label for one in rank([Judged("a", {}, {"p": 1.0}), Judged("b", {}, {"p": 0.0})])[0]] == [
        "exp_name=a", "exp_name=b",
    ]  # fmt: skip
