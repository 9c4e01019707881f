"""Asking an OpenAI-compatible server, patiently."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from retrain import answers
from retrain.config.messages import did_you_mean, show
from retrain.loops import LoopThread
from retrain.rewards.reward import RewardFailedError

if TYPE_CHECKING:
    import httpx

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
LONGEST_RETRY_AFTER_S = 600.0
_START_TRIES = 3
_CLOSING_S = 1.0
_SHOWN = 300

_PASSING = frozenset({408, 409, 425, 429, 529})
"""Besides all of 5xx: worth another try."""
_OF_THE_REQUEST = frozenset({400, 413, 422})
"""The server does not like this one request, e.g. for its length."""


class NoVerdictError(Exception):
    """One completion cannot be judged: the server is lost, or does not take or answer it."""


class JudgeRefusedError(RewardFailedError):
    """No completion can be judged: a wrong key, address or model."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where a judge is: `[reward]`'s keys of the same names. place: `reward`, or the component."""

    base_url: str
    model: str
    api_key_env: str
    timeout: float
    retries: int
    concurrency: int
    place: str = "reward"


@dataclass(frozen=True, slots=True)
class _Connection:
    client: httpx.AsyncClient
    loop: LoopThread
    key: str


class JudgeClient:
    """Asks the server, from many threads at once."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._takes_temperature = True

    def check(self) -> None:
        """See that the server answers and knows the model. A server without a list of its models
        is taken as it is. Raises RewardFailedError with the remedy."""
        try:
            response = self._request("models", None, "models", tries=_START_TRIES)
        except NoVerdictError as error:
            remedy = f"start the server, or correct {self._server.place}.base_url"
            raise RewardFailedError(f"{self._key('base_url')}: {error}; {remedy}") from error
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            known = [str(entry["id"]) for entry in answers.parsed(response)["data"]]
            if response.is_success and known and self._server.model not in known:
                listed = ", ".join(known[:8]) + (", …" if len(known) > 8 else "")
                raise JudgeRefusedError(
                    f"{self._key('model')}: {self._server.base_url} has no model "
                    f"{show(self._server.model)}{did_you_mean(self._server.model, known)}; it has "
                    f"{listed}"
                )

    def ask(self, messages: Sequence[Mapping[str, str]], key: str) -> str:
        """What the model answers. key: names this question, for the pauses between tries.

        Raises NoVerdictError, from a ConnectionError when the server is lost, and
        JudgeRefusedError when asking anything would fail like this.
        """
        body: dict[str, Any] = {"model": self._server.model, "messages": list(messages)}
        if self._takes_temperature:
            body["temperature"] = 0
        response = self._request("chat/completions", body, key)
        if response.status_code == 400 and "temperature" in body and "temperature" in response.text:
            # Some models only know their own.
            self._takes_temperature = False
            del body["temperature"]
            response = self._request("chat/completions", body, key)
        if not response.is_success:
            raise self._refused(response)
        try:
            content = answers.parsed(response)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise NoVerdictError(
                f"the judge's server sent no chat completion: {response.text[:_SHOWN]!r}"
            ) from None
        return content if isinstance(content, str) else ""

    def close(self) -> None:
        """Wake up who pauses, and give up what is on its way."""
        self._stopping.set()
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.loop.submit(connection.client.aclose()).result(_CLOSING_S)
            connection.loop.close()

    def _request(
        self,
        path: str,
        body: Mapping[str, Any] | None,
        key: str,
        tries: int | None = None,
    ) -> httpx.Response:
        """The first response that is not worth another try."""
        import httpx

        most = self._server.retries + 1
        most = min(tries, most) if tries is not None else most
        trouble, seconds = "", self._server.timeout
        for attempt in range(most):
            wanted: float | None = None
            try:
                there = self._connected()
                asking = answers.ask(there.client, path, body, seconds=seconds, key=there.key)
                response = there.loop.submit(asking).result()
            except CancelledError:
                break
            except httpx.RequestError as error:
                trouble = f"{type(error).__name__}: {error}".rstrip(": ")
            else:
                if response.status_code in (401, 403):
                    raise self._refused(response)
                passing = response.status_code in _PASSING or response.status_code >= 500
                # A server without the route may say so with 501 Not Implemented.
                if not passing or response.status_code == HTTPStatus.NOT_IMPLEMENTED:
                    return response
                trouble = answers.said(response)
                wanted = answers.retry_after(response.headers)
            if attempt + 1 < most and self._stopping.wait(_pause(key, attempt, wanted)):
                break
        if self._stopping.is_set():
            raise NoVerdictError("the judge was closed")
        times = "1 try" if most == 1 else f"{most} tries"
        message = f"the judge at {self._server.base_url} cannot be had after {times} ({trouble})"
        raise NoVerdictError(message) from ConnectionError(message)

    def _connected(self) -> _Connection:
        import httpx

        with self._lock:
            if self._stopping.is_set():
                raise CancelledError
            if self._connection is None:
                key = os.environ.get(self._server.api_key_env, "").strip()
                if not (key.isascii() and key.isprintable()) or " " in key:
                    # A library's error would show it.
                    raise JudgeRefusedError(
                        f"{self._key('api_key_env')}: {self._server.api_key_env} holds characters "
                        "that no key has, such as a line break or a space; set it anew"
                    )
                client = httpx.AsyncClient(
                    base_url=self._server.base_url,
                    headers={"Authorization": f"Bearer {key}"} if key else {},
                    timeout=self._server.timeout,
                    limits=httpx.Limits(
                        max_connections=self._server.concurrency,
                        max_keepalive_connections=self._server.concurrency,
                    ),
                )
                self._connection = _Connection(client, LoopThread("retrain-judge"), key)
            return self._connection

    def _refused(self, response: httpx.Response) -> Exception:
        """The error for a response that no other try would change."""
        server, status, said = self._server, response.status_code, answers.said(response)
        if status in _OF_THE_REQUEST:
            return NoVerdictError(f"the judge at {server.base_url} refuses the question: {said}")
        if status in (401, 403):
            is_set = bool(os.environ.get(server.api_key_env, "").strip())
            remedy = f"the key in {server.api_key_env} is not accepted"
            if not is_set:
                remedy = f"set {server.api_key_env} to the key"
            remedy += f", or name another variable in {server.place}.api_key_env"
            where = self._key("api_key_env")
        elif status in (404, 405):
            where = self._key("base_url")
            remedy = (
                f"is there a chat API below {show(server.base_url)} (it often ends in /v1), and "
                f"does it know the model {show(server.model)} ({server.place}.model)?"
            )
        else:
            where = self._key("base_url")
            remedy = f"see that {show(server.base_url)} is the server that you mean"
        return JudgeRefusedError(f"{where}: {server.base_url} answers {said}; {remedy}")

    def _key(self, name: str) -> str:
        return f"{self._server.place}.{name}"


def _pause(key: str, attempt: int, wanted: float | None) -> float:
    """Seconds before the next try: twice as long each time, by a share that `key` decides, so that
    those who failed together do not come back together; or what the server wants, if longer."""
    digest = hashlib.blake2b(f"{key}/{attempt}".encode(), digest_size=4).digest()
    share = 0.5 + int.from_bytes(digest) / 2**33
    pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**attempt) * share
    return max(pause, min(wanted or 0.0, LONGEST_RETRY_AFTER_S))
