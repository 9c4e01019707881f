"""Whether a run that says it runs really does.

`run.json` tells how a run began and, if it had the time, how it ended. A process that is killed
tells nothing, so its word is checked against the process table and the age of its last row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retrain.analysis.reading import MetricsTail, moment, text
from retrain.files import FINAL_STATUSES
from retrain.processes import ProcessId

STALL_STEPS = 20
STALL_S = 120.0
START_S = 900.0
"""Before the first row a model may have to be downloaded and loaded."""


def judge(
    record: Mapping[str, Any],
    planned: Mapping[str, Any],
    tail: MetricsTail | None,
    now: float,
) -> tuple[str, str]:
    """The state of a run, and why, from its `run.json` and its entry in the manifest.

    A final word in `run.json` counts. Of an unfinished run the process decides, if it was
    started on this machine; the manifest, if it recorded an end; and else the age of its last
    row: `stalled` after 20 steps' time without one, two minutes at least.
    """
    status = text(record, "status") or text(planned, "status") or "pending"
    message = text(record, "message")
    if text(planned, "status") == "dropped" and status not in {"done", "diverged", "running"}:
        # Its worker could only write that it was stopped.
        return "dropped", text(planned, "message")
    if text(record, "status") in FINAL_STATUSES:
        return status, message or text(planned, "message")
    process = ProcessId.read(record) if text(record, "status") == "running" else None
    alive = process.is_alive() if process else None
    if text(planned, "status") in FINAL_STATUSES and not alive:
        return text(planned, "status"), text(planned, "message") or message
    if alive is False:
        return "lost", (
            f"its process ({record.get('pid')}) is gone; `retrain resume` goes on from its last "
            "checkpoint"
        )
    if status != "running":
        return status, message
    if not text(record, "status"):
        return (
            "lost",
            "its run.json is missing or damaged; `retrain resume` of its campaign mends it",
        )
    started_at = moment(record, "updated_at") or 0.0
    row_at = tail.modified_at if tail else 0.0
    since = max(started_at, row_at)
    if not since:
        return status, message
    step_time_s = tail.step_time_s if tail and row_at >= started_at else None
    patience = max(STALL_S, STALL_STEPS * step_time_s) if step_time_s else START_S
    if now - since > patience:
        silence = f"no row for {int((now - since) // 60)} min"
        usual = f", a step takes {step_time_s:.3g} s" if step_time_s else ""
        where = f"process {record.get('pid')} on {record.get('host') or 'an unknown host'}"
        return "stalled", f"{silence}{usual}; look at {where}"
    return status, message
