"""Preferences: two responses to one prompt, one of them preferred."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from dataloaders.base import EQUAL_WHEN_CUT, DataLoader
from dataloaders.batches import Row
from dataloaders.examples import Example
from dataloaders.tokenization import TokenizedExample


class PairedPreferenceDataLoader(DataLoader):
    """One row per pair, with the roles `chosen` and `rejected`.

    Args:
        pair_weight: a pair's weight is the `mean` of its two generations' weights, or their `product`.
    """

    roles = ("chosen", "rejected")

    def __init__(self, *args: Any, pair_weight: str = "mean", **kwargs: Any):
        if pair_weight not in ("mean", "product"):
            raise ValueError(f"pair_weight is {pair_weight!r}; it must be mean or product.")
        self.pair_weight = pair_weight
        super().__init__(*args, **kwargs)

    def rows(self, example: Example, tokens: TokenizedExample) -> Iterator[Row]:
        """The example's pairs, but for those whose two responses are equal once they are cut."""
        if not example.pairs:
            self.skip("no preference between two responses", example.rows)
        for i, j in example.pairs:
            chosen, rejected = tokens.responses[i], tokens.responses[j]
            if np.array_equal(chosen.ids, rejected.ids):
                self.skip(EQUAL_WHEN_CUT, by_design=False)
                continue
            weight = example.pair_weight(i, j, product=self.pair_weight == "product")
            yield Row(tokens.prompt, {"chosen": chosen, "rejected": rejected}, example, weight=weight)
