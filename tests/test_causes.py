"""Why a run failed: what the machine did to it is told from its own errors."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from urllib.error import URLError

import pytest

from retrain import causes
from retrain.causes import (
    DISK,
    ERROR,
    INFRASTRUCTURE,
    LIMIT,
    LOCK,
    MEMORY,
    SERVICE,
    cause_of,
    describe,
    hindrance,
    machine_words,
    remedy,
)
from retrain.errors import InputError, RetrainError
from retrain.locks import LockedError, LockLostError


class OutOfMemoryError(RuntimeError):
    """Like torch's: a RuntimeError that is known by its name."""


class SafetensorError(Exception):
    """Like safetensors': it has no errno, only words."""


class PanicException(BaseException):
    """Like that of libraries written in Rust: no Exception, and known by its name."""


PANIC = (
    "The global thread pool has not been initialized.: ThreadPoolBuildError { kind: IOError(Os "
    '{ code: 11, kind: WouldBlock, message: "Resource temporarily unavailable" }) }'
)


def os_error(number: int, filename: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), filename)


ERRORS: dict[str, tuple[BaseException, str]] = {
    "python's memory": (MemoryError(), MEMORY),
    "the system's memory": (os_error(errno.ENOMEM), MEMORY),
    "the device's memory": (OutOfMemoryError("CUDA out of memory. Tried to allocate"), MEMORY),
    "torch's memory": (RuntimeError("DefaultCPUAllocator: can't allocate memory"), MEMORY),
    "an older CUDA's memory": (RuntimeError("CUDA error: out of memory"), MEMORY),
    "C++'s memory": (RuntimeError("std::bad_alloc"), MEMORY),
    "words about memory": (ValueError("the plot is out of memory lane"), ERROR),
    "disk full": (os_error(errno.ENOSPC), DISK),
    "quota": (os_error(errno.EDQUOT), DISK),
    "broken disk": (os_error(errno.EIO), DISK),
    "read-only": (os_error(errno.EROFS, "/anywhere"), DISK),
    "lost mount": (os_error(errno.ESTALE), DISK),
    "too large": (os_error(errno.EFBIG), DISK),
    "safetensors, disk full": (
        SafetensorError("Error while serializing: I/O error: (os error 28)"),
        DISK,
    ),
    "safetensors, quota": (SafetensorError("I/O error: Disk quota exceeded (os error 122)"), DISK),
    "safetensors, another": (SafetensorError("I/O error: Not found (os error 2)"), ERROR),
    "safetensors, a longer number": (SafetensorError("I/O error: (os error 280)"), ERROR),
    "torch, disk full": (RuntimeError("write failed: No space left on device"), DISK),
    "refused": (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), SERVICE),
    "reset": (ConnectionResetError(), SERVICE),
    "broken pipe": (os_error(errno.EPIPE), SERVICE),
    "timeout": (TimeoutError("timed out"), SERVICE),
    "the system's timeout": (os_error(errno.ETIMEDOUT), SERVICE),
    "no such file": (FileNotFoundError(errno.ENOENT, "No such file", "/data/x.jsonl"), ERROR),
    "no descriptors": (os_error(errno.EMFILE), LIMIT),
    "no descriptors anywhere": (os_error(errno.ENFILE), LIMIT),
    "no processes": (os_error(errno.EAGAIN), LIMIT),
    "no threads": (RuntimeError("can't start new thread"), LIMIT),
    "no threads, in Rust": (PanicException(PANIC), LIMIT),
    "another panic": (PanicException("called `Option::unwrap()` on a `None` value"), ERROR),
    "words about files": (ValueError("too many open files in my list"), ERROR),
    "a lost lock": (LockLostError("run/.lock is gone"), LOCK),
    "a lock of another": (LockedError(Path("run/.lock"), None, ""), LOCK),
    "no errno": (OSError("a plugin's words"), ERROR),
    "denied, nothing named": (os_error(errno.EACCES), ERROR),
    "denied, by number": (PermissionError(errno.EPERM, "Not permitted", 3), ERROR),
    "a plugin's": (ValueError("this reward is broken"), ERROR),
    "the user's": (InputError("no such task"), ERROR),
    "ours": (RetrainError("something"), ERROR),
    "assertion": (AssertionError(), ERROR),
    "interrupt": (KeyboardInterrupt(), ERROR),
    "exit": (SystemExit(3), ERROR),
}


@pytest.mark.parametrize("name", ERRORS)
def test_the_cause_of_an_error(tmp_path: Path, name: str) -> None:
    error, cause = ERRORS[name]
    assert cause_of(error, tmp_path) == cause


def fail(error: Exception) -> None:
    raise error


def raised(outer: Exception, inner: Exception, how: str) -> Exception:
    try:
        try:
            raise inner
        except Exception as caught:
            if how != "while handling":
                raise outer from (caught if how == "from" else None)
            fail(outer)
    except Exception as caught:
        return caught
    return outer


@pytest.mark.parametrize(
    ("how", "cause"), [("from", SERVICE), ("while handling", SERVICE), ("from none", ERROR)]
)
def test_errors_behind_an_error_count(tmp_path: Path, how: str, cause: str) -> None:
    error = raised(ValueError("no score"), ConnectionError("gone"), how)
    assert cause_of(error, tmp_path) == cause
    twice = raised(RetrainError("the run failed"), error, "from")
    assert cause_of(twice, tmp_path) == cause


def test_the_outer_error_counts_first(tmp_path: Path) -> None:
    error = raised(os_error(errno.ENOSPC), ConnectionError("gone"), "from")
    assert cause_of(error, tmp_path) == DISK


def test_a_urllib_error_names_its_reason(tmp_path: Path) -> None:
    error = raised(URLError(ConnectionRefusedError()), ConnectionRefusedError(), "while handling")
    assert cause_of(error, tmp_path) == SERVICE


def test_errors_that_lie_behind_each_other_have_an_end(tmp_path: Path) -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert cause_of(one, tmp_path) == ERROR


def test_a_run_folder_that_is_gone_is_a_matter_of_the_disk(tmp_path: Path) -> None:
    missing = FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "run" / "x"))
    assert cause_of(missing, tmp_path) == ERROR
    assert cause_of(missing, tmp_path / "run") == DISK
    assert cause_of(ValueError("a reward's"), tmp_path / "run") == ERROR
    (tmp_path / "run").touch()
    assert cause_of(missing, tmp_path / "run") == DISK


def test_a_run_folder_that_must_not_be_looked_at_is_a_matter_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> bool:
        raise os_error(errno.EACCES, str(path))

    monkeypatch.setattr(Path, "is_dir", denied)
    assert cause_of(os_error(errno.EACCES), tmp_path) == DISK


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_denied_in_the_runs_folder_is_a_matter_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    run_dir, other = tmp_path / "run", tmp_path / "run2"
    run_dir.mkdir()
    other.mkdir()
    (tmp_path / "link").symlink_to(run_dir)
    (run_dir / "checkpoints").symlink_to(other)
    monkeypatch.chdir(tmp_path)
    words = os.strerror(number)

    def cause(name: object, name2: object = None, folder: Path = run_dir) -> str:
        return cause_of(OSError(number, words, name, None, name2), folder)

    inside = run_dir / "metrics.jsonl"
    assert cause(str(inside)) == DISK
    assert cause(inside) == DISK
    assert cause(os.fsencode(inside)) == DISK
    assert cause(str(run_dir)) == DISK
    assert cause("run/metrics.jsonl") == DISK
    assert cause(str(inside), folder=Path("run")) == DISK
    assert cause(str(run_dir / "not" / "there")) == DISK
    assert cause(str(tmp_path / "link" / "x")) == DISK, "the same folder by another name"
    assert cause(str(run_dir / "checkpoints" / "x")) == DISK, "kept elsewhere, still the run's"
    assert cause("/data/x", str(inside)) == DISK, "the target of a rename"
    for outside in (str(tmp_path), str(other / "x"), "/data/x", "metrics.jsonl", 3, None, "\0"):
        assert cause(outside) == ERROR


def test_other_errors_in_the_runs_folder_are_not_its_disks(tmp_path: Path) -> None:
    for number in (errno.ENOENT, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY):
        assert cause_of(os_error(number, str(tmp_path / "x")), tmp_path) == ERROR


def test_only_an_error_of_the_run_is_not_tried_again() -> None:
    named = {
        value for name, value in vars(causes).items() if name.isupper() and isinstance(value, str)
    }
    assert named - INFRASTRUCTURE == {ERROR}
    assert named >= INFRASTRUCTURE


def test_remedies() -> None:
    assert remedy(DISK, "logs/campaign_1") == "make room, or make logs/campaign_1 writable again"
    assert remedy(ERROR, "logs") == remedy("unheard of", "logs") == ""
    for cause in (MEMORY, causes.HUNG, SERVICE, LIMIT, LOCK):
        assert remedy(cause, "logs")


def test_a_panic_is_told_with_the_library(tmp_path: Path) -> None:
    assert describe(PanicException(PANIC)).startswith("the native library tokenizers panicked: The")
    told = describe(raised_panic())
    assert told == "the native library that tests called panicked: no tensor"


def raised_panic() -> BaseException:
    try:
        raise PanicException("no tensor")
    except PanicException as error:
        return error


def test_what_a_native_library_wrote_before_it_ended_the_process() -> None:
    line = "libgomp: Thread creation failed: Resource temporarily unavailable"
    assert machine_words(f"step 3\n{line}\nFatal Python error: Aborted\n") == (LIMIT, line)
    assert machine_words("step 3\nFatal Python error: Aborted\n") == ("", "")
    frames = 'Current thread 0x7f (most recent call first):\n  File "<frozen importlib>"\n'
    frames += '  File "/lib/site-packages/torch/__init__.py", line 4\n'
    frames += '  File "/lib/site-packages/typer/main.py", line 4\n'
    aborted = f"terminate called\n  what():  std::bad_alloc\nFatal Python error\n\n{frames}"
    assert machine_words(aborted) == (MEMORY, "what(): std::bad_alloc (in torch)")


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "logs cannot be written any more: No space left on device; make room, or"),
        (errno.EMFILE, "logs cannot be worked on: Too many open files; raise the limits of"),
        (errno.EAGAIN, "logs cannot be worked on: Resource temporarily unavailable; raise the"),
        (errno.ENOMEM, "logs cannot be worked on: Cannot allocate memory; take fewer workers"),
        (errno.ENOENT, "logs cannot be worked on: No such file or directory"),
    ],
)
def test_only_a_full_disk_asks_for_room(tmp_path: Path, number: int, told: str) -> None:
    assert hindrance(os_error(number), tmp_path, "logs").startswith(told)
