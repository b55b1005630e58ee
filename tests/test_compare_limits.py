"""compare.py against hostile files and judges: nothing is overwritten, nothing is waited for without end."""

import gzip
import json
import os
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import compare
from tests.verdict_server import Reply, VerdictServer

ANSWER = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Verdict: tie"}}], "id": "x"}
DEEP = b"[" * 100_000


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    """No key and no endpoint of the user's own, no proxy before loopback, and a folder with one sample."""
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.chdir(tmp_path)
    _write()


def _write(**config):
    row = {"prompt": "Who?", "chosen": "She did.", "policy": "He."}
    Path("run.json").write_text(json.dumps({"config": {"exp_name": "run", **config}, "samples": [row]}))


def _offline(*more):
    return compare.main(["-f", "run.json", "--offline", "shorter", "-r", "result.jsonl", *more])


def _judged(url, *more):
    fast = ["--timeout", "0.6", "--retries", "1", "--orders", "1"]
    return compare.main(["-f", "run.json", "-r", "result.jsonl", "--base-url", url, *fast, *more])


def _result():
    return json.loads(Path("result.jsonl").read_text().splitlines()[-1])


@contextmanager
def _server(misbehave, times):
    """A judge whose first `times` answers are what `misbehave` writes to the connection; then it gives a verdict."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(time.monotonic())
            data = json.dumps(ANSWER).encode()
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            try:
                if len(asked) <= times:
                    misbehave(self.wfile, head)
                else:
                    self.wfile.write(head + b"Content-Length: %d\r\n\r\n" % len(data) + data)
            except OSError:
                pass  # the client hung up, as it should
            self.close_connection = True

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


def _drip(file):
    for _ in range(300):
        file.write(b" ")
        file.flush()
        time.sleep(0.1)


def _drip_body(file, head):
    file.write(head + b"Content-Length: 4000\r\n\r\n")
    _drip(file)


def _drip_head(file, head):
    file.write(head + b"X-Long: ")
    _drip(file)


def _endless(file, head):
    file.write(head + b"Content-Length: 4000000000\r\n\r\n")
    for _ in range(4000):
        file.write(b" " * 1_000_000)


def _bomb(file, head):
    body = gzip.compress(b" " * 100_000_000, compresslevel=9)
    file.write(head + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def _endless_redirect(file, head):
    file.write(b"HTTP/1.1 307 Elsewhere\r\nLocation: /v1/chat/completions\r\nContent-Length: 4000000000\r\n\r\n")
    _endless(file, b"")


def _nested(file, head):
    file.write(head + b"Content-Length: %d\r\n\r\n" % len(DEEP) + DEEP)


@pytest.mark.parametrize("misbehave", [_drip_body, _drip_head])
def test_a_try_ends_at_its_deadline_though_bytes_keep_coming(misbehave, capsys):
    """Prevents a judge that sends a byte now and then from being waited for without end; it is asked again."""
    with _server(misbehave, times=1) as (url, asked):
        assert _judged(url) == 0
        assert len(asked) == 2 and 0.6 <= asked[1] - asked[0] < 4
    assert _result()["ties"] == 1
    Path("result.judgments.jsonl").unlink()
    with _server(misbehave, times=9) as (url, _):
        begin = time.monotonic()
        assert _judged(url, "--retries", "0") == 1
        assert time.monotonic() - begin < 4
    assert "no whole answer within 0.6 s" in "".join(capsys.readouterr())


@pytest.mark.parametrize("misbehave", [_endless, _bomb])
def test_an_answer_without_end_is_cut_off_and_asked_for_again(misbehave, capsys):
    """Prevents a body of 4 GB, or one that only unpacks to it, from filling the memory."""
    patient = ("--timeout", "30")
    with _server(misbehave, times=1) as (url, asked):
        assert _judged(url, *patient) == 0
        assert len(asked) == 2
    Path("result.judgments.jsonl").unlink()
    with _server(misbehave, times=9) as (url, _):
        assert _judged(url, *patient, "--retries", "0") == 1
    assert _result()["failed"] == 1
    assert "longer than 8 MiB" in capsys.readouterr().out


@pytest.mark.parametrize(("misbehave", "words"), [(_endless_redirect, "8 MiB"), (_nested, "RecursionError")])
def test_other_bodies_that_cannot_be_read_are_failed_requests(misbehave, words, capsys):
    """Prevents the limit from being evaded by a redirect, and a traceback for JSON nested too deeply."""
    with _server(misbehave, times=9) as (url, _):
        assert _judged(url, "--retries", "0", "--timeout", "30") == 1
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        (["-r", "run.json"], "-f and -r"),
        (["-csv", "./x/../run.json"], "-f and -csv"),
        (["--cache", "link.json"], "-f and --cache"),
        (["-csv", "hard.json"], "-f and -csv"),
        (["-csv", "result.jsonl"], "-r and -csv"),
        (["--cache", "result.jsonl"], "-r and --cache"),
        (["-csv", "result.judgments.jsonl"], "--cache and -csv"),
    ],
)
def test_no_two_files_may_be_one(arguments, flags, capsys):
    """Prevents samples, results or paid answers from being overwritten by a slip in the command."""
    Path("link.json").symlink_to("run.json")
    os.link("run.json", "hard.json")
    before = Path("run.json").read_bytes()
    assert _offline(*arguments) == 2
    error = capsys.readouterr().err
    assert f"{flags} are the same file" in error and error.count("\n") == 1
    assert Path("run.json").read_bytes() == before and not Path("result.jsonl").exists()


@pytest.mark.parametrize("content", ["notes of mine\n", '{\n "a": 1\n}\n\n', "[1, 2]", '{"torn', "\xff", "[" * 100_000])
def test_what_is_no_results_file_is_not_appended_to(content, capsys):
    """Prevents a line at the end of somebody's document, and finding it out after the judge was paid."""
    Path("result.jsonl").write_text(content, encoding="latin-1")
    with VerdictServer() as server:
        assert _judged(server.url) == 2
        assert not server.asked
    error = capsys.readouterr().err
    assert "result.jsonl is no results file" in error and error.count("\n") == 1
    assert Path("result.jsonl").read_text(encoding="latin-1") == content


def test_a_results_file_grows_whatever_blank_lines_it_has():
    """Prevents refusing an empty file, or one that an editor ended with blank lines."""
    Path("result.jsonl").write_text("\n")
    assert _offline() == 0
    with Path("result.jsonl").open("a") as file:
        file.write("\n  \n")
    assert _offline() == 0
    assert len(Path("result.jsonl").read_text().split()) > 1 and _result()["judge"] == "shorter"


def test_a_terminal_is_sent_no_control_characters(capsys):
    """Prevents a samples file, or a judge's error, that rewrites what is on the screen or renames the window."""
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\ud800"
    _write(exp_name=f"run{evil}")
    assert _offline("-v") == 0
    body = json.dumps({"error": {"message": f"no{evil}"}}).encode()
    for status, code in ((400, 1), (401, 2)):
        with VerdictServer(lambda asked, attempt, status=status: Reply(status=status, body=body)) as server:
            assert _judged(server.url) == code
    Path("run.json").write_text(json.dumps({evil: 1}))
    assert _offline() == 2
    captured = capsys.readouterr()
    own = captured.err[: captured.err.index("compare.py: error")]  # the bar of progress, which moves on its line
    output = captured.out + captured.err.removeprefix(own)
    for character in "\x1b\x07\x9b\ud800":
        assert character not in output and character not in own
    assert output.count("\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\r\\ud800") >= 4


def test_an_explanation_of_megabytes_is_not_printed(capsys):
    """Prevents a refusal that scrolls everything else away."""
    body = json.dumps({"error": {"message": "no " * 1_000_000}}).encode()
    with VerdictServer(lambda asked, attempt: Reply(status=401, body=body)) as server:
        assert _judged(server.url) == 2
    assert len(capsys.readouterr().err) < 3000


@pytest.mark.parametrize("value", ["inf", "nan", "-1", "1e300"])
@pytest.mark.parametrize("flag", ["-st", "--timeout"])
def test_a_wait_without_end_is_refused(flag, value, capsys):
    """Prevents `-st inf`, which sleeps for ever or ends in a traceback of a thread."""
    with pytest.raises(SystemExit, match="2"):
        _offline(f"{flag}={value}")
    assert f"{value} is not from" in capsys.readouterr().err.splitlines()[-1]
