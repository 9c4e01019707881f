"""Statistics of a campaign: pure functions on numbers.

The unit is the run: one condition under one seed gives one number. Two conditions are compared
by the differences of the numbers that share a seed. Conditions under one seed see the same
problems and the same uniform numbers, so the difference holds less noise than either number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SAME = 1e-12
"""Numbers closer than this, relative to the largest of them, count as equal."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """How one condition differs from another, seed by seed.

    A value that the data cannot give is None: `mean_difference` without any pair, everything
    else with a single pair.
    """

    mean_difference: float | None
    """Mean of treatment minus baseline over the pairs."""
    standard_error: float | None
    """Of the mean difference: sd / sqrt(n), ddof 1."""
    low: float | None
    """Lower end of the confidence interval."""
    high: float | None
    """Upper end of the confidence interval."""
    n: int
    """Pairs that were compared."""
    dropped: int
    """Seeds left out because one side has no value."""
    confidence: float
    """Coverage of the interval, e.g. 0.95."""
    all_equal: bool
    """Two or more pairs, and all differ by the same amount: the interval has no width. That is
    what the formula gives, not a sign of certainty."""


def paired_contrast(
    treatment: Mapping[int, float | None],
    baseline: Mapping[int, float | None],
    confidence: float = 0.95,
) -> Contrast:
    """Compare two conditions by the seeds that both have.

    Both arguments map a seed to the run's value; None is a run without one. A seed that is
    missing or None on either side is dropped and counted. For formula, assumptions and edge
    cases see `contrast_of_differences`.
    """
    seeds = treatment.keys() | baseline.keys()
    pairs: list[tuple[float, float]] = []
    for seed in sorted(seeds):
        a, b = treatment.get(seed), baseline.get(seed)
        if a is not None and b is not None:
            pairs.append((a, b))
    values = _finite([value for pair in pairs for value in pair])
    scale = float(np.abs(values).max(initial=0.0))
    return _contrast(
        np.array([a - b for a, b in pairs], dtype=np.float64),
        confidence,
        dropped=len(seeds) - len(pairs),
        scale=scale,
    )


def contrast_of_differences(
    differences: Sequence[float], confidence: float = 0.95, dropped: int = 0
) -> Contrast:
    """The paired-t interval of a mean difference.

    Formula: `mean(d) ± t(1 - (1 - confidence) / 2, n - 1) * sd(d) / sqrt(n)`, sd with ddof 1.

    Source: Student, "The probable error of a mean", Biometrika 6 (1908); the same interval as
    `scipy.stats.ttest_rel(a, b).confidence_interval(confidence)`.

    Assumptions: the differences are independent between seeds and roughly normal. With few seeds
    the interval is wide and honest about it; it is not robust against one wild seed.

    Edge cases: no pair gives None throughout; one pair gives its difference and no interval; equal
    differences give an interval without width and `all_equal`; NaN and infinity are refused
    with ValueError, because a run without a number has to be dropped knowingly.
    """
    values = _finite(differences)
    return _contrast(values, confidence, dropped, scale=float(np.abs(values).max(initial=0.0)))


def mean(values: Sequence[float]) -> float | None:
    """The plain mean; None of nothing. NaN and infinity are refused with ValueError."""
    array = _finite(values)
    return float(array.mean()) if array.size else None


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean, `sd / sqrt(n)` with ddof 1.

    Assumes independent values. None for fewer than two, whose spread is unknown; 0 when all are
    equal. NaN and infinity are refused with ValueError.
    """
    array = _finite(values)
    return float(array.std(ddof=1) / math.sqrt(array.size)) if array.size > 1 else None


def _contrast(
    differences: np.ndarray[tuple[int], np.dtype[np.float64]],
    confidence: float,
    dropped: int,
    scale: float,
) -> Contrast:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    n = int(differences.size)
    center = float(differences.mean()) if n else None
    if center is None or n < 2:
        return Contrast(center, None, None, None, n, dropped, confidence, all_equal=False)
    # 0.8 - 0.7 and 0.7 - 0.6 differ in their last bits: that spread is rounding, not evidence.
    if float(np.ptp(differences)) <= SAME * scale:
        return Contrast(center, 0.0, center, center, n, dropped, confidence, all_equal=True)
    error = float(differences.std(ddof=1) / math.sqrt(n))
    half_width = t_quantile(0.5 + confidence / 2, n - 1) * error
    return Contrast(
        center,
        error,
        center - half_width,
        center + half_width,
        n,
        dropped,
        confidence,
        all_equal=False,
    )


def t_quantile(probability: float, degrees_of_freedom: int) -> float:
    """The value that a t-distributed number stays below with this probability."""
    # scipy.special loads in a quarter of the time of scipy.stats, and `retrain` should end fast.
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, probability))


def _finite(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    if not np.isfinite(array).all():
        raise ValueError(
            "NaN or infinity among the values; a run without a number has to be left out as None"
        )
    return array
