"""Responses behind a control string that says whether they are good or bad."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dataloaders.base import Source
from dataloaders.batches import Row
from dataloaders.examples import Example
from dataloaders.tokenization import ExampleTokenizer, TokenizedExample
from dataloaders.unpaired import UnpairedPreferenceDataLoader


class ConditionalSFTDataLoader(UnpairedPreferenceDataLoader):
    """The rows of `UnpairedPreferenceDataLoader`, each with its class's control string at the end of its prompt.

    The string is tokenized with the model's own vocabulary and is not learned; whoever samples puts that of good
    responses there.

    Args:
        control_tokens: the strings of `chosen` and `rejected` responses.
    """

    roles = ("target",)
    settings = ("control_tokens",)

    def __init__(
        self, sources: Sequence[Source], tokenize: ExampleTokenizer, *, control_tokens: Mapping[str, str], **kwargs: Any
    ):
        self._control = {name: control_ids(tokenize, control_tokens, name) for name in ("chosen", "rejected")}
        if np.array_equal(*self._control.values()):
            raise ValueError(
                f"loss.control_tokens: chosen and rejected are the same ({control_tokens['chosen']!r}); the model "
                "could not tell them apart. Give each a string of its own."
            )
        super().__init__(sources, tokenize, **kwargs | {"mismatched": False})

    def rows(self, example: Example, tokens: TokenizedExample) -> Iterator[Row]:
        """The parent's rows; a response is cut where the control string leaves no room for its end."""
        for row in super().rows(example, tokens):
            prompt = np.concatenate([row.prompt, self._control["chosen" if row.desirable else "rejected"]])
            target = row.responses["target"].shortened(self.max_length - len(prompt))
            yield dataclasses.replace(row, prompt=prompt, responses={"target": target})


def control_ids(tokenize: ExampleTokenizer, control_tokens: Mapping[str, str], name: str) -> np.ndarray:
    """The token ids (N,) of a control string.

    Raises:
        ValueError: when it is empty.
    """
    ids = tokenize.tokenizer(control_tokens[name], add_special_tokens=False).input_ids
    if not ids:
        raise ValueError(f"loss.control_tokens.{name} is empty: give it a string that no prompt ends with.")
    return np.array(ids, dtype=np.int32)
