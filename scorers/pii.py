"""Personal data: what scrubadub's detectors find, a character."""

from __future__ import annotations

import datetime
import importlib.util
import itertools
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from scorers.limits import TooSlow, time_limit
from scorers.scorer import TOO_SLOW, ScoredText, Scorer, Segment, need_package, unscored
from scorers.sentences import sentences

DETECTORS = (
    *("credential", "credit_card", "date_of_birth", "drivers_licence", "email", "national_insurance_number", "phone"),
    *("postalcode", "skype", "social_security_number", "tax_reference_number", "twitter", "url"),
    "vehicle_licence_plate",
)
"""scrubadub's detectors that need no download. Some know British documents alone (locale en_GB), one American ones."""
_RULES = 1  # of this module; in the identity

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """Personal data at [start, end) of a text; of several types where detectors overlap."""

    start: int
    end: int
    types: tuple[str, ...]


class PIIScorer(Scorer):
    """Pieces of personal data a character, overlapping ones counted once. Segments are sentences, whole pieces in each.

    Args:
        detectors: scrubadub's names; None: all of DETECTORS that know the locale.
        locale: of phone numbers and documents, such as en_US or en_GB.
        today: the day as YYYY-MM-DD by which a date is one of birth (18 to 100 years ago), so that scores stay.
        ner: finds names of people and organizations by a model of spaCy (scrubadub_spacy); None: if both are installed.
        ner_model: spaCy's name of that model.
        max_characters: a longer text is flawed ("too long").
        seconds: of processor time that one text may take; else it is flawed ("too slow").
    """

    name = "pii"
    bounds = (0.0, float("inf"))

    def __init__(
        self,
        detectors: Sequence[str] | None = None,
        locale: str = "en_US",
        today: str = "2026-01-01",
        ner: bool | None = None,
        ner_model: str = "en_core_web_sm",
        max_characters: int = 1_000_000,
        seconds: float = 30.0,
    ):
        need_package("scrubadub", "scrubadub", "scorer=pii")
        with _quiet():
            import scrubadub
            from scrubadub.detectors import detector_catalogue

        self.max_characters = max_characters
        self._seconds = seconds
        if not re.fullmatch("[a-z]{2}_[A-Z]{2}", locale):
            raise ValueError(f"scorer.locale={locale}: expected a language and a country, such as en_US.")
        day = _day(today)
        known = detector_catalogue.get_all()
        unknown = [one for one in detectors or () if one not in known]
        if unknown:
            raise ValueError(f"scorer.detectors: there is no {unknown[0]!r}; there are {', '.join(DETECTORS)}.")
        if detectors is None:
            supported = [getattr(known[one], "supported_locale", lambda locale: True)(locale) for one in DETECTORS]
            detectors = tuple(itertools.compress(DETECTORS, supported))
        self.detectors = tuple(detectors)
        with _quiet():
            made = [
                _dates_of_birth(day, locale) if one == "date_of_birth" else known[one](locale=locale)
                for one in self.detectors
            ]
            self.finds_names = _has_names(ner, ner_model)
            made += [_names(ner_model, locale)] if self.finds_names else []
            self._scrubber = scrubadub.Scrubber(detector_list=made, post_processor_list=[], locale=locale)
        if not self.finds_names:
            self.notes = ("Names of people and places are not covered: no detector of named entities is installed.",)
            log.warning("%s", self.notes[0])
        model = ner_model if self.finds_names else "none"
        self._identity = (
            f"pii rules={_RULES} scrubadub={scrubadub.__version__} detectors={','.join(self.detectors)} "
            f"locale={locale} today={today} ner={model} max_characters={max_characters}"
        )

    @property
    def identity(self) -> str:
        return self._identity

    def score_texts(self, texts: Sequence[str]) -> list[float | None]:
        """Pieces a character; None where a text took too long, or a detector failed."""
        scores = []
        for text in texts:
            found = self.find(text)
            scores.append(None if isinstance(found, str) else len(found) / len(text))
        return scores

    def score_documents(self, texts: Sequence[str]) -> list[ScoredText]:
        return [self._score_document(text) for text in texts]

    def _score_document(self, text: str) -> ScoredText:
        flaw = self.flaw_of(text)
        found = flaw or self.find(text)
        if isinstance(found, str):
            return unscored(text, found)
        segments = []
        pieces = iter(found)
        piece = next(pieces, None)
        start = count = 0
        for _, end in sentences(text):
            while piece is not None and piece.start < end:
                count += 1
                last, piece = piece, next(pieces, None)
                if last.end > end:
                    break  # the sentence goes on to the piece's end
            else:
                if not (count and last.end > end):
                    segments.append(Segment(start, end, count / (end - start)))
                    start, count = end, 0
        return ScoredText(tuple(segments))

    def find(self, text: str) -> list[Finding] | str:
        """What is found, in order, or the flaw of a text that cannot be looked at. Findings do not overlap."""
        try:
            with time_limit(self._seconds), _quiet():
                return [
                    Finding(one.beg, one.end, tuple(part.type for part in getattr(one, "filths", (one,))))
                    for one in self._scrubber.iter_filth(text)
                ]
        except TooSlow:
            return TOO_SLOW
        except Exception as error:  # its detectors were not written for hostile text
            return f"scrubadub failed ({type(error).__name__})"


def _day(today: str) -> datetime.datetime:
    try:
        return datetime.datetime.strptime(today, "%Y-%m-%d")
    except ValueError:
        raise ValueError(f"scorer.today={today}: expected a day, such as 2026-01-01.") from None


def _quiet() -> warnings.catch_warnings:
    """dateparser, textblob and others warn of their own future."""
    return warnings.catch_warnings(action="ignore")


def _dates_of_birth(today: datetime.datetime, locale: str) -> Any:
    """scrubadub's detector of dates of birth, which takes the clock's day, with a day that stays.

    Where no word of the context that it asks for stands in a text, the text is not searched for dates: that takes most
    of the time of all detectors.
    """
    import dateparser
    from scrubadub.detectors import DateOfBirthDetector
    from scrubadub.filth import DateOfBirthFilth, Filth

    settings = {"RELATIVE_BASE": today}

    def fits(date: datetime.datetime | None) -> bool:
        age = -1 if date is None else today.year - date.year
        return DateOfBirthFilth.min_age_years <= age <= DateOfBirthFilth.max_age_years

    class Birth(DateOfBirthFilth):  # type: ignore[misc]
        def is_valid(self) -> bool:
            return fits(dateparser.parse(self.text, settings=settings))

    class Births(DateOfBirthDetector):  # type: ignore[misc]
        def iter_filth(self, text: str, document_name: str | None = None) -> Iterator[Filth]:
            from dateparser.search import search_dates

            if not any(word in text.lower() for word in self.context_words):
                return
            lines = text.split("\n")
            for words, date in search_dates(text, languages=[self.language], settings=settings) or ():
                if words.startswith("+") or not fits(date) or not self._has_context(lines, words):
                    continue
                start = text.find(words)
                while start >= 0:
                    about = {"detector_name": self.name, "document_name": document_name, "locale": self.locale}
                    yield Birth(beg=start, end=start + len(words), text=words, **about)
                    start = text.find(words, start + len(words))

        def _has_context(self, lines: list[str], words: str) -> bool:
            for number, line in enumerate(lines):
                if words in line:
                    near = lines[max(0, number - self.context_before) : number + self.context_after + 1]
                    if any(word in " ".join(near).lower() for word in self.context_words):
                        return True
            return False

    return Births(locale=locale)


def _has_names(wanted: bool | None, model: str) -> bool:
    """Whether names are looked for; ValueError where they should be, and what finds them is not installed."""
    if wanted is False:
        return False
    there = importlib.util.find_spec("scrubadub_spacy") is not None and importlib.util.find_spec(model) is not None
    if wanted and not there:
        raise ValueError(
            f"scorer.ner=true needs scrubadub_spacy and the model {model}, which are not both installed: "
            f"`pip install scrubadub_spacy && python -m spacy download {model}`, or leave it out."
        )
    return there


def _names(model: str, locale: str) -> Any:
    from scrubadub_spacy.detectors.spacy import SpacyEntityDetector

    return SpacyEntityDetector(model=model, locale=locale)
