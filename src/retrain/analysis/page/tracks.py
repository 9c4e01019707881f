"""Curves of runs, their mean over seeds, and both as short JSON.

Axes: n points of a run, R runs of a condition, X places on the x axis that they share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any, Literal

import numpy as np

from retrain.analysis.statistics import t_quantile
from retrain.types import FloatArray, IntArray

Axis = Literal["step", "tokens", "seconds"]
AXES: tuple[Axis, ...] = ("step", "tokens", "seconds")


@dataclass(frozen=True, slots=True)
class Track:
    """One quantity of one run over its training: n points, all finite."""

    condition: int
    seed: int | None
    done: bool
    """Whether the run finished."""
    x: tuple[FloatArray, FloatArray, FloatArray]
    """(n,) each: step, completion tokens and seconds spent until then; `AXES`."""
    y: FloatArray
    """(n,)"""


@dataclass(frozen=True, slots=True)
class MeanCurve:
    """The mean over R runs at X places, and two bands around it."""

    x: FloatArray
    mean: FloatArray
    half: FloatArray
    """Half the width of the mean's t interval; NaN with a single run."""
    low: FloatArray
    """The lowest run."""
    high: FloatArray
    runs: int

    def at(self, places: IntArray) -> MeanCurve:
        """The curve at some of its places alone."""
        columns = (self.x, self.mean, self.half, self.low, self.high)
        x, mean, half, low, high = (column[places] for column in columns)
        return MeanCurve(x, mean, half, low, high, self.runs)

    def data(self) -> dict[str, Any]:
        """What the script draws; the bands of a single run are left out."""
        found: dict[str, Any] = {"x": rounded(self.x), "y": rounded(self.mean), "n": self.runs}
        if self.runs > 1:
            found |= {
                "h": rounded(self.half),
                "lo": rounded(self.low),
                "hi": rounded(self.high),
            }
        return found


def counted(tracks: Sequence[Track]) -> list[Track]:
    """The runs that a mean is over: the finished ones, or all where none has finished.

    A mean whose members change along the way would show steps that no run made.
    """
    return [track for track in tracks if track.done] or list(tracks)


def shared_steps(steps: Sequence[FloatArray]) -> FloatArray:
    """(X,) the values that all of some ascending arrays have."""
    first = steps[0]
    if all(other.size == first.size and (other == first).all() for other in steps[1:]):
        return first
    return reduce(lambda a, b: np.intersect1d(a, b, assume_unique=True), steps)


def mean_curve(
    tracks: Sequence[Track], axis: Axis, points: int, confidence: float
) -> MeanCurve | None:
    """The mean of counted runs along an axis; None where they share no place of it."""
    chosen = counted(tracks)
    found = _aligned(chosen, axis, points) if chosen else None
    return found and mean_of(*found, confidence)


def difference_curve(
    treatment: Sequence[Track],
    baseline: Sequence[Track],
    axis: Axis,
    points: int,
    confidence: float,
) -> MeanCurve | None:
    """The mean over seeds of treatment minus baseline, of the counted runs that share a seed."""
    other = {track.seed: track for track in counted(baseline)}
    pairs = [(track, other[track.seed]) for track in counted(treatment) if track.seed in other]
    if not pairs:
        return None
    found = _aligned([track for pair in pairs for track in pair], axis, points)
    if found is None:
        return None
    x, rows_RX = found
    return mean_of(x, rows_RX[::2] - rows_RX[1::2], confidence)


def _aligned(
    tracks: Sequence[Track], axis: Axis, points: int
) -> tuple[FloatArray, FloatArray] | None:
    """Places (X,) and the tracks' values there (R, X).

    By step: the steps that all tracks have. By tokens or seconds, which no two runs spend alike:
    each track interpolated linearly onto one grid of `points` places, from the place that all have
    begun at to the one that all have come to, so that nothing is extrapolated.
    """
    places = [track.x[AXES.index(axis)] for track in tracks]
    if axis == "step":
        x = shared_steps(places)
        rows = [t.y[np.searchsorted(at, x)] for at, t in zip(places, tracks, strict=True)]
        return (x, np.stack(rows)) if x.size else None
    first, last = max(float(at[0]) for at in places), min(float(at[-1]) for at in places)
    if not last > first:
        return None
    x = np.linspace(first, last, points)
    return x, np.stack([np.interp(x, at, t.y) for at, t in zip(places, tracks, strict=True)])


def mean_of(x: FloatArray, values_RX: FloatArray, confidence: float) -> MeanCurve:
    """Mean, t interval (`mean ± t(R - 1) sd / sqrt(R)`, ddof 1) and extremes over the runs."""
    runs = len(values_RX)
    half: FloatArray = np.full(x.size, np.nan)
    if runs > 1:
        quantile = _quantile(0.5 + confidence / 2, runs - 1)
        half = quantile * values_RX.std(axis=0, ddof=1) / math.sqrt(runs)
    return MeanCurve(
        x, values_RX.mean(axis=0), half, values_RX.min(axis=0), values_RX.max(axis=0), runs
    )


def smoothed(values_RX: FloatArray, window: int) -> FloatArray:
    """Centred moving average along the last axis, over what there is of an odd window.

    NaN is passed over; a window without a number gives NaN.
    """
    there = np.isfinite(values_RX)
    zeros = [(0, 0)] * (values_RX.ndim - 1)
    sums = np.pad(np.cumsum(np.where(there, values_RX, 0.0), axis=-1), [*zeros, (1, 0)])
    counts = np.pad(np.cumsum(there, axis=-1), [*zeros, (1, 0)])
    place = np.arange(values_RX.shape[-1])
    first = np.maximum(0, place - window // 2)
    end = np.minimum(place.size, place + window // 2 + 1)
    count = counts[..., end] - counts[..., first]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (sums[..., end] - sums[..., first]) / count
    return np.where(count > 0, mean, np.nan)


def thinned(steps: FloatArray, length: int, points: int) -> IntArray:
    """Indices of about `points` places of a curve that is `length` steps long when it is whole.

    Which steps stay depends on `length` alone, so that all runs keep the same ones; a curve's
    first and last place always stay.
    """
    stride = max(1, -(-length // points))
    keep = steps % stride == 0
    keep[:1] = keep[-1:] = True
    return np.flatnonzero(keep)


def rounded(values: FloatArray, digits: int = 4) -> list[float | int | None]:
    """To so many significant digits, whole numbers without a point; NaN becomes None."""
    size = np.floor(np.log10(np.abs(values), where=values != 0, out=np.zeros(values.shape)))
    # Beyond 10^300 the power overflows: what is that small becomes 0.
    size = np.where(np.isfinite(size), np.minimum(digits - 1 - size, 300.0), 0.0)
    up, down = 10.0 ** np.maximum(size, 0.0), 10.0 ** np.maximum(-size, 0.0)
    shown = np.round(values * up / down) / up * down
    return [_plain(value) for value in shown.tolist()]


def _plain(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() else value


@cache
def _quantile(probability: float, degrees_of_freedom: int) -> float:
    return t_quantile(probability, degrees_of_freedom)
