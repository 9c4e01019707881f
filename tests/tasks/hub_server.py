"""A hub on the loopback that serves the data sets of a folder, as far as `datasets` asks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40
_REPO = r"([^/]+/[^/]+)"
_INFO = re.compile(rf"/api/datasets/{_REPO}(?:/revision/(.+))?")
_TREE = re.compile(rf"/api/datasets/{_REPO}/tree/([^/]+)(?:/(.*))?")
_PATHS = re.compile(rf"/api/datasets/{_REPO}/paths-info/([^/]+)")
_FILE = re.compile(rf"/datasets/{_REPO}/resolve/([^/]+)/(.*)")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path
    asked: list[str]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(f"{self.command} {path}")
        if found := _INFO.fullmatch(path):
            self._info(*found.groups())
        elif found := _TREE.fullmatch(path):
            self._tree(self.root / found[1], found[3] or "")
        elif found := _FILE.fullmatch(path):
            self._file(self.root / found[1], found[3])
        else:
            self._send(404, {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = _PATHS.fullmatch(unquote(urlsplit(self.path).path))
        if found is None:
            return self._send(404, {})
        repo = self.root / found[1]
        files = [repo / path for path in json.loads(body)["paths"]]
        return self._send(200, [_entry(repo, file) for file in files if file.exists()])

    def _info(self, name: str, revision: str | None) -> None:
        repo = self.root / name
        if not repo.is_dir():
            return self._send(404, {}, {"X-Error-Code": "RepoNotFound"})
        if revision not in (None, "main", COMMIT):
            return self._send(404, {}, {"X-Error-Code": "RevisionNotFound"})
        files = [{"rfilename": str(f.relative_to(repo))} for f in repo.rglob("*") if f.is_file()]
        info = {"id": name, "sha": COMMIT, "siblings": files, "private": False, "gated": False}
        return self._send(200, info | {"disabled": False, "tags": [], "downloads": 0})

    def _tree(self, repo: Path, below: str) -> None:
        folder = repo / below
        if not folder.is_dir():
            return self._send(404, {}, {"X-Error-Code": "EntryNotFound"})
        found = folder.rglob("*") if "recursive=true" in self.path.lower() else folder.iterdir()
        return self._send(200, [_entry(repo, file) for file in sorted(found)])

    def _file(self, repo: Path, name: str) -> None:
        file = repo / name
        commit = {"X-Repo-Commit": COMMIT}
        if not repo.is_dir():
            return self._send(404, {}, {"X-Error-Code": "RepoNotFound"})
        if not file.is_file():
            return self._send(404, {}, {"X-Error-Code": "EntryNotFound", **commit})
        content = file.read_bytes()
        etag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        return self._send(200, content, {**commit, **etag, "Accept-Ranges": "bytes"})

    def _send(self, code: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entry(repo: Path, file: Path) -> dict[str, Any]:
    kind, size = ("directory", 0) if file.is_dir() else ("file", file.stat().st_size)
    oid = hashlib.sha1(str(file).encode()).hexdigest()
    return {"type": kind, "path": str(file.relative_to(repo)), "size": size, "oid": oid}


@contextlib.contextmanager
def serving(root: Path) -> Iterator[tuple[str, list[str]]]:
    """(address, requests so far) of a hub whose data sets are the folders `root/ORG/NAME`."""
    handler = type("Handler", (_Handler,), {"root": root, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
