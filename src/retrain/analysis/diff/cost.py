"""What two sides cost: tokens, seconds, memory, and the tokens to reach the same accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retrain.analysis.diff.curves import Series
from retrain.analysis.series import RunSeries

Measure = Callable[[RunSeries], float | None]


@dataclass(frozen=True, slots=True)
class Cost:
    """One cost of a run, as the mean over the pairs of which both runs tell it."""

    name: str
    a: float | None
    b: float | None

    @property
    def ratio(self) -> float | None:
        """B over A; None where either is unknown, or A is 0."""
        return self.b / self.a if self.a and self.b is not None else None


@dataclass(frozen=True, slots=True)
class Costs:
    """What training cost, without the evaluation before it, which no row tells."""

    whole: bool
    """Of whole runs; False: of the steps that both runs of a pair have, as not all are done."""
    pairs: int
    """Pairs of runs that the means are over."""
    costs: tuple[Cost, ...]


@dataclass(frozen=True, slots=True)
class Reach:
    """What a side spent until its mean accuracy first was as good as `Reached.accuracy`."""

    step: int
    tokens: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Reached:
    """What it took to come as far as the side that came less far."""

    accuracy: float
    """The lower of the two sides' last mean accuracies."""
    a: Reach
    b: Reach
    pairs: int
    """Pairs of runs that the means are over."""


def compare_costs(series: Series) -> Costs:
    """Mean cost of a run on each side.

    `seconds` are those of the steps: sampling, rewards, updates, evaluations and the little that is
    left; `seconds_a_step` leave evaluations out; memory is the highest of any step.
    """
    whole = all(pair.a.state == pair.b.state == "done" for pair, _, _ in series)
    runs = [(a, b) if whole else _common_steps(a, b) for _, a, b in series]
    return Costs(
        whole, len(runs), tuple(_cost(name, measure, runs) for name, measure in MEASURES.items())
    )


def _cost(name: str, measure: Measure, runs: Sequence[tuple[RunSeries, RunSeries]]) -> Cost:
    both = [
        (x, y) for a, b in runs if (x := measure(a)) is not None and (y := measure(b)) is not None
    ]
    if not both:
        return Cost(name, None, None)
    a, b = np.array(both).mean(axis=0)
    return Cost(name, float(a), float(b))


def _common_steps(a: RunSeries, b: RunSeries) -> tuple[RunSeries, RunSeries]:
    last = min((int(s.step[-1]) if s.step.size else -1) for s in (a, b))
    return _until(a, last), _until(b, last)


def _until(series: RunSeries, last: int) -> RunSeries:
    rows = int(np.searchsorted(series.step, last, side="right"))
    return RunSeries(
        series.step[:rows],
        {name: values_N[:rows] for name, values_N in series.values.items()},
        series.tokens[:rows],
        series.seconds[:rows],
        tuple(e for e in series.evaluations if e.step <= last + 1),
    )


def compare_reach(series: Series) -> Reached | None:
    """Tokens and seconds until the lower of the two final accuracies was first reached.

    Each side is its mean over seeds, at the evaluations that all of its runs have; runs whose pair
    is not done are left out when any pair is done. The first evaluation at or above the accuracy
    counts: nothing is interpolated, so the answer is as coarse as `evaluation.every`. None without
    an evaluation after training began on both sides.
    """
    done = [item for item in series if item[0].a.state == item[0].b.state == "done"]
    chosen = done or list(series)
    sides = [_mean_reaches([a for _, a, _ in chosen]), _mean_reaches([b for _, _, b in chosen])]
    if any(not side or side[-1][0].step == 0 for side in sides):
        return None
    accuracy = min(side[-1][1] for side in sides)
    first = [next(reach for reach, value in side if value >= accuracy) for side in sides]
    return Reached(accuracy, first[0], first[1], len(chosen))


def _mean_reaches(runs: Sequence[RunSeries]) -> list[tuple[Reach, float]]:
    """(spent, mean accuracy) at every evaluation that all of the runs have."""
    by_step = [{e.step: e for e in run.evaluations if e.accuracy is not None} for run in runs]
    if not by_step:
        return []
    common = sorted(set(by_step[0]).intersection(*by_step[1:]))
    found = []
    for step in common:
        there = [of_run[step] for of_run in by_step]
        accuracy = float(np.mean([e.accuracy for e in there if e.accuracy is not None]))
        tokens = float(np.mean([e.tokens for e in there]))
        seconds = float(np.mean([e.seconds for e in there]))
        found.append((Reach(step, tokens, seconds), accuracy))
    return found


def _total(column: str) -> Measure:
    def total(series: RunSeries) -> float | None:
        values_N = series.values[column]
        return None if np.isnan(values_N).all() else float(np.nansum(values_N))

    return total


def _steps(series: RunSeries) -> float | None:
    return float(series.step.size) if series.step.size else None


def _seconds_a_step(series: RunSeries) -> float | None:
    seconds_N = series.values["step_time_s"] - np.nan_to_num(series.values["evaluation_time_s"])
    return None if np.isnan(seconds_N).all() else float(np.nanmean(seconds_N))


def _peak_memory(series: RunSeries) -> float | None:
    values_N = series.values["peak_memory_mb"]
    return None if np.isnan(values_N).all() else float(np.nanmax(values_N))


MEASURES: Mapping[str, Measure] = {
    "steps": _steps,
    "tokens": _total("tokens"),
    "seconds": _total("step_time_s"),
    "sampling_seconds": _total("sample_time_s"),
    "reward_seconds": _total("reward_time_s"),
    "update_seconds": _total("update_time_s"),
    "evaluation_seconds": _total("evaluation_time_s"),
    "seconds_a_step": _seconds_a_step,
    "peak_memory_mb": _peak_memory,
}
