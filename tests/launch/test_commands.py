"""Commands that are right: what they compose to, for one run and for many."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch.compose import check_command, compose, read_command

ROOT = Path(__file__).parents[2]

DOCUMENTED = [  # DESIGN.md section 1, for train, sft, dpo and kto
    "loss=kto model=llama7b datasets=[shp,hh]",
    "loss=sft model=llama7b datasets=[shp,hh,oasst] exp_name=llama7b_sft mode=train ++cache_dir=/data/models",
    "loss=kto model=llama7b datasets=[shp,hh] exp_name=llama7b_kto ++model.load_from=llama7b_sft/LATEST/policy.pt",
    "loss=dpo model=llama7b datasets=[shp,hh]",
    "-m loss=dpo,kto model=tiny",
    "",
    "mode=inspect datasets=[shp]",
]


@pytest.mark.parametrize("command", DOCUMENTED)
def test_a_documented_command_is_accepted(command):
    """Prevents that a command of DESIGN.md stops working."""
    check_command(shlex.split(command))


def test_the_embedded_default():
    """Prevents that `python train.py` becomes something else than SmolLM2 by KTO on the embedded data."""
    config = compose()
    assert (config.model.name, config.loss.name, list(config.datasets)) == ("smollm2-135m", "kto", ["everyday"])
    assert (config.exp_name, config.mode, config.cache_dir) == ("smollm2-135m_kto", "train", ".cache")


def test_choices_and_values_arrive():
    """Prevents overrides that are accepted and lost."""
    config = compose(
        ["loss=dpo", "model=tiny", "datasets=[hh,shp]", "++loss.beta=1", "lr=1e-6", "datasets.hh.weight=0.5"]
    )
    assert list(config.datasets) == ["hh", "shp"] and config.datasets.hh.weight == 0.5
    assert (config.loss.beta, config.lr, config.exp_name) == (1.0, 1e-6, "tiny_dpo")
    assert list(compose(["datasets=shp"]).datasets) == ["shp"]
    assert list(compose(["+datasets=hh"]).datasets) == ["everyday", "hh"]


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("n_epochs=2.0", 2),
        ("loss.beta=1", 1.0),
        ("exp_name=5", "5"),
        ("'lr=\"1e-6\"'", 1e-6),
        ("lr=1e-6", 1e-6),
        ("n_examples=1_000", 1000),
        ("model.max_grad_norm=null", None),
        ("n_eval_examples=null", None),
        ("n_eval_examples=0", 0),
        ("model.human_prefix=''", ""),
        ("lr=${loss.beta}", 0.1),
        ("keep_best=-loss/eval", "-loss/eval"),
    ],
)
def test_values_take_the_type_of_their_key(override, value):
    """Prevents 2.0 epochs, a beta of type int, or a folder whose name is a number."""
    override = shlex.split(override)[0]
    config = compose([override])
    for part in override.partition("=")[0].split("."):
        config = config[part]
    assert config == value and type(config) is type(value)


def test_a_list_of_files_is_a_path(tmp_path):
    """Prevents that `path` takes one file only."""
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file in files:
        file.write_text("{}\n")
    config = compose(["datasets=[local]", f"datasets.local.path=[{files[0]},{files[1]}]"])
    assert list(config.datasets.local.path) == [str(file) for file in files]


def test_options_and_overrides_come_in_any_order():
    """Prevents `unrecognized arguments` for an option between two overrides, which Hydra alone gives."""
    command = read_command(["lr=1", "-m", "loss=dpo,kto", "--config-dir", "x", "seed=2"])
    assert command.overrides == ("lr=1", "loss=dpo,kto", "seed=2") and command.multirun
    assert command.config_dirs == ("x",) and command.flags == ("--multirun", "--config-dir=x")


def run_with_stub(*arguments: str, cwd: Path, setup: str = "") -> list[dict]:
    """Runs train.py whole, but for launch.train.run: that prints the config that it is given."""
    code = (
        "import json, runpy, sys, types\n"
        "from omegaconf import OmegaConf\n"
        "stub = types.ModuleType('launch.train')\n"
        "stub.run = lambda config: print('CONFIG', json.dumps(OmegaConf.to_container(config)))\n"
        f"sys.modules['launch.train'] = stub\n{setup}\n"
        f"sys.argv = ['train.py', *{list(arguments)!r}]\n"
        f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
    )
    environment = {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("CONFIG ")]
    return [json.loads(line.removeprefix("CONFIG ")) for line in lines]


def test_a_run_gets_the_checked_config(tmp_path):
    """Prevents that Hydra's unchecked composition, with its types and without exp_name, reaches the run."""
    (config,) = run_with_stub("model=tiny", "n_epochs=2.0", cwd=tmp_path)
    assert config["n_epochs"] == 2 and isinstance(config["n_epochs"], int)
    assert config["exp_name"] == "tiny_kto" and "hydra" not in config
    assert list(tmp_path.iterdir()) == [], "Hydra makes no folders of its own"


def test_each_job_of_a_multirun_has_a_folder_of_its_own(tmp_path):
    """Prevents jobs that overwrite each other, and names made of what all jobs have in common."""
    arguments = ["-m", "loss=dpo,sft", "lr=1e-6,1e-5", "datasets=[shp,hh],everyday", "model=tiny", "seed=3"]
    configs = run_with_stub(*arguments, cwd=tmp_path)
    names = [config["exp_name"] for config in configs]
    assert len(set(names)) == 8
    assert names[0] == "tiny_dpo_lr-1e-06_datasets-shp-hh" and names[-1] == "tiny_sft_lr-1e-05_datasets-everyday"
    assert {config["seed"] for config in configs} == {3}


def test_a_multirun_may_name_its_jobs(tmp_path):
    """Prevents that Hydra's own ways to tell jobs apart are refused."""
    arguments = ["-m", "lr=1e-6,1e-5", "model=tiny", "exp_name=try_${hydra:job.num}"]
    assert [config["exp_name"] for config in run_with_stub(*arguments, cwd=tmp_path)] == ["try_0", "try_1"]


def test_a_users_own_loss_lives_in_a_folder_of_theirs(tmp_path):
    """Prevents that a new HALO needs a change inside the repository."""
    (tmp_path / "yamls" / "loss").mkdir(parents=True)
    (tmp_path / "yamls" / "datasets").mkdir()
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom trainers.paired import PairedPreferenceTrainer\n\n\n"
        "class MyTrainer(PairedPreferenceTrainer):\n"
        "    def loss(self, policy_chosen_logps, reference_chosen_logps):\n        pass\n"
    )
    (tmp_path / "yamls" / "loss" / "mine.yaml").write_text(
        "name: mine\ntrainer: mine.MyTrainer\ndataloader: PairedPreferenceDataLoader\nuse_reference_model: true\n"
        "margin: null\n"
    )
    (tmp_path / "yamls" / "datasets" / "own.yaml").write_text(
        "# @package datasets.own\nfunction: own.py:get_own\nn_examples: null\nweight: 1.0\nshout: false\n"
    )
    (tmp_path / "own.py").write_text("def get_own(split, *strings, **options):\n    pass\n")
    arguments = ["--config-dir", "yamls", "loss=mine", "datasets=[own]", "model=tiny", "loss.margin=0.5"]
    (config,) = run_with_stub(*arguments, cwd=tmp_path)
    assert config["loss"]["margin"] == 0.5 and config["exp_name"] == "tiny_mine" and list(config["datasets"]) == ["own"]
    configs = run_with_stub("-m", *arguments[:-1], "loss.margin=1,2", cwd=tmp_path)
    assert [config["exp_name"] for config in configs] == ["tiny_mine_loss.margin-1", "tiny_mine_loss.margin-2"]


@pytest.mark.parametrize("option", [["--help"], ["--cfg", "job"], ["--info", "searchpath"]])
def test_hydras_ways_to_look_around_work(option, tmp_path):
    """Prevents that the check before Hydra takes away what Hydra offers."""
    command = [sys.executable, str(ROOT / "train.py"), *option]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    shown = {"--help": "AUREOLE_TRACEBACK=1", "--cfg": "use_reference_model: true", "--info": "file://"}[option[0]]
    assert shown in result.stdout
