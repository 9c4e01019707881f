"""Curves of two sides by step, and their difference, paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from retrain.analysis.diff.sides import RunPair
from retrain.analysis.paired import Paired, compare_pairs
from retrain.analysis.series import Evaluation, RunSeries
from retrain.analysis.statistics import Contrast, paired_contrast
from retrain.types import FloatArray, IntArray

WINDOWS = 3
"""Windows of steps that training metrics are averaged over: one step's batch is mostly noise."""

SHOWN_EVALUATIONS = 6
"""Evaluations that are shown at most, evenly spread, always the first and the last."""

TRAINING: Mapping[str, str] = {
    "mean_reward": "mean reward",
    "mean_completion_tokens": "tokens a completion",
    "informative_share": "informative groups",
    "max_token_hit_rate": "cut off at max_tokens",
    "kl_to_base": "KL to the base model",
    "kl_to_sampler": "KL to the sampler",
    "grad_norm": "gradient norm",
}
"""Columns of a row, and what they are called; `informative_share` is informative groups over
`batch_size`."""

SHARES = frozenset({"accuracy", "greedy_accuracy", "informative_share", "max_token_hit_rate"})
"""Metrics that are shares of 1."""


@dataclass(frozen=True, slots=True)
class Point:
    """Both sides at one place; means are over the pairs that have both values."""

    first: int
    last: int
    """Steps that the values are means over, both included; the same for an evaluation, whose
    step counts the updates behind it."""
    a: float
    b: float
    contrast: Contrast
    """Of B - A over the pairs."""
    values: Mapping[str, tuple[float, float]]
    """Pair -> (A, B), without pairs that lack one."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric of both sides."""

    metric: str
    title: str
    points: tuple[Point, ...]
    final: Paired | None = None
    """Everything about the last point, for held-out accuracy of conditions."""

    @property
    def shown(self) -> tuple[Point, ...]:
        """At most SHOWN_EVALUATIONS of the points, evenly spread, with both ends."""
        count = min(len(self.points), SHOWN_EVALUATIONS)
        places = np.linspace(0, len(self.points) - 1, count).round().astype(int)
        return tuple(self.points[place] for place in places)


Series = Sequence[tuple[RunPair, RunSeries, RunSeries]]


def compare_curves(series: Series) -> tuple[Curve, ...]:
    """Held-out accuracy at every step that some pair has on both sides, then what the rows tell in
    windows of steps.

    A metric that no pair has is left out.
    """
    curves = [
        *(_evaluations(series, metric) for metric in ("accuracy", "greedy_accuracy")),
        *(_training(series, metric) for metric in TRAINING),
    ]
    return tuple(curve for curve in curves if curve.points)


def _evaluations(series: Series, metric: str) -> Curve:
    found: dict[int, dict[str, tuple[float, float]]] = {}
    for pair, a, b in series:
        measured = [
            {e.step: value for e in side.evaluations if (value := _accuracy(e, metric)) is not None}
            for side in (a, b)
        ]
        for step in measured[0].keys() & measured[1].keys():
            found.setdefault(step, {})[pair.name] = (measured[0][step], measured[1][step])
    points = tuple(
        _point(step, step, values, len(series)) for step, values in sorted(found.items())
    )
    final = None
    if points and len(points[-1].values) > 1:
        values_S2 = np.array(list(points[-1].values.values()))
        final = compare_pairs(values_S2[:, 1], values_S2[:, 0])
    title = "Held-out accuracy" if metric == "accuracy" else "Greedy held-out accuracy"
    return Curve(metric, title, points, final)


def _training(series: Series, metric: str) -> Curve:
    columns = [
        (pair.name, *_common(a.step, _column(a, metric), b.step, _column(b, metric)))
        for pair, a, b in series
    ]
    length = max((int(step_N[-1]) + 1 for _, step_N, _ in columns if step_N.size), default=0)
    edges = np.linspace(0, length, min(WINDOWS, length) + 1).round().astype(int)
    points = []
    for first, end in pairwise(edges.tolist()):
        values = {}
        for name, step_N, values_2N in columns:
            inside = (step_N >= first) & (step_N < end)
            # A run that ended inside the window has another mean than one that went through it.
            whole = int(inside.sum()) == end - first
            kept_2N = values_2N[:, inside & ~np.isnan(values_2N).any(axis=0)]
            if whole and kept_2N.size:
                x, y = kept_2N.mean(axis=1)
                values[name] = (float(x), float(y))
        if values:
            points.append(_point(first, end - 1, values, len(series)))
    return Curve(metric, TRAINING[metric], tuple(points))


def _point(first: int, last: int, values: Mapping[str, tuple[float, float]], pairs: int) -> Point:
    numbered = dict(enumerate(values.values()))
    contrast = paired_contrast(
        {i: b for i, (_, b) in numbered.items()} | dict.fromkeys(range(len(values), pairs)),
        {i: a for i, (a, _) in numbered.items()},
    )
    a, b = np.array(list(values.values())).mean(axis=0)
    return Point(first, last, float(a), float(b), contrast, values)


def _common(
    step_a: IntArray, values_a: FloatArray, step_b: IntArray, values_b: FloatArray
) -> tuple[IntArray, FloatArray]:
    """Common steps (N,) and the values of both sides there (2, N)."""
    common, at_a, at_b = np.intersect1d(step_a, step_b, return_indices=True)
    return common, np.stack([values_a[at_a], values_b[at_b]])


def _column(series: RunSeries, metric: str) -> FloatArray:
    if metric != "informative_share":
        return series.values[metric]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = series.values["informative_groups"] / series.values["batch_size"]
    return np.where(np.isfinite(share), share, np.nan)


def _accuracy(evaluation: Evaluation, metric: str) -> float | None:
    return evaluation.accuracy if metric == "accuracy" else evaluation.greedy_accuracy
