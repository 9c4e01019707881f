"""One run, trained in this process."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from retrain.analysis.words import duration, percent, plural
from retrain.causes import INFRASTRUCTURE, LOCK, cause_of, describe, remedy
from retrain.config.changes import differences, identity
from retrain.config.dump import read_run_config, run_config_toml
from retrain.config.load import LoadedConfig
from retrain.config.schema import RunConfig
from retrain.errors import InputError
from retrain.experiments.data import fetch_data
from retrain.experiments.executors.executor import (
    MEASURES,
    Failed,
    Finished,
    Interrupted,
    Row,
    Started,
    Warned,
)
from retrain.experiments.live import RunsView, warnings_shown
from retrain.experiments.paths import shown
from retrain.experiments.serving import serving
from retrain.experiments.signals import StopSignals
from retrain.experiments.workers import thread_environment, threads_of
from retrain.files import (
    METRICS_FILE,
    RUN_CONFIG_FILE,
    RUN_LOG_FILE,
    RunRecord,
    atomic_write_text,
    create_timestamped_folder,
)
from retrain.locks import FolderLock, LockedError
from retrain.models.folder import dated
from retrain.terminal import Terminal, say
from retrain.tracking.uploads import wait_for_uploads
from retrain.training.place import Place


@dataclass(frozen=True, slots=True)
class SingleResult:
    """How a run ended: `status` and `result` as in `run.json`."""

    exit_code: int
    run_dir: Path
    status: str
    message: str
    result: Mapping[str, Any] | None
    cause: str | None = None


def run_single(
    loaded: LoadedConfig,
    *,
    run_dir: Path | None = None,
    name: str | None = None,
    condition: str | None = None,
    console: Console | None = None,
) -> SingleResult:
    """Train one run and say what came out.

    Ctrl-C ends it after the step it is in, a second one at once; `resume` goes on from there.

    run_dir:   where it is written; must hold no run yet, but for the very same one when `name`
               and `condition` are given, as in the commands of a campaign: that one goes on. By
               default a folder of its own in the log folder.
    name:      what the run is called, by default `<condition>_s<seed>`.
    condition: label under which its numbers appear, by default made from its modes.
    console:   where progress is shown; the standard output by default.

    Raises InputError when the folder holds a run, and LockedError when one is trained in it now.
    """
    if loaded.is_campaign:
        raise InputError(f"{loaded.name} is a campaign; start it with: retrain {loaded.name}")
    fetch_data(loaded, console or Terminal())
    config = dated(loaded.run_config(loaded.conditions[0], loaded.seeds[0]), loaded.base_dir)
    planned = name is not None and condition is not None
    condition = condition or loaded.conditions[0].label
    name = name or f"{condition}_s{config.training.seed}"
    if run_dir is None:
        run_dir = create_timestamped_folder(Path(config.logging.log_dir), name)
    elif run_dir.exists() and not run_dir.is_dir():
        raise InputError(f"{run_dir} is a file; --run-dir must be a folder")
    run_dir.mkdir(parents=True, exist_ok=True)
    # Of two that are started together only one looks into the folder, and trains.
    with FolderLock(run_dir).acquire() as lock:
        record = _claimed(run_dir, config, name, condition, planned=planned)
        return continue_single(config, record, console=console, lock=lock)


def continue_single(
    config: RunConfig,
    record: RunRecord,
    *,
    allow_changes: Collection[str] = (),
    console: Console | None = None,
    lock: FolderLock | None = None,
) -> SingleResult:
    """Train a run from where it stands, in this process, and say what came out.

    allow_changes: keys and contents in which it may differ from what was trained so far.
    lock:          the run's, when it is held already.
    """
    console = console or Terminal()
    left = record.status == "diverged" or not record.is_trained(config.training.max_steps)
    with serving([config] if left else [], record.run_dir, console) as servers:
        place = Place(config.backend, servers.of(config) if left else None)
        return _continue(config, record, place, allow_changes, console, lock)


def _continue(
    config: RunConfig,
    record: RunRecord,
    place: Place,
    allow_changes: Collection[str],
    console: Console,
    lock: FolderLock | None,
) -> SingleResult:
    if "torch" not in sys.modules:
        os.environ.update(thread_environment(threads_of(config.backend)))
    run_dir, name = record.run_dir, str(record.data["name"])
    log = run_dir / RUN_LOG_FILE

    def on_row(row: Mapping[str, Any]) -> None:
        view.handle(Row(name, int(row["step"]), **{key: row.get(key) for key in MEASURES}))

    view = RunsView(console, [(name, config.training.max_steps)], title=name)
    signals = StopSignals(
        insist=_stop_at_once,
        on_stop=lambda: view.say("stopping after this step; again to stop at once"),
    )
    with signals:
        with view, _warnings_to(view, name, log):
            view.handle(Started(name, worker=1))
            try:
                from retrain.training.run import train_run

                trained = train_run(
                    config,
                    run_dir,
                    name=name,
                    condition=str(record.data["condition"]),
                    place=place,
                    on_row=on_row,
                    stop=lambda: signals.stop,
                    allow_changes=allow_changes,
                    lock=lock,
                )
            except KeyboardInterrupt:
                view.handle(Interrupted(name))
                result = SingleResult(130, run_dir, "stopped", "", None)
            except LockedError:
                raise
            except BaseException as error:  # a plugin's sys.exit and a native library's panic, too
                with contextlib.suppress(OSError), log.open("a", encoding="utf-8") as file:
                    traceback.print_exception(error, file=file)
                message, cause = describe(error), cause_of(error, run_dir)
                view.handle(Failed(name, cause, message))
                exit_code = 2 if isinstance(error, InputError) else 1
                result = SingleResult(exit_code, run_dir, "failed", message, None, cause)
            else:
                status, message, measured = trained.status, trained.message, trained.measured()
                view.handle(Finished(name, status, message, measured))
                result = SingleResult(int(status != "done"), run_dir, status, message, measured)
                wait_for_uploads([run_dir], view.say, lambda: signals.stop)
        _settle(result)
        _conclude(result, console)
    return result


def _stop_at_once() -> None:
    raise KeyboardInterrupt


def _claimed(
    run_dir: Path, config: RunConfig, name: str, condition: str, *, planned: bool
) -> RunRecord:
    """The record of the run that is to be trained in a folder, whose lock is held.

    Raises InputError for a folder that a run has written to; a planned run may be pending in it,
    and a planned run goes on.
    """
    record = RunRecord.read(run_dir) if RunRecord.exists(run_dir) else None
    path = run_dir / RUN_CONFIG_FILE
    if record is not None and path.exists():
        is_it = (record.data["name"], record.data["condition"]) == (name, condition)
        if planned and is_it and not differences(identity(read_run_config(path)), config):
            return record
    if (record is not None and record.status != "pending") or (run_dir / METRICS_FILE).exists():
        folder = shown(run_dir)
        raise InputError(
            f"{folder} already holds a run; to go on: retrain resume {shlex.quote(folder)}; "
            "for a new one give another --run-dir"
        )
    record = RunRecord.create(
        run_dir,
        name=name,
        condition=condition,
        seed=config.training.seed,
        max_steps=config.training.max_steps,
        place=os.path.relpath(run_dir.resolve(), config.logging.log_dir),
    )
    # From here on it can be resumed, also when what it needs does not even start.
    atomic_write_text(path, run_config_toml(config))
    return record


def _settle(result: SingleResult) -> None:
    """Record the end of a run that failed before it could record anything itself."""
    with contextlib.suppress(OSError, InputError):
        record = RunRecord.read(result.run_dir)
        if not record.is_final and result.cause != LOCK:
            record.update(status=result.status, message=result.message, cause=result.cause)


@contextmanager
def _warnings_to(view: RunsView, name: str, log: Path) -> Iterator[None]:
    """retrain's warnings go to the terminal and to `run.log`, those of libraries only there."""
    everything, file = logging.getLogger(), logging.FileHandler(log, encoding="utf-8")
    file.setLevel(logging.WARNING)
    with warnings_shown(lambda message: view.handle(Warned(name, message))):
        everything.addHandler(file)
        try:
            yield
        finally:
            everything.removeHandler(file)
            file.close()


def _conclude(result: SingleResult, console: Console) -> None:
    tell = partial(say, console)
    measured = result.result
    if measured is not None:
        spent = duration(measured["wall_s"])
        tell(f"{plural(measured['steps'], 'step')} in {spent}")
        for label, key in (("held-out accuracy", "accuracy"), ("greedy accuracy", "greedy")):
            before, after = measured[f"{key}_before"], measured[f"{key}_after"]
            if after is not None:
                tell(f"{label}: {percent(before, 'unknown')} before, {percent(after)} after")
    if result.status == "stopped":
        tell("stopped", "red")
    folder = shown(result.run_dir)
    tell(f"run:  {folder}")
    if result.cause in INFRASTRUCTURE and (what := remedy(str(result.cause), folder)):
        tell(f"before it goes on, {what}")
    if result.status == "stopped" or result.cause in INFRASTRUCTURE:
        tell(f"next: retrain resume {shlex.quote(folder)}")
    elif result.exit_code == 2:
        tell(f"when that is mended: retrain resume {shlex.quote(folder)}")
    elif result.status in {"failed", "diverged"}:
        log = shown(result.run_dir / RUN_LOG_FILE)
        tell(f"next: less {shlex.quote(log)}")
    else:
        tell(f"next: retrain status {shlex.quote(folder)}")
