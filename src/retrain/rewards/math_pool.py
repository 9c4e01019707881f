"""Processes that compare mathematical answers, and what their trainer knows of them.

A check that takes too long, takes too much memory or dies is ended, and its answer is
unverifiable. No process outlives the trainer: each ends when its input does, when the trainer dies
(on Linux), and when the pool is closed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retrain.analysis.words import plural
from retrain.cores import own_share
from retrain.plugins import own_import_path
from retrain.rewards.reward import RewardFailedError, is_milestone
from retrain.rewards.threads import Crew
from retrain.types import Outcome

_log = logging.getLogger("retrain")

MEMORY_BYTES = 512 * 2**20
"""What a check may take, besides the libraries."""
MOST_PROCESSES = 4
FIRST_S, LONGER = 0.1, 4.0
"""CPU seconds that every answer gets, and how much longer each further try is."""
STEP_LIMITS, ANSWER_LIMITS = 6.0, 0.01
"""What the checks of a step may take together, in time limits of one answer: so many for the step,
and so many for each of its answers."""

_SCRIPT = Path(__file__).with_name("math_process.py")
OVER_BUDGET = "the checks of the step took too long together"
_WORDS = {
    "reference": "the reference cannot be read as mathematics",
    "time": "the check took too long",
    "memory": "the check took too much memory",
    "crash": "the check ended its process",
    "budget": OVER_BUDGET,
}
_START_S = 120.0
_WALL = 4.0
"""CPU time is what is limited; a process that sits still for so many times as long is killed."""
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "VIRTUAL_ENV", "SYSTEMROOT")


@dataclass(frozen=True, slots=True)
class Verdict:
    """reason: why an answer is unverifiable: `reference`, `time`, `memory`, `crash`, … ."""

    outcome: Outcome
    reason: str = ""

    @property
    def why(self) -> str:
        """The reason in words."""
        return _WORDS.get(self.reason, self.reason)


class OverBudgetError(Exception):
    """The checks of the step took so long together that this one was given up."""


@dataclass(frozen=True, slots=True)
class _Task:
    """limit: CPU seconds of this try. step: whose budget it counts against, if any."""

    reference: str
    answer: str
    limit: float
    step: _Step | None


@dataclass(slots=True)
class _Step:
    """What the checks of one step have taken together, in CPU seconds, and how many tries each
    reference has had at each limit."""

    answers: int = 0
    given_up: int = 0
    spent: float = 0.0
    turns: Counter[tuple[float, str]] = field(default_factory=Counter)


def pool_size() -> int:
    """Processes for one trainer: its share of the cores, at most four."""
    return min(MOST_PROCESSES, own_share())


class MathPool:
    """At most `size` checks at a time, each in a process of its own with `timeout` CPU seconds.

    The processes are started with the first checks: many a task has whole numbers for answers, and
    needs none.

    Within a step no answer takes the time of another: each is tried for FIRST_S seconds, and those
    that need longer are tried again, LONGER times as long, while the step has time left: one of
    each reference, then a second one of each, and so on.
    """

    def __init__(self, timeout: float, size: int | None = None) -> None:
        self._timeout = timeout
        self._live: set[_Process] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._step: _Step | None = None
        self._steps_over = 0
        self._crew: Crew[_Task, Verdict] = Crew(size or pool_size(), self._worker)

    def begin_step(self) -> None:
        """From here on, checks count against the budget of a new step. Before the first step they
        count against none."""
        self._tell()
        self._step = _Step()

    def _tell(self) -> None:
        """Warn when the step that is over had too little time."""
        step, self._step = self._step, None
        if step is None or not step.given_up:
            return
        self._steps_over += 1
        if is_milestone(self._steps_over):
            _log.warning(
                "math: %d of %d answers of a step could not be checked: its checks took longer "
                "than %.3g s together. They are unverifiable; %s so far. A larger "
                "[reward].timeout gives a step more time",
                *(step.given_up, step.answers, self._budget(step)),
                plural(self._steps_over, "such step"),
            )

    def _budget(self, step: _Step) -> float:
        """CPU seconds."""
        return (STEP_LIMITS + ANSWER_LIMITS * step.answers) * self._timeout

    def check(self, reference: str, answer: str) -> Future[Verdict]:
        """Compare; never blocks. The future raises RewardFailedError when no process starts, and
        OverBudgetError when the step has no time left for it."""
        step = self._step
        if step is not None:
            with self._lock:
                step.answers += 1
        limit = self._timeout if step is None else min(FIRST_S, self._timeout)
        verdict: Future[Verdict] = Future()
        self._try(_Task(reference, answer, limit, step), verdict)
        return verdict

    def _try(self, task: _Task, verdict: Future[Verdict]) -> None:
        """Check within the task's limit, then within longer ones."""
        turn, step = 0, task.step
        if step is not None:
            with self._lock:
                turn = step.turns[task.limit, task.reference]
                step.turns[task.limit, task.reference] += 1

        def done(tried: Future[Verdict]) -> None:
            if tried.cancelled():
                verdict.cancel()
            elif (error := tried.exception()) is not None:
                verdict.set_exception(error)
            elif tried.result().reason == "time" and task.limit < self._timeout:
                longer = min(LONGER * task.limit, self._timeout)
                self._try(replace(task, limit=longer), verdict)
            else:
                verdict.set_result(tried.result())

        priority = (round(1000 * task.limit), turn)
        self._crew.submit(task, priority).add_done_callback(done)

    def _is_over_budget(self, task: _Task) -> bool:
        """Whether the task's step is out of time. Every answer gets its first try."""
        step = task.step
        if step is None or task.limit <= FIRST_S:
            return False
        return step.spent >= self._budget(step)

    def close(self) -> None:
        """End all processes; what is being checked is given up."""
        self._tell()
        self._crew.cancel()
        with self._lock:
            self._closed = True
            live = list(self._live)
        for process in live:
            process.kill()
        self._crew.close()

    @contextlib.contextmanager
    def _worker(self) -> Iterator[Callable[[_Task], Verdict]]:
        """One thread's work: its process, started at once and again when it is gone."""
        held: list[_Process] = []

        def process() -> _Process:
            if held:
                return held[0]
            started = _Process()
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

        def handle(task: _Task) -> Verdict:
            if task.step is not None and self._is_over_budget(task):
                with self._lock:
                    task.step.given_up += 1
                raise OverBudgetError
            while True:
                worker = process()
                fresh = worker.checks == 0
                verdict, seconds = worker.check(task)
                if task.step is not None:
                    with self._lock:
                        task.step.spent += seconds
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
    """One checking process. `checks`: how many its present fork has done, at least; `is_fit`:
    whether it can do more."""

    def __init__(self) -> None:
        self.checks = 0
        self.is_fit = True
        self._ready = False
        self._kill_lock = threading.Lock()
        self._buffer = b""
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_SCRIPT), str(MEMORY_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            cwd="/",
            # Ctrl-C in the terminal is for the trainer.
            start_new_session=True,
        )

    def check(self, task: _Task) -> tuple[Verdict, float]:
        """Compare: (verdict, CPU seconds); whatever happens to the process is a verdict."""
        if not self._ready:
            self._wait_until_ready()
        self.checks += 1
        asked = {"reference": task.reference, "answer": task.answer, "seconds": task.limit}
        self._forget_the_unasked()
        line = json.dumps(asked) + "\n"
        reply = None
        # A fork may have an answer left when its parent is gone already.
        if self._process.poll() is None:
            reply = self._ask(line.encode("ascii"), _WALL * task.limit + 5.0)
        if reply is None:
            self.is_fit = False
            reason = "crash" if self._ended() is not None else "time"
            return Verdict("unverifiable", reason), task.limit
        if reply["cpu"] is None:
            self.checks = 0
        seconds = task.limit if reply["cpu"] is None else reply["cpu"]
        return Verdict(reply["outcome"], reply["reason"]), seconds

    def _forget_the_unasked(self) -> None:
        """What it said of a fork that ended between two checks."""
        assert self._process.stdout is not None
        output = self._process.stdout.fileno()
        self._buffer = b""
        while select.select([output], [], [], 0)[0] and os.read(output, 65536):
            self.checks = 1

    def kill(self) -> None:
        """End it now; may be called from another thread, and again."""
        with self._kill_lock:
            if self._process.poll() is None:
                with contextlib.suppress(OSError):
                    # With its fork.
                    os.killpg(self._process.pid, signal.SIGKILL)
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
