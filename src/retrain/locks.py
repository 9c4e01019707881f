"""Locks on folders that outlive nothing: the lock of a dead holder is taken over.

A lock is a small file that names its holder. What is assumed of the file system, local or on a
network: making a hard link fails when the name exists (NFS guarantees it; where there are no hard
links, exclusive creation is used), and a rename replaces a file in one instant. `flock` is not
relied on.

Who is dead? On the same machine the process table answers. A holder elsewhere shows that it lives
by touching the file; an observer that sees no change for `STALE_S` seconds of its own monotonic
clock takes it as dead. Clocks of machines are never compared, and may jump.

Two that find the same dead holder cannot both win: who wants to replace its lock must first hold
a second lock, named after the dead holder's token, and look again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from retrain.errors import InputError, RetrainError
from retrain.files import utc_now
from retrain.processes import ProcessId

LOCK_FILE = ".lock"
BEAT_S = 10.0
STALE_S = 60.0
"""A holder on another machine is dead after so long without a sign: six missed beats."""

_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class LockedError(InputError):
    """Somebody else holds the lock. `holder` is None when the file does not say who."""

    def __init__(self, path: Path, holder: ProcessId | None, since: str) -> None:
        self.holder = holder
        self.since = since
        who = str(holder) if holder else "an unknown process"
        super().__init__(f"{path.parent} is in use by {who}, since {since or 'an unknown time'}")


class LockLostError(RetrainError):
    """Another process took the lock over while this one did not answer, or the file is gone."""


@dataclass(frozen=True, slots=True)
class LockContent:
    """What a lock file says, and when it was last touched (in the file system's own time)."""

    token: str
    holder: ProcessId | None
    since: str
    touched_ns: int


def read_lock(path: Path) -> LockContent | None:
    """The content of a lock file; None when there is none.

    A file that cannot be understood (its writer died inside it) has an empty token.
    """
    try:
        touched = path.stat().st_mtime_ns
        text = path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        return LockContent("", None, "", touched)
    since = str(fields.get("since") or "")
    return LockContent(str(fields.get("token") or ""), ProcessId.read(fields), since, touched)


class FolderLock:
    """The right to write into a folder, for one process at a time.

    folder: what is locked; the file is `<folder>/<name>`.
    beat_s, stale_s: see the module; all processes must agree on them.
    """

    def __init__(
        self,
        folder: Path,
        name: str = LOCK_FILE,
        *,
        beat_s: float = BEAT_S,
        stale_s: float = STALE_S,
    ) -> None:
        self.path = folder / name
        self._beat_s = beat_s
        self._stale_s = stale_s
        self._token = uuid.uuid4().hex
        self._since = ""
        self._released = threading.Event()
        self._held = False
        self._lost = False

    def acquire(self, wait_s: float = 0.0, on_wait: Callable[[str], None] = lambda _: None) -> Self:
        """Take the lock, also from a dead holder.

        wait_s: how long to wait for a living holder before LockedError is raised. A holder that
        cannot be seen from here is watched for up to `stale_s` seconds all the same.
        on_wait: is told, once, who is waited for.
        """
        deadline = time.monotonic() + wait_s
        told = False
        while not self._create():
            found = read_lock(self.path)
            if found is None:
                continue
            alive = found.holder.is_alive() if found.holder else None
            if alive is None:
                on_wait(f"{self._holder_text(found)}; watching for {self._stale_s:.0f} s")
                alive = self._shows_life(found)
            if not alive:
                if self._take_over(found):
                    break
                continue
            if time.monotonic() >= deadline:
                raise LockedError(self.path, found.holder, found.since)
            if not told:
                told = True
                on_wait(f"{self._holder_text(found)}; waiting for it")
            time.sleep(0.1)
        self._held = True
        threading.Thread(target=self._beat, name="lock-beat", daemon=True).start()
        return self

    @property
    def lost(self) -> bool:
        """Whether the file was found to be another's, or gone."""
        return self._lost

    def check(self) -> None:
        """Raise LockLostError when another process has taken the lock over, or the file is gone."""
        if self._held and not self._lost:
            self._lost = not self._is_ours()
        if not self._lost:
            return
        folder = self.path.parent
        if not self.path.exists():
            raise LockLostError(f"{self.path} is gone: was {folder} removed or moved?")
        raise LockLostError(
            f"{folder} was taken over by another process while this one did not answer; this one "
            "stops, the other goes on"
        )

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        self._released.set()
        if self._held and self._is_ours():
            with contextlib.suppress(OSError):
                self.path.unlink()
        self._held = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def _holder_text(self, found: LockContent) -> str:
        who = str(found.holder) if found.holder else "an unknown process"
        return f"{self.path.parent} is held by {who} since {found.since or 'an unknown time'}"

    def _content(self) -> bytes:
        self._since = self._since or utc_now()
        fields = {"token": self._token, "since": self._since, **ProcessId.own().fields()}
        return (json.dumps(fields) + "\n").encode()

    @contextlib.contextmanager
    def _aside(self) -> Iterator[Path]:
        """A file with our content, to be linked or renamed into place."""
        aside = self.path.with_name(f"{self.path.name}.{self._token}.new")
        aside.write_bytes(self._content())
        try:
            yield aside
        finally:
            aside.unlink(missing_ok=True)

    def _create(self) -> bool:
        """Whether the lock was free and is ours now."""
        with self._aside() as aside:
            try:
                os.link(aside, self.path)
            except FileExistsError:
                # An NFS server may have done it and its answer may have been lost.
                return self._is_ours()
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
            else:
                return True
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            os.write(descriptor, self._content())
        finally:
            os.close(descriptor)
        return True

    def _take_over(self, dead: LockContent) -> bool:
        """Replace a dead holder's lock; False when another was faster."""
        claim = FolderLock(
            self.path.parent,
            f"{self.path.name}.{dead.token[:12] or 'torn'}",
            beat_s=self._beat_s,
            stale_s=self._stale_s,
        )
        try:
            claim.acquire(wait_s=self._stale_s)
        except LockedError:
            return False
        with claim:
            now = read_lock(self.path)
            if now is None or now.token != dead.token:
                return False
            with self._aside() as aside:
                aside.replace(self.path)
            return True

    def _shows_life(self, found: LockContent) -> bool:
        """Watch a holder that cannot be seen from here."""
        deadline = time.monotonic() + self._stale_s
        while time.monotonic() < deadline:
            time.sleep(min(0.5, self._beat_s / 4))
            if read_lock(self.path) != found:
                return True
        return False

    def _is_ours(self) -> bool:
        try:
            found = read_lock(self.path)
        except OSError:
            return True
        return found is not None and found.token == self._token

    def _beat(self) -> None:
        while not self._released.wait(self._beat_s):
            if not self._is_ours():
                self._lost = True
                return
            with contextlib.suppress(OSError):
                os.utime(self.path)
