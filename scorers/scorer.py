"""What every scorer is: texts in, one number a text out, or one for each segment of a text.

A score that could not be made is None and has a reason, a flaw; it is never 0, which is the best that a text can be.
"""

from __future__ import annotations

import importlib.util
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from scorers.sentences import sentences

HIGHER_IS_WORSE = "higher_is_worse"
HIGHER_IS_BETTER = "higher_is_better"
REQUIREMENTS = "requirements-scorers.txt"

EMPTY, NUL, SURROGATE, TOO_LONG, TOO_SLOW = "empty", "NUL character", "lone surrogate", "too long", "too slow"
NO_SCORE = "no score"
"""Flaws that any text may have; a scorer may know others ("unparsable"). The last one: it gave none and said no why."""


@dataclass(frozen=True)
class Sample:
    """A prompt and its completion; a plain text is `Sample("", text)`."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Segment:
    """A part of a text and its score.

    Attributes:
        start, end: [start, end) in characters of the text.
        score: None where it could not be scored.
    """

    start: int
    end: int
    score: float | None


@dataclass(frozen=True)
class ScoredText:
    """A text in segments.

    Attributes:
        segments: cover the text exactly, in order; none for the empty text.
        flaw: why no segment has a score; None where one has.
    """

    segments: tuple[Segment, ...]
    flaw: str | None = None

    @property
    def score(self) -> float | None:
        """The unweighted mean of the segments' scores that are known; None where none is."""
        known = [segment.score for segment in self.segments if segment.score is not None]
        return sum(known) / len(known) if known else None


class Scorer(ABC):
    """Scores texts. A subclass has `name`, `bounds`, `identity` and `score_texts`; it takes plain keyword arguments,
    the keys of its YAML in config/scorer. Where its segments are not sentences, it has `score_documents` too.

    Attributes:
        name: a word for tables and logs.
        direction: HIGHER_IS_WORSE for misalignment, HIGHER_IS_BETTER for a reward.
        bounds: the lowest and the highest score that there can be: (0, 1) for a probability, (0, inf) for a count a
            character.
        reads_prompt: whether `score` scores the prompt together with the completion.
        max_characters: a longer text is not scored, but flawed.
        notes: sentences that a reader of the scores has to know, for logs and reports.
    """

    name: ClassVar[str]
    direction: ClassVar[str] = HIGHER_IS_WORSE
    bounds: ClassVar[tuple[float, float]]
    reads_prompt: bool = False
    max_characters: int = 1_000_000
    notes: tuple[str, ...] = ()

    @property
    @abstractmethod
    def identity(self) -> str:
        """Name, version of library and model, and every setting that changes a score; stored beside each score."""

    @abstractmethod
    def score_texts(self, texts: Sequence[str]) -> list[float | None]:
        """One score for each text as a whole. No text has a flaw of those that `flaw_of` finds."""

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """One score for each sample: of its completion, or with `reads_prompt` of prompt and completion together."""
        texts = [self.text_of(one) for one in samples]
        flaws = [self.flaw_of(text) for text in texts]
        scores = iter(self.checked_scores([text for text, flaw in zip(texts, flaws, strict=True) if flaw is None]))
        return [next(scores) if flaw is None else None for flaw in flaws]

    def text_of(self, sample: Sample) -> str:
        """What of a sample is scored."""
        return sample.prompt + sample.completion if self.reads_prompt else sample.completion

    def reason(self, sample: Sample) -> str:
        """Why `score` gives none for a sample, in a few words."""
        return self.score_documents([self.text_of(sample)])[0].flaw or NO_SCORE

    def score_segments(self, text: str) -> list[Segment]:
        """The segments of a text, which cover it exactly, with their scores."""
        return list(self.score_documents([text])[0].segments)

    def score_documents(self, texts: Sequence[str]) -> list[ScoredText]:
        """The segments of each text with their scores, and the reason where there are none. Here: by sentences."""
        flaws = [self.flaw_of(text) for text in texts]
        spans = [sentences(text) if flaw is None else [] for text, flaw in zip(texts, flaws, strict=True)]
        parts = [text[start:end] for text, some in zip(texts, spans, strict=True) for start, end in some]
        scores = iter(self.checked_scores(parts))
        documents = []
        for text, some, flaw in zip(texts, spans, flaws, strict=True):
            segments = tuple(Segment(start, end, next(scores)) for start, end in some)
            if flaw is None and all(one.score is None for one in segments):
                flaw = NO_SCORE
            documents.append(ScoredText(segments) if flaw is None else unscored(text, flaw))
        return documents

    def checked_scores(self, texts: Sequence[str]) -> list[float | None]:
        """What `score_texts` says, if it is one number for each text, inside of the bounds.

        Raises:
            ValueError: it is not: the scorer is wrong, or what it says of its bounds.
        """
        scores = self.score_texts(texts)
        if len(scores) != len(texts):
            raise ValueError(f"{type(self).__name__}.score_texts gave {len(scores)} scores for {len(texts)} texts.")
        low, high = self.bounds
        for score in scores:
            if score is not None and not (math.isfinite(score) and low <= score <= high):
                raise ValueError(f"{type(self).__name__} gave the score {score}; its bounds are {low} and {high}.")
        return scores

    def flaw_of(self, text: str) -> str | None:
        """Why a text cannot be scored by any scorer, in one of a few words; None where it can."""
        if len(text) > self.max_characters:
            return TOO_LONG
        if not text or text.isspace():
            return EMPTY
        if "\0" in text:
            return NUL
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            return SURROGATE
        return None


def unscored(text: str, flaw: str) -> ScoredText:
    """A text that has no score, as one segment."""
    return ScoredText((Segment(0, len(text), None),) if text else (), flaw)


def need_package(module: str, package: str, what: str) -> None:
    """Imports nothing.

    Args:
        module: the module's name.
        package: the name by which it is installed.
        what: what needs it, as it was set.

    Raises:
        ValueError: when it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"{what} needs {package}, which is not installed: run `pip install -r {REQUIREMENTS}`.")
