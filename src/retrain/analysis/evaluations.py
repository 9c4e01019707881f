"""What an evaluation says: avg@k and pass@k over problems, with errors that fit the claim.

Axes: P problems, S seeds. A claim about *these trained models* resamples problems only
(`by_problem`). A claim about a *training method* resamples seeds as well
(`by_seed_and_problem`), since another seed gives another model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from retrain.analysis.statistics import t_quantile
from retrain.seeding import generator
from retrain.types import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its standard error and t interval; None where the data cannot give it."""

    mean: float
    standard_error: float | None
    low: float | None
    high: float | None
    units: int
    """Independent units behind the standard error: problems, clusters, or the fewer of seeds and
    problems."""


def avg_at_k(correct_PK: ArrayLike) -> FloatArray:
    """Share of a problem's k completions that are correct, (P,); its mean over P is avg@k.

    Formula: `c_p / k`. NaN is a completion without a verdict and is left out; a problem without any
    verdict gives NaN.
    """
    correct = _scores(correct_PK)
    if correct.ndim != 2:
        raise ValueError(f"correct needs the axes problems and completions, not {correct.shape}")
    there = ~np.isnan(correct)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(there, correct, 0.0).sum(axis=1) / there.sum(axis=1))


def pass_at_k(correct: ArrayLike, drawn: ArrayLike, k: int) -> FloatArray:
    """Unbiased chance that at least one of k completions is correct, for each problem.

    `correct` c of `drawn` n completions were correct; both broadcast.

    Formula: `1 - C(n - c, k) / C(n, k)`, as the product `1 - prod_{i<k} (n - c - i) / (n - i)`,
    which neither overflows nor cancels. Source: Chen et al. 2021 (arXiv 2107.03374), equation 1.

    Unbiased over draws of n independent completions; `1 - (1 - c/n)^k` is not. Edge cases: k = 1 is
    c / n; fewer than k wrong ones give exactly 1; c = 0 gives 0. k above n, c outside 0..n and
    numbers that are not whole raise ValueError.
    """
    c, n = _counts(correct, "correct"), _counts(drawn, "drawn")
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if n.size and k > n.min():
        raise ValueError(f"pass@{k} needs at least {k} completions of each problem, not {n.min()}")
    if (c < 0).any() or (c > n).any():
        raise ValueError("correct completions cannot be fewer than 0 or more than were drawn")
    none = np.ones(np.broadcast_shapes(c.shape, n.shape))
    for i in range(k):
        none = none * np.maximum(n - c - i, 0) / (n - i)
    return 1.0 - none


def wilson_interval(
    correct: ArrayLike, drawn: ArrayLike, confidence: float = 0.95
) -> tuple[FloatArray, FloatArray]:
    """Wilson's score interval of a share: lower and upper ends.

    Formula: `(p + z^2/2n ± z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)` with p = c / n and
    the normal quantile z. Source: Wilson, J. Am. Stat. Assoc. 22 (1927); as
    `scipy.stats.binomtest(c, n).proportion_ci(method="wilson")`.

    For independent yes/no outcomes: problems answered once. k completions of one problem are not
    independent; use `by_problem`. Edge cases: c = 0 and c = n stay inside 0..1; n = 0 gives (0, 1).
    """
    from scipy.special import ndtri

    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    c, n = np.broadcast_arrays(_counts(correct, "correct"), _counts(drawn, "drawn"))
    if (c < 0).any() or (c > n).any():
        raise ValueError("correct outcomes cannot be fewer than 0 or more than were drawn")
    z = float(ndtri(0.5 + confidence / 2))
    size = np.maximum(n, 1)
    p = c / size
    center = p + z**2 / (2 * size)
    half = z * np.sqrt(p * (1 - p) / size + z**2 / (4 * size**2))
    scale = 1 + z**2 / size
    # At c = 0 and c = n the end is 0 and 1; rounding would miss it by 1e-17.
    low = np.where((n == 0) | (c == 0), 0.0, (center - half) / scale)
    high = np.where((n == 0) | (c == n), 1.0, (center + half) / scale)
    return np.asarray(low), np.asarray(high)


def by_problem(
    values_P: ArrayLike,
    baseline_P: ArrayLike | None = None,
    sources_P: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """Mean over problems, or the mean difference of two models paired by problem.

    Formula: `d_p = values_p - baseline_p`; `se = sd(d) / sqrt(P)`, ddof 1. With sources (problems
    made from one source go right or wrong together):
    `se = sqrt(G / (G - 1) sum_g (sum_{p in g} (d_p - mean))^2) / P` over G sources, which is the
    plain formula when every problem is its own source. Interval: `mean ± t(G - 1) se`.

    Source: Miller, "Adding Error Bars to Evals" (arXiv 2411.00640), clustered and paired standard
    errors; Liang & Zeger, Biometrika 73 (1986).

    Assumes independent problems (or sources), drawn from the ones the claim is about. Edge cases:
    problems with NaN on a side are left out; one problem or one source gives no error; below about
    20 sources the interval is somewhat too narrow. No problem, infinity and unequal lengths raise
    ValueError.
    """
    values = _scores(values_P)
    baseline = np.zeros_like(values) if baseline_P is None else _scores(baseline_P)
    if values.ndim != 1 or values.shape != baseline.shape:
        raise ValueError(f"one value a problem on both sides: {values.shape}, {baseline.shape}")
    differences = values - baseline
    there = ~np.isnan(differences)
    d_P = differences[there]
    if d_P.size == 0:
        raise ValueError("no problem has a value on both sides")
    group_P = _groups(sources_P, values.size)[there]
    sums_G = np.bincount(np.unique(group_P, return_inverse=True)[1], weights=d_P - d_P.mean())
    groups = int(sums_G.size)
    if groups < 2:
        return Estimate(float(d_P.mean()), None, None, None, groups)
    error = math.sqrt(groups / (groups - 1) * float((sums_G**2).sum())) / d_P.size
    return _estimate(float(d_P.mean()), error, groups, confidence)


def by_seed_and_problem(
    values_SP: ArrayLike,
    baseline_SP: ArrayLike | None = None,
    sources_P: ArrayLike | None = None,
    confidence: float = 0.95,
    draws: int = 4000,
    seed: int = 0,
) -> Estimate:
    """Mean over seeds and problems, or a difference paired by both, for a claim about a method.

    Formula: seeds and problems (whole sources, when given) are resampled with replacement,
    independently of each other; `se = sd(bootstrap means) sqrt(m / (m - 1))`, m the fewer of seeds
    and sources, and the interval is `mean ± t(m - 1) se`. The factor undoes the bootstrap's
    division by m; percentiles are not used, since 3 or 8 seeds are too few for them.

    Source: Owen, "The pigeonhole bootstrap", Ann. Appl. Stat. 1 (2007): the variance of a mean over
    two crossed factors, overestimated where neither factor explains much. Assumes seeds and
    problems are drawn independently.

    Edge cases: a seed whose values are all NaN is left out (a run that is missing); any other NaN
    raises ValueError. One seed or one source gives no error: a single run says nothing about a
    method. Draws come from the stream (seed, "seeds-and-problems").
    """
    values = _scores(values_SP)
    baseline = np.zeros_like(values) if baseline_SP is None else _scores(baseline_SP)
    if values.ndim != 2 or values.shape != baseline.shape:
        raise ValueError(f"axes seeds and problems on both sides: {values.shape}, {baseline.shape}")
    d_SP = values - baseline
    d_SP = d_SP[~np.isnan(d_SP).all(axis=1)]
    if d_SP.size == 0:
        raise ValueError("no seed has values on both sides")
    if np.isnan(d_SP).any():
        raise ValueError("a seed lacks single problems; leave those problems out for all seeds")
    if draws < 2:
        raise ValueError(f"the bootstrap needs at least two draws, not {draws}")
    codes_P = np.unique(_groups(sources_P, d_SP.shape[1]), return_inverse=True)[1]
    groups = int(codes_P.max()) + 1
    member_GP = (np.arange(groups)[:, None] == codes_P[None, :]).astype(np.float64)
    sums_SG, sizes_G = d_SP @ member_GP.T, member_GP.sum(axis=1)
    fewest = min(d_SP.shape[0], groups)
    center = float(d_SP.mean())
    if fewest < 2:
        return Estimate(center, None, None, None, fewest)
    seeds = d_SP.shape[0]
    weight_DS, weight_DG = _resamples(seeds, groups, draws, seed)
    totals_D = ((weight_DS @ sums_SG) * weight_DG).sum(axis=1)
    means_D = totals_D / (seeds * (weight_DG @ sizes_G))
    error = float(means_D.std(ddof=1)) * math.sqrt(fewest / (fewest - 1))
    return _estimate(center, error, fewest, confidence)


@lru_cache(maxsize=1)
def _resamples(seeds: int, groups: int, draws: int, seed: int) -> tuple[IntArray, IntArray]:
    """How often each seed and each group is drawn, (draws, seeds) and (draws, groups)."""
    rng = generator(seed, "seeds-and-problems")
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws)
    return by_seed, rng.multinomial(groups, np.full(groups, 1 / groups), draws)


def _estimate(mean: float, error: float, units: int, confidence: float) -> Estimate:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    half = t_quantile(0.5 + confidence / 2, units - 1) * error
    return Estimate(mean, error, mean - half, mean + half, units)


def _groups(sources_P: ArrayLike | None, problems: int) -> IntArray:
    if sources_P is None:
        return np.arange(problems)
    sources = np.asarray(sources_P)
    if sources.shape != (problems,):
        raise ValueError(f"one source a problem: {sources.shape} for {problems} problems")
    return np.asarray(np.unique(sources, return_inverse=True)[1], dtype=np.int64)


def _counts(counts: ArrayLike, name: str) -> FloatArray:
    array = np.asarray(counts, dtype=np.float64)
    if not np.isfinite(array).all() or (array != np.round(array)).any() or (array < 0).any():
        raise ValueError(f"{name}: whole numbers from 0 on are needed")
    return array


def _scores(values: ArrayLike) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if np.isinf(array).any():
        raise ValueError("infinity among the values; mark what is missing with NaN")
    return array
