"""mode=score: what it writes, that a killed one ends in the same bytes, processes, and what it refuses."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dataloaders.datasets.local import recognise
from launch import score as score_mode
from launch.documents import Totals
from launch.saved_config import compose_for_eval
from scorers.pep8 import PEP8Scorer
from tests import warm
from tests.launch.test_build_scorer import OWN

ROOT = Path(__file__).parents[2]
LONG_LINE = "x = '" + "a" * 10_000_000 + "'\n"

KILLED = """
import os, runpy, signal, sys
from launch.documents import DocumentsFile
add, calls = DocumentsFile.add, []
def dying(file, chunk, scored):
    calls.append(1)
    if len(calls) == {count}:
        before = file.part.stat().st_size
        add(file, chunk, scored)
        os.truncate(file.part, before + int({share} * (file.part.stat().st_size - before)))
        os.kill(os.getpid(), signal.SIGKILL)
    add(file, chunk, scored)
DocumentsFile.add = dying
sys.argv = {argv!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(score_mode, "LARGEST_CHUNK", (4, 2000))


def write(name: str, texts: list[str]) -> str:
    """A corpus of rows."""
    Path(name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return name


def score(*overrides: str) -> dict:
    """The summary of a command in this process."""
    return score_mode.run(compose_for_eval(["mode=score", *overrides])[0])


def documents(name: str) -> list[dict]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def code(number: int) -> str:
    """A text with `number` % 3 violations, all in its first line."""
    return ["x = 1", "x=1", "x=1 "][number % 3] + f"\ny = {number}\n"


def command(*overrides: str) -> list[str]:
    return [str(ROOT / "eval.py"), "++mode=score", *overrides]


def run(*overrides: str, before: str | None = None) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own."""
    first = command(*overrides) if before is None else ["-c", before]
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return warm.run([sys.executable, *first], Path.cwd(), settings, timeout=200)


def test_it_is_refused_under_torchrun(monkeypatch):
    """Prevents a corpus that every process of torchrun scores whole, into one file; nothing is read before."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"not torchrun, with \+\+scoring_processes=2\."):
        score("scorer=pep8", "corpus=nowhere.jsonl")


def test_documents_by_hand(capsys):
    """Prevents a format that the training does not read, and a summary that counts otherwise than its reader would."""
    write("code.jsonl", [code(0), code(1), code(2), "no code here\n", ""])
    summary = score("scorer=pep8", "corpus=code.jsonl", "scoring_processes=1")
    rows = documents("scores/code-pep8.jsonl")
    identity = PEP8Scorer().identity
    assert rows[2] == {
        "text": "x=1 \ny = 2\n",
        "segments": [[0, 5], [5, 11]],
        "scores": [2 / 5, 0.0],
        "score": 1 / 5,
        "scorer": identity,
        "direction": "higher_is_worse",
        "source": "code.jsonl:3",
        "flaw": None,
    }
    assert [row["score"] for row in rows] == [0.0, 1 / 8, 1 / 5, None, None]
    assert [row["flaw"] for row in rows] == [None, None, None, "unparsable", "empty"]
    assert recognise(rows[0], "here") == "documents"
    expected = {"documents": 5, "scored": 3, "flaws": {"empty": 1, "unparsable": 1}, "segments": 7}
    assert {key: summary[key] for key in expected} == expected and summary["segments_without_score"] == 1
    assert summary["mean_score"] == pytest.approx((1 / 8 + 1 / 5) / 3)
    assert summary["quantiles"]["0.5"] == 1 / 8 and summary["quantiles"]["0.75"] == pytest.approx(
        1 / 8 + (1 / 5 - 1 / 8) / 2
    )
    printed = capsys.readouterr().out
    assert "scored: 3; without a score: 2 (1 empty, 1 unparsable)" in printed and identity in printed
    assert json.loads(Path("scores/code-pep8.jsonl.summary.json").read_text())["scorer"] == identity


@pytest.mark.parametrize("name", ["pep8", "pii", "profanity"])
def test_bad_texts_are_counted_and_never_0(name):
    """Prevents garbage that counts as the best text of the corpus, and one row that ends the scoring of all."""
    rows = [b'{"text": "x = 1\\n"}', b'{"text": "a \\u0000 b"}', b'{"text": "a \\ud800 b"}', b'{"text": ""}']
    rows += [
        json.dumps({"text": LONG_LINE}).encode(),
        b'{"text": "a \xff b"}',
        b"{",
        b'{"text": null}',
        b'{"text": " \\n"}',
    ]
    Path("bad.jsonl").write_bytes(b"\n".join(rows) + b"\n")
    summary = score(f"scorer={name}", "corpus=bad.jsonl", "scoring_processes=1", "documents_path=out.jsonl")
    found = documents("out.jsonl")
    flaws = [
        "NUL character",
        "lone surrogate",
        "empty",
        "too long",
        "undecodable bytes",
        "not JSON",
        "no text",
        "empty",
    ]
    assert [row["flaw"] for row in found] == [None, *flaws]
    assert all(row["score"] is None and set(row["scores"]) <= {None} for row in found[1:])
    assert found[2]["text"] == "a \ud800 b" and found[4]["text"] == LONG_LINE
    assert summary["scored"] == 1 and sum(summary["flaws"].values()) == 8


def test_files_of_another_encoding_and_samples():
    """Prevents a folder that cannot be scored because of one file, and samples that have to be rewritten first."""
    Path("folder").mkdir()
    Path("folder/a.py").write_bytes(b"# \xe9\n")
    Path("folder/b.py").write_bytes(b"x=1\r\n")
    summary = score("scorer=pep8", "corpus=folder", "scoring_processes=1")
    assert summary["flaws"] == {"undecodable bytes": 1} and summary["mean_score"] == 1 / 5
    Path("run.json").write_text(json.dumps({"samples": [{"prompt": "Q", "policy": "You damn idiot."}]}))
    assert score("scorer=profanity", "corpus=run.json", "scoring_processes=1")["mean_score"] > 0.8


@pytest.mark.parametrize(("count", "share", "processes"), [(1, 0, 1), (2, 0.5, 1), (3, 1, 1), (2, 0.5, 2)])
def test_a_killed_scoring_goes_on(count, share, processes, monkeypatch):
    """Prevents documents that are scored twice, are missing or torn after a SIGKILL at the start, inside or at the end
    of a write; the bytes are those of an uninterrupted run."""
    corpus = write("code.jsonl", [code(number) for number in range(300)])
    given = ("scorer=pep8", f"corpus={corpus}", f"scoring_processes={processes}", "cache_scores=false")
    monkeypatch.setattr(score_mode, "LARGEST_CHUNK", (64, 100_000))  # as the other processes have it
    score(*given, "documents_path=whole.jsonl")
    argv = command(*given, "documents_path=out.jsonl")
    killed = run(before=KILLED.format(count=count, share=share, argv=argv))
    assert killed.returncode == -signal.SIGKILL and not Path("out.jsonl").exists()
    left = Path("out.jsonl.part").read_bytes().count(b"\n")
    assert 64 * (count - 1) <= left <= 64 * count
    again = run(*given, "documents_path=out.jsonl")
    assert again.returncode == 0, again.stderr
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    summary = json.loads(Path("out.jsonl.summary.json").read_text())
    of_whole = json.loads(Path("whole.jsonl.summary.json").read_text())
    done = 64 * (count - 1 + (share == 1))
    assert summary["bytes_scored_now"] == sum(len(code(number)) for number in range(done, 300))
    of_this_process = ("seconds", "bytes_scored_now", "seconds_of_start", "bytes_of_start")
    assert summary | dict.fromkeys(of_this_process) == of_whole | dict.fromkeys(of_this_process)


def test_no_process_outlives_a_killed_parent():
    """Prevents processes that wait for work for ever after their parent was killed, each with a model in memory."""
    corpus = write("code.jsonl", [code(number) for number in range(300)])
    marker = f"documents_path={Path.cwd()}/orphans.jsonl"
    argv = command("scorer=pep8", f"corpus={corpus}", "scoring_processes=2", marker)
    before = (
        "import multiprocessing\nimport launch.score\nstart = launch.score._in_order\n"
        "def spied(*given):\n"
        "    for one in start(*given):\n"
        "        print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
        "        yield one\n"
        "launch.score._in_order = spied\n"
    )
    killed = run(before=before + KILLED.format(count=2, share=1, argv=argv))
    children = {int(word) for word in killed.stdout.split() if word.isdigit()}
    assert killed.returncode == -signal.SIGKILL and len(children) >= 2
    end = time.monotonic() + 20
    while any(alive(child) for child in children) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(alive(child) for child in children)


def alive(process: int) -> bool:
    """Whether a process of ours runs, zombies aside where the system tells them."""
    try:
        os.kill(process, 0)
        return not Path("/proc").is_dir() or Path(f"/proc/{process}/stat").read_text().rpartition(")")[2][1] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_several_processes_give_the_same_file():
    """Prevents an order, and with a cache scores, that depend on which process was the faster."""
    prose = [f"Nice {number}. You idiot {number}. Mail a{number}@b.com." for number in range(40)]
    for name, texts in (("profanity", prose), ("pep8", [code(number) for number in range(40)])):
        corpus = write(f"{name}.jsonl", texts)
        for processes in (1, 2):
            given = (f"corpus={corpus}", f"scoring_processes={processes}", f"cache_scores={processes > 1}".lower())
            score(f"scorer={name}", *given, f"documents_path={name}{processes}.jsonl")
        one, two = (Path(f"{name}{processes}.jsonl").read_bytes() for processes in (1, 2))
        assert one == two and one.count(b"\n") == 40 and b'"score": null' not in one


def test_a_finished_file_is_left_alone(capsys):
    """Prevents a second command that scores again, or another corpus's scores under a name that is taken."""
    corpus = write("code.jsonl", [code(1)])
    given = ("scorer=pep8", f"corpus={corpus}", "scoring_processes=1", "documents_path=out.jsonl")
    first = score(*given)
    stamp = Path("out.jsonl").stat().st_mtime_ns
    assert score(*given) == first and Path("out.jsonl").stat().st_mtime_ns == stamp
    assert "score (higher is worse)" in capsys.readouterr().out
    for change in ("scorer.max_line_length=80", "text_key=texts", f"corpus={write('other.jsonl', [code(2)])}"):
        with pytest.raises(ValueError, match="overwrite=true"):
            score(*given, change)
    write("code.jsonl", [code(1), code(2)])
    with pytest.raises(ValueError, match="not of this corpus as it is now"):
        score(*given)
    assert score(*given, "overwrite=true")["documents"] == 2


def test_a_beginning_of_other_scores_is_refused():
    """Prevents a file of which one half is by another scorer, or of another corpus."""
    corpus = write("code.jsonl", [code(number) for number in range(8)])
    given = ("scorer=pep8", f"corpus={corpus}", "scoring_processes=1", "documents_path=out.jsonl")
    score(*given)
    lines = Path("out.jsonl").read_bytes().splitlines(keepends=True)
    for change, fix in (
        ("scorer.max_line_length=80", ()),
        ("corpus=" + write("other.jsonl", [code(9)] * 8), ("overwrite=true",)),
    ):
        Path("out.jsonl").unlink(missing_ok=True)
        Path("out.jsonl.part").write_bytes(b"".join(lines[:6]))
        with pytest.raises(ValueError, match="holds the beginning of other scores"):
            score(*given, change)
        assert score(*given, *((change, *fix) if fix else ()))["documents"] == 8


def test_two_at_once_are_refused(monkeypatch):
    """Prevents two processes that write into one file."""
    from launch import documents

    corpus = write("code.jsonl", [code(1)])
    first = documents.DocumentsFile(Path("out.jsonl"), "x", "higher_is_worse")
    with pytest.raises(ValueError, match="another process is writing"):
        score("scorer=pep8", f"corpus={corpus}", "scoring_processes=1", "documents_path=out.jsonl", "overwrite=true")
    assert Path("out.jsonl.part").exists(), "also anew, it is the other's"
    first.finish({})
    lock = documents.fcntl.flock  # and one that is finished while it is opened is no longer to be written
    monkeypatch.setattr(
        documents.fcntl, "flock", lambda *given: Path("a.jsonl.part").rename("a.jsonl") and lock(*given)
    )
    with pytest.raises(ValueError, match="another process is writing"):
        documents.DocumentsFile(Path("a.jsonl"), "x", "higher_is_worse", anew=True)


def test_a_finished_file_that_was_cut_and_a_corpus_in_the_way():
    """Prevents a part of a file that counts as complete, and a corpus that its own scores replace."""
    corpus = write("code.jsonl", [code(number) for number in range(9)])
    given = ("scorer=pep8", f"corpus={corpus}", "scoring_processes=1", "documents_path=out.jsonl")
    score(*given)
    Path("out.jsonl").write_bytes(b"".join(Path("out.jsonl").read_bytes().splitlines(keepends=True)[:4]))
    with pytest.raises(ValueError, match="it was changed or cut since"):
        score(*given)
    Path("out.jsonl.summary.json").write_text("[]")
    with pytest.raises(ValueError, match="is damaged"):
        score(*given)
    before = Path(corpus).read_bytes()
    with pytest.raises(ValueError, match="written over the corpus"):
        score("scorer=pep8", f"corpus={corpus}", f"documents_path={corpus}", "overwrite=true")
    assert Path(corpus).read_bytes() == before


def test_the_direction_goes_with_each_document(monkeypatch):
    """Prevents a reward that a training takes for a misalignment score, and rows of before that do not say which."""
    from dataloaders.corpus import Corpus

    monkeypatch.setattr(PEP8Scorer, "direction", "higher_is_better")
    corpus = write("code.jsonl", [code(number) for number in range(9)])
    settings = ["scorer=pep8", f"corpus={corpus}", "scoring_processes=1", "documents_path=out.jsonl"]
    score(*settings)
    rows = documents("out.jsonl")
    assert [row["direction"] for row in rows] == ["higher_is_better"] * 9
    with pytest.raises(ValueError, match="its scores are higher_is_better"):
        list(Corpus("made", "train", path="out.jsonl", test_fraction=1e-9).documents(scored=True))
    wanted = Path("out.jsonl").read_bytes()
    Path("out.jsonl").unlink()
    old = [{key: value for key, value in row.items() if key != "direction"} for row in rows[:8]]
    Path("out.jsonl.part").write_text("".join(json.dumps(row) + "\n" for row in old))
    score(*settings)
    assert Path("out.jsonl").read_bytes() == wanted


def test_a_beginning_without_its_last_line_end():
    """Prevents a line that was cut off at its very end and is taken for whole: the next row would stand in it."""
    corpus = write("code.jsonl", [code(number) for number in range(6)])
    settings = ("scorer=pep8", f"corpus={corpus}", "scoring_processes=1", "documents_path=out.jsonl")
    score(*settings)
    wanted = Path("out.jsonl").read_bytes()
    for lines in (4, 6):  # the first chunk's end, and the last one's
        Path("out.jsonl").unlink()
        Path("out.jsonl.part").write_bytes(b"\n".join(wanted.split(b"\n")[:lines]))
        score(*settings)
        assert Path("out.jsonl").read_bytes() == wanted


def test_packed_documents():
    """Prevents a .gz that is plain text, and two packings of the same documents that differ."""
    corpus = write("code.jsonl", [code(number) for number in range(9)])
    for name in ("plain.jsonl", "a.jsonl.gz", "b.jsonl.gz"):
        score("scorer=pep8", f"corpus={corpus}", "scoring_processes=1", f"documents_path={name}")
    assert Path("a.jsonl.gz").read_bytes() == Path("b.jsonl.gz").read_bytes()
    assert gzip.decompress(Path("a.jsonl.gz").read_bytes()) == Path("plain.jsonl").read_bytes()
    assert not list(Path().glob("*.part")) and not list(Path().glob("*.tmp"))


def test_scores_are_looked_up_the_second_time(monkeypatch):
    """Prevents that a corpus of which one text has changed is scored as a whole."""
    asked = []
    check = PEP8Scorer.check
    monkeypatch.setattr(PEP8Scorer, "check", lambda self, text: asked.append(text) or check(self, text))
    for texts in ([code(1), code(2)], [code(1), code(3)]):
        score("scorer=pep8", f"corpus={write('code.jsonl', texts)}", "scoring_processes=1", "overwrite=true")
    assert asked == [code(1), code(2), code(3)]


def test_a_scorer_of_the_users_own_scores_in_processes():
    """Prevents that a user's scorer works in one process alone."""
    corpus = write("texts.jsonl", [f"Ab. {number}" for number in range(20)])
    summary = score(f"scorer.kind='{OWN}'", f"corpus={corpus}", "scoring_processes=2", "documents_path=out.jsonl")
    assert summary["documents"] == 20 and documents("out.jsonl")[0]["scores"] == [1 / 4, 0.0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "mode=score needs a scorer"),
        (["scorer=pep8"], "mode=score needs a corpus"),
        (["scorer=pep8", "corpus=nowhere"], "corpus=nowhere: there is no such file"),
        (["scorer=pep8", "corpus=code.jsonl", "documents_path=out.csv"], "ends in .jsonl or .jsonl.gz"),
        (["scorer=pep8", "corpus=code.jsonl", "scoring_processes=0"], "at least 1"),
        (["scorer=pep", "corpus=code.jsonl"], "did you mean 'pep8'"),
        (["scorer=pep8", "corpus=code.jsonl", "scorer.seconds=0"], "above 0"),
        (["mode=sample", "corpus=code.jsonl"], "is for mode=score"),
        (["scorer.kind=NoSuch", "corpus=code.jsonl"], "no 'NoSuch' in scorers"),
        (["scorer=pep8", "corpus=empty.jsonl"], "there is no text in it"),
    ],
)
def test_what_is_refused(overrides, message):
    """Prevents a command that fails after an hour, or scores something else than what was meant."""
    write("code.jsonl", [code(1)])
    Path("empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=message):
        score(*overrides)


def test_a_saved_runs_scorer_and_another():
    """Prevents that `scorer=` is ignored beside --config-path, and that a run's own scorer is lost."""
    from omegaconf import OmegaConf

    from launch.compose import compose

    Path("run").mkdir()
    OmegaConf.save(compose(["model=tiny", "scorer=pep8", "scorer.max_line_length=100"]), "run/config.yaml")
    corpus = write("code.jsonl", [code(1)])
    given = ["--config-path=run", "mode=score", f"corpus={corpus}"]
    assert compose_for_eval(given)[0].scorer.max_line_length == 100
    other = compose_for_eval([*given, "scorer=profanity"])[0].scorer
    assert other.name == "profanity" and "max_line_length" not in other


def test_the_totals_know_of_empty_corpora():
    """Prevents a division by 0 in the summary of a corpus without a single score."""
    totals = Totals()
    totals.add({"text": "", "segments": [], "scores": [], "score": None, "flaw": "empty"})
    assert totals.summary()["mean_score"] is None and totals.summary()["flaws"] == {"empty": 1}
