"""The routes, and what faults do to requests on their way."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from tests.loopback.faults import Fault
from tests.loopback.ledger import is_closed
from tests.loopback.server import LOOK_S, Answer, Handler, Hangup
from tests.tinker.errors import ApiError
from tests.tinker.service import Future, Service

if TYPE_CHECKING:
    from tests.tinker.standin import StandIn

PROTOBUF = "application/x-protobuf"
POLLED = frozenset(
    {
        "create_model",
        "forward_backward",
        "optim_step",
        "save_weights",
        "save_weights_external",
        "save_weights_for_sampler",
        "load_weights",
        "asample",
    }
)
DIRECT = frozenset(
    {
        "create_session",
        "session_heartbeat",
        "get_info",
        "create_sampling_session",
    }
)


@dataclass(slots=True)
class Router:
    """One request on its way through the stand-in."""

    handler: Handler
    standin: StandIn
    service: Service
    body: bytes

    def json(self) -> dict[str, Any]:
        value = json.loads(self.body or b"{}")
        if not isinstance(value, dict):
            raise ValueError("the body is not a JSON object")
        return value

    def answer(self) -> Answer:
        path = unquote(urlsplit(self.handler.path).path)
        parts = path.strip("/").split("/")
        method = self.handler.command
        if parts[0] == "control":
            return Answer.json(self.standin.control("/".join(parts[1:]), self.json()))
        if parts[0] == "download" and len(parts) == 3:
            if fault := self._strikes("download"):
                self._before(fault)
            data = self.service.saved.linked_file(parts[1], parts[2])
            return Answer(data, content_type="application/octet-stream")
        if parts[:2] != ["api", "v1"]:
            raise ApiError(404, f"no such route: {path}")
        name = "/".join(parts[2:])
        self._check_key()
        if method == "POST" and name in POLLED:
            return self._submit(name)
        if method == "POST" and name == "retrieve_future":
            return self._retrieve()
        if fault := self._strikes(name):
            self._before(fault)
        answer = self._direct(method, name, parts[2:])
        return Answer.json(answer)

    def _check_key(self) -> None:
        key = self.handler.headers.get("X-API-Key") or ""
        if not key.startswith("tml-"):
            raise ApiError(401, "an API key that starts with tml- is needed")

    def _strikes(self, name: str) -> Fault | None:
        fault = self.standin.faults.hit(name, "submit")
        if fault is not None:
            self.standin.ledger.write("fault", kind=name, on="submit", fault=fault.kind)
        return fault

    def _submit(self, kind: str) -> Answer:
        build = getattr(self.service, kind)
        asked = build(self.body if kind == "forward_backward" else self.json())
        ledger = self.standin.ledger
        ledger.seen(asked.session, self.handler.connection)
        call = ledger.begin(kind, asked.session, asked.summary)
        kept = False
        try:
            fault = self._strikes(kind)
            if fault is None or fault.kind in ("lost", "failed", "paused"):
                future, new = self.service.submit(asked, call, fault)
                kept = new
                if not new:
                    ledger.end(call, "repeated")
                    ledger.resume(future.call)
                return Answer.json(future.answer)
            if fault.carried_out or fault.kind == "slow":
                future, new = self.service.submit(asked, call, None)
                # An answer that is lost leaves a call that nobody waits for until it is repeated.
                kept = new and fault.kind == "slow"
                self._before(fault)
                return Answer.json(future.answer)
            self._before(fault)
            raise AssertionError(fault.kind)
        finally:
            if not kept:
                ledger.end(call, "refused")

    def _before(self, fault: Fault) -> None:
        """What a fault does to a request that has not been answered yet."""
        if fault.kind == "status":
            raise ApiError(fault.status, "injected", fault.headers)
        self.handler.suffer(fault)

    def _retrieve(self) -> Answer:
        body = self.json()
        future = self.service.future(body["request_id"])
        ledger = self.standin.ledger
        ledger.seen(future.session, self.handler.connection)
        ledger.resume(future.call)
        fault = self.standin.faults.hit(future.kind, "retrieve")
        if fault is not None:
            ledger.write("fault", kind=future.kind, on="retrieve", fault=fault.kind)
            if fault.kind != "drop":
                self._before(fault)
        paused = future.fault if future.fault and future.fault.kind == "paused" else None
        if paused and time.monotonic() < future.taken_on + paused.seconds:
            time.sleep(min(self.standin.poll_seconds, paused.seconds))
            return self._try_again(future, "paused_capacity")
        if not self._wait(future):
            return self._try_again(future, "active")
        if future.fault is not None and future.fault.kind == "lost":
            self.service.forget(future)
            ledger.end(future.call, "lost")
            raise ApiError(410, "the result is gone")
        answer, outcome = self._result(future, body.get("allow_metadata_only", False))
        if fault is not None and fault.kind == "drop":
            return Answer(answer.body, content_type=answer.content_type, cut=True)
        if outcome is not None:
            # Before it is sent: its receiver may be quicker to begin the next call.
            ledger.end(future.call, outcome)
        return answer

    def _wait(self, future: Future) -> bool:
        end = time.monotonic() + self.standin.poll_seconds
        while not future.done.wait(max(0.0, min(LOOK_S, end - time.monotonic()))):
            if time.monotonic() >= end:
                return False
            if is_closed(self.handler.connection) or self.service is not self.standin.service:
                raise Hangup
        return True

    def _try_again(self, future: Future, state: str) -> Answer:
        body = {"type": "try_again", "request_id": future.id, "queue_state": state}
        return Answer.json(body, self.standin.pending_status)

    def _result(self, future: Future, metadata_will_do: bool) -> tuple[Answer, str | None]:
        """The answer, and how the call ends with it; None when it does not."""
        failure = future.failure
        if failure is None and future.fault is not None and future.fault.kind == "failed":
            failure = {"error": "injected", "category": future.fault.category}
        if failure is not None:
            return Answer.json(failure), "failed"
        if isinstance(future.body, dict):
            return Answer.json(future.body), "delivered"
        if metadata_will_do and len(future.body) > self.standin.metadata_above:
            size = len(future.body)
            metadata = {"status": "complete_metadata", "response_payload_size": size}
            return Answer.json(metadata), None
        return Answer(future.body, content_type=PROTOBUF), "delivered"

    def _direct(self, method: str, name: str, parts: list[str]) -> Any:
        service = self.service
        if method == "POST" and name == "weights_info":
            return service.saved.weights_info(self.json())
        if method == "POST" and name in DIRECT:
            answer = getattr(service, name)(self.json())
            session = answer.get("session_id")
            if session is not None:
                self.standin.ledger.seen(session, self.handler.connection)
            return answer
        match method, parts:
            case "POST", ["client", "config"]:
                return self.standin.client_config
            case "POST", ["client", "dynamic_config"]:
                return {}
            case "POST", ["telemetry"]:
                return {"status": "accepted"}
            case "POST", ["cancel_future"]:
                future = service.future(self.json()["request_id"])
                self.standin.ledger.end(future.call, "cancelled")
                return {}
            case "POST", ["sessions", session, "finish"]:
                service.finish_session(session)
                return {}
            case "GET", ["healthz"]:
                return {"status": "ok"}
            case "GET", ["get_server_capabilities"]:
                return service.capabilities()
            case "GET", ["samplers", sampler]:
                return service.get_sampler(sampler)
            case "GET", ["checkpoints"]:
                return service.saved.checkpoints()
            case "GET", ["training_runs"]:
                return service.saved.training_runs()
            case "GET", ["training_runs", run]:
                return service.saved.training_run(run)
            case "GET", ["training_runs", run, "checkpoints"]:
                return service.saved.checkpoints(run)
            case "GET", ["training_runs", run, "checkpoints", kind, saved, "external_weights_urls"]:
                return service.saved.external_urls(run, kind, saved, self.standin.url)
            case "DELETE", ["training_runs", run, "checkpoints", kind, saved]:
                service.saved.delete_checkpoint(run, kind, saved)
                return {}
        raise ApiError(404, f"no such route: {method} {name}")
