"""Which runs are one method, and what it is called."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from launch.run_folder import LENGTHS, MAY_CHANGE, NOT_COMPARED
from reports.methods import LONGEST, NOT_A_SETTING, flatten, methods_of, settings_of

ROOT = Path(__file__).parents[2]
SAMPLING = {"temperature", "top_p", "max_new_tokens"}
CHECKPOINTS = {"saved_policy", "resume"}


def named(*configs: dict, files: tuple[str, ...] = ("a.json", "b.json", "c.json")) -> list[str]:
    return methods_of(configs, files[: len(configs)])


def config(loss: str = "dpo", seed: object = 1, **others: object) -> dict:
    return {"loss": {"name": loss}, "seed": seed, **others}


def test_what_trains_nothing_is_no_setting():
    """Prevents a key that a run may change, and a ranking that takes runs which differ in it for two methods."""
    unchanged = NOT_COMPARED | MAY_CHANGE - set(LENGTHS)
    assert unchanged - SAMPLING - CHECKPOINTS | {"seed", "exp_name", "wandb"} == NOT_A_SETTING
    files = ("config.yaml", ""), ("model/base_model.yaml", "model.")
    known = {
        f"{prefix}{key}"
        for file, prefix in files
        for key in flatten(OmegaConf.to_container(OmegaConf.load(ROOT / "config" / file)))
    }
    assert NOT_A_SETTING - {"wandb"} | SAMPLING | CHECKPOINTS <= known


def test_seeds_that_differ_in_nothing_else_are_one_method():
    """Prevents seeds that are ranked apart for how they were logged, computed, saved or watched."""
    first = config(wandb={"enabled": False}, device="cpu", log_every=1, model={"eval_batch_size": 1}, resume="auto")
    other = config(seed=2, wandb=None, cache_reference=True, saved_policy=".cache/x/LATEST/policy.pt")
    assert named(first, other) == ["loss=dpo"] * 2
    assert named(config(temperature=0, top_p=0.9), config(seed=2, temperature=0, top_p=1.0)) == ["loss=dpo"] * 2


def test_how_responses_are_sampled_is_a_setting():
    """Prevents a sampling at temperature 1 that passes for another seed of one at 0, and a checkpoint for the last."""
    assert named(config(temperature=0), config(seed=2, temperature=1)) == ["temperature=0", "temperature=1"]
    assert named(config(max_new_tokens=8), config(max_new_tokens=None)) == ["max_new_tokens=8", "max_new_tokens=None"]
    saved = [config(seed=seed, saved_policy=f".cache/dpo{seed}/step-64/policy.pt") for seed in (1, 2)]
    assert named(*saved, config()) == ["saved_policy=step-64"] * 2 + ["loss=dpo"]
    assert dict(settings_of(flatten(config(resume=".cache/x/step-8")))).get("resume") == "step-8"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (config(exp_name="x"), config(exp_name="y")),
        (config(seed=1), config(seed="1")),
        (config(seed=1), config(seed=1.0)),
        (config(seed=None), config(seed=None)),
        (config(seed=None), config(seed=1)),
        (config(seed=1), {"loss": {"name": "dpo"}}),
        (config(seed=1, save_every=1), config(seed=1, save_every=2)),
    ],
)
def test_one_run_is_not_two_seeds(first: dict, second: dict):
    """Prevents an interval that is too narrow since a run stands for two, under another name or none."""
    with pytest.raises(ValueError, match=r"^a\.json and c\.json are of the same run.*: name each once"):
        named(first, config("kto"), second)


@pytest.mark.parametrize("seed", [[1], {"a": 1}])
def test_a_seed_is_a_number(seed: object):
    """Prevents a traceback for a seed that cannot be looked up, after the judge was paid."""
    with pytest.raises(ValueError, match=r"a\.json: the seed in its config must be a number, not"):
        named(config(seed=seed), config())
    assert named(config(seed="one"), config(seed=True), config(seed=0.5)) == ["loss=dpo"] * 3


def test_a_file_without_a_config_is_called_by_its_name():
    """Prevents a method called `all`, and two files without a config that are one method."""
    assert named({}, {"exp_name": "x"}, config(), files=("x/base.json", "y/base.json", "z.json")) == [
        "x/base.json", "y/base.json", "loss=dpo",
    ]  # fmt: skip
    assert named({"seed": 1}, {"lr": 1, "seed": 1}, {"lr": 2, "seed": 1}) == ["a", "lr=1", "lr=2"]
    assert named({"seed": 1}, {"seed": 2}) == ["a", "a"]


def test_labels_are_lines_of_their_own():
    """Prevents a config that writes a line of the ranking, turns its letters around or makes it 3,000 wide."""
    forged, turned = named(config("dpo\n  1. loss=x  99.9 %"), config("kto\u202e\x1b[2J\ud800"))
    assert forged == r"loss=dpo\n  1. loss=x  99.9 %" and turned == r"loss=kto\u202e\x1b[2J\ud800"
    long = named(*(config("dpo", name="d" * 3000 + end) for end in ("1", "2")), {}, files=("a", "b", "c\nd" * 99))
    assert [len(one) for one in long] == [LONGEST] * 3 and long[0].endswith("d1") and long[1].endswith("d2")
    assert all(one.isprintable() for one in [forged, turned, *long])


def test_no_two_methods_have_one_label():
    """Prevents a method that vanishes behind another of the same label."""
    assert named(config(a="1 b=2"), config(a="1", b="2")) == ["a=1 b=2", "a=1 b=2 (2)"]
    middle = [config(name="d" * 100 + where + "d" * 100) for where in "xy"]
    assert len(set(named(*middle))) == 2
    assert len(set(named({}, config(), config("kto"), files=("loss=dpo.json", "b", "c")))) == 3
