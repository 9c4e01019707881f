"""A vLLM server of one's own: started, watched, started again when it dies, ended in order."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from retrain.errors import InputError, RetrainError
from retrain.files import atomic_write_text, utc_now
from retrain.policies.inference.endpoint import Endpoint
from retrain.policies.inference.keeper import GRACE_S
from retrain.policies.inference.vllm import HOST, Launch
from retrain.processes import ProcessId, module_command

_log = logging.getLogger("retrain")

FIRST_PORT = 8000
POLL_S = 0.5
_ANSWER_S = 5.0
_KEEPER = module_command("retrain.policies.inference.keeper")

_ERROR = re.compile(
    r"(?:^|\s)((?:[\w.]*(?:Error|Exception)|[\w ]+: error): \S.*|Value error, \S.*)"
)
_LONGEST_REASON = 300
_ONLY_POINTS = re.compile(r"root cause|failed core proc", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Patience:
    """deaths:        in a row after which a server is given up.
    first_pause_s: before it is started again; doubled at each death.
    good_s:        a server that has answered for so long died of something new.
    """

    deaths: int = 4
    first_pause_s: float = 1.0
    good_s: float = 600.0


class VllmServer:
    """A context manager. Between `start` and its end there is a server at `endpoint`, or there will
    be again, or the file `endpoint.given_up` says why not."""

    def __init__(
        self,
        launch: Launch,
        program: Path,
        log: Path,
        *,
        clients: int,
        start_timeout: float,
        patience: Patience | None = None,
    ) -> None:
        """log: what the server says is added to it."""
        self.version = ""
        self.log = log
        self._launch = launch
        self._program = program
        self._clients = clients
        self._start_timeout = start_timeout
        self._patience = patience or Patience()
        self._given_up = log.with_suffix(".lost")
        self._given_up.unlink(missing_ok=True)
        self._port, self._claim = claim_port()
        key = secrets.token_hex(16)
        self._environment = launch.environment(key, os.environ)
        self.endpoint = Endpoint(
            f"http://{HOST}:{self._port}",
            key,
            away_s=start_timeout,
            given_up=str(self._given_up.absolute()),
            owner=ProcessId.own(),
        )
        self._closing = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._said_before = 0
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        return self

    def start(self) -> None:
        """Until the server answers. Raises InputError when it will not."""
        self._process = self._launched()
        self._wait_until_ready()
        self._watcher.start()

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._end()
        if self._watcher.is_alive():
            self._watcher.join()
        if self._claim is not None:
            self._claim.close()

    def _launched(self) -> subprocess.Popen[bytes]:
        command = self._launch.command(self._program, self._port, self._clients)
        with self.log.open("ab") as log:
            log.write(f"--- {utc_now()} {shlex.join(command)}\n".encode())
            log.flush()
            self._said_before = log.tell()
            return subprocess.Popen(
                [*_KEEPER, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment,
                # Ctrl-C in the terminal means the training; the server ends after its last request.
                start_new_session=True,
            )

    def _wait_until_ready(self) -> None:
        """Raises InputError when the server ends instead, or does not answer in time."""
        process, deadline = self._process, time.monotonic() + self._start_timeout
        assert process is not None
        while not self._closing.is_set():
            if process.poll() is not None:
                ended = f"vLLM {_ended(process.returncode)} before it was ready"
                raise InputError(f"inference.engine: {self._with_reason(ended)}")
            if self._answers():
                return
            if time.monotonic() > deadline:
                raise InputError(
                    f"inference.start_timeout: vLLM was not ready after {self._start_timeout:g} s; "
                    f"{self.log} shows how far it came"
                )
            time.sleep(POLL_S)

    def _answers(self) -> bool:
        """Whether our server is ready: another's would want another key, or none."""
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError, LookupError):
            if self._asked("/v1/models", "")[0] == 200:
                return False
            status, _ = self._asked("/v1/models", self.endpoint.key)
            if status != 200:
                return False
            self.version = str(json.loads(self._asked("/version", "")[1])["version"])
            return True
        return False

    def _asked(self, path: str, key: str) -> tuple[int, bytes]:
        """Status and body of an answer."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        connection = http.client.HTTPConnection(HOST, self._port, timeout=_ANSWER_S)
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def _watch(self) -> None:
        """In a thread of its own: the server is started again whenever it has died."""
        try:
            self._start_again_and_again()
        except OSError as error:
            # Its log cannot be written, or there is room for no further process.
            self._give_up(f"vLLM cannot be started again: {error}")

    def _start_again_and_again(self) -> None:
        deaths, ready_at = 0, time.monotonic()
        while (process := self._process) is not None:
            if self._closing.is_set():
                # The end came while a new one was being started.
                self._end()
                return
            code = process.wait()
            if self._closing.is_set():
                return
            if time.monotonic() - ready_at > self._patience.good_s:
                deaths = 0
            deaths += 1
            reason = self._with_reason(f"vLLM {_ended(code)}")
            if deaths >= self._patience.deaths:
                self._give_up(f"{reason}; that was the {deaths}th time, and it is given up")
                return
            _log.warning("%s; it is started again", reason)
            if self._closing.wait(self._patience.first_pause_s * 2 ** (deaths - 1)):
                return
            self._process = self._launched()
            try:
                self._wait_until_ready()
            except RetrainError:
                self._kill()
            # One that never was ready has not been good for any time either.
            ready_at = time.monotonic()

    def _give_up(self, reason: str) -> None:
        _log.warning("%s", reason)
        with contextlib.suppress(OSError):
            atomic_write_text(self._given_up, reason + "\n")

    def _end(self) -> None:
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2 * GRACE_S)
        self._kill()

    def _kill(self) -> None:
        """The keeper first in order, so that it takes the server with it."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2 * GRACE_S)
        if process.poll() is None:
            process.kill()
            process.wait()

    def _with_reason(self, ended: str) -> str:
        """How it ended, what it said last that looks like a reason, and where the rest is."""
        errors: list[str] = []
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            file.seek(self._said_before)
            lines = file.read().decode(errors="replace").splitlines()
            errors = [match[1] for line in lines if (match := _ERROR.search(line))]
        causes = [error for error in errors if not _ONLY_POINTS.search(error)] or errors
        reason = f": {causes[-1][:_LONGEST_REASON]}" if causes else ""
        return f"{ended}{reason} (see {self.log})"


def claim_port(first: int = FIRST_PORT) -> tuple[int, socket.socket | None]:
    """The next port on which nobody listens, and a socket whose life keeps other trainings from it.

    vLLM binds its port in a way in which two servers can share one, each with half of the requests,
    and only some time after it was started. A name in the abstract namespace, which Linux has for
    each network, is taken at once, and free as soon as its holder is gone.
    """
    for port in range(first, 1 << 16):
        claim = _claim(port)
        if sys.platform == "linux" and claim is None:
            continue
        if _is_free(port):
            return port, claim
        if claim is not None:
            claim.close()
    raise RetrainError(f"no port from {first} on is free on {HOST}")


def _claim(port: int) -> socket.socket | None:
    if sys.platform != "linux":
        return None
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        claim.bind(f"\0retrain-vllm-{port}")
    except OSError:
        claim.close()
        return None
    return claim


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # With SO_REUSEADDR one would share the port of a vLLM that has it and does not listen yet.
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _ended(code: int) -> str:
    """How the keeper tells its server's end."""
    number = code - 128 if code > 128 else -code
    if number > 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(number).name}"
    return f"ended with exit code {code}"
