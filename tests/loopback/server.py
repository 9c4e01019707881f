"""HTTP/1.1 for the test servers: one thread a connection."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.loopback.faults import Fault
from tests.loopback.ledger import Ledger, is_closed

LOOK_S = 0.5
"""How often a held request looks whether its client is still there."""


class Hangup(Exception):  # noqa: N818
    """The connection is closed without (the rest of) an answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    body: bytes
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    """Only half of it is sent, then the connection is closed."""

    @classmethod
    def json(
        cls, value: Any, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Answer:
        return cls(json.dumps(value).encode(), status, headers=headers or {})


class Server(ThreadingHTTPServer):
    """Remembers its connections, to close them all when the service goes away."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(
        self, port: int, respond: Callable[[Handler, bytes], Answer], ledger: Ledger
    ) -> None:
        """respond: answers a request with this body, or raises Hangup."""
        super().__init__(("127.0.0.1", port), Handler)
        self.respond, self.ledger = respond, ledger
        self.open: set[socket.socket] = set()
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.02,), name="loopback-http", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server
    connection: socket.socket

    def setup(self) -> None:
        super().setup()
        self.server.open.add(self.connection)

    def finish(self) -> None:
        self.server.open.discard(self.connection)
        self.server.ledger.closed(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def suffer(self, fault: Fault) -> None:
        """What these faults do to a request that has not been answered yet."""
        if fault.kind == "drop":
            raise Hangup
        if fault.kind == "timeout":
            self._hold(fault.seconds or 3600.0)
            raise Hangup
        if fault.kind == "slow":
            self._hold(fault.seconds)

    def _hold(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_S))
            if is_closed(self.connection):
                raise Hangup

    def _respond(self) -> None:
        body = self._body()
        try:
            self._send(self.server.respond(self, body))
        except (Hangup, ConnectionError):
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_DELETE = _respond  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(parts)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "zstd":
            import zstandard

            return zstandard.ZstdDecompressor().decompressobj().decompress(body)
        return body

    def _send(self, answer: Answer) -> None:
        head = [
            f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
            f"Content-Type: {answer.content_type}",
            f"Content-Length: {len(answer.body)}",
            *(f"{name}: {value}" for name, value in answer.headers.items()),
        ]
        whole = "\r\n".join([*head, "", ""]).encode() + answer.body
        self.wfile.write(whole[: -len(answer.body) // 2] if answer.cut else whole)
        if answer.cut:
            raise Hangup
