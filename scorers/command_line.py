"""What the command line of compare.py may say: numbers in their range, and files that do not spoil each other."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path

_ABOUT = """Compares two responses to each prompt of a samples file by a judge, and appends the win rate to a results
file. Several files are ranked by their win rates against the one baseline; those that differ in nothing but their
seed are one method, trained again."""
DAY = 86_400  # seconds; nobody means to wait longer


def boolean(text: str) -> bool:
    """`-v`, `-v true` and `-v false` mean what they say."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def number(kind: type, low: float, high: float = float("inf"), null: bool = False) -> Callable[[str], float | None]:
    """An argument type: a number from `low` to `high`; `null` as well, if allowed."""

    def convert(text: str) -> float | None:
        value = None if null and text.lower() in ("null", "none") else kind(text)
        if value is not None and not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low} to {high}")
        return value

    convert.__name__ = kind.__name__  # argparse names it in its message
    return convert


def check_different(files: Mapping[str, str]) -> None:
    """Sees that no two flags name one file, also by a link: what is written there would spoil what is read.

    Args:
        files: paths by their flag; those that are empty are not used.

    Raises:
        ValueError: two are the same, with the names of their flags.
    """
    paths = {flag: Path(name) for flag, name in files.items() if name}
    for (flag, path), (other_flag, other) in combinations(paths.items(), 2):
        if path.resolve() == other.resolve() or (path.exists() and other.exists() and path.samefile(other)):
            raise ValueError(f"{flag} and {other_flag} are the same file, {path}; name two different ones")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="compare.py", description=_ABOUT)
    add = parser.add_argument
    samples = "samples, as `eval.py ++mode=sample` writes them; several are ranked"
    add("-f", "--file", required=True, nargs="+", help=samples)
    add("-ck", "--candidate_key", default="policy", help="key of the candidate's responses (policy)")
    add("-bk", "--baseline_key", default="chosen", help="key of the responses to compare with (chosen)")
    other = "samples whose responses under -bk are the baseline, matched by prompt (the file's own responses)"
    add("-bf", "--baseline_file", help=other)
    add("-hk", "--history_key", default="prompt", help="key of the prompts (prompt)")
    add("-s", "--seed", type=int, default=0, help="of the choice by -mc, of the single order, and for the judge (0)")
    add(
        "-st",
        "--sleep_time",
        type=number(float, 0, DAY),
        default=0.0,
        help="seconds between the starts of requests (0)",
    )
    add(
        "-mc",
        "--max_comp",
        type=number(int, 1, null=True),
        help="a seeded choice of at most N prompts, the same of all files (null: all)",
    )
    add("-v", "--verbose", type=boolean, nargs="?", const=True, default=False, help="print the verdicts on every row")
    add("-r", "--results_file", default="results.jsonl", help="one line is appended to it (results.jsonl)")
    add("-l", "--labels", default="12", help="the two characters by which the judge calls the responses (12)")
    add("-j", "--judge", default="gpt-4o", help="the judge's model name at the endpoint (gpt-4o)")
    add("-csv", "--save_csv", default="", help="also write every row with its verdicts into this CSV file")
    add("--plot", metavar="PNG", help="also draw the ranking of several files into this PNG file")
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
    if options.save_csv and len(options.file) > 1:
        parser.error("-csv is for one samples file; leave it out to rank several")
    if options.plot and len(options.file) == 1:
        parser.error("--plot draws a ranking; name several samples files")
    options.cache = options.cache or f"{options.results_file.removesuffix('.jsonl')}.judgments.jsonl"
    return options
