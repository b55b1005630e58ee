"""A command to configs: what train.py checks before Hydra runs anything, and what each job then gets.

`check_command` composes and checks every job of a command in about a tenth of a second each, without torch;
`compose_job` does the same for one job, inside of what Hydra runs.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig

from launch.check import check_values
from launch.combinations import check_combinations
from launch.composer import CONFIG, SEVERAL, Composer, key_of, readable_errors
from launch.run_folder import run_folder

LONGEST_NAME = 180  # of a folder; file systems allow 255 bytes


@dataclass(frozen=True)
class Command:
    """A command line, read.

    Attributes:
        overrides: `key=value` and the like, in order.
        flags: Hydra's own options, in the order that Hydra needs: before the overrides.
        multirun: one job for each combination of comma-separated values.
        config_dirs: folders of YAMLs of the user's.
        informs: it prints something (--help, --info, ...) and runs nothing, so it is not checked.
    """

    overrides: tuple[str, ...]
    flags: tuple[str, ...] = ()
    multirun: bool = False
    config_dirs: tuple[str, ...] = ()
    informs: bool = False


def read_command(argv: Sequence[str], script: str = "train.py") -> Command:
    """Reads a command line as Hydra does, options and overrides in any order.

    Raises:
        ValueError: an option that there is not.
    """
    parser = get_args_parser()

    def refuse(message: str) -> None:
        raise ValueError(f"{message}; overrides are key=value, and --help shows the options.")

    parser.error = refuse  # type: ignore[method-assign, assignment]
    known = {*(option for action in parser._actions for option in action.option_strings)}
    long = [word for word in argv if word.startswith("--") and word.partition("=")[0] not in known]
    if long:
        refuse(f"there is no option {long[0]} (a key is set without dashes: {long[0].lstrip('-')})")
    arguments = parser.parse_intermixed_args(list(argv))
    if arguments.config_path or arguments.config_name:
        raise ValueError(
            f"{script} composes from {CONFIG.name}/; --config-path with a saved config is for eval.py, and a folder of "
            "your own YAMLs is given with --config-dir DIR."
        )
    overrides = tuple(arguments.overrides)
    refuse_strays(overrides)
    informs = bool(arguments.help or arguments.hydra_help or arguments.info or arguments.shell_completion)
    multirun = arguments.multirun or any(re.fullmatch(r"\+*hydra\.mode=MULTIRUN", word) for word in overrides)
    folders = (arguments.config_dir,) if arguments.config_dir else ()
    return Command(overrides, _flags(arguments), multirun, folders, informs)


def _flags(arguments: argparse.Namespace) -> tuple[str, ...]:
    flags = []
    for name, value in vars(arguments).items():
        if name != "overrides" and value not in (None, False):
            option = "--" + name.replace("_", "-")
            flags.append(option if value is True else f"{option}={value}")
    return tuple(flags)


def check_command(argv: Sequence[str], script: str = "train.py") -> list[str]:
    """Checks every job of a command, and returns the arguments that Hydra shall get.

    Raises:
        ValueError: naming the fix, for the first thing that is wrong.
    """
    command = read_command(argv, script)
    if command.informs:
        return [*command.flags, *command.overrides]
    with Composer(command.config_dirs) as composer:
        parsed = composer.parse(command.overrides)
        swept = [override for override in parsed if override.is_sweep_override()]
        if not command.multirun:
            refuse_sweep(swept)
            refuse_launcher(parsed)
            compose_checked(composer, parsed, script)
            return [*command.flags, *command.overrides]
        refuse_without_slurm(parsed)
        if any(override.key_or_group == "hydra/sweeper" for override in parsed):
            parsed = [override for override in parsed if override not in swept]  # it chooses the values as it goes
        constant = [key_of(override) for override in parsed if not override.is_sweep_override()]
        folders: dict[Path, int] = {}
        for number, job in enumerate(_jobs(composer, parsed)):
            config = compose_checked(composer, job, script, number, constant)
            folder = run_folder(config)
            if folder in folders:
                raise ValueError(
                    f"jobs {folders[folder]} and {number} of the multirun would share {folder}: leave out exp_name, or "
                    "put what varies into it, as in 'exp_name=name_${lr}'."
                )
            folders[folder] = number
    quoted = ",".join(f"'{key}'" for key in constant)
    exclude = [f"hydra.job.config.override_dirname.exclude_keys=[{quoted}]"] if constant else []
    return [*command.flags, *command.overrides, *exclude]


def refuse_strays(overrides: Sequence[str]) -> None:
    """Refuses words that are no overrides, the rest of a list with spaces, for instance."""
    stray = [word for word in overrides if "=" not in word and not word.startswith("~")]
    if stray:
        raise ValueError(f"{stray[0]!r} is no override: those are key=value (no spaces around =, none inside a list).")


def refuse_sweep(swept: Sequence[Override]) -> None:
    """Refuses several values for one key in a command that is one run."""
    for override in swept:
        values = ",".join(override.sweep_string_iterator()) if override.is_discrete_sweep() else "a,b"
        together = f", or {SEVERAL}=[{values}] for all in one run" if override.key_or_group == SEVERAL else ""
        raise ValueError(f"{override.input_line}: several values need -m, for a run with each{together}.")


def refuse_launcher(overrides: Sequence[Override]) -> None:
    """Refuses a launcher in a command that is one run: Hydra would run it here without a word."""
    for override in overrides:
        if override.key_or_group == "hydra/launcher":
            raise ValueError(f"{override.input_line}: only the jobs of a multirun are given to a launcher; add -m.")


def refuse_without_slurm(overrides: Sequence[Override]) -> None:
    """Refuses jobs of SLURM where its programs are not found: submitit would end with a traceback."""
    for override in overrides:
        if override.key_or_group != "hydra/launcher" or override.value() not in ("slurm", "submitit_slurm"):
            continue
        missing = [program for program in ("sbatch", "srun") if shutil.which(program) is None]
        if missing:
            raise ValueError(
                f"{override.input_line}: {' and '.join(missing)} of SLURM is not on the PATH here. Give the command on "
                "a login node of the cluster, or leave the launcher out: then the jobs run on this machine, one after "
                "the other."
            )


def _jobs(composer: Composer, parsed: list[Override]) -> list[list[Override]]:
    """The overrides of each job of a multirun, as Hydra's own sweeper makes them."""
    hydra = [override for override in parsed if override.key_or_group.startswith("hydra")]
    rest = [override for override in parsed if override not in hydra]
    with readable_errors():
        batches = BasicSweeper.split_arguments(rest, None)
    return [[*composer.parse(lines), *hydra] for lines in batches[0]]


def compose_checked(
    composer: Composer,
    overrides: Sequence[Override],
    script: str = "train.py",
    number: int | None = 0,
    constant: Sequence[str] | None = None,
) -> DictConfig:
    """One job's config: composed, checked, of the schema's types, with its exp_name.

    Args:
        overrides: parsed; none of them a sweep.
        number: see `Composer.compose`.
        constant: in a multirun, the keys that all jobs have alike; None outside of one.
    """
    schema = composer.schema(overrides)
    composer.check_keys(overrides, schema)
    config = check_values(composer.compose(overrides, number), schema, script)
    if config.exp_name is None:
        varied = () if constant is None else [one for one in overrides if key_of(one) not in constant]
        config.exp_name = default_exp_name(config, varied)
    run_folder(config)
    check_combinations(config, script)
    return config


def compose(
    overrides: Sequence[str] = (), script: str = "train.py", config_dirs: Sequence[str | Path] = ()
) -> DictConfig:
    """The checked config of a list of overrides, as a single run gets it.

    Raises:
        ValueError: naming the fix.
    """
    with Composer(config_dirs) as composer:
        return compose_checked(composer, composer.parse(overrides), script)


def compose_job(script: str = "train.py") -> DictConfig:
    """The checked config of the job that Hydra is running."""
    hydra = HydraConfig.get()
    sources = [source for source in hydra.runtime.config_sources if source.schema == "file"]
    folders = [source.path for source in sources if Path(source.path) != CONFIG]
    constant = hydra.job.config.override_dirname.exclude_keys if hydra.mode == RunMode.MULTIRUN else None
    with Composer(folders) as composer:
        return compose_checked(composer, composer.parse(hydra.overrides.task), script, None, constant)


def default_exp_name(config: DictConfig, varied: Sequence[Override] = ()) -> str:
    """MODEL_LOSS, then task and phase where there are any, then what the job of a multirun varies beside these; safe as
    a folder's name."""
    task = config.task
    parts = [config.model.name, config.loss.name, *([task.name] if task.name != "none" else [])]
    parts += [task.phase] if task.phase != "pretrain" else []
    for override in varied:
        if key_of(override) not in ("model", "loss", "task", "task.phase") and not override.key_or_group.startswith(
            "hydra"
        ):
            value = re.sub(r"[][{}()'\"\s]", "", override.get_value_element_as_str())
            parts.append(f"{key_of(override)}-{value}")
    name = "_".join(re.sub(r"[^A-Za-z0-9._+-]+", "-", part) for part in parts)
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name
