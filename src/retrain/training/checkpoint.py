"""Checkpoints: written aside, synced, renamed; verified when read; old ones removed.

A checkpoint is a folder `step_NNNNNN` with the policy's files, `state.json` (what the loop
carries) and `checkpoint.json`, the index: the size and SHA-256 of every other file, the config's
identity, how many rows the run's journals had, and a SHA-256 of all that. None of it depends on
the time, so two runs of one config write the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrain.config.changes import identity
from retrain.config.schema import RunConfig
from retrain.files import atomic_write_json, json_line, library_versions, sync_folder

STATE_FILE = "state.json"
INDEX_FILE = "checkpoint.json"
DAMAGED = "damaged_"
SCHEMA = 1

_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class DamagedCheckpointError(Exception):
    """A checkpoint that cannot be trusted; the message says why."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint, as its index describes it.

    rows:     journal -> rows it had (`metrics.jsonl`: one a step).
    identity: `retrain.config.changes.identity` of the config and the contents it was trained with.
    accuracy: held-out accuracy after `step` steps; None when it was not evaluated there.
    """

    folder: Path
    step: int
    rows: Mapping[str, int]
    identity: Mapping[str, Any]
    accuracy: float | None
    versions: Mapping[str, str]
    files: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        """Read the index. Raises DamagedCheckpointError when there is none, or half of one, and
        OSError when it cannot be read now, which says nothing about the checkpoint."""
        try:
            index = json.loads((folder / INDEX_FILE).read_bytes())
            if index.pop("sha256") != _digest(index):
                raise DamagedCheckpointError(f"{INDEX_FILE} does not match its checksum")
            return cls(
                folder=folder,
                step=int(index["step"]),
                rows=dict(index["rows"]),
                identity=dict(index["identity"]),
                accuracy=index["accuracy"],
                versions=dict(index["versions"]),
                files=dict(index["files"]),
            )
        except _MISSING as error:
            raise DamagedCheckpointError(f"{INDEX_FILE}: {_reason(error)}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedCheckpointError(f"{INDEX_FILE} cannot be read: {error}") from None

    def verify(self) -> None:
        """Raise DamagedCheckpointError unless every file is there as it was written, and OSError
        when one cannot be read now."""
        for name, expected in self.files.items():
            path = self.folder / name
            try:
                size = path.stat().st_size
                if size != expected["bytes"]:
                    message = f"{name} has {size} bytes instead of {expected['bytes']}"
                    raise DamagedCheckpointError(message)
                if _sha256(path) != expected["sha256"]:
                    raise DamagedCheckpointError(f"{name} does not match its checksum")
            except _MISSING as error:
                raise DamagedCheckpointError(f"{name}: {_reason(error)}") from None

    def state(self) -> dict[str, Any]:
        """What the loop carried (`LoopState.state_dict`)."""
        state: dict[str, Any] = json.loads((self.folder / STATE_FILE).read_bytes())
        return state


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """A folder to fill; when the block ends it takes the place of `folder` in one instant.

    A block that fails leaves `folder` as it was.
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        for path in aside.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(aside)
        remove_folder(folder)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_folder(folder.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that nobody meets half of it under its name."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name}.{os.getpid()}.old.tmp")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)


def checkpoint_folders(run_dir: Path) -> list[Path]:
    """The folders of a run's checkpoints by their names, oldest first, damaged ones as well."""
    found = (run_dir / "checkpoints").glob("step_*")
    return sorted((path for path in found if _step_of(path) is not None), key=_order)


class Checkpoints:
    """The checkpoints of one run, `checkpoints/step_NNNNNN/` after N steps.

    Kept are the `keep_last` newest and, with `keep_best`, the one with the best held-out accuracy
    (the earliest of equals). One that was written because the run was asked to stop goes when the
    next one is written: a run that was stopped leaves what one that was not stopped leaves.
    """

    def __init__(
        self, run_dir: Path, config: RunConfig, contents: Mapping[str, str] | None = None
    ) -> None:
        self._run_dir = run_dir
        self._training = config.training
        self._identity = identity(config, contents)

    def due(self, steps_done: int) -> bool:
        """Every `save_every` steps, and at the end."""
        every = self._training.save_every
        if every == 0:
            return False
        return steps_done % every == 0 or steps_done == self._training.max_steps

    @contextmanager
    def saving(
        self,
        steps_done: int,
        state: Mapping[str, Any],
        rows: Mapping[str, int],
        accuracy: float | None,
    ) -> Iterator[Path]:
        """A folder for the policy's files; the state and the index are written beside them."""
        with written_aside(self._run_dir / "checkpoints" / f"step_{steps_done:06d}") as aside:
            yield aside
            atomic_write_json(aside / STATE_FILE, state)
            files = {
                path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
                for path in sorted(aside.iterdir())
            }
            index = {
                "schema": SCHEMA,
                "step": steps_done,
                "rows": dict(rows),
                "accuracy": accuracy,
                "versions": library_versions(),
                "identity": self._identity,
                "files": files,
            }
            atomic_write_json(aside / INDEX_FILE, {**index, "sha256": _digest(index)})
        self.remove_old()

    def remove_old(self, *, finished: bool = False) -> None:
        """Remove what need not be kept; `finished` when no more will be written."""
        folders = checkpoint_folders(self._run_dir)
        regular = [folder for folder in folders if self.due(_order(folder))]
        newest = [] if finished else folders[-1:]
        keep_last = self._training.keep_last or len(regular)
        kept = {*newest, *regular[-keep_last:]}
        if self._training.keep_best and len(regular) > keep_last:
            kept |= _best(regular)
        for folder in folders:
            if folder not in kept:
                remove_folder(folder)
        if finished:
            # One that only a stopped run had must not leave its empty folder.
            with contextlib.suppress(OSError):
                (self._run_dir / "checkpoints").rmdir()


def _best(folders: list[Path]) -> set[Path]:
    found: list[tuple[float, int, Path]] = []
    for folder in folders:
        try:
            checkpoint = Checkpoint.read(folder)
        except DamagedCheckpointError:
            continue
        if checkpoint.accuracy is not None:
            found.append((-checkpoint.accuracy, checkpoint.step, folder))
    return {min(found)[2]} if found else set()


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _step_of(folder: Path) -> int | None:
    digits = folder.name.removeprefix("step_")
    return int(digits) if digits.isdecimal() else None


def _order(folder: Path) -> int:
    return _step_of(folder) or 0


def _digest(index: Mapping[str, Any]) -> str:
    return hashlib.sha256(json_line(index).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
