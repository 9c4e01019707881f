"""As much of a Weights & Biases server as one run needs: it keeps the rows that it is sent."""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Any, Self


class FakeServer:
    """Used as a context. `rows` and `runs` are what it was sent, by the run's id."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.runs: dict[str, dict[str, Any]] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                answer = server.answer(self.path, json.loads(self._body() or b"{}"))
                self._reply(json.dumps(answer).encode())

            def do_PUT(self) -> None:
                self._body()
                self._reply(b"{}")

            def log_message(self, *arguments: object) -> None:
                pass

            def _body(self) -> bytes:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                return gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body

            def _reply(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path.endswith("/file_stream"):
            history = (body.get("files") or {}).get("wandb-history.jsonl")
            if history:
                rows = self.rows[path.split("/")[-2]]
                # Like the real one: what comes at an offset replaces what was there.
                rows[history["offset"] :] = [json.loads(line) for line in history["content"]]
            return {}
        given = body.get("variables") or {}
        operation = re.search(r"(?:query|mutation)\s+(\w+)", body.get("query", ""))
        answer = getattr(self, f"_{operation[1]}", None) if operation else None
        return {"data": answer(given) if answer else {}}

    def _RunResumeStatus(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        name = given["name"]
        rows, found = self.rows[name], None
        if name in self.runs:
            found = {
                **{"id": "QQ==", "name": name, "displayName": name, "tags": []},
                **{"summaryMetrics": "{}", "config": "{}", "wandbConfig": json.dumps({"t": 1})},
                **{"logLineCount": 0, "eventsLineCount": 0, "eventsTail": "[]"},
                "historyLineCount": len(rows),
                "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]),
            }
        return {"model": {"id": "UA==", "name": "p", "entity": ENTITY, "bucket": found}}

    def _UpsertBucket(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        name = given["name"]
        self.runs.setdefault(name, {}).update(
            {key: value for key, value in given.items() if value is not None}
        )
        project = {"id": "UA==", "name": given["project"], "entity": ENTITY}
        bucket = {"id": "QQ==", "name": name, "displayName": name, "project": project}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def _CreateRunFiles(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        files = [{"name": name, "uploadUrl": f"{self.url}/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": "QQ==", "uploadHeaders": [], "files": files}}


ENTITY = {"id": "RQ==", "name": "me"}
