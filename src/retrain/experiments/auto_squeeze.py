"""The squeeze of a campaign: of the plan's first run that succeeds, beside the training of others.

It is a process of its own that writes into `squeeze/`; the campaign only looks whether it has
ended and copies the recommendation into `manifest.json`. So it can neither hold up nor fail the
campaign, and one that was lost with the campaign is made again when that is resumed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from rich.console import Console

from retrain.analysis.squeezed import SQUEEZE_FOLDER, read_squeeze
from retrain.causes import ended_words, last_line, log_end
from retrain.experiments.manifest import SQUEEZE_RESULTS, Manifest
from retrain.experiments.paths import shown
from retrain.experiments.signals import StopSignals
from retrain.experiments.workers import thread_environment
from retrain.processes import module_command
from retrain.terminal import say

LOG_FILE = "squeeze.log"
_WITHOUT_ADAPTER = frozenset({"diverged", "failed", "dropped"})
"""How a run may end without an adapter to squeeze."""

Say = Callable[[str], None]


class AutoSqueeze:
    """See the module. Does nothing when the campaign has no `[squeeze]`, or it is done."""

    def __init__(self, manifest: Manifest, say: Say) -> None:
        self._manifest = manifest
        self._say = say
        self._folder = manifest.folder / SQUEEZE_FOLDER
        self._process: subprocess.Popen[bytes] | None = None
        entry = manifest.data.get("squeeze")
        self._wanted = entry is not None and entry["status"] != "done"

    @property
    def running(self) -> bool:
        return self._process is not None

    def look(self) -> None:
        """Start when a run is done, and take what came out; never waits, never raises."""
        try:
            if self._process is not None:
                self._take()
            elif self._wanted:
                self._start()
        except OSError as error:
            self._wanted = False
            self._say(f"squeeze: {error}")

    def wait(self, stopped: Callable[[], bool]) -> None:
        """Until it has ended, or `stopped()`."""
        told = False
        self.look()
        while self.running and not stopped():
            if not told:
                self._say("waiting for the squeeze of the first run")
                told = True
            time.sleep(0.1)
            self.look()

    def close(self) -> None:
        """End it, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            with contextlib.suppress(OSError):
                self._note(status="pending")
            self._say("the squeeze was stopped; the next retrain resume makes it")

    def _start(self) -> None:
        run = self._manifest.data["squeeze"]["run"] or self._first()
        if not run:
            return
        self._wanted = False
        # Half of an earlier one would be taken for this one's.
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        with (self._folder / LOG_FILE).open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *module_command("retrain.experiments.squeeze_process"),
                    *(str(self._manifest.folder), run),
                ],
                # Its end tells the process that the campaign is gone.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=_environment(),
            )
        self._note(status="running", run=run, message="")

    def _first(self) -> str:
        """The plan's first run that succeeded, once those before it are over: which run ends first
        depends on the machine. Empty while that is not known."""
        runs = (r for r in self._manifest.data["runs"] if r["name"] not in self._manifest.left_out)
        run = next((run for run in runs if run["status"] not in _WITHOUT_ADAPTER), None)
        return str(run["name"]) if run and run["status"] == "done" else ""

    def _take(self) -> None:
        process = self._process
        assert process is not None
        code = process.poll()
        entry = self._manifest.data["squeeze"]
        found = read_squeeze(self._manifest.folder)
        if found and entry["recommended_rank"] is None:
            self._note(**{key: found[key] for key in SQUEEZE_RESULTS})
            self._say(
                f"squeeze of {entry['run']}: recommended rank {found['recommended_rank']} of "
                f"{found['source_rank']} (>= {found['min_variance_retention']:.0%} of the variance)"
            )
        if code is None:
            return
        self._process = None
        if code == 0:
            self._note(status="done")
            return
        if code < 0:
            # Nothing is wrong with it: the machine did that.
            message = f"its process {ended_words(code)}"
            self._note(status="pending", message=message)
            self._say(f"squeeze of {entry['run']}: {message}; retrain resume makes it")
            return
        log = self._folder / LOG_FILE
        message = last_line(log_end(log)) or f"its process {ended_words(code)}"
        self._note(status="failed", message=message)
        self._say(f"squeeze of {entry['run']} failed: {message} (log: {shown(log)})")

    def _note(self, **fields: Any) -> None:
        self._manifest.data["squeeze"].update(fields)
        self._manifest.write()


def finish_squeeze(manifest: Manifest, console: Console) -> None:
    """Make what a campaign whose runs are all done still lacks. Ctrl-C ends the waiting."""
    with StopSignals(insist=lambda: None) as signals:
        squeeze = AutoSqueeze(manifest, partial(say, console))
        with contextlib.closing(squeeze):
            squeeze.wait(lambda: signals.stop)


def _environment() -> dict[str, str]:
    return {**os.environ, **thread_environment(1)}
