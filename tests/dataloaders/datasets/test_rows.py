"""The door through which rows come in, and what it says of files that cannot be read."""

import gzip
import json

import pytest

from dataloaders.datasets.rows import field, load_rows

ROWS = [{"prompt": "a", "n": 1}, {"prompt": "\u00e9\u2028b", "n": 2}]


def read(path, split="train", **options):
    return list(load_rows(split, path=path if isinstance(path, list) else str(path), name="shp", **options))


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    """Prevents a file kind that loses rows, and a line broken at a character that only looks like a line's end."""
    import pyarrow
    import pyarrow.parquet

    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n\n"))
    (tmp_path / "a.json").write_bytes(lines)
    (tmp_path / "b.json").write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    for name in ("a.jsonl", "b.json"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "b.json", "a.jsonl.gz", "b.json.gz", "a.parquet"):
        assert [row for _, row in read(tmp_path / name)] == ROWS, name
    assert [where for where, _ in read(tmp_path / "a.jsonl")] == [f"{tmp_path}/a.jsonl:{line}" for line in (1, 3)]


def test_several_files_and_a_test_file(tmp_path):
    """Prevents a list of files from losing one, and the test split from reading training rows."""
    for name in ("a", "b", "t"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"in": name}))
    paths = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    test = str(tmp_path / "t.jsonl")
    assert [row["in"] for _, row in read(paths, test_path=test)] == ["a", "b"]
    assert [row["in"] for _, row in read(paths, "test", test_path=test)] == ["t"]
    assert [row["in"] for _, row in read(paths, "test")] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b"", "the file has no rows"),
        ("x.jsonl", b"\n  \n", "the file has no rows"),
        ("x.json", b"[]", "the file has no rows"),
        ("x.jsonl", b'{"a": 1}\n\n{"a": \n', r"x\.jsonl:3: malformed JSON .*one whole JSON object"),
        ("x.jsonl", b'{"a": 1}\n"text"\n', r"x\.jsonl:2: a row must be a JSON object.*str 'text'"),
        ("x.json", b'[{"a": 1},\n {"a" 2}]', r"x\.json:2: malformed JSON array"),
        ("x.json", b'[{"a": 1}, 3]', r"x\.json:2: a row must be a JSON object"),
        ("x.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"x\.jsonl:2: not UTF-8 \(byte 8"),
        ("x.jsonl", b'{"a": 1}\n[1]\n', r"x\.jsonl:2: a row must be a JSON object"),
        ("x.jsonl", b'{"a": "\\ud83d"}\n', r"x\.jsonl:1: .*half a surrogate pair"),
        ("x.jsonl.gz", b'{"a": 1}\n', r"x\.jsonl\.gz:1: not a complete gzip file"),
        ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9, mtime=0)[:-9], "not a complete gzip file"),
        ("x.parquet", b"PAR1 no", "not a readable Parquet file"),
        ("x.csv", b"a,b", r"rows are read from \.jsonl"),
    ],
)
def test_bad_file_is_an_error_with_its_line(tmp_path, name, content, message):
    """Prevents a broken file from ending in a traceback, or from being read up to where it breaks."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)


def test_missing_file_and_folder(tmp_path):
    """Prevents a misspelled path from leaving the user to search."""
    (tmp_path / "pairs.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=r"no file .*pair\.jsonl\. Did you mean .*pairs\.jsonl\?"):
        read(tmp_path / "pair.jsonl")
    with pytest.raises(ValueError, match="Looked from"):
        read(tmp_path / "nowhere" / "pair.jsonl")
    with pytest.raises(ValueError, match=r"is a folder; name the files in it: .*pairs\.jsonl"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"datasets\.mine\.path=FILE"):
        load_rows("train", name="mine")


def test_field_says_what_is_wrong():
    """Prevents a KeyError, or a number where a text is needed, from surfacing far from its row."""
    with pytest.raises(ValueError, match=r"f:3: no field 'chosen' \(did you mean 'chosn'\?\); the row has 'chosn'"):
        field({"chosn": "a"}, "chosen", "f:3")
    with pytest.raises(ValueError, match="f:3: field 'chosen' must be str, not null"):
        field({"chosen": None}, "chosen", "f:3")
    with pytest.raises(ValueError, match="must be int, not bool True"):
        field({"labels": True}, "labels", "f:3", int)
