"""A warm worker: imports torch once, loads each base model once, trains run after run.

    python -m retrain.experiments.worker COMMANDS_FD EVENTS_FD

Commands come, and events go, as JSON lines on two pipes of their own, so nothing that a run
prints can disturb them. What a run prints goes to its `run.log`, also from C code and
subprocesses.

The command `cancel` ends one run after the step it is in, with a checkpoint, and the worker waits
for the next one. There are three ways to stop, from gentle to firm: the command `stop`, or the end
of the command pipe (the campaign is gone), or SIGTERM and SIGHUP, which service managers and batch
systems send to every process of a job, end the run in the same way; SIGUSR2 ends it at once, still
in order; SIGKILL loses the step. SIGUSR1 writes down where every thread is. Ctrl-C in the terminal
is the campaign's business, not ours.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import logging
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from retrain.causes import LIMIT, MEMORY, cause_of, describe
from retrain.config.dump import read_run_config
from retrain.config.schema import BackendConfig, RunConfig
from retrain.errors import RetrainError
from retrain.experiments.executors.executor import MEASURES
from retrain.files import RUN_LOG_FILE, json_line
from retrain.output import guard_output
from retrain.policies.inference.endpoint import Endpoint
from retrain.processes import signal_when_parent_dies
from retrain.training.place import Place

ORPHAN_GRACE_S = 60
"""How long a run may take to reach the end of its step once the campaign is gone."""

OnRow = Callable[[Mapping[str, Any]], None]


class Train(Protocol):
    """How a worker trains one run: `training.run.train_run` with its cache of base models."""

    def __call__(
        self,
        config: RunConfig,
        run_dir: Path,
        *,
        name: str,
        condition: str,
        place: Place,
        on_row: OnRow,
        stop: Callable[[], bool],
    ) -> Any: ...


def load_train() -> Train:
    """The real training. This is where torch is imported."""
    # Imports make much that stays and nothing to collect: looking through it costs half a second.
    gc.disable()
    from retrain.training.run import BaseModels, train_run

    gc.freeze()
    gc.enable()
    return partial(train_run, bases=BaseModels())


class Worker:
    """The state of one worker process; see the module's docstring."""

    def __init__(self, commands_fd: int, events_fd: int) -> None:
        for descriptor in (commands_fd, events_fd):
            os.set_inheritable(descriptor, False)
        self._commands_fd = commands_fd
        self._events_fd = events_fd
        self._send_lock = threading.Lock()
        # Signals set it, and one may come while another is handled: a lock would be waited for by
        # its own holder.
        self._stopping = False
        self._parent = os.getppid()
        self._cancelled: set[str] = set()
        self._jobs: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._run = ""
        self._setup: dict[str, Any] = {}

    def serve(self, load: Callable[[], Train]) -> int:
        """Train what the campaign asks for until it asks for nothing more."""
        self._listen_to_signals()
        self._setup = self._jobs_from_pipe()
        sys.path.extend(path for path in self._setup["sys_path"] if path not in sys.path)
        warnings = logging.getLogger("retrain")
        warnings.addHandler(logging.StreamHandler(sys.stderr))
        warnings.addHandler(_EventHandler(self))
        try:
            train = load()
            self.send("ready")
            while not self._stopping and (job := self._jobs.get()) is not None:
                if not self._train(train, job):
                    break
        except KeyboardInterrupt:
            return 130
        return 0

    def send(self, event: str, **fields: Any) -> None:
        """Tell the campaign; when it is gone, stop after this step."""
        line = (json_line({"event": event, **fields}) + "\n").encode()
        try:
            with self._send_lock:
                view = memoryview(line)
                while view:
                    view = view[os.write(self._events_fd, view) :]
        except OSError:
            self._stopping = True

    def warn(self, message: str) -> None:
        """Pass a warning on to the terminal."""
        if self._run:
            self.send("warned", run=self._run, message=message)

    def _train(self, train: Train, job: Mapping[str, Any]) -> bool:
        """Train one run; whether this process is still fit for another."""
        fit = True
        name, run_dir = str(job["name"]), Path(job["run_dir"])
        if name in self._cancelled:
            self.send("cancelled", run=name, started=False)
            return fit
        self._run = name
        self.send("started", run=name)
        with _output_to(run_dir / RUN_LOG_FILE):
            try:
                config = read_run_config(Path(job["config"]))
                result = train(
                    config,
                    run_dir,
                    place=Place(self._place(config.backend), Endpoint.read(job["endpoint"])),
                    name=name,
                    condition=str(job["condition"]),
                    on_row=self._on_row,
                    stop=lambda: self._stopping or name in self._cancelled,
                )
            except KeyboardInterrupt:
                if self._stopping or name not in self._cancelled:
                    self.send("stopped", run=name)
                    raise
                self.send("cancelled", run=name)
            except BaseException as error:
                traceback.print_exc()
                # An unforeseen error may leave a process behind that fails every later run, as
                # CUDA does after some, and a full memory is empty in a fresh worker, which costs
                # seconds; so are files that a run left open.
                cause = cause_of(error, run_dir)
                fit = isinstance(error, RetrainError) and cause not in {MEMORY, LIMIT}
                self.send("failed", run=name, cause=cause, message=describe(error), retire=not fit)
            else:
                measured = result.measured()
                self.send(
                    "finished",
                    run=name,
                    status=result.status,
                    message=result.message,
                    result=measured,
                )
        self._run = ""
        _release_memory()
        return fit

    def _on_row(self, row: Mapping[str, Any]) -> None:
        measures = {key: row.get(key) for key in MEASURES}
        self.send("row", run=self._run, step=row["step"], **measures)

    def _place(self, backend: BackendConfig) -> BackendConfig:
        """A run's `[backend]` within what this worker has of the machine, and of a service."""
        changes = {
            "threads": min(backend.threads, self._setup["threads"]),
            "device": self._setup["device"] or backend.device,
            "throttle_dir": backend.throttle_dir or self._setup["throttle_dir"],
        }
        return backend.model_copy(update=changes)

    def _listen_to_signals(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._stop)
        # What was started with nohup goes on when its terminal is closed.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._stop)
        signal.signal(signal.SIGUSR2, self._interrupt)
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        signal_when_parent_dies(signal.SIGTERM)

    def _stop(self, *_: Any) -> None:
        self._stopping = True
        self._jobs.put(None)
        if os.getppid() != self._parent:
            self._leave_in_time()

    def _leave_in_time(self) -> None:
        """The campaign is gone. Neither a run that never reaches the end of its step nor a thread
        that does not start may keep this process: the system itself ends it."""
        if not self._run:
            os._exit(1)
        signal.alarm(ORPHAN_GRACE_S)

    def _interrupt(self, *_: Any) -> None:
        # Nobody shall take this for the end of one run.
        self._stopping = True
        raise KeyboardInterrupt

    def _jobs_from_pipe(self) -> dict[str, Any]:
        """Start to listen for commands; returns the first one, which is the set-up."""
        commands = os.fdopen(self._commands_fd, "r", encoding="utf-8")
        first = commands.readline()
        if not first:
            raise SystemExit(0)

        def listen() -> None:
            for line in commands:
                command = json.loads(line)
                if command["do"] == "stop":
                    break
                if command["do"] == "cancel":
                    self._cancelled.add(command["name"])
                    continue
                # It may be another attempt of one that was cancelled.
                self._cancelled.discard(command["name"])
                self._jobs.put(command)
            else:
                self._leave_in_time()
            self._stopping = True
            self._jobs.put(None)

        threading.Thread(target=listen, daemon=True).start()
        setup: dict[str, Any] = json.loads(first)
        return setup


class _EventHandler(logging.Handler):
    """Sends retrain's own warnings to the terminal; `run.log` has them as well."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(logging.WARNING)
        self._worker = worker

    def emit(self, record: logging.LogRecord) -> None:
        self._worker.warn(record.getMessage())


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Everything written to stdout and stderr goes to the file, whoever writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    saved = [os.dup(1), os.dup(2)]
    _flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    try:
        yield
    finally:
        _flush()
        for descriptor, original in zip((1, 2), saved, strict=True):
            os.dup2(original, descriptor)
            os.close(original)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _release_memory() -> None:
    """Give back what a run held, so that one that ran out of memory cannot starve the next."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _be_first_to_go() -> None:
    """When memory runs out the kernel should take a worker, whose run goes on from its last
    checkpoint, and not the campaign."""
    with contextlib.suppress(OSError, ValueError):
        score = Path("/proc/self/oom_score_adj")
        score.write_text(str(min(1000, int(score.read_text()) + 300)))


def main(load: Callable[[], Train] = load_train) -> int:
    """The entry point of the process that an executor starts."""
    commands_fd, events_fd = (int(argument) for argument in sys.argv[1:3])
    guard_output()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()
    _be_first_to_go()
    return Worker(commands_fd, events_fd).serve(load)


if __name__ == "__main__":
    raise SystemExit(main())
