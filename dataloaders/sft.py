"""Demonstrations: one target for each example."""

from __future__ import annotations

from collections.abc import Iterator

from dataloaders.base import DataLoader
from dataloaders.batches import Row
from dataloaders.examples import Example
from dataloaders.tokenization import TokenizedExample


class SFTDataLoader(DataLoader):
    """One row per prompt: the generation that the data set says is worth imitating."""

    roles = ("target",)

    def rows(self, example: Example, tokens: TokenizedExample) -> Iterator[Row]:
        """The example's SFT target; an example without one gives no row."""
        if example.sft_index is None:
            self.skip("no response good enough to imitate", example.rows)
            return
        self.skip("another row of the same prompt", example.rows - 1)
        target = tokens.responses[example.sft_index]
        yield Row(tokens.prompt, {"target": target}, example, weight=example.weights[example.sft_index])
