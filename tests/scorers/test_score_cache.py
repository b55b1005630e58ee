"""Scores that are kept: found again, by whoever, and not torn, mixed up or kept where they should not be."""

import multiprocessing

import pytest

from scorers.pep8 import PEP8Scorer
from scorers.score_cache import CachedScorer, ScoreCache
from scorers.scorer import TOO_SLOW, Sample, ScoredText, Scorer, Segment


class Lengths(Scorer):
    """Scores a text by its length, and counts what it is asked."""

    name = "lengths"
    bounds = (0.0, 1e9)

    def __init__(self, version: int = 1):
        self.version, self.asked = version, []

    @property
    def identity(self) -> str:
        return f"lengths {self.version}"

    def score_texts(self, texts):
        self.asked += texts
        return [None if text == "none" else len(text) * self.version for text in texts]


def test_nothing_is_scored_twice(tmp_path):
    """Prevents that an evaluation pays for what an earlier one has scored, and that equal texts are scored each."""
    first = Lengths()
    cached = CachedScorer(first, tmp_path / "scores.jsonl")
    assert cached.score([Sample("p", "abc"), Sample("q", "abc"), Sample("", "de")]) == [3, 3, 2]
    assert first.asked == ["abc", "de"] and (cached.computed, cached.looked_up) == (2, 1)
    again = CachedScorer(Lengths(), tmp_path / "scores.jsonl")
    assert again.score([Sample("", "de"), Sample("", "f")]) == [2, 1]
    assert again.scorer.asked == ["f"]
    assert again.score([Sample("", "")]) == [None]  # a flaw costs nothing and is not kept


def test_documents_are_kept_apart_from_texts(tmp_path):
    """Prevents that a document's score is taken for that of the text as a whole."""
    cached = CachedScorer(Lengths(), tmp_path / "scores.jsonl")
    text = "One. Three more."
    assert cached.score_texts([text]) == [16]
    expected = ScoredText((Segment(0, 5, 5), Segment(5, 16, 11)))
    assert cached.score_documents([text]) == [expected]
    again = CachedScorer(Lengths(), tmp_path / "scores.jsonl")
    assert again.score_documents([text]) == [expected] and again.scorer.asked == []


def test_another_identity_is_another_score(tmp_path):
    """Prevents scores of an older version, or of other settings, under the new one's name."""
    assert CachedScorer(Lengths(1), tmp_path / "scores.jsonl").score_texts(["abc"]) == [3]
    assert CachedScorer(Lengths(2), tmp_path / "scores.jsonl").score_texts(["abc"]) == [6]


def test_values_come_back_to_the_bit(tmp_path):
    """Prevents that a corpus has other scores the second time: by PEP 8, with segments that have none."""
    texts = ["x=1\ny = 2\nz=(3 ,4)\nlast", "no python at all\n", "x = 1\n" * 3, "a = '\ud800'\n"]
    direct = PEP8Scorer().score_documents(texts)
    assert CachedScorer(PEP8Scorer(), tmp_path / "scores.jsonl").score_documents(texts) == direct
    assert CachedScorer(PEP8Scorer(), tmp_path / "scores.jsonl").score_documents(texts) == direct


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_line_spoils_no_other(tmp_path, cut):
    """Prevents a cache that cannot be read, or gives half a number, after its writer was killed."""
    path = tmp_path / "scores.jsonl"
    CachedScorer(Lengths(), path).score_texts(["a", "bb" * 61])
    path.write_bytes(path.read_bytes()[:-cut])
    second = CachedScorer(Lengths(), path)
    assert second.score_texts(["a", "bb" * 61, "c"]) == [1, 122, 1]
    assert second.scorer.asked == ["bb" * 61, "c"] if cut > 1 else ["c"]
    third = CachedScorer(Lengths(), path)
    assert third.score_texts(["a", "bb" * 61, "c"]) == [1, 122, 1] and third.scorer.asked == []
    assert third.cache.torn_lines == (cut > 1)


def test_what_is_no_record_is_passed_over(tmp_path):
    """Prevents that a foreign or damaged line ends a run."""
    path = tmp_path / "scores.jsonl"
    path.write_bytes(b'{"key": 3}\n[]\nnull\n{"key": "xyz"}\n\n\xff\x00\n' + b"[" * 5000 + b"\n")
    assert ScoreCache(path).torn_lines == 6 and len(ScoreCache(path)) == 0


def add_many(path, number):
    cached = CachedScorer(Lengths(), path)
    for start in range(0, 200, 10):
        cached.score_texts(["x" * (start + index) + f" {number}" for index in range(10)])


def test_processes_share_a_file(tmp_path):
    """Prevents lines that two processes write into each other, and places that are those of somebody else's lines."""
    path = tmp_path / "scores.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=add_many, args=(path, number)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    cached = CachedScorer(Lengths(), path)
    texts = ["x" * length + f" {number}" for length in range(200) for number in range(4)]
    assert cached.score_texts(texts) == [len(text) for text in texts]
    assert cached.scorer.asked == [] and cached.cache.torn_lines == 0


def test_what_may_be_of_the_machine_is_not_kept(tmp_path):
    """Prevents that a text which was too slow once, on a busy machine, never gets a score."""

    class Slow(Lengths):
        def score_documents(self, texts):
            self.asked += texts
            return [ScoredText((Segment(0, len(text), None),), TOO_SLOW) for text in texts]

    for _ in range(2):
        cached = CachedScorer(Slow(), tmp_path / "scores.jsonl")
        assert cached.score_documents(["abc"])[0].flaw == TOO_SLOW and cached.score_texts(["none"]) == [None]
        assert cached.scorer.asked == ["abc", "none"]
