"""At most so many calls to a service at once, over all processes that share a folder.

A call takes a ticket: a file with the next number, locked as long as its holder lives. The calls
with the lowest numbers are the ones that may go on, so nobody is overtaken, and a holder that dies
loses its lock, and with it its place, at once. There is no server, and no state but the files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

FIRST_LOOK_S = 0.002
"""How often the call that is next in line looks; one further back looks more rarely."""
LAST_LOOK_S = 0.05

PREFIX = "call_"
GATE = "gate"


class Throttle:
    """Slots that processes and threads share.

    folder: where the tickets lie, the same for all that share the slots; made when it is missing.
            None: nothing is throttled, at no cost.
    limit:  calls at the same time. Below 1 raises ValueError.

    The folder has to be on one machine, or on a file system whose `flock` reaches all of them.
    """

    def __init__(self, folder: Path | None, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"max_concurrent must be 1 or more, not {limit}")
        self._folder = folder
        self._limit = limit
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Hold a slot for one call; waits for one, first come, first served."""
        if self._folder is None:
            yield
            return
        with _Ticket(self._folder, self._limit) as ticket:
            while pause := ticket.pause():
                time.sleep(pause)
            yield

    @contextlib.asynccontextmanager
    async def slot_async(self) -> AsyncIterator[None]:
        """`slot` that lets other tasks of this thread go on while it waits."""
        import asyncio

        if self._folder is None:
            yield
            return
        with _Ticket(self._folder, self._limit) as ticket:
            while pause := ticket.pause():
                await asyncio.sleep(pause)
            yield


_own: set[str] = set()
"""Tickets of this process. Some file systems' locks do not keep a process from its own."""
_own_lock = threading.Lock()


class _Ticket:
    """A place in the line, from its creation until the block ends."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit

    def __enter__(self) -> _Ticket:
        with _gate(self._folder):
            self._number = max(_numbers(self._folder), default=-1) + 1
            self._path = _path(self._folder, self._number)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            # Nobody looks while we hold the gate, so it is never seen without its lock.
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            with _own_lock:
                _own.add(str(self._path))
        return self

    def __exit__(self, *_: object) -> None:
        # As soon as the file is gone another call may bear its number.
        with _own_lock:
            _own.discard(str(self._path))
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        os.close(self._descriptor)

    def pause(self) -> float:
        """Seconds until the next look; 0 when the call may go on."""
        with _gate(self._folder):
            ahead = [n for n in _numbers(self._folder) if n < self._number]
            if len(ahead) >= self._limit:
                ahead = [n for n in ahead if self._lives(n)]
        waiting = len(ahead) - self._limit + 1
        return min(LAST_LOOK_S, FIRST_LOOK_S * waiting) if waiting > 0 else 0.0

    def _lives(self, number: int) -> bool:
        """Whether the holder of a ticket is there; the ticket of one that is not is removed."""
        path = _path(self._folder, number)
        with _own_lock:
            if str(path) in _own:
                return True
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            return False
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _gate(folder: Path) -> Iterator[None]:
    """One at a time looks at the tickets and changes them, but for the removal of its own."""
    descriptor = os.open(folder / GATE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _numbers(folder: Path) -> list[int]:
    names = os.listdir(folder)  # noqa: PTH208 (half of what a Path for each of them takes)
    return [int(name[len(PREFIX) :]) for name in names if name.startswith(PREFIX)]


def _path(folder: Path, number: int) -> Path:
    return folder / f"{PREFIX}{number:09d}"
