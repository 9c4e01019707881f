"""As much of a Weights & Biases server as a run needs: it keeps the rows and files it is sent."""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from types import TracebackType
from typing import Any, Self


class FakeServer:
    """Used as a context. `rows` and `runs` are what it was sent, by the run's id.

    artifacts: what was asked for and committed, in order; files: those of artifacts, by name.
    gate:      while it is cleared, files of artifacts do not get through.
    """

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.runs: dict[str, dict[str, Any]] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.gate = Event()
        self.gate.set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                answer = server.answer(self.path, json.loads(self._body() or b"{}"))
                self._reply(json.dumps(answer).encode())

            def do_PUT(self) -> None:
                body = self._body()
                if self.path.startswith("/artifact/"):
                    server.gate.wait(60)
                    server.files[self.path.removeprefix("/artifact/")] = body
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

    def _Viewer(self, _given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        teams: dict[str, Any] = {"edges": []}
        viewer = {"id": "VQ==", "entity": "me", "username": "me", "flags": "{}", "teams": teams}
        return {"viewer": viewer}

    def _ArtifactType(self, _given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"project": {"artifact": None}}

    def _CreateArtifact(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        self.artifacts.append({**given["input"], "committed": False})
        made = {"id": str(len(self.artifacts)), "state": "PENDING"}
        return {"createArtifact": {"artifact": {**made, "artifactSequence": {}}}}

    def _CreateArtifactManifest(self, _given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        file = {"id": "F", "uploadUrl": f"{self.url}/manifest", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": "M", "file": file}}}

    def _CreateArtifactFiles(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        edges = [
            {
                "node": {
                    "uploadUrl": f"{self.url}/artifact/{file['artifactID']}/{file['name']}",
                    "uploadHeaders": [],
                    "artifact": {"id": file["artifactID"]},
                }
            }
            for file in given["input"]["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        self.artifacts[int(given["artifactID"]) - 1]["committed"] = True
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}}

    def _ArtifactByID(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        made = self.artifacts[int(given["id"]) - 1]
        project = {"id": "UA==", "internalId": "1", "name": "probe", "entity": {"name": "me"}}
        name = made["artifactCollectionName"]
        sequence = {"__typename": "ArtifactSequence", "name": name, "project": project}
        return {
            "artifact": {
                **{"__typename": "Artifact", "id": given["id"], "versionIndex": 0},
                **{"artifactSequence": sequence, "artifactType": {"name": "model"}},
                **{"description": None, "metadata": "{}", "ttlDurationSeconds": -2},
                **{"ttlIsInherited": True, "tags": [], "historyStep": None, "state": "COMMITTED"},
                **{"size": 1, "digest": "d", "commitHash": "c", "fileCount": 1, "aliases": []},
                **{"createdAt": "2026-01-01T00:00:00", "updatedAt": None},
            }
        }


ENTITY = {"id": "RQ==", "name": "me"}
