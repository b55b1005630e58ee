"""Hydra's composition over config/ and folders of the user's own, with the checks that Hydra does not make.

What a command says falls into choices (`loss=dpo`, `datasets=[shp,hh]`) and values (`lr=1e-6`). The choices alone
compose the schema; a value's key must be in it. So a key that no YAML has is refused, also with `++`, which Hydra would
add.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, OverrideParseException
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from dataloaders.resolve import ROOT, did_you_mean
from launch.generation_checks import is_open
from launch.keys import check_key, flatten

CONFIG = ROOT / "config"
NAME = "config"
SEVERAL = "datasets"
_composed: dict[tuple[str, ...], DictConfig] = {}
"""Of this process, by the YAMLs as they are and the overrides: each job of a multirun is checked, and then runs."""
_groups: dict[tuple[str, ...], tuple[dict[str, list[str]], list[str]]] = {}
"""By the YAMLs as they are: what there is to choose in each group, and the groups of which a run needs one."""


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turns what Hydra and OmegaConf raise into a ValueError of one line."""
    try:
        yield
    except OverrideParseException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"cannot read the override {error.override!r} ({reason}). A value with spaces or any of =,:{{}}[]()' needs "
            "quotes inside quotes: 'key=\"value\"'."
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "a YAML" if mark is None else f"{mark.name}:{mark.line + 1}"
        raise ValueError(f"{where}: not valid YAML: {error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(str(error).strip().splitlines()[0]) from error


class Composer:
    """Composes configs; use it as a context manager.

    Args:
        config_dirs: folders of YAMLs beside config/ (Hydra's --config-dir); none of them may have a file's name.

    Raises:
        ValueError: a folder that does not exist, or has a file of the same name as one in config/.
    """

    def __init__(self, config_dirs: Sequence[str | Path] = ()):
        self.search: list[str] = []
        folders = [Path(folder).expanduser().resolve() for folder in config_dirs]
        for folder in folders:
            if not folder.is_dir():
                siblings = [one.name for one in folder.parent.iterdir()] if folder.parent.is_dir() else []
                raise ValueError(
                    f"--config-dir {folder}: there is no such folder{did_you_mean(folder.name, siblings)}."
                )
            _refuse_hidden(folder)
        yamls = (file for folder in (CONFIG, *folders) for file in folder.rglob("*.yaml"))
        self.files = [f"{file} {file.stat().st_mtime_ns}" for file in sorted(yamls)]
        if folders:
            quoted = ",".join(
                '"file://' + str(folder).replace("\\", "\\\\").replace('"', '\\"') + '"' for folder in folders
            )
            self.search = [f"hydra.searchpath=[{quoted}]"]

    def __enter__(self) -> Composer:
        self._outer = get_gh_backup()  # inside of what Hydra runs, its own state is kept and put back
        GlobalHydra.instance().clear()
        initialize_config_dir(config_dir=str(CONFIG), version_base=None, job_name="train")
        self._loader = GlobalHydra.instance().config_loader()
        known = tuple(self.files)
        if known not in _groups:
            _groups[known] = self._read_groups()
        self.choices, self.required = _groups[known]
        return self

    def __exit__(self, *exception: object) -> None:
        restore_gh_from_backup(self._outer)

    def _read_groups(self) -> tuple[dict[str, list[str]], list[str]]:
        with readable_errors():
            choices = {group: self._options(group) for group in self._options("", ObjectType.GROUP)}
        defaults = OmegaConf.load(CONFIG / f"{NAME}.yaml").defaults
        groups = [next(iter(entry)) for entry in defaults if not isinstance(entry, str)]
        return choices, [group for group in groups if not group.startswith(("override ", "optional "))]

    def _options(self, group: str, kind: ObjectType = ObjectType.CONFIG) -> list[str]:
        primary = NAME if self.search else None  # without a search path there is nothing in it to be read
        found = self._loader.get_group_options(group, kind, config_name=primary, overrides=self.search)
        return [one for one in found if not one.startswith("base_") and one != "hydra"]

    def parse(self, overrides: Sequence[str]) -> list[Override]:
        """Hydra's own reading of overrides; ValueError for one that cannot be read."""
        with readable_errors():
            return OverridesParser.create(config_loader=self._loader).parse_overrides(overrides=list(overrides))

    def is_choice(self, override: Override) -> bool:
        """Whether it chooses a file of a config group."""
        return override.key_or_group in self.choices or override.key_or_group.startswith("hydra/")

    def schema(self, overrides: Sequence[Override]) -> DictConfig:
        """The config of the chosen files, without any value from the command."""
        for override in overrides:
            if self.is_choice(override) and not override.key_or_group.startswith("hydra"):
                self._check_choice(override)
        chosen = [_line(override) for override in overrides if self.is_choice(override)]
        return self._compose(chosen, None)

    def check_keys(self, overrides: Sequence[Override], schema: DictConfig, saved: DictConfig | None = None) -> None:
        """Refuses a value whose key is not in the schema, and what would take a key away.

        Args:
            saved: a config whose scenarios are there too.
        """
        keys = flatten(OmegaConf.to_container(schema, resolve=False))
        if saved is not None:
            keys |= {key: None for key in flatten(OmegaConf.to_container(saved, resolve=False)) if is_open(key)}
        for override in overrides:
            if self.is_choice(override) or override.key_or_group.split(".")[0] == "hydra":
                continue
            if override.package is not None:
                raise ValueError(
                    f"{_line(override)}: {override.key_or_group} is no config group, so @ has no meaning here."
                )
            key = override.key_or_group
            value = override.value()
            for inner in (key, *(flatten(value, f"{key}.") if isinstance(value, dict) else ())):
                if not is_open(inner):
                    check_key(inner, keys, self.choices)
            there = any(known == key or known.startswith(f"{key}.") for known in keys)
            if is_open(key) and not there and override.type is OverrideType.CHANGE:
                raise ValueError(f"{_line(override)}: what a YAML does not have is added: +{_line(override)}")
            if override.type is OverrideType.DEL:
                raise ValueError(f"~{key}: every key is read, so none can be taken out; give it another value.")
            if override.type is OverrideType.ADD and not is_open(key):
                raise ValueError(f"{_line(override)}: {key} is there already; leave out the +.")

    def compose(self, overrides: Sequence[Override], number: int | None = 0) -> DictConfig:
        """The config of all overrides.

        Args:
            overrides: parsed; none of them a sweep.
            number: the job's number in a multirun, for `${hydra:job.num}`; None inside of what Hydra runs.
        """
        if all(self.is_choice(override) for override in overrides):
            return self.schema(overrides)
        return self._compose([_line(override) for override in overrides], number)

    def _compose(self, lines: list[str], number: int | None) -> DictConfig:
        known = (*self.files, *self.search, *lines)
        if known not in _composed:
            with readable_errors():
                _composed[known] = hydra_compose(NAME, overrides=[*lines, *self.search], return_hydra_config=True)
        config = _composed[known].copy()
        if number is not None:
            with open_dict(config):
                config.hydra.job.num = number
                config.hydra.job.id = f"check_{number}"
            HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        return config

    def _check_choice(self, override: Override) -> None:
        group, line = override.key_or_group, _line(override)
        if override.package is not None:
            return
        if override.type is OverrideType.DEL:
            if group in self.required:
                raise ValueError(f"{line}: a run needs a {group}; choose another with {group}=NAME.")
            return
        added = override.type is OverrideType.ADD and group in self.required and group != SEVERAL
        if override.type is OverrideType.FORCE_ADD or added:
            raise ValueError(f"{line}: a file is chosen without plus signs, as {line.lstrip('+')}.")
        value = override.value()
        names = value if isinstance(value, list) else [value]
        if isinstance(value, list) and group != SEVERAL and group in self.required:
            example = ",".join(map(str, names)) or "a,b"
            raise ValueError(f"{line}: a run has one {group}; for a run with each write -m {group}={example}.")
        if not names or any(name is None for name in names):
            raise ValueError(f"{line}: nothing is chosen; there are {', '.join(self.choices[group])}.")
        for name in map(str, names):
            self.check_option(group, name)

    def check_option(self, group: str, name: str) -> None:
        """Refuses a name that is no file of the config group."""
        options = self.choices[group]
        if name not in options and name.removesuffix(".yaml") not in options and "/" not in name:
            raise ValueError(
                f"there is no {group}={name}{did_you_mean(name, options)}; there are {', '.join(options)}."
            )


def _refuse_hidden(folder: Path) -> None:
    """Refuses a YAML that would never be read, because config/ has one of its name and is searched first."""
    for ours in sorted(CONFIG.rglob("*.yaml")):
        theirs = folder / ours.relative_to(CONFIG)
        if theirs.is_file() and not theirs.samefile(ours):
            raise ValueError(f"{theirs} has the same name as {ours}, which is read in its place: give it a new name.")


def key_of(override: Override) -> str:
    """The key of an override without plus signs, `datasets` of `+datasets=hh`."""
    return override.get_key_element().lstrip("+~")


def _line(override: Override) -> str:
    assert override.input_line is not None
    return override.input_line
