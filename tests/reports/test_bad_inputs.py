"""Inputs of the wrong kind, and a config that asks for the reader's secrets: one line, and no page."""

import codecs
import json
import re

import pytest

from reports.page import main
from tests.reports.run_files import CONFIG, sample, write_files


def refused(arguments, capsys):
    """The one line that the report's command ends with."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def change(path, place, value):
    """Sets a value within a JSON file, or within the first line of a JSONL file."""
    first, *rest = path.read_text().splitlines()
    content = json.loads(first)
    part = content
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    path.write_text("\n".join([json.dumps(content), *rest]) + "\n")


@pytest.mark.parametrize(
    "interpolation",
    [
        "note: ${oc.env:AUREOLE_TEST_SECRET}",
        "model: {name: 'the ${oc.env:AUREOLE_TEST_SECRET}'}",
        "notes: [[a, '${lr}']]",
        '"${lr}": 1',
        r'note: "\x24{oc.env:AUREOLE_TEST_SECRET}"',
    ],
)
def test_a_config_cannot_ask_for_secrets(interpolation, tmp_path, capsys, monkeypatch):
    """Prevents a run folder of somebody else's from putting the reader's key into a page that is shown around."""
    monkeypatch.setenv("AUREOLE_TEST_SECRET", "sk-very-secret")
    arguments = write_files(tmp_path)
    config = re.sub(f"(?m)^{interpolation.partition(':')[0]}:.*\n", "", CONFIG) if "model" in interpolation else CONFIG
    (tmp_path / "run" / "config.yaml").write_text(f"{config}\n{interpolation}\n")
    error = refused(arguments, capsys)
    assert "config.yaml holds a `${`" in error and "sk-very-secret" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "place", "value", "message"),
    [
        ("run/metrics.jsonl", ["loss/eval"], "low", r"`loss/eval` must be a number, not 'low'"),
        ("run/metrics.jsonl", ["counters/examples"], "many", r"`counters/examples` must be a number"),
        ("run/data.json", ["everyday", "train", "rows"], "133", r"`everyday.train`: `rows` must be a number"),
        ("run/data.json", ["everyday", "train"], 3, r"`everyday.train` must be an object"),
        ("run/data.json", ["everyday", "test", "cut", "prompts"], "2", r"`cut.prompts` must be a number"),
        ("demo.json", ["samples", 3, "policy_logp"], "-3", r"sample 3: `policy_logp` must be a number"),
        ("demo.json", ["samples", 3, "policy_tokens"], "four", r"sample 3: `policy_tokens` must be a number"),
        ("demo.json", ["samples", 3, "policy"], 4, r"sample 3: `policy` must be text, not 4"),
        ("demo.json", ["samples", 3, "facts"], 4, r"sample 3: `facts` must be a list of texts"),
        ("demo.json", ["samples", 3, "topic"], [], r"sample 3: `topic` must be text"),
        ("demo.json", ["samples", 3], 4, r"sample 3 must be an object"),
        ("demo.json", ["config"], "x", r"`config` must be an object"),
        ("results.jsonl", ["win_rate"], "80 %", r"`win_rate` must be a number, not '80 %'"),
        ("results.jsonl", ["total"], "twenty", r"`total` must be a number"),
        ("results.jsonl", ["ci95"], ["60", "90"], r"`ci95` must be a number"),
        ("results.jsonl", ["ci95"], "60 to 90", r"`ci95` must be two numbers"),
        ("results.jsonl", ["candidate", "wins"], "16", r"`candidate.wins` must be a number"),
        ("results.jsonl", ["judge"], None, r"`judge` must be text"),
    ],
)
def test_a_text_where_a_number_belongs_is_named(file, place, value, message, tmp_path, capsys):
    """Prevents a traceback from the middle of the arithmetic."""
    arguments = write_files(tmp_path)
    change(tmp_path / file, place, value)
    assert re.search(message, refused(arguments, capsys))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("run/config.yaml", b"a: [", r"config.yaml is not valid YAML"),
        ("run/config.yaml", b"- 1", r"config.yaml must be an object"),
        ("run/config.yaml", b"n_eval_examples: many", r"`n_eval_examples` must be a number, not 'many'"),
        ("run/config.yaml", b"datasets: 3", r"`datasets` must be the names of data sets"),
        ("run/metrics.jsonl", b"\xff\n", r"metrics.jsonl is not UTF-8 text"),
        ("run/metrics.jsonl", b"[" * 100_000, r"line 1: not valid JSON"),
        ("demo.json", b"[" * 100_000, r"demo.json is malformed JSON"),
        ("judgments.csv", b"prompt,candidate,baseline,outcome\na,b\n", r"judgments.csv is not what"),
        ("judgments.csv", b"\xff", r"judgments.csv is not what"),
        ("judgments.csv", b"x" * 200_000, r"judgments.csv is not what"),
    ],
)
def test_malformed_files_are_named(file, content, message, tmp_path, capsys):
    """Prevents a traceback, or an error that does not say which of five files is meant."""
    arguments = write_files(tmp_path)
    (tmp_path / file).write_bytes(content)
    assert re.search(message, refused(arguments, capsys))


def test_files_with_a_byte_order_mark_are_read(tmp_path):
    """Prevents refusing files that an editor saved again."""
    arguments = write_files(tmp_path)
    for name in ("demo.json", "results.jsonl", "judgments.csv", "run/data.json", "run/metrics.jsonl"):
        (tmp_path / name).write_bytes(codecs.BOM_UTF8 + (tmp_path / name).read_bytes())
    assert main(arguments) == 0
    assert "32 held-out pairs" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_the_printed_table_has_no_control_characters(tmp_path, capsys):
    """Prevents a run's name, or a judge's, from driving the terminal."""
    arguments = write_files(tmp_path, [sample(number) for number in range(20)])
    (tmp_path / "run" / "config.yaml").write_text(CONFIG.replace("exp_name: demo", r'exp_name: "a\x1b[2J"'))
    change(tmp_path / "results.jsonl", ["judge"], "b\x1b[31m")
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "\x1b" not in output and r"a\x1b[2J" in output and r"b\x1b[31m" in output
