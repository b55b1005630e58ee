"""What eval.py composes: a saved config over today's, the command over both."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from launch.compose import compose
from launch.run_folder import claim, differences, finish
from launch.saved_config import compose_for_eval


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a finished run, below the current directory."""
    monkeypatch.chdir(tmp_path)
    overrides = ["model=tiny", "loss=dpo", "lr=0.1", "cache_dir=runs", "exp_name=mine", "datasets.everyday.weight=2"]
    folder = claim(compose(overrides)).folder
    finish(folder)
    return folder


def edit(run: Path, **values) -> None:
    saved = OmegaConf.load(run / "config.yaml")
    for key, value in values.items():
        OmegaConf.update(saved, key.replace("__", "."), value)
    OmegaConf.save(saved, run / "config.yaml")


@pytest.mark.parametrize("given", ["--config-path=runs/mine", "--config-path runs/mine/config.yaml", "-cp runs/mine"])
def test_the_saved_config_is_read(run, given):
    """Prevents that eval.py evaluates today's defaults in place of the run."""
    config, folder = compose_for_eval(
        [*shlex.split(given), "++n_samples=5", "++model.eval_batch_size=32", "++samples_dir=s/"]
    )
    assert (config.loss.name, config.model.name, config.lr, config.exp_name) == ("dpo", "tiny", 0.1, "mine")
    assert (config.mode, config.n_samples, config.model.eval_batch_size, config.samples_dir) == ("sample", 5, 32, "s/")
    assert config.datasets.everyday.weight == 2 and folder == run.absolute()


def test_overrides_may_stand_on_both_sides(run):
    """Prevents that the place of --config-path in the command matters."""
    config, _ = compose_for_eval(["n_samples=5", "--config-path=runs/mine", "mode=eval"])
    assert (config.n_samples, config.mode) == (5, "eval")


def test_a_saved_scenario_is_changed_like_any_key(run):
    """Prevents that a scenario which the run has must be added to it, as if it were new."""
    scenario = "generation.scenarios.free"
    edit(run, **{f"{scenario}.n_samples": 8, f"{scenario}.max_new_tokens": 4})
    here = [f"--config-path={run}", "mode=generate"]
    config, _ = compose_for_eval([*here, f"{scenario}.n_samples=3"])
    assert config.generation.scenarios.free == {"n_samples": 3, "max_new_tokens": 4}
    with pytest.raises(ValueError, match=r"is added: \+generation.scenarios.other"):
        compose_for_eval([*here, "generation.scenarios.other.n_samples=3"])


def test_how_a_run_was_distributed_is_the_training_s_matter(run, capsys):
    """Prevents a sharded run, or one from before there was sharding, that one process cannot evaluate or go on with."""
    sharded = compose(["model=tiny", "distributed=fsdp", "distributed.hybrid=true"])
    assert differences(sharded, compose(["model=tiny"])) == {}
    for section in (sharded.distributed, None):
        saved = OmegaConf.load(run / "config.yaml")
        del saved["distributed"]
        OmegaConf.save(
            saved if section is None else OmegaConf.merge(saved, {"distributed": section}), run / "config.yaml"
        )
        assert compose_for_eval(["--config-path=runs/mine"])[0].distributed.name == "ddp"
        assert "left out" not in capsys.readouterr().out
        edit(run, distributed={"name": "ddp"})
    for command in (["--config-path=runs/mine", "distributed=fsdp"], ["model=tiny", "distributed=fsdp"]):
        with pytest.raises(ValueError, match=r"distributed=fsdp: eval.py does not shard: leave it out\.$"):
            compose_for_eval(command)


def test_a_moved_run_keeps_working(run):
    """Prevents that the checkpoint is looked for where the run once was."""
    run.rename("elsewhere")
    config, folder = compose_for_eval(["--config-path=elsewhere"])
    assert folder == Path("elsewhere").absolute() and config.exp_name == "mine"


def test_data_sets_are_still_selected_from_the_group(run):
    """Prevents that a run can only be sampled on the prompts that it was trained on."""
    assert list(compose_for_eval(["--config-path=runs/mine", "datasets=[shp]"])[0].datasets) == ["shp"]
    both, _ = compose_for_eval(["--config-path=runs/mine", "+datasets=shp", "datasets.shp.n_examples=3"])
    assert both.datasets.everyday.weight == 2 and both.datasets.shp.n_examples == 3
    assert list(compose_for_eval(["--config-path=runs/mine", "datasets=[alpacaeval]"])[0].datasets) == ["alpacaeval"]


def test_a_key_that_came_later_has_todays_value(run):
    """Prevents that old runs cannot be evaluated."""
    saved = OmegaConf.load(run / "config.yaml")
    del saved.top_p, saved.model["eval_batch_size"]
    OmegaConf.save(saved, run / "config.yaml")
    config, _ = compose_for_eval(["--config-path=runs/mine"])
    assert config.top_p == 0.95 and config.model.eval_batch_size == 32


def test_a_key_that_is_gone_is_left_out_and_named(run, capsys):
    """Prevents both a silent loss and a run that cannot be read any more."""
    edit(run, loss__label_smoothing=0.1, bygone=None)
    config, _ = compose_for_eval(["--config-path=runs/mine"])
    assert "label_smoothing" not in config.loss and "bygone" not in config
    assert capsys.readouterr().out.endswith("no longer has are left out: loss.label_smoothing\n")


def test_what_a_task_has_chosen_is_in_its_keys(monkeypatch, tmp_path, capsys):
    """Prevents that every command about a pretraining names keys that nobody has removed, or forgets its values."""
    monkeypatch.chdir(tmp_path)
    config = compose(["task=pep8", "loss=conditional", "task.phase=finetune", "model.load_from=policy.pt"])
    Path("run").mkdir()
    OmegaConf.save(config, "run/config.yaml", resolve=True)
    again, _ = compose_for_eval(["--config-path=run"])
    assert capsys.readouterr().out == ""
    assert (again.lr, again.model.batch_size) == (8e-4, 64) and again.task.tokens_already_seen == 1649999872


def test_a_choice_that_config_lacks_is_kept(run):
    """Prevents that a run with a loss or data set of the user's own needs --config-dir again."""
    edit(run, loss__name="mine", loss__margin=0.5, datasets__own={"function": "get_hh", "n_examples": None, "x": 1})
    config, _ = compose_for_eval(["--config-path=runs/mine", "loss.margin=0.7", "datasets.own.x=2"])
    assert (config.loss.margin, config.datasets.own.x, config.datasets.everyday.weight) == (0.7, 2, 2)
    assert list(compose_for_eval(["--config-path=runs/mine", "datasets=[own]"])[0].datasets) == ["own"]


def test_without_a_saved_config_it_composes_as_train_does(tmp_path, monkeypatch):
    """Prevents that an untrained model cannot be sampled."""
    monkeypatch.chdir(tmp_path)
    config, folder = compose_for_eval(["model=tiny", "lr=0.5"])
    assert (folder, config.exp_name, config.mode, config.lr) == (None, "tiny", "sample", 0.5)
    assert compose_for_eval(["mode=export"])[0].mode == "export"


MISTAKES = {
    "--config-path=runs/mine loss=kto": r"the saved run has loss=dpo",
    "--config-path=runs/mine model=llama7b": r"the saved run has model=tiny",
    "--config-path=runs/mine ++loss.betta=3": r"did you mean loss\.beta\?",
    "--config-path=runs/mine loss.desirable_weight=3": r"no YAML of this config has the key loss\.desirable_weight",
    "--config-path=runs/mine lr=fast": r"expected a number",
    "--config-path=runs/mine temperature=-1": r"at least 0",
    "--config-path=runs/mine datasets=[sph]": r"did you mean 'shp'",
    "--config-path=runs/mine datasets.shp.n_examples=3": r"shp is not selected",
    "--config-path=runs/mine mode=train": r"mode=train is for train\.py",
    "--config-path=runs/mine n_samples=1,2": r"several values",
    "--config-path=runs/mien": r"does not exist \(did you mean 'mine'\?\)",
    "--config-path=runs": r"has no config\.yaml",
    "--config-path=junk.yaml": r"no section model",
    "-m mode=eval": r"-m is for train\.py",
    "--foo": r"--help shows the options",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_refused_with_its_fix(run, command):
    """Prevents an evaluation of something else than was asked for."""
    Path("junk.yaml").write_text("a: 1\n")
    with pytest.raises(ValueError, match=MISTAKES[command]):
        compose_for_eval(shlex.split(command))


def test_the_same_choice_again_is_no_mistake(run):
    """Prevents that repeating the training command's choices is refused."""
    assert compose_for_eval(["--config-path=runs/mine", "loss=dpo", "model=tiny"])[0].loss.name == "dpo"


def test_help_and_cfg(run, capsys):
    """Prevents an eval.py that cannot be asked what it does."""
    for arguments, shown in (
        (["--help"], "AUREOLE_TRACEBACK=1"),
        (["--config-path=runs/mine", "--cfg", "job"], "lr: 0.1"),
    ):
        with pytest.raises(SystemExit) as end:
            compose_for_eval(arguments)
        assert end.value.code == 0 and shown in capsys.readouterr().out


def test_without_a_run_it_is_the_model_itself(run, monkeypatch):
    """Prevents a sample of the base model that is a trained one because of a run that has the default name, and one
    that takes the place of that run's samples."""
    from launch import evaluate

    for name in ("tiny", "tiny_kto"):
        (run.parent / name / "LATEST").mkdir(parents=True)
        (run.parent / name / "LATEST" / "policy.pt").touch()
    config, folder = compose_for_eval(["model=tiny", "cache_dir=runs"])
    assert (config.exp_name, folder) == ("tiny", None)
    chosen = []
    monkeypatch.setattr(evaluate, "sample", lambda _, saved: chosen.append(saved))
    evaluate.run(config, folder)
    evaluate.run(config, run.parent / "tiny_kto")
    assert chosen == [None, str((run.parent / "tiny_kto" / "LATEST" / "policy.pt").resolve())]


def test_a_saved_config_gives_no_leave_to_run_code(run, caplog):
    """Prevents that a run of somebody else's runs the code of its hub model without a word of the caller's."""
    edit(run, model__trust_remote_code=True)
    assert compose_for_eval(["--config-path=runs/mine"])[0].model.trust_remote_code is False
    assert "model.trust_remote_code=true" in caplog.text
    edit(run, model__name="elsewhere")  # which config/ does not have
    assert compose_for_eval(["--config-path=runs/mine"])[0].model.trust_remote_code is False
    given, _ = compose_for_eval(["--config-path=runs/mine", "model.trust_remote_code=true"])
    assert given.model.trust_remote_code is True


def test_code_that_a_saved_config_names_is_named(run, caplog):
    """Prevents that a config.yaml runs a file without a word; a file that the command itself names needs none."""
    compose_for_eval(["--config-path=runs/mine"])
    assert caplog.text == ""
    Path("own.py").write_text("def get_own(): ...\n")
    Path("theirs.py").write_text("from trainers.paired import DPOTrainer as Theirs\n")
    edit(run, loss__trainer="theirs.Theirs", datasets__everyday__function="own.py:get_own")
    compose_for_eval(["--config-path=runs/mine"])
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"this run's config runs code of {Path('theirs.py').absolute()}, {Path('own.py').absolute()}"
    caplog.clear()
    edit(run, loss__trainer="DPOTrainer", datasets__everyday__function="get_everyday")
    compose_for_eval(["--config-path=runs/mine", "loss.trainer=theirs.Theirs"])
    assert caplog.text == ""


def test_a_saved_config_looks_nothing_up(run, monkeypatch):
    """Prevents that a run of somebody else's carries this machine's secrets into its samples."""
    monkeypatch.setenv("PLAIN", "/home")
    edit(run, samples_dir="${oc.env:PLAIN}")
    with pytest.raises(ValueError, match=r"config\.yaml: samples_dir has an interpolation"):
        compose_for_eval(["--config-path=runs/mine"])
