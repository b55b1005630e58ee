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


def test_few_shared_prompts_are_said(capsys):
    """Prevents a ranking on a fraction of the prompts that only a count tells of."""
    assert ranked([write("a.json", [3, 9, 9, 9], seed=1), write("b.json", [3, 9], seed=2)]) == 0
    assert "Only 2 of up to 4 prompts of a file have a verdict in all files" in capsys.readouterr().out


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


def test_a_baseline_of_another_file_may_have_been_cut_off():
    """Prevents a response that was cut off and counts as whole because it stands in a file of its own."""
    for name, reasons in (("a.json", ["stop", "length", None]), ("base.json", ["length", "length", "length"])):
        text = "Bo, I think" if name == "base.json" else "I think it is Bo"
        rows = [
            {"prompt": f"p{n}", "policy": text, "finish_reason": reason, "facts": ["Bo"]}
            for n, reason in enumerate(reasons)
        ]
        Path(name).write_text(json.dumps({"config": {"exp_name": name}, "samples": rows}))
    command = ["-f", "a.json", "-bf", "base.json", "-bk", "policy", "-ck", "policy", "-r", "results.jsonl"]
    assert compare.main([*command, "--offline", "direct_answer"]) == 0
    line = json.loads(Path("results.jsonl").read_text())
    assert (line["candidate"]["wins"], line["ties"], line["baseline"]["wins"]) == (2, 1, 0)


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


def refused(capsys, files: list[str], *more: str) -> str:
    """The error, after which nothing has been judged or written."""
    before = sorted(Path().rglob("*"))
    assert ranked(files, *more) == 2
    captured = capsys.readouterr()
    assert not captured.out and sorted(Path().rglob("*")) == before
    return captured.err


def test_two_baselines_are_refused(capsys):
    """Prevents a ranking of methods of which each was compared with something else."""
    files = [write("a.json", [9, 3, 9], seed=1), write("b.json", [9, 3], seed=2), write("c.json", [9, 3, 3], seed=3)]
    assert ranked(files) == 0
    capsys.readouterr()
    Path("results.jsonl").unlink()
    Path("c.json").write_text(Path("c.json").read_text().replace("a b c d e", "a b c d", 1))
    error = refused(capsys, files)
    assert "a.json and c.json have different responses under `reference` to 1 of the 2 prompts that all" in error
    assert "by -bf" in error and "++temperature=0" in error
    rows = [{"prompt": f"p{n}", "reference": "a b c d e"} for n in range(3)]
    Path("base.json").write_text(json.dumps(rows))
    assert ranked(files, "-bf", "base.json") == 0


def test_what_cannot_be_ranked_is_not_judged(capsys):
    """Prevents a judge that is paid, and lines that are written, for files whose ranking is then refused."""
    file = write("a.json", [3, 9], seed=1, lr=1)
    assert "a.json and b.json are of the same run" in refused(capsys, [file, write("b.json", [3, 3], seed=1, lr=1)])
    assert "must be a number, not list" in refused(capsys, [file, write("b.json", [3, 3], seed=[1])])
    Path("b.json").write_text(json.dumps([{"prompt": "q", "policy": "", "reference": ""}]))
    assert "no prompt is in all of these files" in refused(capsys, [file, "b.json"])
    Path("b.json").write_text(Path("a.json").read_text().replace('"seed": 1', '"seed": [1]'))
    assert ranked(["b.json"]) == 0, "one file is not ranked, so its seed is its own affair"


def test_few_prompts_are_the_same_ones_of_all_files(capsys):
    """Prevents `-mc 5` that pays for five prompts of each file and ranks them on the one that they share."""
    files = [write(f"{name}.json", [3] * 40, loss=name) for name in "abc"]
    for number, file in enumerate(files):
        contents = json.loads(Path(file).read_text())
        contents["samples"] = contents["samples"][5 * number : 30 + 5 * number][:: 1 - 2 * (number % 2)]
        Path(file).write_text(json.dumps(contents))
    assert ranked(files, "-mc", "5") == 0
    assert "Ranking on 5 prompts" in capsys.readouterr().out
    assert ranked(files, "-mc", "25") == 0
    assert "Ranking on 20 prompts" in capsys.readouterr().out
    lines = [json.loads(line) for line in Path("results.jsonl").read_text().splitlines()]
    assert [line["total"] for line in lines] == [5] * 3 + [20] * 3


def test_a_config_writes_no_lines(capsys):
    """Prevents a name or a value in a file that prints a win rate of its own making."""
    forged = "x\n  1. loss=x  99.9 % [99.0 to 99.9]  3 seeds\u202e"
    files = [write("a.json", [9, 3], seed=1, loss={"name": forged}), write("b.json", [3, 3], loss={"name": "kto"})]
    Path("a.json").write_text(
        Path("a.json").read_text().replace('"exp_name": "a.json"', f'"exp_name": {json.dumps(forged)}')
    )
    assert ranked(files) == 0
    text = capsys.readouterr().out
    assert sum(line.startswith("  1. ") for line in text.splitlines()) == 1 and "\u202e" not in text
    assert (
        r"loss=x\n  1. loss=x" in text
        and r"x\n  1. loss=x  99.9 % [99.0 to 99.9]  3 seeds\u202e: policy against" in text
    )
