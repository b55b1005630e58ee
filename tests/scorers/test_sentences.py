"""Sentences: they cover the text, end where a sentence does, and cost no more than the text's length."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorers.sentences import sentences


def cut(text: str) -> list[str]:
    return [text[start:end] for start, end in sentences(text)]


@given(st.text(alphabet="aB.!?…。\"') \n\t1é", max_size=60))
def test_they_cover_the_text(text):
    """Prevents characters that belong to no segment, or to two: their tokens would have no score."""
    assert "".join(cut(text)) == text
    assert all(part for part in cut(text))
    assert not any(part.isspace() for part in cut(text)) or text.isspace()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two!  Three?", ["One. ", "Two!  ", "Three?"]),
        ("Dr. Li met J. K. Roe at 3 p.m. on Monday. He went.",
         ["Dr. Li met J. K. Roe at 3 p.m. on Monday. ", "He went."]),
        ('"Really?" she asked. (Yes.) I stay. We go.', ['"Really?" she asked. ', "(Yes.) ", "I stay. ", "We go."]),
        ("A title\n\nA line\nand its rest\n \n Last", ["A title\n\n", "A line\nand its rest\n \n ", "Last"]),
        ("\n\n  Begins with space. Ends. ", ["\n\n  Begins with space. ", "Ends. "]),
        ("私は行く。彼も。", ["私は行く。", "彼も。"]),
        ("Wait... what? www.a.com is v1.2.3 now", ["Wait... what? www.a.com is v1.2.3 now"]),
        ("", []),
        (" \n\n ", [" \n\n "]),
    ],
)  # fmt: skip
def test_where_they_end(text, expected):
    """Prevents a control token behind `Dr.` or inside of a number, and two sentences that are scored as one."""
    assert cut(text) == expected


HOSTILE = ["." * 300_000, "\n" * 300_000, ". " * 100_000, '."' * 100_000, "." + " " * 99_999]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_takes_linear_time(text):
    """Prevents an hour over a line of dots: a quadratic expression takes 45,000,000,000 steps for it."""
    begun = time.process_time()
    assert "".join(cut(text)) == text
    assert time.process_time() - begun < 3
