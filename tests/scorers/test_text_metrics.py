"""Figures of texts against hand arithmetic, and their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reports.win_rates import wilson_interval
from scorers import estimates, text_metrics
from scorers.estimates import expected_maximum_estimate, mean_estimate, ratio_estimate, share_estimate


def test_lengths_distinct_words_and_their_entropy():
    """Prevents n-grams across texts, an n-gram counted twice as two, and an entropy of something else."""
    texts = ["a b a b", "c", "", "a a"]
    assert text_metrics.length(texts).mean == (7 + 1 + 0 + 3) / 4
    one = text_metrics.distinct(texts, 1)
    assert (one.mean, one.count) == (pytest.approx((2 / 4 + 1 + 1 / 2) / 3), 3), "the empty text has none"
    assert text_metrics.distinct(texts, 2).mean == pytest.approx((2 / 3 + 1) / 2)  # ab ba ab; aa
    shares = [4 / 7, 2 / 7, 1 / 7]  # a b c
    assert text_metrics.entropy(texts, 1).mean == pytest.approx(-sum(p * math.log(p) for p in shares))
    assert text_metrics.entropy(texts, 2).mean == pytest.approx(-(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25)))
    with pytest.raises(ValueError, match="no text has 3 words"):
        text_metrics.distinct(["a b"], 3)


def test_many_orders_of_ngrams_are_told_apart():
    """Prevents different n-grams that get one number, where products of word numbers are large."""
    generator = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in generator.integers(0, 40, 30)) for _ in range(20)]
    for size in (1, 2, 4):
        grams = text_metrics.count_ngrams(texts, size)
        expected = [len({tuple(words[i : i + size]) for i in range(31 - size)}) for words in map(str.split, texts)]
        assert np.bincount(grams.text).tolist() == expected and grams.totals.tolist() == [31 - size] * 20


def test_self_bleu_by_hand_and_as_recorded_from_nltk():
    """Prevents characters in the place of words, a text that is its own reference, and another smoothing.

    The recorded values are nltk 3.10.4's sentence_bleu with uniform 5-gram weights and SmoothingFunction().method1.
    """
    pair = ["the cat sat down", "the cat ran off"]
    # 1-grams 2/4, 2-grams 1/3, 3- and 4-grams 0.1/2 and 0.1/1, no 5-gram: 0.1/1; lengths are equal, so no penalty.
    assert text_metrics.self_bleu_scores(pair, 5) == pytest.approx([(0.5 / 3 * 0.05 * 0.1 * 0.1) ** 0.2] * 2)
    texts = [
        "a b c d e f", "a b c d e f g", "b c d e", "x y z", "", "a b a b a b a b", "d e f a b c", "a",
    ]  # fmt: skip
    assert text_metrics.self_bleu_scores(texts, 5) == pytest.approx(RECORDED[200], rel=1e-11)
    assert text_metrics.self_bleu_scores(texts, 5, references=3) == pytest.approx(RECORDED[3], rel=1e-11)


RECORDED = {
    200: [1.0, 0.778370541551, 0.63095734448, 0.0, 0.0, 0.0495144711143, 0.231623035124, 0.158489319246],
    3: [0.846481724891, 0.778370541551, 0.63095734448, 0.0, 0.0, 0.0495144711143, 0.231623035124, 0.00789071857288],
}


def test_lines():
    """Prevents shares of lines that count the end of the last one as a blank line, or indentation as another line."""
    texts = ["a\n\nb\n", "x\n x\nx", ""]
    assert text_metrics.blank_lines(texts).mean == 1 / 6
    assert text_metrics.repeated_lines(texts).mean == 2 / 5
    assert text_metrics.lines_of("a\n") == ["a"] and text_metrics.lines_of("a\n\n") == ["a", ""]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f():\n    return 1\n", True), ("def f():\n", True), ("x = (1,\n", True), ("x = 1\ny = (", True),
        ("if a:\n    b\nelse:\n", True), ('"""doc\n', True), ("x = 1\n'unfin", True), ("a b\n", False),
        ("x = 1\n  y = 2\n", False), ("x\x00\n", False), ("\ud800\n", False), ("", False), ("  \n", False),
        ("(" * 300 + "\n", False),
    ],
)  # fmt: skip
def test_what_is_python_as_far_as_it_goes(text: str, expected: bool):
    """Prevents samples that count as wrong because they were cut off, and a crash on what no parser takes."""
    assert text_metrics.is_parsable(text) is expected


def test_parsing_executes_nothing(tmp_path):
    """Prevents sampled code that runs when it is measured."""
    marker = tmp_path / "ran"
    assert text_metrics.parsable([f"open({str(marker)!r}, 'w')\n"]).mean == 1.0
    assert not marker.exists()


def test_the_expected_maximum_is_the_mean_over_all_subsets():
    """Prevents a maximum of disjoint groups that depends on the order of samples, and one that is too low."""
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    pairs = [max(values[i], values[j]) for i in range(5) for j in range(i)]
    assert expected_maximum_estimate(values, 2).mean == pytest.approx(sum(pairs) / len(pairs))
    assert expected_maximum_estimate(values, 5).mean == 5.0 and expected_maximum_estimate(values, 1).mean == 2.8
    assert expected_maximum_estimate(values, 5).low is None, "one group of five has no interval"
    with pytest.raises(ValueError, match="needs 25 samples"):
        expected_maximum_estimate(values, 25)


def test_the_expected_maximum_of_one_is_a_mean_with_students_interval():
    """Prevents an interval over samples where units have several: by hand, with 3 and with 1 degrees of freedom."""
    alone = expected_maximum_estimate([0.0, 1.0, 2.0, 3.0], 1)
    assert (alone.mean, alone.high - alone.mean) == pytest.approx((1.5, 3.182 * math.sqrt(5 / 12)), rel=0.01)
    together = expected_maximum_estimate([0.0, 1.0, 2.0, 3.0], 1, ["p", "p", "q", "q"])
    assert (together.mean, together.high - together.mean) == pytest.approx((1.5, 12.7062 * math.sqrt(1.0)))


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Prevents intervals that are too narrow or too wide: of 200 experiments 90 to 99 % hold the truth."""
    highest = sum(1 / k for k in range(1, 26))  # of 25 exponential values, in expectation
    truth = {"mean": 1.0, "maximum": highest, "share": math.exp(-2), "clusters": 1.0, "maximum of pairs": highest}
    held = dict.fromkeys(truth, 0)
    for seed in range(200):
        generator = np.random.default_rng(seed)
        values = generator.exponential(size=400)
        per_prompt = np.repeat(generator.exponential(size=40), 10)  # ten completions of a prompt, all alike
        found = {
            "mean": mean_estimate(values),
            "maximum": expected_maximum_estimate(values, 25),
            "share": share_estimate(list(values > 2)),
            "clusters": mean_estimate(per_prompt, list(np.repeat(np.arange(40), 10))),
            "maximum of pairs": expected_maximum_estimate(np.repeat(values, 2), 25, list(np.repeat(np.arange(400), 2))),
        }
        for name, estimate in found.items():
            held[name] += estimate.low <= truth[name] <= estimate.high
    assert all(180 <= count <= 198 for count in held.values()), held


def test_an_entropys_interval_is_that_of_many_experiments():
    """Prevents a bootstrap of entropies, whose resamples have fewer words and lie below the value."""

    def drawn(seed: int) -> list[str]:
        words = np.random.default_rng(seed).geometric(0.3, (300, 12))
        return [" ".join(map(str, row)) for row in words]

    values = [text_metrics.entropy(drawn(seed), 1).mean for seed in range(60)]
    found = text_metrics.entropy(drawn(0), 1)
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(values, ddof=1), rel=0.3)
    assert found.low < found.mean < found.high


def test_shares_have_the_reports_wilson_interval():
    """Prevents two Wilson intervals; completions of few prompts have a wider one."""
    found = share_estimate([True] * 7 + [False] * 13)
    assert (found.low, found.high) == pytest.approx(wilson_interval(0.35, 20))
    assert share_estimate([False] * 20).low == 0.0 and share_estimate([False] * 20).high > 0.1
    flags, units = [True] * 10 + [False] * 10, [0] * 10 + [1] * 10
    assert share_estimate(flags, units).high > share_estimate(flags).high + 0.1
    assert share_estimate([False] * 20, units).high > share_estimate([False] * 20).high


def test_one_unit_has_no_interval():
    """Prevents an interval of width 0 from one sample, or from many completions of one prompt."""
    assert mean_estimate([2.0]).as_json() == {"mean": 2.0, "low": None, "high": None, "n": 1}
    assert mean_estimate([2.0, 3.0], ["p", "p"]).low is None
    assert ratio_estimate([1.0, 3.0], [1.0, 1.0]).mean == 2.0
    with pytest.raises(ValueError, match="nothing to divide by"):
        ratio_estimate([1.0], [0.0])
    with pytest.raises(ValueError, match="each sample has one"):
        mean_estimate([1.0, 2.0], ["p"])


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.706), (4, 2.776), (11, 2.201), (100, 1.984)])
def test_students_quantile(freedom: int, expected: float):
    """Prevents a wrong expansion; values of published tables."""
    assert estimates.student_quantile(freedom) == pytest.approx(expected, abs=0.01)
    assert 3.15 < estimates.student_quantile(3) < 3.182


def test_names_of_metrics():
    """Prevents a metric under another name than Pretraining with Human Preferences logs, and a misspelled one."""
    logged = [text_metrics.text_metric(name)[0] for name in ("length", "distinct_2", "entropy_1", "self_bleu_5")]
    assert logged == ["length", "distinct-2-grams", "entropy-1-grams", "Self-BLEU-5"]
    for wrong in ("distinct", "distinct_0", "Distinct_1", "self_bleu_10"):
        with pytest.raises(ValueError, match=f"no metric {wrong!r}"):
            text_metrics.text_metric(wrong)
