"""The trackers that `[logging].trackers` may name, and what each has to offer.

A new one is a module with `open_run`, a line in `TRACKERS`, and its name in the type of that key.
Nothing of a tracker's own package is imported here: that happens in a process of its own.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from retrain.config.schema import LoggingConfig
from retrain.config.tracking_checks import TITLES

LONGEST_TAG = 64

Mode = Literal["online", "offline"]


@dataclass(frozen=True, slots=True)
class Opening:
    """A run as its tracker sees it.

    id:         what makes it the same run when it goes on; ours, in `<run>/<tracker>/retrain.json`.
    mode:       online or offline; a tracker that is always local does not heed it.
    folder:     of the run; where the tracker may keep files of its own.
    steps:      how many it was handed so far.
    patience_s: how long its end may take.
    """

    id: str
    project: str
    entity: str
    name: str
    group: str
    tags: Sequence[str]
    mode: Mode
    config: Mapping[str, Any]
    folder: Path
    steps: int
    patience_s: float
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Parcel:
    """Files to be kept beside a run, as a version of `name`; `folder` is the caller's own copy."""

    name: str
    kind: str
    folder: Path
    aliases: Sequence[str]
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Handle(Protocol):
    """A run that is open at its tracker. Anything may raise; the process around it says so."""

    steps: int
    """How many steps the tracker has: what it says itself, else what it was handed."""
    keeps_files: bool
    """Whether the files of parcels are needed after the end of the run."""
    mode: str
    """Where what is handed over goes: `online`, `offline` or `local`."""

    def log(self, row: Mapping[str, float], step: int) -> None: ...

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None: ...

    def summary(self, values: Mapping[str, float | str]) -> None:
        """What is known at the end."""
        ...

    def send(self, parcel: Parcel) -> None:
        """Begin to send files; does not wait for a network."""
        ...

    def arrived(self, parcel: Parcel, /) -> bool:
        """Whether they have arrived; does not wait."""
        ...

    def finish(self, status: str, /) -> None:
        """End it as `done`, `diverged`, `failed` or `stopped`. Raises TimeoutError, with the
        remedy, when the last rows did not arrive in time."""
        ...


@dataclass(frozen=True, slots=True)
class Tracker:
    """One tracker; its name is that of its package and of the extra that installs it."""

    name: str
    module: str
    is_local: bool = False
    """Keeps everything on this machine: `wandb_mode` is not for it."""

    def mode_of(self, settings: LoggingConfig) -> str:
        """Where a run goes: `Handle.mode`."""
        return "local" if self.is_local else settings.wandb_mode

    @property
    def title(self) -> str:
        return TITLES.get(self.name, self.name)

    @property
    def remedy(self) -> str:
        return f"pip install 'retrain[{self.name}]'"

    def is_installed(self) -> bool:
        """Whether its package would be found. A folder of its name, as they leave wherever they
        are used, is none."""
        spec = importlib.util.find_spec(self.name)
        return spec is not None and spec.origin is not None

    def open_run(self, opening: Opening) -> Handle:
        """Imports the package: only for a process of its own."""
        handle: Handle = importlib.import_module(self.module).open_run(opening)
        return handle


TRACKERS = {
    tracker.name: tracker
    for tracker in (
        Tracker("wandb", "retrain.tracking.wandb_backend"),
        Tracker("trackio", "retrain.tracking.trackio_backend", is_local=True),
    )
}


def trackers_of(settings: LoggingConfig) -> list[Tracker]:
    """Those that a run is tracked with; none without a project."""
    if not settings.wandb_project:
        return []
    return [TRACKERS[name] for name in dict.fromkeys(settings.trackers)]


def names_of(settings: LoggingConfig, name: str, condition: str, seed: int) -> dict[str, Any]:
    """Where a run goes and what it is called, as `Opening` takes it; given values win."""
    tags = [condition[:LONGEST_TAG], f"seed{seed}", *settings.wandb_tags]
    return {
        "project": settings.wandb_project,
        "entity": settings.wandb_entity,
        "name": settings.wandb_run_name or name,
        "group": settings.wandb_group or condition,
        "tags": list(dict.fromkeys(tags)),
        "mode": settings.wandb_mode,
    }
