"""A session with the service. Every call goes through here, within a slot of the throttle."""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Literal, NoReturn, Self, TypeVar

import tinker
from tinker import APIFuture

from retrain.errors import InputError, RetrainError
from retrain.loops import forgive_given_up
from retrain.policies.policy import NonFiniteUpdateError
from retrain.policies.throttle import Throttle
from retrain.policies.tinker.access import require_access
from retrain.policies.tinker.retry import (
    CallLostError,
    Failure,
    GoneError,
    Patience,
    RefusedError,
    ServiceLostError,
    failure_of,
    words,
)

_log = logging.getLogger("retrain")

T = TypeVar("T")
Submit = Callable[[], APIFuture[T]]

# Asking for a result takes a second request every 45 seconds, each with a warning.
_CHATTY = "tinker.lib.api_future_impl"
_CLOSING_S = 5.0
_SILENT = "the service does not answer; it is given %.0f s to come back"


class Service:
    """The SDK's clients, with our patience in place of theirs.

    base_url: empty takes TINKER_BASE_URL, else the service's own.
    key:      names the stream from which pauses are drawn.
    """

    def __init__(
        self, base_url: str, throttle: Throttle, patience: Patience | None = None, key: int = 0
    ) -> None:
        """Raises InputError without the SDK or a key, ServiceLostError when nobody answers."""
        require_access()
        os.environ["TINKER_TELEMETRY"] = "0"
        logging.getLogger(_CHATTY).setLevel(logging.ERROR)
        self.patience = patience or Patience()
        self._throttle = throttle
        self._key = key
        self._live: set[Future[object]] = set()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._looked_at = 0.0
        self._silent_since: float | None = None
        self.client = tinker.ServiceClient(base_url=base_url or None)
        self.rest = self.opened(lambda: tinker.RestClient(base_url=base_url or None))
        # All clients of a process share one loop, which is the SDK's alone.
        forgive_given_up(self.rest.holder.get_loop())
        _close_at_exit(self.rest.holder.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        del error, traceback
        if kind is None:
            self._close("success")
        else:
            self._close("errored" if issubclass(kind, Exception) else "interrupted")

    def once(self, what: str, submit: Submit[T]) -> T:
        """A call that must not be made twice. Raises ServiceLostError when its fate is unknown.

        what: the call in words, for messages.
        """
        try:
            return self._call(what, submit)
        except Exception as error:
            self._raise(what, error)

    def safely(self, what: str, submit: Submit[T], key: int | None = None) -> T:
        """A call that changes nothing, made again while that may help. Raises CallLostError when
        all attempts are spent.

        key: names the stream from which its pauses are drawn; the session's own if None.
        """
        pauses = self.patience.pauses(self._key if key is None else key)
        while True:
            try:
                return self._call(what, submit)
            except Exception as error:
                ended = isinstance(error, RetrainError)
                if ended or failure_of(error) is not Failure.AGAIN:
                    self._raise(what, error)
                pause = next(pauses, None)
                if pause is None or self._ended.wait(pause):
                    message = f"the service failed {self.patience.attempts} times to give {what}"
                    raise CallLostError(f"{message}: {words(error)}") from error

    def _raise(self, what: str, error: Exception) -> NoReturn:
        """Raise what a run shall end with, for an error of the SDK's."""
        if isinstance(error, RetrainError | NonFiniteUpdateError):
            raise error
        kind, said = failure_of(error), words(error)
        if kind is Failure.REFUSED:
            raise RefusedError(f"the service refuses {what}: {said}") from error
        if kind is Failure.GONE:
            message = f"the service has not, or no longer, what it needs for {what}: {said}"
            raise GoneError(message) from error
        raise ServiceLostError(f"the service failed to give {what}: {said}") from error

    def _call(self, what: str, submit: Submit[T]) -> T:
        with self._throttle.slot():
            if self._ended.is_set():
                raise concurrent.futures.CancelledError
            return self._result(what, submit().future())

    def _result(self, what: str, future: Future[T]) -> T:
        began = time.monotonic()
        with self._lock:
            self._live.add(future)  # type: ignore[arg-type]
        try:
            while True:
                try:
                    return future.result(self.patience.look_s)
                except TimeoutError:
                    if future.done():
                        return future.result()
                self.look()
                waited = time.monotonic() - began
                if waited > self.patience.answer_s:
                    raise CallLostError(f"the service gave no result of {what} for {waited:.0f} s")
        finally:
            with self._lock:
                self._live.discard(future)
            future.cancel()

    def look(self) -> None:
        """Ask whether the service is there. Raises ServiceLostError when it has been silent for
        too long."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked_at < self.patience.look_s:
                return
            self._looked_at = now
        probe = self.rest.get_server_capabilities().future()
        try:
            probe.result(self.patience.look_s)
            self._silent_since = None
            return
        except Exception as error:
            probe.cancel()
            reason = "" if isinstance(error, TimeoutError) else f": {words(error)}"
        if self._silent_since is None:
            self._silent_since = now
            _log.warning(_SILENT, self.patience.away_s)
        silent = time.monotonic() - self._silent_since
        if silent >= self.patience.away_s:
            raise ServiceLostError(f"the service has not answered for {silent:.0f} s{reason}")

    def training_client(
        self, make: Submit[tinker.TrainingClient], path: str = ""
    ) -> tinker.TrainingClient:
        """A new one, or one from the weights at `path`; raises InputError when they are not there.

        Making one twice does no harm: it is another one.
        """
        what = f"a training client from {path}" if path else "a training client"
        try:
            return self.safely(what, lambda: self.opened(make, what))
        except GoneError as error:
            if not path:
                raise
            raise InputError(f"{path} is not at the service, or no longer") from error

    def opened(self, make: Callable[[], T], what: str = "a session") -> T:
        """What cannot be made without asking the service. The SDK blocks over it, for minutes when
        nobody answers. Raises ServiceLostError or RefusedError."""
        made: Future[T] = Future()

        def run() -> None:
            try:
                made.set_result(make())
            except BaseException as error:
                made.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        if not concurrent.futures.wait([made], self.patience.look_s).done:
            _log.warning(_SILENT, self.patience.away_s)
        try:
            return made.result(self.patience.away_s)
        except TimeoutError:
            message = f"the service has not answered for {self.patience.away_s:.0f} s"
            raise ServiceLostError(message) from None
        except Exception as error:
            self._raise(what, error)

    def abandon(self) -> None:
        """Give up all that is under way, in every thread."""
        self._ended.set()
        with self._lock:
            live = list(self._live)
        for future in live:
            future.cancel()

    def _close(self, status: Literal["success", "errored", "interrupted"]) -> None:
        self.abandon()
        with contextlib.suppress(Exception):
            closing = self.client.close(status)
            if self._silent_since is None:
                closing.result(_CLOSING_S)


@functools.cache
def _close_at_exit(close: Callable[[], None]) -> None:
    """The SDK keeps what its REST clients share for the life of the process, and complains when
    that ends before it was closed."""
    atexit.register(close)
