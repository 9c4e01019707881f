"""Small campaigns for the tests, and an executor whose workers only pretend to train."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from retrain.config.load import LoadedConfig, config_from_mapping
from retrain.experiments.executors.local import LocalExecutor

TROUBLE_FILE = "trouble.json"
FAKE_WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))


def tables(
    logs: Path,
    conditions: Mapping[str, Mapping[str, Any]],
    *,
    seeds: tuple[int, ...] = (1, 2),
    max_steps: int = 4,
    every: int = 0,
    **campaign: Any,
) -> dict[str, Any]:
    """A campaign's tables; `conditions` maps names to what the fake worker does in them, `every` is
    the steps between evaluations.

    A config has no place for that, so it lies in the log folder.
    """
    if any(conditions.values()):
        logs.mkdir(parents=True, exist_ok=True)
        (logs / TROUBLE_FILE).write_text(json.dumps(conditions))
    return {
        "training": {"max_tokens": 16},
        "evaluation": {"every": every},
        "logging": {"log_dir": str(logs)},
        "campaign": {
            "seeds": list(seeds),
            "max_steps": max_steps,
            **campaign,
            "conditions": [
                {
                    "name": name,
                    "advantage_mode": "grpo",
                    "transform_mode": "none",
                }
                for name in conditions
            ],
        },
    }


def load(logs: Path, conditions: Mapping[str, Mapping[str, Any]], **options: Any) -> LoadedConfig:
    return config_from_mapping(tables(logs, conditions, **options))


def set_trouble(logs: Path, conditions: Mapping[str, Mapping[str, Any]]) -> None:
    """What the fake worker does in each condition from now on; none is named, none misbehaves."""
    (logs / TROUBLE_FILE).write_text(json.dumps(conditions))


def snapshot(*folders: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below, with its bytes and when it was written, so that a rewrite shows too."""
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns)
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def fake_executor(workers: int = 1, **options: Any) -> Callable[[Path], LocalExecutor]:
    def make(folder: Path) -> LocalExecutor:
        log = folder / "workers.log"
        return LocalExecutor(workers, log=log, command=FAKE_WORKER, **options)

    return make


def plain_console() -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    return Console(file=output, width=80, force_terminal=False), output


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def vanishes(pid: int, seconds: float = 10.0) -> bool:
    """Whether the process is gone, or goes soon: a killed one takes a moment."""
    deadline = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(pid)
