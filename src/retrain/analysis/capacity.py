"""How long a campaign will take, from the formulas of capacity planning and from earlier runs."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from retrain.analysis.reading import load_tables, modified_at, nested, read_tail
from retrain.analysis.records import MANIFEST_FILE, RUNS_FOLDER
from retrain.files import METRICS_FILE, RUN_CONFIG_FILE

if TYPE_CHECKING:
    from retrain.config.schema import RunConfig

NEWEST_RUNS = 64
"""Earlier runs that are looked at; older ones say little about this machine and this code."""

SHAPE = (
    ("model", "model"),
    ("model", "lora_rank"),
    ("training", "batch_size"),
    ("training", "group_size"),
    ("training", "max_tokens"),
    ("training", "updates_per_batch"),
)
"""The keys that decide how long a step takes."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """A step's duration, as earlier runs measured it."""

    seconds: float
    """Median over the runs of each run's median over its last steps."""
    runs: int
    """Runs it comes from."""
    newest: datetime
    """When the newest of them wrote its last row, UTC."""
    same_shape: bool
    """Whether those runs had the config's model, rank and batch shape. False when no such run was
    found and all others were taken, or when no config was given."""


def total_campaign_steps(num_conditions: int, num_seeds: int, max_steps: int) -> int:
    """Training steps of a whole campaign: conditions x seeds x steps a run."""
    return num_conditions * num_seeds * max_steps


def effective_parallelism(
    total_runs: int, *, parallel: bool, max_workers: int, available: int | None = None
) -> int:
    """Runs that train at the same time: `min(max_workers, total_runs)` when parallel, else 1.

    `max_workers` 0 means as many as there are runs, but no more than `available` (on a CPU:
    cores / threads a worker) when that is given.
    """
    if not parallel:
        return 1
    workers = max_workers or available or total_runs
    return max(1, min(workers, total_runs))


def estimated_wall_time(
    total_steps: int, median_step_time_s: float, effective_parallelism: int
) -> float:
    """Seconds for `total_steps`, leaving out start-up and evaluations."""
    return total_steps * median_step_time_s / effective_parallelism


def measured_step_time(log_dir: Path, config: RunConfig | None = None) -> StepTime | None:
    """The step time of the newest earlier runs in a log folder; None when there are none.

    With a config, runs of the same model, rank and batch shape are preferred, and the answer
    says whether there were any.
    """
    measured: list[tuple[float, float, bool]] = []
    for metrics in _newest_metrics(log_dir):
        tail = read_tail(metrics)
        if tail is None or tail.step_time_s is None:
            continue
        same = config is not None and _has_shape(metrics.parent / RUN_CONFIG_FILE, config)
        measured.append((tail.step_time_s, tail.modified_at, same))
    same_shape = any(same for _, _, same in measured)
    chosen = [(seconds, at) for seconds, at, same in measured if same or not same_shape]
    if not chosen:
        return None
    return StepTime(
        seconds=statistics.median(seconds for seconds, _ in chosen),
        runs=len(chosen),
        newest=datetime.fromtimestamp(max(at for _, at in chosen), UTC),
        same_shape=same_shape,
    )


def _newest_metrics(log_dir: Path) -> list[Path]:
    found: list[tuple[float, Path]] = []
    try:
        folders = [folder for folder in log_dir.iterdir() if folder.is_dir()]
    except OSError:
        return []
    for folder in folders:
        # Listing thousands of old runs would cost more than the answer is worth: a campaign's
        # manifest is as new as its newest result.
        own = modified_at(folder / METRICS_FILE)
        if own is not None:
            found.append((own, folder / METRICS_FILE))
        elif (at := modified_at(folder / MANIFEST_FILE)) is not None:
            found.append((at, folder / RUNS_FOLDER))
    paths: list[Path] = []
    for _, path in sorted(found, reverse=True):
        if path.name == METRICS_FILE:
            paths.append(path)
        else:
            inner = [(modified_at(file), file) for file in path.glob(f"*/{METRICS_FILE}")]
            paths += [file for _, file in sorted(inner, key=lambda i: i[0] or 0.0, reverse=True)]
        if len(paths) >= NEWEST_RUNS:
            break
    return paths[:NEWEST_RUNS]


def _has_shape(config_file: Path, config: RunConfig) -> bool:
    written = load_tables(config_file)
    return all(
        nested(written, table).get(key) == getattr(getattr(config, table), key)
        for table, key in SHAPE
    )
