"""Learning curves of a campaign, aligned by step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from retrain.analysis.records import CampaignRecord
from retrain.analysis.series import RunSeries, SeriesReader

POINTS = 240
"""Points a drawn curve has at most: more cannot be told apart in a picture."""
ALL_POINTS = 48_000
"""Points that the curves of a picture have together, as long as each keeps `FEW_POINTS`."""
FEW_POINTS = 60

Points = tuple[tuple[float, float], ...]
"""(step, value), in order of the steps."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One run's curve. A step counts the updates behind the policy that was measured."""

    condition: str
    seed: int | None
    state: str
    points: Points


@dataclass(frozen=True, slots=True)
class Curves:
    """What the pictures of a campaign show."""

    accuracy: tuple[Curve, ...]
    """Held-out accuracy."""
    reward: tuple[Curve, ...]
    """Mean reward of each step's batch, smoothed."""
    reward_window: int
    """Steps that the moving average of the reward spans."""


def read_curves(campaign: CampaignRecord, reader: SeriesReader | None = None) -> Curves:
    """The curves of all runs that have any; a run that did not finish has them until it ended.

    reader: one that may have read the runs already.
    """
    reader = reader or SeriesReader()
    length = max((run.step for run in campaign.runs), default=0)
    window = smoothing_window(length)
    limit = max(FEW_POINTS, min(POINTS, ALL_POINTS // max(1, len(campaign.runs))))
    accuracy: list[Curve] = []
    reward: list[Curve] = []
    for run in campaign.runs:
        series = reader.read(run)
        measured = tuple(
            (float(e.step), e.accuracy) for e in series.evaluations if e.accuracy is not None
        )
        if measured:
            accuracy.append(Curve(run.condition, run.seed, run.state, measured))
        if rewards := thin(_smooth_rewards(series, window), length, limit):
            reward.append(Curve(run.condition, run.seed, run.state, rewards))
    return Curves(_thin_measured(accuracy, limit), tuple(reward), window)


def mean_curve(curves: Iterable[Curve]) -> Points:
    """The mean over runs, at the steps that all of them have.

    Only finished runs count, when there are any: a mean whose members change along the way
    shows steps that no run made.
    """
    curves = list(curves)
    chosen = [curve for curve in curves if curve.state == "done"] or curves
    if not chosen:
        return ()
    by_step: list[Mapping[float, float]] = [dict(curve.points) for curve in chosen]
    shared = set(by_step[0]).intersection(*by_step[1:])
    return tuple(
        (step, sum(values[step] for values in by_step) / len(by_step)) for step in sorted(shared)
    )


def smoothing_window(steps: int) -> int:
    """A light moving average: a twentieth of the run, odd, at least 3 and at most 15 steps."""
    return min(15, max(3, steps // 20)) | 1


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Centred moving average; at the ends it spans what there is of its window."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    first = np.maximum(0, at - window // 2)
    end = np.minimum(len(values), at + window // 2 + 1)
    smooth: list[float] = ((sums[end] - sums[first]) / (end - first)).tolist()
    return smooth


def thin(points: Points, steps: int, limit: int = POINTS) -> Points:
    """About `limit` points of a curve that is `steps` long when it is whole.

    The kept steps depend on `steps` alone, so that all runs of a campaign keep the same ones. The
    last point always stays.
    """
    stride = max(1, -(-steps // limit))
    return tuple(point for point in points if point[0] % stride == 0 or point == points[-1])


def _thin_measured(curves: Sequence[Curve], limit: int) -> tuple[Curve, ...]:
    """As `thin`, of curves with points at a few steps only."""
    steps = sorted({step for curve in curves for step, _ in curve.points})
    kept = set(steps[:: max(1, -(-len(steps) // limit))])
    return tuple(
        replace(
            curve, points=tuple(p for p in curve.points if p[0] in kept or p == curve.points[-1])
        )
        for curve in curves
    )


def _smooth_rewards(series: RunSeries, window: int) -> Points:
    known = ~np.isnan(series.values["mean_reward"])
    steps = series.step[known].astype(float).tolist()
    smooth = moving_average(series.values["mean_reward"][known].tolist(), window)
    return tuple(zip(steps, smooth, strict=True))
