"""Waiting, at the end of a campaign or a single run, for files that trackers still send."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from retrain.tracking.state import State, is_busy
from retrain.tracking.trackers import TRACKERS
from retrain.tracking.words import UPLOAD_S

Say = Callable[[str], None]


def wait_for_uploads(
    run_dirs: Iterable[Path], say: Say, stopped: Callable[[], bool] = lambda: False
) -> None:
    """Until nothing of these runs, which have ended, is sent any more, or `stopped()`.

    The processes that send them end by themselves after `UPLOAD_S` seconds at most. Says what is
    waited for, and what could not be sent.
    """
    busy = [
        (run_dir, tracker)
        for run_dir in run_dirs
        for tracker in TRACKERS.values()
        if is_busy(run_dir / tracker.name)
    ]
    waited = list(busy)
    deadline = time.monotonic() + UPLOAD_S
    if busy:
        what = f"{len(busy)} runs" if len(busy) > 1 else busy[0][0].name
        say(
            f"waiting for the files of {what} to be uploaded, for {UPLOAD_S / 60:.0f} min at most; "
            "Ctrl-C leaves them to go on in the background"
        )
    while busy and not stopped() and time.monotonic() < deadline:
        time.sleep(0.1)
        busy = [(run_dir, tracker) for run_dir, tracker in busy if is_busy(run_dir / tracker.name)]
    for run_dir, tracker in waited:
        state = None if (run_dir, tracker) in busy else State.read(run_dir / tracker.name)
        if state is not None and state.problem:
            remedy = f"retrain sync {shlex.quote(str(run_dir))}"
            said = state.problem if remedy in state.problem else f"{state.problem}; {remedy}"
            say(f"{run_dir.name}: {tracker.title}: {said}")
