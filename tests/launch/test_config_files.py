"""The YAMLs of config/: each composes, each key is explained, has a type and is read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from launch.check import CHOICES, NULLABLE, RANGES, lookup
from launch.compose import compose_checked
from launch.composer import CONFIG, Composer
from launch.keys import flatten

ROOT = Path(__file__).parents[2]
FILES = sorted(file for file in CONFIG.rglob("*.yaml") if "hydra" not in file.parts)  # not keys of Hydra's
LOSSES = sorted(file.stem for file in (CONFIG / "loss").glob("*.yaml"))
MODELS = sorted(file.stem for file in (CONFIG / "model").glob("*.yaml") if file.stem != "base_model")
SCORERS = sorted(file.stem for file in (CONFIG / "scorer").glob("*.yaml"))
DATASETS = sorted(file.stem for file in (CONFIG / "datasets").glob("*.yaml"))


def keys_of(file: Path) -> dict[str, object]:
    """The dotted keys of a YAML as they are in a composed config, with their values."""
    content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    content.pop("defaults", None)
    content.pop("hydra", None)
    section = {"datasets": f"datasets.{file.stem}."}.get(file.parent.name, f"{file.parent.name}.")
    whole = file.parent == CONFIG or file.read_text().startswith("# @package _global_\n")
    return flatten(content, "" if whole else section)


ALL_KEYS = {key: value for file in FILES for key, value in keys_of(file).items()}


def test_every_loss_and_every_model_composes():
    """Prevents a YAML that nobody has tried. What losses and models say does not meet, so not every two are tried."""
    pairs = [(loss, "tiny") for loss in LOSSES] + [("dpo", model) for model in MODELS]
    with Composer() as composer:
        for loss, model in pairs:
            config = compose_checked(composer, composer.parse([f"loss={loss}", f"model={model}"]))
            assert config.exp_name == f"{model}_{loss}"
    assert {"sft", "dpo", "kto"} <= set(LOSSES) and {"tiny", "smollm2-135m", "llama7b"} <= set(MODELS)
    assert len(LOSSES) >= 30 and len(MODELS) >= 38


def test_every_data_set_composes(tmp_path):
    """Prevents a data set whose YAML names a function that there is not, or lies outside its package."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    with Composer() as composer:
        for name in DATASETS:
            overrides = [f"datasets=[{name}]", *([f"datasets.local.path={rows}"] if name == "local" else [])]
            script = "eval.py" if name == "alpacaeval" else "train.py"
            overrides += ["mode=sample"] if name == "alpacaeval" else []
            assert list(compose_checked(composer, composer.parse(overrides), script).datasets) == [name]
    assert len(DATASETS) >= 12


def test_a_file_and_its_name_agree():
    """Prevents a saved config whose choices cannot be found again: eval.py looks them up by their names."""
    for group, names in {"loss": LOSSES, "model": MODELS, "scorer": SCORERS}.items():
        for name in names:
            assert OmegaConf.load(CONFIG / group / f"{name}.yaml").name == name


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONFIG)))
def test_every_key_has_a_comment(file):
    """Prevents a key that its user has to guess. A model's file fills in keys that base_model.yaml explains."""
    explained = keys_of(CONFIG / "model" / "base_model.yaml") if file.parent.name == "model" else {}
    lines = file.read_text().splitlines()
    count = 0
    for number, line in enumerate(lines):
        match = re.match(r"( *)([\w-]+):(?: +(\S.*))?$", line)
        below = [following for following in lines[number + 1 :] if following.strip()][:1]
        is_section = match and not match[3] and below and len(below[0]) - len(below[0].lstrip()) > len(match[1])
        if not match or is_section or lines[number].strip() == "defaults:":
            continue
        count += 1
        in_shape = bool(match[1]) and file.parent.name == "model"  # facts of a model; models/shapes.py explains them
        if not in_shape and f"model.{match[2]}" not in explained:
            assert re.search(r"\s# \S", line), f"{file.name}: {match[2]} has no comment"
    assert count or file == CONFIG / "task" / "none.yaml"


def test_every_null_has_a_type():
    """Prevents that a key whose YAML is silent takes anything, and a table of keys that are gone."""
    silent = [key for key, value in ALL_KEYS.items() if value is None or value == "???"]
    assert len(silent) > 50
    assert [key for key in silent if lookup(NULLABLE, key) is None] == []
    for table in (NULLABLE, RANGES, CHOICES):
        assert [pattern for pattern in table if not any(lookup({pattern: True}, key) for key in ALL_KEYS)] == []


def test_every_key_is_read():
    """Prevents dead keys: each one's name stands in the code that uses it, not only where configs are checked."""
    checking = {"check.py", "keys.py", "run_folder.py", "saved_config.py", "composer.py"}
    folders = ("launch", "trainers", "dataloaders", "models", "scorers")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    text = "\n".join(file.read_text() for file in files if file.parent.name != "launch" or file.name not in checking)
    leaves = {key.rpartition(".")[2] for key in ALL_KEYS}
    unread = {leaf for leaf in leaves if not re.search(rf"\b{leaf}\b", text)}
    assert "config.overwrite" in (ROOT / "launch" / "run_folder.py").read_text()
    shapes = (ROOT / "tests" / "models" / "test_shapes.py").read_text()
    facts = {leaf for leaf in ("block_name", "gated_mlp") if leaf in shapes}  # checked against transformers there
    assert unread - facts - {"overwrite"} == set()
