"""Several tasks pooled: robust averages of many runs, with bootstrap intervals.

Values are `values_RT`: R runs (or seeds) of one condition on T tasks, NaN where a run has no value.
After Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice",
NeurIPS 2021 (arXiv 2108.13264), called Agarwal 2021 below.

A percentile bootstrap of a mean is too narrow for few runs (3 seeds: it covers about 75 % of the
time at a nominal 95 %), so that everything here that resamples asks for 10 values at least, and
`statistics.contrast_of_differences` is the way for fewer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from retrain.seeding import generator
from retrain.types import FloatArray

FEWEST_VALUES = 10
"""Below this many values nothing is bootstrapped."""

FEWEST_TASKS = 3
"""Below this many tasks there is nothing to pool."""

Statistic = Literal["iqm", "mean", "median"]


class Interval(NamedTuple):
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float


def iqm(values: ArrayLike) -> float:
    """Interquartile mean: the mean of the middle half of all values, over runs and tasks.

    Formula: `floor(n / 4)` values are cut from each end of the sorted values and the rest averaged;
    exactly `scipy.stats.trim_mean(values, 0.25)`. Source: Agarwal 2021, section 4.3.

    Less sensitive to single wild runs than the mean, and to what it cuts away: a condition that
    fails on a quarter of the tasks can have the same IQM. Edge cases: below 4 values it is the
    mean; NaN are left out; no value gives NaN; infinity raises ValueError.
    """
    return float(_middle(_kept(np.ravel(finite_values(values)))))


def bootstrap_mean(
    values_R: ArrayLike, confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of a mean of 10 or more independent runs.

    Formula: the (1 - confidence) / 2 quantiles of the means of `draws` resamples of n with
    replacement; as `scipy.stats.bootstrap(method="percentile")`. Source: Efron & Tibshirani, "An
    Introduction to the Bootstrap" (1993), chapter 13.

    Below 10 values it raises ValueError: use the t interval. NaN are left out.
    """
    values = _kept(np.ravel(finite_values(values_R)))
    _enough(values.size)
    return _bootstrap([values], lambda drawn: drawn.mean(axis=-1), confidence, draws, seed, "mean")


def stratified_bootstrap(
    values_RT: ArrayLike,
    statistic: Statistic = "iqm",
    confidence: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> Interval:
    """A pooled average over tasks with its stratified percentile bootstrap interval.

    Formula: within each task its runs are resampled with replacement, the statistic is taken over
    all values of all tasks, and the interval is the percentiles of `draws` of them. Source: Agarwal
    2021, section 4.1.

    Assumptions: the tasks are fixed (the interval says nothing about other tasks), runs are
    independent within and between tasks; one run that is judged on several tasks is not, which
    makes the interval too narrow.

    Edge cases: fewer than 3 tasks or 10 values raise ValueError; so does a task without a value.
    NaN are left out of their task.
    """
    values = _runs_by_tasks(values_RT)
    if values.shape[1] < FEWEST_TASKS:
        raise ValueError(f"{values.shape[1]} tasks are too few to pool; {FEWEST_TASKS} are needed")
    tasks = _tasks(values)
    _enough(sum(task.size for task in tasks))
    return _bootstrap(tasks, STATISTICS[statistic], confidence, draws, seed, statistic)


def probability_of_improvement(treatment_RT: ArrayLike, baseline_RT: ArrayLike) -> float:
    """Chance that a run of the treatment beats a run of the baseline, averaged over tasks.

    Formula: `1/T sum_t 1/(N M) sum_ij ([x_ti > y_tj] + [x_ti = y_tj] / 2)`; in each task the
    Mann-Whitney U over N M. Source: Agarwal 2021, section 4.3.

    Says how often, not how much; 0.5 is no difference. Runs need not be paired, and the number of
    runs may differ. NaN are left out; a task without a value on either side, or arrays with
    different tasks, raise ValueError.
    """
    a_RT, b_RT = _runs_by_tasks(treatment_RT), _runs_by_tasks(baseline_RT)
    if a_RT.shape[1] != b_RT.shape[1]:
        raise ValueError(f"{a_RT.shape[1]} and {b_RT.shape[1]} tasks: both need the same tasks")
    shares = []
    for x, y in zip(_tasks(a_RT), _tasks(b_RT), strict=True):
        above = np.sign(x[:, None] - y[None, :])
        shares.append(float(((above + 1) / 2).mean()))
    return float(np.mean(shares))


def performance_profile(values_RT: ArrayLike, thresholds_X: ArrayLike) -> FloatArray:
    """Share of runs above each threshold, averaged over tasks; (X,).

    Formula: `F(x) = 1/T sum_t 1/N_t sum_i [v_ti > x]`. Source: Agarwal 2021, section 4.2 (run-score
    distributions). Falls from 1 to 0; one profile above another everywhere means
    stochastic dominance. NaN are left out of their task; a task without a value raises ValueError.
    """
    thresholds = finite_values(thresholds_X)
    tasks = _tasks(_runs_by_tasks(values_RT))
    shares = [(task[:, None] > thresholds[None, :]).mean(axis=0) for task in tasks]
    return np.asarray(np.mean(shares, axis=0), dtype=np.float64)


def _middle(values: FloatArray) -> FloatArray:
    n = values.shape[-1]
    if n == 0:
        return np.asarray(np.nan)
    cut = int(0.25 * n)
    return np.asarray(np.sort(values, axis=-1)[..., cut : n - cut].mean(axis=-1))


STATISTICS: dict[Statistic, Callable[[FloatArray], FloatArray]] = {
    "iqm": _middle,
    "mean": lambda values: np.asarray(values.mean(axis=-1)),
    "median": lambda values: np.asarray(np.median(values, axis=-1)),
}


def _bootstrap(
    tasks: list[FloatArray],
    statistic: Callable[[FloatArray], FloatArray],
    confidence: float,
    draws: int,
    seed: int,
    name: str,
) -> Interval:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    if draws < 1:
        raise ValueError(f"the bootstrap needs at least one draw, not {draws}")
    rng = generator(seed, "bootstrap", name)
    drawn_DN = np.concatenate(
        [task[rng.integers(0, task.size, (draws, task.size))] for task in tasks], axis=1
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(statistic(drawn_DN), [tail, 1 - tail])
    return Interval(float(statistic(np.concatenate(tasks))), float(low), float(high))


def _enough(values: int) -> None:
    if values < FEWEST_VALUES:
        raise ValueError(
            f"a bootstrap of {values} values is too narrow; "
            f"below {FEWEST_VALUES} use the t interval"
        )


def _runs_by_tasks(values_RT: ArrayLike) -> FloatArray:
    values = finite_values(values_RT)
    if values.ndim != 2:
        raise ValueError(f"values need the axes runs and tasks, not the shape {values.shape}")
    return values


def _tasks(values_RT: FloatArray) -> list[FloatArray]:
    tasks = [_kept(task_R) for task_R in values_RT.T]
    for index, task in enumerate(tasks):
        if task.size == 0:
            raise ValueError(f"task {index} has no value")
    return tasks


def _kept(values: FloatArray) -> FloatArray:
    return np.asarray(values[~np.isnan(values)], dtype=np.float64)


def finite_values(values: ArrayLike) -> FloatArray:
    """As floats. Raises ValueError for infinity; NaN is a run without a number."""
    array = np.asarray(values, dtype=np.float64)
    if np.isinf(array).any():
        raise ValueError("infinity among the values; mark a run without a number with NaN")
    return array
