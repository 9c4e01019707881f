"""The time in which workers train runs of a campaign, and its files are kept up to date."""

from __future__ import annotations

import contextlib
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from retrain.causes import DISK, INFRASTRUCTURE, LOCK, hindrance
from retrain.config.schema import CampaignConfig
from retrain.errors import InputError, RetrainError
from retrain.experiments.auto_squeeze import AutoSqueeze
from retrain.experiments.executors.executor import (
    ENDINGS,
    Cancelled,
    Event,
    Executor,
    Failed,
    Finished,
    Interrupted,
    Job,
    Row,
    Started,
)
from retrain.experiments.executors.local import LocalExecutor
from retrain.experiments.live import RunsView, warnings_shown
from retrain.experiments.manifest import Manifest
from retrain.experiments.paths import shown
from retrain.experiments.plan import PlannedRun
from retrain.experiments.serving import Servers, serving
from retrain.experiments.signals import StopSignals
from retrain.experiments.stopping import Stopping, decided, settle_dropped, tally
from retrain.experiments.workers import WorkerPlan, plan_workers
from retrain.files import RunRecord, atomic_write_bytes
from retrain.locks import FolderLock, LockLostError
from retrain.plugins import own_import_path
from retrain.policies.tinker.access import require_access
from retrain.tracking.uploads import wait_for_uploads

WORKERS_LOG = "workers.log"
THROTTLE_FOLDER = "tinker_throttle"
POLL_S = 0.25
PROBE_BYTES = 1 << 20
"""What must fit on the disk for a campaign to go on after a run failed for want of room."""

MakeExecutor = Callable[[Path], Executor]


def train_campaign(
    manifest: Manifest,
    runs: Sequence[PlannedRun],
    settings: CampaignConfig,
    *,
    console: Console,
    executor: MakeExecutor | None,
    lock: FolderLock,
) -> None:
    """Train these runs of the campaign, with as many workers as `settings` and the machine say."""
    if any(run.config.backend.backend == "tinker" for run in runs):
        require_access()
    folder, configs = manifest.folder, [run.config for run in runs]
    plan = plan_workers(settings, configs)
    with serving(configs, folder, console, plan.workers) as servers:
        if servers.started:
            # They have taken their part of the memory.
            plan = plan_workers(settings, configs)
        crew = executor(folder) if executor else _local(folder, plan, settings)
        manifest.set_status("running", workers=crew.slots)
        note = "" if executor else plan.note
        training = _Training(
            manifest, runs, servers, crew, console, lock, settings.max_retries, note
        )
        training.run()


def _local(folder: Path, plan: WorkerPlan, settings: CampaignConfig) -> LocalExecutor:
    return LocalExecutor(
        plan.workers,
        log=folder / WORKERS_LOG,
        threads=plan.threads,
        devices=plan.devices,
        stagger_seconds=settings.stagger_seconds,
        timeout_s=settings.worker_timeout,
        sys_path=own_import_path(),
        throttle_dir=folder / THROTTLE_FOLDER,
    )


class _Training:
    """See the module."""

    def __init__(
        self,
        manifest: Manifest,
        runs: Sequence[PlannedRun],
        servers: Servers,
        executor: Executor,
        console: Console,
        lock: FolderLock,
        max_retries: int,
        note: str,
    ) -> None:
        folder = manifest.folder
        self._manifest = manifest
        self._executor = executor
        self._lock = lock
        self._max_retries = max_retries
        self._jobs = {
            run.name: Job(
                run.name,
                run.condition,
                folder / run.config_path,
                folder / run.folder,
                servers.of(run.config),
            )
            for run in runs
        }
        self._open = dict(self._jobs)
        self._retries: Counter[str] = Counter()
        self._stopping = Stopping(manifest)
        self._view = RunsView(
            console,
            [(run.name, run.max_steps) for run in runs],
            workers=executor.slots,
            title=folder.name,
            note=note,
        )

    def run(self) -> None:
        """Until every run has ended, or Ctrl-C; what happened is in the manifest."""
        view, executor = self._view, self._executor
        squeeze = AutoSqueeze(self._manifest, view.say)
        with (
            StopSignals(insist=executor.kill) as signals,
            executor,
            view,
            warnings_shown(lambda message: view.say(f"warning: {message}", "yellow")),
            contextlib.closing(squeeze),
        ):
            try:
                executor.submit(list(self._jobs.values()))
                # What was measured before the campaign went on may decide already.
                self._stop_conditions()
                while self._open and not signals.stop:
                    self._take(executor.poll(POLL_S))
                    squeeze.look()
                    if self._lock.lost:
                        self._lock.check()
                if self._open:
                    view.say(
                        "stopping the workers after the step they are in; again to stop at once"
                    )
                    self._take(executor.stop(), retry=False)
                tally(self._manifest)
                self._manifest.settle()
                if not signals.stop:
                    squeeze.wait(lambda: signals.stop)
                    folders = [job.run_dir for job in self._jobs.values()]
                    wait_for_uploads(folders, view.say, lambda: signals.stop)
            except (OSError, LockLostError) as error:
                executor.stop()
                raise self._explained(error) from error

    def _take(self, events: Sequence[Event], *, retry: bool = True) -> None:
        for event in events:
            if isinstance(event, Failed) and event.cause == DISK:
                self._probe_disk()
            if self._is_given_up(event):
                event = Cancelled(event.run)
            if isinstance(event, Failed) and retry and self._may_retry(event):
                self._try_again(event)
                continue
            self._record(event)
            self._view.handle(event)
            if isinstance(event, ENDINGS):
                self._open.pop(event.run, None)
            if retry and self._is_news(event):
                self._stop_conditions(event.run)

    def _is_given_up(self, event: Event) -> bool:
        """Whether it tells the end of a run that was going to be cancelled anyway."""
        gone = isinstance(event, Failed) and event.cause in INFRASTRUCTURE
        return (gone or isinstance(event, Interrupted)) and self._stopping.is_dropped(
            self._jobs[event.run].condition
        )

    def _is_news(self, event: Event) -> bool:
        """Whether the event may decide about a condition."""
        if isinstance(event, Row):
            return event.step + 1 in self._stopping.steps
        return isinstance(event, ENDINGS)

    def _stop_conditions(self, news: str = "") -> None:
        """Judge conditions, and end the runs of those that cannot win.

        news: the run that has come so far; without it all conditions are judged.
        """
        for condition in self._stopping.decide(self._jobs[news].condition if news else ""):
            names = [name for name in self._open if self._jobs[name].condition == condition]
            self._view.say(decided(self._stopping, condition, names), "yellow")
            self._take(self._executor.cancel(names))

    def _try_again(self, event: Failed) -> None:
        self._retries[event.run] += 1
        with contextlib.suppress(InputError):
            # What a killed worker left says that it runs, and it may wait for long.
            record = RunRecord.read(self._jobs[event.run].run_dir)
            if event.cause != LOCK:
                record.update(status="pending", message=event.message, cause=event.cause)
        self._manifest.set_run(event.run, "pending", event.message, cause=event.cause)
        self._view.retry(event.run, event.message)
        self._executor.submit([self._jobs[event.run]])

    def _may_retry(self, event: Failed) -> bool:
        return event.cause in INFRASTRUCTURE and self._retries[event.run] < self._max_retries

    def _record(self, event: Event) -> None:
        if isinstance(event, Started):
            self._manifest.set_run(event.run, "running")
        elif isinstance(event, Finished):
            self._settle(event.run, event.status, event.message, result=event.result)
        elif isinstance(event, Failed):
            self._settle(event.run, "failed", event.message, cause=event.cause)
        elif isinstance(event, Interrupted) and event.started:
            self._settle(event.run, "stopped", "the campaign was stopped")
        elif isinstance(event, Cancelled):
            message = self._stopping.message(self._jobs[event.run].condition)
            settle_dropped(self._manifest, event.run, message)

    def _settle(self, name: str, status: str, message: str, **fields: Any) -> None:
        """Record the end of a run, also in its own `run.json` when its worker could not."""
        with contextlib.suppress(InputError):
            record = RunRecord.read(self._jobs[name].run_dir)
            # The record of a run that another process has taken over is that one's.
            if not record.is_final and fields.get("cause") != LOCK:
                record.update(status=status, message=message, cause=fields.get("cause"))
        self._manifest.set_run(name, status, message, **fields)

    def _probe_disk(self) -> None:
        """Raise OSError when nothing can be written any more: every other run would fail too."""
        probe = self._manifest.folder / ".probe.tmp"
        try:
            atomic_write_bytes(probe, bytes(PROBE_BYTES))
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()

    def _explained(self, error: OSError | LockLostError) -> RetrainError:
        folder = shown(self._manifest.folder)
        if not isinstance(error, LockLostError):
            reason = hindrance(error, self._manifest.folder, folder)
        elif self._lock.path.exists():
            return RetrainError(f"{error}; the workers were stopped")
        else:
            reason = f"{folder} cannot be written any more: {error}"
        return RetrainError(
            f"{reason}. The workers were stopped; every "
            f"run keeps its last checkpoint. Then: retrain resume {shlex.quote(folder)}"
        )
