"""Documents as tokens: each text tokenized whole, its segments' scores carried to tokens by the characters they stand
for, control tokens put in as ids."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dataloaders.corpus import Document
from models.plain_text import start_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class Tokens(NamedTuple):
    """Token ids (T,), how bad the segment of each is (T,), and which of them are learned (T,)."""

    ids: np.ndarray
    scores: np.ndarray
    learned: np.ndarray

    @classmethod
    def join(cls, parts: Sequence[Tokens]) -> Tokens:
        """One after the other."""
        if not parts:
            return cls(np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, bool))
        return cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def cut(self, start: int, stop: int | None = None) -> Tokens:
        """A part of it."""
        return Tokens(*(array[start:stop] for array in self))


@dataclass(frozen=True)
class Control:
    """Which token stands before a segment.

    Attributes:
        aligned, misaligned: ids of the tokens before segments of a score of at most `threshold`, and above it.
        drop: the share of segments that stand behind none, chosen anew each epoch.
        learned: the model learns to predict them.
    """

    aligned: int
    misaligned: int
    threshold: float
    drop: float
    learned: bool
    seed: int


class DocumentTokenizer:
    """Turns documents into tokens: BOS, the text, EOS, or where these are one token, or BOS is none, EOS and the text.

    With `control`, a control token stands before each segment.

    A token belongs to the segment of its last character, so that the space at the end of a sentence, which many
    tokenizers join to the next word, is no part of the sentence before. What begins a document has the first segment's
    score, what ends it the last one's, a control token that of its segment.

    Raises:
        ValueError: for a tokenizer that cannot say which characters a token stands for.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control: Control | None = None):
        if not tokenizer.is_fast:
            raise ValueError(
                "this model's tokenizer cannot say which characters a token stands for, by which scores reach tokens: "
                "choose a model with a fast tokenizer, or model.tokenizer_name_or_path=FOLDER of one."
            )
        self.tokenizer = tokenizer
        self.control = control
        self._start = start_ids(tokenizer)
        self._end = [] if self._start[0] == tokenizer.eos_token_id else [tokenizer.eos_token_id]
        added = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, added))) if added else None

    def __call__(self, documents: Sequence[Document], epoch: int = 0) -> list[Tokens]:
        """The tokens of each document."""
        plain = [not (self._special and self._special.search(document.text)) for document in documents]
        done: dict[int, Tokens] = {}
        for harmless in (True, False):  # a special token's name in a document is text like any other
            places = [place for place, is_plain in enumerate(plain) if is_plain is harmless]
            if not places:
                continue
            encoded = self.tokenizer(
                [documents[place].text for place in places], add_special_tokens=False, return_offsets_mapping=True,
                return_attention_mask=False, split_special_tokens=not harmless, verbose=False,
            )  # fmt: skip
            for place, ids, offsets in zip(places, encoded.input_ids, encoded.offset_mapping, strict=True):
                done[place] = self._tokens(documents[place], ids, offsets, epoch)
        return [done[place] for place in range(len(documents))]

    def text_of(self, document: Document) -> tuple[np.ndarray, np.ndarray]:
        """Ids (N,) of a document without what begins and ends it, and which of them are no control tokens (N,)."""
        (made,) = self([document])
        inside = made.cut(len(self._start), len(made.ids) - len(self._end))
        return inside.ids, ~np.isin(inside.ids, [self.control.aligned, self.control.misaligned])

    def _tokens(self, document: Document, ids: list[int], offsets: list[tuple[int, int]], epoch: int) -> Tokens:
        own = np.asarray(ids, dtype=np.int32)
        last = np.maximum(np.asarray(offsets, dtype=np.int64).reshape(-1, 2)[:, 1] - 1, 0)
        segments = np.minimum(np.searchsorted(document.ends, last, side="right"), len(document.ends) - 1)
        scores = document.scores if len(document.scores) else np.full(len(document.ends), np.nan)
        learned = np.ones(len(own), dtype=bool)
        if self.control is not None:
            own, segments, learned = self._controlled(document, own, segments, epoch)
        first, last_one = (segments[:1], segments[-1:]) if len(segments) else ([0], [0])
        parts = [self._start, own, self._end], [first, segments, last_one[: len(self._end)]]
        whole, of = (np.concatenate(some).astype(np.int64) for some in parts)
        learned = np.concatenate([[True], learned, np.ones(len(self._end), dtype=bool)])
        return Tokens(whole.astype(np.int32), scores[of].astype(np.float32), learned)

    def _controlled(
        self, document: Document, ids: np.ndarray, segments: np.ndarray, epoch: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """With a control token before the first token of each segment that has one."""
        control = self.control
        first = np.flatnonzero(np.diff(segments, prepend=-1))
        generator = np.random.default_rng([control.seed, epoch, document.number])
        first = first[generator.random(len(first)) >= control.drop]
        of = segments[first]
        tokens = np.where(document.scores[of] <= control.threshold, control.aligned, control.misaligned)
        learned = np.insert(np.ones(len(ids), dtype=bool), first, control.learned)
        return np.insert(ids, first, tokens), np.insert(segments, first, of), learned
