"""compare.py on several samples files: each is compared, and all are ranked."""

import json
from pathlib import Path

import pytest

import compare


def write(name: str, lengths: list[int], **config) -> str:
    """A samples file whose policy answers with so many words; the baseline has five."""
    rows = [{"prompt": f"p{n}", "reference": "a b c d e", "policy": "x " * length} for n, length in enumerate(lengths)]
    Path(name).write_text(json.dumps({"config": {"exp_name": name, **config}, "samples": rows}))
    return name


def ranked(files: list[str], *more: str) -> int:
    return compare.main(["-f", *files, "-bk", "reference", "-r", "results.jsonl", "--offline", "shorter", *more])


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_several_files_are_compared_and_ranked(capsys):
    """Prevents a ranking without the comparisons that it is made of, and seeds that are ranked apart."""
    dpo, kto = {"loss": {"name": "dpo"}}, {"loss": {"name": "kto"}}
    files = [
        write("a.json", [9, 9, 9, 3], seed=1, **dpo), write("b.json", [9, 9, 3, 3], seed=2, **dpo),
        write("c.json", [3, 3, 3, 3], seed=1, **kto), write("d.json", [3, 3, 3, 9], seed=2, **kto),
    ]  # fmt: skip
    assert ranked(files) == 0
    lines = [json.loads(line) for line in Path("results.jsonl").read_text().splitlines()]
    assert [line["exp_name"] for line in lines] == files and [line["win_rate"] for line in lines] == [25, 50, 100, 75]
    text = capsys.readouterr().out
    assert text.index("a.json: policy against reference") < text.index("Ranking on 4 prompts")
    first, second = text[text.index("Ranking") :].splitlines()[1:3]
    assert first.startswith("  1. loss=kto   87.5 %") and "2 seeds" in first
    assert second.startswith("  2. loss=dpo   37.5 %") and "50.0 behind" in second


def test_one_file_is_not_ranked(capsys):
    """Prevents a ranking of one."""
    assert ranked([write("a.json", [3, 9])]) == 0
    assert "Ranking" not in capsys.readouterr().out


def test_what_cannot_be_ranked_is_said(capsys):
    """Prevents a file that is judged before another one is found to be missing, and results that overwrite samples."""
    file = write("a.json", [3, 9])
    assert ranked([file, "b.json"]) == 2
    assert "no samples file b.json" in capsys.readouterr().err and not Path("results.jsonl").exists()
    assert ranked([file, file]) == 2
    assert "same file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        ranked([file, write("c.json", [1])], "-csv", "x.csv")
    assert "-csv is for one samples file" in capsys.readouterr().err


def test_the_baseline_may_be_another_file(capsys):
    """Prevents responses that are compared with those to another prompt, or with the file's own."""
    files = [write("a.json", [9, 3, 9], seed=1), write("b.json", [3, 3, 3], seed=2)]
    rows = [{"prompt": f"p{n}", "policy": "a b c d e"} for n in (2, 1, 0)]
    Path("base.json").write_text(json.dumps({"config": {"exp_name": "base"}, "samples": rows}))
    command = ["-bf", "base.json", "-bk", "policy", "-ck", "policy", "-r", "results.jsonl", "--offline", "shorter"]
    assert compare.main(["-f", *files, *command]) == 0
    lines = [json.loads(line) for line in Path("results.jsonl").read_text().splitlines()]
    assert [line["win_rate"] for line in lines] == [pytest.approx(100 / 3, abs=0.01), 100]
    assert {line["baseline"]["name"] for line in lines} == {"base.policy"}
    assert "policy against base.policy" in capsys.readouterr().out
    Path("base.json").write_text(json.dumps(rows[1:]))
    assert compare.main(["-f", *files, *command]) == 2
    assert "1 of the 3 samples of a.json have a prompt" in capsys.readouterr().err
    assert compare.main(["-f", "a.json", "-bk", "policy", "-r", "other.jsonl", "--offline", "shorter"]) == 2
    assert "another file whose responses are the baseline (-bf)" in capsys.readouterr().err


def test_the_ranking_is_drawn(capsys):
    """Prevents a plot that is promised and not there, and one that a name with a formula in it breaks."""
    files = [write("a.json", [9, 9, 3], loss={"name": "$x^$"}), write("b.json", [3, 3, 3], loss={"name": "kto"})]
    assert ranked(files, "--plot", "plots/ranking.png") == 0
    assert (
        Path("plots/ranking.png").read_bytes().startswith(b"\x89PNG") and "plots/ranking.png" in capsys.readouterr().out
    )
    with pytest.raises(SystemExit):
        ranked(files[:1], "--plot", "x.png")
    assert "--plot draws a ranking" in capsys.readouterr().err
