"""Documents as an endless stream of tokens, pass after pass, that can be taken up at any chunk of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from dataloaders.corpus import Corpus, Document
from dataloaders.document_tokens import DocumentTokenizer, Tokens
from scorers.progress import progress

log = logging.getLogger(__name__)

TOGETHER = 256
"""Documents that are tokenized in one call."""

ABOVE = "score above the threshold"


@dataclass(frozen=True)
class Sharing:
    """The processes that tokenize together: this one's rank, how many there are, and what gathers their values."""

    rank: int = 0
    processes: int = 1
    gather: Callable[[Any], list[Any]] = lambda value: [value]


@dataclass(frozen=True)
class Place:
    """Where a stream stands.

    Attributes:
        epoch, corpus, document: the pass, the corpus in it and the document of that which are read next.
        rest: tokens that were read and are in no chunk yet.
        counts: of each corpus, documents read and dropped by reason, in the first pass.
        unique: the tokens of one pass; None until a whole one has ended.
        of_pass: the tokens of the pass so far; None where it did not begin with the first document.
    """

    epoch: int = 0
    corpus: int = 0
    document: int = 0
    rest: Tokens = field(default_factory=lambda: Tokens.join([]))
    counts: tuple[tuple[int, dict[str, int]], ...] = ()
    unique: int | None = None
    of_pass: int | None = 0

    def state(self) -> dict[str, Any]:
        """It as numbers, texts and tensors."""
        import torch

        rest = [torch.from_numpy(np.array(array)) for array in self.rest]
        return {**vars(self), "rest": rest, "counts": [list(one) for one in self.counts]}

    @classmethod
    def of(cls, state: dict[str, Any]) -> Place:
        """What `state` gave."""
        rest = Tokens(*(array.numpy() for array in state["rest"]))
        counts = tuple((rows, dict(dropped)) for rows, dropped in state["counts"])
        return cls(**state | {"rest": rest, "counts": counts})


class DocumentStream:
    """Tokens of corpora, one corpus after another, without an end.

    Args:
        tokenize: turns documents into tokens.
        keeps: whether a document is used; the others are counted as `ABOVE`.
        scored: documents without scores are not used.
        sharing: the processes that share the tokenizing; all of them have the same stream.
    """

    def __init__(
        self,
        corpora: Sequence[Corpus],
        tokenize: DocumentTokenizer,
        keeps: Callable[[Document], bool],
        scored: bool,
        sharing: Sharing,
    ):
        self.corpora = list(corpora)
        self.tokenize = tokenize
        self.keeps = keeps
        self.scored = scored
        self.sharing = sharing

    def chunks(self, place: Place, tokens: int, endless: bool = True) -> Iterator[tuple[Tokens, Place]]:
        """So many tokens after another, each with the place behind them.

        Args:
            endless: False ends with the pass that `place` is in; what is left of it may be shorter.

        Raises:
            ValueError: when a whole pass gives no token.
        """
        self.put_counts(place)
        parts, size = [place.rest], len(place.rest.ids)
        epoch, corpus, document, unique, of_pass = (
            place.epoch,
            place.corpus,
            place.document,
            place.unique,
            place.of_pass,
        )

        def here() -> Place:
            return Place(epoch, corpus, document, rest, self._counts(), unique, of_pass)

        while True:
            rest_alone = [((), [document - 1])]  # it may hold chunks already
            for read, numbers in chain(rest_alone, self._batches(epoch, corpus, document)):
                document = numbers[-1] + 1
                parts += read
                more = sum(len(one.ids) for one in read)
                size, of_pass = size + more, None if of_pass is None else of_pass + more
                while size >= tokens:
                    joined = Tokens.join(parts)
                    rest, size = joined.cut(tokens), size - tokens
                    parts = [rest]
                    yield joined.cut(0, tokens), here()
            corpus, document = corpus + 1, 0
            if corpus < len(self.corpora):
                continue
            if of_pass == 0:
                raise ValueError(f"no {self.corpora[0].split} document is left: {self.reasons()}.")
            unique = of_pass if unique is None else unique
            epoch, corpus, of_pass = epoch + 1, 0, 0
            if not endless:
                if size:
                    rest = Tokens.join([])
                    yield Tokens.join(parts), here()
                return

    def _batches(self, epoch: int, corpus: int, start: int) -> Iterator[tuple[list[Tokens], list[int]]]:
        """The tokens of documents of one corpus from one on, some at a time, and the numbers of what was read for them:
        those that are kept are among them."""
        documents = self.corpora[corpus].documents(start, self.scored, count=epoch == 0)
        done = False
        while not done:
            some: list[Document] = []
            for document in documents:
                some.append(document)
                if len(some) == TOGETHER:
                    break
            done = len(some) < TOGETHER
            if not some:
                return
            kept = [document for document in some if self.keeps(document)]
            if epoch == 0:
                self.corpora[corpus].dropped[ABOVE] += len(some) - len(kept)
            yield self._tokenized(kept, epoch), [document.number for document in some]

    def _tokenized(self, documents: list[Document], epoch: int) -> list[Tokens]:
        sharing = self.sharing
        parts = sharing.gather(self.tokenize(documents[sharing.rank :: sharing.processes], epoch))
        return [parts[place % sharing.processes][place // sharing.processes] for place in range(len(documents))]

    def tokens_of_a_pass(self) -> int:
        """How many tokens one pass gives; all documents are read for it."""
        total = 0
        with progress(desc="counting tokens", unit="tok", unit_scale=True, disable=self.sharing.rank > 0) as bar:
            for tokens, _ in self.chunks(Place(), 2**16, endless=False):
                total += len(tokens.ids)
                bar.update(len(tokens.ids))
        self.put_counts(Place())
        return total

    def after(self, tokens: int) -> Place:
        """The place behind the documents that hold the first so many tokens, all documents taken, without control
        tokens: what a run of maximum likelihood has seen of the stream after so many."""
        if not tokens:
            return Place()
        plain = DocumentStream(
            self.corpora, DocumentTokenizer(self.tokenize.tokenizer), lambda _: True, False, self.sharing
        )
        total = 0
        bar = progress(total=tokens, desc="passing over", unit="tok", unit_scale=True, disable=self.sharing.rank > 0)
        with bar:
            for corpus in range(len(self.corpora)):
                for read, numbers in plain._batches(1, corpus, 0):
                    for one, number in zip(read, numbers, strict=True):
                        total += len(one.ids)
                        if total >= tokens:
                            return Place(corpus=corpus, document=number + 1, of_pass=None)
                    bar.update(total - bar.n)
        raise ValueError(
            f"task.tokens_already_seen={tokens:,}, and the documents have {total:,} tokens: lower it, or give more."
        )

    def _counts(self) -> tuple[tuple[int, dict[str, int]], ...]:
        return tuple((corpus.rows, dict(corpus.dropped)) for corpus in self.corpora)

    def put_counts(self, place: Place) -> None:
        """Lets the corpora's counts be what they were at a place."""
        for corpus, (rows, dropped) in zip(self.corpora, place.counts or [(0, {}) for _ in self.corpora], strict=True):
            corpus.rows = rows
            corpus.dropped.clear()
            corpus.dropped.update(dropped)

    def reasons(self) -> str:
        """What was read and not used, in words."""
        return "; ".join(f"{corpus.name}: {corpus.words()}" for corpus in self.corpora)
