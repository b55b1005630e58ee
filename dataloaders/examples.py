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
        prompt: the conversation up to where the assistant answers, already joined by the four strings given to `get_foo`.
        generations: the responses; lists of the same length describe them one by one.
        pairs: (i, j) says that generation i was preferred to generation j.
        scores: how good each generation is, higher is better; None where unknown.
        desirable: True (thumbs up), False (thumbs down) or None (not said) for each generation.
        weights: how much each generation counts in a loss (1 by default).
        logps: log-probability, in nats, under the policy that wrote the generation; None where unknown.
        sft_index: the generation that supervised fine-tuning imitates; None where none is good enough.
        system: a system turn of the example's own, in place of the one that the model's template may bring.
        metadata: what is kept with a sample of this prompt (`facts` for the offline judge, segments of a document, ...).
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
        """Adds a generation, or finds the one with the same text; returns its index. What is newly known replaces None."""
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

    Each row of the source is either used (it added a pair, a label, a score, a demonstration ...) or dropped under a
    reason: `rows == used + sum(dropped.values())` always holds. Rows with the same prompt share one Example.
    """

    def __init__(self, name: str):
        self.name = name
        self.examples: dict[tuple[str, str], Example] = {}
        self.rows = 0
        self.dropped: Counter[str] = Counter()

    @property
    def used(self) -> int:
        return self.rows - sum(self.dropped.values())

    def read(self) -> None:
        """Counts one row of the source; to be called once for each, before it is used or dropped."""
        self.rows += 1

    def drop(self, reason: str, rows: int = 1) -> None:
        """Says that rows already counted by `read` are not used, and why (a few plain words)."""
        self.dropped[reason] += rows

    def example(self, prompt: Text, system: str | None = None) -> Example:
        """The Example of this prompt, made when it is new. An example counts for the rows that were used for it."""
        key = (str(prompt), system or "")
        if key not in self.examples:
            self.examples[key] = Example(prompt, system=system, dataset_name=self.name)
        return self.examples[key]

    def add_pair(self, prompt: Text, chosen: Text, rejected: Text, *, system: str | None = None) -> Example | None:
        """Uses one row (`read` comes before) that prefers `chosen` to `rejected`; the first chosen is the SFT target.

        Returns the Example, or None when the row was dropped: an empty prompt or response, two equal responses, a
        pair that is there already.
        """
        reason = self._unusable(prompt, chosen, rejected)
        if reason is None:
            example = self.example(prompt, system)
            pair = (example.add(chosen), example.add(rejected))
            if pair not in example.pairs:
                example.pairs.append(pair)
                if example.sft_index is None:
                    example.sft_index = pair[0]
                return example
            reason = "same pair again"
        self.drop(reason)
        return None

    @staticmethod
    def _unusable(prompt: Text, chosen: Text, rejected: Text) -> str | None:
        if is_blank(prompt):
            return "empty prompt"
        if is_blank(chosen) or is_blank(rejected):
            return "empty response"
        return "chosen equals rejected" if chosen == rejected else None

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples.values())

    def __len__(self) -> int:
        return len(self.examples)


def is_blank(text: Text) -> bool:
    """Whether there is nothing in a text (or list of token ids) but white space."""
    return not (text.strip() if isinstance(text, str) else text)


def in_test_split(prompt: Text, test_fraction: float) -> bool:
    """Whether a prompt falls in the test split of a source that has no split of its own.

    A function of the prompt alone, so that every run, machine and data set order splits in the same way.
    """
    digest = hashlib.sha256(str(prompt).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < test_fraction
