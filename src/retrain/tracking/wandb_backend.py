"""Weights & Biases, for `tracking/process.py`. Nothing else may import this."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retrain.tracking.trackers import Opening, Parcel

INIT_TIMEOUT_S = 60.0
DISCREET: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "save_code": False,
    "disable_git": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
"""What is sent is what docs/tracking.md says: no code, packages, host or load."""
EXIT_CODES = {"done": 0, "stopped": 255, "dropped": 255}
"""What makes wandb show a run as finished, or as killed; anything else is failed."""


def open_run(opening: Opening) -> WandbRun:
    """Continue the run of this id, or begin it. Raises what wandb raises: no key, no network."""
    return WandbRun(opening)


class WandbRun:
    """A `Handle`; see there."""

    def __init__(self, opening: Opening) -> None:
        os.environ.pop("WANDB_SERVICE", None)
        # What wandb tells its makers about errors; a server that does not take it costs seconds at
        # the end.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        # Lists of files that are to be sent; by default in the home folder.
        own = opening.folder.absolute() / "wandb"
        os.environ.setdefault("WANDB_DATA_DIR", str(own / "data"))
        import wandb

        self._wandb = wandb
        self._opening = opening
        self.mode = opening.mode
        self.keeps_files = opening.mode == "offline"
        self._uploads: dict[Path, _Upload] = {}
        self._run = wandb.init(
            project=opening.project,
            entity=opening.entity or None,
            name=opening.name,
            group=opening.group or None,
            tags=list(opening.tags),
            mode=opening.mode,
            job_type=opening.kind or None,
            id=opening.id,
            resume="allow",
            dir=opening.folder,
            config=dict(opening.config),
            allow_val_change=True,
            settings=wandb.Settings(
                init_timeout=INIT_TIMEOUT_S,
                finish_timeout=opening.patience_s,
                finish_timeout_raises=True,
                **DISCREET,
            ),
        )
        self.steps = opening.steps if self.mode == "offline" else int(self._run.step)

    def log(self, row: Mapping[str, float], step: int) -> None:
        self._run.log(dict(row), step=step, commit=True)

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        table = self._wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        self._run.log({key: table})

    def summary(self, values: Mapping[str, float | str]) -> None:
        self._run.summary.update(dict(values))

    def send(self, parcel: Parcel) -> None:
        if self.mode == "offline":
            self._log_artifact(parcel)
        else:
            self._uploads[parcel.folder] = _Upload(lambda: self._log_artifact(parcel).wait())

    def arrived(self, parcel: Parcel) -> bool:
        return self.mode == "offline" or self._uploads[parcel.folder].is_done()

    def _log_artifact(self, parcel: Parcel) -> Any:
        artifact = self._wandb.Artifact(
            parcel.name, type=parcel.kind, metadata=dict(parcel.metadata)
        )
        # The folder is ours alone, so wandb need not copy it anywhere.
        artifact.add_dir(str(parcel.folder.absolute()), skip_cache=True, policy="immutable")
        return self._run.log_artifact(artifact, aliases=list(parcel.aliases))

    def finish(self, status: str) -> None:
        synced = Path(self._run.dir).parent
        try:
            self._run.finish(exit_code=EXIT_CODES.get(status, 1))
        except TimeoutError as error:
            raise TimeoutError(
                f"the last rows did not arrive within {self._opening.patience_s:g} s; to send them "
                f"again: wandb sync --no-skip-online {synced}"
            ) from error


class _Upload:
    """Files on their way, in a thread: wandb asks the server several things before it sends them,
    and who asks it with a limit whether they have arrived calls the upload off."""

    def __init__(self, send: Callable[[], object]) -> None:
        self._send = send
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def is_done(self) -> bool:
        """Raises what wandb raised."""
        if self._thread.is_alive():
            return False
        if self._error is not None:
            raise self._error
        return True

    def _run(self) -> None:
        try:
            self._send()
        except Exception as error:
            self._error = error
