"""Runs of a campaign that go on elsewhere: at another server, on another device, in less memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from rich.console import Console
from rich.text import Text

from retrain.analysis.words import plural
from retrain.config.changes import CAMPAIGN_MAY_CHANGE, OF_THE_PLAN, Change, values_taken
from retrain.config.dump import run_config_toml
from retrain.config.load import LoadedConfig, Override, read_config
from retrain.config.schema import RunConfig
from retrain.experiments.manifest import Manifest
from retrain.experiments.plan import PlannedRun, plan_runs
from retrain.files import atomic_write_text

# Components of a reward have keys of their own that may change; in all else they are the same.
_OF_THE_FILE = CAMPAIGN_MAY_CHANGE | {"reward.components"}
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
        others: Mapping[str, RunConfig] = {run.name: run.config for run in plan_runs(loaded)}
        keys: Collection[str] = _OF_THE_FILE
    elif overrides:
        others = _with_overrides(manifest, runs, overrides)
        keys = {f"{override.table}.{override.key}" for override in overrides}
    else:
        return tuple(runs)
    moved, changed, kept = [], Counter[str](), Counter[str]()
    for run in runs:
        other = others.get(run.name, run.config)
        config, changes = values_taken(run.config, other, keys)
        moved.append(replace(run, config=config))
        changed.update(map(str, changes))
        if loaded is not None:
            kept.update(map(_kept, values_taken(run.config, other, _KEPT)[1]))
    for before, now in zip(runs, moved, strict=True):
        if before.config != now.config:
            atomic_write_text(manifest.folder / now.config_path, run_config_toml(now.config))
    for text, count in changed.items():
        console.print(Text(f"{text} ({_in(count, runs)})"), soft_wrap=True)
    for text, count in kept.items():
        console.print(Text(f"{text} ({_in(count, runs)})", style="yellow"), soft_wrap=True)
    return tuple(moved)


def _with_overrides(
    manifest: Manifest, runs: Sequence[PlannedRun], overrides: Sequence[Override]
) -> dict[str, RunConfig]:
    from retrain.preflight import check_reading

    found, checked = {}, set()
    for run in runs:
        reading = read_config(manifest.folder / run.config_path, overrides)
        if run.condition in checked:
            loaded = reading.require()
        else:
            loaded, _ = check_reading(reading, begun=True)
            checked.add(run.condition)
        found[run.name] = loaded.run_config(loaded.conditions[0], run.seed)
    return found


def _kept(change: Change) -> str:
    told = str(change).removeprefix(f"{change.key}: ")
    return f"{change.key} stays as it was in runs that are there: {told}"


def _in(count: int, runs: Sequence[PlannedRun]) -> str:
    return f"in {plural(count, 'run')}" + ("" if count == len(runs) else f" of {len(runs)}")
