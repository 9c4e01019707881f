"""Where the configs, versions and machines of two sides differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from retrain.analysis.diff.sides import Match, RunPair
from retrain.analysis.reading import items, load_object, load_tables, text
from retrain.analysis.records import RunView
from retrain.config.changes import CONTENTS, MAY_CHANGE, PATHS
from retrain.config.schema import RunConfig
from retrain.files import RUN_FILE

SHOWN_ALWAYS = frozenset(
    {"training.max_steps", "evaluation.every", "backend.device", "backend.threads"}
)
"""Keys that a resumed run may change, and that still matter to who compares two runs."""

Config = Mapping[str, Any]
"""`table.key` (deeper for tables in tables) -> value; a key without a value is left out. A name of
`CONTENTS` -> hash, as far as known."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One name whose value differs; None is unset or unknown."""

    key: str
    a: Any
    b: Any
    pairs: int
    """Pairs of runs in which it differs."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """A change of the config with which a run went on after a resume."""

    run: str
    side: str
    step: Any
    key: str
    before: Any
    now: Any


@dataclass(frozen=True, slots=True)
class ConfigDifferences:
    """Where two sides differ before anything was trained."""

    decisive: tuple[Difference, ...]
    """Keys that have a say in what is computed, or in what it costs."""
    bookkeeping: tuple[Difference, ...]
    """Keys that change no number."""
    environment: tuple[Difference, ...]
    """Versions, device, threads and host, from `run.json`."""
    resumed: tuple[Resumed, ...]
    unreadable: tuple[str, ...]
    """Files that are missing or damaged."""
    pairs: int
    """Pairs of runs that were compared."""

    @property
    def same(self) -> bool | None:
        """Nothing that decides what is computed differs; None when a config cannot be read."""
        if self.decisive:
            return False
        return None if self.unreadable else True


def read_config(run: RunView) -> Config | None:
    """The run's resolved config, flat, with defaults for keys that it is too old to have.

    It is not validated: configs of older and newer versions can be compared as well. None when
    it is missing or damaged.
    """
    tables = load_tables(run.config)
    if not tables:
        return None
    merged = {
        table: {**keys, **given} if isinstance(given := tables.get(table, {}), dict) else {}
        for table, keys in _defaults().items()
    }
    return {**dict(_flat({**tables, **merged})), **run.contents}


def compare_configs(match: Match, configs: Mapping[Path, Config | None]) -> ConfigDifferences:
    """Where the configs, versions and machines of the two sides differ.

    configs: of every run, by its folder.

    The seed is left out for conditions, which are paired by it. Without a pair the first run of
    each side stands for all.
    """
    pairs = match.pairs or tuple(
        RunPair(None, a, b) for a, b in zip(match.a.runs[:1], match.b.runs[:1], strict=False)
    )
    ignored = {"training.seed"} if match.kind == "conditions" else set()
    read = [(configs[pair.a.folder], configs[pair.b.folder]) for pair in pairs]
    found = _differences(
        ((a, b) for a, b in read if a is not None and b is not None), ignored=ignored
    )
    runs = [(side, run) for pair in pairs for side, run in (("A", pair.a), ("B", pair.b))]
    records = {run.folder: load_object(run.folder / RUN_FILE) for _, run in runs}
    environment = _differences(
        (_environment(records[pair.a.folder]), _environment(records[pair.b.folder]))
        for pair in pairs
    )
    return ConfigDifferences(
        decisive=tuple(d for d in found if not is_bookkeeping(d.key)),
        bookkeeping=tuple(d for d in found if is_bookkeeping(d.key)),
        environment=environment,
        resumed=tuple(
            change for side, run in runs for change in _resumed(run, side, records[run.folder])
        ),
        unreadable=tuple(str(run.config) for _, run in runs if configs[run.folder] is None),
        pairs=len(pairs),
    )


def is_bookkeeping(key: str) -> bool:
    """Whether a key of the config changes no number that is written."""
    written = ".".join(key.split(".")[:2])
    return written in MAY_CHANGE - SHOWN_ALWAYS


def computes_the_same(a: Config, b: Config) -> bool:
    """Whether two runs of these configs would write the same numbers as far as both go."""
    free = (
        MAY_CHANGE
        if a.get("training.lr_schedule") == "constant"
        else (MAY_CHANGE - {"training.max_steps"})
    )
    return all(
        ".".join(difference.key.split(".")[:2]) in free for difference in _differences([(a, b)])
    )


def _differences(
    pairs: Iterable[tuple[Config, Config]], ignored: Iterable[str] = ()
) -> tuple[Difference, ...]:
    found: dict[str, Difference] = {}
    skipped = set(ignored)
    for a, b in pairs:
        same = {name for name in CONTENTS if name in a and a[name] == b.get(name)}
        for key in dict.fromkeys([*a, *b]):
            if key in skipped or a.get(key) == b.get(key) or PATHS.get(key) in same:
                continue
            if key in CONTENTS and not (key in a and key in b):
                continue
            first = found.get(key)
            found[key] = (
                Difference(key, first.a, first.b, first.pairs + 1)
                if first
                else Difference(key, a.get(key), b.get(key), 1)
            )
    return tuple(found.values())


def _environment(record: Mapping[str, Any]) -> Config:
    versions = record.get("versions")
    found = dict(versions) if isinstance(versions, dict) else {}
    found |= {key: record.get(key) for key in ("device", "threads", "host")}
    return {key: value for key, value in found.items() if value is not None}


def _resumed(run: RunView, side: str, record: Mapping[str, Any]) -> Sequence[Resumed]:
    return [
        Resumed(
            run=run.name,
            side=side,
            step=change.get("step"),
            key=text(change, "key"),
            before=change.get("before"),
            now=change.get("now"),
        )
        for change in items(record, "changes")
        if isinstance(change, dict)
    ]


@cache
def _defaults() -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = RunConfig().model_dump(mode="json", exclude_none=True)
    return tables


def _flat(tables: Mapping[str, Any], place: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tables.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{place}{key}.")
        else:
            yield f"{place}{key}", value
