"""Rows of files as documents: what is read, what is left out and counted, and on which side of the split it is."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from dataloaders.corpus import Corpus
from dataloaders.pretraining import (
    ConditionalPretrainingDataLoader,
    FilteredPretrainingDataLoader,
    PretrainingDataLoader,
    ScoredPretrainingDataLoader,
)
from tests import documents

LOADERS = (
    PretrainingDataLoader, FilteredPretrainingDataLoader, ScoredPretrainingDataLoader, ConditionalPretrainingDataLoader,
)  # fmt: skip


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def corpus(path: Path, **options) -> Corpus:
    return Corpus("made", "train", path=str(path), test_fraction=1e-9, **options)


def only(path: Path, *rows: dict):
    (document,) = corpus(write(path / "rows.jsonl", *rows)).documents()
    return document


PARTS = [[0, 1], [1, 4]]
BAD_ROWS = {
    "empty document": [{"text": " \n", "scores": [0.0]}],
    "a NUL byte": [{"text": "a\0b", "scores": [0.0]}],
    "half a surrogate pair": [{"text": "a\ud83d", "scores": [0.0]}],
    "longer than 8,000,000 characters": [{"text": "a" * 8_000_001, "scores": [0.0]}],
    "a text that is none": [{"text": 5, "scores": [0.0]}, {"text": None, "texts": None}],
    "texts that are no list of texts": [
        {"texts": ["a", None], "scores": [0.0, 0.0]}, {"texts": 5, "scores": [0.0]}, {"texts": "ab", "scores": [0.0]},
    ],
    "segments do not cover the text": [
        {"text": "abcd", "segments": segments, "scores": [0.0, 0.0]}
        for segments in (
            [[0, 1], [2, 4]], [[0, 1.9], [1.2, 4]], [[0, 1.5], [1.5, 4]], [[0, 1], [1, 10**400]], [[0, 1], [4]], 5, [],
        )
    ],
    "a segment without a score": [
        {"text": "abcd", "segments": PARTS, "scores": [0.0, None]},
        {"text": "abcd", "segments": PARTS, "scores": [0.0, 1.0], "score": None},
    ],
    "scores that are no list": [{"text": "abcd", "scores": scores} for scores in (0.5, 0, "0.5", {"0": 0.5})],
    "a score that is no number": [
        *({"text": "abcd", "score": score} for score in ("high", [1], True)),
        {"text": "abcd", "scores": [0.0], "score": "high"},
        {"text": "abcd", "segments": PARTS, "scores": [0.0, "0.5"]},
    ],
    "a score that is not finite": [
        *({"text": "abcd", "scores": [score]} for score in (float("nan"), float("-inf"), 10**400, 1e39)),
        {"text": "abcd", "scores": [0.0], "score": 10**400},
    ],
    "not one score for each segment": [{"text": "abcd", "segments": [[0, 4]], "scores": [0.0, 1.0]}],
    "no scores": [{"text": "abcd"}],
    "flawed, by its scorer: unparsable": [{"text": "abcd", "scores": [0.0], "flaw": "unparsable"}],
}  # fmt: skip


def test_what_cannot_be_used_is_counted(tmp_path):
    """Prevents a document that is dropped without a word, crashes the run, or whose missing score is a 0."""
    good, bad = {"text": "fine", "scores": [0.25]}, list(itertools.chain(*BAD_ROWS.values()))
    made = corpus(write(tmp_path / "rows.jsonl", good, *bad, good | {"text": "good"}))
    used = list(made.documents(scored=True, count=True))
    assert [document.text for document in used] == ["fine", "good"] and used[1].number == len(bad) + 1
    assert made.dropped == {reason: len(rows) for reason, rows in BAD_ROWS.items()} and made.rows == len(bad) + 2
    assert made.account()["used"] == 2
    assert [document.text for document in made.documents()] == ["fine", "abcd", "good"], "mle needs no scores"


def test_what_rows_say_of_their_scorer_rules_no_terminal(tmp_path):
    """Prevents a row whose flaw or scorer, which a run says on the console, hides or rewrites what is shown there."""
    hostile = {"text": "abcd", "scores": [0.0], "scorer": "mine\x1b[2J"}
    made = corpus(write(tmp_path / "rows.jsonl", hostile, hostile | {"flaw": "bad\x1b[2J\ud800"}))
    (document,) = made.documents(scored=True, count=True)
    assert document.scorer == "mine\\x1b[2J"
    assert made.dropped == {"flawed, by its scorer: bad\\x1b[2J\\ud800": 1}


def test_reasons_of_rows_are_bounded_and_forge_nothing(tmp_path):
    """Prevents a report as long as the corpus, lines of it that a row has written, and a row that says it is none."""
    hostile = [{"text": "a", "flaw": f"r{number}\nsecond line"} for number in range(100)]
    forged = {"\0no row": "x\x1b[31m"}
    made = corpus(write(tmp_path / "rows.jsonl", {"text": "fine"}, *hostile, forged))
    assert len(list(made.documents(count=True))) == 1 and sum(made.dropped.values()) == 101
    assert len(made.dropped) == 31 and made.dropped["other reasons"] == 71
    assert "\n" not in made.words() and "\x1b" not in made.words()
    with pytest.raises(ValueError, match="no document"):
        list(corpus(write(tmp_path / "rows.jsonl", forged)).documents())


def test_a_file_of_something_else_is_an_error(tmp_path):
    """Prevents a file of something else that is dropped row by row."""
    path = tmp_path / "rows.jsonl"
    for line, message in ((b'{"prompt": "a"}', "no document: .* this one has 'prompt'"), (b"text", "malformed JSON")):
        path.write_bytes(line + b'\n{"text": "fine"}\n')
        with pytest.raises(ValueError, match=f"rows.jsonl:1: {message}"):
            list(corpus(path).documents())


@pytest.mark.parametrize("as_array", [False, True])
def test_what_is_no_row_is_counted(as_array: bool, tmp_path):
    """Prevents a line that was damaged, somewhere in the midst of a corpus, from ending a training days after it began,
    and one that is left out without a word."""
    good, path = b'{"text": "fine", "scores": [0.5]}', tmp_path / "rows.jsonl"
    lines = [good, b"5", good, b'{"prompt": "a"}', b"[1]"]
    damaged = [b'{"text": "cut', b'{"text": "\xff"}', b"[" * 100_000, b"9" * 5_000, good]
    contents = b"[" + b",".join(lines) + b"]" if as_array else b"\n".join([*lines, *damaged])
    path.write_bytes(contents)
    made = corpus(path)
    found = [document.number for document in made.documents(scored=True, count=True)]
    assert found == ([0, 2] if as_array else [0, 2, 9])
    of_lines = {} if as_array else {"malformed JSON": 3, "not UTF-8": 1}
    assert made.dropped == {"no JSON object": 2, "no text": 1, **of_lines} and made.rows == (5 if as_array else 10)
    assert "2 no JSON object, the first at rows.jsonl:2, 1 no text, the first at rows.jsonl:4" in made.words()


def test_a_damaged_beginning_of_a_later_file_is_counted(tmp_path):
    """Prevents a run of days that ends where a second file begins."""
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text('{"text": "one"}\n')
    for contents in ('cut"}\n{"text": "two"}\n', '[5, {"text": "two"}]'):
        second.write_text(contents)
        made = Corpus("made", "train", path=[str(first), str(second)], test_fraction=1e-9)
        assert [document.text for document in made.documents(count=True)] == ["one", "two"]
        assert sum(made.dropped.values()) == 1 and "b.jsonl:1" in made.words()


def test_a_corpus_that_was_changed_anywhere_is_another_one(tmp_path):
    """Prevents a run that goes on with other scores, of as many digits, far from a file's beginning, middle and end."""
    path, digests = tmp_path / "rows.jsonl", set()
    for place in (1, 2_500_000, 5_999_999):
        contents = bytearray(b"x" * 6_000_000)
        contents[place] = ord("y")
        path.write_bytes(contents)
        digests.add(corpus(path).digest())
    assert len(digests) == 3
    with open(path, "wb") as sparse:  # more than is read whole
        sparse.truncate(3 * 2**30)
    before = corpus(path).digest()
    with open(path, "r+b") as sparse:
        sparse.seek(3 * 2**30 - 1)
        sparse.write(b"x")
    assert corpus(path).digest() != before


@pytest.mark.parametrize("kind", LOADERS)
def test_scores_of_which_high_ones_are_good_are_refused(kind, tmp_path):
    """Prevents a model that is trained on the worst of what a reward scored, because nobody said that high is good."""
    rows = [documents.document(number) for number in range(20)]
    path = write(tmp_path / "worse.jsonl", *(row | {"direction": "higher_is_worse"} for row in rows))
    list(documents.loader(kind, path=path).after(0))
    path = write(tmp_path / "better.jsonl", *(row | {"direction": "higher_is_better"} for row in rows))
    if kind is PretrainingDataLoader:
        list(documents.loader(kind, path=path).after(0))
    else:
        with pytest.raises(ValueError, match=r"better.jsonl:\d+: its scores are higher_is_better, .* choose loss=mle"):
            documents.loader(kind, path=path)


def test_rows_of_the_original_are_read(tmp_path):
    """Prevents that the paper's own data sets need a conversion: segments are the texts."""
    document = only(tmp_path, {"texts": ["One. ", "Two."], "scores": [0.5, 0.1], "avg_score": 0.3})
    assert (document.text, document.ends.tolist(), document.scores.tolist()) == ("One. Two.", [5, 9], [0.5, 0.1])
    assert document.score == 0.3


def test_a_source_is_on_one_side(tmp_path):
    """Prevents a held-out text whose file was trained on: documents of one source fall on one side, and all on one."""
    path = documents.write(tmp_path / "corpus.jsonl", 200)
    sides = [
        {document.text for document in Corpus("made", split, path=str(path), test_fraction=0.3).documents()}
        for split in ("train", "test")
    ]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sum(map(len, sides)) == len({row["text"] for row in rows}) and min(map(len, sides)) > 20
    for row, following in zip(rows[::2], rows[1::2], strict=True):
        assert (row["text"] in sides[0]) == (following["text"] in sides[0])
