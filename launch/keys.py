"""The keys of a config: flattened, looked up, and the nearest ones to a wrong one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

_SECRET = re.compile(r"(^|_)(api_?key|token|secret|password|credentials?)$", re.IGNORECASE)


def flatten(container: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"name": "x"}} -> {"model.name": "x"}. Lists and empty sections are values."""
    flat: dict[str, Any] = {}
    for key, value in container.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def check_key(key: str, schema: Collection[str], choices: Mapping[str, Collection[str]]) -> None:
    """Refuses a key that is neither a value nor a section of the schema.

    Args:
        key: dotted.
        schema: all dotted keys of values.
        choices: for each config group, the options that it has.

    Raises:
        ValueError: with the key that was meant, as far as it can be told; a secret's name says where secrets belong.
    """
    refuse_secret(key)
    if key in schema or any(known.startswith(f"{key}.") for known in schema):
        return
    group, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    if group == "datasets" and name in choices.get("datasets", ()) and f"datasets.{name}" not in _sections(schema):
        selected = sorted({known.split(".")[1] for known in schema if known.startswith("datasets.")})
        raise ValueError(
            f"{key}: the data set {name} is not selected; select it with datasets=[{name}] "
            f"(selected: {', '.join(selected)})."
        )
    near = nearest_key(key, [*schema, *choices])
    hint = f"; did you mean {near}?" if near else "."
    inside = sorted(known for known in schema if known.startswith(f"{group}.") and known.count(".") == 1)
    if not near and inside:
        hint = f"; there are {', '.join(inside)}."
    raise ValueError(f"no YAML of this config has the key {key}{hint}")


def nearest_key(key: str, known: Collection[str]) -> str | None:
    """The known key that `key` was meant to be: the same last part elsewhere, or nearly the same key or last part."""
    leaf = key.rpartition(".")[2]
    leaves: dict[str, list[str]] = {}
    for one in known:
        leaves.setdefault(one.rpartition(".")[2], []).append(one)
    same_leaf = leaves.get(leaf, [])
    if len(same_leaf) == 1:
        return same_leaf[0]
    whole = difflib.get_close_matches(key, same_leaf or known, n=1, cutoff=0.75)
    if whole or same_leaf:
        return (whole or same_leaf)[0]
    near = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.75)
    return difflib.get_close_matches(key, leaves[near[0]], n=1, cutoff=0.0)[0] if near else None


def refuse_secret(key: str) -> None:
    """Configs are saved and sent to wandb, so a key that looks like a secret's is refused; its value is never shown."""
    if _SECRET.search(key.rpartition(".")[2]):
        raise ValueError(
            f"{key}: a config is saved with the run, so no secret belongs in it. Set the environment variable that its "
            "service reads (HF_TOKEN, WANDB_API_KEY, OPENAI_API_KEY)."
        )


def _sections(schema: Collection[str]) -> set[str]:
    return {".".join(key.split(".")[:2]) for key in schema if "." in key}
