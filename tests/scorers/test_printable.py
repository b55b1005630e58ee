"""What is printed of data, files and servers."""

from hypothesis import given
from hypothesis import strategies as st

from reports import markup
from scorers.printable import printable


def test_control_characters_are_shown_and_text_is_kept():
    """Prevents a terminal that obeys what a data set says, and a printout without its lines, tabs or letters."""
    assert printable("a\x1b[31m\x00\x7f\x9b\r") == r"a\x1b[31m\x00\x7f\x9b\r"
    assert printable("a\u202eb\u2066\u2028") == r"a\u202eb\u2066\u2028"
    kept = "one\n\ttwo \u00e4 \u4e2d \U0001f600 \\x1b"
    assert printable(kept) == kept
    printable("\ud800").encode("utf-8")


@given(st.text())
def test_the_report_prints_alike(text):
    """Prevents the report, which imports none of our packages, from printing what compare.py would not."""
    assert printable(text) == markup.printable(text)
