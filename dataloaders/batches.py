"""The rows of an optimizer step, and the trees that a forward pass computes them by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dataloaders.examples import Example
from dataloaders.tokenization import Response
from models.tree_rows import Branch, TreeRow

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
        reward: what the response of a scored row is worth.
        advantage: by how much that is more than what the prompt's responses are worth on average, in their deviations.
        group: alike in all rows of one prompt, and in all processes.
        token_scores: (S,) how bad what each token stands in is, of the scored tokens that have a probability.
        example: where it comes from, for messages and samples.
    """

    prompt: np.ndarray
    responses: dict[str, Response]
    example: Example
    weight: float = 1.0
    desirable: bool | None = None
    pair: Pair | None = None
    reward: float | None = None
    advantage: float | None = None
    group: int | None = None
    token_scores: np.ndarray | None = None


Place = tuple[int, str]
"""Which response a branch is: the index of its row, and the role."""


def trees(rows: Sequence[Row], roles: Sequence[str], budget: int) -> tuple[list[TreeRow], list[list[Place]]]:
    """The responses of some roles as tree rows: rows with the same prompt share one, as long as it fits the budget.

    Args:
        rows: the rows of a step.
        roles: the responses of each row that are computed; all of a row are in one tree.
        budget: tokens; a row that is larger by itself is a tree of its own.

    Returns:
        The tree rows, and for each of them what its branches are.
    """
    members: list[list[int]] = []
    sizes: list[int] = []
    open_of: dict[bytes, int] = {}
    for index, row in enumerate(rows):
        size = sum(len(row.responses[role].ids) for role in roles)
        prompt = row.prompt.tobytes()
        number = open_of.get(prompt)
        if number is None or sizes[number] + size > budget:
            number = open_of[prompt] = len(members)
            members.append([])
            sizes.append(len(row.prompt))
        members[number].append(index)
        sizes[number] += size
    places = [[(index, role) for index in some for role in roles] for some in members]
    made = [
        TreeRow(rows[some[0]].prompt, [_branch(rows[index].responses[role]) for index, role in of])
        for some, of in zip(members, places, strict=True)
    ]
    return made, places


def _branch(response: Response) -> Branch:
    return Branch(response.ids, response.scored)
