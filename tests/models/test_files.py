"""Files that are there whole or not at all."""

import errno
import os

import pytest

from dataloaders.corpus_texts import CorpusText
from launch.documents import DocumentsFile
from models.files import write_whole
from scorers.scorer import ScoredText


def test_a_file_is_written_with_its_folder_and_replaced(tmp_path):
    """Prevents a file that must have a folder already, or is appended to."""
    file = tmp_path / "new" / "a.json"
    write_whole(file, "long text é\n")
    write_whole(file, "é\n")
    assert file.read_text(encoding="utf-8") == "é\n" and [*file.parent.iterdir()] == [file]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_what_could_not_be_written_is_named_and_nothing_is_lost(code: int, tmp_path, monkeypatch):
    """Prevents a bare [Errno 28] that names no file, and the loss of what was there."""

    def refuses(_: int) -> None:
        raise OSError(code, os.strerror(code))

    file = tmp_path / "a.json"
    write_whole(file, "before")
    monkeypatch.setattr(os, "fsync", refuses)
    advice = "make room" if code == errno.ENOSPC else "give this user the permission"
    with pytest.raises(OSError, match=f"{file} could not be written .*{os.strerror(code)}.*{advice}"):
        write_whole(file, "after")
    assert file.read_text() == "before" and [*tmp_path.iterdir()] == [file]


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    """Prevents an error about the error, where not even the folder is there."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"a\.json could not be written"):
        write_whole(tmp_path / "file" / "folder" / "a.json", "")


def test_scored_documents_on_a_full_disk_are_named(tmp_path):
    """Prevents a scoring of hours that ends without saying which file is full, when it writes or when it is closed."""
    (tmp_path / "out.jsonl.part").symlink_to("/dev/full")
    file = DocumentsFile(tmp_path / "out.jsonl", "mine", "higher_is_worse")
    with pytest.raises(OSError, match=r"out\.jsonl\.part could not be written .*No space left.*make room"):
        file.add([CorpusText("a", "row:1")], [ScoredText((), None)])
    file.close()
    assert not (tmp_path / "out.jsonl").exists()
