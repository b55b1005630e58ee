"""From the examples of an optimizer step to what one forward pass takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dataloaders.examples import Example
from dataloaders.tokenization import Response

Pair = tuple[str, int, int, int]
"""Identifies a pair, alike in all processes: data set, number of the example, chosen and rejected generation."""


@dataclass(frozen=True)
class Row:
    """One example of an optimizer step: a prompt (P,) and its responses by role.

    Attributes:
        responses: role -> Response; the roles are those of the DataLoader that made the row.
        weight: how much it counts in the loss; 1 by default.
        desirable: the thumb of an unpaired row; None for others.
        pair: the pair that an unpaired row comes from, if it does.
        example: where it comes from, for messages and samples.
    """

    prompt: np.ndarray
    responses: dict[str, Response]
    example: Example
    weight: float = 1.0
    desirable: bool | None = None
    pair: Pair | None = None

    def length(self, roles: Sequence[str]) -> int:
        """Tokens of the longest of its sequences (prompt and one response) among `roles`."""
        return len(self.prompt) + max(len(self.responses[role].ids) for role in roles)


def microbatches(rows: Sequence[Row], roles: Sequence[str], budget: int) -> list[list[int]]:
    """Cuts rows into groups for one forward pass each: rows of similar length together, so that little is padding.

    Args:
        rows: the rows of a step.
        roles: the responses of each row that the pass computes; a row's sequences stay in one group.
        budget: padded tokens in a group; a row larger than that is a group of its own.

    Returns:
        Groups of indices into `rows`, longest rows first; each index in exactly one.
    """
    order = sorted(range(len(rows)), key=lambda index: -rows[index].length(roles))
    groups: list[list[int]] = []
    for index in order:
        # The first row of a group is its longest: it decides how long the padded rows are.
        longest = rows[groups[-1][0]].length(roles) if groups else 0
        if not groups or (len(groups[-1]) + 1) * longest * len(roles) > budget:
            groups.append([])
        groups[-1].append(index)
    return groups
