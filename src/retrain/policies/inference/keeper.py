"""Runs a server, and leaves nothing of it behind, however its end comes about.

    python -m retrain.policies.inference.keeper COMMAND…

The command gets a process group of its own. When it ends, or standard input does (who started this
is gone), whatever is left of the group is ended too: a server's engines are processes that hold a
GPU's memory. The exit code is the command's; 128 + n when signal n ended it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from retrain.processes import signal_when_parent_dies

POLL_S = 0.2
GRACE_S = 10.0
"""How long a server may take to end in order."""


def keep(command: list[str]) -> int:
    """Run the command until it ends, or standard input does."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: asked.append(number))
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_go_with_the_keeper,
    )
    while not (_has_ended(child) or asked or _input_has_ended()):
        pass
    _end(child)
    code = child.wait()
    return code if code >= 0 else 128 - code


def _go_with_the_keeper() -> None:
    """Should the keeper itself be killed, nobody would be left to end the server."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal_when_parent_dies(signal.SIGTERM)


def _input_has_ended() -> bool:
    """Looked for up to `POLL_S` seconds."""
    ready, _, _ = select.select([0], [], [], POLL_S)
    return bool(ready) and not os.read(0, 1)


def _has_ended(child: subprocess.Popen[bytes]) -> bool:
    """It is not reaped, so that the group's number stays taken."""
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, child.pid, options) is not None


def _end(child: subprocess.Popen[bytes]) -> None:
    """After the server and its engines, helper processes of Python's end by themselves, which take
    away the memory that these have shared."""
    _signal(child, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while not (_has_ended(child) and _is_empty(child.pid)) and time.monotonic() < deadline:
        time.sleep(POLL_S / 4)
    _signal(child, signal.SIGKILL)


def _is_empty(group: int) -> bool:
    """Whether no process of the group is alive, as far as can be known."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name before may hold anything, also brackets.
            state, _, its_group = stat.read_text(errors="replace").rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                return False
    return True


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


if __name__ == "__main__":
    raise SystemExit(keep(sys.argv[1:]))
