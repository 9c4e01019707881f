"""A chat server on loopback that answers, refuses, stumbles and hangs up as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any] | tuple[int, Any, dict[str, str]] | str
"""(status, JSON or text, headers), or `drop` to hang up, or `slow` to never answer."""


def verdict(score: object = 1, words: str = "I looked at it.") -> Reply:
    return said(f"{words}\n\nSCORE: {score}")


def said(text: str | None) -> Reply:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}


def failed(status: int, message: str = "no", **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, {"error": {"message": message}}, named


@dataclass
class FakeServer:
    """answer: request body -> reply. asked: the bodies, in order. most: requests at once."""

    url: str = ""
    answer: Callable[[dict[str, Any]], Reply] = lambda body: verdict()
    models: Reply = (200, {"data": [{"id": "judge-1"}, {"id": "judge-2"}]})
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    now: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    released: threading.Event = field(default_factory=threading.Event)

    def replies(self, *replies: Reply) -> None:
        """These in order, and the last of them ever after."""
        left = list(replies)
        lock = threading.Lock()

        def next_one(body: dict[str, Any]) -> Reply:
            with lock:
                return left.pop(0) if len(left) > 1 else left[0]

        self.answer = next_one


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with fake.lock:
                fake.headers.append(dict(self.headers))
            self._send(fake.models if self.path == "/v1/models" else (404, "no such page"))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with fake.lock:
                fake.asked.append(body)
                fake.headers.append(dict(self.headers))
                fake.times.append(time.monotonic())
                fake.now += 1
                fake.most = max(fake.most, fake.now)
            try:
                found = self.path == "/v1/chat/completions"
                self._send(fake.answer(body) if found else (404, "no such page"))
            finally:
                with fake.lock:
                    fake.now -= 1

        def _send(self, reply: Reply) -> None:
            if isinstance(reply, str):
                if reply == "slow":
                    fake.released.wait(30)
                self.close_connection = True
                return
            status, body, *more = reply
            data = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            for name, value in (more[0] if more else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield fake
    finally:
        fake.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
