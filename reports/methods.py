"""Which runs are one method trained again, and what a method is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

Settings = tuple[tuple[str, str], ...]
"""Dotted keys and values, sorted."""

NOT_A_SETTING = frozenset(
    {
        *("seed", "exp_name", "mode", "overwrite", "device", "cache_dir", "log_every", "minimum_log_interval_secs"),
        *("wandb", "n_samples", "samples_dir", "split", "sample_reference", "export_dir", "push_to"),
        *("save_every", "keep_last", "keep_optimizer", "save_in_background", "keep_best", "intermediate_checkpoints"),
        *("n_eval_examples", "eval_every", "do_first_eval", "cache_reference", "model.eval_batch_size"),
        *("corpus", "text_key", "documents_path", "scoring_processes", "cache_scores"),
        *("model.tokens_per_microbatch", "model.activation_checkpointing", "model.compile"),
    }
)
"""Keys of a config (with those of LOOKED_AT) that do not make a run another method: they change neither what is trained
nor how it answers a prompt."""
LOOKED_AT = ("wandb.", "generation.", "kl.", "red_team.", "scorer.")
"""Sections that say how a run is looked at."""
LONGEST = 100
"""Characters of a label."""


def methods_of(configs: Sequence[Mapping[str, Any]], files: Sequence[str]) -> list[str]:
    """For each run the label of its method; runs that differ in nothing but their seed have the same.

    A file without settings and without a seed is a method of its own, by its file's name.

    Args:
        configs: of the runs; empty where a file has none.
        files: their paths.

    Raises:
        ValueError: two files are of the same run, as far as their settings and seeds tell; a seed is no number.
    """
    keys: list[Settings | str] = []
    first: dict[Settings | str, dict[str | None, str]] = {}
    for config, file in zip(configs, files, strict=True):
        settings, seed = settings_of(flatten(config)), _seed_of(config, file)
        keys.append(settings if settings or seed is not None else file)
        others = first.setdefault(keys[-1], {})
        if others and (seed is None or None in others):
            raise ValueError(
                f"{next(iter(others.values()))} and {file} are of the same run, by their settings, and not both have "
                "a seed: name each once, or give the config of each its `seed`."
            )
        if seed in others:
            raise ValueError(
                f"{others[seed]} and {file} are of the same run, by their settings and their seed: name each once."
            )
        others[seed] = file
    return [_names(first)[key] for key in keys]


def _names(methods: Mapping[Settings | str, Mapping[str | None, str]]) -> dict[Settings | str, str]:
    """A name for each; where no setting tells it from the others, that of its loss or of its first file."""
    named = [key for key in methods if not isinstance(key, str)]
    names: dict[Settings | str, str] = dict(zip(named, labels(named), strict=True))
    stems = [PurePath(key).stem for key in methods if isinstance(key, str)]
    for key, files in methods.items():
        stem = PurePath(next(iter(files.values()))).stem
        if isinstance(key, str):
            names[key] = _short(stem if stems.count(stem) == 1 else key)
        elif names[key] == "all":
            loss = dict(key).get("loss.name")
            names[key] = _short(stem if loss is None else f"loss={loss}")
    return dict(zip(names, _distinct(list(names.values())), strict=True))


def _seed_of(config: Mapping[str, Any], file: str) -> str | None:
    seed = config.get("seed")
    if seed is None:
        return None
    if not isinstance(seed, int | float | str):
        raise ValueError(f"{file}: the seed in its config must be a number, not {type(seed).__name__}: correct it.")
    for kind in (int, float):
        try:
            number = kind(str(seed))
        except ValueError:
            continue
        return str(int(number)) if number == number // 1 else str(number)  # 1, 1.0 and "1" are one seed
    return str(seed)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and their values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def settings_of(flat: Mapping[str, Any]) -> Settings:
    """What makes a run the method that it is: how it was trained, and how it was sampled.

    Of `saved_policy` and of `resume` the checkpoint's name counts (step-512), since each seed has a folder of its own.
    """
    kept = {key: value for key, value in flat.items() if key not in NOT_A_SETTING and not key.startswith(LOOKED_AT)}
    if kept.get("temperature") == 0:
        kept.pop("top_p", None)  # the likeliest token is among the most likely ones
    for key, nothing in (("saved_policy", ("LATEST",)), ("resume", ("auto", "never"))):
        value = kept.pop(key, None)
        if value is not None and (name := _checkpoint(str(value))) not in nothing:
            kept[key] = name
    return tuple(sorted((key, str(value)) for key, value in kept.items()))


def _checkpoint(path: str) -> str:
    whole = PurePath(path)
    return (whole.parent.name if whole.suffix == ".pt" else whole.name) or path


def labels(methods: Sequence[Settings]) -> list[str]:
    """For each method the settings in which some of them differ; of another loss its name is enough.

    A label is one printable line of about 100 characters at most. Labels that would be the same are numbered.
    """
    dicts = [dict(method) for method in methods]
    keys = sorted({key for one in dicts for key in one if len({other.get(key) for other in dicts}) > 1})
    if "loss.name" in keys:
        same = {
            key: all(
                len({one.get(key) for one in dicts if one.get("loss.name") == name}) < 2
                for name in {one.get("loss.name") for one in dicts}
            )
            for key in keys
        }
        keys = ["loss.name", *(key for key in keys if key != "loss.name" and not same[key])]
    short = {key: "loss" if key == "loss.name" else key for key in keys}
    texts = [" ".join(f"{short[key]}={one[key]}" for key in keys if key in one) or "all" for one in dicts]
    return _distinct([_short(text) for text in texts])


def one_line(text: str) -> str:
    r"""The text without line breaks and what else is not printable, which becomes `\n`, `\x1b`, `\u202e` and so on."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _short(text: str) -> str:
    """One line, without its middle where it is long: values often differ at their ends."""
    text = one_line(text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 43]}...{text[-40:]}"


def _distinct(names: Sequence[str]) -> list[str]:
    distinct: list[str] = []
    for name in names:
        number, text = 1, name
        while text in distinct:
            number += 1
            text = f"{name} ({number})"
        distinct.append(text)
    return distinct
