"""Values given on the command line: `--set table.key=value`, `--lr 1e-4`.

They change the base config, of single runs and campaigns alike. A key that a condition sets itself
cannot be overridden: applied below the condition the option would do nothing, and applied above it
the conditions would no longer differ in what they were written to compare.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from retrain.config.files import parse
from retrain.config.messages import NESTED, TABLES, bare
from retrain.config.table import Table
from retrain.errors import ConfigIssue, InputError

_DEEPEST = 8


@dataclass(frozen=True, slots=True)
class Override:
    """One value that wins over the file. `key` may be dotted inside a table of parameters."""

    table: str
    key: str
    value: Any
    source: str = "--set"

    @property
    def place(self) -> str:
        """`table.key`, without the part inside a table of parameters."""
        return place(self.table, self.key)


def place(table: str, key: str) -> str:
    """Where a message says that an override belongs: `table.key`, as TOML writes names."""
    table, key = _innermost(table, key)
    outer = ".".join(bare(part) for part in table.split("."))
    return f"{outer}.{bare(key.partition('.')[0])}"


def _innermost(table: str, key: str) -> tuple[str, str]:
    """`campaign`, `stopping.margin` -> `campaign.stopping`, `margin`."""
    first, dot, rest = key.partition(".")
    return (f"{table}.{first}", rest) if dot and f"{table}.{first}" in NESTED else (table, key)


def parse_set(text: str) -> Override:
    """`training.lr=1e-4` -> its Override. A value is TOML; bare words are text."""
    path, equals, value = text.partition("=")
    table, dot, key = path.strip().partition(".")
    if not (equals and dot and table and key):
        raise InputError(f"--set {text}: write it as table.key=value, e.g. training.lr=1e-4")
    if key.count(".") > _DEEPEST:
        raise InputError(f"--set {text[:60]}…: the key is nested too deep")
    return Override(table, key, typed(table, key, value.strip()))


def typed(table: str, key: str, text: str) -> Any:
    """`text` as the type that the schema wants for the key, where it can be read as that."""
    candidates = [*_as_toml(text), *_as_toml(f"[{text}]"), text]
    if text.lower() in ("true", "false"):
        candidates.insert(0, text.lower() == "true")
    if "," in text:
        candidates.append([part.strip() for part in text.strip("[]").split(",")])
    table, key = _innermost(table, key)
    model = (TABLES | NESTED).get(table)
    field = model.model_fields.get(key) if model else None
    if field is None:
        return candidates[0]
    annotation: Any = Annotated[field.annotation, field] if field.metadata else field.annotation
    adapter = TypeAdapter[Any](annotation, config=Table.model_config)
    for candidate in candidates:
        try:
            adapter.validate_python(candidate, strict=True)
        except ValidationError:
            continue
        return candidate
    return candidates[0]


def _as_toml(text: str) -> list[Any]:
    try:
        return [parse(f"value = {text}")["value"]]
    except tomllib.TOMLDecodeError:
        return []


def apply(
    overrides: Sequence[Override], values: dict[str, Any], *, is_campaign: bool, where: str
) -> tuple[dict[str, str], list[ConfigIssue]]:
    """Write the overrides into `values`; (`table.key` -> option, what is wrong)."""
    sources: dict[str, str] = {}
    issues: list[ConfigIssue] = []
    for override in overrides:
        problem = _refuse(override, is_campaign=is_campaign, where=where)
        if override.table == "squeeze" and "squeeze" not in values:
            problem = f"{where} has no [squeeze] table"
        if problem:
            issues.append(ConfigIssue(override.place, problem, file=override.source))
            continue
        for table, key in _targets(override, is_campaign=is_campaign):
            if not isinstance(values.get(table), dict | None):
                continue
            _put(values.setdefault(table, {}), key.split("."), override.value)
            sources[place(table, key)] = override.source
    return sources, issues


def _refuse(override: Override, *, is_campaign: bool, where: str) -> str:
    if override.table == "campaign" and not is_campaign:
        return f"{where} describes a single run; add a [campaign] table to make it a campaign"
    if override.place == "campaign.conditions":
        return "conditions cannot be given on the command line; write them in the file"
    if override.place == "training.seed" and is_campaign:
        return f"{where} is a campaign, with a list of seeds; use --seeds {override.value}"
    return ""


def _targets(override: Override, *, is_campaign: bool) -> list[tuple[str, str]]:
    """A campaign has its steps in two places, of which the command line means both."""
    if is_campaign and override.place in ("training.max_steps", "campaign.max_steps"):
        return [("training", "max_steps"), ("campaign", "max_steps")]
    return [(override.table, override.key)]


def _put(table: dict[str, Any], path: Sequence[str], value: Any) -> None:
    first, *rest = path
    if not rest:
        table[first] = value
        return
    inner = table.setdefault(first, {})
    if not isinstance(inner, dict):
        inner = table[first] = {}
    _put(inner, rest, value)


def conflicts(
    overrides: Sequence[Override], conditions: Sequence[tuple[str, Set[str]]]
) -> list[ConfigIssue]:
    """Overrides of keys that a condition sets itself. conditions: (label, its keys)."""
    issues = []
    for override in overrides:
        setters = [label for label, written in conditions if override.place in written]
        if setters:
            who = "every condition" if len(setters) == len(conditions) else setters[0]
            message = f"{who} sets it, so it cannot be overridden; change it in the file"
            issues.append(ConfigIssue(override.place, message, file=override.source))
    return issues
