"""`manifest.json`: a campaign's plan and, as they come, its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from retrain import __version__
from retrain.analysis.records import MANIFEST_FILE
from retrain.config.load import LoadedConfig
from retrain.errors import InputError
from retrain.experiments.plan import PlannedRun
from retrain.files import atomic_write_json, read_json, utc_now

CAMPAIGN_FILE = "campaign.toml"
SCHEMA = 1


class Manifest:
    """The manifest of one campaign; every change replaces the file."""

    def __init__(self, folder: Path, data: dict[str, Any]) -> None:
        self.folder = folder
        self.data = data
        self._runs: dict[str, dict[str, Any]] = {run["name"]: run for run in data["runs"]}

    @classmethod
    def create(
        cls, folder: Path, loaded: LoadedConfig, runs: Sequence[PlannedRun], *, workers: int
    ) -> Self:
        """Write the plan, every run pending."""
        campaign = loaded.config.campaign
        assert campaign is not None
        data: dict[str, Any] = {
            "schema": SCHEMA,
            "timestamp": utc_now(),
            "campaign_file": CAMPAIGN_FILE,
            "retrain_version": __version__,
            "status": "running",
            "conditions": [
                {
                    "label": condition.label,
                    "advantage_mode": condition.advantage_mode,
                    "transform_mode": condition.transform_mode,
                    "changes": condition.changes,
                }
                for condition in loaded.conditions
            ],
            "seeds": list(loaded.seeds),
            "max_steps": max(run.max_steps for run in runs),
            "parallel": campaign.parallel,
            "max_workers": workers,
            "stagger_seconds": campaign.stagger_seconds,
            "overrides": _overrides(loaded),
            "runs": [
                {
                    "name": run.name,
                    "condition": run.condition,
                    "seed": run.seed,
                    "config": run.config_path,
                    "command": list(run.command),
                    "status": "pending",
                    "message": "",
                    "result": None,
                }
                for run in runs
            ],
        }
        manifest = cls(folder, data)
        manifest.write()
        return manifest

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest of an existing campaign."""
        path = folder / MANIFEST_FILE
        try:
            data = read_json(path)
        except FileNotFoundError:
            raise InputError(f"{folder} holds no campaign: {MANIFEST_FILE} is missing") from None
        except ValueError as error:
            raise InputError(f"{path} is damaged: {error}") from error
        if not isinstance(data, dict) or not isinstance(data.get("runs"), list):
            raise InputError(f"{path} is damaged: it has no runs")
        return cls(folder, data)

    def write(self) -> None:
        atomic_write_json(self.folder / MANIFEST_FILE, self.data)

    def set_run(
        self, name: str, status: str, message: str = "", result: Mapping[str, Any] | None = None
    ) -> None:
        """Record how a run stands."""
        self._runs[name].update(status=status, message=message, result=result)
        self.write()

    def set_status(self, status: str) -> None:
        """Record how the campaign stands: running, done, failed or interrupted."""
        self.data["status"] = status
        self.write()

    def status_of(self, name: str) -> str:
        return str(self._runs[name]["status"])


def _overrides(loaded: LoadedConfig) -> dict[str, Any]:
    """`table.key` -> value of what options on the command line changed in the file."""
    given = [place for place, source in loaded.sources.items() if source.startswith("--")]
    values: dict[str, Any] = {}
    for place in given:
        table, _, key = place.partition(".")
        values[place] = getattr(getattr(loaded.config, table), key)
    return values
