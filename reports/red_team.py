"""A red-teaming search as a picture: the score of a policy's samples over the rounds.

python -m reports.red_team .cache/RUN/red_team/rounds.jsonl --output red_team.png

Several files are drawn together, such as those of several methods under one attacker.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.expected import mapping, number, optional_number, text
from reports.inputs import read_lines
from reports.markup import printable
from reports.pareto import COLOURS, MARKERS
from reports.ranking_plots import plain, save

CAVEAT = "worst prompt: the worst of many noisy means, so it is overstated"


@dataclass(frozen=True)
class Rounds:
    """A search.

    Attributes:
        means: (round, mean score, low, high) of each round's prompts; low and high are None without an interval.
        worst: (round, score) of the worst prompt up to there: the worst of many noisy means, which overstates it.
    """

    label: str
    scorer: str
    attacker: str
    higher_is_worse: bool
    means: list[tuple[int, float, float | None, float | None]]
    worst: list[tuple[int, float]]


def read_rounds(path: Path) -> Rounds:
    """Reads a rounds.jsonl; rounds whose samples could not be scored have no point.

    Raises:
        ValueError: the file is missing, or is none.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not there: `python eval.py --config-path=RUN_FOLDER mode=red_team` writes it")
    try:
        header, *lines = read_lines(path)
        _check(lines, path)
    except ValueError as error:
        raise ValueError(f"{path} is no file of rounds ({error})") from None
    worse = header.get("direction") != "higher_is_better"
    pick = max if worse else min
    means: list[tuple[int, float, float | None, float | None]] = []
    worst: list[tuple[int, float]] = []
    for line in lines:
        scores = [one["score"]["mean"] for one in line["candidates"] if one.get("score") is not None]
        if not scores:
            continue
        score = line["score"]
        means.append((line["round"], score["mean"], score.get("low"), score.get("high")))
        worst.append((line["round"], pick([*scores, *(value for _, value in worst[-1:])])))
    if not means:
        raise ValueError(f"{path} has no round with a score yet")
    settings = header.get("settings")
    attacker = settings.get("attacker", "") if isinstance(settings, dict) else ""
    label = str(header.get("label", path.parent))
    return Rounds(label, str(header.get("scorer", "")), str(attacker), worse, means, worst)


def _check(lines: Sequence[Any], path: Path) -> None:
    for line in lines:
        mapping(line, "a round")
        number(line.get("round"), "`round`")
        if not isinstance(line.get("candidates"), list):
            raise ValueError("a round has no list of candidates")
        for one in line["candidates"]:
            mapping(one, "a candidate")
            text(one.get("prompt"), "`prompt`")
            if one.get("score") is not None:
                mapping(one["score"], "`score`")
                number(one["score"].get("mean"), "`score.mean`")
        if line.get("score") is None and any(one.get("score") is not None for one in line["candidates"]):
            raise ValueError("a round of candidates with scores has none itself")
        if line.get("score") is not None:
            mapping(line["score"], "`score`")
            number(line["score"].get("mean"), "`score.mean`")
            for end in ("low", "high"):
                optional_number(line["score"].get(end), f"`score.{end}`")


def draw(searches: Sequence[Rounds], path: str | Path) -> None:
    """Writes the picture as PNG: lines are round means with their intervals, dotted lines the worst prompt so far.

    Raises:
        ValueError: the searches had different scorers.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    scorers = {(one.scorer, one.higher_is_worse) for one in searches}
    if len(scorers) > 1:
        raise ValueError(f"these searches have different scorers: {', '.join(name for name, _ in scorers)}")
    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for place, one in enumerate(searches):
        colour, name = COLOURS[place % len(COLOURS)], plain(one.label)
        rounds = [number for number, *_ in one.means]
        values = [mean for _, mean, *_ in one.means]
        lows = [mean if low is None else low for _, mean, low, _ in one.means]
        highs = [mean if high is None else high for _, mean, _, high in one.means]
        axes.fill_between(rounds, lows, highs, color=colour, alpha=0.18, linewidth=0)
        axes.plot(
            rounds, values, color=colour, marker=MARKERS[place % len(MARKERS)], markersize=5, linewidth=1.8,
            label=f"{name}: mean of the round's prompts",
        )  # fmt: skip
        axes.plot(
            *zip(*one.worst, strict=True), color=colour, linestyle=(0, (1, 2)), linewidth=1.5,
            label=f"{name}: worst prompt so far",
        )  # fmt: skip
    axes.set_xlabel("round of the search (0: the prompts that it began with)", fontsize=10)
    worse = "higher" if searches[0].higher_is_worse else "lower"
    axes.set_ylabel(f"score of the model's samples ({worse} is worse)", fontsize=10)
    attackers = ", ".join(dict.fromkeys(plain(one.attacker, 40) for one in searches))
    scorer = plain(searches[0].scorer.partition(" ")[0], 50)
    axes.set_title(f"attacker: {attackers}; scorer: {scorer}; bands: 95 % intervals\n({CAVEAT})", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.92")
    figure.legend(loc="outside lower center", fontsize=8.5, frameon=False, ncols=2)
    save(figure, path)


def write(files: Sequence[str | Path], output: str | Path) -> str:
    """Draws the searches of files; returns a line for each that says what was found."""
    searches = [read_rounds(Path(file)) for file in files]
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    draw(searches, output)
    said = [
        f"{one.label}: mean score {one.means[0][1]:.4g} in round {one.means[0][0]}, {one.means[-1][1]:.4g} in round "
        f"{one.means[-1][0]}; the worst prompt has {one.worst[-1][1]:.4g} ({CAVEAT})"
        for one in searches
    ]
    return printable("\n".join([*said, f"the picture: {output}"]))


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, or 2 with one line that says what is wrong with the input."""
    parser = argparse.ArgumentParser(prog="python -m reports.red_team", description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", help="rounds.jsonl of searches")
    parser.add_argument("--output", default="red_team.png", help="the PNG file (red_team.png)")
    options = parser.parse_args(arguments)
    try:
        print(write(options.files, options.output))
    except (ValueError, OSError) as error:
        print(f"reports.red_team: error: {printable(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
