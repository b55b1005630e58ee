"""Rows that compute a prompt once: its responses are branches that see the prompt and themselves, not each other.

Many rows are packed end to end without padding. What is exact about it is tested in `tests/models/test_tree_rows.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch


class Branch(NamedTuple):
    """A response (R,) and which of its tokens (R,) are scored."""

    ids: np.ndarray
    scored: np.ndarray


@dataclass(frozen=True)
class TreeRow:
    """A prompt (P,) and responses to it, each of at least one token; the prompt may be empty."""

    prompt: np.ndarray
    branches: Sequence[Branch]

    def __len__(self) -> int:
        return len(self.prompt) + sum(len(branch.ids) for branch in self.branches)


NOTHING = TreeRow(np.zeros(1, dtype=np.int32), [Branch(np.zeros(1, dtype=np.int32), np.zeros(1, dtype=bool))])
"""What a process computes that takes part in a forward pass of others and has no row for it."""


class Stretch(NamedTuple):
    """Tokens of a pack that follow each other on one path: those of a branch, the first branch's with its prompt.

    Attributes:
        start, stop: where they lie in the pack.
        prompt: where the prompt lies that they continue, (start, stop); empty for a stretch that begins with its own.
    """

    start: int
    stop: int
    prompt: tuple[int, int] = (0, 0)

    @property
    def keys(self) -> int:
        """How many keys its last token may attend to."""
        return self.stop - self.start + self.prompt[1] - self.prompt[0]


@dataclass(frozen=True)
class Pack:
    """Tree rows end to end: prompt, first branch, second branch, ..., then the next row.

    Attributes:
        ids: (T,) tokens.
        positions: (T,) position of each token on its path; a branch goes on where its prompt ends.
        stretches: how the tokens lie.
        sources: (N,) for each scored token the place in the pack whose hidden state predicts it.
        targets: (N,) the scored tokens.
        counts: scored tokens of each branch, row after row.
    """

    ids: np.ndarray
    positions: np.ndarray
    stretches: tuple[Stretch, ...]
    sources: np.ndarray
    targets: np.ndarray
    counts: tuple[int, ...]
    masks: dict = field(default_factory=dict, repr=False)  # of stretches, made once for all layers

    @classmethod
    def of(cls, rows: Sequence[TreeRow]) -> Pack:
        """Packs rows; a first token with nothing before it has no probability and is not scored."""
        ids, positions, stretches, sources, targets, counts = [], [], [], [], [], []
        at = 0
        for row in rows:
            prompt = (at, at + len(row.prompt))
            ids.append(row.prompt)
            positions.append(np.arange(len(row.prompt)))
            at = prompt[1]
            for number, branch in enumerate(row.branches):
                start, at = at, at + len(branch.ids)
                ids.append(branch.ids)
                positions.append(len(row.prompt) + np.arange(len(branch.ids)))
                stretches.append(Stretch(prompt[0], at) if number == 0 else Stretch(start, at, prompt))
                offsets = np.flatnonzero(branch.scored)
                if not len(row.prompt):
                    offsets = offsets[offsets > 0]
                # A branch's first token is predicted where the prompt ends, the others one place before them.
                sources.append(np.where(offsets == 0, prompt[1] - 1, start + offsets - 1))
                targets.append(branch.ids[offsets])
                counts.append(len(offsets))
        parts = [np.concatenate(part).astype(np.int64) for part in (ids, positions, sources, targets)]
        return cls(parts[0], parts[1], tuple(stretches), parts[2], parts[3], tuple(counts))

    def __len__(self) -> int:
        return len(self.ids)

    def visible(self, window: int | None = None) -> torch.Tensor:
        """(T, T) bool: whether the token of a line may attend to that of a column. For tests and small packs."""
        import torch

        mask = torch.zeros(len(self), len(self), dtype=torch.bool)
        positions = torch.from_numpy(self.positions)
        for stretch in self.stretches:
            own = torch.arange(stretch.start, stretch.stop)
            keys = torch.cat([torch.arange(*stretch.prompt), own])
            distance = positions[own][:, None] - positions[keys][None, :]
            allowed = (distance >= 0) & ((distance < window) if window else True)
            mask[own[:, None], keys[None, :]] = allowed
        return mask


def pack_rows(rows: Sequence[TreeRow], budget: int) -> list[list[int]]:
    """Cuts rows into packs of at most `budget` tokens, as full as they go (longest first, into the fullest that fits).

    Returns:
        Groups of indices into `rows`, each index in exactly one; a row longer than the budget is a group of its own.
    """
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    groups: list[list[int]] = []
    room: list[int] = []
    for index in order:
        size = len(rows[index])
        fits = [number for number, left in enumerate(room) if left >= size]
        if fits:
            number = min(fits, key=lambda one: room[one])
            groups[number].append(index)
            room[number] -= size
        else:
            groups.append([index])
            room.append(budget - size)
    return groups
