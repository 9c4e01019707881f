"""Workers on this machine: a pool of warm subprocesses."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from retrain.causes import HUNG, KILLED, WORKER, ended_words, last_line, log_end, machine_words
from retrain.experiments.executors.executor import (
    Cancelled,
    Event,
    Failed,
    Finished,
    Interrupted,
    Job,
    Row,
    Started,
    Warned,
)
from retrain.experiments.workers import thread_environment
from retrain.files import RUN_LOG_FILE
from retrain.processes import module_command

WORKER_COMMAND = module_command("retrain.experiments.worker")

LAST_WORDS_S = 1.0
"""What a hung worker gets to write down where it is."""

START_ATTEMPTS = 2
"""Workers in a row that may die before they are ready; then none will ever be."""

MESSAGES: Mapping[str, Callable[..., Event]] = {
    "row": Row,
    "warned": Warned,
    "finished": Finished,
    "failed": Failed,
    "stopped": Interrupted,
    "cancelled": Cancelled,
}
ENDING_MESSAGES = frozenset({"finished", "failed", "stopped", "cancelled"})


@dataclass(eq=False)
class _Worker:
    number: int
    process: subprocess.Popen[bytes]
    commands: int
    events: int
    state: Literal["starting", "idle", "busy", "retired"] = "starting"
    device: str | None = None
    job: Job | None = None
    began: bool = False
    heard_at: float = 0.0
    condemned_at: float | None = None
    buffer: bytes = b""
    open: bool = True

    def tell(self, do: str, **fields: Any) -> bool:
        """Send a command; False when nobody listens any more."""
        if not self.open:
            return False
        try:
            os.write(self.commands, (json.dumps({"do": do, **fields}) + "\n").encode())
        except OSError:
            return False
        return True

    def hang_up(self) -> None:
        """Close the command pipe."""
        if self.open:
            self.open = False
            os.close(self.commands)

    def signal(self, number: signal.Signals, *, group: bool) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if group:
                os.killpg(self.process.pid, number)
            else:
                os.kill(self.process.pid, number)

    def has_exited(self) -> bool:
        """Whether the process has ended; it is not reaped, so its number stays taken."""
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            return os.waitid(os.P_PID, self.process.pid, options) is not None
        except ChildProcessError:
            return True


class LocalExecutor:
    """Trains runs in subprocesses of this machine.

    workers:         how many runs train at the same time.
    threads:         CPU threads a worker.
    devices:         one a worker; without any, each run's config says where it is trained.
    stagger_seconds: pause between the starts of workers.
    timeout_s:       a worker that says nothing for so long is hung: it writes down where it is
                     and is killed. 0 waits for ever.
    log:             file for what workers say outside of runs.
    sys_path:        folders that modules may be imported from, besides a worker's own.
    throttle_dir:    folder through which workers share calls to a service.
    grace_s:         how long a stopped worker may take to finish its step; then it is told more
                     firmly, and half as long after that it is killed.
    """

    def __init__(
        self,
        workers: int,
        *,
        log: Path,
        threads: int = 1,
        devices: Sequence[str] = (),
        stagger_seconds: float = 0.0,
        timeout_s: float = 0.0,
        sys_path: Sequence[str] = (),
        throttle_dir: Path | None = None,
        command: Sequence[str] = WORKER_COMMAND,
        grace_s: float = 600.0,
    ) -> None:
        self._slots = workers
        self._log = log
        self._threads = threads
        self._free_devices = deque(devices)
        self._stagger_seconds = stagger_seconds
        self._timeout_s = timeout_s
        self._sys_path = list(sys_path)
        self._throttle_dir = str(throttle_dir.absolute()) if throttle_dir else ""
        self._command = tuple(command)
        self._grace_s = grace_s
        self._queue: deque[Job] = deque()
        self._order: dict[str, int] = {}
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._launched = 0
        self._next_launch = 0.0
        self._failed_starts = 0
        self._stopping = False
        self._killed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        self._selector.close()
        with contextlib.suppress(OSError):
            if self._log.stat().st_size == 0:
                self._log.unlink()

    @property
    def slots(self) -> int:
        return self._slots

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that live now."""
        return tuple(worker.process.pid for worker in self._workers)

    def submit(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._order.setdefault(job.name, len(self._order))
        # One that is tried again keeps its place.
        waiting = (*self._queue, *jobs)
        self._queue = deque(sorted(waiting, key=lambda job: self._order[job.name]))

    def poll(self, timeout: float) -> list[Event]:
        self._launch_one_if_due()
        self._dispatch()
        self._end_hung_workers()
        events = self._give_up_if_none_starts()
        until_launch = self._next_launch - time.monotonic() if self._wants_worker() else timeout
        events += self._read(0.0 if events else max(0.0, min(timeout, until_launch)))
        self._dispatch()
        return events

    def cancel(self, names: Collection[str]) -> list[Event]:
        waiting = [job for job in self._queue if job.name in names]
        self._queue = deque(job for job in self._queue if job.name not in names)
        for worker in self._workers:
            if worker.job is not None and worker.job.name in names:
                worker.tell("cancel", name=worker.job.name)
        return [Cancelled(job.name, started=False) for job in waiting]

    def stop(self) -> list[Event]:
        self._stopping = True
        events: list[Event] = [Interrupted(job.name, started=False) for job in self._queue]
        self._queue.clear()
        for worker in self._workers:
            worker.tell("stop")
            worker.hang_up()
        events += self._read_until_gone(self._grace_s)
        for worker in self._workers:
            worker.signal(signal.SIGUSR2, group=False)
        events += self._read_until_gone(self._grace_s / 2)
        self.kill()
        while self._workers:
            events += self._read(0.1)
        self._stopping = False
        self._killed = False
        return events

    def kill(self) -> None:
        self._killed = True
        for worker in tuple(self._workers):
            worker.signal(signal.SIGKILL, group=True)

    def _wants_worker(self) -> bool:
        free = sum(worker.state in {"starting", "idle"} for worker in self._workers)
        waiting = len(self._queue) - free
        room = len(self._workers) < self._slots and self._failed_starts < START_ATTEMPTS
        return waiting > 0 and room

    def _launch_one_if_due(self) -> None:
        if not self._wants_worker() or time.monotonic() < self._next_launch:
            return
        self._next_launch = time.monotonic() + self._stagger_seconds
        self._launched += 1
        worker = self._launch(self._launched)
        self._workers.append(worker)
        self._selector.register(worker.events, selectors.EVENT_READ, worker)

    def _launch(self, number: int) -> _Worker:
        commands_read, commands_write = os.pipe()
        events_read, events_write = os.pipe()
        try:
            with self._log.open("ab") as log:
                process = subprocess.Popen(
                    [*self._command, str(commands_read), str(events_write)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(commands_read, events_write),
                    env={**os.environ, **thread_environment(self._threads, self._slots)},
                    start_new_session=True,
                )
        except BaseException:
            os.close(commands_write)
            os.close(events_read)
            raise
        finally:
            os.close(commands_read)
            os.close(events_write)
        os.set_blocking(events_read, False)
        worker = _Worker(number, process, commands_write, events_read)
        worker.heard_at = time.monotonic()
        if self._free_devices:
            worker.device = self._free_devices.popleft()
        worker.tell(
            "setup",
            sys_path=self._sys_path,
            threads=self._threads,
            device=worker.device,
            throttle_dir=self._throttle_dir,
        )
        return worker

    def _end_hung_workers(self) -> None:
        """A worker that says nothing for too long first writes down where it is, then is killed."""
        if not self._timeout_s:
            return
        now = time.monotonic()
        for worker in self._workers:
            if worker.state not in {"starting", "busy"}:
                continue
            if worker.condemned_at is not None:
                if now > worker.condemned_at + LAST_WORDS_S:
                    worker.signal(signal.SIGKILL, group=True)
            elif now > worker.heard_at + self._timeout_s:
                worker.condemned_at = now
                worker.signal(signal.SIGUSR1, group=False)

    def _dispatch(self) -> None:
        for worker in self._workers:
            if not self._queue:
                return
            if worker.state != "idle":
                continue
            job = self._queue[0]
            told = worker.tell(
                "train",
                name=job.name,
                condition=job.condition,
                config=str(job.config.absolute()),
                run_dir=str(job.run_dir.absolute()),
                endpoint=job.endpoint.fields() if job.endpoint else None,
            )
            if told:
                worker.job = self._queue.popleft()
                worker.state, worker.began = "busy", False
                worker.heard_at = time.monotonic()

    def _give_up_if_none_starts(self) -> list[Event]:
        if self._failed_starts < START_ATTEMPTS or self._workers:
            return []
        log = log_end(self._log)
        cause, words = machine_words(log)
        message = f"no worker starts: {words or last_line(log) or 'no word'} (see {self._log})"
        events: list[Event] = [Failed(job.name, cause or WORKER, message) for job in self._queue]
        self._queue.clear()
        self._failed_starts = 0
        return events

    def _read_until_gone(self, seconds: float) -> list[Event]:
        events: list[Event] = []
        deadline = time.monotonic() + seconds
        while self._workers and not self._killed and time.monotonic() < deadline:
            events += self._read(0.1)
        return events

    def _read(self, timeout: float) -> list[Event]:
        events: list[Event] = []
        if not self._workers:
            time.sleep(timeout)
            return events
        ended = [key.data for key, _ in self._selector.select(timeout) if not self._fill(key.data)]
        for worker in tuple(self._workers):
            gone = worker in ended or worker.has_exited()
            if gone:
                self._fill(worker)
            *lines, worker.buffer = worker.buffer.split(b"\n")
            for line in lines:
                events += self._hear(worker, json.loads(line))
            if gone:
                events += self._bury(worker)
        return events

    @staticmethod
    def _fill(worker: _Worker) -> bool:
        """Read what the worker has sent; False when it will send nothing more."""
        while True:
            try:
                data = os.read(worker.events, 1 << 16)
            except BlockingIOError:
                return True
            if not data:
                return False
            worker.buffer += data

    def _hear(self, worker: _Worker, message: Mapping[str, Any]) -> list[Event]:
        fields = dict(message)
        kind = fields.pop("event")
        worker.heard_at = time.monotonic()
        if kind == "ready":
            worker.state = "idle"
            self._failed_starts = 0
            return []
        if kind == "started":
            worker.began = True
            return [Started(worker=worker.number, **fields)]
        if kind not in MESSAGES:
            raise ValueError(f"a worker sent an unknown event {kind!r}")
        if kind in ENDING_MESSAGES:
            worker.job = None
            worker.state = "retired" if fields.pop("retire", False) else "idle"
        return [MESSAGES[kind](**fields)]

    def _bury(self, worker: _Worker) -> list[Event]:
        # The group first, while the worker's number cannot have been given to another: what it
        # started must not outlive it.
        worker.signal(signal.SIGKILL, group=True)
        code = worker.process.wait()
        worker.hang_up()
        self._selector.unregister(worker.events)
        os.close(worker.events)
        self._workers.remove(worker)
        if worker.device is not None:
            self._free_devices.append(worker.device)
        if worker.state == "starting" and not self._stopping:
            self._failed_starts += 1
        if worker.job is None:
            return []
        if self._stopping or self._killed:
            return [Interrupted(worker.job.name, started=worker.began)]
        if worker.condemned_at is not None:
            message = (
                f"hung: its worker finished no step for {self._timeout_s:g} s "
                "([campaign].worker_timeout) and was killed; run.log shows where it was"
            )
            return [Failed(worker.job.name, HUNG, message)]
        message, cause = f"its worker {ended_words(code)}", KILLED
        if code != -signal.SIGKILL:
            cause, words = machine_words(log_end(worker.job.run_dir / RUN_LOG_FILE))
            message, cause = (f"{message}: {words}", cause) if words else (message, KILLED)
        return [Failed(worker.job.name, cause, message)]
