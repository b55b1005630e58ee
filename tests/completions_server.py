"""A small endpoint of text completions for tests: it speaks the protocol over real HTTP on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.verdict_server import VerdictServer


class CompletionsServer(VerdictServer):
    """`with CompletionsServer(behave) as server`; `behave(body)` gives the choices of a request, each a dict."""

    def __init__(self, choices: Callable[[dict[str, Any]], list[dict[str, Any]]]):
        super().__init__()
        self.choices, self.bodies = choices, []

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        self.bodies.append(body)
        choices = [{"index": index, "finish_reason": "length", **one} for index, one in enumerate(self.choices(body))]
        content = {"id": "x", "object": "text_completion", "created": 0, "model": body["model"], "choices": choices}
        data = json.dumps(content).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)
