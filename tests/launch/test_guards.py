"""What a command must not do: overwrite what it reads, keep a secret, leave a file of the user's unread."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from dataloaders.paired import PairedPreferenceDataLoader
from launch import build, model_checks, train
from launch.compose import compose
from launch.run_folder import claim, finish, release
from tests import tiny

ROW = '{"prompt": "p", "chosen": "a", "rejected": "b"}\n'


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a finished run, below the current directory."""
    monkeypatch.chdir(tmp_path)
    folder = claim(compose(["model=tiny", "cache_dir=runs", "exp_name=mine"])).folder
    (folder / "LATEST").mkdir()
    (folder / "LATEST" / "policy.pt").write_text("old")
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "data.json").write_text("old")
    (folder / "rows.jsonl").write_text(ROW)
    finish(folder)
    yield folder
    release(folder)


MINE = ["model=tiny", "cache_dir=runs", "exp_name=mine"]


@pytest.mark.parametrize(
    "override",
    [
        "model.load_from=mine/LATEST/policy.pt",
        "model.load_from=runs/mine/LATEST",
        "model.name_or_path=runs/../runs/mine/LATEST/policy.pt",
        "model.tokenizer_name_or_path=mine/LATEST",
        "resume=runs/mine/LATEST",
        "datasets.local.path=runs/mine/rows.jsonl",
        "datasets.local.test_path=[others.jsonl,runs/mine/rows.jsonl]",
    ],
)
def test_a_run_is_not_overwritten_by_one_that_reads_it(run, override):
    """Prevents that the weights or rows of the new run are removed with the old one."""
    Path("rows.jsonl").write_text(ROW)
    Path("others.jsonl").write_text(ROW)
    command = [*MINE, "datasets=[local]", "datasets.local.path=rows.jsonl", override]
    compose(command)
    with pytest.raises(ValueError, match=f"{override.partition('=')[0]}=.* lies in .*mine, which overwrite=true would"):
        compose([*command, "overwrite=true"])
    compose([*command[:2], "exp_name=mine2", *command[3:], "overwrite=true"])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name != ".lock"}


BROKEN = {
    "data": ["datasets=[local]", "datasets.local.path=broken.jsonl"],
    "weights": ["model.load_from=broken"],
    "wandb": ["wandb.enabled=true"],
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_new_run_that_cannot_begin_leaves_the_old_one(run, what, monkeypatch):
    """Prevents that overwrite=true removes a finished run before it is known whether there can be another."""
    Path("broken.jsonl").write_text("not JSON\n")
    Path("broken").mkdir()
    Path("broken", "config.json").write_text("{}")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    no_key = SimpleNamespace(api=SimpleNamespace(api_key=None))  # the real one would keep that it has no WANDB_MODE
    monkeypatch.setitem(sys.modules, "wandb", no_key)
    before = contents(run)
    with pytest.raises((ValueError, OSError)):
        train.run(compose([*MINE, "overwrite=true", "device=cpu", *BROKEN[what]]))
    assert contents(run) == before


def test_a_new_run_that_begins_replaces_the_old_one(run):
    """Prevents an overwritten run with the old run's account, metrics or config."""
    small = ["n_examples=4", "n_eval_examples=2", "model.batch_size=4", "device=cpu", "do_first_eval=false"]
    train.run(compose([*MINE, "loss=sft", "overwrite=true", *small]))
    assert (run / "data.json").read_text().startswith("{") and (run / "rows.jsonl").exists()
    assert (run / "metrics.jsonl").read_text() != "{}\n" and OmegaConf.load(run / "config.yaml").loss.name == "sft"
    assert (run / "LATEST" / "policy.pt").stat().st_size > 1000 and (run / "finished.json").exists()


def test_inspect_leaves_a_runs_account_alone(run, capsys):
    """Prevents that looking at other data changes what a run says of its own."""
    train.run(compose([*MINE, "mode=inspect", "device=cpu"]))
    assert (run / "data.json").read_text() == "old" and "everyday" in capsys.readouterr().out
    train.run(compose(["model=tiny", "cache_dir=runs", "exp_name=new", "mode=inspect", "device=cpu"]))
    assert "everyday" in (run.parent / "new" / "data.json").read_text()


def test_a_finished_run_says_what_is_left_to_do(run, caplog):
    """Prevents a bare [Errno 2] where LATEST is gone, and advice to train anew for who wants to go on from a step."""
    caplog.set_level("INFO")
    command = [*MINE, "device=cpu"]
    with pytest.raises(ValueError, match=r"mine is finished, but .*metrics\.json cannot be read .*overwrite=true"):
        train.run(compose(command))
    (run / "LATEST" / "metrics.json").write_text('{"loss/eval": 1.0}')
    assert train.run(compose(command)) == {"loss/eval": 1.0} and "overwrite=true trains it again" in caplog.text
    caplog.clear()
    train.run(compose([*command, "resume=runs/mine/LATEST"]))
    assert "exp_name=NAME goes on from runs/mine/LATEST in a run of its own" in caplog.text


def test_inspect_shows_its_report_where_nothing_can_be_kept(tmp_path, capsys, caplog):
    """Prevents that whoever may only read a cache_dir cannot look at the data."""
    (tmp_path / "new").touch()  # a file in the place of the run's folder
    train.run(compose(["model=tiny", f"cache_dir={tmp_path}", "exp_name=new", "mode=inspect", "device=cpu"]))
    assert "data.json is not kept: " in caplog.text and "everyday" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "code", "base"),
    [("trainer", "class Mine:\n    roles = ('target',)\n", "BasicTrainer"), ("dataloader", "Mine = 3\n", "DataLoader")],
)
def test_a_class_of_another_kind_is_refused(key, code, base, tmp_path, monkeypatch):
    """Prevents an AttributeError from the depths of a run."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(code)
    config = compose(["model=tiny", "loss=sft"])
    config.loss[key] = "mine.py:Mine"
    with pytest.raises(ValueError, match=rf"^loss\.{key}=mine\.py:Mine is no subclass of \S+\.{base}: "):
        train.trainer_class(config)


SECRETS = {
    "${oc.env:OPENAI_API_KEY}": "OPENAI_API_KEY",
    "x${oc.decode:${oc.env:'HF_TOKEN',x}}": "HF_TOKEN",
    "${oc.env:${loss.variable}}": "OPENAI_API_KEY",  # not to be seen before it is looked up
}


@pytest.mark.parametrize("value", SECRETS)
def test_a_secret_of_the_environment_is_refused(value, tmp_path, monkeypatch):
    """Prevents a key in config.yaml, in samples and in the card of an uploaded model."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hush-hush")
    monkeypatch.setenv("SCRATCH", "/scratch")
    (tmp_path / "loss").mkdir()
    yaml = "name: mine\ntrainer: SFTTrainer\ndataloader: SFTDataLoader\nuse_reference_model: false\n"
    yaml += (
        f"variable: OPENAI_API_KEY\nplace: ${{oc.env:SCRATCH}}\nsame: ${{oc.select:model.max_length}}\nown: {value}\n"
    )
    (tmp_path / "loss" / "mine.yaml").write_text(yaml)
    with pytest.raises(ValueError, match=rf"^loss\.own takes the value of {SECRETS[value]}, a secret") as error:
        compose(["loss=mine", "model=tiny"], config_dirs=[tmp_path])
    assert "hush" not in str(error.value) and "\n" not in str(error.value)
    config = compose(["loss=mine", "model=tiny", "loss.own=fine"], config_dirs=[tmp_path])
    assert config.loss.place == "/scratch" and config.loss.same == config.model.max_length


@pytest.mark.parametrize("name", ["loss/kto.yaml", "config.yaml"])
def test_a_file_of_the_users_that_would_never_be_read_is_refused(name, tmp_path):
    """Prevents that changes to a copy of one of our YAMLs are without effect."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("name: kto\n")
    with pytest.raises(ValueError, match=rf"{tmp_path / name} has the same name as \S*config/{name}, "):
        compose(["model=tiny"], config_dirs=[tmp_path])


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({"rope_type": "longrope", "original_max_position_embeddings": 32}, 32),
        ({"rope_type": "dynamic", "factor": 2.0}, 64),
        ({"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {"rope_type": "default"}}, 64),
        ({"rope_type": "yarn", "original_max_position_embeddings": 32}, None),
        (None, None),
    ],
)
def test_rotary_positions_that_depend_on_neighbours_are_refused(settings, limit):
    """Prevents values that depend on the longest sequence of a pass, and so on packs, of tree rows and padded ones."""
    inner = SimpleNamespace(rope_parameters=settings, max_position_embeddings=64)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: inner))
    model_checks.check_rope(model, limit or 10**6)
    if limit is not None:
        with pytest.raises(ValueError, match=f"set model.max_length={limit}"):
            model_checks.check_rope(model, limit + 1)


def test_rows_longer_than_the_budget_are_told(caplog):
    """Prevents that somebody who lowers the budget believes in passes of that size."""
    loader = tiny.loader(PairedPreferenceDataLoader, 4)
    lengths = [len(row.prompt) + sum(len(one.ids) for one in row.responses.values()) for row in loader.data]
    with caplog.at_level("INFO"):
        train.tell_long_rows(loader, ("chosen", "rejected"), max(lengths))
        assert not caplog.records
        train.tell_long_rows(loader, ("chosen", "rejected"), max(lengths) - 1)
    assert f"1 of 4 rows are longer than model.tokens_per_microbatch={max(lengths) - 1}" in caplog.text


def test_an_architecture_without_sdpa_is_loaded_with_eager(monkeypatch, caplog):
    """Prevents an error of transformers that advises an argument of its own, where tree rows need neither."""
    asked = []

    def load_model(name, *, attn_implementation, **_):
        asked.append(attn_implementation)
        if attn_implementation == "sdpa":
            raise ValueError("X does not support torch.nn.functional.scaled_dot_product_attention yet")
        return SimpleNamespace(to=lambda device: "loaded")

    monkeypatch.setattr("models.loading.load_model", load_model)
    with caplog.at_level("INFO"):
        assert build.build_model(tiny.config("dpo"), "cpu", None) == "loaded"
    assert asked == ["sdpa", "eager"] and "model.attn_implementation=eager" in caplog.text
    with pytest.raises(ValueError, match="does not support"):
        monkeypatch.setattr("models.loading.load_model", lambda *_, **__: load_model("", attn_implementation="sdpa"))
        build.build_model(tiny.config("dpo", model__attn_implementation="flash_attention_2"), "cpu", None)
