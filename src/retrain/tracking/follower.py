"""Trackers, when `[logging].wandb_project` asks for them: what training knows of them.

All of a tracker lives in a process of its own, `tracking/process.py`, which follows
`metrics.jsonl`. The trainer starts it, asks it after each row whether it has something to say,
and at the end gives it a few seconds to finish. So nothing that a tracker does can stop, slow or
change training: its imports and threads, its hooks in `sys.exit` and at the end of the interpreter,
what it prints, and a network that hangs. And when the trainer is killed, that process lives long
enough to put what it was given safely on the disk. Each tracker has its own: one that fails does
not hurt the other.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from retrain.config.schema import LoggingConfig
from retrain.processes import module_command
from retrain.tracking.state import TRACKER_LOG
from retrain.tracking.trackers import Tracker, trackers_of
from retrain.tracking.words import DRAIN_S, END, GRACE_S, lost

_log = logging.getLogger("retrain")

_detached: list[subprocess.Popen[bytes]] = []
"""Processes that still send files of runs that have ended; kept to be reaped."""

OnRow = Callable[[Mapping[str, Any]], None]


class Trackers:
    """The trackers of one run; does nothing unless the config names a project.

    Used as a context: on leaving it the run has ended and `run.json` says how.
    """

    def __init__(self, logging_config: LoggingConfig, run_dir: Path, name: str) -> None:
        chosen = trackers_of(logging_config)
        self._followers = [Follower(tracker, run_dir, name) for tracker in chosen]

    def start(self) -> None:
        """Begin to follow the run. Its `config.toml`, `run.json` and the rows that it keeps must
        be there."""
        for follower in self._followers:
            follower.start()

    def heeded(self, on_row: OnRow | None) -> OnRow:
        """`on_row`, and a look whether a process has something to say. Never waits."""

        def heard(row: Mapping[str, Any]) -> None:
            if on_row is not None:
                on_row(row)
            self._listen()

        return heard

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tell the processes that the run has ended, and wait for them, but not for long."""
        try:
            for follower in self._followers:
                follower.tell_end()
            deadline = time.monotonic() + DRAIN_S + GRACE_S
            while self._listen() and time.monotonic() < deadline:
                time.sleep(0.05)
            for follower in self._followers:
                follower.give_up()
        finally:
            # Also when a second Ctrl-C cuts the wait short.
            for follower in self._followers:
                follower.close()

    def _listen(self) -> bool:
        """Pass on what the processes have said; whether one is to be waited for."""
        waited = [follower.listen() for follower in self._followers]
        return any(waited)


class Follower:
    """One tracker's process, as the trainer sees it."""

    def __init__(self, tracker: Tracker, run_dir: Path, name: str) -> None:
        self._tracker = tracker
        self._run_dir = run_dir
        self._name = name
        self._started: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._explained = False

    def start(self) -> None:
        _detached[:] = [process for process in _detached if process.poll() is None]
        try:
            self._log_file.parent.mkdir(exist_ok=True)
            with self._log_file.open("ab") as log:
                process = start_process(self._run_dir, self._tracker, stderr=log)
            self._started = self._process = process
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
        except OSError as error:
            self._lost(str(error))

    def tell_end(self) -> None:
        process = self._process
        if process is not None:
            assert process.stdin is not None
            # It may be gone; then its last words or its exit code say why.
            with contextlib.suppress(OSError):
                process.stdin.write(END)
                process.stdin.close()

    def listen(self) -> bool:
        """Pass on what the process has said; whether it is to be waited for."""
        process = self._process
        if process is None:
            return False
        # First whether it has ended, then its words: so none of its last ones is missed.
        code = process.poll()
        assert process.stdout is not None
        *lines, self._buffer = (self._buffer + (process.stdout.read() or b"")).split(b"\n")
        for line in lines:
            self._hear(line)
        if self._process is None or code is None:
            return self._process is not None
        self._process = None
        if code and not self._explained:
            self._lost(f"its process ended with exit code {code}; see {self._log_file}")
        return False

    def give_up(self) -> None:
        """Say so when it has not ended by now."""
        if self._process is not None:
            self._process = None
            self._lost(f"it took longer than {DRAIN_S + GRACE_S:g} s to take the last rows")

    def close(self) -> None:
        """Leave no process behind but one that sends files."""
        process = self._started
        if process is None:
            return
        if process not in _detached and process.poll() is None:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def _hear(self, line: bytes) -> None:
        try:
            words = json.loads(line)
            if "uploads" in words:
                assert self._process is not None
                _detached.append(self._process)
                self._process = None
                return
            if "lost" in words:
                # Its last words may come a while before its end.
                self._explained = True
                self._lost(words["lost"])
                return
            text = words["warning"]
        except (ValueError, KeyError, TypeError):
            text = line.decode(errors="replace")
        _log.warning("%s: %s: %s", self._name, self._tracker.title, text)

    @property
    def _log_file(self) -> Path:
        return self._run_dir / self._tracker.name / TRACKER_LOG

    def _lost(self, reason: str) -> None:
        _log.warning("%s: %s", self._name, lost(self._tracker.title, reason))


def start_process(
    run_dir: Path, tracker: Tracker, *settings: str, stderr: Any
) -> subprocess.Popen[bytes]:
    """`tracking/process.py` for one run and tracker, with pipes to talk to it."""
    return subprocess.Popen(
        [
            *module_command("retrain.tracking.process"),
            *(str(run_dir.absolute()), tracker.name, *settings),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        # Of the terminal's Ctrl-C it must not hear: the run goes on for a step.
        start_new_session=True,
    )
