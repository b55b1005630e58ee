"""Personal data: hand arithmetic, scrubadub called directly, a day that stays, and hostile text."""

import datetime
import sys
import types

import pytest
import scrubadub

from scorers import pii
from scorers.pii import DETECTORS, PIIScorer
from scorers.scorer import EMPTY, NUL, SURROGATE, TOO_LONG, TOO_SLOW, Sample

BORN = "She was born on 12 March 1990."
TEXTS = [
    "Write to jane.doe@example.com or call +1 212 555 0123. Nobody answers.",
    "My card is 4111111111111111 and my SSN is 078-05-1120.",
    "See https://www.example.com/a?b=c, or ask @somebody; username: root password: secret",
    "Nothing to see here. Nothing at all.",
    "a@b.co\nis short",
]
CATASTROPHIC = "login" + " " * 20_000 + "x"


@pytest.fixture(scope="module")
def scorer():
    return PIIScorer()


def test_by_hand(scorer):
    """Prevents a count that is divided twice by the length, as the original's corpus has it, or by another length."""
    text = "Hello there. My mail is jane@example.com, or joe@example.com. Bye."
    assert scorer.score([Sample("jane@example.com", text)]) == [2 / len(text)]
    first, second, third = scorer.score_segments(text)
    assert [text[one.start : one.end] for one in (first, third)] == ["Hello there. ", "Bye."]
    assert (first.score, second.score, third.score) == (0.0, 2 / (second.end - second.start), 0.0)
    assert scorer.score_documents([text])[0].score == pytest.approx(second.score / 3)


def test_as_scrubadub_itself_finds(scorer):
    """Prevents findings that are lost or counted twice on the way; where two overlap they are one."""
    direct = scrubadub.Scrubber(detector_list=[])
    for name in scorer.detectors:
        direct.add_detector(name)
    found = 0
    for text in [*TEXTS, BORN]:
        expected = [(one.beg, one.end) for one in direct.iter_filth(text)]
        assert [(one.start, one.end) for one in scorer.find(text)] == expected
        found += len(expected)
    assert found == 9
    assert scorer.find(TEXTS[0])[0].types == ("email",)
    assert [one.types for one in scorer.find(BORN)] == [("date_of_birth",)]


def test_all_offline_detectors_of_the_locale(scorer):
    """Prevents a detector that is left out because scrubadub does not take it by default."""
    assert set(scorer.detectors) > {"email", "phone", "url", "credit_card", "social_security_number", "date_of_birth"}
    assert "social_security_number" not in PIIScorer(locale="en_GB").detectors
    assert "postalcode" in PIIScorer(locale="en_GB").detectors and set(scorer.detectors) < set(DETECTORS)


def test_segments_hold_whole_findings(scorer):
    """Prevents a boundary, and later a control token, inside of an address that looks like two sentences."""
    for text in [*TEXTS, BORN, "Ask at username: bob password: Hi. There it is. More. End"]:
        segments, found = scorer.score_segments(text), scorer.find(text)
        assert "".join(text[one.start : one.end] for one in segments) == text
        for one in found:
            assert any(part.start <= one.start and one.end <= part.end for part in segments)
        assert sum(part.score * (part.end - part.start) for part in segments) == pytest.approx(len(found))


def test_the_day_stays(scorer, monkeypatch):
    """Prevents another score next year: a date is one of birth 18 to 100 years before `today`."""
    years = {1925: 0, 1926: 1, 2008: 1, 2009: 0}

    def counts(of):
        return {year: len(of.find(f"Date of birth: 12 March {year}")) for year in years}

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2060, 1, 1, tzinfo=tz)

    assert counts(scorer) == years
    monkeypatch.setattr("scrubadub.detectors.date_of_birth.datetime", Later)
    monkeypatch.setattr("dateparser.search.search.datetime", Later, raising=False)
    assert counts(scorer) == years
    assert counts(PIIScorer(today="2027-05-05")) == {1925: 0, 1926: 0, 2008: 1, 2009: 1}
    assert scorer.identity != PIIScorer(today="2027-05-05").identity


def test_names_without_a_model_are_said_not_to_be_covered(caplog):
    """Prevents a report by which a text full of names has no personal data."""
    made = PIIScorer()
    assert "Names of people and places are not covered" in made.notes[0] and made.notes[0] in caplog.text
    assert "ner=none" in made.identity
    with pytest.raises(ValueError, match="scrubadub_spacy"):
        PIIScorer(ner=True)


def test_names_are_found_where_spacy_is_installed(monkeypatch):
    """Prevents a NER that is installed and not used; stands in for scrubadub_spacy, which no test can install."""

    class Names(scrubadub.detectors.Detector):
        name = "spacy"

        def __init__(self, model, locale):
            super().__init__(locale=locale)
            self.model = model

        def iter_filth(self, text, document_name=None):
            start = text.index("Jane")
            yield scrubadub.filth.NameFilth(beg=start, end=start + 4, text="Jane", document_name=document_name)

    module = types.ModuleType("scrubadub_spacy.detectors.spacy")
    module.SpacyEntityDetector = Names
    for name in ("scrubadub_spacy", "scrubadub_spacy.detectors"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    find = pii.importlib.util.find_spec
    there = ("scrubadub_spacy", "en_core_web_sm")
    monkeypatch.setattr(pii.importlib.util, "find_spec", lambda name: name in there or find(name))
    made = PIIScorer()
    assert [one.types for one in made.find("This is Jane.")] == [("name",)]
    assert made.notes == () and "ner=en_core_web_sm" in made.identity
    assert PIIScorer(ner=False).find("This is Jane.") == []


@pytest.mark.parametrize(
    ("text", "flaw"),
    [("", EMPTY), ("\0 a@b.co", NUL), ("a \udc00", SURROGATE), ("a" * 1_000_001, TOO_LONG)],
)
def test_flaws(text, flaw, scorer):
    """Prevents the best score there is for a text that nobody looked at."""
    assert scorer.score([Sample("", text)]) == [None]
    assert scorer.score_documents([text])[0].flaw == flaw


def test_hostile_text_is_given_up():
    """Prevents a corpus that stops for ever: scrubadub's expression for credentials takes cubic time here."""
    made = PIIScorer(seconds=0.5)
    first, second = made.score_documents([CATASTROPHIC, TEXTS[0]])
    assert first.flaw == TOO_SLOW and first.score is None and second.score > 0


def test_a_detector_that_fails_is_a_flaw(scorer, monkeypatch):
    """Prevents the original's 0.0 for a text in which a detector raised an error."""

    def fail(text):
        raise OverflowError

    monkeypatch.setattr(scorer._scrubber, "iter_filth", fail)
    assert scorer.score([Sample("", "some text")]) == [None]
    assert scorer.score_documents(["some text"])[0].flaw == "scrubadub failed (OverflowError)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"detectors": ["mail"]}, "no 'mail'"),
        ({"locale": "english"}, "such as en_US"),
        ({"today": "soon"}, "2026-01-01"),
    ],
)
def test_wrong_settings(arguments, message):
    """Prevents an error out of the depth of a library."""
    with pytest.raises(ValueError, match=message):
        PIIScorer(**arguments)
