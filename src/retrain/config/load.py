"""TOML file -> `LoadedConfig`: resolved, validated, and with the source of every value.

Errors are collected and raised together. What needs the parts themselves (plugins, files, models)
is checked by `retrain.preflight`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from retrain.config import checks, overrides
from retrain.config.conditions import Condition, clashes, resolve, single
from retrain.config.files import DEFAULT_FILE, read_toml
from retrain.config.messages import NESTED
from retrain.config.overrides import Override, parse_set
from retrain.config.reward import RewardKeys
from retrain.config.schema import RetrainConfig, RunConfig
from retrain.config.table import Table
from retrain.config.validation import validate
from retrain.errors import ConfigError, ConfigIssue
from retrain.files import expanded

__all__ = [
    "Condition",
    "LoadedConfig",
    "Override",
    "Reading",
    "config_from_mapping",
    "load_config",
    "parse_set",
    "read_config",
    "read_mapping",
]

EMBEDDED = "embedded"

RewardT = TypeVar("RewardT", bound=RewardKeys)


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A config, resolved: what will run, and where each value came from.

    path:       the TOML file; None when the config came from Python.
    base_dir:   relative data paths, model folders and plugin folders are taken from here.
    is_resolved: whether it is a run's own, which says itself where all plugins are looked for.
    config:     the base config as written, with defaults and overrides.
    sources:    `table.key` -> `default`, the file's name, or the option (`--lr`) that gave it.
    conditions: one for a single run.
    seeds:      one for a single run.
    warnings:   what is allowed but probably not meant.
    """

    path: Path | None
    base_dir: Path
    config: RetrainConfig
    sources: Mapping[str, str]
    conditions: tuple[Condition, ...]
    seeds: tuple[int, ...]
    warnings: tuple[str, ...] = field(default=())
    is_resolved: bool = False

    @property
    def is_campaign(self) -> bool:
        """Whether there is a `[campaign]` table."""
        return self.config.campaign is not None

    @property
    def is_squeeze(self) -> bool:
        """Whether there is a `[squeeze]` table alone: an adapter is looked at, nothing trained."""
        return self.config.squeeze is not None and not self.is_campaign

    @property
    def name(self) -> str:
        """What messages call the config."""
        return str(self.path) if self.path else "config"

    @property
    def resume_from(self) -> Path | None:
        """`[resume].from`, from the current folder like `[logging].log_dir`."""
        folder: str = getattr(self.config.resume, "from")
        return expanded(folder) if folder else None

    def condition(self, label: str) -> Condition:
        """The condition with this label."""
        for condition in self.conditions:
            if condition.label == label:
                return condition
        known = ", ".join(condition.label for condition in self.conditions)
        message = f'no condition "{label}"; the conditions are {known}'
        raise ConfigError([ConfigIssue("campaign.conditions", message, file=self.name)])

    def run_config(self, condition: Condition, seed: int) -> RunConfig:
        """Everything one run needs; paths are absolute, so it means the same in any folder."""
        beside = not self.is_resolved
        run = absolute(checks.without_idle(condition.config), self.base_dir, beside=beside)
        return with_seed(run, seed)


@dataclass(frozen=True, slots=True)
class Reading:
    """A config and what is wrong with it; wrong values are replaced by defaults in `loaded`."""

    loaded: LoadedConfig
    issues: tuple[ConfigIssue, ...]

    def require(self) -> LoadedConfig:
        """The config, or every error at once."""
        if self.issues:
            raise ConfigError(self.issues)
        return self.loaded


def load_config(
    path: Path | str | None = None,
    overrides: Sequence[Override] = (),
    seeds: Sequence[int] | None = None,
) -> LoadedConfig:
    """Read a TOML file, or `./retrain.toml`. Raises ConfigError with all that is wrong."""
    return read_config(path, overrides, seeds).require()


def config_from_mapping(
    values: Mapping[str, Any],
    overrides: Sequence[Override] = (),
    seeds: Sequence[int] | None = None,
    base_dir: Path | str = ".",
) -> LoadedConfig:
    """The same for tables given as a dict: `{"training": {"lr": 1e-4}}`."""
    return read_mapping(values, overrides, seeds, base_dir).require()


def read_config(
    path: Path | str | None = None,
    overrides: Sequence[Override] = (),
    seeds: Sequence[int] | None = None,
) -> Reading:
    """Like `load_config`, but gives the errors instead of raising them."""
    path = expanded(DEFAULT_FILE if path is None else path)
    values = read_toml(path)
    return _resolve(values, path, path.parent.resolve(), path.name, overrides, seeds)


def read_resolved(run: RunConfig, path: Path, overrides: Sequence[Override] = ()) -> Reading:
    """The same for the config in a run's folder, in which all paths are absolute; those in options
    are taken from the current folder."""
    values = run.model_dump(mode="json", exclude_none=True)
    reading = _resolve(values, path, Path.cwd(), path.name, overrides, None)
    return replace(reading, loaded=replace(reading.loaded, is_resolved=True))


def read_mapping(
    values: Mapping[str, Any],
    overrides: Sequence[Override] = (),
    seeds: Sequence[int] | None = None,
    base_dir: Path | str = ".",
) -> Reading:
    """Like `config_from_mapping`, but gives the errors instead of raising them."""
    folder = Path(base_dir).absolute()
    return _resolve(_as_toml(dict(values)), None, folder, "python", overrides, seeds)


def _as_toml(value: Any) -> Any:
    """A copy of `value` in the types that TOML knows."""
    match value:
        case Mapping():
            return {key: _as_toml(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_as_toml(item) for item in value]
        case Path():
            return str(value)
        case _:
            return value


def _resolve(
    values: dict[str, Any],
    path: Path | None,
    base_dir: Path,
    origin: str,
    given: Sequence[Override],
    seeds: Sequence[int] | None,
) -> Reading:
    where = str(path) if path else "the config"
    is_campaign = "campaign" in values
    written = dict.fromkeys(_keys(values), origin)
    issues: list[ConfigIssue] = []
    if seeds is not None:
        given = [*given, Override("campaign", "seeds", list(seeds), "--seeds")]
    options, refused = overrides.apply(given, values, is_campaign=is_campaign, where=where)
    written |= options
    outcome = validate(RetrainConfig, values)
    for table, key, message in outcome.problems:
        place = f"{table}.{key}" if key else table
        issues.append(ConfigIssue(place, message, file=_origin(place, options, written, path)))
    issues += refused
    bad = {issue.key for issue in issues}
    written = {place: source for place, source in written.items() if place not in bad}
    config, steps_source = _settle_steps(outcome.config, written)
    sources = {place: written.get(place, "default") for place in _all_keys(config)} | steps_source

    if config.campaign is None:
        conditions: tuple[Condition, ...] = (single(config),)
        run_seeds: tuple[int, ...] = (config.training.seed,)
    else:
        conditions, wrong = resolve(config)
        wrong += clashes(conditions, {issue.key for issue in (*issues, *wrong)})
        issues += [ConfigIssue(issue.key, issue.message, file=str(path or "")) for issue in wrong]
        issues += overrides.conflicts(given, [(c.label, c.written) for c in conditions])
        run_seeds = tuple(config.campaign.seeds)

    tainted = {issue.key for issue in issues}
    findings = checks.check(config, conditions, frozenset(written), frozenset(tainted))
    for finding in findings:
        if finding.is_error:
            source = options.get(finding.key, str(path or ""))
            issues.append(ConfigIssue(finding.key, finding.message, file=source))
    warnings = tuple(f"{f.key}: {f.message}" for f in findings if not f.is_error)
    loaded = LoadedConfig(path, base_dir, config, sources, conditions, run_seeds, warnings)
    return Reading(loaded, tuple(issues))


def _origin(
    place: str, options: Mapping[str, str], written: Mapping[str, str], path: Path | None
) -> str:
    """The option or file that wrote a key, or anything in a table."""
    sources = [
        source for key, source in written.items() if key == place or key.startswith(f"{place}.")
    ]
    by_option = sources and all(source in options.values() for source in sources)
    return sources[0] if by_option else str(path or "")


def _settle_steps(
    config: RetrainConfig, written: Mapping[str, str]
) -> tuple[RetrainConfig, dict[str, str]]:
    """Give `[campaign].max_steps` and `[training].max_steps` the one value that holds."""
    if config.campaign is None:
        return config, {}
    if "campaign.max_steps" in written or "training.max_steps" not in written:
        steps, source = config.campaign.max_steps, written.get("campaign.max_steps", "default")
    else:
        steps, source = config.training.max_steps, written["training.max_steps"]
    training = config.training.model_copy(update={"max_steps": steps})
    campaign = config.campaign.model_copy(update={"max_steps": steps})
    settled = config.model_copy(update={"training": training, "campaign": campaign})
    return settled, {"training.max_steps": source, "campaign.max_steps": source}


def _keys(values: Mapping[str, Any]) -> list[str]:
    """`table.key` of everything that is written."""
    found: list[str] = []
    for table, keys in values.items():
        for key, value in keys.items() if isinstance(keys, Mapping) else ():
            place = f"{table}.{key}"
            found.append(place)
            if place in NESTED and isinstance(value, Mapping):
                found += [f"{place}.{inner}" for inner in value]
    return found


def tables_of(config: RetrainConfig) -> Iterator[tuple[str, Table]]:
    """Each table that the config has, by its name; nested ones after those they are in."""
    for name in type(config).model_fields:
        table = getattr(config, name)
        if not isinstance(table, Table):
            continue
        yield name, table
        for place in NESTED:
            outer, _, key = place.partition(".")
            if outer == name and (inner := getattr(table, key)) is not None:
                yield place, inner


def with_seed(run: RunConfig, seed: int) -> RunConfig:
    """The same run under another seed."""
    training = run.training.model_copy(update={"seed": seed})
    return run.model_copy(update={"training": training})


def _all_keys(config: RetrainConfig) -> list[str]:
    return [
        f"{name}.{key}" for name, table in tables_of(config) for key in type(table).model_fields
    ]


def absolute(run: RunConfig, base_dir: Path, *, beside: bool) -> RunConfig:
    """`run` with absolute paths: inputs from the config's folder, outputs from the current one.

    beside: whether the config's folder is the first place where plugins are looked for.
    """
    update: dict[str, Table] = {}
    data = {key: getattr(run.data, key) for key in ("path", "held_out_path")}
    is_id = run.data.source == "hub" and not is_folder_name(run.data.path, base_dir)
    update["data"] = run.data.model_copy(
        update={
            key: _from(base_dir, path)
            for key, path in data.items()
            if path and not (key == "path" and is_id)
        }
    )
    model: dict[str, str] = {}
    # A service has names of its own for models and adapters.
    if run.backend.backend == "local":
        if is_folder_name(run.model.model, base_dir):
            model["model"] = _from(base_dir, run.model.model)
        if run.model.init_adapter and "://" not in run.model.init_adapter:
            model["init_adapter"] = _from(base_dir, run.model.init_adapter)
    update["model"] = run.model.model_copy(update=model)
    if run.backend.throttle_dir:
        throttle_dir = _from(Path.cwd(), run.backend.throttle_dir)
        update["backend"] = run.backend.model_copy(update={"throttle_dir": throttle_dir})
    inference: dict[str, str] = {}
    # A name alone is looked for, as in a shell.
    if "/" in run.inference.command:
        inference["command"] = _from(base_dir, run.inference.command)
    if run.inference.adapter_dir:
        inference["adapter_dir"] = _from(Path.cwd(), run.inference.adapter_dir)
    update["inference"] = run.inference.model_copy(update=inference)
    log_dir = _from(Path.cwd(), run.logging.log_dir)
    update["logging"] = run.logging.model_copy(update={"log_dir": log_dir})
    components = [_absolute_cache(component) for component in run.reward.components]
    reward = _absolute_cache(run.reward)
    update["reward"] = reward.model_copy(update={"components": components})
    folders = [_from(base_dir, path) for path in run.plugins.search_paths]
    folders = [str(base_dir), *folders] if beside else folders
    update["plugins"] = run.plugins.model_copy(update={"search_paths": [*dict.fromkeys(folders)]})
    return run.model_copy(update=update)


def _absolute_cache(reward: RewardT) -> RewardT:
    if not reward.cache_dir:
        return reward
    return reward.model_copy(update={"cache_dir": _from(Path.cwd(), reward.cache_dir)})


def is_folder_name(model: str, base_dir: Path) -> bool:
    """Whether `[model].model` means a folder, and not the embedded model or a hub id."""
    if model == EMBEDDED:
        return False
    looks_like_one = model.startswith((".", "/", "~")) or model.count("/") > 1
    return looks_like_one or (base_dir / model).is_dir()


def _from(folder: Path, path: str) -> str:
    # Path.resolve raises for links in a circle.
    return os.path.realpath(folder / expanded(path))
