"""Requests to an inference server, with patience by kind of failure."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import httpx

from retrain import answers, seeding
from retrain.config.inference import InferenceConfig
from retrain.errors import InputError
from retrain.loops import LoopThread
from retrain.policies.inference.endpoint import Endpoint
from retrain.policies.lost import CallLostError, GoneError, RefusedError, ServiceLostError

_log = logging.getLogger("retrain")

T = TypeVar("T")

_CONNECT_S = 10.0
_KEPT = 4
_LONGEST_RETRY_AFTER_S = 600.0
# Overload and load balancers without a server behind them: nobody has looked at the request.
_BUSY = frozenset({408, 409, 425, 429, 502, 503, 504})
_KEY_REFUSED = frozenset({401, 403})


@dataclass(frozen=True, slots=True)
class Patience:
    """attempts:      of a request that the server failed (500), dropped, or did not answer in time.
                   A fault of one moment is over by the next; four in a row are no accident.
    late_attempts: of these, how often the whole time-out may be waited for.
    first_pause_s: before the second attempt, doubled before each further one, all of them varied
                   by half, so that requests that failed together do not come back together.
    longest_pause_s: of these.

    How long a busy or absent server is waited for is the endpoint's `away_s`.
    """

    attempts: int = 4
    late_attempts: int = 2
    first_pause_s: float = 1.0
    longest_pause_s: float = 20.0

    def pauses(self, key: int) -> Iterator[float]:
        """Seconds before the second, third, … attempt, without end; from a stream of their own for
        each key."""
        varied = seeding.generator(key, "inference retry")
        pause = self.first_pause_s
        while True:
            yield pause * float(varied.uniform(0.5, 1.5))
            pause = min(2 * pause, self.longest_pause_s)


class InferenceServer:
    """The server's address and key, and an event loop in a thread of its own, in which all requests
    are under way at once."""

    def __init__(
        self, endpoint: Endpoint, config: InferenceConfig, patience: Patience | None = None
    ) -> None:
        self.url = endpoint.url
        self._endpoint = endpoint
        self._config = config
        self._patience = patience or Patience()
        self._silent_since: float | None = None
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {},
            trust_env=not endpoint.is_here,
            timeout=httpx.Timeout(config.timeout, connect=_CONNECT_S, pool=None),
            # For each request the pool asks the system about every connection that it keeps.
            limits=httpx.Limits(
                max_connections=config.concurrency, max_keepalive_connections=_KEPT
            ),
        )
        self._places = asyncio.Semaphore(config.concurrency)
        self._loop = LoopThread("retrain-inference")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        del kind, error, traceback
        with contextlib.suppress(Exception):
            self.submit(self._client.aclose()).result(_CONNECT_S)
        self._loop.close()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start `work` in the loop's thread; cancelling the future ends its request."""
        return self._loop.submit(work)

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, from a thread that is not the loop's."""
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def ask(
        self, what: str, path: str, body: Mapping[str, Any] | None = None, key: int = 0
    ) -> httpx.Response:
        """A successful answer: POST with a body, else GET.

        what: the request in words, for messages. key: names the stream of its pauses.
        Raises GoneError for 404, RefusedError for what no other try would change, CallLostError
        when all attempts are spent, ServiceLostError when nobody answers.
        """
        pauses = self._patience.pauses(key)
        failed = late = 0
        busy_until: float | None = None
        while True:
            wanted = 0.0
            try:
                async with self._places:
                    response = await answers.ask(
                        *(self._client, path, body),
                        seconds=self._config.timeout,
                        key=self._endpoint.key,
                    )
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                trouble = _words(error)
                self._nobody_answers(trouble)
            except httpx.TransportError as error:
                failed, trouble = failed + 1, _words(error)
                late += isinstance(error, httpx.TimeoutException)
            else:
                self._silent_since = None
                status, trouble = response.status_code, answers.said(response)
                if response.is_success:
                    return response
                if status in _BUSY:
                    wanted = answers.retry_after(response.headers) or 0.0
                    now = time.monotonic()
                    busy_until = busy_until or now + self._endpoint.away_s
                    if now >= busy_until:
                        raise CallLostError(f"{self._name} had no time for {what}: {trouble}")
                elif status >= 500 and status != 501:
                    failed += 1
                else:
                    self._refuse(what, status, trouble)
            if failed >= self._patience.attempts or late >= self._patience.late_attempts:
                message = f"{self._name} failed {failed} times to give {what}: {trouble}"
                raise CallLostError(message)
            await asyncio.sleep(max(next(pauses), min(wanted, _LONGEST_RETRY_AFTER_S)))

    @property
    def _name(self) -> str:
        return f"the server at {self.url}"

    def _refuse(self, what: str, status: int, trouble: str) -> NoReturn:
        if status in _KEY_REFUSED:
            name = self._config.api_key_env
            known = f"the key in {name} is not accepted"
            remedy = known if self._endpoint.key else f"set {name} to the key"
            raise InputError(f"inference.api_key_env: {self._name} answers {trouble}; {remedy}")
        if status == 404:
            raise GoneError(f"{self._name} has not what is needed for {what}: {trouble}")
        raise RefusedError(f"{self._name} refuses {what}: {trouble}")

    def _nobody_answers(self, trouble: str) -> None:
        """Raises ServiceLostError when that has been so for too long, or will not change."""
        if reason := self._endpoint.last_word():
            raise ServiceLostError(f"{self._name} does not come back: {reason}")
        now, longest = time.monotonic(), self._endpoint.away_s
        if self._silent_since is None:
            self._silent_since = now
            # Of one that is started again, who does so tells what became of it.
            if self._endpoint.owner is None:
                _log.warning(
                    "%s does not answer (%s); it is given %.0f s to come back",
                    *(self._name, trouble, longest),
                )
        if now - self._silent_since >= longest:
            raise ServiceLostError(f"{self._name} has not answered for {longest:.0f} s ({trouble})")


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
