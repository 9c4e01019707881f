"""Going on with a run or a campaign that was stopped, killed, or has grown."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from retrain.analysis.reading import number
from retrain.analysis.records import MANIFEST_FILE, RunView, read_run
from retrain.analysis.words import plural
from retrain.causes import INFRASTRUCTURE, hindrance
from retrain.config.changes import CAMPAIGN_MAY_CHANGE, CONTENTS, PATHS, Change, refuse_changes
from retrain.config.dump import read_run_config
from retrain.config.load import LoadedConfig, Override, config_from_mapping
from retrain.config.schema import RunConfig
from retrain.config.stopping_checks import too_few_runs
from retrain.errors import InputError, RetrainError
from retrain.experiments.auto_squeeze import finish_squeeze
from retrain.experiments.campaign import RERUN_SCRIPT
from retrain.experiments.conclusion import CampaignResult, conclude
from retrain.experiments.extend import extend_campaign
from retrain.experiments.manifest import EXECUTION_KEYS, Manifest
from retrain.experiments.moving import moved_runs, with_options, write_moved
from retrain.experiments.outlook import nothing_in
from retrain.experiments.paths import moved, shown
from retrain.experiments.plan import PlannedRun, first_runs
from retrain.experiments.session import MakeExecutor, train_campaign
from retrain.experiments.single import SingleResult, continue_single
from retrain.experiments.stopping import give_up_dropped, tally
from retrain.files import RUN_CONFIG_FILE, RUN_FILE, RunRecord, remove_left_overs
from retrain.locks import FolderLock
from retrain.models.folder import dated
from retrain.terminal import Terminal
from retrain.training.checkpoint import DAMAGED, checkpoint_folders
from retrain.training.contents import Contents, planned_contents
from retrain.training.resume import changes_at, find_resume_point

_WHERE = CAMPAIGN_MAY_CHANGE | PATHS.keys()
"""Keys of runs that options may change for a campaign."""


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
    allow_changes: keys and contents in which a run may become another one from here on; of a
                   campaign only its contents, and keys that say where they lie.
    retry_failed:  also try runs again that failed by an error of their own.
    extend:        train the runs that `loaded` adds to the campaign.
    """
    console = console or Terminal()
    if is_campaign(folder):
        if odd := sorted(set(allow_changes) - CONTENTS.keys() - PATHS.keys()):
            raise InputError(
                f"--allow-change {odd[0]} is for a single run: the runs of a campaign must stay "
                f"comparable; of a campaign only {', '.join(CONTENTS)} may be allowed to change"
            )
        return resume_campaign(
            folder,
            loaded=loaded,
            overrides=overrides,
            allow_changes=allow_changes,
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
    try:
        record = RunRecord.read(run_dir)
    except InputError as error:
        folder = shlex.quote(shown(run_dir))
        raise InputError(
            f"{error}; bring it back from a copy. Of a run of a campaign it is written again by "
            f"retrain resume CAMPAIGN; another run can be trained anew: "
            f"retrain run {folder}/{RUN_CONFIG_FILE}"
        ) from None
    name, path = str(record.data["name"]), run_dir / RUN_CONFIG_FILE
    before = moved(read_run_config(path), run_dir, record.data.get("place"))
    if loaded is None:
        begun = bool(checkpoint_folders(run_dir))
        config = with_options(before, path, overrides, check=True, begun=begun)
    elif loaded.is_campaign:
        raise InputError(f"{loaded.name} is a campaign, and {run_dir} is a single run")
    else:
        config = loaded.run_config(loaded.conditions[0], loaded.seeds[0])
        config = dated(config, loaded.base_dir, before.model.chat_template_date)
    if not record.is_trained(config.training.max_steps) or allow_changes:
        (found,) = planned_contents([config])
        refuse_changes(_changes(record, before, config, found), allow_changes, what=name)
    if record.status == "diverged" and not allow_changes:
        raise InputError(
            f"{name} {record.data['message']}; as it is it would diverge again. "
            "Change what made it, e.g. --lr 1e-5 --allow-change training.lr"
        )
    return continue_single(config, record, allow_changes=allow_changes, console=console)


def resume_campaign(
    folder: Path,
    *,
    loaded: LoadedConfig | None = None,
    overrides: Sequence[Override] = (),
    allow_changes: Collection[str] = (),
    retry_failed: bool = False,
    extend: bool = False,
    console: Console | None = None,
    executor: MakeExecutor | None = None,
) -> CampaignResult:
    """Train what a campaign lacks; finished runs are not touched.

    Arguments as in `resume`. Raises LockedError while another process trains the campaign.
    """
    console = console or Terminal()
    changes, elsewhere = _told_apart(overrides)
    try:
        with FolderLock(folder).acquire(
            on_wait=lambda text: console.print(text, style="dim")
        ) as lock:
            remove_left_overs(folder)
            manifest = Manifest.read(folder)
            _restore_records(manifest, console)
            runs, unreadable = manifest.planned()
            views = _views(manifest)
            wanting = [
                run
                for run in runs
                if run.condition not in manifest.dropped
                and _wants_training(views[run.name], retry_failed)
            ]
            # All that may be refused is refused before anything is written.
            going_on = moved_runs(manifest, wanting, loaded, elsewhere, console)
            other = _other_contents(manifest, wanting, going_on, allow_changes)
            new: tuple[PlannedRun, ...] = ()
            if loaded is not None:
                new = extend_campaign(
                    *(manifest, loaded, RERUN_SCRIPT), allow_new=extend, allow_changes=allow_changes
                )
                assert loaded.config.campaign is not None
                manifest.train_as(loaded.config.campaign)
            runs = (*runs, *new)
            settings = manifest.execution(changes)
            now = _first_runs(runs, settings.max_runs)
            manifest.train_as(settings)
            views = _reconcile(manifest)
            give_up_dropped(manifest, views)
            for name, problem in unreadable.items():
                if views[name].state not in {"done", "diverged", "dropped"}:
                    # Not in its own file: it goes on as soon as its config is back.
                    manifest.set_run(name, "failed", problem)
            write_moved(manifest, going_on, console)
            for run in going_on:
                _wait(manifest.folder / run.folder, views[run.name], other.get(run.name, ()))
            going_on = (*going_on, *new)
            left = [run for run in going_on if run.name in now]
            left_out = [run.name for run in going_on if run.name not in now]
            manifest.leave_out(left_out, settings.max_runs)
            _say_plan(manifest, views, left, console)
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
            f"{hindrance(error, folder, shown(folder))}, "
            f"then: retrain resume {shlex.quote(shown(folder))}"
        ) from error


def _restore_records(manifest: Manifest, console: Console) -> None:
    """Write the `run.json` of runs again that have none or a damaged one: who they are stands in
    the manifest, and so does their result; how far the others have come, in their checkpoints."""
    for entry in manifest.data["runs"]:
        run_dir, result = manifest.run_folder(entry["name"]), entry["result"]
        try:
            RunRecord.read(run_dir)
            continue
        except InputError as error:
            said = str(error)
        if RunRecord.exists(run_dir):
            (run_dir / RUN_FILE).replace(run_dir / f"{DAMAGED}{RUN_FILE}")
            said += f"; it is kept as {DAMAGED}{RUN_FILE}"
        ended = entry["status"] in {"done", "diverged"} and result is not None
        steps = int(number(result, "steps") or 0) if ended else 0
        record = RunRecord.create(
            run_dir,
            name=entry["name"],
            condition=entry["condition"],
            seed=entry["seed"],
            max_steps=steps or manifest.data["max_steps"],
            contents=manifest.contents(entry["condition"]),
        )
        if ended:
            fields = {"status": entry["status"], "message": entry["message"], "result": result}
            record.update(step=steps, **fields)
            said += "; its result was taken from the manifest"
        else:
            said += "; the run goes on from its last checkpoint"
        console.print(Text(f"{entry['name']}: {said}", style="yellow"), soft_wrap=True)


def _first_runs(runs: Sequence[PlannedRun], max_runs: int) -> set[str]:
    """Names of the runs that may be trained for now."""
    if problem := too_few_runs(max_runs, len({run.condition for run in runs})):
        raise InputError(f"campaign.max_runs: {problem}")
    return {run.name for run in first_runs(runs, max_runs)}


def _changes(record: RunRecord, before: RunConfig, now: RunConfig, found: Contents) -> list[Change]:
    """Where a run that goes on as `now` with what was found is another than it was before."""
    point = find_resume_point(record.run_dir, verify=False)
    return changes_at(point, record, before, now, found)


def _other_contents(
    manifest: Manifest,
    planned: Sequence[PlannedRun],
    now: Sequence[PlannedRun],
    allowed: Collection[str],
) -> dict[str, list[Change]]:
    """Changes of each run that are allowed. Raises ConfigError for all others."""
    found: dict[str, list[Change]] = {}
    changes: list[Change] = []
    contents = planned_contents(run.config for run in now)
    for before, run, here in zip(planned, now, contents, strict=True):
        run_dir = manifest.folder / run.folder
        if RunRecord.exists(run_dir):
            record = RunRecord.read(run_dir)
            found[run.name] = _changes(record, before.config, run.config, here)
            changes += [each for each in found[run.name] if each not in changes]
    refuse_changes(changes, allowed, what=manifest.folder.name)
    return found


def _wait(run_dir: Path, view: RunView, changes: Sequence[Change]) -> None:
    """Record what a run that waits to be trained goes on with."""
    fields: dict[str, Any] = {}
    if view.state == "failed":
        # Else it would be left alone when the campaign is stopped before it is this run's turn.
        fields |= {"status": "pending"}
    if changes:
        record, step = RunRecord.read(run_dir), find_resume_point(run_dir).step
        fields["contents"] = record.contents | {
            change.key: change.now for change in changes if change.key in CONTENTS
        }
        made = [{"step": step, **asdict(change)} for change in changes]
        fields["changes"] = [*record.data["changes"], *made]
    if fields:
        RunRecord.read(run_dir).update(**fields)


def _views(manifest: Manifest) -> dict[str, RunView]:
    """How each run stands."""
    return {
        entry["name"]: read_run(manifest.run_folder(entry["name"]), entry)
        for entry in manifest.data["runs"]
    }


def _reconcile(manifest: Manifest) -> dict[str, RunView]:
    """What became of each run while nobody wrote it into the manifest; it is written there now."""
    views = _views(manifest)
    for entry in manifest.data["runs"]:
        view = views[entry["name"]]
        if view.state in {"done", "diverged", "failed"} and entry["status"] != view.state:
            record = RunRecord.read(view.folder).data
            manifest.set_run(
                entry["name"], view.state, view.message, record.get("result"), record.get("cause")
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
    count = plural(len(manifest.data["runs"]), "run")
    text = f"{manifest.folder.name}: {count}, {', '.join(parts)}"
    console.print(Text(text), soft_wrap=True)


def _told_apart(overrides: Sequence[Override]) -> tuple[dict[str, Any], list[Override]]:
    """(values of `[campaign]` that say how runs are trained, changes to the runs themselves)."""
    execution: list[Override] = []
    of_runs: list[Override] = []
    for override in overrides:
        if override.table == "campaign" and override.key in EXECUTION_KEYS:
            execution.append(override)
        elif f"{override.table}.{override.key}" in _WHERE:
            of_runs.append(override)
        else:
            keys = [*(f"campaign.{key}" for key in EXECUTION_KEYS), *sorted(_WHERE)]
            raise InputError(
                f"{override.place}, given by {override.source}: a campaign that is resumed keeps "
                f"its runs as they were planned; only these may change: {', '.join(keys)}"
            )
    # Raises ConfigError where a value does not fit its key. How many conditions there are is not
    # known here.
    config_from_mapping({"campaign": {"conditions": [{}]}}, execution)
    return {override.key: override.value for override in execution}, of_runs
