"""A stand-in for the Tinker service, for tests. It is not the service.

It speaks the wire format of the SDK `tinker` 0.38.0 on loopback, and behind the routes it trains
for real: LoRA adapters on a small base model, the embedded one if nothing else is asked for, with
the losses of the service's documentation and AdamW. Sampling draws from the keyed stream that the
request's seed names, so the same seed gives the same completion.

    with StandIn() as standin:
        client = tinker.ServiceClient(base_url=standin.url, api_key="tml-anything")

or, for other processes, `python -m tests.tinker.standin --port 0 --state DIR`, which prints its
URL; `Remote` starts that, and has the same attributes.

What differs from the service, as far as is known: there is one base model; adapters leave the
output head alone; alpha is 2 * rank unless given; a step without a gradient does nothing; top-k,
images, custom losses, inflight samplers and the one poll for many results are refused.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.loopback import service as loopback
from tests.loopback.server import Answer, Handler
from tests.tinker.compute import Compute
from tests.tinker.errors import ApiError
from tests.tinker.router import Router
from tests.tinker.service import Service


class StandIn(loopback.Loopback):
    """The stand-in in this process. service: the state behind the routes."""

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
        super().__init__(port, self.state / "log.jsonl")
        self.base, self.alpha, self.exact = base, alpha, exact
        self.folder = EMBEDDED_PATH if base == "embedded" else Path(base).resolve()
        self.client_config = {"pjwt_auth_enabled": False, **(client_config or {})}
        self.poll_seconds, self.pending_status = poll_seconds, pending_status
        self.metadata_above = metadata_above
        self.compute = Compute(base, self.folder, exact)
        self.service = Service(base, self.state, self.compute, alpha)

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

    def respond(self, handler: Handler, body: bytes) -> Answer:
        try:
            return Router(handler, self, self.service, body).answer()
        except ApiError as error:
            return Answer.json({"detail": error.detail}, error.status, error.headers)
        except (KeyError, TypeError, ValueError) as error:
            return Answer.json({"detail": f"{type(error).__name__}: {error}"}, 422)

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


class Remote(loopback.Remote):
    """The stand-in as a process of its own, which can be killed and started again."""

    module = "tests.tinker.standin"


def main() -> None:
    """Serve until killed."""
    options_of = loopback.parser("A stand-in for the Tinker service.")
    options_of.add_argument("--base", default="embedded", help='"embedded", or a model\'s folder')
    options_of.add_argument("--alpha", type=float)
    options_of.add_argument("--poll-seconds", type=float, default=10.0)
    options_of.add_argument("--exact", action="store_true")
    options = options_of.parse_args()
    standin = StandIn(
        options.base,
        options.state,
        port=options.port,
        alpha=options.alpha,
        poll_seconds=options.poll_seconds,
        exact=options.exact,
    )
    with standin:
        loopback.wait_for_the_end(standin.url)


if __name__ == "__main__":
    main()
