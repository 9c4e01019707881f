"""A service on loopback: its address, its faults, the account of its calls, and its absences; in
this process (`Loopback`) or in one of its own (`Remote`)."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, ClassVar, Self

from tests.loopback.faults import Faults
from tests.loopback.ledger import Ledger
from tests.loopback.server import Answer, Handler, Server

ROOT = Path(__file__).resolve().parents[2]


class Loopback:
    """The part of a test server that faces the network.

    faults: what is to go wrong.
    ledger: every call, and how many were in flight.
    """

    def __init__(self, port: int, log: Path | None) -> None:
        self.port = port
        self.faults = Faults()
        self.ledger = Ledger(log)
        self._server: Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def calls(self) -> list[dict[str, Any]]:
        """Every call so far: kind, session, asked (its parameters), started, ended, outcome."""
        return self.ledger.records()

    @property
    def in_flight_max(self) -> dict[str, int]:
        """The largest number of calls that were in flight at once, by kind; of all under "*"."""
        return dict(self.ledger.maxima)

    def respond(self, handler: Handler, body: bytes) -> Answer:
        raise NotImplementedError

    def forget(self) -> None:
        """Lose everything that a service which was started anew would not have."""
        raise NotImplementedError

    def away(self) -> None:
        """Refuse and close all connections; nothing is forgotten."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def back(self) -> None:
        """Be there again, on the same port."""
        if self._server is None:
            self._server = Server(self.port, self.respond, self.ledger)
            self.port = self._server.server_address[1]

    def control(self, what: str, body: Mapping[str, Any]) -> Any:
        """The routes under /control, for other processes."""
        if what == "faults":
            if body.get("clear"):
                self.faults.clear()
            for fault in body.get("add", []):
                self.faults.add(**fault)
            return self.faults.plan()
        if what == "summary":
            return self.ledger.summary()
        if what == "calls":
            return self.ledger.records()
        if what == "away":
            threading.Thread(target=self._leave, args=(body,), daemon=True).start()
            return {}
        return None

    def _leave(self, body: Mapping[str, Any]) -> None:
        self.away()
        if body.get("forget"):
            self.forget()
        timer = threading.Timer(float(body["seconds"]), self.back)
        timer.daemon = True
        timer.start()


class Remote:
    """A test server as a process of its own, which can be killed and started again."""

    module: ClassVar[str]
    """Its name after `python -m`."""

    def __init__(self, state: Path, *options: str) -> None:
        """options: of the command line."""
        self.state, self.options, self.port = state, options, 0
        self.process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def calls(self) -> list[dict[str, Any]]:
        return list(self.ask("calls"))

    @property
    def in_flight_max(self) -> dict[str, int]:
        return dict(self.ask("summary")["in_flight_max"])

    def add_fault(self, kind: str, **fields: Any) -> None:
        self.ask("faults", {"add": [{"kind": kind, **fields}]})

    def clear_faults(self) -> None:
        self.ask("faults", {"clear": True})

    def away(self, seconds: float, forget: bool = False) -> None:
        """Refuse and close all connections for a while."""
        self.ask("away", {"seconds": seconds, "forget": forget})

    def ask(self, what: str, body: Mapping[str, Any] | None = None) -> Any:
        import httpx

        answer = httpx.post(f"{self.url}/control/{what}", json=body or {}, timeout=30)
        return answer.raise_for_status().json()

    def start(self) -> None:
        """On the same port as before, if it ran before."""
        command = [sys.executable, "-m", self.module, "--port", str(self.port)]
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [*command, "--state", str(self.state), *self.options],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rsplit(":", 1)[1])

    def kill(self) -> None:
        """At once; what is not saved is lost."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


def parser(what: str) -> argparse.ArgumentParser:
    """The options that every test server has as a program."""
    made = argparse.ArgumentParser(description=what)
    made.add_argument("--port", type=int, default=0, help="0 takes a free one")
    made.add_argument("--state", type=Path, required=True, help="folder for what is saved")
    return made


def wait_for_the_end(url: str) -> None:
    """Print the address; then wait for a signal."""
    # Unlike an event, it may be used by a handler that interrupts itself.
    stop: SimpleQueue[int] = SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: stop.put(number))
    print(url, flush=True)
    stop.get()
