"""Why a run failed: by a fault of its own, or of the machine.

A failure of the machine says nothing about the run, which may be tried again from its last
checkpoint; an error in a reward function would only come again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path

KILLED = "killed"
HUNG = "hung"
MEMORY = "out of memory"
DISK = "disk"
SERVICE = "lost service"
WORKER = "no worker"
ERROR = "error"

INFRASTRUCTURE = frozenset({KILLED, HUNG, MEMORY, DISK, SERVICE, WORKER})
"""Causes after which a run is worth another try as it is."""

_DISK_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EROFS,
    errno.ESTALE,
    errno.ENODEV,
    errno.ENXIO,
    errno.EFBIG,
}
_DENIED = {errno.EACCES, errno.EPERM}
_DISK_TEXT = re.compile(
    r"no space left|disk quota|read-only file system|\(os error (5|27|28|30|116|122)\)"
)
_MEMORY_TEXT = re.compile(r"out of memory|can't allocate memory|cannot allocate memory|bad_alloc")


def cause_of(error: BaseException, run_dir: Path) -> str:
    """One of the causes above for an error that ended the run in `run_dir`.

    Looks at the errors behind it too (`raise … from`): what a plugin wraps is still a full disk.
    """
    seen: BaseException | None = error
    known: set[int] = set()
    while seen is not None and id(seen) not in known:
        known.add(id(seen))
        if (cause := _cause_of_one(seen, run_dir)) != ERROR:
            return cause
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return ERROR


def _cause_of_one(error: BaseException, run_dir: Path) -> str:
    text = str(error).lower()
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return MEMORY
    if isinstance(error, ConnectionError | TimeoutError):
        return SERVICE
    if isinstance(error, OSError):
        if error.errno == errno.ENOMEM:
            return MEMORY
        if error.errno in _DISK_ERRORS or not _is_there(run_dir):
            return DISK
        names = (error.filename, error.filename2)
        if error.errno in _DENIED and any(_is_inside(name, run_dir) for name in names):
            return DISK
    # Libraries in other languages (torch, safetensors) have only words for it.
    if _DISK_TEXT.search(text):
        return DISK
    if isinstance(error, RuntimeError) and _MEMORY_TEXT.search(text):
        return MEMORY
    return ERROR


def _is_there(run_dir: Path) -> bool:
    try:
        return run_dir.is_dir()
    except OSError:
        return False


def _is_inside(name: object, run_dir: Path) -> bool:
    """Whether what an OSError names lies in the run's folder, by its name or behind links."""
    if not isinstance(name, str | bytes | os.PathLike):
        return False
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        path = Path(os.fsdecode(name))
        by_name = path.absolute().is_relative_to(run_dir.absolute())
        return by_name or path.resolve().is_relative_to(run_dir.resolve())
    return False


def remedy(cause: str, folder: str) -> str:
    """What to do about a failure of the machine before going on; empty when there is nothing."""
    return {
        MEMORY: "take fewer workers ([campaign].max_workers) or smaller steps "
        "([training].micro_batch_tokens)",
        DISK: f"make room, or make {folder} writable again",
        HUNG: "run.log shows where it hung; a longer [campaign].worker_timeout waits longer",
        SERVICE: "see that the service answers",
    }.get(cause, "")
