"""Weights & Biases, when `[logging].wandb_project` asks for it: what training knows of it.

All of wandb lives in a process of its own, `tracking/wandb_process.py`, which follows
`metrics.jsonl`. The trainer starts it, asks it after each row whether it has something to say,
and at the end gives it a few seconds to finish. So nothing that wandb does can stop, slow or change
training: its imports and threads, its hooks in `sys.exit` and at the end of the interpreter, what
it prints, and a network that hangs. And when the trainer is killed, that process lives long enough
to put what it was given safely on the disk.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from retrain.config.schema import LoggingConfig

_log = logging.getLogger("retrain")

WANDB_FOLDER = "wandb"
"""In the run's folder; wandb itself calls it so."""
TRACKER_LOG = "tracker.log"
DRAIN_S = 8.0
"""How long the end of a run may wait for the last rows to arrive."""
GRACE_S = 3.0
"""What the process may take on top for its own start and end before it is killed."""
END = b"end\n"

OnRow = Callable[[Mapping[str, Any]], None]


def is_installed() -> bool:
    """Whether `import wandb` would find the package. A folder `wandb`, which the package leaves
    wherever it was used, is none."""
    spec = importlib.util.find_spec("wandb")
    return spec is not None and spec.origin is not None


class WandbTracker:
    """The tracker of one run; does nothing unless the config names a project.

    Used as a context: on leaving it the run has ended and `run.json` says how.
    """

    def __init__(self, logging_config: LoggingConfig, run_dir: Path, name: str) -> None:
        self._wanted = bool(logging_config.wandb_project)
        self._run_dir = run_dir
        self._name = name
        self._process: subprocess.Popen[bytes] | None = None
        self._explained = False

    def start(self) -> None:
        """Begin to follow the run. Its `config.toml`, `run.json` and the rows that it keeps must
        be there."""
        if not self._wanted:
            return
        folder = self._run_dir / WANDB_FOLDER
        try:
            folder.mkdir(exist_ok=True)
            with (folder / TRACKER_LOG).open("ab") as log:
                self._process = subprocess.Popen(
                    [
                        *(sys.executable, "-m", "retrain.tracking.wandb_process"),
                        str(self._run_dir.absolute()),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    # Of the terminal's Ctrl-C it must not hear: the run goes on for a step.
                    start_new_session=True,
                )
            assert self._process.stdout is not None
            os.set_blocking(self._process.stdout.fileno(), False)
        except OSError as error:
            self._lost(str(error))

    def heeded(self, on_row: OnRow | None) -> OnRow:
        """`on_row`, and a look whether the process has something to say. Never waits."""

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
        """Tell the process that the run has ended, and wait for it, but not for long."""
        process = self._process
        if process is None:
            return
        try:
            assert process.stdin is not None
            # It may be gone; then its last words or its exit code say why.
            with contextlib.suppress(OSError):
                process.stdin.write(END)
                process.stdin.close()
            deadline = time.monotonic() + DRAIN_S + GRACE_S
            while self._listen() and time.monotonic() < deadline:
                time.sleep(0.05)
            if self._process is not None:
                self._process = None
                self._lost(f"it took longer than {DRAIN_S + GRACE_S:g} s to take the last rows")
        finally:
            # Also when a second Ctrl-C cuts the wait short.
            if process.poll() is None:
                process.kill()
                process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()

    def _listen(self) -> bool:
        """Pass on what the process has said; whether it is still there."""
        process = self._process
        if process is None:
            return False
        # First whether it has ended, then its words: so none of its last ones is missed.
        code = process.poll()
        assert process.stdout is not None
        said = process.stdout.read() or b""
        # Its last words may come a while before its end.
        self._explained = self._explained or bool(said)
        for line in said.decode(errors="replace").splitlines():
            _log.warning("%s: %s", self._name, line)
        if code is None:
            return True
        self._process = None
        if code and not self._explained:
            log = self._run_dir / WANDB_FOLDER / TRACKER_LOG
            self._lost(f"its process ended with exit code {code}; see {log}")
        return False

    def _lost(self, reason: str) -> None:
        _log.warning("%s: %s", self._name, lost(reason))


def lost(reason: str) -> str:
    """The one warning when tracking ends before the run does."""
    return (
        f"no tracking with Weights & Biases from here on: {reason}. Training is not affected, and "
        "metrics.jsonl has every row"
    )
