"""Processes that compare mathematical answers, and what their trainer knows of them.

A process that takes too long, takes too much memory or dies is replaced, and the answer that it
had is unverifiable. No process outlives the trainer: each ends when its input does, when the
trainer dies (on Linux), and when the pool is closed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrain.cores import own_share
from retrain.plugins import own_import_path
from retrain.rewards.reward import RewardFailedError
from retrain.rewards.threads import Crew
from retrain.types import Outcome

MEMORY_BYTES = 512 * 2**20
"""What a check may take, besides the libraries."""
CHECKS_A_PROCESS = 5000
"""sympy's caches grow; a process is replaced before they fill its memory."""
MOST_PROCESSES = 4

_SCRIPT = Path(__file__).with_name("math_process.py")
_START_S = 120.0
_WALL = 4.0
"""CPU time is what is limited; a process that sits still for so many times as long is killed."""
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "VIRTUAL_ENV", "SYSTEMROOT")


@dataclass(frozen=True, slots=True)
class Verdict:
    """reason: why an answer is unverifiable: `reference`, `time`, `memory`, `crash`, … ."""

    outcome: Outcome
    reason: str = ""


def pool_size() -> int:
    """Processes for one trainer: its share of the cores, at most four."""
    return min(MOST_PROCESSES, own_share())


class MathPool:
    """At most `size` checks at a time, each in a process of its own with `timeout` CPU seconds.

    The processes are started with the first checks: many a task has whole numbers for answers, and
    needs none.
    """

    def __init__(self, timeout: float, size: int | None = None) -> None:
        self._timeout = timeout
        self._live: set[_Process] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._crew: Crew[tuple[str, str], Verdict] = Crew(size or pool_size(), self._worker)

    def check(self, reference: str, answer: str) -> Future[Verdict]:
        """Compare; never blocks. The future raises RewardFailedError when no process starts."""
        return self._crew.submit((reference, answer))

    def close(self) -> None:
        """End all processes; what is being checked is given up."""
        self._crew.cancel()
        with self._lock:
            self._closed = True
            live = list(self._live)
        for process in live:
            process.kill()
        self._crew.close()

    @contextlib.contextmanager
    def _worker(self) -> Iterator[Callable[[tuple[str, str]], Verdict]]:
        """One thread's work: its process, started at once and again when it is gone."""
        held: list[_Process] = []

        def process() -> _Process:
            if held and held[0].checks < CHECKS_A_PROCESS:
                return held[0]
            drop()
            started = _Process(self._timeout)
            held.append(started)
            with self._lock:
                self._live.add(started)
                closed = self._closed
            if closed:
                raise CancelledError
            return started

        def drop() -> None:
            while held:
                gone = held.pop()
                gone.kill()
                with self._lock:
                    self._live.discard(gone)

        def handle(task: tuple[str, str]) -> Verdict:
            while True:
                worker = process()
                fresh = worker.checks == 0
                verdict = worker.check(*task)
                if self._closed:
                    raise CancelledError
                if not worker.is_fit:
                    drop()
                # What the checks before had left behind must have no say.
                if fresh or verdict.reason not in ("memory", "crash"):
                    return verdict

        try:
            with contextlib.suppress(Exception, CancelledError):
                process()
            yield handle
        finally:
            drop()


class _Process:
    """One checking process. `checks`: how many it has done; `is_fit`: whether it can do more."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self.checks = 0
        self.is_fit = True
        self._ready = False
        self._kill_lock = threading.Lock()
        self._buffer = b""
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_SCRIPT), str(timeout), str(MEMORY_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            cwd="/",
            # Ctrl-C in the terminal is for the trainer.
            start_new_session=True,
        )

    def check(self, reference: str, answer: str) -> Verdict:
        """Compare; whatever happens to the process is a verdict."""
        if not self._ready:
            self._wait_until_ready()
        self.checks += 1
        asked = json.dumps({"reference": reference, "answer": answer}) + "\n"
        reply = self._ask(asked.encode("ascii"), _WALL * self._timeout + 5.0)
        if reply is None:
            self.is_fit = False
            code = self._ended()
            return Verdict("unverifiable", "time" if code in (None, -signal.SIGPROF) else "crash")
        self.is_fit = not reply.get("last", False)
        return Verdict(reply["outcome"], reply["reason"])

    def kill(self) -> None:
        """End it now; may be called from another thread, and again."""
        with self._kill_lock:
            with contextlib.suppress(OSError):
                self._process.kill()
            self._process.wait()

    def _wait_until_ready(self) -> None:
        reply = self._ask(b"", _START_S)
        if not (reply and reply.get("ready")):
            self.is_fit = False
            self.kill()
            why = (reply or {}).get("failed") or f"it ended with {self._process.returncode}"
            raise RewardFailedError(
                f"the process that checks mathematical answers does not start: {why}; see that "
                "math-verify is installed for this Python: pip install 'math-verify>=0.8'"
            )
        self._ready = True

    def _ask(self, line: bytes, seconds: float) -> dict[str, Any] | None:
        """Its next line after it was given `line`; None when it ended, or said nothing in time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        output = self._process.stdout.fileno()
        deadline = time.monotonic() + seconds
        try:
            if line:
                self._process.stdin.write(line)
                self._process.stdin.flush()
            while b"\n" not in self._buffer:
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([output], [], [], left)[0]:
                    return None
                if not (got := os.read(output, 65536)):
                    return None
                self._buffer += got
        except OSError:
            return None
        first, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(first)
        return answer

    def _ended(self) -> int | None:
        """How it ended; None when it had to be killed."""
        try:
            return self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            self.kill()
            return None


def _environment() -> dict[str, str]:
    """What the process needs and no more: it has no use for keys."""
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(path for path in own_import_path() if path),
        # The order in which sympy meets the parts of an expression, hence what it finds in time.
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
