"""What a run's tracker was given so far: `<run>/<tracker>/retrain.json`."""

from __future__ import annotations

import contextlib
import fcntl
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from retrain.files import atomic_write_json

STATE_FILE = "retrain.json"
TRACKER_LOG = "tracker.log"
"""What the tracker prints; also what is locked while a process sends to it."""
SCRATCH_FOLDER = "tmp"


@dataclass(slots=True)
class State:
    """Which run of the tracker this is, and what it has.

    id:       the tracker's id of the run.
    steps:    how many it was handed.
    parcels:  name -> where it went (`online`, `offline`, `local`), of files that arrived.
    sent:     how the run stood when all of it had arrived: its status, steps and mode; or nothing.
    problem:  why the last attempt to send it gave up; empty when it did not.
    others:   the same of the projects that it was tracked in before.
    """

    id: str
    project: str
    entity: str
    steps: int = 0
    parcels: dict[str, str] = field(default_factory=dict)
    sent: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    others: list[State] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> State | None:
        """The file as it is; None without one, or when it cannot be understood."""
        try:
            return msgspec.json.decode((folder / STATE_FILE).read_bytes(), type=cls)
        except (OSError, ValueError, RecursionError):
            return None

    @classmethod
    def of(cls, folder: Path, project: str, entity: str, *, again: bool = False) -> State:
        """The state in this project, else a new one. A run in another project, or somebody else's,
        is another run.

        again: a new run even so.
        """
        old = cls.read(folder)
        known = [] if old is None else [old, *old.others]
        same = [state for state in known if (state.project, state.entity) == (project, entity)]
        new = cls(secrets.token_hex(4), project, entity)
        state = same[0] if same and not again else new
        rest = [
            other
            for other in known
            if (other.project, other.entity) != (state.project, state.entity)
        ]
        state.others = [replace(other, others=[]) for other in rest]
        return state

    def write(self, folder: Path) -> None:
        atomic_write_json(folder / STATE_FILE, asdict(self))

    def has_parcel(self, name: str, mode: str) -> bool:
        """What is online, or where it is wanted, need not be sent."""
        return self.parcels.get(name) in {mode, "online"}

    def is_sent(self, status: str, steps: int, mode: str) -> bool:
        """Whether all of a run that stands so has arrived there, or better: online."""
        same = (self.sent.get("status"), self.sent.get("steps")) == (status, steps)
        return same and self.sent.get("mode") in {mode, "online"}


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The only process that sends this run to this tracker; waits for another one to end.

    What the tracker's library puts aside lies in a folder here: it would stay behind when the
    process is killed, and so the next one removes it.
    """
    scratch = folder.absolute() / SCRATCH_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / TRACKER_LOG).open("ab") as lock:
        # The process of an attempt that was killed may still be finishing.
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        # Not TMPDIR, which the library's own programs would take for their sockets: those have
        # short names only.
        tempfile.tempdir = str(scratch)
        try:
            yield
        finally:
            tempfile.tempdir = None
            shutil.rmtree(scratch, ignore_errors=True)


def is_busy(folder: Path) -> bool:
    """Whether a process is sending this run to this tracker now."""
    with contextlib.suppress(FileNotFoundError), (folder / TRACKER_LOG).open("r") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
