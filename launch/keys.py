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
    inside = sorted(known for known in schema if known.startswith(f"{group}."))
    if group == "distributed" and "distributed.hybrid" not in schema:
        raise ValueError(f"no YAML of this config has the key {key}; choose distributed=fsdp as well, which has more.")
    near = nearest_key(key, inside or [*schema, *choices]) or nearest_key(key, schema, cutoff=1.0)
    section = key.rpartition(".")[0]
    beside = [known for known in inside if known.startswith(f"{section}.")] or inside
    listed = f"; there are {', '.join(beside)}." if beside else "; `--cfg job` prints the keys that there are."
    raise ValueError(f"no YAML of this config has the key {key}{f'; did you mean {near}?' if near else listed}")


def nearest_key(key: str, known: Collection[str], cutoff: float = 0.75) -> str | None:
    """The known key most like `key`, as a whole or in its last part; None below the cutoff (0 to 1)."""

    def likeness(one: str) -> tuple[float, float]:
        whole = difflib.SequenceMatcher(None, key, one).ratio()
        last = difflib.SequenceMatcher(None, key.rpartition(".")[2], one.rpartition(".")[2]).ratio()
        return max(whole, last), whole

    best = max(known, key=likeness, default=None)
    return best if best is not None and likeness(best)[0] >= cutoff else None


def refuse_secret(key: str) -> None:
    """Configs are saved and sent to wandb, so a key that looks like a secret's is refused; its value is never shown."""
    if _SECRET.search(key.rpartition(".")[2]):
        raise ValueError(
            f"{key}: a config is saved with the run, so no secret belongs in it. Set the environment variable that its "
            "service reads (HF_TOKEN, WANDB_API_KEY, OPENAI_API_KEY)."
        )


def _sections(schema: Collection[str]) -> set[str]:
    return {".".join(key.split(".")[:2]) for key in schema if "." in key}
