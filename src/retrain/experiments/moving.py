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
    PATHS,
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
from retrain.training.checkpoint import checkpoint_folders

# Components of a reward have keys of their own that may change; in all else they are the same.
_TAKEN = CAMPAIGN_MAY_CHANGE | PATHS.keys() | {"reward.components"}
# How long runs are is judged elsewhere; a campaign that was moved has another folder.
_KEPT = OF_THE_PLAN - {"training.max_steps", "logging.log_dir"}


def moved_runs(
    manifest: Manifest,
    runs: Sequence[PlannedRun],
    loaded: LoadedConfig | None,
    overrides: Sequence[Override],
    console: Console,
) -> tuple[PlannedRun, ...]:
    """These runs with what `loaded`, else `overrides`, say of keys in which the runs of a campaign
    may change. The console is told what they do not take. Nothing is written.

    Raises ConfigError for a value that does not fit, and for a part that is not there.
    """
    if loaded is not None:
        others = {run.name: run.config for run in plan_runs(loaded)}
    else:
        others = _with_options(manifest, runs, overrides)
    result, kept = [], Counter[str]()
    for run in runs:
        other = others.get(run.name, run.config)
        config = with_changes(run.config, changes_in(_TAKEN, run.config, other))
        result.append(replace(run, config=config))
        kept.update(map(_kept, changes_in(_KEPT, run.config, other)))
    for text, count in kept.items():
        console.print(Text(f"{text} ({_in(count, runs)})", style="yellow"), soft_wrap=True)
    return tuple(result)


def write_moved(manifest: Manifest, runs: Sequence[PlannedRun], console: Console) -> None:
    """Write the configs of these runs where they are others now, and tell the console."""
    changed = Counter[str]()
    for run in runs:
        before = read_run_config(manifest.folder / run.config_path)
        if before != run.config:
            atomic_write_text(manifest.folder / run.config_path, run_config_toml(run.config))
            changed.update(map(str, changes_in(_TAKEN | OF_THE_PLAN, before, run.config)))
    for text, count in changed.items():
        console.print(Text(f"{text} ({_in(count, runs)})"), soft_wrap=True)


def _with_options(
    manifest: Manifest, runs: Sequence[PlannedRun], overrides: Sequence[Override]
) -> dict[str, RunConfig]:
    found: dict[str, RunConfig] = {}
    checked: set[str] = set()
    # What only the first step needs may be gone when every run of a condition is further.
    fresh = {run.condition for run in runs if not checkpoint_folders(manifest.folder / run.folder)}
    for run in runs:
        found[run.name] = with_options(
            run.config,
            manifest.folder / run.config_path,
            overrides,
            check=run.condition not in checked,
            begun=run.condition not in fresh,
        )
        checked.add(run.condition)
    return found


def with_options(
    before: RunConfig, path: Path, overrides: Sequence[Override], *, check: bool, begun: bool
) -> RunConfig:
    """The config of a run with what options say of it and nothing else changed.

    path: where it lies, for messages. check: whether its parts are tried. begun: whether it has a
    checkpoint. Raises ConfigError with all that is wrong.
    """
    from retrain.preflight import check_reading

    reading = read_resolved(before, path, overrides)
    loaded = check_reading(reading, begun=begun)[0] if check else reading.require()
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
