"""Learning curves of a campaign, aligned by step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from retrain.analysis.reading import iter_rows, load_object, number
from retrain.analysis.records import CampaignRecord, RunView
from retrain.files import evaluation_files

POINTS = 240
"""Points a drawn curve has at most: more cannot be told apart in a picture."""

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


def read_curves(campaign: CampaignRecord) -> Curves:
    """The curves of all runs that have any; a run that did not finish has them until it ended."""
    length = max((run.step for run in campaign.runs), default=0)
    window = smoothing_window(length)
    accuracy: list[Curve] = []
    reward: list[Curve] = []
    for run in campaign.runs:
        measured, rewards = _read_run(run)
        if measured:
            accuracy.append(Curve(run.condition, run.seed, run.state, measured))
        if rewards:
            steps = [step for step, _ in rewards]
            smooth = moving_average([value for _, value in rewards], window)
            points = tuple(zip(steps, smooth, strict=True))
            reward.append(Curve(run.condition, run.seed, run.state, thin(points, length)))
    return Curves(tuple(accuracy), tuple(reward), window)


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
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    smooth: list[float] = []
    for i in range(len(values)):
        first, end = max(0, i - window // 2), min(len(values), i + window // 2 + 1)
        smooth.append((sums[end] - sums[first]) / (end - first))
    return smooth


def thin(points: Points, steps: int) -> Points:
    """About `POINTS` points of a curve that is `steps` long when it is whole.

    The kept steps depend on `steps` alone, so that all runs of a campaign keep the same ones. The
    last point always stays.
    """
    stride = max(1, -(-steps // POINTS))
    return tuple(point for point in points if point[0] % stride == 0 or point == points[-1])


def _read_run(run: RunView) -> tuple[Points, Points]:
    accuracy: dict[float, float] = {}
    reward: dict[float, float] = {}
    for row in iter_rows(run.metrics):
        step = number(row, "step")
        if step is None:
            continue
        if (value := number(row, "mean_reward")) is not None:
            reward[step] = value
        if (value := number(row, "held_out_accuracy")) is not None:
            accuracy[step + 1] = value
    for step, path in evaluation_files(run.folder).items():
        if step not in accuracy and (value := number(load_object(path), "accuracy")) is not None:
            accuracy[float(step)] = value
    if 0.0 not in accuracy and run.result.accuracy_before is not None:
        accuracy[0.0] = run.result.accuracy_before
    return tuple(sorted(accuracy.items())), tuple(sorted(reward.items()))
