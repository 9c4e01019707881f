"""Adding seeds and conditions to a campaign that exists."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from retrain.config.changes import CONTENTS, Change, differences, identity, refuse_changes
from retrain.config.load import LoadedConfig
from retrain.config.messages import show
from retrain.errors import ConfigError, ConfigIssue, InputError
from retrain.experiments.campaign import contents_by_condition, write_plan
from retrain.experiments.manifest import CAMPAIGN_FILE, Manifest, report_settings, stopping_rule
from retrain.experiments.plan import PlannedRun, plan_runs, rerun_script
from retrain.files import atomic_write_bytes, atomic_write_text


def extend_campaign(
    manifest: Manifest,
    loaded: LoadedConfig,
    script: str,
    *,
    allow_new: bool,
    allow_changes: Collection[str] = (),
) -> tuple[PlannedRun, ...]:
    """Plan the runs that `loaded` has and the campaign lacks; the new runs.

    Runs that `loaded` no longer has stay as they are. The campaign's file is replaced, and what it
    was is kept as `campaign.1.toml`, `campaign.2.toml`, …

    allow_changes: contents that may be others than those of the runs that are there.

    Raises ConfigError when a condition that has runs was changed, also in its contents, and
    InputError when there are new runs without `allow_new`.
    """
    if not loaded.is_campaign:
        raise InputError(f"{loaded.name} is no campaign, and {manifest.folder} is one")
    there, unreadable = manifest.planned()
    for problem in unreadable.values():
        # What cannot be compared may be another run.
        raise InputError(problem)
    before = {run.name: run for run in there}
    days = {run.config.model.chat_template_date for run in before.values()}
    planned = plan_runs(loaded, max(days) or None)
    contents = contents_by_condition(planned)
    changes: list[Change] = []
    issues: list[ConfigIssue] = []
    for run in planned:
        if run.name not in before:
            continue
        begun, now = manifest.contents(run.condition), contents[run.condition]
        found = differences(identity(before[run.name].config, begun), run.config, now)
        changes += (change for change in found if change.key in CONTENTS)
        issues += _changed(before[run.name], run, found, loaded.name)
    new = tuple(run for run in planned if run.name not in before)
    wanted = {run.name for run in planned}
    gone = [run for run in before.values() if run.name not in wanted]
    issues += _renamed(gone, new, loaded.name)
    _refuse_other_settings(manifest, loaded)
    _refuse_other_rule(manifest, loaded)
    if issues:
        unique = list(dict.fromkeys(issues))
        remedy = (
            "a condition that has runs cannot change: its runs would no longer be runs of one "
            "condition. Give the changed one a name of its own beside the old one, or start a new "
            "campaign"
        )
        raise ConfigError([*unique, ConfigIssue("", remedy)])
    refuse_changes([*dict.fromkeys(changes)], allow_changes, what=manifest.folder.name)
    if not new:
        return ()
    if not allow_new:
        names = ", ".join(run.name for run in new[:3]) + (", …" if len(new) > 3 else "")
        raise InputError(
            f"{loaded.name} has {len(new)} runs that {manifest.folder} lacks ({names}); add them "
            f"with: retrain resume {manifest.folder} --extend {loaded.name}"
        )
    folder = manifest.folder
    _keep_old_file(manifest)
    write_plan(folder, loaded, new, contents)
    manifest.extend(loaded, new, contents)
    atomic_write_text(folder / script, rerun_script((*there, *new)), mode=0o755)
    return new


def _refuse_other_settings(manifest: Manifest, loaded: LoadedConfig) -> None:
    """Raises ConfigError when `[report]` is not what was recorded before the first run."""
    before = manifest.data.get("report")
    if not before:
        return
    now = report_settings(loaded)
    if not loaded.config.report.baseline:
        # A condition that was added above the others is no new baseline.
        del now["baseline"]
    issues = [
        ConfigIssue(
            f"report.{key}",
            f"is {show(now[key])}, and {show(value)} was recorded before the first run; a campaign "
            "keeps what it is judged by. To look at it otherwise: retrain report "
            f"{manifest.folder} --{key} …, which is marked in the report",
            file=loaded.name,
        )
        for key, value in before.items()
        if key in now and now[key] != value
    ]
    if issues:
        raise ConfigError(issues)


def _refuse_other_rule(manifest: Manifest, loaded: LoadedConfig) -> None:
    """Raises ConfigError when `[campaign.stopping]` is not what the campaign began with."""
    before, now = manifest.data.get("stopping"), stopping_rule(loaded)
    if before != now:
        message = (
            f"is {show(now) if now else 'not there'}, and the campaign began with "
            f"{show(before) if before else 'none'}; when conditions are stopped is fixed before "
            "the first run"
        )
        raise ConfigError([ConfigIssue("campaign.stopping", message, file=loaded.name)])


def _changed(
    before: PlannedRun, now: PlannedRun, changes: Sequence[Change], file: str
) -> list[ConfigIssue]:
    issues = [
        ConfigIssue(
            change.key,
            f"is {show(change.now)} in condition {now.condition}, whose runs have "
            f"{show(change.before)}",
            file=file,
        )
        for change in changes
        if change.key not in CONTENTS
    ]
    if before.max_steps != now.max_steps and not any(
        c.key == "training.max_steps" for c in changes
    ):
        message = f"is {now.max_steps}, and the runs that are there have {before.max_steps}"
        issues.append(ConfigIssue("campaign.max_steps", message, file=file))
    return issues


def _renamed(gone: Sequence[PlannedRun], new: Sequence[PlannedRun], file: str) -> list[ConfigIssue]:
    """New runs that are runs which the file has no more: their condition was renamed."""
    known = {str(sorted(identity(run.config).items(), key=str)): run for run in gone}
    return [
        ConfigIssue(
            "campaign.conditions",
            f"{run.condition} is what {same.condition} was; a condition that has runs keeps its "
            f'name: name = "{same.condition}"',
            file=file,
        )
        for run in new
        if (same := known.get(str(sorted(identity(run.config).items(), key=str))))
    ]


def _keep_old_file(manifest: Manifest) -> None:
    number = 1
    while (kept := manifest.folder / f"campaign.{number}.toml").exists():
        number += 1
    atomic_write_bytes(kept, (manifest.folder / CAMPAIGN_FILE).read_bytes())
