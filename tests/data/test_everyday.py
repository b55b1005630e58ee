"""The embedded data set keeps what its card promises."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from scorers.rules import words_until_facts

ROOT = Path(__file__).parents[2]
SPLITS = {split: ROOT / "data" / f"everyday_{split}.jsonl" for split in ("train", "test")}


def read(split: str) -> list[dict]:
    return [json.loads(line) for line in SPLITS[split].read_text(encoding="utf-8").splitlines()]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def trigrams(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[start : start + 3]) for start in range(max(1, len(found) - 2))}


def contains(text: str, fact: str) -> bool:
    return any(
        re.search(rf"(?<![a-z0-9]){re.escape(variant.strip().lower())}(?![a-z0-9])", text.lower())
        for variant in fact.split("|")
    )


def test_size_and_topics():
    """Prevents a data set too small or too narrow for the demo."""
    train, test = read("train"), read("test")
    assert len(train) >= 400 and len(test) >= 120
    assert len(Counter(row["topic"] for row in train)) >= 10
    assert set(row["topic"] for row in train) == set(row["topic"] for row in test)


def test_held_out_prompts_are_disjoint_in_wording():
    """Prevents a held-out win that is only memory of a training prompt."""
    train = [trigrams(row["prompt"]) for row in read("train")]
    for row in read("test"):
        asked = trigrams(row["prompt"])
        worst = max(len(asked & other) for other in train)
        assert worst * 2 < len(asked), row["prompt"]


@pytest.mark.parametrize("split", SPLITS)
def test_right_answers_contain_the_facts_and_rambles_do_not(split):
    """Prevents a judge's rule that cannot be satisfied, or that the bad answer satisfies as well."""
    for row in read(split):
        assert row["facts"], row["prompt"]
        assert all(contains(row["chosen"], fact) for fact in row["facts"]), row["prompt"]
        assert not all(contains(row["rejected"], fact) for fact in row["facts"]), row["prompt"]
        assert not all(contains(row["prompt"], fact) for fact in row["facts"]), row["prompt"]


def test_no_near_duplicates():
    """Prevents one row, or one template, counted many times."""
    rows = read("train") + read("test")
    for key, limit in (("prompt", 0.5), ("rejected", 0.35)):
        grams = [trigrams(row[key]) for row in rows]
        for (i, first), (j, second) in combinations(enumerate(grams), 2):
            assert len(first & second) < limit * len(first | second), (rows[i][key], rows[j][key])


def test_no_template_filled_in():
    """Prevents rambles that share a stock phrase: no seven words in a row stand in more than four of them."""
    phrases = Counter(
        tuple(found[start : start + 7])
        for row in read("train") + read("test")
        for found in [words(row["rejected"])]
        for start in range(len(found) - 6)
    )
    assert max(phrases.values()) <= 4, phrases.most_common(3)


def test_what_it_teaches_is_plain_to_see():
    """Prevents labels without a visible difference: every good answer is short, every bad one long."""
    for row in read("train") + read("test"):
        assert len(words(row["chosen"])) <= 22 < 28 <= len(words(row["rejected"]))


def test_the_card_names_the_sizes():
    """Prevents a data card that tells of another data set."""
    card = (ROOT / "data" / "README.md").read_text()
    for split in SPLITS:
        assert f"| {SPLITS[split].name} | {len(read(split))} |" in card
    rows = read("train") + read("test")
    for key, what in (("prompt", "the question, "), ("chosen", "answer: "), ("rejected", "answer: ")):
        lengths = [len(row[key].split()) for row in rows]
        assert re.search(rf"^\| {key} \| .*{what}{min(lengths)} to {max(lengths)} words", card, re.MULTILINE), key
    latest = max(words_until_facts(row["chosen"], row["facts"]) for row in rows)
    assert f"the facts said within the first {latest} |" in card
