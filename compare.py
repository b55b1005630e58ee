"""Compares two responses to each prompt of a samples file by a judge, and appends the win rate to a results file."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import closing

from reports.win_rates import format_row, format_table, result_line, summarize, write_csv
from scorers.command_line import DAY, boolean, check_different, number
from scorers.judge import Judge, JudgedSamples, JudgeStopped, find_endpoint, judge_samples
from scorers.judgments import JudgmentCache, append_line, check_appendable, check_results_file
from scorers.printable import printable
from scorers.rules import judge_by_rule, load_rule
from scorers.samples import choose_prompts, read_samples, without_secrets, word_lengths


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="compare.py", description=__doc__)
    add = parser.add_argument
    add("-f", "--file", required=True, help="samples, as `eval.py ++mode=sample` writes them")
    add("-ck", "--candidate_key", default="policy", help="key of the candidate's responses (policy)")
    add("-bk", "--baseline_key", default="chosen", help="key of the responses to compare with (chosen)")
    add("-hk", "--history_key", default="prompt", help="key of the prompts (prompt)")
    add("-s", "--seed", type=int, default=0, help="of the choice by -mc, of the single order, and for the judge (0)")
    add(
        "-st",
        "--sleep_time",
        type=number(float, 0, DAY),
        default=0.0,
        help="seconds between the starts of requests (0)",
    )
    add("-mc", "--max_comp", type=number(int, 1, null=True), help="a seeded choice of at most N prompts (null: all)")
    add("-v", "--verbose", type=boolean, nargs="?", const=True, default=False, help="print the verdicts on every row")
    add("-r", "--results_file", default="results.jsonl", help="one line is appended to it (results.jsonl)")
    add("-l", "--labels", default="12", help="the two characters by which the judge calls the responses (12)")
    add("-j", "--judge", default="gpt-4o", help="the judge's model name at the endpoint (gpt-4o)")
    add("-csv", "--save_csv", default="", help="also write every row with its verdicts into this CSV file")
    add("--base-url", help="an OpenAI-compatible endpoint: http://localhost:8000/v1 (OPENAI_BASE_URL, else OpenAI)")
    add("--offline", metavar="RULE", help="judge by a rule: direct_answer, shorter, package.Class or file.py:Class")
    add("--concurrency", type=number(int, 1), default=8, help="requests under way at a time (8)")
    add("--timeout", type=number(float, 0.001, DAY), default=60.0, help="seconds for a whole answer (60)")
    add("--retries", type=number(int, 0), default=6, help="further tries of a request, later and later (6)")
    add("--max-tokens", type=number(int, 1), default=512, help="of an answer; a judge that thinks needs more (512)")
    add("--orders", type=int, choices=(1, 2), default=2, help="2: each pair in both orders; 1: in one, half the cost")
    add("--cache", help="where answers are kept (RESULTS.judgments.jsonl); with it nothing is paid for twice")
    add("--max-failures", type=number(float, 0, 1), default=0.05, help="fraction from which the exit code is 1 (0.05)")
    options = parser.parse_args(arguments)
    if options.offline and options.base_url:
        parser.error("--offline asks no endpoint; leave out --base-url")
    options.cache = options.cache or f"{options.results_file.removesuffix('.jsonl')}.judgments.jsonl"
    return options


def run(options: argparse.Namespace) -> int:
    """One comparison; returns the exit code."""
    endpoint = None if options.offline else find_endpoint(options.base_url)
    check_different(
        {"-f": options.file, "-r": options.results_file, "--cache": options.cache, "-csv": options.save_csv}
    )
    candidate, baseline, history = keys = options.candidate_key, options.baseline_key, options.history_key
    samples = read_samples(options.file, (candidate, baseline), history)
    rows = choose_prompts(samples.rows, history, options.max_comp, options.seed)
    for path in filter(None, (options.results_file, options.save_csv)):
        check_appendable(path)
    check_results_file(options.results_file)
    if endpoint is None:
        rule = load_rule(options.offline)
        judged = JudgedSamples(judge_by_rule(rows, rule, *keys))
        judge_facts = {"judge": options.offline, "rule": rule.text, "orders": 1}
    else:
        names = ("labels", "seed", "max_tokens", "timeout", "retries", "sleep_time")
        judge = Judge(options.judge, endpoint, **{name: getattr(options, name) for name in names})
        plan = {name: getattr(options, name) for name in ("orders", "seed", "concurrency")}
        with closing(judge):
            judged = judge_samples(rows, judge, JudgmentCache(options.cache), *keys, **plan)
        judge_facts = {"judge": options.judge, "orders": options.orders, "cache_hits": judged.cache_hits}
    line = result_line(
        summarize(judged.rows),
        seed=options.seed,
        exp_name=samples.exp_name,
        candidate=(candidate, word_lengths(rows, candidate, history)),
        baseline=(baseline, word_lengths(rows, baseline, history)),
        config=without_secrets(samples.config, os.environ.get("OPENAI_API_KEY")),
        **judge_facts,
    )
    append_line(options.results_file, line)
    if options.save_csv:
        write_csv(options.save_csv, judged.rows, *([row[key] for row in rows] for key in (candidate, baseline)))
    if options.verbose:
        print(*map(printable, map(format_row, judged.rows)), sep="\n")
    print(*map(printable, (format_table(line), *judged.notes())), sep="\n")
    return 1 if line["rows_failed"] > options.max_failures * line["rows"] else 0


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, 1 (too many requests failed), 2 (nothing was compared) or 130 (Ctrl-C)."""
    options = parse_arguments(arguments)
    go_on = f"no result was written; the answers so far are in {options.cache}: the same command goes on from there"
    try:
        return run(options)
    except (ValueError, OSError, JudgeStopped) as error:
        print(
            f"compare.py: error: {printable(error)}",
            *[go_on] * isinstance(error, JudgeStopped),
            sep="\n",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"compare.py: interrupted; {go_on}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
