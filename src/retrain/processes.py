"""Which process wrote something, and whether it still lives.

A process id alone says little: ids are given again, other machines and containers have the same
ones. With the machine's boot, the id's namespace and the moment the process was born (in ticks
since that boot, so no clock is asked) the answer is sure, or openly unknown.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class ProcessId:
    """boot, pid_namespace, born: empty or None where the system does not tell (Linux does)."""

    host: str
    pid: int
    boot: str = ""
    pid_namespace: str = ""
    born: int | None = None

    @classmethod
    def own(cls) -> Self:
        """This process."""
        pid = os.getpid()
        stat = _stat(pid)
        return cls(
            socket.gethostname(), pid, _boot(), _pid_namespace(), stat.born if stat else None
        )

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self | None:
        """From the fields of a JSON object; None when they name no process."""
        pid, host, born = fields.get("pid"), fields.get("host"), fields.get("born")
        if not isinstance(pid, int) or pid <= 0 or not isinstance(host, str):
            return None
        boot, namespace = str(fields.get("boot") or ""), str(fields.get("pid_namespace") or "")
        return cls(host, pid, boot, namespace, born if isinstance(born, int) else None)

    def fields(self) -> dict[str, Any]:
        """As fields of a JSON object, for `read`."""
        return asdict(self)

    def is_alive(self) -> bool | None:
        """Whether the process lives; None when it cannot be seen from here."""
        here = (socket.gethostname(), _boot(), _pid_namespace())
        if (self.host, self.boot, self.pid_namespace) != here:
            return None
        if not _exists(self.pid):
            return False
        if self.born is None:
            return True
        stat = _stat(self.pid)
        if stat is None:
            # It went just now; or /proc hides the processes of others, or no file can be opened.
            return None if _exists(self.pid) else False
        return stat.born == self.born and not stat.ended

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def module_command(module: str) -> list[str]:
    """What runs a module of ours as a program of its own.

    -P: a `queue.py` in the current folder must not be taken for Python's. Said for this process
    alone: as a variable of the environment, programs that a plugin starts would inherit it.
    """
    return [sys.executable, "-P", "-m", module]


def signal_when_parent_dies(number: int) -> None:
    """Have the system send this signal to the calling process when the thread that started it is
    gone; it stays so across an exec. Only Linux can do it."""
    if sys.platform != "linux":
        return
    pr_set_pdeathsig = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)


@cache
def _boot() -> str:
    return _text(Path("/proc/sys/kernel/random/boot_id"))


@cache
def _pid_namespace() -> str:
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


@cache
def _proc_is_ours() -> bool:
    """Whether /proc shows our own pid namespace; in some sandboxes it is still the host's."""
    with contextlib.suppress(OSError):
        return Path("/proc/self").readlink().name == str(os.getpid())
    return False


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


@dataclass(frozen=True, slots=True)
class _Stat:
    """born: ticks from boot to the process's start. ended: it only waits to be reaped."""

    born: int
    ended: bool


def _stat(pid: int) -> _Stat | None:
    """What /proc says of a process; None when it says nothing."""
    if not _proc_is_ours():
        return None
    fields = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    if len(fields) < 20:
        return None
    # A killed process is a zombie at once, while a thread of it may still be inside a write.
    threads = int(fields[17])
    return _Stat(int(fields[19]), fields[0] in {"Z", "X"} and threads <= 1)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
