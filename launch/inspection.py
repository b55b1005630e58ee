"""mode=inspect: the data exactly as the model sees it, and an account of every row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dataloaders.base import DataLoader
from dataloaders.batches import Row
from models.files import write_whole
from scorers.printable import printable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)


def account_of(loaders: Sequence[DataLoader]) -> dict[str, Any]:
    """{data set: {split: {rows, used, dropped: {reason: n}, cut, examples}}}."""
    account: dict[str, dict[str, Any]] = {}
    for loader in loaders:
        for name, counts in loader.account.items():
            account.setdefault(name, {})[loader.split] = counts
    return account


def write_account(folder: Path, account: Mapping[str, Any]) -> None:
    """Keeps an account as data.json in a run's folder; OSError where that cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "data.json", json.dumps(account, indent=1) + "\n")


def account_table(account: Mapping[str, Mapping[str, Any]]) -> str:
    """The account as text for a terminal: a line for each data set and split, a line for each reason below it."""
    lines = [f"{'data set':<24}{'split':<7}{'rows':>9}{'used':>9}{'dropped':>9}{'examples':>10}"]
    for name, splits in account.items():
        for split, counts in splits.items():
            dropped = counts["rows"] - counts["used"]
            lines.append(
                f"{name:<24}{split:<7}{counts['rows']:>9,}{counts['used']:>9,}{dropped:>9,}{counts['examples']:>10,}"
            )
            lines += [f"{'':<31}{count:>9,} rows dropped: {reason}" for reason, count in counts["dropped"].items()]
            lines += [f"{'':<31}{count:>9,} {what} cut" for what, count in counts["cut"].items() if count]
    return printable("\n".join(lines))


def length_table(rows: Sequence[Row]) -> str:
    """Quantiles of the lengths, in tokens, of prompts and of each role's responses."""
    lengths = {"prompt": [len(row.prompt) for row in rows]}
    for role in rows[0].responses:
        lengths[role] = [len(row.responses[role].ids) for row in rows]
    lines = [f"{'tokens of':<12}" + "".join(f"{f'{quantile:.0%}':>8}" for quantile in QUANTILES)]
    for name, values in lengths.items():
        lines.append(f"{name:<12}" + "".join(f"{value:>8.0f}" for value in np.quantile(values, QUANTILES)))
    return "\n".join(lines)


def show(row: Row, tokenizer: PreTrainedTokenizerBase) -> str:
    """An example as the model sees it: special tokens included, scored tokens between the signs [[ and ]].

    It is for a terminal, which would obey control characters in the data: they are shown as `\\x1b`.
    """
    label = {True: "desirable", False: "undesirable", None: ""}[row.desirable]
    head = f"--- {row.example.dataset_name} {label} weight {row.weight:g}".replace("  ", " ")
    lines = [head, tokenizer.decode(row.prompt)]
    for role, response in row.responses.items():
        text, ids = "", response.ids
        edges = np.flatnonzero(np.diff(response.scored.astype(int))) + 1
        for part, scored in zip(np.split(ids, edges), np.split(response.scored, edges), strict=True):
            words = tokenizer.decode(part)
            text += f"[[{words}]]" if len(scored) and scored[0] else words
        lines.append(f"<{role}{', cut' if response.cut else ''}> {text}")
    return printable("\n".join(lines))


def report(loader: DataLoader, account: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    """What mode=inspect prints."""
    rows = loader.fixed_rows(loader.most_shown)
    shown = "\n".join(show(row, tokenizer) for row in rows[:3])
    return "\n\n".join([account_table(account), length_table(rows), "Three examples; [[scored tokens]]:", shown])
