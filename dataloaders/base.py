"""The base of all DataLoaders: data sets in, the rows of one optimizer step after another out."""

from __future__ import annotations

import hashlib
import itertools
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dataloaders.batches import Row
from dataloaders.examples import Dataset, Example
from dataloaders.tokenization import ExampleTokenizer, TokenizedExample

log = logging.getLogger(__name__)

EQUAL_WHEN_CUT = "responses equal after cutting"


@dataclass(frozen=True)
class Source:
    """A data set as part of a mixture.

    Attributes:
        weight: how often each of its rows is seen in an epoch (0.5: a half, chosen anew each epoch).
        n_examples: at most this many of its rows are used; None uses all.
    """

    dataset: Dataset
    weight: float = 1.0
    n_examples: int | None = None


class DataLoader(ABC):
    """Yields the rows of each optimizer step. A subclass says, in `rows`, what one example gives.

    The order is a function of (seed, epoch) and of nothing else. Every epoch visits each row as often as its data set's
    weight says; the last step of an epoch may be smaller.

    Args:
        sources: the data sets; the same prompt in two of them stays two examples.
        tokenize: turns examples into tokens.
        split: train or test.
        batch_size: rows of an optimizer step, over all processes.
        n_epochs, n_examples: the loader ends with whichever comes first; n_examples None is no limit.
        shuffle: False keeps the order of the data sets in every epoch.
        cache_dir: where tokens are kept; None keeps none.

    Raises:
        ValueError: when no row is left.
    """

    roles: ClassVar[tuple[str, ...]]
    """The responses that each of its rows has; a trainer names the roles that it needs."""

    gives: ClassVar[tuple[str, ...]] = ()
    """What each of its rows says beside them: `desirable`, `reward`, `advantage`, `group` (see `Row`)."""

    settings: ClassVar[tuple[str, ...]] = ()
    """The keys of the loss's YAML that it takes."""

    most_shown: ClassVar[int | None] = None
    """Rows that mode=inspect looks at; None: all."""

    def __init__(
        self,
        sources: Sequence[Source],
        tokenize: ExampleTokenizer,
        *,
        split: str = "train",
        batch_size: int = 32,
        n_epochs: int = 1,
        n_examples: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        cache_dir: str | Path | None = None,
    ):
        self.split = split
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.n_examples = n_examples
        self.seed = seed
        self.shuffle = shuffle
        self.max_length = tokenize.max_length
        self.account: dict[str, dict[str, Any]] = {}
        self.data: list[Row] = []
        self._members: list[tuple[Source, range]] = []
        for number, source in enumerate(sources):
            start = len(self.data)
            self._read(source, number, tokenize, cache_dir)
            self._members.append((source, range(start, len(self.data))))
        if not self.data:
            raise ValueError(f"no {split} example is left for {type(self).__name__}: {self.reasons()}")

    @abstractmethod
    def rows(self, example: Example, tokens: TokenizedExample) -> Iterator[Row]:
        """The rows that one example gives, in a fixed order; `self.skip(reason)` counts what gives none."""

    def skip(self, reason: str, rows: int = 1, by_design: bool = True) -> None:
        """Counts rows of the source that give no row here. `by_design` False: something is wrong with them."""
        self._skipped[reason] += rows
        if not by_design:
            self._unusable += rows

    def _read(self, source: Source, number: int, tokenize: ExampleTokenizer, cache_dir: str | Path | None) -> None:
        dataset = source.dataset
        self._skipped: Counter[str] = Counter()
        self._unusable = dataset.unusable
        examples = list(dataset)
        _refuse_unknown_tokens(examples, len(tokenize.tokenizer))
        tokenized = tokenize(examples, cache_dir)
        cut: Counter[str] = Counter()
        groups = []
        for example, tokens in zip(examples, tokenized, strict=True):
            if tokens.dropped:
                self.skip(tokens.dropped, example.rows, by_design=False)
                continue
            before = self._skipped.total()
            groups.append(list(self.rows(example, tokens)))
            self._check_rows(groups[-1])
            if not groups[-1] and self._skipped.total() == before:
                self.skip("gave no row", example.rows)
            if groups[-1]:
                cut["prompts"] += tokens.prompt_cut
                cut["responses"] += sum(response.cut for response in tokens.responses)
                cut["rows"] += example.rows * (tokens.prompt_cut or any(response.cut for response in tokens.responses))
        kept, rows = self._capped(groups, source.n_examples, number)
        self.data += rows
        dropped = dataset.dropped + self._skipped
        self.account[dataset.name] = {
            "rows": dataset.rows,
            "used": dataset.rows - sum(dropped.values()),
            "dropped": dict(sorted(dropped.items())),
            "cut": {"prompts": cut["prompts"], "responses": cut["responses"]},
            "examples": kept,
        }
        self._refuse_bad_data(dataset.name, cut["rows"])

    def _check_rows(self, rows: list[Row]) -> None:
        """Every row must have the responses that the class promises, but those that `finish` adds from other rows."""
        for row in rows:
            if not isinstance(row, Row) or not set(row.responses) & set(self.roles):
                raise TypeError(f"{type(self).__name__}.rows must yield Rows with responses {', '.join(self.roles)}.")

    def _capped(self, groups: list[list[Row]], limit: int | None, number: int) -> tuple[int, list[Row]]:
        """The rows of all examples, or of examples chosen by the seed until `limit` rows are there."""
        count = sum(map(len, groups))
        if limit is None or count <= limit:
            return count, list(itertools.chain(*groups))
        order = np.random.default_rng([self.seed, number]).permutation(len(groups))
        chosen, total = set(), 0
        for index in order:
            if total >= limit:
                break
            chosen.add(index)
            total += len(groups[index])
        rows = [row for index, group in enumerate(groups) if index in chosen for row in group]
        return limit, rows[:limit]

    def _refuse_bad_data(self, name: str, cut: int) -> None:
        account = self.account[name]
        bad = self._unusable + cut
        if bad * 2 > account["rows"]:
            raise ValueError(
                f"{bad} of the {account['rows']} {self.split} rows of {name} are dropped or cut: {self.reasons()}. "
                "Raise model.max_length and model.max_prompt_length, or mend the data (`mode=inspect` shows them)."
            )

    def reasons(self) -> str:
        """What was dropped and cut, in words."""
        texts = []
        for name, account in self.account.items():
            reasons = [f"{count} {reason}" for reason, count in account["dropped"].items()]
            reasons += [f"{count} {what} cut" for what, count in account["cut"].items() if count]
            texts.append(
                f"{name}: {account['rows']} rows, {account['used']} used ({'; '.join(reasons) or 'none dropped'})"
            )
        return ", ".join(texts)

    def arrange(self, indices: np.ndarray) -> list[np.ndarray]:
        """Cuts an epoch's order into steps; a subclass that needs certain rows together overrides it."""
        return [indices[start : start + self.batch_size] for start in range(0, len(indices), self.batch_size)]

    def finish(self, order: np.ndarray, start: int, stop: int) -> list[Row]:
        """The rows from `start` to `stop` of an epoch; a subclass that adds a role from other rows overrides it."""
        return [self.data[index] for index in order[start:stop]]

    def steps(self, epoch: int) -> list[np.ndarray]:
        """The steps of an epoch as indices into `data`: what the order is made of, without the rows."""
        generator = np.random.default_rng([self.seed, epoch])
        parts = []
        for source, members in self._members:
            whole = int(source.weight)
            part = round((source.weight - whole) * len(members))
            chosen = generator.permutation(len(members))[:part] if self.shuffle else np.arange(part)
            parts += [np.asarray(members)] * whole + [np.asarray(members)[chosen]]
        order = np.concatenate(parts).astype(int)
        return self.arrange(generator.permutation(order) if self.shuffle else order)

    def epoch(self, epoch: int) -> Iterator[list[Row]]:
        """The rows of each step of one epoch."""
        steps, start = self.steps(epoch), 0
        order = np.concatenate(steps)
        for step in steps:
            yield self.finish(order, start, start + len(step))
            start += len(step)

    def sizes(self) -> list[int]:
        """How many rows each step of the whole loader has."""
        sizes: list[int] = []
        for epoch in range(self.n_epochs):
            sizes += [len(step) for step in self.steps(epoch)]
        if self.n_examples is None:
            return sizes
        before = np.cumsum([0, *sizes])[:-1]
        return [
            int(min(size, self.n_examples - seen))
            for size, seen in zip(sizes, before, strict=True)
            if seen < self.n_examples
        ]

    def __iter__(self) -> Iterator[list[Row]]:
        return self.after(0)

    def after(self, steps: int) -> Iterator[list[Row]]:
        """The rows of each step after the first so many."""
        sizes = self.sizes()
        number = 0
        for epoch in range(self.n_epochs):
            count = len(self.steps(epoch))
            if number + count <= steps:  # nothing of it is asked for
                number += count
                continue
            for step in self.epoch(epoch):
                if number >= len(sizes):
                    return
                if number >= steps:
                    yield step[: sizes[number]]
                number += 1

    def state(self, steps: int) -> dict[str, Any] | None:
        """What a checkpoint after so many steps keeps of it: nothing, where `after` knows the way by itself."""
        return None

    def take_up(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` said."""
        raise NotImplementedError(f"{type(self).__name__} keeps no state")

    def digest(self) -> str:
        """Names all rows: tokens, weights and labels. Two runs of one digest and one config see the same steps."""
        digest = hashlib.blake2b(digest_size=16)
        for row in self.data:
            known = (row.weight, row.desirable, row.pair, row.reward, row.advantage, row.group, sorted(row.responses))
            digest.update(repr(known).encode())
            digest.update(row.prompt.tobytes())
            for role in sorted(row.responses):
                response = row.responses[role]
                digest.update(len(response.ids).to_bytes(8, "little"))
                digest.update(response.ids.tobytes() + response.scored.tobytes())
        return digest.hexdigest()

    def fixed_rows(self, limit: int | None) -> list[Row]:
        """Rows for evaluation: the same ones at every call, at most `limit`, whole examples chosen by the seed."""
        by_example: dict[int, list[int]] = {}
        for index, row in enumerate(self.data):
            by_example.setdefault(id(row.example), []).append(index)
        groups = list(by_example.values())
        order = np.random.default_rng([self.seed]).permutation(len(groups)) if self.shuffle else range(len(groups))
        indices = np.array(list(itertools.chain(*(groups[index] for index in order))), dtype=int)
        return self.finish(indices, 0, len(indices) if limit is None else min(limit, len(indices)))


def _refuse_unknown_tokens(examples: Sequence[Example], vocabulary: int) -> None:
    """Token ids that data bring themselves must be of this tokenizer."""
    for example in examples:
        for ids in (example.prompt, *example.generations):
            if not isinstance(ids, str) and ids and (min(ids) < 0 or max(ids) >= vocabulary):
                raise ValueError(
                    f"{example.dataset_name}: token ids from {min(ids)} to {max(ids)}, and the tokenizer has "
                    f"{vocabulary}, from 0: were they made with another tokenizer?"
                )
