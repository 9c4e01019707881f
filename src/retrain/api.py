"""The Python interface: what the command line does, as functions.

Errors in a config are raised as `retrain.errors.ConfigError`, all of them together. Warnings go
to Python's `warnings`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrain.config.load import LoadedConfig, Override, Reading, read_config, read_mapping
from retrain.errors import ConfigError, ConfigIssue, InputError
from retrain.preflight import check_reading

if TYPE_CHECKING:
    from rich.console import Console

    from retrain.experiments.conclusion import CampaignResult
    from retrain.experiments.single import SingleResult

Config = LoadedConfig | Mapping[str, Any] | Path | str
"""A TOML file, its tables as a dict, or a config loaded before."""


def load_config(
    config: Config,
    overrides: Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
) -> LoadedConfig:
    """Read and check a config, plugins and files included. Nothing is trained.

    config:    a TOML file, or its tables as a dict: `{"training": {"lr": 1e-4}}`, in which
               relative paths are taken from the current folder.
    overrides: `{"training.lr": 1e-4}`; they win over the config.
    seeds:     the seeds of a campaign.
    """
    return _load(config, overrides, seeds)


def _load(
    config: Config, overrides: Mapping[str, Any] | None, seeds: Sequence[int] | None
) -> LoadedConfig:
    given = [_override(place, value) for place, value in (overrides or {}).items()]
    if isinstance(config, LoadedConfig):
        if given or seeds is not None:
            raise InputError("a loaded config is final; give overrides and seeds when loading it")
        reading = Reading(config, ())
    elif isinstance(config, Mapping):
        reading = read_mapping(config, given, seeds)
    else:
        reading = read_config(config, given, seeds)
    loaded, found = check_reading(reading)
    for warning in found:
        # The line of the user's that called the function that called this.
        warnings.warn(warning, stacklevel=3)
    return loaded


def _new(loaded: LoadedConfig) -> LoadedConfig:
    """A config that trains something new; others are for `resume` and `retrain.squeeze`."""
    if loaded.is_squeeze:
        message = "without [campaign] trains nothing; call retrain.squeeze.analyze_adapter(...)"
        raise ConfigError([ConfigIssue("squeeze", message, file=loaded.name)])
    if loaded.resume_from is not None:
        message = f'goes on with what is there; call retrain.resume("{loaded.resume_from}", ...)'
        raise ConfigError([ConfigIssue("resume.from", message, file=loaded.name)])
    return loaded


def train(
    config: Config,
    *,
    run_dir: Path | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> SingleResult:
    """Train one run in this process.

    config, overrides: as for `load_config`; the config has no `[campaign]`.
    run_dir:           where it is written; by default a new folder in the log folder.
    console:           where progress is shown; the standard output by default.

    The result has `status`, `exit_code`, `run_dir`, `message`, and `result` as in `run.json`.
    """
    from retrain.experiments.single import run_single

    loaded = _new(_load(config, overrides, None))
    return run_single(loaded, run_dir=None if run_dir is None else Path(run_dir), console=console)


def run_campaign(
    config: Config,
    *,
    overrides: Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
    console: Console | None = None,
) -> CampaignResult:
    """Train every run of a campaign.

    config, overrides, seeds: as for `load_config`; the config has a `[campaign]`.
    console:                  where progress is shown; the standard output by default.

    The result has `status`, `exit_code`, `campaign_dir`, and `runs`.
    """
    from retrain.experiments.campaign import run_campaign as run

    return run(_new(_load(config, overrides, seeds)), console=console)


def resume(
    folder: Path | str,
    *,
    config: Config | None = None,
    overrides: Mapping[str, Any] | None = None,
    allow_changes: Sequence[str] = (),
    retry_failed: bool = False,
    extend: bool = False,
    console: Console | None = None,
) -> CampaignResult | SingleResult:
    """Go on with a run or a campaign from its last checkpoints.

    config, overrides: as for `load_config`; without a config the one that it was started with.
    allow_changes:     keys in which a single run may become another one from here on, and contents
                       (`data`, `reward`, …) that may be others, also of a campaign.
    retry_failed:      also try runs of a campaign again that failed by an error of their own.
    extend:            train the runs that `config` adds to the campaign.
    console:           where progress is shown; the standard output by default.
    """
    from retrain.experiments.resume import resume as go_on

    given = [_override(place, value) for place, value in (overrides or {}).items()]
    return go_on(
        Path(folder),
        loaded=None if config is None else _load(config, overrides, None),
        overrides=given if config is None else (),
        allow_changes=allow_changes,
        retry_failed=retry_failed,
        extend=extend,
        console=console,
    )


def _override(place: str, value: Any) -> Override:
    table, dot, key = place.partition(".")
    if not dot or not key:
        raise InputError(f'overrides: "{place}": write it as "table.key", e.g. "training.lr"')
    return Override(table, key, value, "overrides")
