"""One number a run from its evaluations over training, chosen before the runs.

Axes: E evaluations of a run. Which summary a campaign uses is fixed beforehand: the best of several
summaries, or of several checkpoints judged on the test problems, is biased upwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from retrain.types import FloatArray, IntArray


def align_by_step(
    curves: Sequence[Mapping[int, float]],
) -> tuple[IntArray, FloatArray]:
    """Curves on their common steps: steps (E,) ascending and values (runs, E).

    Each curve maps a step to a value. Steps that one curve lacks are left out, nothing is
    interpolated; no common step gives arrays of length 0.
    """
    if not curves:
        raise ValueError("there is no curve to align")
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    values = [[curve[step] for step in steps] for curve in curves]
    return np.asarray(steps, dtype=np.int64), np.asarray(values, dtype=np.float64)


def final_window(values_E: ArrayLike, window: int) -> FloatArray:
    """Mean of the last `window` evaluations, for each row of values (..., E).

    Formula: `mean(v_(E-w+1), ..., v_E)`. Less noisy than the last value alone; the window is fixed
    before the runs. Edge cases: a NaN within the window gives NaN (the run did not finish); a
    window below 1 or above E raises ValueError.
    """
    values = np.asarray(values_E, dtype=np.float64)
    if values.ndim == 0 or not 1 <= window <= values.shape[-1]:
        raise ValueError(f"a window of {window} evaluations does not fit the shape {values.shape}")
    return np.asarray(values[..., -window:].mean(axis=-1))


def mean_height(x_E: ArrayLike, values_E: ArrayLike, until: float | None = None) -> float:
    """Area under a curve over the length of its x axis: its mean height.

    x is the step, or the tokens spent so far; `until` is the budget up to which curves are
    compared, which has to be the same for all of them.

    Formula: trapezoids, `sum (x_(i+1) - x_i) (v_i + v_(i+1)) / 2 / (x_end - x_1)`, linearly
    interpolated at `until`. By step it rewards learning early; by tokens it charges for long
    completions as well.

    Edge cases: a NaN before `until` gives NaN; so does a curve that ends before `until`, since
    nothing is extrapolated; values after `until` do not count. x that does not rise, fewer than two
    points, or `until` not beyond the first x raise ValueError.
    """
    x, values = np.asarray(x_E, dtype=np.float64), np.asarray(values_E, dtype=np.float64)
    if x.ndim != 1 or x.shape != values.shape or x.size < 2:
        raise ValueError(f"two or more points with one value each: {x.shape} and {values.shape}")
    if not np.isfinite(x).all() or (np.diff(x) <= 0).any():
        raise ValueError("x must be finite and rise from point to point")
    end = float(x[-1]) if until is None else float(until)
    if not end > x[0]:
        raise ValueError(f"the budget {end} does not lie beyond the first point {x[0]}")
    if end > x[-1]:
        return float("nan")
    inside = x < end
    last = int(inside.sum())
    share = (end - x[last - 1]) / (x[last] - x[last - 1])
    height = (
        values[last] if share == 1 else values[last - 1] + share * (values[last] - values[last - 1])
    )
    xs, heights = np.append(x[inside], end), np.append(values[inside], height)
    area = float((np.diff(xs) * (heights[1:] + heights[:-1]) / 2).sum())
    return area / (end - float(x[0]))


def best_on_validation(validation_E: ArrayLike, test_E: ArrayLike) -> tuple[int, float]:
    """The evaluation that is best on the validation problems, and its value on the test problems.

    Choosing and reporting on the same problems would report the luck of the choice. Ties take the
    earliest. NaN on validation is never chosen; all NaN, or unequal lengths, raise ValueError.
    """
    validation = np.asarray(validation_E, dtype=np.float64)
    test = np.asarray(test_E, dtype=np.float64)
    if validation.ndim != 1 or validation.shape != test.shape:
        raise ValueError(f"one value an evaluation each: {validation.shape} and {test.shape}")
    if validation.size == 0 or np.isnan(validation).all():
        raise ValueError("no evaluation has a value on the validation problems")
    best = int(np.nanargmax(validation))
    return best, float(test[best])
