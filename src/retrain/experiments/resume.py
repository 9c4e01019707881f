"""Going on with a run or a campaign that was stopped, killed, or has grown."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from retrain.analysis.records import MANIFEST_FILE, RunView, read_run
from retrain.analysis.words import plural
from retrain.causes import DISK, INFRASTRUCTURE, remedy
from retrain.config.changes import CAMPAIGN_MAY_CHANGE, differences, identity, refuse_changes
from retrain.config.dump import read_run_config
from retrain.config.load import LoadedConfig, Override, config_from_mapping
from retrain.config.stopping_checks import too_few_runs
from retrain.errors import InputError, RetrainError
from retrain.experiments.auto_squeeze import finish_squeeze
from retrain.experiments.campaign import RERUN_SCRIPT
from retrain.experiments.conclusion import CampaignResult, conclude
from retrain.experiments.extend import extend_campaign
from retrain.experiments.manifest import EXECUTION_KEYS, Manifest
from retrain.experiments.moving import move_runs, with_options
from retrain.experiments.outlook import nothing_in
from retrain.experiments.paths import shown
from retrain.experiments.plan import PlannedRun, first_runs
from retrain.experiments.session import MakeExecutor, train_campaign
from retrain.experiments.single import SingleResult, continue_single
from retrain.experiments.stopping import give_up_dropped, tally
from retrain.files import RUN_CONFIG_FILE, RunRecord, remove_left_overs
from retrain.locks import FolderLock
from retrain.models.folder import dated


def resume(
    folder: Path,
    *,
    loaded: LoadedConfig | None = None,
    overrides: Sequence[Override] = (),
    allow_changes: Collection[str] = (),
    retry_failed: bool = False,
    extend: bool = False,
    console: Console | None = None,
) -> CampaignResult | SingleResult:
    """Go on with the run or the campaign in `folder`.

    loaded:        the config that it is to go on with; by default the one it was started with.
    overrides:     changes to that default; of a campaign only how and where its runs are trained.
    allow_changes: keys in which a run may become another one from here on.
    retry_failed:  also try runs again that failed by an error of their own.
    extend:        train the runs that `loaded` adds to the campaign.
    """
    console = console or Console()
    if is_campaign(folder):
        if allow_changes:
            raise InputError(
                "--allow-change is for a single run: the runs of a campaign must stay comparable"
            )
        return resume_campaign(
            folder,
            loaded=loaded,
            overrides=overrides,
            retry_failed=retry_failed,
            extend=extend,
            console=console,
        )
    if extend or retry_failed:
        option = "--extend" if extend else "--retry-failed"
        raise InputError(f"{option} is for a campaign, and {folder} is none")
    if not RunRecord.exists(folder):
        raise InputError(nothing_in(folder))
    return resume_run(
        folder, loaded=loaded, overrides=overrides, allow_changes=allow_changes, console=console
    )


def is_campaign(folder: Path) -> bool:
    """Whether a folder holds a campaign."""
    return (folder / MANIFEST_FILE).is_file()


def resume_run(
    run_dir: Path,
    *,
    loaded: LoadedConfig | None,
    overrides: Sequence[Override],
    allow_changes: Collection[str],
    console: Console,
) -> SingleResult:
    """Go on with one run, in this process."""
    record = RunRecord.read(run_dir)
    before = read_run_config(run_dir / RUN_CONFIG_FILE)
    if loaded is None:
        config = with_options(run_dir / RUN_CONFIG_FILE, overrides, check=True)
    elif loaded.is_campaign:
        raise InputError(f"{loaded.name} is a campaign, and {run_dir} is a single run")
    else:
        config = loaded.run_config(loaded.conditions[0], loaded.seeds[0])
        config = dated(config, loaded.base_dir, before.model.chat_template_date)
    refuse_changes(
        differences(identity(before), config), allow_changes, what=str(record.data["name"])
    )
    if record.status == "diverged" and not allow_changes:
        raise InputError(
            f"{record.data['name']} {record.data['message']}; as it is it would diverge again. "
            "Change what made it, e.g. --lr 1e-5 --allow-change training.lr"
        )
    return continue_single(config, record, allow_changes=allow_changes, console=console)


def resume_campaign(
    folder: Path,
    *,
    loaded: LoadedConfig | None = None,
    overrides: Sequence[Override] = (),
    retry_failed: bool = False,
    extend: bool = False,
    console: Console | None = None,
    executor: MakeExecutor | None = None,
) -> CampaignResult:
    """Train what a campaign lacks; finished runs are not touched.

    Arguments as in `resume`. Raises LockedError while another process trains the campaign.
    """
    console = console or Console()
    changes, elsewhere = _told_apart(overrides)
    try:
        with FolderLock(folder).acquire(
            on_wait=lambda text: console.print(text, style="dim")
        ) as lock:
            remove_left_overs(folder)
            manifest = Manifest.read(folder)
            if loaded is not None:
                extend_campaign(manifest, loaded, RERUN_SCRIPT, allow_new=extend)
                assert loaded.config.campaign is not None
                manifest.train_as(loaded.config.campaign)
            runs = manifest.planned()
            settings = manifest.execution(changes)
            now = _first_runs(runs, settings.max_runs)
            views = _reconcile(manifest, runs)
            give_up_dropped(manifest, views)
            wanting = [
                run
                for run in runs
                if run.condition not in manifest.dropped
                and _wants_training(views[run.name], retry_failed)
            ]
            moved = move_runs(manifest, wanting, loaded, elsewhere, console)
            left = [run for run in moved if run.name in now]
            left_out = [run.name for run in moved if run.name not in now]
            manifest.leave_out(left_out, settings.max_runs)
            _say_plan(manifest, runs, views, left, console)
            if not left:
                tally(manifest)
                manifest.settle()
                finish_squeeze(manifest, console)
            else:
                for run in left:
                    manifest.set_run(run.name, "pending")
                train_campaign(
                    manifest, left, settings, console=console, executor=executor, lock=lock
                )
            return conclude(manifest, runs, console)
    except OSError as error:
        raise RetrainError(
            f"{shown(folder)} cannot be written: {error.strerror or error}; "
            f"{remedy(DISK, shown(folder))}, then: retrain resume {shlex.quote(shown(folder))}"
        ) from error


def _first_runs(runs: Sequence[PlannedRun], max_runs: int) -> set[str]:
    """Names of the runs that may be trained for now."""
    if problem := too_few_runs(max_runs, len({run.condition for run in runs})):
        raise InputError(f"campaign.max_runs: {problem}")
    return {run.name for run in first_runs(runs, max_runs)}


def _reconcile(manifest: Manifest, runs: Sequence[PlannedRun]) -> dict[str, RunView]:
    """What became of each run while nobody wrote it into the manifest; it is written there now."""
    entries = {entry["name"]: entry for entry in manifest.data["runs"]}
    views: dict[str, RunView] = {}
    for run in runs:
        entry = entries[run.name]
        view = views[run.name] = read_run(manifest.folder / run.folder, entry)
        if view.state in {"done", "diverged", "failed"} and entry["status"] != view.state:
            record = RunRecord.read(view.folder).data
            manifest.set_run(
                run.name, view.state, view.message, record.get("result"), record.get("cause")
            )
    return views


def _wants_training(view: RunView, retry_failed: bool) -> bool:
    if view.state in {"done", "diverged"}:
        return False
    if view.state == "failed":
        return retry_failed or view.cause in INFRASTRUCTURE
    return True


def _say_plan(
    manifest: Manifest,
    runs: Sequence[PlannedRun],
    views: Mapping[str, RunView],
    left: Sequence[PlannedRun],
    console: Console,
) -> None:
    names = {run.name for run in left} | manifest.left_out
    ended = [view for name, view in views.items() if name not in names]
    states = ("done", "diverged", "dropped")
    counts = {state: sum(view.state == state for view in ended) for state in states}
    failed = [view.name for view in ended if view.state == "failed"]
    parts = [f"{count} {state}" for state, count in counts.items() if count]
    if failed:
        parts.append(f"{len(failed)} failed by an error of its own (--retry-failed tries again)")
    if manifest.left_out:
        parts.append(f"{len(manifest.left_out)} left out for now (max_runs)")
    parts.append(f"{len(left)} to train" if left else "nothing to train")
    text = f"{manifest.folder.name}: {plural(len(runs), 'run')}, {', '.join(parts)}"
    console.print(Text(text), soft_wrap=True)


def _told_apart(overrides: Sequence[Override]) -> tuple[dict[str, Any], list[Override]]:
    """(values of `[campaign]` that say how runs are trained, changes to the runs themselves)."""
    execution: list[Override] = []
    of_runs: list[Override] = []
    for override in overrides:
        if override.table == "campaign" and override.key in EXECUTION_KEYS:
            execution.append(override)
        elif f"{override.table}.{override.key}" in CAMPAIGN_MAY_CHANGE:
            of_runs.append(override)
        else:
            keys = [*(f"campaign.{key}" for key in EXECUTION_KEYS), *sorted(CAMPAIGN_MAY_CHANGE)]
            raise InputError(
                f"{override.place}, given by {override.source}: a campaign that is resumed keeps "
                f"its runs as they were planned; only these may change: {', '.join(keys)}"
            )
    # Raises ConfigError where a value does not fit its key. How many conditions there are is not
    # known here.
    config_from_mapping({"campaign": {"conditions": [{}]}}, execution)
    return {override.key: override.value for override in execution}, of_runs
