"""What trackio has stored, read back from its database without trackio."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Stored:
    """One run: its rows as (step, values) in order, and its config."""

    id: str
    name: str
    config: dict[str, Any]
    history: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    system: int = 0

    @property
    def group(self) -> str:
        return str(self.config["_Group"])

    @property
    def metrics(self) -> list[tuple[int, dict[str, Any]]]:
        """Without what was said at the end."""
        return [(step, row) for step, row in self.history if "status" not in row]

    @property
    def ends(self) -> list[dict[str, Any]]:
        return [row for _, row in self.history if "status" in row]


def stored(store: Path, project: str = "probe") -> list[Stored]:
    """The runs of a project, in the order in which they came."""
    with sqlite3.connect(store / f"{project}.db") as database:
        found = {
            run_id: Stored(run_id, name, json.loads(config))
            for run_id, name, config in database.execute(
                "select run_id, run_name, config from configs order by id"
            )
        }
        for run_id, step, values in database.execute(
            "select run_id, step, metrics from metrics order by id"
        ):
            found[run_id].history.append((step, json.loads(values)))
        for (run_id,) in database.execute("select run_id from system_metrics"):
            found[run_id].system += 1
    return list(found.values())
