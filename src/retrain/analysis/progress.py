"""How far runs and campaigns are, and how long they will still take."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from retrain.analysis.capacity import effective_parallelism
from retrain.analysis.records import CampaignRecord, RunView

ACTIVE = frozenset({"running", "stalled"})


@dataclass(frozen=True, slots=True)
class Progress:
    """A campaign's progress."""

    steps_done: int
    steps_total: int | None
    """None when a run's length is unknown."""
    step_time_s: float | None
    """Median over the runs of each run's median."""
    row_age_s: float | None
    """Age of the newest row of any run."""
    seconds_left: float | None
    """None when it is over, or when nothing was measured yet."""


def campaign_progress(campaign: CampaignRecord) -> Progress:
    """Progress of a campaign.

    The time left plays the rest of the campaign through: running runs go on, each pending one
    starts on the worker that is free first, and a step takes what it took in the same run, else
    in the same condition, else in the campaign. Start-up and evaluations are left out.
    """
    lengths = [run.max_steps for run in campaign.runs]
    known = [length for length in lengths if length is not None]
    return Progress(
        steps_done=sum(run.step for run in campaign.runs),
        steps_total=sum(known) if len(known) == len(lengths) else None,
        step_time_s=_median(run.step_time_s for run in campaign.runs),
        row_age_s=min(
            (run.row_age_s for run in campaign.runs if run.row_age_s is not None), default=None
        ),
        seconds_left=None if campaign.finished else _campaign_seconds_left(campaign),
    )


def run_seconds_left(run: RunView) -> float | None:
    """Seconds until a running run is done; None for others, and before its first row."""
    if run.state != "running" or run.steps_left is None or run.step_time_s is None:
        return None
    return run.steps_left * run.step_time_s


def _campaign_seconds_left(campaign: CampaignRecord) -> float | None:
    overall = _median(run.step_time_s for run in campaign.runs)
    if overall is None:
        return None
    usual = {
        label: _median(run.step_time_s for run in campaign.of(label)) or overall
        for label in campaign.conditions
    }
    active = [run for run in campaign.runs if run.state in ACTIVE]
    pending = [run for run in campaign.runs if run.state == "pending"]
    planned = effective_parallelism(
        len(campaign.runs),
        parallel=campaign.parallel,
        max_workers=campaign.workers,
        # 0 workers stands for "as many as fit"; what runs now tells how many those are.
        available=max(1, len(active)),
    )
    workers = [0.0] * max(planned, len(active))
    for run in [*active, *pending]:
        step_time = run.step_time_s or usual.get(run.condition, overall)
        heapq.heapreplace(workers, workers[0] + (run.steps_left or 0) * step_time)
    return max(workers)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
