"""`manifest.json`: a campaign's plan and, as they come, its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import msgspec
from pydantic import ValidationError

from retrain import __version__
from retrain.analysis.records import MANIFEST_FILE, RUNS_FOLDER
from retrain.analysis.squeezed import SQUEEZE_FOLDER
from retrain.config.dump import read_run_config
from retrain.config.evidence import recorded
from retrain.config.load import LoadedConfig
from retrain.config.schema import CampaignConfig, SqueezeConfig
from retrain.config.stopping import StoppingConfig
from retrain.errors import InputError
from retrain.experiments.paths import moved
from retrain.experiments.plan import PlannedRun
from retrain.files import atomic_write_json, read_record, utc_now
from retrain.training.contents import Contents

CAMPAIGN_FILE = "campaign.toml"
SCHEMA = 1

EXECUTION_KEYS = (
    *("parallel", "max_workers", "stagger_seconds", "devices", "max_retries", "worker_timeout"),
    "max_runs",
)
"""Keys of `[campaign]` that say how the runs are trained, and nothing about what comes out."""


_REMEDY = (
    "bring it back from a copy; without it the campaign cannot go on as one, but each of its runs "
    f"can: retrain resume CAMPAIGN/{RUNS_FOLDER}/RUN"
)
SQUEEZE_RESULTS = ("recommended_rank", "source_rank", "num_layers", "min_variance_retention")
"""Fields of `squeeze.json` that the manifest has too."""


_Path = Annotated[str, msgspec.Meta(pattern=r"^[^\0]+$")]


class _PlannedRun(msgspec.Struct):
    name: _Path
    condition: str
    seed: int
    config: _Path
    status: str
    message: str
    cause: str | None
    result: dict[str, Any] | None


class _Condition(msgspec.Struct):
    label: str
    contents: dict[str, str] = msgspec.field(default_factory=dict)


class _Dropped(msgspec.Struct):
    condition: str


class _LeftOut(msgspec.Struct):
    max_runs: int
    runs: list[str]


class _Saved(msgspec.Struct):
    steps: int
    of: int
    share: float


class _Squeeze(msgspec.Struct):
    status: str
    message: str
    run: str | None
    recommended_rank: int | None
    settings: dict[str, Any]


class _Campaign(msgspec.Struct):
    """What readers of `manifest.json` rely on, but for `[campaign]` and its stopping rule."""

    status: str
    conditions: list[_Condition]
    seeds: list[int]
    max_steps: int
    runs: Annotated[list[_PlannedRun], msgspec.Meta(min_length=1)]
    report: dict[str, Any] | None = None
    stopping: dict[str, Any] | None = None
    dropped: list[_Dropped] = msgspec.field(default_factory=list)
    left_out: _LeftOut | msgspec.UnsetType = msgspec.UNSET
    saved: _Saved | None = None
    squeeze: _Squeeze | None = None


class Manifest:
    """The manifest of one campaign; every change replaces the file."""

    def __init__(self, folder: Path, data: dict[str, Any]) -> None:
        self.folder = folder
        self.data = data
        self._runs: dict[str, dict[str, Any]] = {run["name"]: run for run in data["runs"]}

    @classmethod
    def create(
        cls,
        folder: Path,
        loaded: LoadedConfig,
        runs: Sequence[PlannedRun],
        contents: Mapping[str, Contents],
    ) -> Self:
        """Write the plan, every run pending. contents: of each condition."""
        campaign = loaded.config.campaign
        assert campaign is not None
        data: dict[str, Any] = {
            "schema": SCHEMA,
            "timestamp": utc_now(),
            "campaign_file": CAMPAIGN_FILE,
            "retrain_version": __version__,
            "status": "pending",
            "conditions": _conditions(loaded, contents),
            "seeds": list(loaded.seeds),
            "max_steps": max(run.max_steps for run in runs),
            **{key: getattr(campaign, key) for key in EXECUTION_KEYS},
            "workers": None,
            "overrides": _overrides(loaded),
            "report": report_settings(loaded),
            **({"stopping": rule, "dropped": []} if (rule := stopping_rule(loaded)) else {}),
            **_squeeze(loaded.config.squeeze),
            "runs": [_entry(run) for run in runs],
        }
        manifest = cls(folder, data)
        manifest.write()
        return manifest

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest of an existing campaign. Raises InputError when it is missing or damaged."""
        path = folder / MANIFEST_FILE
        try:
            manifest = cls(folder, read_record(path, _Campaign))
            manifest.execution()
            if rule := manifest.data.get("stopping"):
                StoppingConfig.model_validate(rule)
        except FileNotFoundError:
            raise InputError(f"{folder} holds no campaign: {MANIFEST_FILE} is missing") from None
        except ValidationError as error:
            first = error.errors()[0]
            key, reason = ".".join(map(str, first["loc"])), first["msg"]
            raise InputError(f"{path} is damaged: {key}: {reason}; {_REMEDY}") from None
        except InputError as error:
            raise InputError(f"{error}; {_REMEDY}") from None
        return manifest

    def write(self) -> None:
        atomic_write_json(self.folder / MANIFEST_FILE, self.data)

    def status_of(self, name: str) -> str:
        """A run's status, as far as the campaign knows."""
        return str(self._runs[name]["status"])

    def run_folder(self, name: str) -> Path:
        return self.folder / RUNS_FOLDER / name

    @property
    def dropped(self) -> tuple[str, ...]:
        """The conditions that were stopped because they could not win, the first one first."""
        return tuple(dict.fromkeys(entry["condition"] for entry in self.data.get("dropped", ())))

    def drop(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Record that a condition is stopped, with the comparisons that decided it."""
        self.data["dropped"] = [*self.data.get("dropped", ()), *map(dict, entries)]
        self.write()

    def set_saved(self, steps: Mapping[str, int], total: int) -> None:
        """Record the steps that conditions were not trained for, of so many in the plan."""
        told = set()
        for entry in self.data["dropped"]:
            label = entry["condition"]
            # A condition with several comparisons was stopped once.
            entry["steps_saved"] = 0 if label in told else steps.get(label, 0)
            told.add(label)
        saved = sum(steps.values())
        self.data["saved"] = {"steps": saved, "of": total, "share": saved / max(1, total)}
        self.write()

    @property
    def left_out(self) -> frozenset[str]:
        """The runs that `max_runs` leaves out for now."""
        return frozenset(self.data.get("left_out", {}).get("runs", ()))

    def leave_out(self, names: Sequence[str], max_runs: int) -> None:
        """Record the runs that are left out for now."""
        if names or self.left_out:
            self.data["left_out"] = {"max_runs": max_runs, "runs": list(names)}
            self.write()

    def execution(self, changes: Mapping[str, Any] | None = None) -> CampaignConfig:
        """How its runs are trained, with `changes` to that."""
        settings = {key: self.data[key] for key in EXECUTION_KEYS if key in self.data}
        return CampaignConfig.model_validate(settings | dict(changes or {}))

    def train_as(self, campaign: CampaignConfig) -> None:
        """Train its runs from now on as `campaign` says; what they are stays."""
        self.data.update({key: getattr(campaign, key) for key in EXECUTION_KEYS})
        self.write()

    def contents(self, condition: str) -> Contents:
        """The contents with which a condition was planned; empty when they were not kept."""
        entries = {entry["label"]: entry for entry in self.data["conditions"]}
        return dict(entries.get(condition, {}).get("contents", {}))

    def planned(self) -> tuple[tuple[PlannedRun, ...], dict[str, str]]:
        """(its runs, each with the config in its folder, its paths as they are now; why the config
        of others cannot be read, by their names)."""
        place = self.folder.resolve().name
        runs: list[PlannedRun] = []
        unreadable: dict[str, str] = {}
        for entry in self.data["runs"]:
            name = str(entry["name"])
            try:
                config = read_run_config(self.folder / entry["config"])
            except InputError as error:
                unreadable[name] = str(error)
                continue
            config = moved(config, self.folder, place)
            runs.append(PlannedRun(name, entry["condition"], entry["seed"], config))
        return tuple(runs), unreadable

    def extend(
        self, loaded: LoadedConfig, runs: Sequence[PlannedRun], contents: Mapping[str, Contents]
    ) -> None:
        """Add pending runs, and the conditions and seeds they come from; they bear the time, since
        runs that are added after others were seen are not what was planned."""
        labels = {condition["label"] for condition in self.data["conditions"]}
        self.data["conditions"] += [
            c for c in _conditions(loaded, contents) if c["label"] not in labels
        ]
        self.data["seeds"] = list(dict.fromkeys([*self.data["seeds"], *loaded.seeds]))
        steps = [run.max_steps for run in runs]
        self.data["max_steps"] = max([self.data["max_steps"], *steps])
        for run in runs:
            self._runs[run.name] = {**_entry(run), "added": utc_now()}
        self.data["runs"] = list(self._runs.values())
        self.write()

    def set_run(
        self,
        name: str,
        status: str,
        message: str = "",
        result: Mapping[str, Any] | None = None,
        cause: str | None = None,
    ) -> None:
        """Record how a run stands."""
        self._runs[name].update(status=status, message=message, result=result, cause=cause)
        self.write()

    def set_status(self, status: str, **fields: Any) -> None:
        """Record how the campaign stands: running, done, failed or stopped."""
        self.data.update(status=status, **fields)
        self.write()

    def settle(self) -> None:
        """Record how the campaign ended, which its runs tell."""
        awaited = [run for name, run in self._runs.items() if name not in self.left_out]
        statuses = {str(run["status"]) for run in awaited}
        if statuses & {"stopped", "pending", "running"}:
            self.set_status("stopped")
        elif statuses & {"failed", "diverged"}:
            self.set_status("failed")
        else:
            self.set_status("done")


def report_settings(loaded: LoadedConfig) -> dict[str, Any]:
    """`[report]` as the manifest keeps it."""
    return recorded(
        loaded.config.report,
        [condition.label for condition in loaded.conditions],
        evaluates=any(c.config.evaluation.num_problems for c in loaded.conditions),
    )


def stopping_rule(loaded: LoadedConfig) -> dict[str, Any] | None:
    """`[campaign.stopping]` as the manifest keeps it; None without it."""
    campaign = loaded.config.campaign
    if campaign is None or campaign.stopping is None:
        return None
    rule = campaign.stopping.model_dump(mode="json")
    return {**rule, "margin": rule["margin"] or loaded.config.report.margin}


def _entry(run: PlannedRun) -> dict[str, Any]:
    return {
        "name": run.name,
        "condition": run.condition,
        "seed": run.seed,
        "config": run.config_path,
        "command": list(run.command),
        "status": "pending",
        "message": "",
        "cause": None,
        "result": None,
    }


def _conditions(loaded: LoadedConfig, contents: Mapping[str, Contents]) -> list[dict[str, Any]]:
    return [
        {
            "label": condition.label,
            "advantage_mode": condition.advantage_mode,
            "transform_mode": condition.transform_mode,
            "changes": condition.changes,
            "contents": contents[condition.label],
        }
        for condition in loaded.conditions
    ]


def _overrides(loaded: LoadedConfig) -> dict[str, Any]:
    """`table.key` -> value of what options on the command line changed in the file."""
    given = [place for place, source in loaded.sources.items() if source.startswith("--")]
    values: dict[str, Any] = {}
    for place in given:
        value: Any = loaded.config
        for key in place.split("."):
            value = getattr(value, key)
        values[place] = value
    return values


def _squeeze(settings: SqueezeConfig | None) -> dict[str, Any]:
    """The entry of a new campaign, when it has a `[squeeze]`."""
    if settings is None:
        return {}
    entry = {
        "settings": settings.model_dump(
            mode="json", exclude={"adapter_path", "adapter_name", "output_path"}
        ),
        "folder": SQUEEZE_FOLDER,
        "status": "pending",
        "message": "",
        "run": None,
        **dict.fromkeys(SQUEEZE_RESULTS),
    }
    return {"squeeze": entry}
