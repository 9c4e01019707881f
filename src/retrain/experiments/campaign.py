"""A campaign: every condition under every seed, into one folder."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from retrain.analysis.words import plural
from retrain.config.dump import run_config_toml
from retrain.config.load import EMBEDDED, LoadedConfig
from retrain.config.schema import CampaignConfig
from retrain.errors import InputError
from retrain.experiments.executors.executor import (
    ENDINGS,
    Event,
    Executor,
    Failed,
    Finished,
    Interrupted,
    Job,
    Started,
)
from retrain.experiments.executors.local import LocalExecutor
from retrain.experiments.live import RunsView
from retrain.experiments.manifest import CAMPAIGN_FILE, Manifest
from retrain.experiments.paths import shown
from retrain.experiments.plan import PlannedRun, plan_runs, rerun_script
from retrain.experiments.signals import StopSignals
from retrain.experiments.threads import threads_of, worker_count
from retrain.experiments.worker import describe
from retrain.files import (
    RUN_LOG_FILE,
    RunRecord,
    atomic_write_bytes,
    atomic_write_text,
    atomic_write_toml,
    create_timestamped_folder,
)
from retrain.plugins import own_import_path

RERUN_SCRIPT = "run_all.sh"
WORKERS_LOG = "workers.log"
POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How one run of a campaign ended; `status` as in `run.json`."""

    name: str
    condition: str
    seed: int
    status: str
    message: str
    run_dir: Path
    result: Mapping[str, Any] | None

    @property
    def log(self) -> Path:
        return self.run_dir / RUN_LOG_FILE


@dataclass(frozen=True, slots=True)
class CampaignResult:
    """How a campaign ended: `status` is done, failed or interrupted."""

    exit_code: int
    campaign_dir: Path
    status: str
    runs: tuple[RunOutcome, ...]

    @property
    def failed(self) -> tuple[RunOutcome, ...]:
        """The runs without a result to compare."""
        return tuple(run for run in self.runs if run.status in {"failed", "diverged"})


def run_campaign(
    loaded: LoadedConfig,
    *,
    console: Console | None = None,
    executor: Callable[[Path], Executor] | None = None,
) -> CampaignResult:
    """Train every run of the campaign, and say what came out.

    A failed run never stops the others. Ctrl-C ends the workers after the step they are in, a
    second one at once.

    console:  where progress and the closing table go; the standard output by default.
    executor: makes what runs the workers, given the campaign's folder; by default subprocesses of
              this machine.
    """
    console = console or Console()
    runs = plan_runs(loaded)
    workers = worker_count(_campaign(loaded), [run.config for run in runs])
    manifest = create_campaign(loaded, runs, workers=workers)
    if executor is None:
        crew: Executor = LocalExecutor(
            workers,
            log=manifest.folder / WORKERS_LOG,
            threads=threads_of(loaded.config.backend),
            stagger_seconds=_campaign(loaded).stagger_seconds,
            sys_path=own_import_path(),
        )
    else:
        crew = executor(manifest.folder)
    train_runs(manifest, runs, crew, console)
    result = _outcome(manifest, runs)
    _conclude(result, console, is_demo=loaded.config.model.model == EMBEDDED)
    return result


def create_campaign(loaded: LoadedConfig, runs: Sequence[PlannedRun], *, workers: int) -> Manifest:
    """Write a campaign's folder with everything but results; starts nothing."""
    # The first run's folder is absolute, and log_dir is no matter of conditions.
    folder = create_timestamped_folder(Path(runs[0].config.logging.log_dir), "campaign")
    if loaded.path is not None:
        atomic_write_bytes(folder / CAMPAIGN_FILE, loaded.path.read_bytes())
    else:
        tables = loaded.config.model_dump(mode="json", exclude_none=True)
        atomic_write_toml(folder / CAMPAIGN_FILE, tables)
    for run in runs:
        run_dir = folder / run.folder
        RunRecord.create(
            run_dir,
            name=run.name,
            condition=run.condition,
            seed=run.seed,
            max_steps=run.max_steps,
        )
        atomic_write_text(folder / run.config_path, run_config_toml(run.config))
    atomic_write_text(folder / RERUN_SCRIPT, rerun_script(runs), mode=0o755)
    return Manifest.create(folder, loaded, runs, workers=workers)


def train_runs(
    manifest: Manifest, runs: Sequence[PlannedRun], executor: Executor, console: Console
) -> None:
    """Train these runs of the campaign and record how each ends."""
    folder = manifest.folder
    jobs = [
        Job(run.name, run.condition, folder / run.config_path, folder / run.folder) for run in runs
    ]
    open_runs = {job.name: job for job in jobs}
    view = RunsView(
        console,
        [(run.name, run.max_steps) for run in runs],
        workers=executor.slots,
        title=folder.name,
    )

    def take(events: Sequence[Event]) -> None:
        for event in events:
            _record(event, manifest)
            view.handle(event)
            if isinstance(event, ENDINGS):
                open_runs.pop(event.run, None)

    with StopSignals(insist=executor.kill) as signals, executor, view:
        executor.submit(jobs)
        while open_runs and not signals.stop:
            take(executor.poll(POLL_S))
        if open_runs:
            view.say("stopping the workers after the step they are in; again to stop at once")
            take(executor.stop())
        statuses = {manifest.status_of(run["name"]) for run in manifest.data["runs"]}
        if statuses & {"interrupted", "pending", "running"}:
            manifest.set_status("interrupted")
        elif statuses & {"failed", "diverged"}:
            manifest.set_status("failed")
        else:
            manifest.set_status("done")


def _record(event: Event, manifest: Manifest) -> None:
    if isinstance(event, Started):
        manifest.set_run(event.run, "running")
    elif isinstance(event, Finished):
        _settle(manifest, event.run, event.status, event.message, result=event.result)
    elif isinstance(event, Failed):
        _settle(manifest, event.run, "failed", event.message)
    elif isinstance(event, Interrupted) and event.started:
        _settle(manifest, event.run, "interrupted", "the campaign was stopped")


def _settle(
    manifest: Manifest,
    name: str,
    status: str,
    message: str,
    result: Mapping[str, Any] | None = None,
) -> None:
    """Record the end of a run, also in its own `run.json` when its worker could not."""
    with contextlib.suppress(InputError):
        record = RunRecord.read(manifest.folder / "runs" / name)
        if not record.is_final:
            record.update(status=status, message=message)
    manifest.set_run(name, status, message, result)


def _campaign(loaded: LoadedConfig) -> CampaignConfig:
    campaign = loaded.config.campaign
    if campaign is None:
        raise InputError(f"{loaded.name} has no [campaign] table")
    return campaign


def _outcome(manifest: Manifest, runs: Sequence[PlannedRun]) -> CampaignResult:
    entries = {entry["name"]: entry for entry in manifest.data["runs"]}
    outcomes = tuple(
        RunOutcome(
            name=run.name,
            condition=run.condition,
            seed=run.seed,
            status=entries[run.name]["status"],
            message=entries[run.name]["message"],
            run_dir=manifest.folder / run.folder,
            result=entries[run.name]["result"],
        )
        for run in runs
    )
    status = str(manifest.data["status"])
    exit_code = {"done": 0, "interrupted": 130}.get(status, 1)
    return CampaignResult(exit_code, manifest.folder, status, outcomes)


def _conclude(result: CampaignResult, console: Console, *, is_demo: bool) -> None:
    """The closing table, what failed and why, the report, and what to do next."""
    folder = shown(result.campaign_dir)
    some_done = any(run.status == "done" for run in result.runs)
    report: Path | None = None
    if some_done or result.failed:
        try:
            from retrain.analysis.report import closing_table, write_report

            console.print(closing_table(result.campaign_dir))
            if result.status != "interrupted":
                report = write_report(result.campaign_dir)
        except Exception as error:
            # The runs are done and safe: what cannot be drawn must not look like their failure.
            _say(console, f"the report could not be written: {describe(error)}", "yellow")
    if result.failed:
        count = f"{len(result.failed)} of {plural(len(result.runs), 'run')}"
        _say(console, f"{count} gave no result:", "red")
        for run in result.failed:
            _say(console, f"  {run.name} {run.status}: {run.message}")
            _say(console, f"    log: {shown(run.log)}")
    if result.status == "interrupted":
        counts = [run.status for run in result.runs]
        unfinished = counts.count("interrupted") + counts.count("pending")
        _say(console, f"interrupted: {plural(unfinished, 'run')} of {len(counts)} not finished")
    _say(console, f"campaign: {folder}")
    if report is not None:
        _say(console, f"report:   {shown(report)}")
    following = f"retrain status {shlex.quote(folder)}"
    if result.failed:
        following = f"less {shlex.quote(shown(result.failed[0].log))}"
    elif is_demo and result.status == "done":
        following = "retrain init campaign   (writes a commented file for a campaign of your own)"
    _say(console, f"next:     {following}")


def _say(console: Console, message: str, style: str = "") -> None:
    console.print(Text(message, style=style), soft_wrap=True)
