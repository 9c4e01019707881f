"""Runs of seconds for the tests of tracking."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retrain.config.schema import RunConfig
from retrain.files import read_jsonl
from retrain.training.run import BaseModels, RunResult, train_run

BASES = BaseModels()
TIMES = ("_time_s", "tokens_per_second", "peak_memory_mb")
OFFLINE = {"wandb_project": "probe", "wandb_mode": "offline"}
CLOSED = "http://127.0.0.1:9"
"""Nothing listens there."""

TINY: dict[str, dict[str, Any]] = {
    "model": {"lora_rank": 4},
    "algorithm": {"advantage_mode": "grpo", "transform_mode": "none"},
    "training": {
        **{"seed": 7, "max_steps": 4, "batch_size": 2, "group_size": 2, "max_tokens": 16},
        **{"lr": 2e-3, "save_every": 2},
    },
    "evaluation": {"num_problems": 4, "every": 2},
}


def config(**logging_keys: Any) -> RunConfig:
    return RunConfig.model_validate({**TINY, "logging": logging_keys})


def start(settings: RunConfig, run_dir: Path, **options: Any) -> RunResult:
    return train_run(settings, run_dir, name="grpo_s7", condition="grpo", bases=BASES, **options)


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """Metrics without the times, which differ from one training to the next."""
    return [
        {key: value for key, value in row.items() if not key.endswith(TIMES)}
        for row in read_jsonl(run_dir / "metrics.jsonl")
    ]


def own(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of wandb's without what wandb adds."""
    return {key: value for key, value in row.items() if not key.startswith("_")}


def config_file(path: Path, tables: Mapping[str, Any]) -> None:
    import tomli_w

    path.write_text(tomli_w.dumps(tables))
