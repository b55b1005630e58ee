"""compare.py over real HTTP on loopback: nothing is lost, nothing is paid for twice, and bad input is named."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import compare
from tests.verdict_server import Reply, VerdictServer, prefer_good

ROOT = Path(__file__).resolve().parent.parent
KEY = "sk-this-is-the-key-0123456789"


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    """A key, no endpoint of the user's own, no proxy before loopback, and a folder for what is written."""
    for name in ("OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)


def _write(names, **config):
    """Samples whose policy is GOOD; the prompts are the given names."""
    rows = [{"prompt": name, "chosen": f"bad {name}", "policy": f"GOOD {name} it is"} for name in names]
    content = {"sampled_at": "now", "config": {"exp_name": "run", **config}, "samples": rows}
    Path("run.json").write_text(json.dumps(content))


def _arguments(server, *more):
    fast = ["--timeout", "5", "--retries", "0"]
    return [
        "-f",
        "run.json",
        "-bk",
        "chosen",
        "-ck",
        "policy",
        "-r",
        "result.jsonl",
        "--base-url",
        server.url,
        *fast,
        *more,
    ]


def _compare(server, *more, code=0):
    """Runs compare.py in this process; the line it appended."""
    assert compare.main(_arguments(server, *more)) == code
    return _lines("result.jsonl")[-1]


def _lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def _obey_ctrl_c() -> None:
    """What a shell that runs the tests in the background makes processes ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _start(server, *more):
    """Runs compare.py in a process of its own, which can be killed."""
    command = [sys.executable, str(ROOT / "compare.py"), *_arguments(server, *more)]
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ.copy(),
        preexec_fn=_obey_ctrl_c,
    )


def _wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_fair_judge_is_heard_in_both_orders(capsys):
    """Prevents verdicts from being credited to the wrong model when the order is swapped."""
    _write(["a", "b", "c"])
    with VerdictServer() as server:
        line = _compare(server, "-j", "fair", "-s", "3")
    assert line["candidate"] == {"name": "policy", "wins": 3, "lengths": [4, 4, 4]}
    assert line["baseline"] == {"name": "chosen", "wins": 0, "lengths": [2, 2, 2]}
    assert (line["exp_name"], line["judge"], line["total"], line["orders"], line["seed"]) == ("run", "fair", 3, 2, 3)
    assert line["win_rate"] == 100 and line["ci95"] == pytest.approx([43.85, 100], abs=0.01)
    assert (line["swap_consistency"], line["first_wins"], line["cache_hits"]) == (100, 50, 0)
    assert "policy wins" in capsys.readouterr().out
    shown = sorted((asked.part("conversation"), asked.part("response 1")) for asked in server.asked)
    assert shown == sorted((name, text) for name in "abc" for text in (f"bad {name}", f"GOOD {name} it is"))
    body = server.asked[0].body
    assert (body["model"], body["temperature"], body["seed"]) == ("fair", 0, 3)


def test_a_judge_that_takes_the_first_gives_nobody_a_win():
    """Prevents position bias, which one random order hides, from passing for a preference."""
    _write(["a", "b", "c"])
    with VerdictServer(lambda asked, attempt: Reply("Verdict: 1")) as server:
        line = _compare(server)
    assert (line["ties"], line["win_rate"], line["swap_consistency"], line["first_wins"]) == (3, 50, 0, 100)


def _misbehave(asked, attempt):
    """By the prompt: statuses, silence and a lost connection at the first try; words that are no verdict always."""
    first = {
        "limited": Reply(status=429, headers={"Retry-After": "1.2"}, body=b"{}"),
        "broken": Reply(status=500, body=b"oops"),
        "silent": Reply(seconds=8.0),
        "hangs up": Reply(close=True),
    }
    always = {
        "garbage": Reply("\u2603 Bananas are better than both."),
        "third": Reply("Verdict: 3"),
        "cut": Reply("Reasons:\n1", finish_reason="length"),
        "nothing": Reply(""),
        "no json": Reply(body=b"<html>"),
        "no chat": Reply(body=b'{"choices": []}'),
        "always broken": Reply(status=503, body=b"{}"),
    }
    name = asked.part("conversation")
    return always.get(name) or (first.get(name) if attempt == 1 else None) or prefer_good(asked)


def test_a_server_that_misbehaves_loses_nothing(capsys):
    """Prevents every loss that HALOs had: limits, time-outs and errors ended a comparison, garbage became a winner."""
    recovers, undecided = ["limited", "broken", "silent", "hangs up"], ["garbage", "third", "cut", "nothing"]
    failed = ["no json", "no chat", "always broken"]
    _write([*recovers, *undecided, *failed, "fine"])
    with VerdictServer(_misbehave) as server:
        patient = ("--timeout", "4", "--retries", "1", "--concurrency", "16")
        line = _compare(server, *patient, code=1)
        assert (line["total"], line["candidate"]["wins"], line["baseline"]["wins"]) == (12, 5, 0)
        assert (line["undecided"], line["failed"], line["ties"]) == (4, 3, 0)
        assert line["bounds"] == [pytest.approx(41.6667), 100]
        for name in recovers:
            times = [asked.when for asked in server.asked if asked.part("conversation") == name]
            assert len(times) == 4
            assert name != "limited" or times[-1] - times[0] >= 1.2  # later than the client's own first wait, 0.5 s
        output = capsys.readouterr().out
        assert "HTTP 503" in output and "not a chat" not in output and "something else than a chat" in output
        assert "41.7 to 100.0 % if all" in output and "2 answers were cut off before their verdict" in output
        before = len(server.asked)
        server.behave = lambda asked, attempt: prefer_good(asked)
        again = _compare(server, *patient)
    assert {asked.part("conversation") for asked in server.asked[before:]} == set(failed)
    assert (len(server.asked) - before, again["failed"], again["undecided"]) == (6, 0, 4)
    assert (again["candidate"]["wins"], again["cache_hits"]) == (8, 18)
    assert "Bananas" in Path("result.judgments.jsonl").read_text()


def test_a_killed_run_goes_on_where_it_was():
    """Prevents paying again for what was answered before a kill -9."""
    names = [f"p{index}" for index in range(30)]
    _write(names)
    with VerdictServer(lambda asked, attempt: Reply("Verdict: tie", seconds=0.03)) as server:
        process = _start(server, "--concurrency", "4")
        _wait_until(lambda: server.answered >= 20)
        process.kill()
        process.communicate()
        time.sleep(0.1)
        kept, before = len(_lines("result.judgments.jsonl")), len(server.asked)
        assert before - 4 <= kept <= before < 60
        assert not Path("result.jsonl").exists()
        with Path("result.judgments.jsonl").open("a") as file:
            file.write('{"key": "torn')
        line = _compare(server)
    assert len(server.asked) - before == 60 - kept
    assert (line["cache_hits"], line["ties"]) == (kept, 30)


def test_ctrl_c_keeps_what_is_under_way():
    """Prevents answers that are already being paid for from being thrown away, and a message that leaves one alone."""
    _write([f"p{index}" for index in range(30)])
    with VerdictServer(lambda asked, attempt: Reply("Verdict: tie", seconds=0.4)) as server:
        process = _start(server, "--concurrency", "4")
        _wait_until(lambda: server.answered >= 4)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "the same command goes on from there" in errors and "Traceback" not in errors
        _wait_until(lambda: server.answered == len(server.asked))
        assert len(_lines("result.judgments.jsonl")) == len(server.asked) < 60


def test_the_key_reaches_no_file_and_no_message(capfd):
    """Prevents a key that a server repeats, or that the run's config holds, from being shared with the results."""

    def tell(asked, attempt):
        if asked.part("conversation") == "error":
            return Reply(status=400, body=json.dumps({"error": {"message": asked.headers["authorization"]}}).encode())
        return Reply(asked.headers["authorization"] + "\nVerdict: 1")

    _write(["a", "error"], wandb={"api_key": KEY}, note=f"used {KEY}")
    with VerdictServer(tell) as server:
        _compare(server, "-csv", "rows.csv", "-v", code=1)
        assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
    written = "".join(path.read_text() for path in Path().glob("*") if path.name != "run.json")
    output = "".join(capfd.readouterr())
    assert "[key]" in written and "[key]" in output
    assert KEY not in written and KEY not in output


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_stops_at_once(status, capsys):
    """Prevents a thousand refused requests, one after the other, for a slip in the command."""
    _write([f"p{index}" for index in range(50)])
    body = b'{"error": {"message": "no such thing"}}'
    with VerdictServer(lambda asked, attempt: Reply(status=status, body=body)) as server:
        assert compare.main(_arguments(server, "-j", "gpt-5o", "--retries", "3", "--concurrency", "2")) == 2
        assert len(server.asked) <= 6
    errors = capsys.readouterr().err
    assert f"HTTP {status}" in errors and "no such thing" in errors and "-j gpt-5o" in errors
    assert not Path("result.jsonl").exists()


def test_an_endpoint_that_never_answers_is_given_up(capsys):
    """Prevents waiting through the retries of every single request when nobody listens."""
    _write([f"p{index}" for index in range(50)])
    with VerdictServer() as server:
        pass
    assert compare.main(_arguments(server, "--concurrency", "2")) == 2
    assert "the first 8 requests all failed" in capsys.readouterr().err


def test_no_quota_stops_the_run(capsys):
    """Prevents an account without quota, which looks like a rate limit, from being asked for hours."""
    _write(["a", "b"])
    body = b'{"error": {"message": "You ran out", "code": "insufficient_quota"}}'
    with VerdictServer(lambda asked, attempt: Reply(status=429, body=body)) as server:
        assert compare.main(_arguments(server)) == 2
    assert "no quota" in capsys.readouterr().err


def test_without_a_key_the_error_comes_first(monkeypatch, capsys):
    """Prevents finding out after the samples were read that there is no key; loopback needs none."""
    monkeypatch.setenv("OPENAI_API_KEY", " ")
    assert compare.main(["-f", "missing.json"]) == 2
    error = capsys.readouterr().err
    assert "OPENAI_API_KEY" in error and "--offline" in error and "--base-url" in error
    assert compare.main(["-f", "missing.json", "--base-url", "https://judge.example/v1"]) == 2
    assert "no key for the judge at judge.example" in capsys.readouterr().err
    _write(["a"])
    with VerdictServer() as server:
        assert _compare(server)["win_rate"] == 100
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert compare.main(["-f", "run.json", "-r", "other.jsonl"]) == 0


def test_one_order_costs_half():
    """Prevents `--orders 1` from always showing the candidate first."""
    _write([f"p{index}" for index in range(16)])
    with VerdictServer() as server:
        line = _compare(server, "--orders", "1")
        assert len(server.asked) == 16
        good_first = sum("GOOD" in asked.part("response 1") for asked in server.asked)
        assert 0 < good_first < 16
        assert (line["win_rate"], line["orders"], line["swap_consistency"]) == (100, 1, None)
        _compare(server, "--orders", "2")
    assert len(server.asked) == 32  # the other order; the first is known


def test_no_question_is_asked_twice_and_none_that_answers_itself():
    """Prevents paying for a repeated row, or for comparing a text with itself."""
    _write(["a", "a", "same"])
    content = json.loads(Path("run.json").read_text())
    content["samples"][2]["policy"] = content["samples"][2]["chosen"]
    Path("run.json").write_text(json.dumps(content))
    with VerdictServer() as server:
        line = _compare(server)
    assert len(server.asked) == 2
    assert (line["total"], line["rows"], line["candidate"]["wins"], line["ties"]) == (2, 3, 1, 1)
    assert line["candidate"]["lengths"] == [4, 2]


def test_requests_start_apart_when_asked_to():
    """Prevents `-st` from being read by nobody, or from delaying each thread on its own."""
    _write(["a", "b"])
    with VerdictServer() as server:
        _compare(server, "-st", "0.1", "--concurrency", "4")
    starts = [asked.when for asked in server.asked]
    assert starts[-1] - starts[0] > 0.2  # three waits, less what the first needs to connect


def test_mc_csv_and_verbose(capsys):
    """Prevents HALOs' flags from losing their meaning: `-v false` is false, `-mc` counts prompts, `-csv` is a file."""
    _write([f"p{index}" for index in range(6)])
    with VerdictServer() as server:
        assert _compare(server, "-mc", "2", "-csv", "out/rows.csv", "-v")["total"] == 2
        assert "candidate first: candidate; baseline first: candidate" in capsys.readouterr().out
        assert _compare(server, "-mc", "null", "-v", "false", "-l", "AB", "-hk", "prompt", "-s", "1")["total"] == 6
        assert "candidate first" not in capsys.readouterr().out
    rows = list(csv.DictReader(Path("out/rows.csv").read_text().splitlines(keepends=True)))
    assert [row["verdict_2"] for row in rows] == ["candidate"] * 2 and "says GOOD" in rows[0]["answer_1"]


def test_bad_input_is_named(capsys):
    """Prevents tracebacks for what a user can put right."""
    _write(["a"])
    server = SimpleNamespace(url="http://localhost:1")
    for arguments, message in {
        ("-bk", "chosne"): "did you mean `chosen`",
        ("-f", "rum.json"): "did you mean `run.json`",
        ("-l", "11"): "--labels",
        ("-r", "."): "is a folder",
        ("--base-url", "localhost:8000"): "--base-url must look like http://",
        ("--base-url", "http://me:secret@localhost:8000/v1"): "leave them out, and set OPENAI_API_KEY",
    }.items():
        assert compare.main(_arguments(server, *arguments)) == 2
        assert message in capsys.readouterr().err
    for arguments in (
        ["-mc", "0"],
        ["--max-failures", "2"],
        ["-v", "maybe"],
        ["--timeout", "nan"],
        ["--offline", "shorter"],
    ):
        with pytest.raises(SystemExit, match="2"):
            compare.main(_arguments(server, *arguments))


def test_offline_needs_no_key_and_no_heavy_package(monkeypatch):
    """Prevents the offline judge from importing torch or openai, or from asking for a key."""
    monkeypatch.delenv("OPENAI_API_KEY")
    _write(["a", "b"])
    code = (
        "import sys, compare; code = compare.main(sys.argv[1:]);"
        "assert not {'torch', 'openai', 'transformers', 'numpy'} & set(sys.modules); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "-f", "run.json", "--offline", "shorter", "-r", "result.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    line = _lines("result.jsonl")[-1]
    assert (line["judge"], line["orders"], line["win_rate"], line["failed"]) == ("shorter", 1, 0, 0)
    assert "fewer words" in line["rule"] and "fewer words" in done.stdout
