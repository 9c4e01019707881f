"""Two conditions compared seed by seed: tests, intervals and what they rest on.

Arrays name their axes: S seeds, K contrasts, C conditions. NaN is a run without a value; a pair
with a NaN is left out and counted. Functions on `differences_S` also take leading axes, so that a
simulation can judge thousands of campaigns at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from retrain.analysis.power import EXACT_SEEDS, detectable_effect, smallest_p
from retrain.analysis.resampling import finite_values
from retrain.analysis.statistics import SAME, Contrast, contrast_of_differences
from retrain.seeding import generator
from retrain.types import BoolArray, FloatArray

MONTE_CARLO_FLIPS = 2**16
"""Sign flips that are looked at when there are too many to enumerate, the observed one included."""

AT_ONCE = 2**20
"""Sums that are held in memory at once (8 MB)."""

DRAWN_AT_ONCE = 2**12

TIE = 1e-10
"""Sums closer than this, relative to the sum of absolute differences, count as equal."""


@dataclass(frozen=True, slots=True)
class Paired:
    """Everything that one planned contrast says before correction for the others.

    What the data cannot give is None.
    """

    contrast: Contrast
    """Mean difference with its paired-t interval."""
    p_t: float | None
    """Two-sided paired t test. None below 2 pairs, or when all differences are equal."""
    p_sign_flip: float | None
    """Exact two-sided sign-flip test. None without a pair."""
    smallest_p: float
    """What `p_sign_flip` cannot fall below with these pairs; ties raise it."""
    wins: int
    """Seeds under which the treatment is higher."""
    losses: int
    ties: int
    correlation: float | None
    """Pearson's, between the two conditions over seeds. None below 3 pairs or if a side is
    constant. Pairing saves runs as far as this is positive."""
    sd: float | None
    """Standard deviation (ddof 1) of the differences."""
    detectable: float | None
    """The difference that these pairs find with 80 % power. None where no p value reaches
    1 - confidence, or the sd is unknown."""


def compare_pairs(
    treatment_S: ArrayLike, baseline_S: ArrayLike, confidence: float = 0.95
) -> Paired:
    """One condition against another; index s of both is the same seed.

    Formulas: see `contrast_of_differences`, `t_test_p`, `sign_flip_p` and
    `power.detectable_effect`.

    Assumptions: seeds are independent. The sign-flip test asks no more than that under the null
    hypothesis differences are as likely to be positive as negative at every size; the t interval
    asks for roughly normal differences.

    Edge cases: pairs with NaN are dropped and counted in `contrast.dropped`; differences that are
    only rounding (1e-12 of the largest value) count as ties; infinity and arrays of unequal
    length raise ValueError.
    """
    treatment, baseline = finite_values(treatment_S), finite_values(baseline_S)
    if treatment.ndim != 1 or treatment.shape != baseline.shape:
        raise ValueError(
            "treatment and baseline need one value a seed each, in the same order: shapes "
            f"{treatment.shape} and {baseline.shape}"
        )
    differences = paired_differences(treatment, baseline)
    both = ~np.isnan(differences)
    kept = differences[both]
    contrast = contrast_of_differences(kept.tolist(), confidence, dropped=int((~both).sum()))
    sd = float(kept.std(ddof=1)) if kept.size > 1 and not contrast.all_equal else None
    if contrast.all_equal:
        sd = 0.0
    effect = detectable_effect(int((kept != 0).sum()), 1 - confidence)
    return Paired(
        contrast=contrast,
        p_t=_maybe(t_test_p(kept)) if not contrast.all_equal else None,
        p_sign_flip=_maybe(sign_flip_p(kept)),
        smallest_p=smallest_p(int((kept != 0).sum())),
        wins=int((kept > 0).sum()),
        losses=int((kept < 0).sum()),
        ties=int((kept == 0).sum()),
        correlation=_correlation(treatment[both], baseline[both]),
        sd=sd,
        detectable=effect * sd if sd and np.isfinite(effect) else None,
    )


def paired_differences(treatment: ArrayLike, baseline: ArrayLike) -> FloatArray:
    """Treatment minus baseline, NaN where either is; rounding counts as zero.

    Shapes broadcast. A difference below 1e-12 of the larger of its two values is a tie: 0.8 - 0.7
    and 0.7 - 0.6 differ in their last bits, and that is no evidence. Infinity raises ValueError.
    """
    a, b = finite_values(treatment), finite_values(baseline)
    differences = a - b
    rounding = np.abs(differences) <= SAME * np.maximum(np.abs(a), np.abs(b))
    return np.where(rounding, 0.0, differences)


def intention_to_treat(values_SC: ArrayLike, diverged_SC: ArrayLike, floor: float) -> FloatArray:
    """Values in which a diverged run scores the pre-set floor.

    A diverged run (NaN, no informative group for long) is an outcome of its condition. A run that
    failed for another reason stays NaN: it says nothing about the condition and is run again. The
    floor has to be fixed before the runs; a finite number, else ValueError. Comparing
    `values_SC` itself gives the complete pairs; a report shows both.
    """
    if not np.isfinite(floor):
        raise ValueError(f"the floor must be a finite number, not {floor}")
    values, diverged = finite_values(values_SC), np.asarray(diverged_SC, dtype=np.bool_)
    if values.shape != diverged.shape:
        raise ValueError(f"shapes of values {values.shape} and diverged {diverged.shape} differ")
    return np.where(diverged, floor, values)


@lru_cache(maxsize=4)
def sign_flips(seeds: int, seed: int = 0) -> FloatArray:
    """Sign flips of so many differences, (F, S) of +1 and -1, not to be written to; row 0 flips
    nothing.

    Up to 17 seeds: all of them, without mirror images (the first sign is always +1), 2^(n - 1)
    rows. Beyond: 2^16 rows drawn from the stream (seed, "sign-flips", n), after the one that flips
    nothing.
    """
    if seeds <= EXACT_SEEDS:
        codes = np.arange(2 ** max(seeds - 1, 0))[:, None]
        flips = ((codes >> np.arange(seeds)[::-1]) & 1).astype(np.float64)
    else:
        rng = generator(seed, "sign-flips", seeds)
        flips = np.empty((MONTE_CARLO_FLIPS, seeds))
        for start in range(0, MONTE_CARLO_FLIPS, DRAWN_AT_ONCE):
            block = flips[start : start + DRAWN_AT_ONCE]
            block[:] = rng.integers(0, 2, block.shape)
        flips[0] = 0
    flips *= -2.0
    flips += 1.0
    flips.flags.writeable = False
    return flips


def sign_flip_p(differences_S: ArrayLike, seed: int = 0) -> FloatArray:
    """Two-sided p value of the exact sign-flip test, for each row of `differences_S` (..., S).

    Formula: the share of all 2^n sign flips s with `|sum(s d)| >= |sum(d)|`. Since flips leave
    `sum(d^2)` alone, |t| gives the same p. Above 17 seeds: the share among 2^16 keyed random flips
    of which one is the observed, (1 + b) / (1 + m), which is valid and never 0 (Phipson & Smyth,
    Stat. Appl. Genet. Mol. Biol. 9 (2010)).

    Source: Fisher, "The Design of Experiments" (1935), section 21.

    Assumptions: under the null hypothesis the differences are independent between seeds and
    symmetric around 0. That holds at any shape when two conditions have the same distribution, but
    not for conditions of equal mean and unlike shapes (docs/statistics.md, "limits").

    Edge cases: smallest p 2 / 2^n. Zeros and NaN change nothing but n. One seed gives 1, all zero
    gives 1, no pair gives NaN. Infinity raises ValueError.
    """
    differences = finite_values(differences_S)
    if differences.ndim == 0:
        raise ValueError("differences need an axis of seeds")
    values = np.nan_to_num(differences)  # a zero is the same under both signs: it drops out
    flips_FS = sign_flips(values.shape[-1], seed)
    rows_BS = values.reshape(math.prod(values.shape[:-1]), values.shape[-1])
    reached_B = np.abs(rows_BS.sum(axis=1)) - TIE * np.abs(rows_BS).sum(axis=1)
    p_B = np.empty(len(rows_BS))
    block = max(1, AT_ONCE // len(flips_FS))
    for start in range(0, len(rows_BS), block):
        part = slice(start, start + block)
        sums_BF = np.abs(rows_BS[part] @ flips_FS.T)
        p_B[part] = (sums_BF >= reached_B[part, None]).mean(axis=1)
    p = p_B.reshape(values.shape[:-1])
    return np.asarray(np.where(np.isnan(differences).all(axis=-1), np.nan, p), dtype=np.float64)


def t_test_p(differences_S: ArrayLike) -> FloatArray:
    """Two-sided p value of the paired t test for each row of `differences_S` (..., S).

    Formula: `2 P(T >= |mean(d)| sqrt(n) / sd(d))`, n - 1 degrees of freedom, sd with ddof 1; as
    `scipy.stats.ttest_rel`. Source: Student, Biometrika 6 (1908).

    Assumes normal differences. NaN are left out; NaN below 2 pairs and where all are equal.
    """
    from scipy.special import stdtr

    mean, error, n, flat = _moments(finite_values(differences_S))
    with np.errstate(invalid="ignore", divide="ignore"):
        p = 2 * stdtr(np.maximum(n - 1, 1), -np.abs(mean / error))
    return np.asarray(np.where((n < 2) | flat, np.nan, p), dtype=np.float64)


def t_interval(
    differences_S: ArrayLike, confidence: float = 0.95
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean, lower and upper end of the paired-t interval for each row (..., S).

    The formula of `contrast_of_differences` for many rows at once. NaN are left out; the ends are
    NaN below 2 pairs, and the mean itself where all are equal.
    """
    from scipy.special import stdtrit

    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    mean, error, n, flat = _moments(finite_values(differences_S))
    half = np.where(flat, 0.0, stdtrit(np.maximum(n - 1, 1), 0.5 + confidence / 2) * error)
    half = np.where(n < 2, np.nan, half)
    return mean, mean - half, mean + half


def equivalence_p(differences_S: ArrayLike, margin: float) -> FloatArray:
    """p value of "the mean difference is smaller than the margin" (TOST), for each row (..., S).

    Formula: the larger of `P(T >= (mean + margin) / se)` and `P(T >= (margin - mean) / se)`, n - 1
    degrees of freedom. p <= alpha exactly when the 1 - 2 alpha t interval lies within the margin.

    Source: Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987).

    Assumes normal differences, and a margin stated before the runs. No test can count what no seed
    showed: a condition that diverges rarely can look equivalent (docs/statistics.md, "limits").

    Edge cases: NaN are left out; NaN below 2 pairs. Where all differences are equal the t test has
    no denominator; p is then that of the one-sided sign-flip tests, 2^-n inside the margin and 1
    elsewhere. A margin that is not above 0 raises ValueError.
    """
    from scipy.special import stdtr

    if not (np.isfinite(margin) and margin > 0):
        raise ValueError(f"the margin must be a finite number above 0, not {margin}")
    mean, error, n, flat = _moments(finite_values(differences_S))
    df = np.maximum(n - 1, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.maximum(stdtr(df, -(mean + margin) / error), stdtr(df, (mean - margin) / error))
    p = np.where(flat, np.where(np.abs(mean) < margin, 0.5**n, 1.0), p)
    return np.asarray(np.where(n < 2, np.nan, p), dtype=np.float64)


def _moments(values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, BoolArray]:
    """Mean, standard error, count and "all equal" over the last axis, without NaN."""
    if values.ndim == 0:
        raise ValueError("differences need an axis of seeds")
    there = ~np.isnan(values)
    n = there.sum(axis=-1).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(there, values, 0.0).sum(axis=-1) / n
        rest = np.where(there, values - mean[..., None], 0.0)
        error = np.sqrt((rest**2).sum(axis=-1) / (n - 1) / n)
    largest = np.where(there, np.abs(values), 0.0).max(axis=-1, initial=0.0)
    flat = (n > 1) & (np.abs(rest).max(axis=-1, initial=0.0) <= SAME * largest)
    return mean, error, n, np.asarray(flat)


def _correlation(a_S: FloatArray, b_S: FloatArray) -> float | None:
    if a_S.size < 3:
        return None
    x, y = a_S - a_S.mean(), b_S - b_S.mean()
    if any(np.abs(z).max() <= SAME * max(np.abs(v).max(), SAME) for z, v in ((x, a_S), (y, b_S))):
        return None
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    return float(np.clip(x @ y, -1.0, 1.0))


def _maybe(p: FloatArray) -> float | None:
    return None if np.isnan(p) else float(p)
