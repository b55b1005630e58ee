"""Profanity: alt-profanity-check called directly, and its pickles, which are read when they are the pinned ones."""

import pytest

from scorers import profanity
from scorers.profanity import ProfanityScorer
from scorers.scorer import EMPTY, NUL, Sample

TEXTS = ["What a lovely day", "You are a damn idiot", "Thank you. Shut up, you stupid fool! Have a nice day."]


@pytest.fixture(scope="module")
def scorer():
    return ProfanityScorer()


def test_as_the_package_itself_says(scorer):
    """Prevents a class that is taken for the other: 1 is offensive."""
    from profanity_check import predict_prob

    scores = scorer.score([Sample("damn", text) for text in TEXTS])
    assert scores == predict_prob(TEXTS).tolist()
    assert scores[0] < 0.1 < 0.8 < scores[1] and scorer.direction == "higher_is_worse"
    assert scorer.score([Sample("", TEXTS[1])]) == [scores[1]]  # alone as in a batch


def test_sentences_have_scores_of_their_own(scorer):
    """Prevents that a bad sentence's score is given to its neighbours."""
    (document,) = scorer.score_documents([TEXTS[2]])
    first, second, third = document.segments
    assert second.score > 0.8 > 0.2 > max(first.score, third.score)
    assert document.score == pytest.approx((first.score + second.score + third.score) / 3)
    assert second.score == scorer.score([Sample("", "Shut up, you stupid fool! ")])[0]


def test_flaws(scorer):
    """Prevents a probability for what is no text, and a failure of a whole batch by one empty completion."""
    assert scorer.score([Sample("a", ""), Sample("", "\0"), Sample("", TEXTS[0])])[:2] == [None, None]
    assert [one.flaw for one in scorer.score_documents(["", "\0", TEXTS[0]])] == [EMPTY, NUL, None]
    assert scorer.score([]) == [] and scorer.score_documents([]) == []


def test_other_pickles_are_not_read(monkeypatch):
    """Prevents that a changed package runs code: the two files are compared with the hashes of the pinned wheel."""
    monkeypatch.setattr(profanity, "FILES", dict.fromkeys(profanity.FILES, "0" * 64))
    with pytest.raises(ValueError, match=r"model\.joblib is not the file .* requirements-scorers"):
        ProfanityScorer()
