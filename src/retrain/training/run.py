"""One run from its config to its result: puts the parts together, trains, keeps `run.json`.

A run goes on from whatever its folder holds: a new one starts at step 0, one that was killed at
its newest good checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retrain.advantages.algorithm import AlgorithmError, algorithm_of
from retrain.advantages.sepa import SepaSchedule
from retrain.causes import cause_of
from retrain.config.changes import CONTENTS, Change, refuse_changes
from retrain.config.dump import run_config_toml
from retrain.config.schema import BackendConfig, ModelConfig, RunConfig
from retrain.errors import ConfigError, ConfigIssue, DivergedError, InputError
from retrain.files import (
    FINAL_FOLDER,
    METRICS_FILE,
    RUN_CONFIG_FILE,
    RunRecord,
    atomic_write_text,
    evaluation_files,
    library_versions,
    read_json,
    read_jsonl,
)
from retrain.locks import FolderLock, LockLostError
from retrain.models.folder import inspect
from retrain.models.shape import experts_of
from retrain.policies.local.base import BaseModel, load_base
from retrain.policies.policy import Policy
from retrain.rewards.registry import build_reward
from retrain.tasks.prompts import counting
from retrain.tasks.registry import load_task, task_of
from retrain.tasks.task import Task
from retrain.tracking.follower import Trackers
from retrain.tracking.journal import Journal
from retrain.training.checkpoint import Checkpoints, written_aside
from retrain.training.contents import Contents, contents_of
from retrain.training.loop import Run, train
from retrain.training.place import Place
from retrain.training.policies import opened_policy
from retrain.training.resume import (
    ResumePoint,
    changes_at,
    find_resume_point,
    go_back,
    trained_seconds,
)
from retrain.training.state import LoopState

_log = logging.getLogger("retrain")

LOCK_WAIT_S = 120.0
"""A worker whose campaign is gone may take so long to finish its step and let go of its run."""

OnRow = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended. Accuracies are None when evaluation is off."""

    name: str
    condition: str
    seed: int
    status: str
    message: str
    steps: int
    accuracy_before: float | None
    accuracy_after: float | None
    greedy_before: float | None
    greedy_after: float | None
    mean_reward: float | None
    wall_s: float

    def measured(self) -> dict[str, Any]:
        """The `result` of `run.json`: what came out, without what the run is."""
        fields = asdict(self)
        for key in ("name", "condition", "seed", "status", "message"):
            del fields[key]
        return fields


_OF_THE_ADAPTER = {"lora_rank", "lora_alpha", "lora_targets", "init_adapter"}
"""Keys of `[model]` that say nothing about the base model."""


class BaseModels:
    """Base models that this process has loaded; a warm worker's runs share them."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[str, ...], BaseModel] = {}

    def get(self, model: ModelConfig, backend: BackendConfig) -> BaseModel:
        """Loaded at the first call. Only one is kept: two large ones would not fit."""
        key = (model.model_dump_json(exclude=_OF_THE_ADAPTER), backend.device, str(backend.threads))
        if key not in self._loaded:
            self._loaded.clear()
            self._loaded[key] = load_base(model, backend)
        return self._loaded[key]


def train_run(
    config: RunConfig,
    run_dir: Path,
    *,
    name: str,
    condition: str,
    place: Place | None = None,
    bases: BaseModels | None = None,
    on_row: OnRow | None = None,
    stop: Callable[[], bool] = lambda: False,
    allow_changes: Collection[str] = (),
    lock: FolderLock | None = None,
) -> RunResult:
    """Train one run in `run_dir`, from where it stands. A finished run is returned as it is.

    place:         where to train, if not where the config says.
    stop:          asked after every step; when true the run is saved and KeyboardInterrupt raised.
    allow_changes: keys and contents in which the run may differ from what was trained so far.
    lock:          the run's, when the caller holds it already; released here.

    `run.json` is kept up to date whatever happens: done, diverged (returned, not raised: an
    outcome), failed or stopped (the exception goes on to the caller). Raises LockedError while
    another process trains the run, and ConfigError when the config is that of another run, or its
    data, code or model are others.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with lock or FolderLock(run_dir).acquire(LOCK_WAIT_S, on_wait=_log.warning) as lock:
        if RunRecord.exists(run_dir):
            record = RunRecord.read(run_dir)
        else:
            record = RunRecord.create(
                run_dir,
                name=name,
                condition=condition,
                seed=config.training.seed,
                max_steps=config.training.max_steps,
            )
        # A diverged run is finished as it is; with a change it may get further.
        again = record.status == "diverged" and allow_changes
        if record.is_trained(config.training.max_steps) and not again:
            return _recorded(record)
        place, bases = place or Place(config.backend), bases or BaseModels()
        with Trackers(config.logging, run_dir, str(record.data["name"])) as trackers:
            return _train(config, record, place, bases, on_row, stop, allow_changes, lock, trackers)


def _train(
    config: RunConfig,
    record: RunRecord,
    place: Place,
    bases: BaseModels,
    on_row: OnRow | None,
    stop: Callable[[], bool],
    allow_changes: Collection[str],
    lock: FolderLock,
    trackers: Trackers,
) -> RunResult:
    run_dir, name, started = record.run_dir, str(record.data["name"]), time.monotonic()
    point = find_resume_point(run_dir)
    if point.refusal:
        raise InputError(f"{name}: {point.refusal}")
    task = load_task(config)
    contents = contents_of(config, task)
    changes = _changes(config, contents, point, allow_changes, record)
    if point.checkpoint and (began_with := record.contents.get("init_adapter")):
        contents["init_adapter"] = began_with
    _describe(record, point)
    record.update(
        status="running",
        step=point.step,
        max_steps=config.training.max_steps,
        attempts=record.data["attempts"] + 1,
        resumed_from=point.step or None,
        versions=library_versions(),
        contents=contents,
        changes=[
            *record.data["changes"],
            *({"step": point.step, **asdict(change)} for change in changes),
        ],
    )
    state = LoopState(SepaSchedule.of(config.sepa))
    status, message = "done", ""
    try:
        atomic_write_text(run_dir / RUN_CONFIG_FILE, run_config_toml(config))
        go_back(point)
        trackers.start()
        spent_before = trained_seconds(run_dir)
        checkpoint = point.checkpoint.folder if point.checkpoint else None
        with opened_policy(config, place, bases, checkpoint, name, run_dir) as policy:
            record.update(
                device=policy.device,
                threads=place.backend.threads or 1,
                unadapted_experts=_unadapted_experts(config),
                # A model of the hub may have come only now.
                contents={**contents_of(config, None), **contents},
            )
            heard = trackers.heeded(on_row)
            run = assemble(config, record, state, policy, task, point, heard, stop, lock)
            with run.reward:
                train(run)
            with written_aside(run_dir / FINAL_FOLDER) as folder:
                policy.export(folder)
        run.checkpoints.remove_old(finished=True)
    except DivergedError as error:
        status, message = "diverged", str(error)
        _log.info("%s: %s", name, message)
    except KeyboardInterrupt:
        _try_update(record, status="stopped", step=max(state.step, point.step))
        raise
    except LockLostError:
        # The record is another's now.
        raise
    except BaseException as error:
        _try_update(
            record,
            status="failed",
            step=max(state.step, point.step),
            message=f"{type(error).__name__}: {error}",
            cause=cause_of(error, run_dir),
        )
        raise
    result = _result(record, status, message, state.step, spent_before, started)
    record.update(status=status, message=message, step=state.step, result=result.measured())
    return result


def _unadapted_experts(config: RunConfig) -> int | None:
    """Experts of a layer that the adapter leaves alone; None where a service adapts the model."""
    if config.backend.backend != "local":
        return None
    return experts_of(inspect(config.model, Path.cwd()).config)


def _try_update(record: RunRecord, **fields: Any) -> None:
    """The disk may be what failed: then the error itself is what the caller must hear of."""
    with contextlib.suppress(OSError):
        record.update(**fields)


def _changes(
    config: RunConfig,
    contents: Contents,
    point: ResumePoint,
    allowed: Collection[str],
    record: RunRecord,
) -> list[Change]:
    """Changes that are made at the resume point. Raises ConfigError for one nobody allowed."""
    name = str(record.data["name"])
    if config.training.max_steps < point.step:
        message = f"{name} has {point.step} steps already; take that many at least"
        raise ConfigError([ConfigIssue("training.max_steps", message)])
    return refuse_changes(changes_at(point, record, config, config, contents), allowed, what=name)


def _describe(record: RunRecord, point: ResumePoint) -> None:
    """Tell the user what is unusual about where the run goes on."""
    for folder, reason in point.skipped:
        _log.warning(
            "%s: checkpoint %s is damaged (%s); it is kept as damaged_%s, and the run goes on "
            "from step %d",
            *(record.data["name"], folder.name, reason, folder.name, point.step),
        )
    if point.checkpoint is None:
        return
    if not CONTENTS.keys() & point.checkpoint.identity.keys():
        _log.warning(
            "%s was begun by a retrain that kept no hashes of contents: whether its data, code and "
            "model are still the same is not known",
            record.data["name"],
        )
    now = library_versions()
    for library, before in point.checkpoint.versions.items():
        if now.get(library) != before:
            _log.warning(
                "%s was trained with %s %s up to step %d and goes on with %s: from there on the "
                "numbers may differ in their last bits from those of a run that was never stopped",
                *(record.data["name"], library, before, point.step, now.get(library)),
            )


def assemble(
    config: RunConfig,
    record: RunRecord,
    state: LoopState,
    policy: Policy,
    task: Task,
    point: ResumePoint,
    on_row: OnRow | None,
    stop: Callable[[], bool],
    lock: FolderLock,
) -> Run:
    """A run's parts, from its config, as they were at the resume point. Raises ConfigError or
    InputError when one cannot be had.

    task: of `load_task`.
    """
    search_paths = config.plugins.search_paths
    run_dir, condition = record.run_dir, str(record.data["condition"])
    try:
        algorithm = algorithm_of(config)
    except AlgorithmError as error:
        raise ConfigError([ConfigIssue(key, text) for key, text in error.problems]) from error
    if point.checkpoint is not None:
        state.load_state_dict(point.checkpoint.state())
    return Run(
        name=str(record.data["name"]),
        condition=condition,
        config=config,
        policy=policy,
        task=task_of(config, counting(policy.codec), policy.context, task),
        reward=build_reward(config.reward, search_paths, config.logging.log_dir),
        algorithm=algorithm,
        journal=Journal(
            run_dir,
            condition,
            algorithm.planning,
            policy.codec.pieces,
            config.logging.log_generations,
            on_row,
            lock.check,
        ),
        checkpoints=Checkpoints(run_dir, config, record.contents),
        state=state,
        stop=stop,
    )


def _evaluated(file: Path | None) -> dict[str, Any]:
    """What an evaluation found; nothing where it is damaged, which is no reason to fail a run."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = read_json(file) if file else {}
        return found if isinstance(found, dict) else {}
    return {}


def _result(
    record: RunRecord, status: str, message: str, steps: int, spent_before: float, started: float
) -> RunResult:
    files = evaluation_files(record.run_dir)
    before = _evaluated(files.get(0))
    after = _evaluated(files.get(steps) if steps else None)
    rows = read_jsonl(record.run_dir / METRICS_FILE)
    return RunResult(
        name=str(record.data["name"]),
        condition=str(record.data["condition"]),
        seed=int(record.data["seed"]),
        status=status,
        message=message,
        steps=steps,
        accuracy_before=before.get("accuracy"),
        accuracy_after=after.get("accuracy"),
        greedy_before=before.get("greedy_accuracy"),
        greedy_after=after.get("greedy_accuracy"),
        mean_reward=rows[-1]["mean_reward"] if rows else None,
        wall_s=round(spent_before + time.monotonic() - started, 3),
    )


def _recorded(record: RunRecord) -> RunResult:
    data = record.data
    return RunResult(
        name=str(data["name"]),
        condition=str(data["condition"]),
        seed=int(data["seed"]),
        status=record.status,
        message=str(data["message"]),
        **data["result"],
    )
