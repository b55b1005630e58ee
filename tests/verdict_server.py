"""A small judge for tests: it speaks the chat protocol over real HTTP on loopback, and misbehaves when told to."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Reply:
    """What the server does with one request: waits, then answers `text` or the raw `body`, or hangs up."""

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    finish_reason: str = "stop"
    seconds: float = 0.0
    close: bool = False


@dataclass
class Asked:
    """A request as it arrived, taken apart."""

    body: dict
    headers: dict[str, str]
    when: float

    @property
    def question(self) -> str:
        return self.body["messages"][-1]["content"]

    def part(self, name: str) -> str:
        """The conversation, or a response by its label, as the template sets it apart."""
        return re.search(rf"\[begin {name} (\w+)\]\n(.*?)\n\[end {name} \1\]", self.question, re.DOTALL)[2]


def prefer_good(asked: Asked) -> Reply:
    """A fair judge: the response that says GOOD wins, wherever it stands."""
    first, second = re.findall(r"\[begin response (\w) ", asked.question)
    good = ["GOOD" in asked.part(f"response {label}") for label in (first, second)]
    verdict = "tie" if good[0] == good[1] else first if good[0] else second
    return Reply(f"One of them says GOOD.\n\nVerdict: {verdict}")


class VerdictServer:
    """`with VerdictServer(behave) as server`; `behave(asked, attempt)` gives the reply to a question's n-th try."""

    def __init__(self, behave: Callable[[Asked, int], Reply] = lambda asked, attempt: prefer_good(asked)):
        self.behave, self.asked, self.answered = behave, [], 0
        self.attempts: Counter[str] = Counter()
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                outer._handle(self)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        asked = Asked(body, {name.lower(): value for name, value in handler.headers.items()}, time.monotonic())
        with self._lock:
            self.asked.append(asked)
            self.attempts[asked.question] += 1
            attempt = self.attempts[asked.question]
        reply = self.behave(asked, attempt)
        time.sleep(reply.seconds)
        if reply.close:
            handler.close_connection = True
            handler.connection.close()
            return
        message = {"role": "assistant", "content": reply.text}
        choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        content = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}
        data = json.dumps(content | {"usage": usage}).encode() if reply.body is None else reply.body
        handler.send_response(reply.status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **reply.headers,
        }.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)
        with self._lock:
            self.answered += 1

    def __enter__(self) -> VerdictServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()
