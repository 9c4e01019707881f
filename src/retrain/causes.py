"""Why a run failed: by a fault of its own, or of the machine.

A failure of the machine says nothing about the run, which may be tried again from its last
checkpoint; an error in a reward function would only come again.
"""

from __future__ import annotations

import errno
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
_DISK_TEXT = re.compile(r"no space left|disk quota|read-only file system|\(os error (28|30|122)\)")
_MEMORY_TEXT = re.compile(r"out of memory|can't allocate memory|cannot allocate memory|bad_alloc")


def cause_of(error: BaseException, run_dir: Path) -> str:
    """One of the causes above for an error that ended the run in `run_dir`.

    Looks at the errors behind it too (`raise … from`): what a plugin wraps is still a full disk.
    """
    seen: BaseException | None = error
    while seen is not None:
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
        if error.errno in _DISK_ERRORS or not run_dir.is_dir():
            return DISK
    # Libraries in other languages (torch, safetensors) have only words for it.
    if _DISK_TEXT.search(text):
        return DISK
    if isinstance(error, RuntimeError) and _MEMORY_TEXT.search(text):
        return MEMORY
    return ERROR


def remedy(cause: str, folder: str) -> str:
    """What to do about a failure of the machine before going on; empty when there is nothing."""
    return {
        MEMORY: "take fewer workers ([campaign].max_workers) or smaller steps "
        "([training].micro_batch_tokens)",
        DISK: f"make room, or make {folder} writable again",
        HUNG: "run.log shows where it hung; a longer [campaign].worker_timeout waits longer",
        SERVICE: "see that the service answers",
    }.get(cause, "")
