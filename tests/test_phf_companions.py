"""Figures of code without its blank and repeated lines, counted by hand."""

from __future__ import annotations

import json

import pytest

from benchmarks.phf_companions import of_documents, violations_elsewhere


def test_blank_and_repeated_lines_count_for_nothing():
    """Prevents a ratio that repetition moves: a good line again, a bad one again, and blank lines with violations."""
    once = violations_elsewhere(["a = 1\nb=2\n"])
    again = violations_elsewhere(["a = 1\nb=2\na = 1\n\n\n\n\n\nb=2\n    \n"])
    assert once.mean == pytest.approx(1 / 10) and once.count == 1
    assert again.mean == pytest.approx(1 / 10)


def test_texts_without_whole_lines_are_left_out():
    """Prevents a text of nothing that counts as perfect."""
    assert violations_elsewhere(["x=1\n", "x=", "\n\n"]).count == 1


def test_shares_of_beginnings(tmp_path):
    """Prevents shares of other documents, or of what stands behind their beginnings."""
    documents = [{"text": "a\n\na\n" + "b\n" * 50, "score": 0.0}, {"text": "c\nd\n", "score": 0.5}]
    documents.append({"text": "e\n\n\n", "score": None})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    shares = of_documents(tmp_path / "rows.jsonl", {"aligned": 0.1, "none": -1.0}, 5)
    assert shares["all"] == {"documents": 2, "blank_lines": 1 / 5, "repeated_lines": 1 / 4}
    assert shares["aligned"] == {"documents": 1, "blank_lines": 1 / 3, "repeated_lines": 1 / 2}
    assert shares["none"] == {"documents": 0}
