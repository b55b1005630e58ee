"""Offline judges: rules that prefer one of two responses without asking anybody.

A rule of your own is a subclass of `Rule` with a `text` and either `score` or `prefer`:

    class MoreQuestions(Rule):
        text = "The response with more question marks wins. Equal: a tie."

        def score(self, sample, key):
            return sample[key].count("?")

    python compare.py -f samples/run.json --offline my_rules.py:MoreQuestions
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import math
import re
import sys
from pathlib import Path
from typing import Any

from scorers.samples import Sample, finish_reason, prompt_text
from scorers.verdicts import BASELINE, CANDIDATE, TIE, JudgedRow


class Rule:
    """Says which of two responses of a sample is better.

    Attributes:
        text: the rule in words; the result file and the report print it.
    """

    text: str = ""

    def check(self, samples: list[Sample]) -> None:
        """Raises ValueError, with the fix, if the samples lack what the rule needs; called once before any `prefer`."""

    def score(self, sample: Sample, key: str) -> float:
        """How good the response `sample[key]` is; higher is better. `sample` has everything that the file kept."""
        raise NotImplementedError(f"{type(self).__name__} must define `score` or `prefer`")

    def prefer(self, sample: Sample, first_key: str, second_key: str) -> int:
        """1 if the response under `first_key` is better, -1 if the one under `second_key` is, 0 for a tie.

        By default the higher `score` wins. It must not depend on the order: prefer(s, a, b) == -prefer(s, b, a).
        """
        first, second = float(self.score(sample, first_key)), float(self.score(sample, second_key))
        if math.isnan(first) or math.isnan(second):
            raise ValueError(f"{type(self).__name__} scored a response as nan, which is neither better nor worse")
        return (first > second) - (first < second)


class Shorter(Rule):
    """The baseline that every judge should be seen beside."""

    text = "The response with fewer words wins. Equal: a tie."

    def score(self, sample: Sample, key: str) -> float:
        """Minus the number of words."""
        return -len(sample[key].split())


class DirectAnswer(Rule):
    """For samples that name the `facts` of a right answer: the fact first, then how soon it is said."""

    text = (
        "A response that holds all the facts beats one that does not. Where both do or neither does, one that is "
        "empty or was cut off loses to one that is neither, and two of those tie. Of two whole ones the more direct "
        "one wins: fewer words to read until the facts have been said (the whole response where they have not). "
        "Equal: a tie."
    )

    def check(self, samples: list[Sample]) -> None:
        """Every sample must have `facts`, a list of strings that is not empty."""
        lacking = [index for index, sample in enumerate(samples) if not _is_facts(sample.get("facts"))]
        if lacking:
            raise ValueError(
                f"{len(lacking)} of {len(samples)} samples have no `facts`, a list of strings (first: sample "
                f"{lacking[0]}, from 0), so `direct_answer` cannot judge them; sample a data set that brings facts "
                "(datasets=[everyday]), or judge with `--offline shorter` or an endpoint"
            )

    def prefer(self, sample: Sample, first_key: str, second_key: str) -> int:
        """Compares (has the facts, is whole, directness) in this order."""
        first, second = (self._rank(sample, key) for key in (first_key, second_key))
        return (first > second) - (first < second)

    def _rank(self, sample: Sample, key: str) -> tuple[bool, bool, int]:
        text, facts = sample[key], sample["facts"]
        whole = bool(text.strip()) and finish_reason(sample, key) != "length"
        return has_facts(text, facts), whole, -words_until_facts(text, facts) if whole else 0


def _is_facts(facts: Any) -> bool:
    return isinstance(facts, list) and bool(facts) and all(isinstance(fact, str) and fact.strip(" |") for fact in facts)


def _fact_end(text: str, fact: str) -> int | None:
    """Where the fact has first been said, in characters; None if it is not said.

    `fact` lists alternatives between "|". They match as whole words, whatever their case; a number does not match
    inside another one (5 is not said by "1.5" or "5,000").
    """
    ends = []
    for alternative in filter(None, (part.strip() for part in fact.split("|"))):
        before = r"(?<![^\W_])" + (r"(?<!\d[.,])" if alternative[0].isdigit() else "")
        after = r"(?![^\W_])" + (r"(?![.,]\d)" if alternative[-1].isdigit() else "")
        words = r"\s+".join(re.escape(word) for word in alternative.split())
        match = re.search(before + words + after, text, re.IGNORECASE)
        if match:
            ends.append(match.end())
    return min(ends, default=None)


def has_facts(text: str, facts: list[str]) -> bool:
    """Whether the text says all the facts (each a string of alternatives between "|")."""
    return all(_fact_end(text, fact) is not None for fact in facts)


def words_until_facts(text: str, facts: list[str]) -> int:
    """Words to read until all the facts have been said; all words of the text where they are not."""
    ends = [_fact_end(text, fact) for fact in facts]
    if any(end is None for end in ends):
        return len(text.split())
    return len(text[: max(ends)].split())


RULES: dict[str, type[Rule]] = {"direct_answer": DirectAnswer, "shorter": Shorter}


def load_rule(name: str) -> Rule:
    """The rule of that name, or a user's: `package.module.Class` or `path/to/file.py:Class`.

    Raises:
        ValueError: there is no such rule, or it is no `Rule`, or has no `text`.
    """
    if name in RULES:
        return RULES[name]()
    kind = _load_class(name)
    if not isinstance(kind, type) or not issubclass(kind, Rule):
        raise ValueError(f"{name} is no rule; make it a class that inherits scorers.rules.Rule")
    if not kind.text:
        raise ValueError(f"{name} has no `text`; give the class `text = '...'`, the rule in words, for the results")
    return kind()


def _load_class(name: str) -> Any:
    place, separator, attribute = name.rpartition(":") if ".py:" in name else name.rpartition(".")
    if not separator:
        close = difflib.get_close_matches(name, RULES, n=1, cutoff=0.5)
        hint = f"; did you mean `{close[0]}`?" if close else ""
        raise ValueError(f"there is no rule `{name}`; known: {', '.join(RULES)}, or file.py:Class{hint}")
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise ValueError(f"--offline {name}: there is no file {place}")
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise ValueError(f"--offline {name}: {error}") from error
    if not hasattr(module, attribute):
        raise ValueError(f"--offline {name}: {place} has no class `{attribute}`")
    return getattr(module, attribute)


def judge_by_rule(
    samples: list[Sample], rule: Rule, candidate_key: str, baseline_key: str, history_key: str
) -> list[JudgedRow]:
    """What the rule says of every sample. A rule sees no order, so each sample is judged once."""
    rule.check(samples)
    names = {1: CANDIDATE, -1: BASELINE, 0: TIE}
    judged = []
    for index, sample in enumerate(samples):
        preference = rule.prefer(sample, candidate_key, baseline_key)
        if preference not in names:
            raise ValueError(
                f"{type(rule).__name__}.prefer gave {preference!r} for sample {index}; it must be 1, 0 or -1"
            )
        judged.append(JudgedRow(prompt_text(sample[history_key]), (names[preference],)))
    return judged
