"""The user's own rows, without code: the shape of a file is told from the keys of its first row.

| shape | keys |
|---|---|
| pairs | prompt, chosen, rejected; or chosen, rejected as two whole conversations |
| feedback | prompt, completion, label (true / false, or 1 / 0) |
| scored | prompt, completions, scores |
| demonstrations | messages; or prompt, completion |
| documents | text, and as it likes segments, scores |

Every row may have a `weight`. What other keys there are goes to the Example's metadata.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from dataloaders.datasets.conversation import (
    TurnStrings,
    demonstration,
    describe,
    flaw,
    join_turns,
    parse_turns,
    split_key,
)
from dataloaders.datasets.rows import field, load_rows
from dataloaders.datasets.scored import rank_by_score
from dataloaders.examples import Dataset, Example, Text, is_blank, unusable

SHAPES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # shape -> (keys it needs, keys it may have)
    "pairs": (("prompt", "chosen", "rejected"), ("weight",)),
    "pairs of conversations": (("chosen", "rejected"), ("weight",)),
    "feedback": (("prompt", "completion", "label"), ("weight",)),
    "scored": (("prompt", "completions", "scores"), ("weight",)),
    "demonstrations as conversations": (("messages",), ("weight",)),
    "demonstrations": (("prompt", "completion"), ("weight",)),
    "documents": (("text",), ("weight", "segments", "scores")),
}


class LocalRow(NamedTuple):
    """A row, and where and for what it is read."""

    where: str
    values: dict[str, Any]
    weight: float
    strings: TurnStrings
    dataset: Dataset


def get_local(
    split: str,
    human_prefix: str,
    human_suffix: str,
    assistant_prefix: str,
    assistant_suffix: str,
    *,
    name: str = "local",
    path: str | list[str] | None = None,
    test_path: str | list[str] | None = None,
    score_pairs: str = "best_worst",
    desirable_threshold: float | None = None,
) -> Dataset:
    """Reads rows of any one shape of the table above.

    Args:
        score_pairs: which pairs scored completions make: "best_worst" (one a prompt) or "all" (every two that differ).
        desirable_threshold: a scored completion at or above it is desirable, below it undesirable; None: above or below
            the mean of its prompt's scores, and neither when it equals the mean.

    SFT targets: the chosen, the first desirable, the best scored, or the demonstrated generation.
    """
    strings = TurnStrings(human_prefix, human_suffix, assistant_prefix, assistant_suffix)
    dataset = Dataset(name)
    shape = None
    for where, values in load_rows(split, name=name, path=path, test_path=test_path):
        this_shape = recognise(values, where)
        shape = shape or this_shape
        if this_shape != shape:
            raise ValueError(
                f"{where}: this row has the keys of {this_shape} ({', '.join(SHAPES[this_shape][0])}), but the rows "
                f"before it are {shape} ({', '.join(SHAPES[shape][0])}); put each shape into a file of its own."
            )
        example = _READERS[shape](LocalRow(where, values, _weight(values, where), strings, dataset))
        if example is not None:
            known = {key for keys in SHAPES[shape] for key in keys}
            if shape == "documents":
                known -= {"segments", "scores"}
            for key, value in values.items():
                if key not in known:
                    example.metadata.setdefault(key, value)
    if shape == "scored":
        rank_by_score(dataset, score_pairs, desirable_threshold)
    return dataset


def recognise(row: dict[str, Any], where: str) -> str:
    """The shape of a row by its keys; ValueError with the keys of the nearest shape when there is none."""
    for shape, (needed, optional) in SHAPES.items():
        if all(key in row for key in needed):
            for key in row:
                near = difflib.get_close_matches(key, [one for one in optional if one not in row], n=1, cutoff=0.8)
                if key not in needed + optional and near:
                    raise ValueError(f"{where}: unknown key {key!r}; did you mean {near[0]!r}? Rename it, or drop it.")
            return shape
    shape, needed = max(
        ((shape, needed) for shape, (needed, _) in SHAPES.items()),
        key=lambda candidate: sum(_nearness(key, row) for key in candidate[1]) / len(candidate[1]),
    )
    missing = [key for key in needed if key not in row]
    hints = [
        f"did you mean {key!r} by {near[0]!r}?"
        for key in missing
        if (near := difflib.get_close_matches(key, [one for one in row if one not in needed], n=1))
    ]
    shapes = "; ".join(f"{one}: {', '.join(keys)}" for one, (keys, _) in SHAPES.items())
    raise ValueError(
        f"{where}: a row with the keys {', '.join(map(repr, row)) or '(none)'} is of no known shape. "
        f"The nearest, {shape}, needs {', '.join(needed)}{': ' + ' '.join(hints) if hints else '.'} "
        f"The shapes are {shapes}."
    )


def _nearness(key: str, row: dict[str, Any]) -> float:
    return max((difflib.SequenceMatcher(None, key, one).ratio() for one in row), default=0.0)


def _weight(row: dict[str, Any], where: str) -> float:
    weight = row.get("weight")
    if weight is None:
        return 1.0
    if not _is_number(weight) or weight < 0:
        raise ValueError(f"{where}: `weight` must be a finite number, 0 or more, not {describe(weight)}.")
    return float(weight)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_scores(scores: list[Any], where: str) -> None:
    for number, score in enumerate(scores, 1):
        if not _is_number(score):
            raise ValueError(f"{where}: score {number} must be a finite number, not {describe(score)}.")


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int and one >= 0 for one in value)


def _prompt(row: LocalRow) -> tuple[Text, str | None, str | None]:
    """(prompt, system, flaw) from a text (one user turn), a message list, or token ids; counts the row as read."""
    value = row.values["prompt"]
    if _is_ids(value):
        row.dataset.read(value)
        return value, None, None
    if isinstance(value, str):
        system, turns = None, [{"role": "user", "content": value.strip()}]
    else:
        system, turns = parse_turns(value, row.where, "prompt")
    row.dataset.read(split_key(turns, system))
    return join_turns(turns, row.strings), system, flaw(turns)


def _response(row: LocalRow, value: Any, name: str) -> Text:
    """A response from a text, a list of one assistant message, or token ids."""
    if _is_ids(value):
        return value
    if isinstance(value, list):
        system, turns = parse_turns(value, row.where, name)
        if system is None and [turn["role"] for turn in turns] == ["assistant"]:
            return turns[0]["content"]
        raise ValueError(
            f"{row.where}: `{name}` beside `prompt` must be one response: a text, token ids or a list of one assistant "
            "message. Whole conversations go under `chosen` and `rejected` without a `prompt`."
        )
    if not isinstance(value, str):
        raise ValueError(
            f"{row.where}: `{name}` must be a text, a list of messages or token ids, not {describe(value)}."
        )
    return value.strip()


def _dropped(row: LocalRow, reason: str | None) -> bool:
    if reason:
        row.dataset.drop(reason)
    return bool(reason)


def _read_pair(row: LocalRow) -> Example | None:
    if any(
        isinstance(row.values[key], list) and _begins_with_prompt(row.values[key]) for key in ("chosen", "rejected")
    ):
        return _read_conversations(row)
    prompt, system, reason = _prompt(row)
    chosen, rejected = (_response(row, row.values[key], key) for key in ("chosen", "rejected"))
    if _dropped(row, reason):
        return None
    return row.dataset.add_pair(prompt, chosen, rejected, system=system, weight=row.weight)


def _begins_with_prompt(messages: list[Any]) -> bool:
    """Many files repeat the prompt at the head of both conversations, beside the `prompt` itself."""
    return len(messages) > 1 and isinstance(messages[0], dict) and messages[0].get("role") in ("system", "user")


def _read_conversations(row: LocalRow) -> Example | None:
    (system, chosen), (rejected_system, rejected) = (
        parse_turns(row.values[key], row.where, key) for key in ("chosen", "rejected")
    )
    prompt = row.values.get("prompt")
    if prompt is not None:
        turns = (
            [{"role": "user", "content": prompt.strip()}]
            if isinstance(prompt, str)
            else parse_turns(prompt, row.where, "prompt")[1]
        )
        if turns[-1:] != chosen[:-1][-1:]:
            raise ValueError(
                f"{row.where}: `chosen` is a whole conversation that does not go on from `prompt`; "
                "leave out one of the two."
            )
    row.dataset.read(split_key(chosen[:-1], system))
    if chosen[:-1] != rejected[:-1] or system != rejected_system:
        reason: str | None = "prompts of chosen and rejected differ"
    elif chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        reason = "conversation does not end with the assistant"
    else:
        reason = flaw(chosen[:-1])
    if _dropped(row, reason):
        return None
    return row.dataset.add_pair(
        join_turns(chosen[:-1], row.strings),
        chosen[-1]["content"],
        rejected[-1]["content"],
        system=system,
        weight=row.weight,
    )


def _read_feedback(row: LocalRow) -> Example | None:
    label = row.values["label"]
    if not isinstance(label, bool | int | float) or label not in (0, 1):
        raise ValueError(f"{row.where}: `label` must be true or false (or 1 or 0), not {describe(label)}.")
    prompt, system, reason = _prompt(row)
    completion = _response(row, row.values["completion"], "completion")
    if _dropped(row, reason or unusable(prompt, completion)):
        return None
    example = row.dataset.example(prompt, system, generations=(completion,), weight=row.weight)
    index = example.add(completion, weight=row.weight)
    known = example.desirable[index]
    if known is not None:
        reason = "same label again" if known == bool(label) else "label contradicts an earlier row"
        row.dataset.drop(reason, example=example)
        return None
    example.desirable[index] = bool(label)
    if label and example.sft_index is None:
        example.sft_index = index
    return example


def _read_scored(row: LocalRow) -> Example | None:
    completions, scores = (field(row.values, key, row.where, list) for key in ("completions", "scores"))
    if len(completions) != len(scores):
        raise ValueError(f"{row.where}: {len(completions)} completions but {len(scores)} scores; each needs its own.")
    _check_scores(scores, row.where)
    prompt, system, reason = _prompt(row)
    responses = [_response(row, value, "completions") for value in completions]
    pairs = [(text, score) for text, score in zip(responses, scores, strict=True) if not is_blank(text)]
    if _dropped(row, reason or (None if pairs else "empty response")):
        return None
    example = row.dataset.example(prompt, system, generations=tuple(text for text, _ in pairs), weight=row.weight)
    before = len(example.generations)
    for text, score in pairs:
        if text not in example.generations:  # of equal completions the first score counts
            example.add(text, score=float(score), weight=row.weight)
    if len(example.generations) == before:
        row.dataset.drop("same completions again", example=example)
        return None
    return example


def _read_messages(row: LocalRow) -> Example | None:
    shown = demonstration(*parse_turns(row.values["messages"], row.where, "messages"), row.strings)
    row.dataset.read(shown.key)
    if _dropped(row, shown.flaw):
        return None
    return row.dataset.add_demonstration(shown.prompt, shown.generation, system=shown.system, weight=row.weight)


def _read_demonstration(row: LocalRow) -> Example | None:
    prompt, system, reason = _prompt(row)
    completion = _response(row, row.values["completion"], "completion")
    if _dropped(row, reason):
        return None
    return row.dataset.add_demonstration(prompt, completion, system=system, weight=row.weight)


def _read_document(row: LocalRow) -> Example | None:
    text = row.values["text"]
    if not _is_ids(text) and not isinstance(text, str):
        raise ValueError(f"{row.where}: `text` must be a text or token ids, not {describe(text)}.")
    for key in ("segments", "scores"):
        if row.values.get(key) is not None:
            field(row.values, key, row.where, list)
    segments, scores = row.values.get("segments"), row.values.get("scores")
    _check_scores(scores or [], row.where)
    if segments and scores and len(segments) != len(scores):
        raise ValueError(f"{row.where}: {len(segments)} segments but {len(scores)} scores; each needs its own.")
    row.dataset.read(text)
    return row.dataset.add_demonstration("", text, weight=row.weight)


_READERS: dict[str, Callable[[LocalRow], Example | None]] = {
    "pairs": _read_pair,
    "pairs of conversations": _read_conversations,
    "feedback": _read_feedback,
    "scored": _read_scored,
    "demonstrations as conversations": _read_messages,
    "demonstrations": _read_demonstration,
    "documents": _read_document,
}
