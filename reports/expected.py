"""What the files of a report must hold where it reckons: a text in the place of a number is named with its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NUMBERS = ("total", "ties", "undecided", "failed")  # of a result line, beside the wins of both sides
_COUNTS = ("rows", "used", "examples")


def _expect(holds: bool, value: Any, what: str, where: str) -> None:
    if not holds:
        raise ValueError(f"{where} must be {what}, not {repr(value)[:40]}")


def number(value: Any, where: str) -> None:
    """Raises ValueError unless the value is a number, as a float may be."""
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    _expect(is_one and (isinstance(value, float) or abs(value) < 2**1023), value, "a number", where)


def optional_number(value: Any, where: str) -> None:
    """The same; null passes."""
    if value is not None:
        number(value, where)


def text(value: Any, where: str) -> None:
    """Raises ValueError unless the value is text."""
    _expect(isinstance(value, str), value, "text", where)


def mapping(value: Any, where: str) -> None:
    """Raises ValueError unless the value is an object."""
    _expect(isinstance(value, Mapping), value, "an object", where)


def check_record(record: Mapping[str, Any], where: str) -> None:
    """Of a record of metrics.jsonl all that can be drawn or summed must be numbers."""
    for name, value in record.items():
        if "/" in name or name in ("grad_norm", "eval_seconds"):
            optional_number(value, f"{where}: `{name}`")


def check_config(config: Any, where: str) -> None:
    """A run's config must be an object, with a number of evaluation examples and data sets by name."""
    mapping(config, where)
    optional_number(config.get("n_eval_examples"), f"{where}: `n_eval_examples`")
    datasets = config.get("datasets") or {}
    named = isinstance(datasets, Mapping | list) and all(isinstance(name, str) for name in datasets)
    _expect(named, datasets, "the names of data sets", f"{where}: `datasets`")


def check_account(account: Any, where: str) -> None:
    """data.json must be {data set: {split: {rows, used, examples, dropped: {reason: n}, cut: {what: n}}}}."""
    mapping(account, where)
    for name, splits in account.items():
        mapping(splits, f"{where}: `{name}`")
        for split, counts in splits.items():
            place = f"{where}: `{name}.{split}`"
            mapping(counts, place)
            for key in _COUNTS:
                number(counts.get(key), f"{place}: `{key}`")
            for key in ("dropped", "cut"):
                mapping(counts.get(key, {}), f"{place}: `{key}`")
                for what, count in counts.get(key, {}).items():
                    number(count, f"{place}: `{key}.{what}`")


def check_sample(row: Mapping[str, Any], where: str) -> None:
    """A sample's responses and facts must be text, its log-probabilities and counts numbers."""
    for key in ("policy", "reference"):
        text(row[key], f"{where}: `{key}`")
    if row.get("topic") is not None:
        text(row["topic"], f"{where}: `topic`")
    facts = row.get("facts") or []
    of_text = isinstance(facts, list) and all(isinstance(fact, str) for fact in facts)
    _expect(of_text, facts, "a list of texts", f"{where}: `facts`")
    for key in ("policy_logp", "policy_reference_logp", "policy_tokens"):
        optional_number(row.get(key), f"{where}: `{key}`")


def check_result(line: Mapping[str, Any], where: str) -> None:
    """A result line of compare.py must name its judge, and have its counts, rate and interval as numbers."""
    text(line.get("judge"), f"{where}: `judge`")
    text(line.get("rule", ""), f"{where}: `rule`")
    for side in ("candidate", "baseline"):
        mapping(line.get(side), f"{where}: `{side}`")
        number(line[side].get("wins"), f"{where}: `{side}.wins`")
    for key in _NUMBERS:
        number(line.get(key), f"{where}: `{key}`")
    optional_number(line.get("win_rate"), f"{where}: `win_rate`")
    ends = line.get("ci95")
    if ends is not None:
        _expect(isinstance(ends, list) and len(ends) == 2, ends, "two numbers", f"{where}: `ci95`")
        for end in ends:
            number(end, f"{where}: `ci95`")
