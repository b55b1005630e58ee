"""Responses that are worth something: scores, or thumbs and preferences as +1 and -1."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
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
    than that has a step of its own. A prompt whose responses are all worth the same is left out: it ranks nothing.
    """

    roles = ("target",)

    def __init__(self, *args: Any, **kwargs: Any):
        self._numbers = itertools.count()
        super().__init__(*args, **kwargs)

    def rows(self, example: Example, tokens: TokenizedExample) -> Iterator[Row]:
        """The example's responses that have a reward, with their advantage over each other."""
        number = next(self._numbers)
        rewards = rewards_of(example)
        known = [index for index, reward in enumerate(rewards) if reward is not None]
        values = np.array([rewards[index] for index in known], dtype=np.float64)
        if not known:
            self.skip("neither a score, a label nor a preference", example.rows)
        elif np.ptp(values) == 0:
            self.skip("no two responses that are worth different", example.rows)
        else:
            advantages = (values - values.mean()) / (values.std() + STABILIZER)
            for index, advantage in zip(known, advantages, strict=True):
                yield Row(
                    tokens.prompt, {"target": tokens.responses[index]}, example, example.weights[index],
                    reward=rewards[index], advantage=float(advantage), group=number,
                )  # fmt: skip

    def arrange(self, indices: np.ndarray) -> list[np.ndarray]:
        """Steps of whole prompts: each group stands where its first row came."""
        groups: dict[int, list[int]] = {}
        for index in indices:
            groups.setdefault(self.data[index].group, []).append(index)
        steps: list[list[int]] = []
        for members in groups.values():
            if not steps or len(steps[-1]) + len(members) > self.batch_size:
                steps.append([])
            steps[-1] += members
        return [np.array(step) for step in steps]


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
