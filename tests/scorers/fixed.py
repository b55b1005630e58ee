"""A scorer for tests of what scorers are used for: the share of a letter in a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from scorers.scorer import Scorer


class LetterScorer(Scorer):
    """How much of a text is one letter; remembers the texts."""

    name = "letter"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    notes = ("Of a letter alone.",)

    def __init__(self, letter: str = "e"):
        self.letter = letter
        self.seen: list[str] = []

    @property
    def identity(self) -> str:
        """The letter."""
        return f"letter {self.letter}"

    def score_texts(self, texts: Sequence[str]) -> list[float | None]:
        """One for each."""
        self.seen += texts
        return [text.count(self.letter) / len(text) for text in texts]
