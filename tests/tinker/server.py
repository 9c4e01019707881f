"""HTTP/1.1 for the stand-in: one thread a connection."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from tests.tinker.errors import ApiError
from tests.tinker.router import Answer, Hangup, Router

if TYPE_CHECKING:
    from tests.tinker.standin import StandIn


class Server(ThreadingHTTPServer):
    """Remembers its connections, to close them all when the service goes away."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, port: int, standin: StandIn) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.standin = standin
        self.open: set[socket.socket] = set()
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.02,), name="standin-http", daemon=True
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
        self.server.standin.ledger.closed(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _respond(self) -> None:
        body = self._body()
        try:
            standin = self.server.standin
            self._send(Router(self, standin, standin.service, body).answer())
        except ApiError as error:
            body = json.dumps({"detail": error.detail}).encode()
            self._send(Answer(body, error.status, headers=error.headers))
        except (Hangup, ConnectionError):
            self.close_connection = True
        except (KeyError, TypeError, ValueError) as error:
            self._send(Answer.json({"detail": f"{type(error).__name__}: {error}"}, 422))

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
