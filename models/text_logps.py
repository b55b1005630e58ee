"""How likely a model finds texts: summed log-probabilities of the scored tokens, shared by processes.

Padding is never counted, since it is targets that are scored, so a text's value does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from models.logprobs import ScoredSequence, token_logps
from scorers.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS_PER_PASS = 8192
"""Positions of one forward pass, padding included."""


def summed_logps(
    model: PreTrainedModel,
    sequences: Sequence[ScoredSequence],
    *,
    excluded: Sequence[int] = (),
    description: str = "scoring",
    part: int = 0,
    parts: int = 1,
) -> list[float | None]:
    """The sum over each sequence's scored tokens of their log-probabilities in nats, 0 where nothing is scored.

    Args:
        sequences: contexts and texts; see `token_logps`.
        excluded: tokens that are left out of the vocabulary; see `token_logps`.
        part, parts: of so many processes this one computes every so-manieth pass; values of the others are None.
    """
    import torch

    lengths = [len(one.prompt) + len(one.response) for one in sequences]
    values: list[float | None] = [None if one.scored.any() else 0.0 for one in sequences]
    waiting = [index for index in np.argsort(lengths, kind="stable") if values[index] is None]
    passes: list[list[int]] = []
    for index in waiting:
        if not passes or (len(passes[-1]) + 1) * lengths[index] > TOKENS_PER_PASS:
            passes.append([])
        passes[-1].append(int(index))
    with torch.no_grad():
        for group in progress(passes[part::parts], desc=description, unit="pass", disable=part > 0):
            found = token_logps(model, [sequences[index] for index in group], excluded=excluded)
            for index, logps in zip(group, found, strict=True):
                values[index] = float(logps.double().sum())
    return values
