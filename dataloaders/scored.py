"""Responses that are worth something: scores, or thumbs and preferences as +1 and -1."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dataloaders.base import DataLoader
from dataloaders.batches import Row
from dataloaders.examples import Example
from dataloaders.tokenization import TokenizedExample

STABILIZER = 0.01
"""What HALOs adds to the deviation of a group's rewards."""


class ScoredDataLoader(DataLoader):
    """One row per response with a reward: its score, else +1 for a thumb up or a preferred response and -1 for others.

    The responses to one prompt are in one optimizer step, as far as `batch_size` allows; a prompt with more of them
    than that has a step of its own. Several passes over a prompt, where its data set's weight is 2, say, are groups of
    their own; a data set's weight below 1 draws whole prompts.

    Args:
        compares: whether the loss compares the responses to a prompt; then one whose responses are all worth the same
            is left out, since it ranks nothing.
    """

    roles = ("target",)
    gives = ("reward", "advantage", "group")

    def __init__(self, *args: Any, compares: bool = True, **kwargs: Any):
        self._numbers = itertools.count()
        self.compares = compares
        super().__init__(*args, **kwargs)
        self._spread = 1 + max(row.group for row in self.data)

    def rows(self, example: Example, tokens: TokenizedExample) -> Iterator[Row]:
        """The example's responses that have a reward, with their advantage over each other."""
        number = next(self._numbers)
        rewards = rewards_of(example)
        known = [index for index, reward in enumerate(rewards) if reward is not None]
        values = np.array([rewards[index] for index in known], dtype=np.float32)  # as losses get them
        if not known:
            self.skip("neither a score, a label nor a preference", example.rows)
        elif self.compares and np.ptp(values) == 0:
            self.skip("no two responses that are worth different", example.rows)
        else:
            values = values.astype(np.float64)
            advantages = (values - values.mean()) / (values.std() + STABILIZER)
            for index, advantage in zip(known, advantages, strict=True):
                yield Row(
                    tokens.prompt, {"target": tokens.responses[index]}, example, example.weights[index],
                    reward=rewards[index], advantage=float(advantage), group=number,
                )  # fmt: skip

    def _capped(self, groups: list[list[Row]], limit: int | None, number: int) -> tuple[int, list[Row]]:
        """As of any loader, but never some of a prompt's responses: the best of what is left would not be the best."""
        if limit is None or sum(map(len, groups)) <= limit:
            return super()._capped(groups, limit, number)
        chosen, total = set(), 0
        for index in np.random.default_rng([self.seed, number]).permutation(len(groups)):
            if groups[index] and total + len(groups[index]) <= limit:
                chosen.add(int(index))
                total += len(groups[index])
        if not chosen:
            least = min(len(group) for group in groups if group)
            raise ValueError(
                f"n_examples={limit} of a data set is less than the responses to any of its prompts, at least {least}, "
                "and these stay together: raise it."
            )
        return total, [row for index, group in enumerate(groups) if index in chosen for row in group]

    def fixed_rows(self, limit: int | None) -> list[Row]:
        """As of any loader, but whole prompts."""
        rows = super().fixed_rows(None)
        fits = len(rows) if limit is None else min(limit, len(rows))
        while 0 < fits < len(rows) and rows[fits - 1].group == rows[fits].group:
            fits -= 1
        if not fits:
            raise ValueError(
                f"n_eval_examples={limit} is less than the responses to the first prompt, and these stay together: "
                "raise it."
            )
        return rows[:fits]

    def steps(self, epoch: int) -> list[np.ndarray]:
        """The steps of an epoch: whole prompts, in an order that the seed decides, as often as their data set's weight
        says."""
        generator = np.random.default_rng([self.seed, epoch])
        groups: list[np.ndarray] = []
        for source, members in self._members:
            own = self._groups(members)
            whole = int(source.weight)
            part = round((source.weight - whole) * len(own))
            chosen = generator.permutation(len(own))[:part] if self.shuffle else range(part)
            groups += own * whole + [own[index] for index in chosen]
        order = generator.permutation(len(groups)) if self.shuffle else range(len(groups))
        steps: list[list[np.ndarray]] = []
        for group in (groups[index] for index in order):
            if not steps or sum(map(len, steps[-1])) + len(group) > self.batch_size:
                steps.append([])
            steps[-1].append(group)
        return [np.concatenate(step) for step in steps]

    def _groups(self, members: Sequence[int]) -> list[np.ndarray]:
        """The rows of each prompt among some."""
        groups: dict[int, list[int]] = {}
        for index in members:
            groups.setdefault(self.data[index].group, []).append(index)
        return [np.array(group) for group in groups.values()]

    def finish(self, order: np.ndarray, start: int, stop: int) -> list[Row]:
        """The rows of a step; a prompt that is in it again is a group of its own."""
        seen: Counter[int] = Counter()
        rows = []
        for index in order[start:stop]:
            row = self.data[index]
            rows.append(dataclasses.replace(row, group=row.group + seen[index] * self._spread))
            seen[index] += 1
        return rows

    def sizes(self) -> list[int]:
        """As of any loader, but `n_examples` never cuts a prompt: the last step has as many whole ones as fit."""
        sizes = super().sizes()
        whole = [len(step) for epoch in range(self.n_epochs) for step in self.steps(epoch)]
        if not sizes or sizes[-1] == whole[len(sizes) - 1]:
            return sizes
        last = list(itertools.chain(*(self.steps(epoch) for epoch in range(self.n_epochs))))[len(sizes) - 1]
        groups = [self.data[index].group for index in last]
        fits = sizes[-1]
        while fits and groups[fits - 1] == groups[fits]:
            fits -= 1
        return [*sizes[:-1], fits] if fits else sizes[:-1]


def rewards_of(example: Example) -> list[float | None]:
    """What each generation of an example is worth; None where nobody said."""
    if any(score is not None for score in example.scores):
        return list(example.scores)
    if any(label is not None for label in example.desirable):
        return [None if label is None else (1.0 if label else -1.0) for label in example.desirable]
    preferred, others = ({pair[side] for pair in example.pairs} for side in (0, 1))
    return [
        1.0 if index in preferred and index not in others
        else -1.0 if index in others and index not in preferred
        else 0.0 if index in preferred
        else None
        for index in range(len(example.generations))
    ]  # fmt: skip
