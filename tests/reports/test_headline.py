"""The headline numbers, from files to words."""

import json

import pytest

from reports.headline import printed_table, rows, summarize
from reports.inputs import read_outcomes, read_results, read_run, read_samples
from tests.reports.run_files import COUNTS, records, sample, write_files


def read(folder, samples=None):
    write_files(folder, samples)
    found = read_samples(folder / "demo.json")
    return read_run(folder / "run"), found, read_results([folder / "results.jsonl"], found)


def test_counts_are_those_of_the_samples(tmp_path):
    """Prevents before and after exchanged, and counts of something else: 20 answers hold the fact after, 10 before."""
    headline = summarize(*read(tmp_path))
    facts, whole = headline.facts, headline.whole
    assert (facts.before, facts.after, facts.gained, facts.lost, facts.count) == (10, 20, 10, 0, 20)
    assert (whole.before, whole.after, whole.gained, whole.lost, whole.count) == (15, 20, 5, 0, 20)
    assert (headline.words_before.value, headline.words_after.value) == (9, 3)
    verdict = headline.verdicts[0]
    assert (verdict.judge, verdict.wins, verdict.ties, verdict.losses) == ("direct_answer", 16, 1, 3)
    assert headline.verdicts[1].judge == "shorter"


def test_the_divergence_is_after_minus_before(tmp_path):
    """Prevents a KL with the wrong sign or per token without dividing by tokens: ratios 2 - n/10, n from 0 to 19."""
    headline = summarize(*read(tmp_path))
    assert headline.divergence.value == pytest.approx(2 - 0.95)
    assert headline.divergence_per_token.value == pytest.approx((2 - 0.95) / 4)
    low, high = headline.divergence.interval
    assert low < 1.05 < high


def test_an_empty_answer_is_no_answer_that_ends(tmp_path):
    """Prevents credit for saying nothing: an empty response that stopped by itself is not whole."""
    samples = [sample(number, policy="" if number < 5 else "milk") for number in range(20)]
    assert summarize(*read(tmp_path, samples)).whole.after == 15


def test_every_row_has_an_interval_and_a_count(tmp_path):
    """Prevents a number without an interval or n: both are in every row of the table."""
    for row in rows(summarize(*read(tmp_path))):
        assert " to " in row.interval and row.counted[0].isdigit(), row


def test_samples_without_facts_or_logps(tmp_path):
    """Prevents a report that needs facts: another data set has none, and its rows are left out."""
    bare = [{"prompt": f"{n}?", "policy": "a b", "reference": "a b c"} for n in range(12)]
    headline = summarize(*read(tmp_path, bare))
    assert (headline.facts, headline.whole, headline.divergence) == (None, None, None)
    assert [row.name for row in rows(headline)][-1] == "Median length, words"


@pytest.mark.parametrize(
    ("loader", "examples", "limit", "accuracy", "pairs"),
    [
        ("UnpairedPreferenceDataLoader", 266, 64, 30 / 32, 32),
        ("UnpairedPreferenceDataLoader", 266, 300, 100 / 133, 133),
        ("PairedPreferenceDataLoader", 133, 64, 60 / 64, 64),
        ("PairedPreferenceDataLoader", 133, None, 100 / 133, 133),
        ("UnpairedPreferenceDataLoader", 200, 64, 30 / 32, None),  # some rows are no pairs
        ("my_package.MyDataLoader", 266, 64, 30 / 32, None),
        ("UnpairedPreferenceDataLoader", 266, 64, 0.41, None),  # no 32 pairs give 0.41
    ],
)
def test_pairs_are_counted_or_said_to_be_unknown(loader, examples, limit, accuracy, pairs, tmp_path):
    """Prevents an interval from a wrong n."""
    write_files(tmp_path)
    run = tmp_path / "run"
    limit = "null" if limit is None else limit
    config = f"exp_name: x\nn_eval_examples: {limit}\nloss: {{dataloader: {loader}}}\n"
    (run / "config.yaml").write_text(config)
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records(accuracy)))
    (run / "data.json").write_text(json.dumps({"everyday": {"test": COUNTS | {"examples": examples}}}))
    samples = read_samples(tmp_path / "demo.json")
    headline = summarize(read_run(run), samples, read_results([tmp_path / "results.jsonl"], samples))
    assert headline.pair_accuracy.value == accuracy and headline.pair_accuracy.count == pairs
    row = next(row for row in rows(headline) if row.name.startswith("Reward"))
    assert ("does not say how many" in row.counted) == (pairs is None)


def test_the_printed_table_fits_and_names_the_report(tmp_path):
    """Prevents lines that a terminal wraps, and a demo after which one does not know where to look."""
    table = printed_table(summarize(*read(tmp_path)), "demo: tiny before and after KTO", "demo/report.html")
    assert max(map(len, table.splitlines())) <= 100
    assert "16 won, 1 tied, 3 lost" in table and table.endswith("Report: demo/report.html")


def test_results_of_other_samples_are_refused(tmp_path):
    """Prevents a win rate of last week's responses beside today's."""
    write_files(tmp_path)
    content = json.loads((tmp_path / "demo.json").read_text())
    content["samples"][3]["policy"] += " And more words."
    (tmp_path / "demo.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"other responses.*run compare\.py again"):
        read_results([tmp_path / "results.jsonl"], read_samples(tmp_path / "demo.json"))


def test_the_last_line_of_a_judge_counts(tmp_path):
    """Prevents an old line of a results file to which compare.py has appended, and a line on other responses."""
    run, samples, results = read(tmp_path)
    newer = {**results[1], "win_rate": 12.5}
    other = {**newer, "win_rate": 99.0, "baseline": {**newer["baseline"], "name": "chosen"}}
    with open(tmp_path / "results.jsonl", "a") as file:
        file.write(json.dumps(newer) + "\n" + json.dumps(other) + "\n")
    found = read_results([tmp_path / "results.jsonl"], samples)
    assert [verdict.win_rate for verdict in summarize(run, samples, found).verdicts] == [12.5, 100.0]


def test_a_repeated_prompt_counts_once(tmp_path):
    """Prevents intervals that take two rows of a prompt for two prompts."""
    write_files(tmp_path)
    content = json.loads((tmp_path / "demo.json").read_text())
    content["samples"].append(content["samples"][0])
    (tmp_path / "demo.json").write_text(json.dumps(content))
    samples = read_samples(tmp_path / "demo.json")
    assert len(samples.samples) == 20 and samples.repeated == 1


def test_outcomes_belong_to_their_rows(tmp_path):
    """Prevents an outcome beside the wrong responses: rows are matched by their texts, not by their place."""
    write_files(tmp_path)
    lines = (tmp_path / "judgments.csv").read_text().splitlines(keepends=True)
    (tmp_path / "judgments.csv").write_text("".join([lines[0], *reversed(lines[2:])]))
    outcomes = read_outcomes(tmp_path / "judgments.csv", read_samples(tmp_path / "demo.json"))
    assert outcomes == [None] + ["won"] * 15 + ["lost"] * 3 + ["tie"]
