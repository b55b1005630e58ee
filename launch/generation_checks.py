"""The sections generation, kl and red_team: their keys, and what is wrong with them before anything is loaded.

`generation.scenarios` is open: its scenarios are named by who writes them, in a YAML or on the command line, and each
has the keys of `SCENARIO`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dataloaders.resolve import ROOT, did_you_mean
from launch.keys import nearest_key
from scorers.text_metrics import text_metric

OPEN = "generation.scenarios."
SCENARIO: dict[str, tuple[tuple[type, ...], Any]] = {
    "n_samples": ((int,), None),
    "max_new_tokens": ((int,), None),
    "prompts": ((str,), None),
    "prefix": ((str,), None),
    "min_new_tokens": ((int,), 0),
    "temperature": ((float,), 1.0),
    "top_p": ((float,), 1.0),
    "top_k": ((int,), 0),
    "hits_threshold": ((float,), None),
    "use_prompt_for_scoring": ((bool,), False),
}
"""The keys of a scenario: their types, and what they are without being given (n_samples and max_new_tokens must be)."""

NULLABLE: dict[str, tuple[type, ...]] = {
    "generation.every": (int,),
    "generation.prefix": (str,),
    "generation.before": (str,),
    "kl.reference": (str,),
    "kl.base_url": (str,),
    "kl.every": (int,),
    "kl.prefix": (str,),
    "kl.documents": (str,),
    "kl.n_documents": (int,),
    "kl.aligned_threshold": (float,),
    "red_team.attacker": (str,),
    "red_team.base_url": (str,),
    "red_team.prompts": (str,),
}


def _at_least_one(value: float) -> bool:
    return value >= 1


def _above_zero(value: float) -> bool:
    return value > 0 and math.isfinite(value)


def _at_least_zero(value: float) -> bool:
    return value >= 0 and math.isfinite(value)


def _share(value: float) -> bool:
    return 0 < value <= 1


_ONE, _POSITIVE = (_at_least_one, "at least 1"), (_above_zero, "above 0")
_ZERO, _TOP_P = (_at_least_zero, "at least 0"), (_share, "above 0 and at most 1")
Range = tuple[Callable[[Any], bool], str]
RANGES: dict[str, Range] = {
    "generation.every": (_at_least_one, "at least 1, or null for only at the end"),
    "generation.batch_size": _ONE,
    "generation.seed": _ZERO,
    "kl.n_samples": (lambda value: value >= 2, "at least 2: one sample has no interval"),
    "kl.max_new_tokens": _ONE,
    "kl.batch_size": _ONE,
    "kl.seed": _ZERO,
    "kl.every": (_at_least_one, "at least 1, or null for none while training"),
    "kl.n_documents": (_at_least_one, "at least 1, or null for all"),
    **{f"red_team.{key}": _ONE for key in ("n_prompts", "n_rounds", "n_trials", "n_shots", "n_responses")},
    **{f"red_team.{key}": _ONE for key in ("max_new_tokens", "n_continuations", "continuation_tokens")},
    **{f"red_team.{key}": _POSITIVE for key in ("pool_temperature", "temperature", "continuation_temperature")},
    **{f"red_team.{key}": _ZERO for key in ("continuation_min_tokens", "seed")},
    **{f"red_team.{key}": _TOP_P for key in ("top_p", "continuation_top_p")},
}
CHOICES: dict[str, tuple[str, ...]] = {"red_team.format": ("list", "blocks")}
_SCENARIO_RANGES: dict[str, Range] = {
    "n_samples": _ONE,
    "max_new_tokens": _ONE,
    "min_new_tokens": _ZERO,
    "temperature": _ZERO,
    "top_p": _TOP_P,
    "top_k": (_at_least_zero, "at least 0 (0: all tokens)"),
}
WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def is_open(key: str) -> bool:
    """Whether a dotted key lies in the open section. ValueError where a scenario has no such key."""
    if not key.startswith(OPEN):
        return False
    name, _, inner = key.removeprefix(OPEN).partition(".")
    if inner and inner not in SCENARIO:
        near = nearest_key(inner, SCENARIO)
        listed = f"; did you mean {near}?" if near else f"; there are {', '.join(SCENARIO)}."
        raise ValueError(f"{key}: a scenario has no key {inner}{listed}")
    return bool(inner or name)


def scenarios_of(section: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The scenarios of the section `generation` with all their keys; one that is null is none.

    Raises:
        ValueError: one without n_samples or max_new_tokens, or a value that is none.
    """
    scenarios = section["scenarios"] or {}
    found = {}
    for name, given in scenarios.items():
        if given is None:
            continue
        where = f"generation.scenarios.{name}"
        if not re.fullmatch(r"[A-Za-z0-9_-]+", str(name)):
            raise ValueError(f"{where}: a scenario names files, so its name has letters, digits, - and _ alone.")
        if not isinstance(given, Mapping | DictConfig):
            raise ValueError(f"{where}={given}: a scenario is a section with n_samples and max_new_tokens.")
        for key in given:
            is_open(f"{where}.{key}")
        whole = {key: given.get(key, default) for key, (_, default) in SCENARIO.items()}
        for key, value in whole.items():
            whole[key] = _value(f"{where}.{key}", key, value)
        if whole["min_new_tokens"] > whole["max_new_tokens"]:
            raise ValueError(f"{where}: min_new_tokens is above max_new_tokens={whole['max_new_tokens']}: lower it.")
        if whole["use_prompt_for_scoring"] and whole["prompts"] is None:
            raise ValueError(f"{where}.use_prompt_for_scoring=true: the scenario has no prompts; set them, or false.")
        found[str(name)] = whole
    return found


def _value(where: str, key: str, value: Any) -> Any:
    kinds, default = SCENARIO[key]
    if value is None:
        if key in ("n_samples", "max_new_tokens"):
            raise ValueError(f"{where} must be given: how many samples, and how long the longest is, has no default.")
        return default
    if kinds == (float,) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ValueError(f"{where}={value}: expected {WORDS[kinds[0]]}.")
    allowed = _SCENARIO_RANGES.get(key)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}={value}: must be a finite number.")
    if allowed and not allowed[0](value):
        raise ValueError(f"{where}={value}: must be {allowed[1]}.")
    return value


def check_generation(config: DictConfig) -> None:
    """Refuses what cannot be sampled, measured or scored; nothing is imported or read for it but where files are.

    Raises:
        ValueError: naming the key and the fix.
    """
    section = config.generation
    scenarios = scenarios_of(section)
    for metric in section.metrics:
        try:
            text_metric(str(metric))
        except ValueError as error:
            raise ValueError(f"generation.metrics: {error}") from None
    for name, scenario in scenarios.items():
        where = f"generation.scenarios.{name}"
        if scenario["max_new_tokens"] >= config.model.max_length:
            raise ValueError(
                f"{where}.max_new_tokens={scenario['max_new_tokens']} and the token before them do not fit "
                f"model.max_length={config.model.max_length}: lower the first or raise the second."
            )
        if scenario["prompts"] is not None:
            check_file(f"{where}.prompts", str(prompt_file(scenario["prompts"])))
        if scenario["hits_threshold"] is not None and not has_scorer(config):
            raise ValueError(f"{where}.hits_threshold: nothing is scored; choose a scorer=NAME, or leave it out.")
    if config.mode == "generate" and not scenarios:
        raise ValueError(
            "mode=generate: the run has no scenarios; add one, as in ++generation.scenarios.free.n_samples=256 "
            "++generation.scenarios.free.max_new_tokens=64."
        )
    _check_kl(config)
    _check_red_team(config)
    for section in ("kl", "red_team"):
        if config[section].base_url is not None and {"@", "?"} & {*config[section].base_url}:
            raise ValueError(
                f"{section}.base_url holds a user, a password or a ?query, which would be saved with the config: leave "
                "them out, and set OPENAI_API_KEY to the key."
            )


def _check_kl(config: DictConfig) -> None:
    section = config.kl
    if config.mode == "kl" and section.reference is None and section.documents is None:
        raise ValueError("mode=kl: set kl.reference=MODEL, or kl.documents=FILE.jsonl for bits per byte alone.")
    if config.mode == "train" and section.every is not None and section.reference is None:
        raise ValueError("kl.every: there is nothing to measure from; set kl.reference=MODEL.")
    if section.documents is not None:
        check_file("kl.documents", section.documents)
    if section.aligned_threshold is not None and section.documents is None:
        raise ValueError("kl.aligned_threshold is of documents: set kl.documents=FILE.jsonl, or leave it out.")
    if section.reference is not None and section.max_new_tokens >= config.model.max_length:
        raise ValueError(
            f"kl.max_new_tokens={section.max_new_tokens} and the token before them do not fit "
            f"model.max_length={config.model.max_length}: lower the first or raise the second."
        )


def _check_red_team(config: DictConfig) -> None:
    if config.mode != "red_team":
        return
    section = config.red_team
    for key in ("attacker", "prompts"):
        if section[key] is None:
            raise ValueError(f"mode=red_team needs red_team.{key}: see the comments in config/config.yaml.")
    check_file("red_team.prompts", str(prompt_file(section.prompts)))
    if not has_scorer(config):
        raise ValueError("mode=red_team: nothing says how bad a sample is; choose a scorer=NAME.")
    if section.n_shots > section.n_prompts:
        raise ValueError(f"red_team.n_shots={section.n_shots}: the pool begins with {section.n_prompts}; lower it.")
    if section.continuation_min_tokens > section.continuation_tokens:
        raise ValueError("red_team.continuation_min_tokens is above continuation_tokens: lower it.")


def has_scorer(config: DictConfig) -> bool:
    """Whether the config names a scorer."""
    return config.get("scorer") is not None and config.scorer.get("kind") is not None


def prompt_file(given: str) -> Path:
    """A file of prompts: where its path says, or what comes with the project under that path."""
    path = Path(given).expanduser()
    return path if path.exists() or not (ROOT / path).is_file() else ROOT / path


def check_file(key: str, given: str) -> None:
    """Refuses a file that is not there or is empty."""
    path = Path(given).expanduser()
    if not path.is_file():
        siblings = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ValueError(f"{key}={given}: there is no such file{did_you_mean(path.name, siblings)}.")
    if path.stat().st_size == 0:
        raise ValueError(f"{key}={given}: the file is empty; every line must be one JSON object.")
