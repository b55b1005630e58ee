"""Reading a file of sampled responses, and the rows of it that a comparison needs."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Sample = dict[str, Any]  # one row: a prompt, responses under their keys, and what was kept with them

_DEEPEST = 100  # levels of a file's JSON; what reads and writes it calls itself for each
_SECRET_NAMES = re.compile(
    r"api_?key|secret|passw(or)?d|credential|authorization|(^|_)(access|auth|api|hf|hub|bearer|wandb)_?token|^(token|key)$",
    re.IGNORECASE,
)
_SECRET_VALUES = re.compile(r"\b(sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{20,})")


@dataclass(frozen=True)
class Samples:
    """The rows of a samples file.

    Attributes:
        exp_name: the run that wrote the responses: `config.exp_name`, else the file's own name.
        config: the run's configuration as the file has it; empty where there is none.
        rows: one dict for each sampled prompt.
    """

    exp_name: str
    config: dict[str, Any]
    rows: list[Sample]


def read_samples(path: str, response_keys: tuple[str, ...], history_key: str) -> Samples:
    """Reads `{sampled_at, config, samples: [...]}`, or a bare array of objects, and checks the keys that are asked for.

    Raises:
        ValueError: the file is missing, is not JSON or holds no samples; a key is missing or is not text. The message
            names the keys that are there, or the row (counted from 0).
    """
    content = _parse(path)
    if _is_deeper(content, _DEEPEST):
        raise ValueError(f"{path} is malformed JSON: it is nested more than {_DEEPEST} levels deep")
    config: dict[str, Any] = {}
    rows = content
    if isinstance(content, dict):
        if "samples" not in content:
            raise ValueError(f"{path} has no `samples`; its keys are: {', '.join(content) or 'none'}")
        rows, config = content["samples"], content.get("config") or {}
        if not isinstance(config, dict):
            raise ValueError(f"{path}: `config` must be an object, not {type(config).__name__}")
    if not isinstance(rows, list):
        raise ValueError(f"{path}: the samples must be an array of objects, not {type(rows).__name__}")
    if not rows:
        raise ValueError(f"{path} holds no samples; write some with `python eval.py ++mode=sample`")
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: sample {index} must be an object, not {type(row).__name__}")
    if len(set(response_keys)) < len(response_keys):
        raise ValueError(
            f"candidate and baseline are both `{response_keys[0]}`; name two different keys (-ck, -bk), or another "
            "file whose responses are the baseline (-bf)"
        )
    for key in (*response_keys, history_key):
        _check_key(path, rows, key)
    for index, row in enumerate(rows):
        _check_types(path, index, row, response_keys, history_key)
    return Samples(str(config.get("exp_name") or Path(path).stem), config, rows)


def _parse(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))  # some editors write a byte order mark
    except FileNotFoundError:
        folder = Path(path).parent
        names = [entry.name for entry in folder.glob("*.json")] if folder.is_dir() else []
        raise ValueError(f"there is no samples file {path}{_did_you_mean(Path(path).name, names)}") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder; name the samples file in it") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}: {error.msg}"
        hint = "; JSON Lines? Make it one array" if error.msg == "Extra data" else "; was its writing interrupted?"
        raise ValueError(f"{path} is not valid JSON ({place}){hint}") from None
    except RecursionError:
        raise ValueError(f"{path} is malformed JSON: it is nested more than {_DEEPEST} levels deep") from None
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f"{path} is malformed JSON: {error}") from None


def _is_deeper(content: Any, levels: int) -> bool:
    """Whether lists and objects stand in each other deeper than that; without recursion, which would run out."""
    level = [content]
    for _ in range(levels):
        level = [part for parts in level if isinstance(parts, dict | list) for part in _parts(parts)]
    return bool(level)


def _parts(parts: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return parts.values() if isinstance(parts, dict) else parts


def _did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean `{close[0]}`?" if close else ""


def _check_key(path: str, rows: list[Sample], key: str) -> None:
    lacking = [index for index, row in enumerate(rows) if key not in row]
    if not lacking:
        return
    if len(lacking) == len(rows):
        known = list(dict.fromkeys(name for row in rows for name in row))
        hint = _did_you_mean(key, known)
        raise ValueError(f"no sample in {path} has the key `{key}`; the keys are: {', '.join(known)}{hint}")
    shown = ", ".join(map(str, lacking[:5])) + (", ..." if len(lacking) > 5 else "")
    raise ValueError(f"{path}: {len(lacking)} of {len(rows)} samples lack the key `{key}` (samples {shown}, from 0)")


def _check_types(path: str, index: int, row: Sample, response_keys: tuple[str, ...], history_key: str) -> None:
    for key in response_keys:
        if not isinstance(row[key], str):
            raise ValueError(f"{path}: sample {index}: `{key}` must be text, not {type(row[key]).__name__}")
    prompt = row[history_key]
    messages = isinstance(prompt, list) and all(isinstance(turn, dict) and "content" in turn for turn in prompt)
    if not isinstance(prompt, str) and not messages:
        raise ValueError(f"{path}: sample {index}: `{history_key}` must be text or a list of messages (role, content)")


def finish_reason(sample: Sample, key: str) -> str | None:
    """Why the response under `key` ended ("stop", "length"); None where the file does not say (a person wrote it)."""
    return sample.get("finish_reason" if key == "policy" else f"{key}_finish_reason")


def prompt_text(prompt: str | list[dict[str, Any]]) -> str:
    """The prompt as a judge reads it: text as it is; of messages, each one's role and content.

    Two rows with the same text are two responses to one prompt.
    """
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{turn.get('role', 'user')}: {turn['content']}" for turn in prompt)


def choose_prompts(
    rows: list[Sample], history_key: str, maximum: int | None, seed: int, shared: Collection[str] | None = None
) -> list[Sample]:
    """All rows of at most `maximum` prompts, in the file's order.

    The choice depends on the seed and the prompts alone, not on their order, and a smaller one is part of every larger
    one, so that judgments which were paid for with a small `maximum` serve a larger one.

    Args:
        shared: what is chosen from (see `shared_prompts`), so that of several files the same prompts are chosen; None
            for all prompts of these rows. Without a `maximum` all rows are taken.
    """
    prompts = set(shared or (prompt_text(row[history_key]) for row in rows))
    if maximum is None or (shared is None and maximum >= len(prompts)):
        return rows

    def place(prompt: str) -> bytes:
        return hashlib.sha256(f"{seed} {prompt}".encode("utf-8", "surrogatepass")).digest()

    chosen = set(sorted(prompts, key=place)[:maximum])
    return [row for row in rows if prompt_text(row[history_key]) in chosen]


def word_lengths(rows: list[Sample], key: str, history_key: str) -> list[float]:
    """Length in words of the responses under `key`, one number a prompt (the mean, where it has several rows)."""
    lengths: dict[str, list[int]] = {}
    for row in rows:
        lengths.setdefault(prompt_text(row[history_key]), []).append(len(row[key].split()))
    means = [sum(of_prompt) / len(of_prompt) for of_prompt in lengths.values()]
    return [int(mean) if mean.is_integer() else round(mean, 2) for mean in means]


def without_secrets(config: Any, *values: str | None) -> Any:
    """A copy of a configuration without what looks like a key or a password, nor any of the given secret `values`."""
    if isinstance(config, dict):
        kept = {name: value for name, value in config.items() if not _SECRET_NAMES.search(str(name))}
        return {name: without_secrets(value, *values) for name, value in kept.items()}
    if isinstance(config, list):
        return [without_secrets(value, *values) for value in config]
    if isinstance(config, str):
        for value in filter(None, values):
            config = config.replace(value, "[secret]")
        return _SECRET_VALUES.sub("[secret]", config)
    return config
