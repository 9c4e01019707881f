"""Checkpoints: written aside, synced, renamed; old ones removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retrain.files import atomic_write_json, sync_folder

STATE_FILE = "state.json"


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
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_folder(folder.parent)


class Checkpoints:
    """The checkpoints of one run, `checkpoints/step_NNNNNN/` after N steps."""

    def __init__(self, folder: Path, save_every: int, keep_last: int) -> None:
        self.folder = folder
        self._save_every = save_every
        self._keep_last = keep_last

    def due(self, steps_done: int, max_steps: int) -> bool:
        """Every `save_every` steps, and at the end."""
        if self._save_every == 0:
            return False
        return steps_done % self._save_every == 0 or steps_done == max_steps

    @contextmanager
    def saving(self, steps_done: int, state: dict[str, object]) -> Iterator[Path]:
        """A folder for the policy's files; `state` is written beside them."""
        with written_aside(self.folder / f"step_{steps_done:06d}") as aside:
            yield aside
            atomic_write_json(aside / STATE_FILE, state)
        if self._keep_last:
            for old in self.all()[: -self._keep_last]:
                shutil.rmtree(old)

    def all(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(self.folder.glob("step_*"))
