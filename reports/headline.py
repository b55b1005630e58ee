"""The headline numbers of a report, each with its 95 % interval and what it was counted over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from reports.facts import says_all
from reports.inputs import Run, Sample, Samples, setting
from reports.intervals import Interval, mean_interval, median_interval, paired_difference, ratio_interval
from reports.win_rates import wilson_interval

BASELINE_RULE = "shorter"  # the rule that every other judge is shown beside


@dataclass(frozen=True)
class Verdict:
    """What one judge preferred, after to before: a result line of compare.py. Percent; None without any verdict."""

    judge: str
    rule: str
    win_rate: float | None
    interval: Interval | None
    wins: int
    ties: int
    losses: int
    undecided: int
    failed: int

    @property
    def decided(self) -> int:
        """Prompts with a verdict."""
        return self.wins + self.ties + self.losses


@dataclass(frozen=True)
class Change:
    """For how many of `count` prompts something holds; the interval is of after - before, in [-1, 1]."""

    before: int
    after: int
    gained: int
    lost: int
    count: int
    interval: Interval


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval where there is one, and the number of units that it was made of (None: unknown)."""

    value: float
    interval: Interval | None
    count: int | None


@dataclass(frozen=True)
class Headline:
    """All headline numbers; None where the files do not have what one needs.

    Attributes:
        verdicts: the judges, `shorter` last.
        facts: prompts whose response says all the facts.
        whole: prompts whose response is neither empty nor cut off at the length limit.
        pair_accuracy: share of held-out pairs whose chosen response has the higher implicit reward, after training.
        divergence: mean log-ratio of the model after to the one before on the responses of the former, nats a response.
        divergence_per_token: the same in nats a token.
        words_before, words_after: median length of a response in words.
        responses: prompts with a response of both models.
    """

    verdicts: list[Verdict]
    facts: Change | None
    whole: Change | None
    pair_accuracy: Estimate | None
    divergence: Estimate | None
    divergence_per_token: Estimate | None
    words_before: Estimate
    words_after: Estimate
    responses: int


def summarize(run: Run, samples: Samples, results: Sequence[dict[str, Any]]) -> Headline:
    """The headline of a run from its records, samples and result lines."""
    verdicts = sorted(map(_verdict, results), key=lambda verdict: verdict.judge == BASELINE_RULE)
    known = [sample for sample in samples.samples if None not in (sample.before_whole, sample.after_whole)]
    scored = [sample for sample in samples.samples if None not in (sample.log_ratio, sample.tokens)]
    return Headline(
        verdicts=verdicts,
        facts=_change(samples.with_facts(), lambda sample, text: says_all(getattr(sample, text), sample.facts)),
        whole=_change(known, lambda sample, text: getattr(sample, f"{text}_whole")),
        pair_accuracy=_pair_accuracy(run),
        divergence=_divergence(scored, per_token=False),
        divergence_per_token=_divergence(scored, per_token=True),
        words_before=_median_words([sample.before for sample in samples.samples]),
        words_after=_median_words([sample.after for sample in samples.samples]),
        responses=len(samples.samples),
    )


def _verdict(line: dict[str, Any]) -> Verdict:
    return Verdict(
        judge=line["judge"],
        rule=line.get("rule", ""),
        win_rate=line["win_rate"],
        interval=None if line["ci95"] is None else (line["ci95"][0], line["ci95"][1]),
        wins=line["candidate"]["wins"],
        ties=line["ties"],
        losses=line["baseline"]["wins"],
        undecided=line["undecided"],
        failed=line["failed"],
    )


def _change(samples: Sequence[Sample], holds: Callable[[Sample, str], bool]) -> Change | None:
    if not samples:
        return None
    pairs = [(bool(holds(sample, "before")), bool(holds(sample, "after"))) for sample in samples]
    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    both, neither = pairs.count((True, True)), pairs.count((False, False))
    interval = paired_difference(both, gained, lost, neither)
    return Change(both + lost, both + gained, gained, lost, len(pairs), interval)


def _pair_accuracy(run: Run) -> Estimate | None:
    values = [
        record["rewards_eval/accuracies"] for record in run.records("eval") if "rewards_eval/accuracies" in record
    ]
    if not values:
        return None
    count = evaluation_pairs(run)
    # A count that does not make whole pairs of the logged share was reckoned wrongly: better to say that it is unknown.
    if count is None or abs(values[-1] * count - round(values[-1] * count)) > 1e-6:
        return Estimate(values[-1], None, None)
    return Estimate(values[-1], wilson_interval(values[-1], count), count)


def evaluation_pairs(run: Run) -> int | None:
    """Pairs in the evaluation set, from data.json and the config; None where they do not tell."""
    splits = [splits["test"] for splits in run.account.values() if "test" in splits]
    if not splits:
        return None
    examples, rows = (sum(split[name] for split in splits) for name in ("examples", "used"))
    used = min(examples, setting(run.config, "n_eval_examples", examples))
    loader = setting(run.config, "loss.dataloader", "")
    if loader == "PairedPreferenceDataLoader":
        return used
    if loader == "UnpairedPreferenceDataLoader" and examples == 2 * rows:  # the two responses of each pair
        return used // 2
    return None


def _divergence(samples: Sequence[Sample], per_token: bool) -> Estimate | None:
    ratios, tokens = [sample.log_ratio for sample in samples], [sample.tokens for sample in samples]
    if not sum(tokens):
        return None
    value, interval = ratio_interval(ratios, tokens) if per_token else mean_interval(ratios)
    return Estimate(value, interval, len(samples))


def _median_words(texts: Sequence[str]) -> Estimate:
    value, interval = median_interval([len(text.split()) for text in texts])
    return Estimate(value, interval, len(texts))


# As rows of a table --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A headline number in words, for the page and the printed table; `large` ones open the page."""

    name: str
    before: str
    after: str
    interval: str
    counted: str
    large: bool = False


def rows(headline: Headline) -> list[Row]:
    """The headline numbers in words, the judges first."""
    table = [_verdict_row(verdict) for verdict in headline.verdicts]
    table += _change_row("Says the facts of the right answer", headline.facts, ("learned", "lost"), large=True)
    table += _pair_row(headline.pair_accuracy)
    table += _divergence_row("KL a response, nats", headline.divergence, 2)
    table += _divergence_row("KL a token, nats", headline.divergence_per_token, 3)
    medians = headline.words_before, headline.words_after
    intervals = [span(*median.interval, "{:g}") if median.interval else "too few" for median in medians]
    interval = f"{intervals[0]} before, {intervals[1]} after"
    before, after = (f"{median.value:g}" for median in medians)
    table.append(Row("Median length, words", before, after, interval, f"{headline.responses} prompts", large=True))
    return table + _change_row("Ends by itself, not empty", headline.whole, ("more", "fewer"))


def span(low: float, high: float, form: str = "{:.1f}") -> str:
    """An interval in words."""
    return f"{form.format(low)} to {form.format(high)}"


def judge_name(judge: str) -> str:
    """What a judge is called; the offline rules have names made of words."""
    return {"shorter": "the shorter wins", "direct_answer": "direct answer"}.get(judge, judge)


def _verdict_row(verdict: Verdict) -> Row:
    counted = f"{verdict.decided} prompts: {verdict.wins} won, {verdict.ties} tied, {verdict.losses} lost"
    for name, count in (("undecided", verdict.undecided), ("failed", verdict.failed)):
        counted += f"; {count} {name} left out" if count else ""
    name = f"Win rate: {judge_name(verdict.judge)}"
    if verdict.win_rate is None or verdict.interval is None:
        return Row(name, "", "no verdict", "", counted)
    large = verdict.judge != BASELINE_RULE
    return Row(name, "", f"{verdict.win_rate:.1f} %", f"{span(*verdict.interval)} %", counted, large)


def _change_row(name: str, change: Change | None, words: tuple[str, str], large: bool = False) -> list[Row]:
    if change is None:
        return []
    before, after = (f"{part} ({100 * part / change.count:.1f} %)" for part in (change.before, change.after))
    low, high = (100 * end for end in change.interval)
    interval = f"change {span(low, high, '{:+.1f}')} points"
    counted = f"{change.count} prompts: {change.gained} {words[0]}, {change.lost} {words[1]}"
    return [Row(name, before, after, interval, counted, large)]


def _pair_row(accuracy: Estimate | None) -> list[Row]:
    name = "Reward ranks chosen above rejected"
    if accuracy is None:
        return []
    value = f"{100 * accuracy.value:.1f} %"
    if accuracy.count is None or accuracy.interval is None:
        return [Row(name, "", value, "unknown", "held-out pairs; the run does not say how many", large=True)]
    low, high = (100 * end for end in accuracy.interval)
    return [Row(name, "", value, f"{span(low, high)} %", f"{accuracy.count} held-out pairs", large=True)]


def _divergence_row(name: str, estimate: Estimate | None, digits: int) -> list[Row]:
    if estimate is None:
        return []
    form = f"{{:.{digits}f}}"
    interval = span(*estimate.interval, form) if estimate.interval else "too few"
    return [Row(name, "", form.format(estimate.value), interval, f"{estimate.count} responses")]


def printed_table(headline: Headline, title: str, report: str) -> str:
    """The headline numbers as plain text, and where the report is."""
    lines = [Row("", "before", "after", "95 % interval", ""), *rows(headline)]
    widths = [max(len(getattr(line, column)) for line in lines) for column in ("name", "before", "after", "interval")]
    text = [title, ""]
    for line in lines:
        cells = zip((line.before, line.after, line.interval), widths[1:], strict=True)
        text.append("  ".join([f"{line.name:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in cells)]))
        text += [f"    of {line.counted}"] if line.counted else []
    return "\n".join([*text, "", f"Report: {report}"])
