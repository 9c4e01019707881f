"""Runs and campaigns as their files describe them.

Reads the tree of `docs/files.md` into plain dataclasses. The tree may be in use: files may be
missing, a last line may be half-written, foreign folders may lie in between. None of that is an
error here; what cannot be read is simply unknown (None, or the state `pending`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retrain.analysis.liveness import judge
from retrain.analysis.reading import (
    items,
    load_object,
    load_tables,
    modified_at,
    moment,
    nested,
    number,
    read_tail,
    subfolders,
    text,
)
from retrain.files import (
    FINAL_STATUSES,
    METRICS_FILE,
    RUN_CONFIG_FILE,
    RUN_FILE,
    RUN_LOG_FILE,
    evaluation_files,
)
from retrain.locks import LOCK_FILE, read_lock

MANIFEST_FILE = "manifest.json"
RUNS_FOLDER = "runs"

QUIET_S = 600.0
"""A campaign in which nothing runs and nothing changed for so long is taken as over."""

UNFINISHED = frozenset({"pending", "running", "stalled"})
"""States that can still change without anybody's help."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a finished run measured; None was not measured."""

    accuracy_before: float | None = None
    accuracy_after: float | None = None
    greedy_before: float | None = None
    greedy_after: float | None = None
    mean_reward: float | None = None
    wall_s: float | None = None


@dataclass(frozen=True, slots=True)
class RunView:
    """One run as a reader sees it now."""

    folder: Path
    name: str
    condition: str
    seed: int | None
    state: str
    """A status of `run.json`, or `stalled` (runs, but writes nothing) or `lost` (says that it
    runs, but its process is gone)."""
    message: str
    """Why, in words; empty when there is nothing to say."""
    cause: str
    """Why it failed, as one of `retrain.causes`; empty unless it failed."""
    step: int
    """Finished steps."""
    max_steps: int | None
    accuracy: float | None
    """The newest held-out accuracy."""
    mean_reward: float | None
    """Of the last row."""
    row_age_s: float | None
    step_time_s: float | None
    """Median over the last rows."""
    started_at: float | None
    updated_at: float | None
    """The newest sign of life: a row, or a change of the status."""
    result: RunResult = field(default_factory=RunResult)
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str | None = None
    contents: Mapping[str, str] = field(default_factory=dict)
    """`retrain.training.contents`; empty when they are not known."""

    @property
    def steps_left(self) -> int | None:
        """Steps still to train, for a run that is going to train them; else None."""
        if self.state not in UNFINISHED or self.max_steps is None:
            return None
        return max(0, self.max_steps - self.step)

    @property
    def log(self) -> Path:
        """The run's log file, whether or not it exists."""
        return self.folder / RUN_LOG_FILE

    @property
    def config(self) -> Path:
        """The run's resolved config, whether or not it exists."""
        return self.folder / RUN_CONFIG_FILE

    @property
    def metrics(self) -> Path:
        """The run's metrics file, whether or not it exists."""
        return self.folder / METRICS_FILE


@dataclass(frozen=True, slots=True)
class CampaignRecord:
    """A campaign: its plan, and each planned run as it is now."""

    folder: Path
    status: str
    conditions: tuple[str, ...]
    """Labels, in the order of the plan; the first is the one the others are compared to."""
    seeds: tuple[int, ...]
    max_steps: int | None
    parallel: bool
    workers: int
    """Runs that train at the same time; 0 is not known."""
    started_at: float
    updated_at: float
    runs: tuple[RunView, ...]
    finished: bool
    """Nothing will change any more unless somebody starts a run again."""
    campaign_file: str = ""
    retrain_version: str = ""
    title: str = ""
    """Of several campaigns as one; empty otherwise."""
    pooled: int = 1
    """How many campaigns this one is made of."""
    planned: bool = True
    """Whether all of them have recorded what they are judged by."""
    manifest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.title or self.folder.name

    @property
    def state(self) -> str:
        """How it stands as its runs tell: running, pending (planned, never started), done, failed
        (also by diverged runs), stopped, or lost (nobody is there any more to train the rest).
        Runs that `max_runs` leaves out for now are not waited for.

        `status` is what the last process that trained it wrote, and may have had no time to.
        """
        if not self.finished:
            return "running"
        left_out = frozenset(map(str, items(nested(self.manifest, "left_out"), "runs")))
        states = {run.state for run in self.runs if run.name not in left_out}
        if self.status == "pending" and states == {"pending"}:
            return "pending"
        if "lost" in states or (states & {"pending"} and self.status == "running"):
            return "lost"
        if states & {"pending", "stopped"}:
            return "stopped"
        return "failed" if states & {"failed", "diverged"} else "done"

    def of(self, condition: str) -> tuple[RunView, ...]:
        """The runs of one condition, in the order of the plan."""
        return tuple(run for run in self.runs if run.condition == condition)

    def first_config(self) -> Mapping[str, Any]:
        """The resolved config of the first run that has one; empty when none has."""
        for run in self.runs:
            if tables := load_tables(run.config):
                return tables
        return {}

    def counts(self) -> Counter[str]:
        """How many runs are in each state."""
        return Counter(run.state for run in self.runs)


@dataclass(frozen=True, slots=True)
class Found:
    """What lies under some paths, newest first."""

    campaigns: tuple[CampaignRecord, ...]
    runs: tuple[RunView, ...]
    """Runs that were looked at on their own."""
    damaged: tuple[Path, ...] = ()
    """Manifests that cannot be read; the runs of their campaigns are among `runs`."""

    @property
    def finished(self) -> bool:
        return all(campaign.finished for campaign in self.campaigns) and not any(
            run.state in UNFINISHED for run in self.runs
        )


def find_records(paths: Iterable[Path], now: float | None = None) -> Found:
    """The campaigns and single runs at `paths`: log folders, campaign folders or run folders."""
    now = time.time() if now is None else now
    campaigns: dict[Path, CampaignRecord] = {}
    runs: dict[Path, RunView] = {}
    damaged: dict[Path, None] = {}

    def add(folder: Path) -> bool:
        if (folder / RUN_FILE).is_file() or (folder / METRICS_FILE).is_file():
            runs[folder.resolve()] = read_run(folder, now=now)
            return True
        if campaign := read_campaign(folder, now=now):
            campaigns[folder.resolve()] = campaign
            return True
        if (folder / MANIFEST_FILE).is_file() and (folder / RUNS_FOLDER).is_dir():
            damaged[folder / MANIFEST_FILE] = None
        # A campaign whose manifest is lost still has its runs (all of them: no `any` here).
        return sum(add(run) for run in subfolders(folder / RUNS_FOLDER)) > 0

    for path in paths:
        if not add(path):
            for folder in subfolders(path):
                add(folder)
    return Found(
        tuple(sorted(campaigns.values(), key=lambda c: (c.started_at, c.name), reverse=True)),
        tuple(sorted(runs.values(), key=lambda r: (r.updated_at or 0.0, r.name), reverse=True)),
        tuple(damaged),
    )


def read_campaign(folder: Path, now: float | None = None) -> CampaignRecord | None:
    """The campaign in `folder`; None when the folder holds none."""
    now = time.time() if now is None else now
    manifest_path = folder / MANIFEST_FILE
    manifest = load_object(manifest_path)
    planned = [
        run for run in items(manifest, "runs") if isinstance(run, dict) and text(run, "name")
    ]
    if not planned or "conditions" not in manifest:
        return None
    runs = tuple(
        read_run(folder / RUNS_FOLDER / str(run["name"]), run, number(manifest, "max_steps"), now)
        for run in planned
    )
    started_at = moment(manifest, "timestamp") or modified_at(manifest_path) or 0.0
    updated_at = max(
        [modified_at(manifest_path) or started_at, *(run.updated_at or 0.0 for run in runs)]
    )
    status = text(manifest, "status") or "running"
    states = {run.state for run in runs}
    ended = status in FINAL_STATUSES or _is_left(folder) or now - updated_at > QUIET_S
    waiting = "pending" in states and not ended
    labels = [text(c, "label") for c in items(manifest, "conditions") if isinstance(c, dict)]
    steps = number(manifest, "max_steps")
    return CampaignRecord(
        folder=folder,
        status=status,
        conditions=tuple(dict.fromkeys([*filter(None, labels), *(run.condition for run in runs)])),
        seeds=tuple(dict.fromkeys(run.seed for run in runs if run.seed is not None)),
        max_steps=None if steps is None else int(steps),
        parallel=bool(manifest.get("parallel")),
        workers=int(number(manifest, "workers") or 0),
        started_at=started_at,
        updated_at=updated_at,
        runs=runs,
        finished=not (states & {"running", "stalled"} or waiting),
        campaign_file=text(manifest, "campaign_file"),
        retrain_version=text(manifest, "retrain_version"),
        manifest=manifest,
    )


def _is_left(folder: Path) -> bool:
    """Whether nobody is there who would start the campaign's pending runs."""
    try:
        lock = read_lock(folder / LOCK_FILE)
    except OSError:
        # Somebody else's file, which only they may read: they may well be there.
        return False
    return lock is None or (lock.holder is not None and lock.holder.is_alive() is False)


def read_run(
    folder: Path,
    planned: Mapping[str, Any] | None = None,
    planned_steps: float | None = None,
    now: float | None = None,
) -> RunView:
    """The run in `folder`.

    `planned` is its entry in a campaign's manifest; it fills in what the run's own files do not
    say, as for a run that has not begun.
    """
    now = time.time() if now is None else now
    planned = planned or {}
    record = load_object(folder / RUN_FILE)
    tail = read_tail(folder / METRICS_FILE)
    last: Mapping[str, Any] = tail.last if tail else {}
    state, message = judge(record, planned, tail, now)
    seed = _first(number(source, "seed") for source in (record, planned, last))
    max_steps = _first([number(record, "max_steps"), planned_steps])
    results = [nested(record, "result"), nested(planned, "result")]
    moments = [moment(record, "updated_at"), tail.modified_at if tail else None]
    result = RunResult(
        *(
            _first(number(source, key) for source in results)
            for key in RunResult.__dataclass_fields__
        )
    )
    return RunView(
        folder=folder,
        name=text(record, "name") or text(planned, "name") or folder.name,
        condition=next(filter(None, (text(s, "condition") for s in (record, planned, last))), ""),
        seed=None if seed is None else int(seed),
        state=state,
        message=message,
        cause=(text(record, "cause") or text(planned, "cause")) if state == "failed" else "",
        step=tail.rows if tail else int(number(record, "step") or 0),
        max_steps=None if max_steps is None else int(max_steps),
        accuracy=_newest_accuracy(folder, state, result, last),
        mean_reward=number(last, "mean_reward"),
        row_age_s=max(0.0, now - tail.modified_at) if tail and tail.rows else None,
        step_time_s=tail.step_time_s if tail else None,
        started_at=moment(record, "started_at"),
        updated_at=max(filter(None, moments), default=None),
        result=result,
        versions={key: str(value) for key, value in nested(record, "versions").items()},
        device=text(record, "device") or None,
        contents={key: str(value) for key, value in nested(record, "contents").items()},
    )


def _newest_accuracy(
    folder: Path, state: str, result: RunResult, last: Mapping[str, Any]
) -> float | None:
    if result.accuracy_after is not None:
        return result.accuracy_after
    in_row = number(last, "held_out_accuracy")
    # A run that has ended has it in its result: only the others are worth another file.
    if in_row is not None or state in {"pending", "done"}:
        return in_row
    files = list(evaluation_files(folder).values())
    return number(load_object(files[-1]), "accuracy") if files else None


def _first(values: Iterable[float | None]) -> float | None:
    return next((value for value in values if value is not None), None)
