"""Why a run failed: by a fault of its own, or of the machine.

A failure of the machine says nothing about the run, which may be tried again from its last
checkpoint; an error in a reward function would only come again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
from pathlib import Path

from retrain.errors import RetrainError
from retrain.locks import LockedError, LockLostError

KILLED = "killed"
HUNG = "hung"
MEMORY = "out of memory"
DISK = "disk"
SERVICE = "lost service"
WORKER = "no worker"
LIMIT = "limit"
LOCK = "lost lock"
ERROR = "error"

INFRASTRUCTURE = frozenset({KILLED, HUNG, MEMORY, DISK, SERVICE, WORKER, LIMIT, LOCK})
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
_LIMIT_ERRORS = {errno.EMFILE, errno.ENFILE, errno.EAGAIN}
_LIMIT_TEXT = re.compile(
    r"can't start new thread|resource temporarily unavailable|too many open files"
    r"|pthread_create failed|failed to map segment|\(os error (11|23|24)\)"
)
_USUAL_CAUSES: dict[int, str] = {
    signal.SIGKILL: "; the usual cause is too little memory: take fewer workers "
    "([campaign].max_workers) or smaller steps ([training].micro_batch_tokens)",
    signal.SIGBUS: "; the usual cause is a full disk or too little shared memory",
}
_LOG_END_BYTES = 16_384
_MEMORY_TEXT = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|bad_alloc|memoryerror"
)


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
    if isinstance(error, LockedError | LockLostError):
        return LOCK if _is_there(run_dir) else DISK
    text = str(error).lower()
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return MEMORY
    if isinstance(error, ConnectionError | TimeoutError):
        return SERVICE
    if isinstance(error, OSError):
        if error.errno == errno.ENOMEM:
            return MEMORY
        if error.errno in _LIMIT_ERRORS:
            return LIMIT
        if error.errno in _DISK_ERRORS or not _is_there(run_dir):
            return DISK
        names = (error.filename, error.filename2)
        if error.errno in _DENIED and any(_is_inside(name, run_dir) for name in names):
            return DISK
    # Libraries in other languages (torch, safetensors) have only words for it.
    if _DISK_TEXT.search(text):
        return DISK
    if (isinstance(error, RuntimeError) or _is_panic(error)) and _LIMIT_TEXT.search(text):
        return LIMIT
    if isinstance(error, RuntimeError) and _MEMORY_TEXT.search(text):
        return MEMORY
    return ERROR


def _is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust gave up; its class is found nowhere but in the error."""
    return type(error).__name__ == "PanicException"


def describe(error: BaseException) -> str:
    """An error in one line: our own as they are, others with their class."""
    text = " ".join(str(error).split())
    if isinstance(error, RetrainError):
        return text
    if isinstance(error, SystemExit):
        return f"the run called sys.exit({error.code!r})"
    if _is_panic(error):
        return f"the native library {_library(error)} panicked: {text}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _library(error: BaseException) -> str:
    """Of those that panic, only tokenizers has a pool of threads; else who called it is told."""
    if "ThreadPool" in str(error):
        return "tokenizers"
    caller, trace = "", error.__traceback__
    while trace is not None:
        caller, trace = str(trace.tb_frame.f_globals.get("__name__")), trace.tb_next
    return f"that {caller.partition('.')[0]} called"


def ended_words(code: int) -> str:
    """How a process ended that should not have, and the usual cause."""
    if code >= 0:
        return f"ended with exit code {code} in the middle of its work"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        return f"was killed by signal {-code}"
    return f"was killed by {name}" + _USUAL_CAUSES.get(-code, "")


def machine_words(log: str) -> tuple[str, str]:
    """(cause, what a native library wrote before it ended its process, with the library's name).

    Both are empty where the end of a log tells of no limit of the machine.
    """
    texts = (_LIMIT_TEXT, _MEMORY_TEXT)
    lines = [line for line in log.splitlines() if any(t.search(line.lower()) for t in texts)]
    if not lines:
        return "", ""
    words = " ".join(lines[-1].split())
    cause = LIMIT if _LIMIT_TEXT.search(words.lower()) else MEMORY
    # As faulthandler writes it, the innermost frame first.
    library = re.search(r"Current thread.*?site-packages[/\\](\w+)", log, re.DOTALL)
    return cause, f"{words} (in {library[1]})" if library else words


def log_end(log: Path) -> str:
    """The last few thousand characters of a log; empty when it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_END_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def last_line(log: str) -> str:
    """The last line that is not empty."""
    return next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")


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
        LIMIT: "raise the limits of this account (ulimit -n for open files, -u for processes and "
        "threads, -v for memory), or take fewer workers ([campaign].max_workers)",
        LOCK: f"see what else trains there: retrain status {folder}",
    }.get(cause, "")


def hindrance(error: OSError, folder: Path, name: str) -> str:
    """What keeps work in a folder, called `name`, from going on, and the remedy."""
    cause = cause_of(error, folder)
    what = "cannot be written any more" if cause == DISK else "cannot be worked on"
    reason = str(error) if error.filename and cause != DISK else error.strerror or str(error)
    return "; ".join(filter(None, [f"{name} {what}: {reason}", remedy(cause, name)]))
