"""Compares two responses to each prompt of a samples file by a judge, and appends the win rate to a results file.

Several files are ranked by their win rates against the one baseline.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import closing

from reports.methods import methods_of
from reports.ranking import Judged, format_ranking, rank
from reports.ranking_plots import draw_ranking
from reports.win_rates import format_row, format_table, prompt_scores, result_line, summarize, write_csv
from scorers.command_line import check_different, parse_arguments
from scorers.comparable import Keys, read_comparable
from scorers.judge import Judge, JudgedSamples, JudgeStopped, find_endpoint, judge_samples
from scorers.judgments import JudgmentCache, append_line, check_appendable, check_results_file
from scorers.printable import printable
from scorers.rules import judge_by_rule, load_rule
from scorers.samples import Samples, without_secrets, word_lengths


def run(options: argparse.Namespace) -> int:
    """The comparison of each file, and a ranking of several; returns the exit code."""
    endpoint = None if options.offline else find_endpoint(options.base_url)
    files = {f"-f {number}" if number else "-f": file for number, file in enumerate(options.file)}
    written = {"-r": options.results_file, "--cache": options.cache, "-csv": options.save_csv, "--plot": options.plot}
    check_different(files | written)
    check_different({"-bf": options.baseline_file, **written})
    keys = options.candidate_key, options.baseline_key, options.history_key
    read, keys = read_comparable(options.file, keys, options.baseline_file, options.max_comp, options.seed)
    if len(read) > 1:
        methods_of([samples.config for samples in read], options.file)  # refuses what cannot be ranked
    for path in filter(None, (options.results_file, options.save_csv, options.plot)):
        check_appendable(path)
    check_results_file(options.results_file)
    done = [compare(samples, options, endpoint, keys) for samples in read]
    if len(done) > 1:
        of_files = zip(options.file, read, done, strict=True)
        judged = [Judged(file, samples.config, scores) for file, samples, (scores, _) in of_files]
        places, prompts = rank(judged)
        print("", printable(format_ranking(places, prompts, [len(one.scores) for one in judged])), sep="\n")
        if options.plot:
            draw_ranking(places, prompts, keys[1], options.plot)
            print(f"plot: {options.plot}")
    return max(code for _, code in done)


def compare(
    samples: Samples, options: argparse.Namespace, endpoint: object, keys: Keys
) -> tuple[dict[str, float], int]:
    """Judges one file, writes its line and prints it; returns its prompts' scores and the exit code."""
    (candidate, baseline, history), rows = keys, samples.rows
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
    failed = line["rows_failed"] > options.max_failures * line["rows"]
    return prompt_scores(judged.rows), int(failed)


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
