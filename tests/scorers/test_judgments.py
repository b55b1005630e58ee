"""The file of answers that have been paid for."""

import json
import multiprocessing
import threading

import pytest

from scorers.judgments import Answer, JudgmentCache, append_line, check_appendable


def test_what_is_added_is_found_by_the_next_run(tmp_path):
    """Prevents paying twice."""
    JudgmentCache(tmp_path / "c.jsonl").add(
        "k", Answer("words\n\u2028 \ud800", "stop", {"prompt_tokens": 3}), judge="j"
    )
    cache = JudgmentCache(tmp_path / "c.jsonl")
    assert cache.get("k") == Answer("words\n\u2028 \ud800", "stop", {"prompt_tokens": 3})
    assert cache.get("other") is None
    assert cache.torn_lines == 0


@pytest.mark.parametrize(
    "torn", [b'{"key": "b", "text": "ha', b"\xff\xfe", b"[1]", b'{"key": 1, "text": "x"}', b"null", b"[" * 99_999]
)
def test_a_torn_last_line_spoils_only_itself(tmp_path, torn):
    """Prevents a kill in the middle of a write from making the whole cache, or the next line, unreadable."""
    path = tmp_path / "c.jsonl"
    JudgmentCache(path).add("a", Answer("1"))
    with path.open("ab") as file:
        file.write(torn)
    cache = JudgmentCache(path)
    assert (cache.get("a"), cache.get("b"), cache.torn_lines) == (Answer("1"), None, 1)
    cache.add("c", Answer("3"))
    again = JudgmentCache(path)
    assert (again.get("a"), again.get("c"), again.torn_lines) == (Answer("1"), Answer("3"), 1)


def _append_many(path, name):
    threads = [threading.Thread(target=_append_some, args=(path, f"{name}{thread}")) for thread in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _append_some(path, name):
    for index in range(25):
        append_line(path, {"key": f"{name}-{index}", "text": name * 3000})


def test_processes_and_threads_append_to_one_file(tmp_path):
    """Prevents two runs with the same cache from mixing their lines."""
    path = tmp_path / "c.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(path, name)) for name in "xy"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 100


def test_a_file_that_cannot_be_written_is_found_before_anything_is_paid_for(tmp_path):
    """Prevents a run whose answers have nowhere to go; a folder that is missing is made."""
    check_appendable(tmp_path / "new" / "c.jsonl")
    assert (tmp_path / "new").is_dir()
    with pytest.raises(ValueError, match="is a folder"):
        check_appendable(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="folder of"):
        check_appendable(tmp_path / "file" / "c.jsonl")
