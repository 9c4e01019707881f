"""Which calls are in flight: from the arrival of a request until its result has been handed over.

A client that is killed takes its calls with it: they count until all its connections are closed,
which is looked up before a new largest number is believed.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any


@dataclass(slots=True, eq=False)
class Call:
    """One call; `open` while it is in flight."""

    kind: str
    session: str
    asked: dict[str, Any]
    started: float
    open: bool = False
    ended: float | None = None
    outcome: str | None = None

    def record(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "session": self.session,
            "asked": self.asked,
            "started": self.started,
            "ended": self.ended,
            "outcome": self.outcome,
        }


@dataclass(slots=True)
class Ledger:
    """Counts calls and writes what happens, a line of JSON each, to `log` if given.

    maxima: the largest number in flight of each kind, and of all of them under "*".
    """

    log: Path | None = None
    calls: list[Call] = field(default_factory=list)
    maxima: Counter[str] = field(default_factory=Counter)
    open_calls: Counter[str] = field(default_factory=Counter)
    connections: dict[str, set[socket.socket]] = field(default_factory=dict)
    _open: set[Call] = field(default_factory=set)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _file: IO[str] | None = None

    def begin(self, kind: str, session: str, asked: Mapping[str, Any]) -> Call:
        call = Call(kind, session, dict(asked), time.time())
        with self._lock:
            self.calls.append(call)
            self._enter(call)
        return call

    def resume(self, call: Call) -> None:
        """Its client asks again for a call that was thought to be over."""
        with self._lock:
            if not call.open:
                self._enter(call)

    def end(self, call: Call, outcome: str) -> None:
        with self._lock:
            if call.open:
                self._leave(call, outcome)

    def seen(self, session: str, connection: socket.socket) -> None:
        """This connection belongs to the client of this session."""
        with self._lock:
            self.connections.setdefault(session, set()).add(connection)

    def closed(self, connection: socket.socket) -> None:
        with self._lock:
            for session, connections in list(self.connections.items()):
                if connection in connections:
                    connections.remove(connection)
                    self._abandon_if_gone(session)

    def write(self, event: str, **fields: Any) -> None:
        if self.log is None:
            return
        with self._lock:
            if self._file is None:
                self.log.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.log.open("a", encoding="utf-8", buffering=1)
            self._file.write(json.dumps({"time": time.time(), "event": event, **fields}) + "\n")

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def summary(self) -> dict[str, Any]:
        with self._lock:
            self._look_for_the_dead()
            return {"in_flight": dict(+self.open_calls), "in_flight_max": dict(self.maxima)}

    def records(self) -> list[dict[str, Any]]:
        with self._lock:
            return [call.record() for call in self.calls]

    def _enter(self, call: Call) -> None:
        call.open, call.ended, call.outcome = True, None, None
        self._open.add(call)
        self.open_calls.update((call.kind, "*"))
        if self._is_new_maximum(call):
            self._look_for_the_dead()
        for name in (call.kind, "*"):
            self.maxima[name] = max(self.maxima[name], self.open_calls[name])
        self._write_counts("begin", call)

    def _leave(self, call: Call, outcome: str) -> None:
        call.open, call.ended, call.outcome = False, time.time(), outcome
        self._open.discard(call)
        self.open_calls.subtract((call.kind, "*"))
        self._write_counts("end", call, outcome=outcome)

    def _is_new_maximum(self, call: Call) -> bool:
        return any(self.open_calls[name] > self.maxima[name] for name in (call.kind, "*"))

    def _look_for_the_dead(self) -> None:
        for session in {call.session for call in self._open}:
            connections = self.connections.get(session, set())
            gone = {connection for connection in connections if is_closed(connection)}
            if gone:
                connections -= gone
                self._abandon_if_gone(session)

    def _abandon_if_gone(self, session: str) -> None:
        if self.connections.get(session):
            return
        self.connections.pop(session, None)
        for call in [call for call in self._open if call.session == session]:
            self._leave(call, "abandoned")

    def _write_counts(self, event: str, call: Call, **fields: Any) -> None:
        self.write(
            event,
            kind=call.kind,
            session=call.session,
            in_flight=self.open_calls["*"],
            in_flight_of_kind=self.open_calls[call.kind],
            **fields,
        )


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has closed this connection."""
    with contextlib.suppress(BlockingIOError, InterruptedError):
        try:
            return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except OSError as error:
            if isinstance(error, BlockingIOError | InterruptedError):
                raise
            return True
    return False
