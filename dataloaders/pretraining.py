"""Blocks of a constant number of tokens from documents that stream, for pretraining with human preferences."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dataloaders.base import DataLoader
from dataloaders.batches import Row
from dataloaders.corpus import Corpus, Document
from dataloaders.document_stream import DocumentStream, Place, Sharing
from dataloaders.document_tokens import Control, DocumentTokenizer, Tokens
from dataloaders.examples import Example
from dataloaders.tokenization import Response

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

LOOKED_AT = 1000
"""Documents of each corpus that are looked at before the start: their scores lie on both sides of a threshold, and are
all by one scorer."""


class PretrainingDataLoader(DataLoader):
    """Yields the blocks of each optimizer step: documents, each behind an EOS, end to end, cut every so many tokens.

    Documents are read as they are needed, again and again until `n_blocks` are there; what is left of one pass begins
    the first block of the next. Blocks are shuffled among `shuffle_buffer` consecutive ones. All of it is a function of
    the corpora, the settings and the seed, and `state` says where to go on.

    Args:
        corpora: documents of these, one corpus after another.
        block_size: tokens of a block.
        batch_size: blocks of an optimizer step, over all processes.
        n_blocks: the loader ends after so many, rounded down to whole steps; None: after `n_epochs`, for which all
            documents are tokenized once to count them.
        skip_tokens: documents that hold the first so many tokens are passed over.
        settings: what else of the config decides what the rows are.
        sharing: the processes that share the tokenizing.

    Attributes:
        scorers: identities of what scored the first documents, of which the loss uses the scores.

    Raises:
        ValueError: when there are too few tokens for a step, or no scores where the loss needs them.
    """

    roles = ("target",)
    most_shown = 64
    scored: ClassVar[bool] = False
    """Whether documents without scores cannot be used."""

    def __init__(
        self,
        corpora: Sequence[Corpus],
        tokenizer: PreTrainedTokenizerBase,
        *,
        block_size: int,
        batch_size: int = 32,
        n_blocks: int | None = None,
        n_epochs: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        shuffle_buffer: int = 4096,
        skip_tokens: int = 0,
        sharing: Sharing | None = None,
        **settings: Any,
    ):
        self.corpora, self.split = list(corpora), corpora[0].split
        self.block_size = self.max_length = block_size
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.buffer = shuffle_buffer if shuffle else batch_size
        self.chosen = settings
        self.data, self._shown = [], 0
        self.tokenizer = tokenizer
        self._sharing = sharing or Sharing()
        self._check_corpora()
        self.stream = DocumentStream(
            corpora, DocumentTokenizer(tokenizer, self.control()), self.keeps, self.scored, self._sharing
        )
        self._skip_tokens = skip_tokens
        self._places: dict[int, Place] = {}
        if self.split == "train":
            self.n_blocks = self._whole_steps(n_blocks, n_epochs)

    def _whole_steps(self, n_blocks: int | None, n_epochs: int) -> int:
        if n_blocks is None:
            n_blocks = self.stream.tokens_of_a_pass() * n_epochs // self.block_size
        if n_blocks < self.batch_size:
            raise ValueError(
                f"{n_blocks} blocks of model.max_length={self.block_size} tokens are fewer than one step takes "
                f"({self.batch_size}): lower model.batch_size or model.max_length, raise n_examples or task.n_tokens, "
                f"or give more documents ({self.reasons()})."
            )
        return n_blocks - n_blocks % self.batch_size

    # What subclasses say ------------------------------------------------------------------------------------------

    def control(self) -> Control | None:
        """The control tokens before segments, if there are any."""
        return None

    def keeps(self, document: Document) -> bool:
        """Whether a document is trained on."""
        return True

    def check(self, documents: Sequence[Document]) -> str:
        """Refuses settings that do not fit the first documents; returns what a log says of those that do."""
        return ""

    def rows(self, example: Example, tokens: Any) -> Iterator[Row]:
        """Blocks are made of many documents, never of one example."""
        raise NotImplementedError(f"{type(self).__name__} makes rows of blocks")

    def _check_corpora(self) -> None:
        found: list[Document] = []
        for corpus in self.corpora:
            found += islice(corpus.documents(scored=self.scored), LOOKED_AT)
        if not found:
            for corpus in self.corpora:
                list(corpus.documents(scored=self.scored, count=True))
            raise ValueError(f"no {self.split} document can be used by {type(self).__name__}: {self.reasons()}.")
        self.scorers = list(dict.fromkeys(one.scorer for one in found if self.scored and one.scorer))
        if self.split == "train" and (said := self.check(found)) and self._sharing.rank == 0:
            log.info(said)

    # Steps --------------------------------------------------------------------------------------------------------

    def sizes(self) -> list[int]:
        """How many blocks each step of the whole loader has."""
        return [self.batch_size] * (self.n_blocks // self.batch_size)

    def after(self, steps: int) -> Iterator[list[Row]]:
        """The blocks of each step after the first so many; what is before is tokenized again from the last place that
        is known (see `take_up`)."""
        first = steps * self.batch_size
        blocks = self._blocks(first // self.buffer, first % self.buffer)
        for _ in range(steps, len(self.sizes())):
            yield [next(blocks) for _ in range(self.batch_size)]

    def epoch(self, epoch: int) -> Iterator[list[Row]]:
        """All steps; passes over the documents have no bounds of their own."""
        return self.after(0)

    def begin(self) -> None:
        """Passes over what another run has seen, which is long; a run that goes on has done it.

        Raises:
            ValueError: the documents hold fewer tokens than that.
        """
        self._known_before(0)

    def _known_before(self, chunk: int) -> int:
        """The last chunk up to this one whose place in the stream is known."""
        if not any(one <= chunk for one in self._places):
            self._places[0] = self.stream.after(self._skip_tokens)
        return max(one for one in self._places if one <= chunk)

    def _blocks(self, chunk: int, within: int) -> Iterator[Row]:
        """Blocks in the order of training, from the place `within` of a chunk on; a chunk is shuffled together."""
        number = self._known_before(chunk)
        for tokens, place in self.stream.chunks(self._places[number], self.buffer * self.block_size):
            self._places = {one: at for one, at in self._places.items() if one >= number - 1} | {number + 1: place}
            if number >= chunk:
                order = np.arange(self.buffer)
                if self.shuffle:
                    order = np.random.default_rng([self.seed, number]).permutation(self.buffer)
                for index in order[within if number == chunk else 0 :]:
                    yield self._row(tokens.cut(index * self.block_size, (index + 1) * self.block_size), "block")
            number += 1

    def _row(self, tokens: Tokens, what: str) -> Row:
        ids, scores, learned = tokens
        known = scores[1:][learned[1:]] if self.scored else None
        example = Example("", dataset_name=f"{what} beginning {self.tokenizer.decode(ids[:24])!r}")
        return Row(ids[:0], {"target": Response(ids, learned)}, example, token_scores=known)

    def fixed_rows(self, limit: int | None) -> list[Row]:
        """The first blocks of one pass, at most `limit`; the last one may be shorter."""
        found: list[Row] = []
        self._shown = 0
        for tokens, _ in self.stream.chunks(Place(), self.block_size, endless=False):
            if limit is not None and len(found) >= limit:
                break
            if len(tokens.ids) > 1:
                found.append(self._row(tokens, f"{self.split} block"))
        self._shown = len(found)
        return found

    def state(self, steps: int) -> dict[str, Any]:
        """Where to go on after so many steps, as numbers, texts and tensors."""
        chunk = self._known_before(steps * self.batch_size // self.buffer)
        return {"chunk": chunk, **self._places[chunk].state()}

    def take_up(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` said."""
        place = Place.of({key: value for key, value in state.items() if key != "chunk"})
        self._places = {state["chunk"]: place}
        self.stream.put_counts(place)

    def digest(self) -> str:
        """Names what all steps are made of: corpora, tokenizer and settings."""
        backend = hashlib.blake2b(self.tokenizer.backend_tokenizer.to_str().encode(), digest_size=16).hexdigest()
        chosen = [type(self).__name__, self.block_size, self.batch_size, self.seed, self.shuffle, self.buffer]
        parts = [*chosen, self._skip_tokens, backend, self.chosen, *(corpus.digest() for corpus in self.corpora)]
        return hashlib.blake2b(json.dumps(parts, default=str).encode(), digest_size=16).hexdigest()

    @property
    def account(self) -> dict[str, dict[str, Any]]:
        """For each corpus what was read of it so far, in the first pass, and why some was not used; of the train split
        also the passes of the whole run over all that is kept, None as long as no whole one has ended."""
        found: dict[str, Any] = {"examples": self._shown}
        if self.split == "train":
            unique = self._last()[1].unique
            found = {"examples": self.n_blocks, "passes": unique and round(self.n_blocks * self.block_size / unique, 4)}
        return {corpus.name: corpus.account() | found for corpus in self.corpora}

    def _last(self) -> tuple[int, Place]:
        """How many chunks were read, and the place behind them."""
        return max(self._places.items(), key=lambda known: known[0], default=(0, Place()))

    def passes(self) -> str:
        """How often the documents that are kept were seen, in words."""
        chunks, place = self._last()
        trained = self.n_blocks * self.block_size
        said = "less than one pass over the documents"
        if place.unique is not None:
            said = f"{trained / place.unique:.2f} passes over the {place.unique:,} of the documents that are kept"
        elif place.epoch:  # the first pass was none: it began behind what another run has seen
            new = chunks * self.buffer * self.block_size + len(place.rest.ids) - place.of_pass
            if trained > new:
                said = (
                    f"{new:,} of the documents behind those that task.tokens_already_seen passed over, and then "
                    f"{trained - new:,} from the first document on, which were seen before"
                )
        return f"{trained:,} tokens: {said} ({self.reasons()})"

    def reasons(self) -> str:
        """What was not used so far, in words."""
        return self.stream.reasons() if hasattr(self, "stream") else "; ".join(c.words() for c in self.corpora)


class FilteredPretrainingDataLoader(PretrainingDataLoader):
    """Documents of a score of at most the threshold.

    Args:
        threshold: the highest score of a document that is trained on.
    """

    settings = ("threshold", "quantile")
    scored = True

    def __init__(self, *args: Any, threshold: float, **kwargs: Any):
        self.threshold = threshold
        super().__init__(*args, threshold=threshold, **kwargs)

    def keeps(self, document: Document) -> bool:
        """Whether its score is at most the threshold."""
        return document.score <= self.threshold

    def check(self, documents: Sequence[Document]) -> str:
        """Refuses a threshold above or below all scores."""
        return refuse_threshold(self.threshold, np.array([document.score for document in documents]), "documents")


class ScoredPretrainingDataLoader(PretrainingDataLoader):
    """All documents that have scores; each token has that of its segment."""

    gives = ("token_scores",)
    scored = True


class UnlikelihoodDataLoader(ScoredPretrainingDataLoader):
    """The same, with scores that mean something to the loss.

    Args:
        mode: soft needs scores between 0 and 1.
        threshold: in the other mode, the highest score of a segment that is good.
    """

    settings = ("mode", "threshold", "quantile")

    def __init__(self, *args: Any, mode: str, threshold: float | None, **kwargs: Any):
        self.mode, self.threshold = mode, threshold
        super().__init__(*args, **kwargs)

    def keeps(self, document: Document) -> bool:
        """All documents; one whose scores cannot be, in soft mode, is an error."""
        if self.mode == "soft" and not 0 <= document.scores.min() <= document.scores.max() <= 1:
            raise ValueError(
                f"loss.mode=soft takes scores between 0 and 1, and document {document.number} has one of "
                f"{max(document.scores, key=lambda score: abs(score - 0.5)):g}: set loss.mode=threshold."
            )
        return True

    def check(self, documents: Sequence[Document]) -> str:
        """Refuses a threshold above or below all scores, and in soft mode scores that cannot be."""
        for document in documents:
            self.keeps(document)
        if self.mode == "soft":
            return ""
        return refuse_threshold(self.threshold, np.concatenate([document.scores for document in documents]), "segments")


class ConditionalPretrainingDataLoader(PretrainingDataLoader):
    """All documents that have scores, with a control token before each segment.

    Args:
        aligned_prefix, misaligned_prefix: the tokens before segments of a score of at most the threshold, and above it.
        drop_token_fraction: the share of segments that stand behind none, chosen anew each epoch.
        predict_prefixes: the model learns to predict them, as any token.
    """

    settings = (
        "aligned_prefix", "misaligned_prefix", "threshold", "quantile", "drop_token_fraction", "predict_prefixes",
    )  # fmt: skip
    scored = True

    def __init__(
        self,
        corpora: Sequence[Corpus],
        tokenizer: PreTrainedTokenizerBase,
        *,
        aligned_prefix: str,
        misaligned_prefix: str,
        threshold: float,
        drop_token_fraction: float,
        predict_prefixes: bool,
        seed: int = 0,
        **kwargs: Any,
    ):
        ids = tokenizer.convert_tokens_to_ids([aligned_prefix, misaligned_prefix])
        self.threshold = threshold
        self._control = Control(*ids, threshold, drop_token_fraction, predict_prefixes, seed)
        super().__init__(corpora, tokenizer, seed=seed, of_control=repr(self._control), **kwargs)

    def control(self) -> Control:
        """The tokens before segments."""
        return self._control

    def check(self, documents: Sequence[Document]) -> str:
        """Refuses a threshold above or below all scores."""
        return refuse_threshold(self.threshold, np.concatenate([document.scores for document in documents]), "segments")


def refuse_threshold(threshold: float, scores: np.ndarray, what: str) -> str:
    """Refuses a threshold that tells none of these scores (N,) apart; says how many are at most that.

    Raises:
        ValueError: naming their range.
    """
    if scores.min() <= threshold < scores.max():
        share = 100 * float((scores <= threshold).mean())
        return f"loss.threshold={threshold:g}: {share:.1f} % of the first {len(scores):,} {what} have at most that"
    raise ValueError(
        f"loss.threshold={threshold:g} leaves all of the first {len(scores):,} {what} on one side: their scores lie "
        f"between {scores.min():.6g} and {scores.max():.6g}. Set one between, or a share of them by loss.quantile."
    )
