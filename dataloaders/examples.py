"""What a data set is made of: one Example per prompt, with its generations and the feedback on them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Text = str | list[int]  # a text, or token ids that are used as they are


@dataclass
class Example:
    """One prompt, the responses to it, and what people said of them.

    Attributes:
        prompt: the conversation up to where the assistant answers, joined by the four strings given to `get_foo`.
        generations: the responses; lists of the same length describe them one by one.
        pairs: (i, j) says that generation i was preferred to generation j.
        scores: how good each generation is, higher is better; None where unknown.
        desirable: True (thumbs up), False (thumbs down) or None (not said) for each generation.
        weights: how much each generation counts in a loss (1 by default).
        logps: log-probability, in nats, under the policy that wrote the generation; None where unknown.
        sft_index: the generation that supervised fine-tuning imitates; None where none is good enough.
        system: a system turn of the example's own, in place of the one that the model's template may bring.
        rows: how many rows of the source it stands for.
        metadata: what is kept with a sample of this prompt (`facts` for the offline judge, a document's segments, ...).
    """

    prompt: Text
    generations: list[Text] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)
    desirable: list[bool | None] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    logps: list[float | None] = field(default_factory=list)
    sft_index: int | None = None
    system: str | None = None
    dataset_name: str = ""
    rows: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)

    def add(
        self,
        generation: Text,
        *,
        score: float | None = None,
        desirable: bool | None = None,
        weight: float = 1.0,
        logp: float | None = None,
    ) -> int:
        """Adds a generation, or finds the same one; returns its index. A score, flag or logp given replaces the old."""
        if generation in self.generations:
            index = self.generations.index(generation)
        else:
            index = len(self.generations)
            self.generations.append(generation)
            self.scores.append(None)
            self.desirable.append(None)
            self.weights.append(weight)
            self.logps.append(None)
        for values, value in ((self.scores, score), (self.desirable, desirable), (self.logps, logp)):
            if value is not None:
                values[index] = value
        return index

    def pair_weight(self, i: int, j: int, product: bool = False) -> float:
        """The weight of pair (i, j): the mean of its two generations' weights, or their product."""
        first, second = self.weights[i], self.weights[j]
        return first * second if product else (first + second) / 2


class Dataset:
    """The examples of one data set, by prompt, and an account of every row that was read.

    For each row of the source: `read`, then one of `add_pair`, `add_demonstration`, `example` or `drop`. A row is
    either used (it added a pair, a label, a score, a demonstration ...) or dropped under a reason, so that
    `rows == used + sum(dropped.values())` always holds. Rows with the same prompt share one Example.

    Attributes:
        name: the data set's name in `config/datasets`.
        split_by_prompt: True when `load_dataset` has to split it by a hash of the prompt (a hub source with one split),
            False when it never may; None when that depends on the files (a local `path` without `test_path` is split).
        examples: the Examples in the order of the source.
        dropped: reason -> rows.
        by_design: the reasons that belong to the data set's own selection (another language, say) and are no sign of
            data that do not fit.
    """

    def __init__(self, name: str, split_by_prompt: bool | None = None):
        self.name = name
        self.split_by_prompt = split_by_prompt
        self.examples: dict[tuple, Example] = {}
        self.dropped: Counter[str] = Counter()
        self.by_design: set[str] = set()
        self._row_positions: list[float] = []
        self._drop_positions: Counter[tuple[float, str]] = Counter()
        self._example_positions: dict[tuple, float] = {}

    @property
    def rows(self) -> int:
        return len(self._row_positions)

    @property
    def used(self) -> int:
        return self.rows - sum(self.dropped.values())

    @property
    def unusable(self) -> int:
        """Rows dropped for what is wrong with them, not by the data set's own selection."""
        return sum(rows for reason, rows in self.dropped.items() if reason not in self.by_design)

    def read(self, key: Text | None = None) -> None:
        """Counts one row of the source; to be called once for each, before it is used or dropped.

        `key` is the prompt before it is joined by the four strings. It decides on which side a row falls when the
        source is split by prompt, so that the split is the same for every model's strings. Left out, it is the first
        prompt that the row is used with; a row dropped before that counts for the training split.
        """
        self._row_positions.append(_UNPLACED if key is None else split_position(key))

    def drop(self, reason: str, *, example: Example | None = None, by_design: bool = False) -> None:
        """Says that the row counted by the last `read` is not used, and why (a few plain words).

        `example` is the Example that was asked for on this row's behalf, if one was: it then stands for one row less.
        """
        self.dropped[reason] += 1
        if example is not None:
            example.rows -= 1
        if by_design:
            self.by_design.add(reason)
        self._drop_positions[self._row_positions[-1], reason] += 1

    def example(
        self,
        prompt: Text,
        system: str | None = None,
        *,
        generations: tuple[Text, ...] = (),
        weight: float = 1.0,
        part: str = "",
    ) -> Example:
        """The Example of this prompt, made when it is new; to be called once for each row that is used for it.

        Examples of one prompt stay apart when `part` differs, and when one of the `generations` about to be added
        stands there already with another weight than `weight`.
        """
        self._place(prompt)
        key = (prompt if isinstance(prompt, str) else tuple(prompt), system or "", part)
        there = self.examples.get(key)
        if there is not None and any(
            known in generations and known_weight != weight
            for known, known_weight in zip(there.generations, there.weights, strict=True)
        ):
            key = (*key, weight)
        if key not in self.examples:
            self.examples[key] = Example(prompt, system=system, dataset_name=self.name)
            self._example_positions[key] = self._row_positions[-1]
        self.examples[key].rows += 1
        return self.examples[key]

    def add_pair(
        self, prompt: Text, chosen: Text, rejected: Text, *, system: str | None = None, weight: float = 1.0
    ) -> Example | None:
        """Uses one row (`read` comes before) that prefers `chosen` to `rejected`; the first chosen is the SFT target.

        Returns the Example, or None when the row was dropped: an empty prompt or response, two equal responses, a
        pair that is there already.
        """
        example, reason = None, unusable(prompt, chosen, rejected)
        if reason is None:
            example = self.example(prompt, system, generations=(chosen, rejected), weight=weight)
            pair = (example.add(chosen, weight=weight), example.add(rejected, weight=weight))
            if pair not in example.pairs:
                example.pairs.append(pair)
                if example.sft_index is None:
                    example.sft_index = pair[0]
                return example
            reason = "same pair again"
        self._place(prompt)
        self.drop(reason, example=example)
        return None

    def add_demonstration(
        self, prompt: Text, generation: Text, *, system: str | None = None, weight: float = 1.0
    ) -> Example | None:
        """Uses one row (`read` comes before) whose generation is to be imitated: an Example of its own.

        A document is a generation with the prompt "". Returns None when the row was dropped: nothing in it, or the
        same row again.
        """
        self._place(prompt or generation)
        before = len(self.examples)
        if is_blank(generation):
            self.drop("empty response")
            return None
        part = hashlib.sha256(str(generation).encode("utf-8", "surrogatepass")).hexdigest()
        example = self.example(prompt, system, part=part)
        if len(self.examples) == before:
            self.drop("same demonstration again", example=example)
            return None
        example.sft_index = example.add(generation, weight=weight)
        return example

    def split(self, split: str, test_fraction: float) -> Dataset:
        """One side of a source that has no test split: its examples, and exactly the rows that made them."""

        def belongs(position: float) -> bool:
            return (position < test_fraction) == (split == "test")

        share = Dataset(self.name, self.split_by_prompt)
        share.by_design = set(self.by_design)
        share._row_positions = [position for position in self._row_positions if belongs(position)]
        for (position, reason), rows in self._drop_positions.items():
            if belongs(position):
                share.dropped[reason] += rows
                share._drop_positions[position, reason] += rows
        for key, example in self.examples.items():
            if belongs(self._example_positions[key]):
                share.examples[key] = example
                share._example_positions[key] = self._example_positions[key]
        return share

    def _place(self, prompt: Text) -> None:
        """A row that was read without a key gets its place from the prompt that it is used with."""
        if not self._row_positions:
            raise ValueError(f"Data set {self.name}: call dataset.read() once for each row before the row is used.")
        if self._row_positions[-1] == _UNPLACED:
            self._row_positions[-1] = split_position(prompt)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples.values())

    def __len__(self) -> int:
        return len(self.examples)


def unusable(prompt: Text, *generations: Text) -> str | None:
    """Why a prompt with these generations cannot be used, in a few plain words; None when it can."""
    if is_blank(prompt):
        return "empty prompt"
    if any(is_blank(generation) for generation in generations):
        return "empty response"
    equal = len(generations) == 2 and generations[0] == generations[1]
    return "chosen equals rejected" if equal else None


def is_blank(text: Text) -> bool:
    """Whether there is nothing in a text (or list of token ids) but white space."""
    return not (text.strip() if isinstance(text, str) else text)


_UNPLACED = 1.0  # beyond every test fraction: the training split


def split_position(prompt: Text) -> float:
    """Where a prompt lies between 0 and 1: a function of the prompt alone, on every machine and in every order."""
    digest = hashlib.sha256(str(prompt).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48  # 6 bytes are exact in a float, so it never rounds up to 1


def in_test_split(prompt: Text, test_fraction: float) -> bool:
    """Whether a prompt falls in the test split of a source that has no split of its own."""
    return split_position(prompt) < test_fraction
