"""Facts as the report reads them must be facts as the judge reads them."""

from hypothesis import given
from hypothesis import strategies as st

from reports.facts import fact_spans, says_all
from scorers.rules import has_facts, words_until_facts

PIECES = [
    "5",
    "5,000",
    "1.5",
    "five",
    "Five",
    "New",
    "York",
    "new york",
    "C",
    "C++",
    ".",
    ",",
    " ",
    "\n",
    "_",
    "é",
    "x",
    "fives",
]
FACTS = ["5|five", "New York", "C++", "1.5", "é", "x|York", "5,000", "C"]


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.lists(st.sampled_from(FACTS), min_size=1, max_size=3))
def test_the_report_and_the_judge_agree(pieces, facts):
    """Prevents counts in the report that contradict the rule printed beside them: the two readings live apart."""
    text = "".join(pieces)
    assert says_all(text, facts) == has_facts(text, facts)
    spans = fact_spans(text, facts)
    if None not in spans:
        assert words_until_facts(text, facts) == len(text[: max(end for _, end in spans)].split())


def test_spans_are_the_words():
    """Prevents marks that stand beside the fact."""
    text = "In New  York there are five, not 15, of them."
    spans = fact_spans(text, ["new york|NYC", "5|five", "seven"])
    assert [span and text[slice(*span)] for span in spans] == ["New  York", "five", None]
