"""Conditions: named sets of changes to the base config, each merged and validated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from retrain.config import labels
from retrain.config.schema import (
    STANDARD_CONDITIONS,
    ConditionConfig,
    RetrainConfig,
    RunConfig,
)
from retrain.config.table import Table
from retrain.config.validation import validate
from retrain.errors import ConfigIssue

_MODES = ("advantage_mode", "transform_mode")


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition, resolved. A single run has exactly one, without changes.

    changes: table -> key -> value, as written, without the two modes.
    config:  the base config with the changes merged in; its seed is the base config's.
    written: keys that the condition sets, the modes among them, as `table.key`.
    place:   what messages call it: `campaign.conditions[2]`, counted from 1.
    """

    label: str
    advantage_mode: str
    transform_mode: str
    changes: labels.Changes
    config: RunConfig = field(repr=False)
    written: frozenset[str] = field(default=frozenset(), repr=False)
    place: str = field(default="", repr=False)


def run_tables(config: RetrainConfig) -> RunConfig:
    """The base config without `[campaign]`."""
    return RunConfig(**{name: getattr(config, name) for name in RunConfig.model_fields})


def single(config: RetrainConfig) -> Condition:
    """The one condition of a single run."""
    base = run_tables(config)
    modes = base.algorithm
    label = labels.fit(labels.safe(_modes_text(base)))
    return Condition(label, modes.advantage_mode, modes.transform_mode, {}, base)


def resolve(config: RetrainConfig) -> tuple[tuple[Condition, ...], list[ConfigIssue]]:
    """The conditions of a campaign, and what is wrong with them."""
    assert config.campaign is not None
    base = run_tables(config)
    issues: list[ConfigIssue] = []
    merged = []
    given = config.campaign.conditions or _standard()
    for number, condition in enumerate(given, start=1):
        standard = not config.campaign.conditions
        place = "the standard conditions" if standard else f"campaign.conditions[{number}]"
        merged.append(_merge(base, condition, place, issues))
    named = [(c.name, _modes_text(m.config), m.changes) for c, m in zip(given, merged, strict=True)]
    made = labels.make_labels(named)
    conditions = tuple(replace(c, label=label) for c, label in zip(merged, made, strict=True))
    return conditions, issues


def _standard() -> list[ConditionConfig]:
    return [
        ConditionConfig(advantage_mode=advantage, transform_mode=transform)
        for advantage, transform in STANDARD_CONDITIONS
    ]


def _merge(
    base: RunConfig, given: ConditionConfig, place: str, issues: list[ConfigIssue]
) -> Condition:
    """One condition, still without its label."""

    def refuse(key: str, message: str) -> None:
        issues.append(ConfigIssue(f"{place}.{key}", message))

    if given.name and (problem := labels.check_name(given.name)):
        refuse("name", problem)
    changes: dict[str, dict[str, Any]] = {
        table: dict(keys)
        for table in RunConfig.model_fields
        if (keys := getattr(given, table, None))
    }
    algorithm = changes.setdefault("algorithm", {})
    for mode in _MODES:
        if direct := getattr(given, mode):
            if mode in algorithm:
                refuse(f"algorithm.{mode}", f"the condition has {mode} already; write it once")
            algorithm[mode] = direct
    if any(mode in algorithm for mode in _MODES) and algorithm.setdefault("algorithm_mode", ""):
        refuse("algorithm.algorithm_mode", "replaces both modes; write either it or them")
    if changes.get("training", {}).pop("seed", None) is not None:
        refuse("training.seed", "every condition runs under all of [campaign].seeds; drop it")
    outcome = validate(RunConfig, deep_merge(base.model_dump(), changes))
    for table, key, message in outcome.problems:
        refuse(f"{table}.{key}" if key else table, message)
        changes.get(table, {}).pop(key, None)
    config = outcome.config
    return Condition(
        label="",
        advantage_mode=config.algorithm.advantage_mode,
        transform_mode=config.algorithm.transform_mode,
        changes=_changes(changes, config),
        config=config,
        written=frozenset(f"{table}.{key}" for table, keys in changes.items() for key in keys),
        place=place,
    )


def _changes(written: labels.Changes, config: RunConfig) -> labels.Changes:
    """What was written, in the schema's types (1 -> 1.0) and without the modes."""
    changes: dict[str, dict[str, Any]] = {}
    for table, keys in written.items():
        for key, value in keys.items():
            unknown = key not in type(getattr(config, table)).model_fields
            if unknown or key in _MODES or (key == "algorithm_mode" and not value):
                continue
            typed = value if isinstance(value, dict) else getattr(getattr(config, table), key)
            changes.setdefault(table, {})[key] = _plain(typed)
    return changes


def _plain(value: Any) -> Any:
    """A value as TOML knows it: tables in a list as dicts of what was written."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.model_dump(exclude_unset=True) if isinstance(value, Table) else value


def _modes_text(run: RunConfig) -> str:
    algorithm = run.algorithm
    return algorithm.algorithm_mode or f"{algorithm.advantage_mode}+{algorithm.transform_mode}"


def clashes(conditions: Sequence[Condition], broken: Set[str]) -> list[ConfigIssue]:
    """Conditions whose labels are the same on some file system.

    broken: keys in error already; a condition that is not as it was written is not compared.
    """
    issues = []
    by_label: dict[str, Condition] = {}
    for condition in conditions:
        if any(f"{key}.".startswith(f"{condition.place}.") for key in broken):
            continue
        first = by_label.setdefault(condition.label.lower(), condition)
        if first is not condition:
            same = condition.label == first.label
            message = (
                f'"{condition.label}" is already the label of {first.place}'
                f"{'' if same else f' ({first.label}; case does not count)'}; "
                "change one of them, or give it another name"
            )
            issues.append(ConfigIssue(condition.place, message))
    return issues


def deep_merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` written over it, table by table."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        both_tables = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = deep_merge(below, value) if both_tables else value  # type: ignore[arg-type]
    return merged
