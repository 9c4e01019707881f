"""A stand-in for the Tinker service, for tests. It is not the service.

It speaks the wire format of the SDK `tinker` 0.38.0 on loopback, and behind the routes it trains
for real: LoRA adapters on a small base model, the embedded one if nothing else is asked for, with
the losses of the service's documentation and AdamW. Sampling draws from the keyed stream that the
request's seed names, so the same seed gives the same completion.

    with StandIn() as standin:
        client = tinker.ServiceClient(base_url=standin.url, api_key="tml-anything")

or, for other processes, `python tests/tinker/standin.py --port 0 --state DIR`, which prints its
URL; `Remote` starts that, and has the same attributes.

What differs from the service, as far as is known: there is one base model; adapters leave the
output head alone; alpha is 2 * rank unless given; a step without a gradient does nothing; top-k,
images, custom losses, inflight samplers and the one poll for many results are refused.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from tests.tinker.compute import Compute  # noqa: E402
from tests.tinker.faults import Faults  # noqa: E402
from tests.tinker.ledger import Ledger  # noqa: E402
from tests.tinker.server import Server  # noqa: E402
from tests.tinker.service import Service  # noqa: E402


class StandIn:
    """The stand-in in this process.

    faults:        what is to go wrong.
    ledger:        every call, and how many were in flight.
    service:       the state behind the routes.
    """

    def __init__(
        self,
        base: str = "embedded",
        state: Path | None = None,
        *,
        port: int = 0,
        alpha: float | None = None,
        client_config: Mapping[str, Any] | None = None,
        poll_seconds: float = 10.0,
        pending_status: int = 200,
        metadata_above: int = 2**20,
        exact: bool = False,
    ) -> None:
        """base: "embedded", or the folder of a Hugging Face model; also the name it is served by.
        state: what is saved lies here and is found by the next stand-in; also the log, log.jsonl.
        alpha: of every adapter; 2 * rank if None.
        client_config: flags handed to the SDK (see its ClientConfigResponse).
        poll_seconds: a poll is held so long; pending_status: then answered, with 200 or 408.
        metadata_above: results of more bytes are announced before they are handed over.
        exact: see `Compute`.
        """
        from retrain.models.tiny import EMBEDDED_PATH

        self._temporary = tempfile.TemporaryDirectory() if state is None else None
        self.state = Path(self._temporary.name) if self._temporary else Path(state or ".")
        self.base, self.alpha, self.exact, self.port = base, alpha, exact, port
        self.folder = EMBEDDED_PATH if base == "embedded" else Path(base).resolve()
        self.client_config = {"pjwt_auth_enabled": False, **(client_config or {})}
        self.poll_seconds, self.pending_status = poll_seconds, pending_status
        self.metadata_above = metadata_above
        self.faults = Faults()
        self.ledger = Ledger(self.state / "log.jsonl")
        self.compute = Compute(base, self.folder, exact)
        self.service = Service(base, self.state, self.compute, alpha)
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

    def __enter__(self) -> StandIn:
        self.compute.start()
        self.back()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.away()
        self.compute.stop()
        self.compute.join()
        self.ledger.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def away(self) -> None:
        """Refuse and close all connections; nothing is forgotten."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def back(self) -> None:
        """Be there again, on the same port."""
        if self._server is None:
            self._server = Server(self.port, self)
            self.port = self._server.server_address[1]

    def forget(self) -> None:
        """Lose everything that is not saved, as a service that was started anew."""
        self.service = Service(self.base, self.state, self.compute, self.alpha)

    def gradient(self, model_id: str | None = None) -> Any:
        """(all factors,) what the model's last step was made of, before clipping; in the order of
        `LoraAdapter.grads`. Of the newest model if none is named."""
        return self._run(model_id).model.last_gradient

    def parameters(self, model_id: str | None = None) -> Any:
        """(all factors,) the model's adapter as it is now, in the order of `LoraAdapter.params`."""
        return self._run(model_id).model.adapter.params.double().numpy().copy()

    def _run(self, model_id: str | None) -> Any:
        runs = self.service.runs
        return runs[model_id or next(reversed(runs))]

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
    """The stand-in as a process of its own, which can be killed and started again."""

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
        script = [sys.executable, __file__, "--port", str(self.port), "--state", str(self.state)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*script, *self.options], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rsplit(":", 1)[1])

    def kill(self) -> None:
        """At once; what is not saved is lost."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def __enter__(self) -> Remote:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description="A stand-in for the Tinker service.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--state", type=Path, required=True, help="folder for what is saved")
    parser.add_argument("--base", default="embedded", help='"embedded" or the folder of a model')
    parser.add_argument("--alpha", type=float)
    parser.add_argument("--poll-seconds", type=float, default=10.0)
    parser.add_argument("--exact", action="store_true")
    options = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    standin = StandIn(
        options.base,
        options.state,
        port=options.port,
        alpha=options.alpha,
        poll_seconds=options.poll_seconds,
        exact=options.exact,
    )
    with standin:
        print(standin.url, flush=True)
        stop.wait()


if __name__ == "__main__":
    main()
