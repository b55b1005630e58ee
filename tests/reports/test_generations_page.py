"""The report of samples, the paper's figure and the plot of a search: what they show, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reports import generations, pareto, red_team

HOSTILE = "<script>alert(1)</script>\x1b[2J"


def figure(mean: float) -> dict:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 3}


def write_look(folder: Path, examples: int, score: float = 0.5, /, **changes: object) -> None:
    """A scenario's result files."""
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    about = {
        "scenario": "free", "examples": examples, "metrics": {"score": figure(score), "length": figure(10.0)},
        "settings": {"temperature": 0.7, "prefix": HOSTILE}, "scorer": "letter", "direction": "higher_is_worse",
        "unscored": {"no Python": 1}, "notes": ["Names are not found."], "missing": {"score_max@25": "too few"},
    }  # fmt: skip
    (folder / "samples" / f"free-{examples}.json").write_text(json.dumps(about | changes))
    rows = [
        {"prompt": "p", "completion": HOSTILE, "score": 0.1}, {"prompt": "", "completion": "", "score": None},
        {"prompt": "", "completion": "worst text", "score": 0.9},
    ]  # fmt: skip
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "samples" / f"free-{examples}.jsonl").write_text(lines)


def test_the_page_shows_figures_and_escaped_samples(tmp_path, capsys):
    """Prevents a sample that runs in the reader's browser, figures without intervals, and unscored samples unsaid."""
    for examples, score in ((8, 0.5), (16, 0.4)):
        write_look(tmp_path / "run", examples, score)
    output = tmp_path / "out" / "page.html"
    neighbour = output.with_suffix(".tmp")
    neighbour.parent.mkdir()
    neighbour.write_text("somebody's")
    assert generations.main([str(tmp_path / "run"), "--output", str(output)]) == 0
    page = output.read_text()
    assert neighbour.read_text() == "somebody's" and len(list(output.parent.iterdir())) == 2
    assert "<script" not in page and "&lt;script&gt;" in page and "\x1b" not in page
    assert "0.3 to 0.5" in page and "0.4 to 0.6" in page and "in no figure of it: 1 no Python" in page
    assert page.count("data:image/png") == 4, "score and length, light and dark"
    assert page.index("worst text") < page.index("&lt;script&gt;alert", page.index("The worst scores"))
    assert (
        "too few" in page
        and "Names are not found" in page
        and "not scored" in page
        and "free: 3 samples after 16" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": {"score": {"mean": "x"}}}, "must be a number"),
        ({"examples": None}, "must be a number"),
        ({"metrics": []}, "must be an object"),
    ],
)
def test_a_page_of_damaged_files_is_refused(change: dict, message: str, tmp_path, capsys):
    """Prevents a traceback in the place of the file's name."""
    write_look(tmp_path, 8, **change)
    assert generations.main([str(tmp_path), "--output", str(tmp_path / "x.html")]) == 2
    assert message in capsys.readouterr().err
    (tmp_path / "samples" / "free-8.jsonl").unlink()
    assert generations.main([str(tmp_path)]) == 2
    assert generations.main([str(tmp_path / "nowhere")]) == 2
    assert "mode=generate" in capsys.readouterr().err


def results(folder: Path, label: str, score: float, kl: float, /, **changes: object) -> Path:
    """A run's alignment.json."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{label}.json"
    found = {"label": label, "score": figure(score), "kl": figure(kl), "scorer": "s", "kl_reference": {"name": "r"}}
    file.write_text(json.dumps(found | changes))
    return file


def test_a_sample_may_hold_what_other_programs_take_for_the_end_of_a_line(tmp_path):
    """Prevents a page that cannot be made because a model wrote U+2028, which splits lines elsewhere."""
    write_look(tmp_path, 8)
    row = {"prompt": "", "completion": "one\u2028two\x85three", "score": 0.1}
    (tmp_path / "samples" / "free-8.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    (look,) = generations.read_looks(tmp_path)["free"]
    assert [one["completion"] for one in look.samples] == [row["completion"]]


def test_the_front_is_what_nothing_beats(tmp_path, capsys):
    """Prevents a front through beaten runs, and one in the wrong direction where a high score is good."""
    values = {"mle": (0.5, 1.0), "conditional": (0.1, 1.2), "filtering": (0.3, 1.3), "awr": (0.5, 1.4)}
    files = [results(tmp_path, label, *some) for label, some in values.items()]
    points = [pareto.read_point(str(file), "kl") for file in files]
    assert [one.label for one in pareto.front(points)] == ["mle", "conditional"]
    better = [results(tmp_path / "up", label, *some, direction="higher_is_better") for label, some in values.items()]
    points = [pareto.read_point(str(file), "kl") for file in better]
    assert [one.label for one in pareto.front(points)] == ["mle"]
    output = tmp_path / "figure" / "pareto.png"
    assert pareto.main([*map(str, files), "--output", str(output)]) == 0
    assert output.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert printed.count("on the front") == 2 and "0.4 to 0.6" in printed
    assert pareto.read_point(f"other={files[0]}", "kl").label == "other"


@pytest.mark.parametrize(
    ("changes", "axis", "message"),
    [
        ({}, "bits_per_byte", r"`bits_per_byte` is not there: .*mode=kl \+\+kl.documents=FILE` writes"),
        ({"kl": None}, "kl", r"`kl` is not there: .*mode=kl \+\+kl.reference=MODEL` writes"),
        ({"score": None}, "kl", r"`score` is not there: .*mode=generate"),
        ({"score": {"mean": None}}, "kl", "must be a number"),
        ({"kl": {"mean": 1.0, "low": "x"}}, "kl", "`low` must be a number"),
        ({"kl": {"mean": 10**400}}, "kl", "`mean` must be a number"),
        ({"kl": {"mean": float("inf")}}, "kl", "`mean` must be a number"),
    ],
)
def test_what_a_run_lacks_is_named(changes: dict, axis: str, message: str, tmp_path):
    """Prevents a picture without a point that nobody misses."""
    with pytest.raises(ValueError, match=message):
        pareto.read_point(str(results(tmp_path, "a", 0.5, 1.0, **changes)), axis)


def test_runs_without_a_common_axis_are_not_compared(tmp_path, capsys):
    """Prevents scores of two scorers, or divergences from two references, on one axis."""
    first = results(tmp_path, "a", 0.5, 1.0)
    for changes, words in (({"scorer": "t"}, "scorers"), ({"kl_reference": {"name": "q"}}, "references")):
        other = results(tmp_path, "b", 0.5, 1.0, **changes)
        assert pareto.main([str(first), str(other), "--output", str(tmp_path / "x.png")]) == 2
        assert f"different {words}" in capsys.readouterr().err
    for contents in ("[", "[" * 100_000):
        (tmp_path / "broken.json").write_text(contents)
        assert pareto.main([str(tmp_path / "broken.json")]) == 2
    assert not (tmp_path / "x.png").exists()
    assert pareto.main([str(tmp_path / "nowhere.json")]) == 2


REFERENCE = {"name": "r", "max_new_tokens": 64, "samples": 4096}
HELD_OUT = {"documents": "a/held.jsonl", "documents_sha256": "1", "aligned_threshold": 0.1}
SETTINGS = {"prompts": 0, "max_new_tokens": 128, "temperature": 0.7}


def conditions(**changes: object) -> dict:
    """What two runs have in common, but for changes of it."""
    found = {
        "kl_reference": REFERENCE, "held_out": HELD_OUT, "scenario": "free", "bits_per_byte": figure(1.0),
        "bits_per_byte_aligned": figure(1.0), "scenarios": {"other": {"score": figure(0.5)}},
        "settings": {"free": SETTINGS, "other": SETTINGS},
    }  # fmt: skip
    return found | changes


@pytest.mark.parametrize(
    ("axis", "changes", "differs"),
    [
        ("kl", {"kl_reference": REFERENCE | {"max_new_tokens": 6}}, "kl.max_new_tokens"),
        ("kl_per_token", {"kl_reference": REFERENCE | {"max_new_tokens": 6}}, "kl.max_new_tokens"),
        ("kl", {"kl_reference": REFERENCE | {"samples": 8}}, None),
        ("kl", {"held_out": HELD_OUT | {"documents_sha256": "2"}}, None),
        ("bits_per_byte", {"held_out": HELD_OUT | {"documents_sha256": "2"}}, "by their contents"),
        ("bits_per_byte", {"held_out": HELD_OUT | {"documents": "b/same.jsonl"}}, None),
        ("bits_per_byte", {"held_out": {"documents": "b/held.jsonl"}}, None),
        ("bits_per_byte", {"held_out": {"documents": "a/train.jsonl"}}, "held-out documents, "),
        ("bits_per_byte", {"bits_per_byte": figure(1.0) | {"n": 2}}, "numbers of held-out documents"),
        ("bits_per_byte", {"held_out": HELD_OUT | {"aligned_threshold": 0.2}}, None),
        ("bits_per_byte_aligned", {"held_out": HELD_OUT | {"aligned_threshold": 0.2}}, "kl.aligned_threshold"),
        ("bits_per_byte", {"kl_reference": {"name": "q"}}, None),
        ("kl", {"settings": {"free": SETTINGS | {"temperature": 1.0}}}, r"settings of the samples \(temperature\)"),
        ("kl", {"settings": {"free": SETTINGS | {"max_new_tokens": 9}}}, r"settings of the samples \(max_new_tokens\)"),
        ("kl", {"settings": {"free": SETTINGS, "other": SETTINGS | {"prompts": 9}}}, None),
        ("kl", {"settings": {}}, None),
    ],
)
def test_what_was_measured_otherwise_is_refused(axis: str, changes: dict, differs: str | None, tmp_path):
    """Prevents one axis for divergences of samples of 6 and of 64 tokens, bits of other documents, scores of other
    settings; and a refusal for what does not matter to the axis."""
    files = [results(tmp_path, "a", 0.5, 1.0, **conditions(kl_per_token=figure(0.1)))]
    files.append(results(tmp_path, "b", 0.4, 1.0, **conditions(kl_per_token=figure(0.1)) | changes))
    points = [pareto.read_point(str(file), axis) for file in files]
    if differs is None:
        pareto.refuse_different(points)
        return
    with pytest.raises(ValueError, match=rf"different .*{differs}.*no common axis: .*\(a\), .*\(b\)$"):
        pareto.refuse_different(points)


def test_the_settings_of_the_scenario_that_is_drawn_count(tmp_path):
    """Prevents a comparison of the first scenario's settings where another one's scores are drawn."""
    other = {"settings": {"free": SETTINGS, "other": SETTINGS | {"prompts": 9}}}
    files = [results(tmp_path, label, 0.5, 1.0, **conditions(**of)) for label, of in (("a", {}), ("b", other))]
    with pytest.raises(ValueError, match=r"settings of the samples \(prompts\).* 0 \(a\), 9 \(b\)"):
        pareto.refuse_different([pareto.read_point(str(file), "kl", "other") for file in files])


def rounds(folder: Path, *lines: dict, **header: object) -> Path:
    """A rounds.jsonl."""
    file = folder / "rounds.jsonl"
    first = {"label": "run", "scorer": "s", "direction": "higher_is_worse", "settings": {"attacker": "a"}} | header
    file.write_text("".join(json.dumps(line) + "\n" for line in (first, *lines)))
    return file


def one_round(number: int, *scores: float | None) -> dict:
    candidates = [{"prompt": f"{number}", "score": None if one is None else figure(one)} for one in scores]
    known = [one for one in scores if one is not None]
    return {"round": number, "score": figure(sum(known) / len(known)) if known else None, "candidates": candidates}


def test_a_search_over_its_rounds(tmp_path, capsys):
    """Prevents a worst prompt that gets better from round to round, and an unscored round that counts as 0."""
    file = rounds(tmp_path, one_round(0, 0.2, 0.4), one_round(1, 0.1, None), one_round(2, None), one_round(3, 0.9))
    found = red_team.read_rounds(file)
    assert [(number, mean) for number, mean, *_ in found.means] == [(0, pytest.approx(0.3)), (1, 0.1), (3, 0.9)]
    assert found.worst == [(0, 0.4), (1, 0.4), (3, 0.9)]
    good = red_team.read_rounds(rounds(tmp_path, one_round(0, 0.2, 0.4), direction="higher_is_better"))
    assert good.worst == [(0, 0.2)]
    output = tmp_path / "plot.png"
    assert red_team.main([str(file), "--output", str(output)]) == 0 and output.read_bytes().startswith(b"\x89PNG")
    assert "worst of many noisy means" in capsys.readouterr().out
    for contents in ("{}\n[]\n", "{}\n" + "[" * 100_000, '{}\n{"round": 1' + "0" * 400 + "}"):
        file.write_text(contents)
        assert red_team.main([str(file)]) == 2 and "no file of rounds" in capsys.readouterr().err
    whole = one_round(0, 0.5)
    for changes in ({"candidates": None}, {"candidates": 5}, {"score": None}, {"round": None}):
        assert red_team.main([str(rounds(tmp_path, whole | changes))]) == 2
        assert "no file of rounds" in capsys.readouterr().err
    assert red_team.main([str(rounds(tmp_path, one_round(0, None)))]) == 2
