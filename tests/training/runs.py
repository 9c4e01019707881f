"""Small runs on the embedded model for the tests, and what of their folders can be compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from retrain.config.schema import RunConfig
from retrain.files import read_jsonl
from retrain.training.run import BaseModels, RunResult, train_run

BASES = BaseModels()
TIMES = ("_time_s", "tokens_per_second", "peak_memory_mb")
OWN_TIME = {
    *("started_at", "updated_at", "finished_at", "wall_s"),
    *("attempts", "resumed_from"),
}
"""Fields of `run.json` that say when and by how many attempts, and not what."""

OnRow = Callable[[Mapping[str, Any]], None]


def config(**tables: dict[str, Any]) -> RunConfig:
    base: dict[str, dict[str, Any]] = {
        "model": {"lora_rank": 4},
        "algorithm": {"advantage_mode": "grpo", "transform_mode": "none"},
        "training": {
            "seed": 7,
            "max_steps": 4,
            "batch_size": 3,
            "group_size": 4,
            "max_tokens": 40,
            "lr": 2e-3,
            "save_every": 2,
        },
        "evaluation": {"num_problems": 8},
    }
    for table, values in tables.items():
        base[table] = {**base.get(table, {}), **values}
    return RunConfig.model_validate(base)


def start(settings: RunConfig, folder: Path, condition: str = "c", **kwargs: Any) -> RunResult:
    return train_run(
        settings, folder, name=f"{condition}_s7", condition=condition, bases=BASES, **kwargs
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    """Metrics without the times, which the config does not determine."""
    return [
        {k: v for k, v in row.items() if not k.endswith(TIMES)}
        for row in read_jsonl(folder / "metrics.jsonl")
    ]


def content(folder: Path) -> dict[str, Any]:
    """Everything in a run's folder by its path: bytes, but numbers without their times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name] = "folder"
        elif name == "metrics.jsonl":
            found[name] = rows(folder)
        elif name == "run.json":
            found[name] = _without_times(json.loads(path.read_text()))
        else:
            found[name] = path.read_bytes()
    return found


def assert_same(folder: Path, other: Path) -> None:
    """Two folders hold the same run; names what differs, not how."""
    one, two = content(folder), content(other)
    assert sorted(one) == sorted(two)
    assert [name for name in one if one[name] != two[name]] == []


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in OWN_TIME}
    return value
