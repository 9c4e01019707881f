"""What a run writes while it trains: JSONL, always."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retrain.advantages.credit import Credit, Pieces
from retrain.advantages.planning import PlanningMatcher
from retrain.files import (
    EVALUATION_FOLDER,
    GENERATIONS_FILE,
    JOURNALS,
    METRICS_FILE,
    STEPS_FILE,
    append_jsonl,
    atomic_write_json,
    count_lines,
    sync_file,
)
from retrain.tracking.generations import generation_rows
from retrain.types import Group

OnRow = Callable[[Mapping[str, Any]], None]


class Journal:
    """The files of one run: metrics, emergence, evaluations. `on_row` hears of every row.

    rows: how many rows each of `JOURNALS` has.
    """

    def __init__(
        self,
        run_dir: Path,
        condition: str,
        planning: PlanningMatcher,
        pieces: Pieces,
        log_generations: int,
        on_row: OnRow | None = None,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        """`pieces` says each token's share of a completion's text. `guard` is called before
        anything is written; it raises when the run is not ours."""
        self._run_dir = run_dir
        self._condition = condition
        self._planning = planning
        self._pieces = pieces
        self._log_generations = log_generations
        self._on_row = on_row
        self._guard = guard
        for name in ("emergence", EVALUATION_FOLDER):
            (run_dir / name).mkdir(parents=True, exist_ok=True)
        self.rows = {name: count_lines(run_dir / name, sys.maxsize) for name in JOURNALS}

    def record(
        self, step: int, groups: Sequence[Group], credit: Credit, row: Mapping[str, Any]
    ) -> None:
        """The step's row, its summary and a few of its completions; the row is written last, so
        that a step with a row has everything."""
        self._guard()
        generations = generation_rows(
            step, groups, credit, self._planning, self._pieces, self._log_generations
        )
        self._append(GENERATIONS_FILE, generations)
        self._append(STEPS_FILE, [self._summary(step, groups, credit, row)])
        self._append(METRICS_FILE, [row])
        if self._on_row is not None:
            self._on_row(row)

    def record_evaluation(self, record: Mapping[str, Any]) -> None:
        """The results of every held-out problem after `record["step"]` steps."""
        atomic_write_json(
            self._run_dir / EVALUATION_FOLDER / f"step_{record['step']:06d}.json", dict(record)
        )

    def sync(self) -> None:
        """Make all rows durable; a checkpoint must not outlive the rows that led to it."""
        for name in JOURNALS:
            sync_file(self._run_dir / name)

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        append_jsonl(self._run_dir / name, rows)
        self.rows[name] += len(rows)

    def _summary(
        self, step: int, groups: Sequence[Group], credit: Credit, row: Mapping[str, Any]
    ) -> dict[str, Any]:
        scores = [score for group in groups for score in group.scores]
        tokens = credit.uncertainties[credit.mask]
        return {
            "step": step,
            "condition": self._condition,
            "mean_reward": row["mean_reward"],
            "correct_count": sum(score.outcome == "correct" for score in scores),
            "total_count": len(scores),
            "uncertainty": float(tokens.mean()) if tokens.size else None,
        }
