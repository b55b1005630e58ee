"""Win rates: the accounting, and whether the interval is what it says."""

import csv
import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.win_rates import format_row, format_table, result_line, row_outcome, summarize, wilson_interval, write_csv

BOTH = ("candidate", "baseline")


@dataclass
class Row:
    prompt: str
    verdicts: tuple[str, ...]
    shown_first: tuple[str, ...] = BOTH
    answers: tuple[str, ...] = ()


def _rows(*verdicts, shown_first=BOTH):
    return [Row(str(index), pair, shown_first) for index, pair in enumerate(verdicts)]


@pytest.mark.parametrize(
    ("wins", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_wilsons(wins, count, low, high):
    """Prevents a slip in the formula: the values are those of Newcombe (1998), Statistics in Medicine 17, table I."""
    assert wilson_interval(wins / count, count) == pytest.approx((low, high), abs=6e-5)


def test_the_interval_is_never_a_point():
    """Prevents "100 % +- 0" after ten wins of ten, which the normal approximation gives."""
    assert wilson_interval(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson_interval(0.0, 1)[1] > 0.7


@pytest.mark.parametrize("ties", [0.0, 0.4])
@pytest.mark.parametrize("rate", [0.5, 0.8, 0.97])
def test_the_interval_covers_the_true_rate(rate, ties):
    """Prevents an interval that is too narrow: of 2,000 simulated comparisons 95 % must cover the truth."""
    generator = random.Random(0)
    weights = (rate * (1 - ties), ties, (1 - rate) * (1 - ties))
    truth = weights[0] + ties / 2
    covered = 0
    for _ in range(2000):
        mean = sum(generator.choices((1.0, 0.5, 0.0), weights, k=60)) / 60
        low, high = wilson_interval(mean, 60)
        covered += low <= truth <= high
    assert covered / 2000 > 0.935


def test_rows_of_one_prompt_are_one_unit():
    """Prevents eight samples of each prompt from making the interval as narrow as eight times the prompts would."""
    once = _rows(("candidate",) * 2, ("baseline",) * 2, ("candidate",) * 2)
    many = summarize([row for row in once for _ in range(8)])
    assert (many.total, many.rows) == (3, 24)
    assert (many.win_rate, many.ci95) == (summarize(once).win_rate, summarize(once).ci95)
    mixed = [Row("a", ("candidate",) * 2), Row("a", ("baseline",) * 2), Row("a", ("undecided", "candidate"))]
    assert (summarize(mixed).ties, summarize(mixed).rows_undecided, summarize(mixed).undecided) == (1, 1, 0)
    assert summarize(mixed).bounds == [33.3333, 66.6667]


def test_both_orders_make_one_score():
    """Prevents a judge that always prefers the first place from giving anybody a win."""
    result = summarize(_rows(("candidate", "baseline"), ("candidate", "tie"), ("tie", "baseline"), ("tie", "tie")))
    assert (result.candidate_wins, result.baseline_wins, result.ties) == (1, 1, 2)
    assert (result.win_rate, result.swap_consistency) == (50.0, 25.0)
    assert result.first_wins == 100.0  # three of three verdicts for one side


def test_what_is_missing_is_nobodys_win():
    """Prevents HALOs' counting, where what could not be parsed was a loss in the rate and 'B' in the CSV."""
    assert row_outcome(("candidate", "undecided")) == "undecided"
    assert row_outcome(("undecided", "failed")) == "failed"
    result = summarize(_rows(("candidate",) * 2, ("candidate", "undecided"), ("failed", "baseline"), ("failed",) * 2))
    assert (result.candidate_wins, result.undecided, result.failed) == (1, 1, 2)
    assert result.win_rate == 100.0
    assert result.bounds == [25.0, 100.0]


VERDICTS = st.sampled_from(["candidate", "baseline", "tie", "undecided", "failed"])


@given(st.lists(st.tuples(st.integers(0, 5), st.tuples(VERDICTS, VERDICTS)), min_size=1, max_size=30))
def test_every_prompt_is_counted_once(rows):
    """Prevents wins that do not sum to n, and a rate outside of its bounds or interval."""
    result = summarize([Row(str(prompt), verdicts) for prompt, verdicts in rows])
    counts = result.candidate_wins, result.baseline_wins, result.ties, result.undecided, result.failed
    assert sum(counts) == result.total == len({prompt for prompt, _ in rows})
    assert 0 <= result.bounds[0] <= result.bounds[1] <= 100
    if result.win_rate is None:
        assert result.undecided + result.failed == result.total and result.ci95 is None
    else:
        assert result.ci95[0] <= result.win_rate <= result.ci95[1]
        assert result.bounds[0] - 1e-3 <= result.win_rate <= result.bounds[1] + 1e-3


def _line(rows, **more):
    lengths = [2.0] * len({row.prompt for row in rows})
    sides = {"candidate": ("policy", lengths), "baseline": ("chosen", lengths)}
    return result_line(summarize(rows), seed=0, exp_name="run", judge="j", orders=2, **sides, **more)


def test_the_line_has_the_keys_that_are_promised():
    """Prevents breaking what reads HALOs' result files."""
    line = _line(_rows(("candidate",) * 2, ("undecided",) * 2), rule="the words", config={"lr": 1})
    assert {"date", "total", "seed", "exp_name", "judge", "candidate", "baseline", "config"} < set(line)
    assert line["candidate"] == {"name": "policy", "wins": 1, "lengths": [2.0, 2.0]}
    assert {"win_rate", "ci95", "ties", "undecided", "failed", "orders", "rule", "cache_hits"} < set(line)
    assert line["rule"] == "the words" and "rule" not in _line(_rows(("tie",) * 2))


def test_the_table_says_what_is_missing():
    """Prevents a rate from being shown without its interval, or without the bounds when much is missing."""
    table = format_table(_line(_rows(("candidate",) * 2, ("undecided",) * 2)))
    assert "100.0 % of 1 decided prompts" in table and "20.7 to 100.0 %" in table and "50.0 to 100.0 % if all" in table
    assert "if all" not in format_table(_line(_rows(("candidate",) * 2)))
    assert "no prompt has a verdict" in format_table(_line(_rows(("undecided",) * 2)))
    twice = _rows(("candidate",) * 2) * 2
    assert "2 rows of 1 prompts" in format_table(_line(twice))


def test_rows_are_written_for_people(tmp_path):
    """Prevents an undecided row from becoming somebody's in the CSV, or text with commas and lines from breaking it."""
    rows = _rows(("candidate", "undecided"))
    rows[0].answers = ("a,\n'b' \ud800", "")
    rows.append(Row("same", ("tie", "tie"), ()))
    write_csv(tmp_path / "x.csv", rows, ["p", "q"], ["c", "d"])
    written = list(csv.DictReader((tmp_path / "x.csv").open(newline="", encoding="utf-8")))
    assert written[0]["answer_1"] == "a,\n'b' \\ud800"
    assert [row["outcome"] for row in written] == ["undecided", "0.5"]
    assert (written[0]["shown_first_2"], written[0]["verdict_2"], written[1]["shown_first_1"]) == (
        "baseline",
        "undecided",
        "",
    )
    assert format_row(rows[0]) == "'0': candidate first: candidate; baseline first: undecided"
    assert format_row(rows[1]) == "'same': tie; tie"
