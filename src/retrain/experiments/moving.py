"""Runs of a campaign that go on elsewhere: at another server, on another device, in less memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from retrain.analysis.words import plural
from retrain.config.changes import (
    CAMPAIGN_MAY_CHANGE,
    OF_THE_PLAN,
    Change,
    changes_in,
    with_changes,
)
from retrain.config.dump import read_run_config, run_config_toml
from retrain.config.load import LoadedConfig, Override, read_resolved
from retrain.config.schema import RunConfig
from retrain.errors import ConfigError, ConfigIssue
from retrain.experiments.manifest import Manifest
from retrain.experiments.plan import PlannedRun, plan_runs
from retrain.files import atomic_write_text

# Components of a reward have keys of their own that may change; in all else they are the same.
_TAKEN = CAMPAIGN_MAY_CHANGE | {"reward.components"}
# How long runs are is judged elsewhere; a campaign that was moved has another folder.
_KEPT = OF_THE_PLAN - {"training.max_steps", "logging.log_dir"}


def move_runs(
    manifest: Manifest,
    runs: Sequence[PlannedRun],
    loaded: LoadedConfig | None,
    overrides: Sequence[Override],
    console: Console,
) -> tuple[PlannedRun, ...]:
    """These runs with what `loaded`, else `overrides`, say of keys in which the runs of a campaign
    may change. Their configs are written anew, and the console is told.

    Raises ConfigError, before anything is written, for a value that does not fit.
    """
    if loaded is not None:
        others = {run.name: run.config for run in plan_runs(loaded)}
    elif overrides:
        others = _with_options(manifest, runs, overrides)
    else:
        return tuple(runs)
    moved, changed, kept = [], Counter[str](), Counter[str]()
    for run in runs:
        other = others.get(run.name, run.config)
        changes = changes_in(_TAKEN, run.config, other)
        moved.append(replace(run, config=with_changes(run.config, changes)))
        changed.update(map(str, changes))
        kept.update(map(_kept, changes_in(_KEPT, run.config, other)))
    for before, now in zip(runs, moved, strict=True):
        if before.config != now.config:
            atomic_write_text(manifest.folder / now.config_path, run_config_toml(now.config))
    for text, count in changed.items():
        console.print(Text(f"{text} ({_in(count, runs)})"), soft_wrap=True)
    for text, count in kept.items():
        console.print(Text(f"{text} ({_in(count, runs)})", style="yellow"), soft_wrap=True)
    return tuple(moved)


def _with_options(
    manifest: Manifest, runs: Sequence[PlannedRun], overrides: Sequence[Override]
) -> dict[str, RunConfig]:
    found: dict[str, RunConfig] = {}
    checked: set[str] = set()
    for run in runs:
        found[run.name] = with_options(
            manifest.folder / run.config_path, overrides, check=run.condition not in checked
        )
        checked.add(run.condition)
    return found


def with_options(path: Path, overrides: Sequence[Override], *, check: bool) -> RunConfig:
    """The config of a run that has begun, with what options say of it and nothing else changed.

    check: whether its parts are tried. Raises ConfigError with all that is wrong.
    """
    from retrain.preflight import check_reading

    before, reading = read_run_config(path), read_resolved(path, overrides)
    loaded = check_reading(reading, begun=True)[0] if check else reading.require()
    idle = [
        ConfigIssue(override.place, "says nothing of a run; leave it out", file=override.source)
        for override in overrides
        if override.table not in RunConfig.model_fields
    ]
    if idle:
        raise ConfigError(idle)
    other = loaded.run_config(loaded.conditions[0], loaded.seeds[0])
    given = {override.place for override in overrides}
    return with_changes(before, changes_in(given, before, other))


def _kept(change: Change) -> str:
    told = str(change).removeprefix(f"{change.key}: ")
    return f"{change.key} stays as it was in runs that are there: {told}"


def _in(count: int, runs: Sequence[PlannedRun]) -> str:
    return f"in {plural(count, 'run')}" + ("" if count == len(runs) else f" of {len(runs)}")
