"""Locks on folders that outlive nothing: the lock of a dead holder is taken over.

A lock is a small file that names its holder. What is assumed of the file system, local or on a
network: making a hard link fails when the name exists (NFS guarantees it; where there are no hard
links, exclusive creation is used), a rename replaces a file in one instant, and who opens a file
sees what was last written. `flock` is not relied on.

Who is dead? On the same machine the process table answers. A holder elsewhere shows that it lives
by touching the file; an observer that looks for `STALE_S` seconds and sees no change takes it as
dead. Clocks of machines are never compared, and may jump.

Two that find the same dead holder cannot both win: who wants to replace its lock must first hold
a second lock, named after the dead holder's token, and look again.

What no lock can do: a process that was stopped for longer than `STALE_S`, and was given up on by
another machine, goes on where it was when it wakes. It must `check` before it writes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from retrain.errors import InputError, RetrainError
from retrain.files import utc_now
from retrain.processes import ProcessId

LOCK_FILE = ".lock"
BEAT_S = 10.0
STALE_S = 60.0
"""A holder on another machine is dead after so long without a sign: six missed beats."""

_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_TOKEN = re.compile(r"[0-9a-f]{32}")
_BESIDE = r"(?=\.)(\.[0-9a-f]{12})*(\.[0-9a-f]{32}\.new)?"
"""What follows a lock's name in those of claims on it, and of files that are set aside."""


class LockedError(InputError):
    """Somebody else holds the lock. `holder` is None when the file does not say who."""

    def __init__(self, path: Path, holder: ProcessId | None, since: str) -> None:
        self.holder, self.since = holder, since
        who = holder or "an unknown process"
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
    for attempt in range(3):
        try:
            # Opened first: NFS may answer a bare stat from a cache that is a minute old.
            with path.open("rb") as file:
                touched, data = os.fstat(file.fileno()).st_mtime_ns, file.read()
            break
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno != errno.ESTALE or attempt == 2:  # NFS: replaced while it was read.
                raise
    fields = None
    with contextlib.suppress(ValueError, RecursionError):
        fields = json.loads(data)
    fields = fields if isinstance(fields, dict) else {}
    token, since = str(fields.get("token") or ""), str(fields.get("since") or "")
    token = token if _TOKEN.fullmatch(token) else ""
    return LockContent(token, ProcessId.read(fields), since, touched)


class FolderLock:
    """The right to write into a folder, for one process at a time.

    folder: what is locked; the file is `<folder>/<name>`.
    beat_s, stale_s: see the module; all processes must agree on them.

    A forked child has no part in its parent's lock: there `release` does nothing.
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
        self._beat_s, self._stale_s = beat_s, stale_s
        self._token = self._since = ""
        self._owner: int | None = None
        self._released = threading.Event()
        self._lost = False

    def acquire(self, wait_s: float = 0.0, on_wait: Callable[[str], None] = lambda _: None) -> Self:
        """Take the lock, also from a dead holder. Raises OSError when the folder does not let us.

        wait_s: how long to wait for a living holder before LockedError is raised. A holder that
        cannot be seen from here is watched for up to `stale_s` seconds all the same.
        on_wait: is told, once, who is waited for.
        """
        if self._owner == os.getpid():
            raise RuntimeError(f"{self.path} is held already")
        # A token names one time of holding: neither a forked child nor a second time shares it.
        self._token, self._since = uuid.uuid4().hex, utc_now()
        self._owner, self._released, self._lost = os.getpid(), threading.Event(), False
        try:
            self._take(time.monotonic() + wait_s, on_wait)
            threading.Thread(target=self._beat, args=(self._released,), daemon=True).start()
            self._remove_left_overs()
        except BaseException:
            self.release()
            raise
        return self

    @property
    def lost(self) -> bool:
        """Whether the file was found to be another's, or gone."""
        return self._lost

    def check(self) -> None:
        """Raise LockLostError when another process has taken the lock over, or the file is gone."""
        if self._owner is not None and not self._lost:
            with contextlib.suppress(OSError):
                self._lost = not self._is_ours()
        if not self._lost:
            return
        if not self.path.exists():
            raise LockLostError(f"{self.path} is gone: was its folder removed or moved?")
        what = "was taken over by another process while this one did not answer"
        raise LockLostError(f"{self.path.parent} {what}; this one stops, the other goes on")

    def release(self) -> None:
        """Give the lock back; harmless when it is not held, or is another's by now."""
        if self._owner != os.getpid():
            return
        self._owner = None
        self._released.set()
        with contextlib.suppress(OSError):
            if self._is_ours():
                self.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _take(self, deadline: float, on_wait: Callable[[str], None]) -> None:
        told = False
        while True:
            found = read_lock(self.path)
            if found is None:
                if self._create():
                    return
                # Another was faster; or the name is there and nothing behind it, as of a link.
                if time.monotonic() >= deadline + self._stale_s:
                    raise LockedError(self.path, None, "")
                time.sleep(0.01)
                continue
            alive = found.holder.is_alive() if found.holder else None
            if not told and (alive is None or (alive and time.monotonic() < deadline)):
                told = True
                what = "waiting for it" if alive else f"watching it for {self._stale_s:.0f} s"
                on_wait(f"{LockedError(self.path, found.holder, found.since)}; {what}")
            if alive is None:
                now = self._watch(found)
                if now is None or now.token != found.token:
                    continue
                alive = now != found
            if not alive:
                if self._take_over(found, deadline):
                    return
                continue
            if time.monotonic() >= deadline:
                raise LockedError(self.path, found.holder, found.since)
            time.sleep(0.1)

    def _create(self) -> bool:
        """Whether the lock was free and is ours now."""
        with self._aside() as aside:
            try:
                os.link(aside, self.path)
                return True
            except (FileExistsError, FileNotFoundError):
                # An NFS server may have done it and its answer may have been lost.
                return self._is_ours()
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(self._content())
        except BaseException:
            self.path.unlink(missing_ok=True)
            raise
        # Stopped before it wrote, this process may be too late: the empty file was replaced.
        return self._is_ours()

    def _take_over(self, dead: LockContent, deadline: float) -> bool:
        """Replace a dead holder's lock; False when it is not that lock any more.

        Raises LockedError when another process is at it and does not get done: it may be stopped.
        """
        key = dead.token[:12] or f"{dead.touched_ns & (1 << 48) - 1:012x}"
        patience = max(self._beat_s, deadline - time.monotonic())
        beats = {"beat_s": self._beat_s, "stale_s": self._stale_s}
        claim = FolderLock(self.path.parent, f"{self.path.name}.{key}", **beats)
        with claim.acquire(patience), self._aside() as aside:
            if read_lock(self.path) != dead:
                return False
            # The file aside may be gone: moved, and NFS lost the answer, or cleared away.
            with contextlib.suppress(FileNotFoundError):
                aside.replace(self.path)
            return self._is_ours()

    def _watch(self, found: LockContent) -> LockContent | None:
        """What the file says as soon as it changes, or after `stale_s` seconds."""
        pause = min(0.5, self._beat_s / 4)
        # Looks are counted, not time: while this process or the file server slept, nobody looked.
        for _ in range(math.ceil(self._stale_s / pause)):
            time.sleep(pause)
            now = read_lock(self.path)
            if now != found:
                return now
        return found

    def _beat(self, released: threading.Event) -> None:
        while not released.wait(self._beat_s):
            with contextlib.suppress(OSError):
                if self._is_ours():
                    os.utime(self.path)
                else:
                    self._lost = not released.is_set()
                    return

    def _is_ours(self) -> bool:
        found = read_lock(self.path)
        return found is not None and found.token == self._token

    def _content(self) -> bytes:
        fields = {"token": self._token, "since": self._since, **ProcessId.own().fields()}
        return (json.dumps(fields) + "\n").encode()

    @contextlib.contextmanager
    def _aside(self) -> Iterator[Path]:
        """A file with our content, to be linked or renamed into place."""
        aside = self.path.with_name(f"{self.path.name}.{self._token}.new")
        try:
            aside.write_bytes(self._content())
            yield aside
        finally:
            with contextlib.suppress(OSError):
                aside.unlink()

    def _remove_left_overs(self) -> None:
        """Remove what killed contenders left: claims on earlier holders, and files set aside.

        A process on another machine may live, and miss its file: it looks again, and sees us.
        """
        own = f"{self.path.name}.{self._token[:12]}"
        beside = re.escape(self.path.name) + _BESIDE
        with contextlib.suppress(OSError):
            for path in list(self.path.parent.iterdir()):
                if re.fullmatch(beside, path.name) and not path.name.startswith(own):
                    left = read_lock(path)
                    if left and not (left.holder and left.holder.is_alive()):
                        path.unlink(missing_ok=True)
