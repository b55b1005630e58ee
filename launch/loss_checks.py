"""The section `loss` of a config: whether it is complete, and whether its two classes fit each other. No torch here."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from dataloaders.resolve import ROOT, did_you_mean, top_level_names
from dataloaders.row_facts import FACTS
from launch.resolve import class_words, find_source, loss_parameters, loss_settings, settings_read

REQUIRED = {
    "name": "mine",
    "trainer": "path/to/file.py:MyTrainer",
    "dataloader": "PairedPreferenceDataLoader",
    "use_reference_model": "true",
}
"""The keys that every loss's YAML has, each with an example."""

BOOLEANS = ("use_reference_model", "sync_reference", "length_normalize")
"""Keys that are true or false; a user's own YAML may use them with the same meaning."""

_BOOLEAN = re.compile(r"true|false|yes|no|on|off", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")
_FACT_OF = re.compile(rf"(?!policy_|reference_)\w+_({'|'.join(FACTS)})")


def check_section(loss: Any) -> None:
    """Refuses a section that lacks a key which every loss has, or where a text stands for something else.

    Args:
        loss: the section as a plain container; interpolations may be open.

    Raises:
        ValueError: naming the key and the fix.
    """
    if not isinstance(loss, Mapping) or not loss:
        example = ", ".join(f"{key}: {value}" for key, value in REQUIRED.items())
        raise ValueError(f"the YAML of the loss has no keys; it needs at least {example}.")
    of = f"loss={loss['name']}" if isinstance(loss.get("name"), str) else "loss"
    for key, example in REQUIRED.items():
        if loss.get(key) is None:
            near = did_you_mean(key, [one for one in loss if one not in REQUIRED])
            raise ValueError(f"{of}: its YAML has no {key}{near}: add `{key}: {example}`.")
    for key, value in loss.items():
        open_yet = isinstance(value, str) and ("${" in value or value == "???")
        if open_yet or key == "losses":
            continue
        if key in ("name", "trainer", "dataloader") and not (isinstance(value, str) and value):
            raise ValueError(f"loss.{key}={value}: expected a text, such as {REQUIRED[key]}.")
        if key == "control_tokens" and not (isinstance(value, Mapping) and {"chosen", "rejected"} <= {*value}):
            raise ValueError(f"loss.control_tokens={value}: expected a section with the keys chosen and rejected.")
        word = isinstance(value, str) and _BOOLEAN.fullmatch(value)
        if key in BOOLEANS and not isinstance(value, bool):
            quoted = " (in quotes it is a text)" if word else ""
            raise ValueError(f"loss.{key}={value!r}: expected true or false{quoted}.")
        if word and value.lower() in ("true", "false"):
            raise ValueError(
                f"loss.{key}={value!r}: in quotes it is a text, and every text counts as true: write {value.lower()}."
            )
        if isinstance(value, str) and _DECIMAL_COMMA.fullmatch(value):
            raise ValueError(f"loss.{key}={value}: that is a text; a number has a point, {value.replace(',', '.')}.")


def check_loss(loss: DictConfig) -> None:
    """Refuses a loss whose classes are not there, do not fit each other, or need what the section does not have.

    Raises:
        ValueError: naming the key and the fix.
    """
    found("loss.trainer", loss.trainer, "trainers")
    found("loss.dataloader", loss.dataloader, "dataloaders")
    parameters = loss_parameters(loss.trainer) or ()
    references = [name for name in parameters if name.startswith("reference_")]
    if references and not loss.use_reference_model:
        raise ValueError(
            f"loss={loss.name}: {loss.trainer}.loss takes {references[0]}, but loss.use_reference_model is false: "
            "set loss.use_reference_model=true."
        )
    missing = [name for name in loss_settings(loss.trainer) or () if name not in loss]
    if missing:
        raise ValueError(
            f"loss={loss.name}: {loss.trainer} needs loss.{missing[0]}, and the YAML of this loss does not have it: "
            "add it there, with a comment."
        )
    for key in settings_read(loss.trainer):
        if key not in loss:
            raise ValueError(missing_key(f"{loss.trainer}.loss", key, loss))
    if loss.get("beta") == 0 and "beta" not in (class_words(loss.trainer, "trainers", "may_be_zero") or ()):
        raise ValueError(
            f"loss.beta=0 must be above 0 for loss={loss.name} (where it is the weight of a term, write "
            '`may_be_zero = ("beta",)` in the trainer\'s class).'
        )
    if loss.get("desirable_weight") == loss.get("undesirable_weight") == 0:
        raise ValueError("loss.desirable_weight and loss.undesirable_weight are both 0: nothing would be learned.")
    _check_loader(loss, parameters)


def missing_key(who: str, key: str, loss: Mapping[str, Any]) -> str:
    """What to say of a key that a loss reads and its section does not have."""
    near = did_you_mean(key, [str(one) for one in loss])
    return f"{who} reads config.loss.{key}, and the YAML of loss={loss['name']} does not have it{near}: add it there."


def found(key: str, name: str, package: str) -> None:
    """Refuses a name that is not there, whose key this is."""
    try:
        find_source(name, package)
    except ValueError as error:
        raise ValueError(f"{key}={name}: {error}") from error


def _check_loader(loss: DictConfig, parameters: tuple[str, ...]) -> None:
    """Refuses a DataLoader whose rows lack a response or a fact that the trainer needs, or that lacks a key itself."""
    roles, offered = class_words(loss.trainer, "trainers"), class_words(loss.dataloader, "dataloaders")
    if any("_KL_" in name for name in parameters) and roles is not None:
        roles = (*roles, "KL")
    if roles is not None and offered is not None and not set(roles) <= set(offered):
        raise ValueError(
            f"loss={loss.name}: {loss.trainer} needs rows with {' and '.join(roles)}, {loss.dataloader} has "
            f"{' and '.join(offered)}: {_other_loader(loss, roles, ()) or 'no DataLoader here has it, name your own'}."
        )
    named = [match[1] for name in parameters if (match := _FACT_OF.fullmatch(name))]
    reads = [*(class_words(loss.trainer, "trainers", "reads") or ()), *(FACTS[kind] for kind in named)]
    gives = class_words(loss.dataloader, "dataloaders", "gives")
    missing = [] if gives is None else [fact for fact in reads if fact not in gives]
    if missing:
        other = _other_loader(loss, roles or (), reads)
        raise ValueError(silent_rows(f"loss={loss.name}: {loss.trainer}", loss.dataloader, missing[0], other))
    for key in class_words(loss.dataloader, "dataloaders", "settings") or ():
        if key not in loss:
            raise ValueError(missing_setting(loss, key))


def silent_rows(who: str, loader: str, fact: str, other: str | None) -> str:
    """What to say of a DataLoader whose rows do not say a fact that a loss needs."""
    return (
        f"{who} needs rows that say {fact!r}, and those of {loader} do not: {f'{other}, or, ' if other else ''}if a "
        f'DataLoader of your own puts it in its rows, write `gives = ("{fact}",)` in its class.'
    )


def missing_setting(loss: Mapping[str, Any], key: str) -> str:
    """What to say of a key that a DataLoader takes and the section does not have."""
    return (
        f"loss={loss['name']}: {loss['dataloader']} takes loss.{key}, and the YAML of this loss does not have it: set "
        "another loss.dataloader, or add it there (config/loss/csft.yaml has one)."
    )


def _other_loader(loss: DictConfig, roles: tuple[str, ...], reads: list[str] | tuple[str, ...]) -> str | None:
    """The first of our DataLoaders, those with the fewest roles first, that has all that is needed; as a fix."""
    names = set()
    for path in sorted((ROOT / "dataloaders").glob("*.py")):
        nodes = top_level_names(path)[0].items()
        names |= {name for name, node in nodes if isinstance(node, ast.ClassDef) and name.endswith("DataLoader")}
    of = {
        name: [class_words(name, "dataloaders", word) or () for word in ("roles", "gives", "settings")]
        for name in sorted(names)
    }
    for name, (own, gives, settings) in sorted(of.items(), key=lambda item: len(item[1][0])):
        if set(roles) <= set(own) and set(reads) <= set(gives) and all(key in loss for key in settings) and own:
            return f"set loss.dataloader={name}"
    return None
