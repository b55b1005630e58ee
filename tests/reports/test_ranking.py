"""A ranking of methods, each trained with several seeds: what is noise is called so."""

import numpy as np
import pytest

from reports.methods import flatten, labels, settings_of
from reports.ranking import Judged, format_ranking, rank


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


def test_no_lead_is_claimed_on_one_prompt():
    """Prevents an interval of one prompt, which three seeds seem to give, and a lead on it."""
    places, _ = rank([run(loss, seed, [win]) for loss, win in (("dpo", 0), ("kto", 1)) for seed in (1, 2, 3)])
    assert [(one.interval, one.within_noise) for one in places] == [(None, True)] * 2
    assert places[1].behind_interval is None and "behind (" not in format_ranking(places, 1)


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
    text = format_ranking(places, prompts, [4, 2])
    assert "Only 2 of up to 4 prompts" in text and "Only" not in format_ranking(places, prompts, [2, 2])
    with pytest.raises(ValueError, match="no prompt has a verdict in all"):
        rank([whole, Judged("x", {}, {"another": 1.0})])
    with pytest.raises(ValueError, match="of the same run"):
        rank([whole, whole])


def test_labels_say_what_differs():
    """Prevents labels of all keys, and of keys that another loss brings along."""
    runs = [
        run("dpo", 1, [1], beta=0.1), run("dpo", 1, [1], beta=0.5), run("simpo", 1, [1], beta=2.0, gamma=0.5),
    ]  # fmt: skip
    assert labels([settings_of(flatten(one.config)) for one in runs]) == [
        "loss=dpo loss.beta=0.1", "loss=dpo loss.beta=0.5", "loss=simpo loss.beta=2.0",
    ]  # fmt: skip
    runs = [run("dpo", 1, [1]), run("dpo", 1, [1], lr=1e-4), run("ipo", 1, [1], tau=0.1)]
    assert labels([settings_of(flatten(one.config)) for one in runs]) == [
        "loss=dpo lr=1e-05", "loss=dpo lr=0.0001", "loss=ipo lr=1e-05",
    ]  # fmt: skip
