"""trackio, for `tracking/process.py`: a database on this machine. Nothing else may import this.

It stays on this machine: no server is started, nothing is asked of or sent to a network, not even
the name of the user (which trackio would ask Hugging Face for), and nothing about the machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from retrain.tracking.trackers import Opening, Parcel

ELSEWHERE = (
    *("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TRACKIO_DATASET_ID"),
    *("TRACKIO_WEBHOOK_URL", "SYSTEM"),
)
"""What would make trackio send to a place on the network."""


def open_run(opening: Opening) -> TrackioRun:
    """Continue the run of this id, or begin it. Raises ValueError for a project's name that
    trackio does not take."""
    return TrackioRun(opening)


class TrackioRun:
    """A `Handle`; see there."""

    def __init__(self, opening: Opening) -> None:
        for name in ELSEWHERE:
            os.environ.pop(name, None)
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        import trackio
        from trackio import utils
        from trackio.sqlite_storage import SQLiteStorage

        self._trackio = trackio
        self._store = SQLiteStorage
        self._opening = opening
        self.mode, self.keeps_files = "local", False
        tags = {"tags": list(opening.tags)} if opening.tags else {}
        kind = {"job_type": opening.kind} if opening.kind else {}
        self._run: Any = trackio.init(
            project=opening.project,
            name=opening.name,
            group=opening.group or None,
            config={**opening.config, **tags, **kind},
            # By its name trackio would take up a run of the same name of another campaign: which
            # one it is, says the id.
            resume="never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self._run.id = opening.id
        # On a network file system trackio only leaves files that its dashboard reads later.
        self._can_tell = utils.get_storage_mode() == "sqlite"
        self.steps = self._stored() if self._can_tell else opening.steps
        self._logged = self.steps
        self._reserved = {*utils.RESERVED_KEYS}

    def log(self, row: Mapping[str, float], step: int) -> None:
        # The step is a column of its own.
        values = {key: value for key, value in row.items() if key not in self._reserved}
        self._run.log(values, step=step)
        self._logged = max(self._logged, step + 1)

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        table = self._trackio.Table(columns=list(columns), data=[list(row) for row in rows])
        self._run.log({key: table}, step=max(self._logged - 1, 0))

    def summary(self, values: Mapping[str, float | str]) -> None:
        """As one more row of the last step: trackio has no summary."""
        if self._logged:
            self._run.log(dict(values), step=self._logged - 1)

    def send(self, parcel: Parcel) -> None:
        artifact = self._trackio.Artifact(
            parcel.name, type=parcel.kind, metadata=dict(parcel.metadata)
        )
        artifact.add_dir(parcel.folder)
        self._run.log_artifact(artifact, aliases=list(parcel.aliases))

    def arrived(self, _parcel: Parcel) -> bool:
        return True

    def finish(self, _status: str) -> None:
        """trackio only warns, in its own log, when it could not write; so it is looked after."""
        self._run.finish()
        if self._can_tell and (stored := self._stored()) < self._logged:
            folder = self._trackio.utils.TRACKIO_DIR
            raise OSError(f"{folder} has only {stored} of {self._logged} steps")

    def _stored(self) -> int:
        last = self._store.get_max_step_for_run(
            self._opening.project, self._opening.name, run_id=self._opening.id
        )
        return 0 if last is None else int(last) + 1
