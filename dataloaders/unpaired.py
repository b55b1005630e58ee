"""Feedback on single responses: thumbs up or down, with mismatched responses for KTO's KL."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from dataloaders.base import EQUAL_WHEN_CUT, DataLoader
from dataloaders.batches import Row
from dataloaders.examples import Example
from dataloaders.tokenization import TokenizedExample

log = logging.getLogger(__name__)

NO_MISMATCH = "The KL of this loss is measured on responses to other prompts: add prompts."


class UnpairedPreferenceDataLoader(DataLoader):
    """One row per labelled response: role `target`, and role `KL`, a response to another prompt.

    Where an example has labels they are used; otherwise each of its pairs gives a desirable and an undesirable row.
    Every step has rows of both classes, spread evenly over the epoch; where one class is too rare for that, its rows
    are seen more than once and the number of repetitions is logged.

    Args:
        mismatched: whether rows get the role `KL`; a loss that names no `KL` needs none.
    """

    roles = ("target", "KL")
    gives = ("desirable",)

    def __init__(self, *args: Any, mismatched: bool = True, **kwargs: Any):
        self._numbers = itertools.count()
        self.mismatched = mismatched
        super().__init__(*args, **kwargs)
        desirable = sum(bool(row.desirable) for row in self.data)
        if desirable in (0, len(self.data)):
            missing = "desirable" if desirable == 0 else "undesirable"
            raise ValueError(
                f"the {self.split} data has no {missing} response, and this loss learns from both kinds. Add some, or "
                "train with loss=sft on desirable ones."
            )
        if mismatched and len({row.prompt.tobytes() for row in self.data}) == 1:
            few = " Or split off more (datasets.NAME.test_fraction=0.2), or have no evaluation (n_eval_examples=0)."
            raise ValueError(
                f"the {self.split} data has a single prompt. {NO_MISMATCH}{few if self.split == 'test' else ''}"
            )

    def rows(self, example: Example, tokens: TokenizedExample) -> Iterator[Row]:
        """The example's labelled responses, or both sides of its pairs."""
        number = next(self._numbers)  # the same in every process, unlike id(example)
        labels = [(i, label, None) for i, label in enumerate(example.desirable) if label is not None]
        pairs = [(i, j) for i, j in example.pairs if not self._equal(tokens, i, j)]
        if labels:
            pair_of = {index: pair for pair in pairs for index in pair}
            labels = [(i, label, pair_of.get(i)) for i, label, _ in labels]
        else:
            if not example.pairs:
                self.skip("neither a label nor a preference", example.rows)
            self.skip(EQUAL_WHEN_CUT, len(example.pairs) - len(pairs), by_design=False)
            labels = [(index, index == i, (i, j)) for i, j in pairs for index in (i, j)]
        for index, label, pair in labels:
            identity = None if pair is None else (example.dataset_name, number, *pair)
            target = {"target": tokens.responses[index]}
            yield Row(tokens.prompt, target, example, example.weights[index], desirable=label, pair=identity)

    @staticmethod
    def _equal(tokens: TokenizedExample, i: int, j: int) -> bool:
        return np.array_equal(tokens.responses[i].ids, tokens.responses[j].ids)

    def arrange(self, indices: np.ndarray) -> list[np.ndarray]:
        """Steps with both classes: each class keeps its order, and the two are merged in proportion to their sizes."""
        labels = np.array([bool(self.data[index].desirable) for index in indices])
        classes = [indices[labels], indices[~labels]]
        if min(map(len, classes)) == 0 or self.batch_size < 2:
            return super().arrange(indices)
        rare = min((0, 1), key=lambda which: len(classes[which]))
        # With at least one rare row for every window of batch_size - 1 common ones, no step is without.
        needed = -(-len(classes[1 - rare]) // (self.batch_size - 1))
        if needed > len(classes[rare]):
            log.info(
                "%s responses are rare: %d rows are seen %d times in this epoch, so that every step has one",
                "desirable" if rare == 0 else "undesirable", len(classes[rare]), needed,
            )  # fmt: skip
            classes[rare] = np.resize(classes[rare], needed)
        places = [(np.arange(len(one)) + 0.5) / len(one) for one in classes]
        merged = np.concatenate(classes)[np.argsort(np.concatenate(places), kind="stable")]
        steps = super().arrange(merged)
        if len(steps) > 1 and len({bool(self.data[index].desirable) for index in steps[-1]}) < 2:
            steps[-2:] = [np.concatenate(steps[-2:])]  # too small for both classes: part of the step before it
        return [self._both_first(step) for step in steps]

    def _both_first(self, step: np.ndarray) -> np.ndarray:
        """A step whose first two rows are one of each class, so that `n_examples` may cut it anywhere behind them."""
        labels = [bool(self.data[index].desirable) for index in step]
        if len(set(labels)) < 2:
            return step
        other = labels.index(not labels[0])
        return np.concatenate([step[[0, other]], np.delete(step, [0, other])])

    def sizes(self) -> list[int]:
        """As of any loader, but a last step that `n_examples` cuts down to a single row, of one class, is left out."""
        sizes = super().sizes()
        return sizes[:-1] if len(sizes) > 1 and sizes[-1] == 1 < self.batch_size else sizes

    def finish(self, order: np.ndarray, start: int, stop: int) -> list[Row]:
        """Adds to each row the response of the next row in the epoch that truly does not match its prompt."""
        if not self.mismatched:
            return super().finish(order, start, stop)
        return [self._with_mismatch(order, place) for place in range(start, stop)]

    def _with_mismatch(self, order: np.ndarray, place: int) -> Row:
        row = self.data[order[place]]
        for offset in range(1, len(order)):
            other = self.data[order[(place + offset) % len(order)]]
            response = other.responses["target"]
            same_prompt = other.example.prompt == row.example.prompt or np.array_equal(other.prompt, row.prompt)
            if same_prompt or np.array_equal(response.ids, row.responses["target"].ids):
                continue
            responses = {**row.responses, "KL": response.shortened(self.max_length - len(row.prompt))}
            return dataclasses.replace(row, responses=responses)
        raise ValueError(f"{row.example.dataset_name}: no response differs from that of an example. {NO_MISMATCH}")
