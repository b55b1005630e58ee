"""The config that eval.py works with: a run's saved one, laid over what config/ composes today."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from dataloaders.resolve import ROOT, did_you_mean, find_source
from launch.check import check_values
from launch.combinations import check_combinations
from launch.compose import default_exp_name, refuse_strays, refuse_sweep
from launch.composer import SEVERAL, Composer, key_of, readable_errors
from launch.generation_checks import is_open
from launch.keys import flatten
from launch.run_folder import read_config, run_folder

SCRIPT = "eval.py"
HELP = """eval.py works with a run that train.py made, or with any model.

  python eval.py --config-path=.cache/NAME ++mode=sample ++n_samples=512    answers the test prompts
  python eval.py --config-path=.cache/NAME mode=eval                        loss and metrics on the test split
  python eval.py --config-path=.cache/NAME mode=export                      writes an HF folder
  python eval.py --config-path=.cache/NAME mode=generate                    scored samples of its scenarios
  python eval.py --config-path=.cache/NAME mode=kl kl.reference=MODEL       how far it is from another language model
  python eval.py --config-path=.cache/NAME mode=red_team red_team.attacker=MODEL red_team.prompts=FILE
  python eval.py mode=score scorer=pep8 corpus=FOLDER                       scores texts; needs no run
  python eval.py model=tiny datasets=[local] datasets.local.path=FILE mode=inspect

--config-path FILE   the run's config.yaml, or its folder; without it the config is composed as train.py does
--config-dir DIR     a folder with YAMLs of your own
--cfg job            prints the config and ends

Overrides are key=value, with or without ++; the comments in config/ say what each key does. mode is sample by default.
A mistake is reported in one line; AUREOLE_TRACEBACK=1 shows the traceback as well."""
NOT_TAKEN_OVER = ("mode", "overwrite", "model.trust_remote_code")
"""What train.py was told to do is not what eval.py is told to do, and who trusted code is not who would run it now."""
OF_TASKS = ("recipe.", "task.seen.")
"""Sections of a task's YAMLs from which its keys had their values; what they say is in those keys."""
SELECTS = ("model", "loss")
SCORER = "scorer"
"""The config group whose choice may be another than the run's."""
ONE_PROCESS = "distributed"
"""The config group that says how many processes share a training; eval.py has one, however the run was trained."""
_CLASSES = {"trainer": "trainers", "dataloader": "dataloaders"}
OURS = ("dataloaders", "launch", "models", "scorers", "trainers")

log = logging.getLogger(__name__)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; overrides are key=value, and --help shows the options.")


def compose_for_eval(argv: Sequence[str]) -> tuple[DictConfig, Path | None]:
    """The checked config of an eval.py command, and the folder of the run whose config was read.

    `--help` and `--cfg job` print and end the process with code 0.

    Raises:
        ValueError: naming the fix.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--config-path", "-cp")
    parser.add_argument("--config-dir", "-cd", action="append", default=[])
    parser.add_argument("--cfg", "-c", choices=["job"])
    parser.add_argument("--multirun", "-m", action="store_true")
    arguments = parser.parse_intermixed_args(list(argv))
    if arguments.help:
        print(HELP)
        sys.exit(0)
    if arguments.multirun:
        raise ValueError("eval.py looks at one run; -m is for train.py.")
    refuse_strays(arguments.overrides)
    file = None if arguments.config_path is None else saved_file(arguments.config_path)
    with Composer(arguments.config_dir) as composer:
        overrides = composer.parse(arguments.overrides)
        refuse_sweep([override for override in overrides if override.is_sweep_override()])
        config = _fresh(composer, overrides) if file is None else _laid_over(composer, overrides, read_config(file))
    if config.exp_name is None:
        # Without a run it is the model itself that is looked at, whatever runs there are.
        config.exp_name = config.model.name if file is None else default_exp_name(config)
    run_folder(config)
    check_combinations(config, SCRIPT)
    if arguments.cfg:
        print(OmegaConf.to_yaml(config), end="")
        sys.exit(0)
    return config, None if file is None else file.parent


def saved_file(given: str) -> Path:
    """The config.yaml that `--config-path` means: a file, or the folder that holds it."""
    path = Path(given).expanduser()
    file = path / "config.yaml" if path.is_dir() else path
    if not file.is_file():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        what = "has no config.yaml" if path.is_dir() else f"does not exist{did_you_mean(path.name, siblings)}"
        raise ValueError(
            f"--config-path={given} {what}; it is {{cache_dir}}/{{exp_name}} of a run, or the config.yaml in it."
        )
    return file.absolute()


def _fresh(composer: Composer, overrides: list[Override]) -> DictConfig:
    schema = composer.schema(overrides)
    composer.check_keys(overrides, schema)
    config = composer.compose(overrides)
    if "mode" not in map(key_of, overrides):
        config.mode = "sample"
    return check_values(config, schema, SCRIPT)


def _laid_over(composer: Composer, overrides: list[Override], saved: DictConfig) -> DictConfig:
    """The saved config over today's, the command's overrides over both.

    What today's config/ has no file for (it came from --config-dir, or has been removed) is kept as it was saved, and
    is its own schema.
    """
    for section in (*SELECTS, SEVERAL):
        if section not in saved or not isinstance(saved[section], DictConfig):
            raise ValueError(f"the saved config has no section {section}, so it is no config of a run.")
    for override in overrides:
        if override.key_or_group == ONE_PROCESS:
            raise ValueError(f"{override.input_line}: eval.py does not shard: leave it out.")
    wanted = _wanted_datasets(composer, overrides, saved)
    known = [name for name in wanted if name in composer.choices[SEVERAL]]
    lines = [f"{SEVERAL}=[{','.join(known)}]"] if known else []
    for group in SELECTS:
        _refuse_another(group, overrides, saved)
        if saved[group].get("name") in composer.choices[group]:
            lines.append(f"{group}={saved[group].name}")
    chosen = [str(override.value()) for override in overrides if override.key_or_group == SCORER]
    scorer = chosen[-1] if chosen else saved.get(SCORER, {}).get("name")
    if scorer is not None and (chosen or scorer in composer.choices[SCORER]):
        lines.append(f"{SCORER}={scorer}")
    schema = composer.schema(composer.parse(lines))
    OmegaConf.set_struct(schema, False)
    if scorer is not None and scorer != schema[SCORER].name:
        schema[SCORER] = saved[SCORER]
    if chosen:
        saved = OmegaConf.masked_copy(saved, [key for key in saved if key != SCORER])
    for group in SELECTS:
        if saved[group].get("name") not in composer.choices[group]:
            schema[group] = saved[group]
            if group == "model" and "trust_remote_code" in schema.model:
                schema.model.trust_remote_code = False
    schema[SEVERAL] = {name: schema[SEVERAL][name] if name in known else saved[SEVERAL][name] for name in wanted}
    values = [override for override in overrides if not composer.is_choice(override)]
    composer.check_keys(values, schema, saved)
    config = _overlay(schema, saved)
    config.mode = "sample"
    with readable_errors():
        for override in values:
            if not override.key_or_group.startswith("hydra."):
                OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    config = check_values(config, schema, SCRIPT)
    _say_what_runs(config, saved)
    return config


def _say_what_runs(config: DictConfig, saved: DictConfig) -> None:
    """Names the files outside this project whose code a run that may be somebody else's brings with it."""
    named = [(config.loss[key], saved.loss.get(key), package) for key, package in _CLASSES.items()]
    named.append((config[SCORER].get("kind"), saved.get(SCORER, {}).get("kind"), "scorers"))
    for name, options in config[SEVERAL].items():
        if name in saved[SEVERAL] and isinstance(options, DictConfig) and isinstance(saved[SEVERAL][name], DictConfig):
            named.append((options.get("function"), saved[SEVERAL][name].get("function"), "dataloaders.datasets"))
    files = []
    for value, before, package in named:
        if value is None or value != before:
            continue
        try:
            file = find_source(value, package)[0]
        except ValueError:  # check_combinations will say so
            continue
        if not any(file.resolve().is_relative_to(ROOT / folder) for folder in OURS):
            files.append(str(file))
    if files:
        log.warning("this run's config runs code of %s", ", ".join(dict.fromkeys(files)))
    if saved.model.get("trust_remote_code") and not config.model.trust_remote_code:
        log.warning(
            "this run trusted code that came with its model; model.trust_remote_code=true, if you do so too, is to be "
            "given again"
        )


def _overlay(schema: DictConfig, saved: DictConfig) -> DictConfig:
    """The schema with the values that were saved; those whose key is gone are named and left out."""
    config = schema.copy()
    expected = flatten(OmegaConf.to_container(schema, resolve=False))
    dropped = []
    for key, value in flatten(OmegaConf.to_container(saved, resolve=True)).items():
        if (
            key in NOT_TAKEN_OVER
            or key.startswith(OF_TASKS)
            or key.startswith(f"{ONE_PROCESS}.")
            or (key.startswith(f"{SEVERAL}.") and key.split(".")[1] not in schema[SEVERAL])
        ):
            continue
        if key in expected or is_open(key):
            OmegaConf.update(config, key, value, merge=False)
        elif value is not None:
            dropped.append(key)
    if dropped:
        print(f"{SCRIPT}: keys of the saved config that config/ no longer has are left out: {', '.join(dropped)}")
    return config


def _wanted_datasets(composer: Composer, overrides: list[Override], saved: DictConfig) -> list[str]:
    """The names in `datasets=[...]`, else those of the saved config."""
    wanted = [str(name) for name in saved[SEVERAL]]
    for override in overrides:
        if composer.is_choice(override) and override.key_or_group == SEVERAL:
            value: Any = override.value()
            names = [str(name) for name in (value if isinstance(value, list) else [value])]
            wanted = [*wanted, *names] if override.is_add() else names
    if not wanted:
        raise ValueError(f"{SEVERAL}=[]: nothing is chosen; there are {', '.join(composer.choices[SEVERAL])}.")
    for name in wanted:
        if name not in saved[SEVERAL]:
            composer.check_option(SEVERAL, name)
    return list(dict.fromkeys(wanted))


def _refuse_another(group: str, overrides: list[Override], saved: DictConfig) -> None:
    for override in overrides:
        if override.key_or_group == group and (override.is_delete() or override.value() != saved[group].get("name")):
            raise ValueError(
                f"{override.input_line}: the saved run has {group}={saved[group].get('name')}, to which its checkpoint "
                f"belongs; `{group}=...` is for a command without --config-path (saved_policy=FILE gives it weights)."
            )
