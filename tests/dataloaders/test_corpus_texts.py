"""A corpus: each kind is read in an order that stays, and what cannot be read comes with its flaw."""

import gzip
import json
import os
import random

import pytest

from dataloaders.corpus_texts import (
    NO_TEXT,
    NOT_JSON,
    UNDECODABLE,
    UNREADABLE,
    CorpusText,
    check_corpus,
    count_texts,
    fingerprint,
    read_corpus,
)

LONG_ROW = json.dumps({"text": random.Random(0).randbytes(3000).hex()}).encode()


def test_rows(tmp_path):
    """Prevents rows that are lost, and a message that names another line."""
    lines = [
        b'{"text": "one", "other": 1}',
        b"",
        b'{"text": "two',
        b"[1]",
        b'{"text": 3}',
        b'{"text": "bad \xff byte"}',
        b'{"text": "half \\ud800"}',
        b'{"text": "nul \\u0000"}',
        b"[" * 100_000,
        b'{"text": "last"}',
    ]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    expected = [
        CorpusText("one", "rows.jsonl:1"),
        CorpusText("", "rows.jsonl:3", NOT_JSON),
        CorpusText("", "rows.jsonl:4", NO_TEXT),
        CorpusText("", "rows.jsonl:5", NO_TEXT),
        CorpusText("bad \ufffd byte", "rows.jsonl:6", UNDECODABLE),
        CorpusText("half \ud800", "rows.jsonl:7"),  # whoever scores it finds that flaw
        CorpusText("nul \0", "rows.jsonl:8"),
        CorpusText("", "rows.jsonl:9", NOT_JSON),
        CorpusText("last", "rows.jsonl:10"),
    ]
    assert list(read_corpus(str(path))) == expected
    with gzip.open(tmp_path / "rows.jsonl.gz", "wb") as file:
        file.write(path.read_bytes())
    packed = [CorpusText(one.text, one.source.replace("jsonl", "jsonl.gz"), one.flaw) for one in expected]
    assert list(read_corpus(str(tmp_path / "rows.jsonl.gz"))) == packed


def test_a_folder(tmp_path):
    """Prevents an order that the file system chooses, other kinds of file, and bytes of another encoding."""
    for name, contents in {
        "b/z.py": b"x = 1\r\n",
        "b/a.txt": b"\xef\xbb\xbfwith a mark",
        "a.py": "# coding: latin-1\n# é\n".encode("latin-1"),
        "c.py": b"# no coding \xe9\n",
        "d.py": b"# coding: nonsense\n",
        "e.md": b"not read",
        "f.py": b"",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(contents)
    os.symlink(tmp_path, tmp_path / "b" / "circle")
    assert list(read_corpus(str(tmp_path))) == [
        CorpusText("# coding: latin-1\n# é\n", "a.py"),
        CorpusText("# no coding \ufffd\n", "c.py", UNDECODABLE),
        CorpusText("# coding: nonsense\n", "d.py", UNDECODABLE),
        CorpusText("", "f.py"),
        CorpusText("with a mark", "b/a.txt"),
        CorpusText("x = 1\r\n", "b/z.py"),
    ]
    assert count_texts(str(tmp_path)) == 6
    assert list(read_corpus(str(tmp_path / "b" / "z.py"))) == [CorpusText("x = 1\r\n", "z.py")]


def test_a_folder_of_what_is_no_file(tmp_path):
    """Prevents a link to nothing that ends the scoring of a folder, and a pipe or device that is read without end."""
    (tmp_path / "a.py").write_text("x = 1\n")
    os.symlink("nothing.py", tmp_path / "b.py")
    os.symlink("c.py", tmp_path / "c.py")
    os.mkfifo(tmp_path / "d.py")
    os.symlink("/dev/zero", tmp_path / "e.py")
    before = fingerprint(str(tmp_path))
    (text, *others) = read_corpus(str(tmp_path))
    assert text == CorpusText("x = 1\n", "a.py")
    assert others == [CorpusText("", f"{name}.py", UNREADABLE) for name in "bcde"]
    (tmp_path / "nothing.py").write_text("y = 2\n")
    assert fingerprint(str(tmp_path)) != before


def test_samples(tmp_path):
    """Prevents that a run's samples have to be rewritten before they can be scored."""
    path = tmp_path / "run.json"
    rows = [{"prompt": "Q", "policy": "A1", "reference": "R1"}, {"prompt": "Q", "policy": "A2", "reference": "R2"}]
    path.write_text(json.dumps({"sampled_at": "now", "config": {}, "samples": rows}))
    assert list(read_corpus(str(path))) == [CorpusText("A1", "run.json:1"), CorpusText("A2", "run.json:2")]
    assert [one.text for one in read_corpus(str(path), "reference")] == ["R1", "R2"]


def test_a_hub_data_set(monkeypatch):
    """Prevents a corpus that is downloaded as a whole before its first text is scored; stands in for the hub."""
    import datasets

    asked = []

    def load(name, **arguments):
        asked.append((name, arguments))
        return iter([{"content": "a"}, {"content": None}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = list(read_corpus("hub:org/name:validation", "content"))
    assert found == [CorpusText("a", "org/name[validation]:1"), CorpusText("", "org/name[validation]:2", NO_TEXT)]
    assert asked == [("org/name", {"split": "validation", "streaming": True})]
    with pytest.raises(ValueError, match="text_key=content"):
        list(read_corpus("hub:org/name", "contents"))


def test_no_hub():
    """Prevents a page of traceback on a machine without internet."""
    with pytest.raises(ValueError, match=r"corpus=FILE reads that instead"):
        list(read_corpus("hub:org/there-is-no-such"))


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("nowhere", None, "no such file or folder"),
        ("rows.csv", b"a,b\n", "expected a file that ends in .jsonl"),
        ("rows.jsonl", b'{"content": "a"}\n', r"rows\.jsonl:1: no key 'text'; the row has 'content'"),
        ("rows.jsonl.gz", gzip.compress(LONG_ROW)[:-900], "damaged"),
        ("rows.jsonl.gz", b"not packed", "damaged"),
        ("empty", b"", "no file in this folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_read(tmp_path, name, contents, message):
    """Prevents a corpus that ends early, or is empty, and nobody is told."""
    path = tmp_path / name
    if name == "empty":
        path.mkdir()
    elif contents is not None:
        path.write_bytes(contents)
    with pytest.raises(ValueError, match=message):
        list(read_corpus(str(path)))


def test_a_misspelled_corpus():
    """Prevents `hub:` without a name from reading the current folder."""
    with pytest.raises(ValueError, match="hub:ORG/NAME"):
        check_corpus("hub:")


def test_the_fingerprint_is_of_the_files(tmp_path):
    """Prevents that scores of a corpus that has changed pass for those of the one that is there."""
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = fingerprint(str(tmp_path))
    assert fingerprint(str(tmp_path)) == before
    path.write_text("more")
    assert fingerprint(str(tmp_path)) != before
